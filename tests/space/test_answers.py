"""The JSON that page and programs get about the photos of a lesion."""

import dataclasses
import json
import sys
from io import BytesIO

import answers
import images_out
import numpy as np
import pytest
from errors import QuestionError
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.explain import Explanation
from modeling.images import ImageError
from modeling.labels import DIAGNOSES
from support.space import POINTS, Photo, make_model, pixels_of
from support.untrained import untrained_folder

PRIORS = {"BCC": 0.1, "BKL": 0.1, "MEL": 0.1, "NV": 0.7}


def test_the_page_and_the_predictor_give_one_photo_the_same_answer(classifier, photo):
    expected = classifier.predict(photo.source)
    alone = answers.answer_fields(classifier, classifier.predict(photo.decode()))
    for answer in (answers.answer_lesion(classifier, [photo]), alone):
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
        assert answer["diagnosis"] == expected.diagnosis == answer["differential"][0]["code"]
        assert answer["operating_points"] == expected.operating_points
        assert answer["verdict"] == expected.verdict
        assert answer["flagged"] == list(expected.flagged)
        assert answer["provenance"] == expected.provenance


def test_an_answer_has_the_keys_of_the_contract_and_is_json(classifier, photo):
    answer = answers.answer_lesion(classifier, [photo])
    assert " ".join(sorted(answer)) == (
        "abstained date diagnosis differential flagged license malignant_probability model_id n_used not_known notice "
        "operating_points photos priors priors_choice probabilities probability provenance reason revision shown "
        "thresholds verdict"
    )
    assert " ".join(sorted(answer["photos"][0])) == (
        "abstained error evidence name note probabilities reason scale size strength used verdict"
    )
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_the_differential_is_sorted_and_names_and_marks_every_diagnosis(classifier):
    rows = answers.answer_fields(classifier, classifier.prediction(np.array([0.2, 0.1, 0.3, 0.4]), None))[
        "differential"
    ]
    assert [row["code"] for row in rows] == ["NV", "MEL", "BCC", "BKL"]
    assert rows[1] == {
        "code": "MEL",
        "name": "melanoma",
        "behaviour": "malignant",
        "malignant": True,
        "probability": 0.3,
    }
    assert [row["malignant"] for row in rows] == [False, True, True, False]


@pytest.mark.parametrize("priors", ["equal", PRIORS])
def test_each_threshold_has_its_value_at_equal_priors_and_its_counts_on_val(classifier, priors):
    chosen = classifier.with_priors(priors)
    fields = answers.answer_fields(chosen, chosen.prediction(np.array([0.1, 0.1, 0.7, 0.1]), None))
    assert fields["thresholds"] == {
        "MEL@95": {
            "catches": "melanoma",
            "target_sensitivity": 0.95,
            "cutoff": 0.1,
            "value": pytest.approx(0.7),
            "above": True,
            "caught": 38,
            "n_positive": 40,
            "false_alarms": 38,
            "n_negative": 100,
        }
    }


def test_the_priors_of_a_visitor_change_the_probabilities_and_no_threshold(tmp_path, photo):
    folder = make_model(tmp_path / "model", points=POINTS, class_priors=PRIORS)
    classifier = LesionClassifier.from_pretrained(folder)
    equal = answers.answer_lesion(classifier, [photo])
    assert equal["priors_choice"] == "equal"
    for choice, name in (("dataset", "dataset"), (PRIORS, "custom")):
        answer = answers.answer_lesion(classifier, [photo], priors=choice)
        assert answer["priors_choice"] == name
        assert answer["priors"] == pytest.approx(PRIORS)
        weighted = {code: value * PRIORS[code] for code, value in equal["probabilities"].items()}
        expected = {code: value / sum(weighted.values()) for code, value in weighted.items()}
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert answer["photos"][0]["probabilities"] == answer["probabilities"]
        assert answer["diagnosis"] == "NV"
        assert answer["operating_points"] == equal["operating_points"]


@pytest.mark.parametrize("choice", ["seldom", "{", '{"MEL": 1}', {"MEL": "x"}, 3, [], {"MEL": [1]}, "{" * 50_000])
def test_priors_that_are_none_are_refused_in_a_sentence(classifier, choice):
    if choice == []:
        choice = [1]
    with pytest.raises(QuestionError, match="priors") as error:
        answers.with_priors(classifier, choice)
    assert len(str(error.value)) < 300


