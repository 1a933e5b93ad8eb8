"""What the model says of the photos of a lesion, its pictures, and the report of it."""

import dataclasses
import json
import re
import sys
import time

import answers
import numpy as np
import pytest
import render
import torch
from modeling.publish.onnx import export_onnx
from PIL import Image
from report import GAPS, report_html

from modeling.classifier import LesionClassifier
from modeling.explain import Explanation
from modeling.images import ImageError
from modeling.labels import REFERENCE_CODES
from modeling.network import build_model, save_model_folder
from modeling.prediction import Prediction
from support.space import FOR_MELANOMA, Photo, make_model, pixels_of


def test_the_page_and_the_predictor_give_one_photo_the_same_answer(classifier, photo):
    expected = classifier.predict(photo.source)
    answer = answers.answer_lesion(classifier, [photo])
    for row in answer["differential"]:
        assert row["probability"] == pytest.approx(expected.probabilities[row["code"]], abs=1e-6)
    assert answer["differential"][0]["code"] == expected.diagnosis
    fields = answers.classify_photo(classifier, photo)
    assert fields["operating_points"] == expected.operating_points
    assert answer["operating_points"] == expected.operating_points
    assert answer["verdict"] == fields["verdict"] == expected.verdict


def test_the_differential_is_sorted_and_names_and_marks_every_diagnosis():
    rows = answers.differential({"BCC": 0.2, "AK": 0.1, "NV": 0.4, "MEL": 0.3})
    assert [row["code"] for row in rows] == ["NV", "MEL", "BCC", "AK"]
    assert rows[1] == {
        "code": "MEL",
        "name": "melanoma",
        "behaviour": "malignant",
        "malignant": True,
        "probability": 0.3,
    }
    assert [row["malignant"] for row in rows] == [False, True, True, True]


def test_each_threshold_tells_what_it_is_for_and_how_it_did_in_validation(classifier):
    sure = prediction(classifier, 0.1, 0.1, 0.7, 0.1)
    sure = dataclasses.replace(sure, operating_points={"MEL@95": True})
    fields = answers.answer_fields(classifier, sure)
    assert fields["thresholds"] == {
        "MEL@95": {
            "catches": "melanomas",
            "target_sensitivity": 0.95,
            "cutoff": 0.1,
            "value": 0.7,
            "in_words": {"value": "70 %", "cutoff": "10 %", "target": "95 %"},
            "above": True,
            "caught": 38,
            "n_positive": 40,
            "false_alarms": 38,
            "n_negative": 100,
        }
    }


@pytest.mark.parametrize(
    ("value", "cutoff", "texts"),
    [
        (0.31, 0.1, ("31 %", "10 %")),
        (0.1234, 0.1229, ("12.34 %", "12.29 %")),
        (0.99999, 0.9992, ("99.999 %", "99.920 %")),
    ],
)
def test_a_value_and_its_cutoff_are_written_so_that_they_can_be_told_apart(value, cutoff, texts):
    assert answers.shown_pair(value, cutoff) == texts


def test_the_diagnoses_that_a_model_cannot_give_are_named(classifier, photo):
    names = {row["name"]: row["malignant"] for row in answers.classify_photo(classifier, photo)["not_known"]}
    assert names == {
        "actinic keratosis": True,
        "dermatofibroma": False,
        "vascular lesion": False,
        "squamous cell carcinoma": True,
    }


def prediction(classifier, *probabilities: float, reason: str | None = None) -> Prediction:
    by_code = dict(zip(classifier.codes, probabilities, strict=True))
    best = max(by_code, key=by_code.__getitem__)
    return Prediction(best, by_code[best], by_code, reason is not None, reason, {}, {}, "")


def test_several_photos_of_a_lesion_are_averaged_and_the_thresholds_applied_to_the_mean(classifier):
    lesion = answers.lesion_prediction(
        classifier, [prediction(classifier, 0.7, 0.2, 0.05, 0.05), prediction(classifier, 0.1, 0.2, 0.25, 0.45)]
    )
    assert lesion.probabilities == pytest.approx({"BCC": 0.4, "BKL": 0.2, "MEL": 0.15, "NV": 0.25})
    assert lesion.operating_points == {"MEL@95": True}  # 0.15 on average, though the first photo alone has 0.05
    assert not lesion.abstained