def test_the_diagnoses_that_a_model_cannot_give_are_named_whether_its_labels_are_codes_or_names(
    classifier, photo, tmp_path
):
    fields = answers.answer_fields(classifier, classifier.predict(photo.decode()))
    names = {row["name"]: row["malignant"] for row in fields["not_known"]}
    assert names == {
        "actinic keratosis": True,
        "dermatofibroma": False,
        "vascular lesion": False,
        "squamous cell carcinoma": True,
    }
    folder = untrained_folder(tmp_path / "named", codes=("Melanoma", "melanocytic nevus", "other"))
    named = LesionClassifier.from_pretrained(folder)
    fields = answers.answer_fields(named, named.predict(photo.decode()))
    missing = {diagnosis.name for diagnosis in DIAGNOSES} - {"melanoma", "melanocytic nevus"}
    assert {row["name"] for row in fields["not_known"]} == missing


def test_a_model_without_a_malignant_diagnosis_says_nothing_about_malignancy(tmp_path, photo):
    folder = untrained_folder(tmp_path / "benign", codes=("BKL", "NV"))
    assert "malignant_probability" not in answers.answer_lesion(LesionClassifier.from_pretrained(folder), [photo])


def test_several_photos_of_a_lesion_are_averaged_and_the_thresholds_applied_to_the_mean(classifier):
    both = [classifier.prediction(np.array(probs), None) for probs in ([0.7, 0.2, 0.05, 0.05], [0.1, 0.2, 0.25, 0.45])]
    lesion = answers.lesion_prediction(classifier, both)
    assert lesion.probabilities == pytest.approx({"BCC": 0.4, "BKL": 0.2, "MEL": 0.15, "NV": 0.25})
    assert lesion.operating_points == {"MEL@95": True}  # 0.15 on average, though the first photo alone has 0.05
    assert not lesion.abstained


def test_a_photo_that_the_model_abstains_on_is_left_out_of_the_average(classifier):
    good, odd = (
        classifier.prediction(np.array(probs), why)
        for probs, why in (([0.7, 0.1, 0.1, 0.1], None), ([0, 0, 1, 0], "odd"))
    )
    lesion = answers.lesion_prediction(classifier, [odd, good])
    assert lesion.probabilities == pytest.approx(good.probabilities)
    assert not lesion.abstained
    both = answers.lesion_prediction(classifier, [odd, odd])
    assert (both.abstained, both.reason) == (True, "odd")


def test_left_out_photos_are_marked_and_explained_all_the_same(classifier, lesions, tmp_path, ood_score):
    scores = {Photo(str(file), file.name): ood_score(classifier, file) for file in lesions}
    *good, familiar, odd = sorted(scores, key=scores.get)
    picky = LesionClassifier.from_pretrained(
        make_model(tmp_path / "model", threshold=(scores[odd] + scores[familiar]) / 2)
    )
    answer = answers.answer_lesion(picky, [odd, *good])
    assert [photo["used"] for photo in answer["photos"]] == [False, True, True]
    assert answer["n_used"] == 2
    assert not answer["abstained"]
    assert answer["photos"][0]["abstained"]
    assert answer["photos"][0]["verdict"].startswith("No answer")
    alone = answers.answer_lesion(picky, [odd])
    assert (alone["abstained"], alone["n_used"], alone["photos"][0]["used"]) == (True, 1, True)


def test_a_photo_that_cannot_be_read_is_named_and_the_others_are_answered(classifier, photo, tmp_path):
    (tmp_path / "x").write_bytes(b"no picture")
    bad = Photo(str(tmp_path / "x"), "bad.jpg")
    answer = answers.answer_lesion(classifier, [bad, photo])
    assert [one["used"] for one in answer["photos"]] == [False, True]
    assert "bad.jpg" in answer["photos"][0]["error"]
    assert answer["verdict"] == classifier.predict(photo.source).verdict
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        answers.answer_lesion(classifier, [bad])
    with pytest.raises(ImageError, match="at most 8"):
        answers.answer_lesion(classifier, [photo] * 9)
    with pytest.raises(ImageError, match="No photo"):
        answers.answer_lesion(classifier, [])


def test_an_unreadable_photo_is_named_as_the_visitor_named_it(tmp_path):
    (tmp_path / "x").write_bytes(b"no picture")
    with pytest.raises(ImageError) as error:
        Photo(str(tmp_path / "x"), "my mole.jpg").decode()
    assert "my mole.jpg" in str(error.value)
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "x").unlink()  # deleted while its batch was being classified
    with pytest.raises(ImageError, match=r"my mole\.jpg is no longer here: uploads are deleted after five minutes"):
        Photo(str(tmp_path / "x"), "my mole.jpg").decode()


def test_an_answer_with_all_heat_maps_costs_one_forward_pass(classifier, photo, monkeypatch):
    passes = []
    real = classifier.engine.forward
    monkeypatch.setattr(
        classifier.engine, "forward", lambda pixels, **options: passes.append(len(pixels)) or real(pixels, **options)
    )
    answers.answer_lesion(classifier, [photo])
    assert passes == [1]