def test_a_photo_that_the_model_abstains_on_is_left_out_of_the_average(classifier):
    good, odd = prediction(classifier, 0.7, 0.1, 0.1, 0.1), prediction(classifier, 0, 0, 1, 0, reason="odd")
    lesion = answers.lesion_prediction(classifier, [odd, good])
    assert lesion.probabilities == pytest.approx(good.probabilities)
    assert not lesion.abstained
    both = answers.lesion_prediction(classifier, [odd, odd])
    assert (both.abstained, both.reason) == (True, "odd")


def test_only_photos_that_were_used_are_explained_and_reported(classifier, lesions, tmp_path, ood_score):
    scores = {Photo(str(file), file.name): ood_score(classifier, file) for file in lesions}
    *good, familiar, odd = sorted(scores, key=scores.get)
    picky = make_model(tmp_path / "model", threshold=(scores[odd] + scores[familiar]) / 2)
    answer = answers.answer_lesion(LesionClassifier.from_pretrained(picky), [odd, *good])
    assert [photo["used"] for photo in answer["photos"]] == [False, True, True]
    assert answer["n_used"] == 2
    left_out = answer["photos"][0]
    assert "unlike" in left_out["reason"]
    assert pixels_of(left_out["thumbnail"]).shape
    assert "maps" not in left_out
    html = report_html(answer)
    assert f"{odd.name} was left out." in html
    assert f"{odd.name} (" not in html
    assert f"{good[0].name} (" in html


def test_a_photo_that_cannot_be_read_is_named_and_the_others_are_answered(classifier, photo, tmp_path):
    (tmp_path / "x").write_bytes(b"no picture")
    answer = answers.answer_lesion(classifier, [Photo(str(tmp_path / "x"), "bad.jpg"), photo])
    assert [one["used"] for one in answer["photos"]] == [False, True]
    assert "bad.jpg" in answer["photos"][0]["reason"]
    assert answer["verdict"] == classifier.predict(photo.source).verdict
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        answers.answer_lesion(classifier, [Photo(str(tmp_path / "x"), "bad.jpg")])


def test_an_answer_with_all_heat_maps_costs_one_forward_pass(classifier, photo, monkeypatch):
    passes = []
    real = classifier.forward
    monkeypatch.setattr(classifier, "forward", lambda pixels: passes.append(len(pixels)) or real(pixels))
    answers.answer_lesion(classifier, [photo])
    assert passes == [1]


def test_a_whole_answer_costs_at_most_three_bare_forward_passes_of_efficientnet_b0(tmp_path, lesions):
    model = build_model("efficientnet_b0", num_classes=4, size_px=224, pretrained=False)
    save_model_folder(model, tmp_path / "model", codes=REFERENCE_CODES, lesion={"synthetic": True})
    classifier = LesionClassifier.from_pretrained(tmp_path / "model", device="cpu")
    noise = np.random.default_rng(0).normal(0, 6, (768, 1024, 3))
    with Image.open(lesions[0]) as example:
        grainy = np.asarray(example.resize((1024, 768))) + noise  # its JPEG is as heavy as a photograph's
    Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(tmp_path / "photo.jpg", quality=92)
    photo = Photo(str(tmp_path / "photo.jpg"), "photo.jpg")
    pixel_values = torch.from_numpy(classifier.preprocess(photo.source))[None]

    @torch.inference_mode()
    def bare() -> None:
        classifier.engine.network(pixel_values)

    def whole() -> None:
        answer = answers.answer_lesion(classifier, [photo])
        json.dumps({**answer, "report_html": report_html(answer)})

    def cost(function) -> float:
        times = []
        for _ in range(12):
            started = time.thread_time()  # what it costs, however busy the machine is
            function()
            times.append(time.thread_time() - started)
        return float(np.median(times[2:]))

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert cost(whole) <= 3 * cost(bare)
    finally:
        torch.set_num_threads(n_threads)


def test_pictures_and_maps_keep_the_aspect_and_orientation_of_the_photo(classifier, tmp_path):
    image = Image.new("RGB", (300, 200), "white")
    image.paste("red", (0, 0, 150, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: upright it is 200 x 300, red at the top
    image.save(tmp_path / "turned.jpg", exif=exif)
    answer = answers.answer_lesion(classifier, [Photo(str(tmp_path / "turned.jpg"), "turned.jpg")])["photos"][0]
    assert (answer["width"], answer["height"]) == (200, 300)
    picture = pixels_of(answer["picture"])
    assert picture.shape == (300, 200, 3)
    assert picture[10, 100, 1] < 60 < 200 < picture[290, 100, 1]
    assert answer["map_size"] == (85, 128)
    assert pixels_of(answer["maps"]).shape == (5 * 128, 85)
    seen = answers.render.squashed(
        Image.open(tmp_path / "turned.jpg").transpose(Image.Transpose.ROTATE_270), classifier
    )
    assert (pixels_of(answer["model_input"]) == np.asarray(seen)).all()  # pixel by pixel what the network gets


def explanation(evidence: list[list[list[float]]]) -> Explanation:
    nobody = Prediction("MEL", 1.0, {"MEL": 1.0, "NV": 0.0}, False, None, {}, {}, "")
    return Explanation(("MEL", "NV"), np.array(evidence, dtype=np.float32), (100, 100), nobody)


def test_maps_share_one_scale_and_the_contrast_tells_which_diagnosis_a_spot_speaks_for():
    sprite, (width, height) = render.grey_maps(explanation([[[4, 0], [0, -4]], [[0, 0], [0, 2]]]), ("MEL", "NV"))
    assert (width, height) == (128, 128)
    mel, nv, contrast = pixels_of(sprite).reshape(3, 128, 128)
    # The centres of the four cells lie at 32 and 96.
    assert mel[32, 32] >= 250  # the strongest evidence for any diagnosis
    assert abs(int(nv[96, 96]) - 128) <= 8  # half of it
    assert mel[96, 96] == 0
    assert contrast[32, 32] > 200  # for MEL
    assert contrast[96, 96] <= 5  # for NV
    assert abs(int(contrast[32, 96]) - 128) <= 8  # neither


def test_the_contrast_of_the_page_is_of_the_two_most_probable_diagnoses_and_bright_for_the_first(classifier, photo):
    answer = answers.answer_lesion(classifier, [photo])
    first, second = answer["contrast"]
    assert [first, second] == [row["code"] for row in answer["differential"][:2]]
    width, height = answer["photos"][0]["map_size"]
    expected = classifier.explain(photo.source).contrast(first, second, size=(height, width)) * 127 + 128
    assert np.abs(pixels_of(answer["photos"][0]["maps"])[-height:] - expected).max() <= 1


def test_answers_open_on_the_first_answer_where_that_is_not_the_most_probable(tmp_path, photo):
    model = make_model(tmp_path / "model", favours="NV", decision=FOR_MELANOMA)
    weighted = LesionClassifier.from_pretrained(model)
    answer = answers.answer_lesion(weighted, [photo])
    assert answer["diagnosis"] == "MEL"
    assert answer["differential"][0]["code"] == "NV"
    assert answer["contrast"] == ("MEL", "NV")
    fields, overlay = answers.explain_photo(weighted, photo, "")
    assert fields["heat_map_of"] == "MEL"
    expected = render.overlay(photo.decode(), weighted.explain(photo.source), "MEL")
    assert (np.asarray(overlay) == np.asarray(expected)).all()


def test_programs_get_the_overlay_of_the_diagnosis_that_they_ask_for(classifier, photo):
    fields, _ = answers.explain_photo(classifier, photo, "")
    assert fields["heat_map_of"] == classifier.predict(photo.source).diagnosis
    explained = classifier.explain(photo.source)
    for code in classifier.codes:
        fields, picture = answers.explain_photo(classifier, photo, code.lower())
        expected = render.overlay(photo.decode(), explained, code)
        np.testing.assert_allclose(np.asarray(picture, int), np.asarray(expected, int), atol=1)
        assert fields["image_size_px"] == {"width": 640, "height": 480}
        positive = {code: bool((np.array(grid) > 0).any()) for code, grid in fields["evidence"].items()}
        assert fields["has_evidence"] == positive


def test_a_diagnosis_without_evidence_is_known_to_have_none():
    shown = explanation([[[1, 0], [0, 0]], [[-1, -1], [-1, -2]]])
    assert answers.strength(shown, "NV") == 0
    assert answers.strength(shown, "MEL") == 1
    assert answers.strength(explanation([[[-1.0]], [[-2.0]]]), "MEL") == 0
    assert [explanation([[[0.0, -1.0]], [[0.0, 1.0]]]).has_evidence(code) for code in ("MEL", "NV")] == [False, True]


def test_the_colour_maps_are_those_of_matplotlib_and_rise_evenly_in_lightness():
    matplotlib = pytest.importorskip("matplotlib")
    viridis = render.colour_table("viridis")
    lightness = viridis.astype(float) / 255 @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.004).all()
    for name in ("viridis", "berlin"):
        if name in matplotlib.colormaps:
            expected = np.rint(matplotlib.colormaps[name](np.arange(256))[:, :3] * 255)
            assert (render.colour_table(name) == expected).all()


def test_the_overlay_leaves_the_photo_untouched_where_there_is_no_evidence():
    picture = Image.new("RGB", (100, 100), (200, 150, 120))
    mixed = np.asarray(render.overlay(picture, explanation([[[4, 0], [0, -4]], [[0, 0], [0, 2]]]), "MEL"))
    assert mixed[75, 75].tolist() == [200, 150, 120]
    # Weak evidence shows less of its colour than strong evidence does: 30 % and 60 %.
    for strength, share in ((render.FADE_BELOW / 2, 0.3), (1.0, 0.6)):
        even = render.overlay(picture, explanation([[[4 * strength]], [[4]]]), "MEL")
        colour = render.colour_table("viridis")[round(255 * strength)]
        expected = (1 - share) * np.array([200, 150, 120]) + share * colour
        assert np.abs(np.asarray(even)[50, 50] - expected).max() <= 1


def test_too_many_photos_of_one_lesion_are_refused_with_the_limit(classifier, photo):
    with pytest.raises(ImageError, match="at most 8"):
        answers.answer_lesion(classifier, [photo] * 9)


def test_an_unreadable_photo_is_named_as_the_visitor_named_it(tmp_path):
    (tmp_path / "x").write_bytes(b"no picture")
    with pytest.raises(ImageError) as error:
        Photo(str(tmp_path / "x"), "my mole.jpg").decode()
    assert "my mole.jpg" in str(error.value)
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "x").unlink()  # swept while the batch that it belongs to was being classified
    with pytest.raises(ImageError, match=r"my mole\.jpg is no longer here: uploads are deleted after five minutes"):
        Photo(str(tmp_path / "x"), "my mole.jpg").decode()