def test_the_evidence_is_that_of_the_model_with_its_scale_and_strength(classifier, photo):
    explanation = classifier.explain(photo.source)
    shown = answers.answer_lesion(classifier, [photo])["photos"][0]
    for code, grid in zip(classifier.codes, explanation.evidence, strict=True):
        np.testing.assert_allclose(shown["evidence"][code], grid, atol=1e-4)
        assert shown["strength"][code] == pytest.approx(max(grid.max(), 0) / explanation.scale)
    assert shown["scale"] == pytest.approx(explanation.scale)
    assert shown["size"] == [480, 640]
    nothing = dataclasses.replace(explanation, evidence=-np.ones_like(explanation.evidence))
    assert set(answers.evidence_fields(nothing)["strength"].values()) == {0.0}


def test_sizes_and_previews_are_of_the_upright_photo_and_only_for_what_browsers_do_not_show(classifier, tmp_path):
    image = Image.new("RGB", (300, 200), "white")
    image.paste("red", (0, 0, 150, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: upright it is 200 x 300, red at the top
    for ending in ("jpg", "tiff"):
        image.save(tmp_path / f"turned.{ending}", exif=exif)
        (shown,) = answers.answer_lesion(classifier, [Photo(str(tmp_path / f"turned.{ending}"), "turned")])["photos"]
        assert shown["size"] == [300, 200]
        assert ("preview" in shown) == (ending == "tiff")
    assert not Photo(b"II+\0", "big.tiff").browsers_show_it
    picture = pixels_of(shown["preview"])
    assert picture.shape == (300, 200, 3)
    assert picture[10, 100, 1] < 60 < 200 < picture[290, 100, 1]


def test_the_map_to_open_first_is_that_of_what_was_flagged(tmp_path, photo):
    classifier = LesionClassifier.from_pretrained(make_model(tmp_path / "model", favours="NV"))
    answer = answers.answer_lesion(classifier, [photo])
    assert (answer["diagnosis"], answer["flagged"], answer["shown"]) == ("NV", ["melanoma"], "MEL")
    fields, overlay = answers.explain_photo(classifier, photo, "")
    assert fields["shown"] == "MEL"
    expected = images_out.overlay(photo.decode(), classifier.explain(photo.source), "MEL")
    assert (np.asarray(overlay) == np.asarray(expected)).all()
    assert answers.explain_photo(classifier, photo, "bkl")[0]["shown"] == "BKL"
    with pytest.raises(QuestionError, match=r"no diagnosis 'XYZ'; it has BCC, BKL, MEL, NV"):
        answers.explain_photo(classifier, photo, "xyz")


def test_the_overlay_has_viridis_where_there_is_evidence_and_the_photo_elsewhere(classifier, photo):
    matplotlib = pytest.importorskip("matplotlib")
    image = Image.new("RGB", (100, 100), (200, 150, 120))
    explanation = classifier.explain(photo.source)

    def overlay(*grids: list[list[float]]) -> np.ndarray:
        codes = ("MEL", "NV")
        values = {"codes": codes, "evidence": np.array(grids, np.float32), "size": (100, 100)}
        shown: Explanation = dataclasses.replace(explanation, **values)
        return np.asarray(images_out.overlay(image, shown, "MEL"))

    assert overlay([[4, 0], [0, -4]], [[0, 0], [0, 2]])[75, 75].tolist() == [200, 150, 120]
    # Weak evidence shows less of its colour than strong evidence does: 30 % and 60 %.
    for strength, part in ((images_out.FADE_BELOW / 2, 0.3), (0.7, 0.6), (1.0, 0.6)):
        colour = 255 * np.array(matplotlib.colormaps["viridis"](strength)[:3])
        expected = (1 - part) * np.array([200, 150, 120]) + part * colour
        assert np.abs(overlay([[4 * strength]], [[4]])[50, 50] - expected).max() <= 2


def test_a_network_whose_heat_maps_need_torch_is_answered_without_where_that_is_not_installed(
    tmp_path, photo, monkeypatch
):
    folder = untrained_folder(tmp_path / "model", backbone="mobilenetv3_small_050", onnx=True)
    classifier = LesionClassifier.from_pretrained(folder, device="cpu", engine="onnx")
    monkeypatch.setitem(sys.modules, "modeling.network", None)  # as where torch is not installed
    answer = answers.answer_lesion(classifier, [photo])
    assert answer["diagnosis"] == classifier.predict(photo.source).diagnosis
    (shown,) = answer["photos"]
    assert shown["evidence"] is None
    assert "need torch" in shown["note"]


def test_thumbnails_are_small_jpegs():
    data = images_out.jpeg(images_out.fit_within(Image.new("RGB", (400, 100)), 96))
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (96, 24))