def test_the_report_names_everything_and_holds_no_script_and_no_outside_reference(classifier, photo):
    odd = dataclasses.replace(photo, name='"><script>alert(1)</script><!--heat-->@@photo@@.jpg')
    answer = answers.answer_lesion(classifier, [odd])
    html = report_html(answer)
    assert "<script" not in html
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:|//)""", html)
    assert "&lt;script&gt;" in html
    for row in answer["differential"]:
        assert f"{row['name']} ({row['code']})" in html
    for text in (classifier.notice, classifier.model_id, classifier.provenance["weights_sha256"], "cc-by-nc-4.0"):
        assert text in html
    assert answer["verdict"] in html
    for gap in GAPS:
        assert html.count(f"<!--{gap}-->") == 1


def test_the_report_of_an_abstention_says_so_before_the_differential(tmp_path, photo):
    refusing = LesionClassifier.from_pretrained(make_model(tmp_path / "model", abstains=True))
    answer = answers.answer_lesion(refusing, [photo])
    html = report_html(answer)
    assert answer["reason"] in html
    assert answer["photos"][0]["reason"] == answer["reason"]
    assert answer["photos"][0]["used"]
    assert html.index("The model abstains:") < html.index("Probability of each diagnosis")


def test_where_torch_is_not_installed_a_network_that_needs_it_for_heat_maps_is_answered_without(
    tmp_path, photo, monkeypatch
):
    model = build_model("mobilenetv3_small_050", num_classes=4, size_px=64, pretrained=False)
    save_model_folder(model, tmp_path, codes=REFERENCE_CODES, lesion={})
    export_onnx(tmp_path)
    classifier = LesionClassifier.from_pretrained(tmp_path, device="cpu", engine="onnx")
    monkeypatch.setitem(sys.modules, "modeling.network", None)  # as where torch is not installed
    answer = answers.answer_lesion(classifier, [photo])
    assert answer["diagnosis"] == classifier.predict(photo.source).diagnosis
    (shown,) = answer["photos"]
    assert (shown["has_maps"], shown["map_note"]) == (False, answers.NO_MAPS)
    assert set(shown["strength"].values()) == {0.0}
