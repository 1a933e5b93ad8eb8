"""The Space: answers, batches, uploads, endpoints, faults at start, and the page itself in a real browser."""

import asyncio
import base64
import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import gradio_client
import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parents[2] / "space"))

import answers
import app
import batches
import pages
import render
import tempfolder
import uploads
from answers import Photo
from report import report_html

from modeling.abstention import AbstentionRule
from modeling.calibration import OperatingPoint
from modeling.classifier import LesionClassifier
from modeling.explain import Explanation
from modeling.images import ImageError
from modeling.labels import REFERENCE_CODES, diagnosis_of
from modeling.network import build_model, save_model_folder
from modeling.prediction import Prediction
from stress.space_soak import AnswerError, Soak, SpaceClient, SpaceServer, photos, zip_bomb
from support.hub import HubServer

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "space" / "examples").glob("*.jpg"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MEL_POINT = OperatingPoint("MEL@95", ("MEL",), 0.95, 0.1, 0.95, 0.62, 40, 100)
outside: list[str] = []


def note_outside(event: str, arguments: tuple[object, ...]) -> None:
    """Note every address beyond this machine that anything in this process reaches for."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[1][0])
    elif event == "socket.getaddrinfo":
        host = str(arguments[0])
    else:
        return
    if not host.startswith("127.") and host not in ("localhost", "::1", "None", "0.0.0.0", ""):
        outside.append(host)


sys.addaudithook(note_outside)


def make_model(folder: Path, *, abstains: bool) -> Path:
    """Save a tiny network with random weights, an operating point, and a rule that always or never abstains."""
    torch.manual_seed(3)
    model = build_model("test_efficientnet", num_classes=4, size_px=64, pretrained=False)
    rule = AbstentionRule(
        threshold=-1e9 if abstains else 1e9,
        false_alarm_rate=0.05,
        residual_weight=1.0,
        centre=np.zeros(model.num_features, np.float32),
        directions=np.eye(model.num_features, dtype=np.float32)[:2],
    )
    lesion = {
        "package_version": "0",
        "run_id": "space",
        "dataset": "demo",
        "synthetic": True,
        "license": "cc-by-nc-4.0",
    }
    lesion |= {"data_fingerprint": "f" * 64, "operating_points": [MEL_POINT.to_dict()], "abstention": rule.to_dict()}
    save_model_folder(model, folder, codes=REFERENCE_CODES, lesion=lesion)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("space") / "model", abstains=False)


@pytest.fixture(scope="module")
def classifier(folder) -> LesionClassifier:
    return LesionClassifier.from_pretrained(folder)


def serve(classifier: LesionClassifier) -> Iterator[str]:
    demo = app.build_demo(classifier)
    address = app.launch(demo, requests_per_minute=100_000, prevent_thread_lock=True, quiet=True)
    yield address.rstrip("/")
    demo.close(verbose=False)


@pytest.fixture(scope="module")
def url(classifier) -> Iterator[str]:
    yield from serve(classifier)


@pytest.fixture(scope="module")
def server(folder) -> Iterator[SpaceServer]:
    with SpaceServer("--model", str(folder)) as server:
        yield server


@pytest.fixture
def photo(tmp_path) -> Photo:
    path = tmp_path / "lesion.jpg"
    shutil.copy(EXAMPLES[0], path)
    return Photo(str(path), "lesion.jpg")


def grey(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


# ---- Answers -------------------------------------------------------------------------------------------------------


def test_the_page_and_the_predictor_give_one_photo_the_same_answer(classifier, photo):
    expected = classifier.predict(photo.source)
    answer = answers.answer_lesion(classifier, [photo])
    for row in answer["differential"]:
        assert row["probability"] == pytest.approx(expected.probabilities[row["code"]], abs=1e-6)
    assert answer["differential"][0]["code"] == expected.diagnosis
    fields = answers.classify_photo(classifier, photo)
    assert fields["operating_points"] == expected.operating_points
    words = answers.operating_sentence(MEL_POINT, expected.operating_points["MEL@95"])
    assert fields["operating_points_in_words"] == {"MEL@95": words}


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


def test_an_operating_point_is_told_in_words_with_its_counts():
    above = answers.operating_sentence(MEL_POINT, True)
    assert above.startswith("Above the threshold that caught 95 % of melanomas in validation (38 of 40 images).")
    assert "38 % of the 100 other images" in above
    assert "It missed 2: this is no all-clear." in answers.operating_sentence(MEL_POINT, False)
    for codes, target in (
        (("MEL", "BCC"), "malignant lesions"),
        (("MEL", "AK"), "malignant and pre-malignant lesions"),
    ):
        sentence = answers.operating_sentence(dataclasses.replace(MEL_POINT, codes=codes), True)
        assert f"caught 95 % of {target} in validation" in sentence


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.0004, "< 0.1 %"), (0.042, "4.2 %"), (0.953, "95 %"), (0.9996, "> 99.9 %"), (1, "100 %")],
)
def test_a_rounded_probability_never_claims_certainty(share, text):
    assert answers.percent(share) == text


def test_a_probability_that_is_rounded_away_is_not_called_impossible():
    assert answers.probability_percent(0.0) == "< 0.1 %"
    assert answers.probability_percent(1.0) == "> 99.9 %"
    assert answers.probability_percent(0.042) == "4.2 %"


def prediction(classifier, *probabilities: float, reason: str | None = None) -> Prediction:
    by_code = dict(zip(classifier.codes, probabilities, strict=True))
    best = max(by_code, key=by_code.__getitem__)
    return Prediction(best, by_code[best], by_code, reason is not None, reason, {}, {}, "")


def test_several_photos_of_a_lesion_are_averaged_and_the_thresholds_applied_to_the_mean(classifier):
    lesion = answers.lesion_fields(
        classifier, [prediction(classifier, 0.7, 0.2, 0.05, 0.05), prediction(classifier, 0.1, 0.2, 0.25, 0.45)]
    )
    assert {row["code"]: row["probability"] for row in lesion["differential"]} == {
        "BCC": 0.4,
        "BKL": 0.2,
        "MEL": 0.15,
        "NV": 0.25,
    }
    assert lesion["operating_points"][0]["reached"]  # 0.15 on average, though the first photo alone has 0.05
    assert not lesion["abstained"]


def test_a_photo_that_the_model_abstains_on_is_left_out_of_the_average(classifier):
    good, odd = prediction(classifier, 0.7, 0.1, 0.1, 0.1), prediction(classifier, 0, 0, 1, 0, reason="odd")
    lesion = answers.lesion_fields(classifier, [good, odd])
    assert lesion["differential"][0] == {**lesion["differential"][0], "code": "BCC", "probability": 0.7}
    assert (lesion["left_out"], lesion["n_photos"]) == ([2], 2)
    assert not lesion["abstained"]
    both = answers.lesion_fields(classifier, [odd, odd])
    assert (both["abstained"], both["reason"], both["left_out"]) == (True, "odd", [])


def test_an_answer_with_all_heat_maps_costs_one_forward_pass(classifier, photo, monkeypatch):
    passes = []
    real = classifier.forward
    monkeypatch.setattr(classifier, "forward", lambda pixels: passes.append(len(pixels)) or real(pixels))
    answers.answer_lesion(classifier, [photo])
    assert passes == [1]


def test_a_whole_answer_costs_at_most_three_bare_forward_passes_of_efficientnet_b0(tmp_path):
    model = build_model("efficientnet_b0", num_classes=4, size_px=224, pretrained=False)
    save_model_folder(model, tmp_path / "model", codes=REFERENCE_CODES, lesion={"synthetic": True})
    classifier = LesionClassifier.from_pretrained(tmp_path / "model", device="cpu")
    noise = np.random.default_rng(0).normal(0, 6, (768, 1024, 3))
    with Image.open(EXAMPLES[0]) as example:
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
    picture = grey(answer["picture"])
    assert picture.shape == (300, 200, 3)
    assert picture[10, 100, 1] < 60 < 200 < picture[290, 100, 1]
    assert answer["map_size"] == (128, 192)
    assert grey(answer["maps"]).shape == (5 * 192, 128)
    assert grey(answer["model_input"]).shape == (64, 64, 3)


def explanation(evidence: list[list[list[float]]]) -> Explanation:
    nobody = Prediction("MEL", 1.0, {"MEL": 1.0, "NV": 0.0}, False, None, {}, {}, "")
    return Explanation(("MEL", "NV"), np.array(evidence, dtype=np.float32), (100, 100), nobody)


def test_maps_share_one_scale_and_the_contrast_tells_which_diagnosis_a_spot_speaks_for():
    sprite, (width, height) = render.grey_maps(explanation([[[4, 0], [0, -4]], [[0, 0], [0, 2]]]), ("MEL", "NV"))
    assert (width, height) == (192, 192)
    mel, nv, contrast = grey(sprite).reshape(3, 192, 192)
    # The centres of the four cells lie at 48 and 144.
    assert mel[48, 48] >= 250  # the strongest evidence for any diagnosis
    assert abs(int(nv[144, 144]) - 128) <= 8  # half of it
    assert mel[144, 144] == 0
    assert contrast[48, 48] > 200  # for MEL
    assert contrast[144, 144] <= 5  # for NV
    assert abs(int(contrast[48, 144]) - 128) <= 8  # neither


def test_the_contrast_of_the_page_is_of_the_two_most_probable_diagnoses_and_bright_for_the_first(classifier, photo):
    answer = answers.answer_lesion(classifier, [photo])
    first, second = answer["contrast"]
    assert [first, second] == [row["code"] for row in answer["differential"][:2]]
    width, height = answer["photos"][0]["map_size"]
    expected = classifier.explain(photo.source).contrast(first, second, size=(height, width)) * 127 + 128
    assert np.abs(grey(answer["photos"][0]["maps"])[-height:] - expected).max() <= 1


def test_programs_get_the_overlay_of_the_diagnosis_that_they_ask_for(classifier, photo):
    explained = classifier.explain(photo.source)
    for code in classifier.codes:
        fields, picture = answers.explain_photo(classifier, photo, code)
        expected = render.overlay(photo.decode(), explained, code)
        np.testing.assert_allclose(np.asarray(picture, int), np.asarray(expected, int), atol=1)
        assert fields["image_size_px"] == {"width": 640, "height": 480}
        positive = {code: bool((np.array(grid) > 0).any()) for code, grid in fields["evidence"].items()}
        assert fields["has_evidence"] == positive
    assert set(positive.values()) == {True, False}


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


# ---- Report --------------------------------------------------------------------------------------------------------


def test_the_report_names_everything_and_holds_no_script_and_no_outside_reference(classifier, photo):
    odd = dataclasses.replace(photo, name='"><script>alert(1)</script>.jpg')
    answer = answers.answer_lesion(classifier, [odd])
    html = report_html(answer)
    assert "<script" not in html
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:|//)""", html)
    assert "&lt;script&gt;" in html
    for row in answer["differential"]:
        assert f"{row['name']} ({row['code']})" in html
    for text in (classifier.notice, classifier.model_id, classifier.provenance["weights_sha256"], "cc-by-nc-4.0"):
        assert text in html
    assert answer["operating_points"][0]["sentence"] in html
    for gap in ("@@photo@@", "@@heat@@", "@@overlay@@", "@@caption@@"):
        assert html.count(gap) == 1


def test_the_report_of_an_abstention_says_so_before_the_differential(tmp_path, photo):
    refusing = LesionClassifier.from_pretrained(make_model(tmp_path / "model", abstains=True))
    answer = answers.answer_lesion(refusing, [photo])
    html = report_html(answer)
    assert answer["reason"] in html
    assert answer["photos"][0]["reason"] == answer["reason"]
    assert html.index("The model abstains.") < html.index("Differential diagnosis")


# ---- Batches -------------------------------------------------------------------------------------------------------


def zipped(path: Path, entries: dict[str, bytes]) -> Photo:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return Photo(str(path), path.name)


def rows_of(classifier, *sent: Photo) -> list[dict]:
    return [row for _, _, row in batches.classify_rows(classifier, sent, thumbnails=True)]


def test_a_batch_reads_files_and_archives_and_gives_each_the_answer_it_gets_alone(classifier, photo, tmp_path):
    pictures = photos(3)
    archive = zipped(tmp_path / "a.zip", {"sub/one.jpg": pictures[0], "__MACOSX/x": b"x", ".hidden": b"", "d/": b""})
    rows = rows_of(classifier, photo, archive)
    assert [row["image"] for row in rows] == ["lesion.jpg", "one.jpg"]
    for row, source in zip(rows, (photo.source, pictures[0]), strict=True):
        alone = answers.classify_photo(classifier, Photo(source, "x"))
        assert {key: row[key] for key in ("diagnosis", "probability", "probabilities", "operating_points")} == {
            key: alone[key] for key in ("diagnosis", "probability", "probabilities", "operating_points")
        }
        assert max(grey(row["thumbnail"]).shape) == 96
        malignant = sum(value for code, value in alone["probabilities"].items() if diagnosis_of(code).malignant)
        assert row["malignant_probability"] == pytest.approx(malignant, abs=2e-6)


def test_a_bad_file_in_a_batch_gets_a_sentence_and_the_others_their_answers(classifier, photo, tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x.jpg", b"x")
    sent = zipped(
        tmp_path / "a.zip",
        {"../../evil.jpg": photos(1)[0], "text.jpg": b"text", "empty.jpg": b"", "in.zip": inner.getvalue()},
    )
    rows = {row["image"]: row for row in rows_of(classifier, sent, photo)}
    assert rows["evil.jpg"]["error"] is None
    assert "text.jpg" in rows["text.jpg"]["error"]
    assert "0 bytes" in rows["empty.jpg"]["error"]
    assert "archive inside an archive" in rows["in.zip"]["error"]
    assert rows["lesion.jpg"]["diagnosis"] in classifier.codes
    assert not list(tmp_path.parent.rglob("evil.jpg"))  # nothing was unpacked


def test_a_zip_bomb_is_stopped_by_what_comes_out_of_it_not_by_what_it_claims(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_FILE_BYTES", 1_000_000)
    data = bytearray(zip_bomb(3_000_000))
    central = data.rindex(b"PK\x01\x02")
    struct.pack_into("<L", data, central + 24, 100)  # claims to unpack to 100 bytes
    (tmp_path / "bomb.zip").write_bytes(data)
    (row,) = rows_of(classifier, Photo(str(tmp_path / "bomb.zip"), "bomb.zip"))
    assert row["error"]
    (tmp_path / "bomb.zip").write_bytes(zip_bomb(3_000_000))
    (row,) = rows_of(classifier, Photo(str(tmp_path / "bomb.zip"), "bomb.zip"))
    assert "unpacks to more" in row["error"]


def test_all_archives_of_a_batch_together_are_bounded(classifier, tmp_path, monkeypatch):
    pictures = photos(2)
    monkeypatch.setattr(batches, "MAX_UNPACKED_BYTES", sum(map(len, pictures)) - 1)
    sent = [zipped(tmp_path / f"{number}.zip", {f"{number}.jpg": data}) for number, data in enumerate(pictures)]
    first, second = rows_of(classifier, *sent)
    assert first["error"] is None
    assert "unpacks to more than is allowed" in second["error"]


def test_encrypted_damaged_and_endless_archives_are_refused_with_the_reason(classifier, tmp_path, monkeypatch):
    data = bytearray(Path(zipped(tmp_path / "a.zip", {"x.jpg": b"x" * 100}).source).read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    (row,) = rows_of(classifier, Photo(str(tmp_path / "a.zip"), "a.zip"))
    assert "encrypted" in row["error"]
    many = zipped(tmp_path / "many.zip", {f"{number}.jpg": b"" for number in range(201)})
    with pytest.raises(ImageError, match="More than 200"):
        rows_of(classifier, many)
    monkeypatch.setattr(batches, "MAX_DIRECTORY_BYTES", 1000)
    (row,) = rows_of(classifier, many)
    assert "too many files" in row["error"]
    with pytest.raises(ImageError, match="no picture"):
        rows_of(classifier, zipped(tmp_path / "empty.zip", {"folder/": b""}))


def test_the_csv_has_a_column_for_each_diagnosis_and_no_formula_of_a_visitor(classifier, photo, tmp_path):
    (empty := tmp_path / "empty.jpg").touch()
    rows = rows_of(
        classifier,
        dataclasses.replace(photo, name="=cmd|' /C calc'!A0.jpg"),
        dataclasses.replace(photo, source=str(empty), name="@bad"),
    )
    first, second = csv.DictReader(io.StringIO(batches.to_csv(rows, classifier)))
    assert {name: first[name] or None for name in classifier.provenance} == classifier.provenance
    assert first["image"].startswith("'=")
    assert second["image"] == "'@bad"
    assert sum(float(first[code]) for code in classifier.codes) == pytest.approx(1, abs=1e-5)
    assert first["MEL@95"] in ("True", "False")
    assert first["abstained"] == "False"
    assert float(first["malignant_probability"]) == rows[0]["malignant_probability"]
    assert second["diagnosis"] == ""
    assert re.match("'@bad .*0 bytes", second["error"])


# ---- Uploads -------------------------------------------------------------------------------------------------------


def test_the_janitor_deletes_old_uploads_and_their_folders_and_counts_the_rest(tmp_path):
    old, new = tmp_path / "a" / "old.jpg", tmp_path / "b" / "new.jpg"
    for file in (old, new):
        file.parent.mkdir()
        file.write_bytes(b"12345")
    janitor = uploads.Janitor(tmp_path, keep_s=60)
    for path in (old, old.parent):
        os.utime(path, (time.time() - 100,) * 2)
    janitor.sweep()
    assert not old.exists()
    assert new.exists()
    assert janitor.used_bytes == 5
    os.utime(old.parent, (time.time() - 100,) * 2)  # deleting the file made the folder young again
    janitor.sweep()
    assert not old.parent.exists()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\mole.jpg", "mole.jpg"),
        ("a\nb\x00.jpg", "a\ufffdb\ufffd.jpg"),
        ("x" * 500, "x" * 120),
        ("", "photo"),
        ("///", "photo"),
    ],
)
def test_a_visitors_file_name_is_shown_without_folders_controls_and_excess(sent, shown):
    assert uploads.shown_name(sent) == shown


def test_one_client_is_slowed_down_and_another_is_not(tmp_path):
    guard = uploads.Guard(None, janitor=uploads.Janitor(tmp_path), requests_per_minute=5)
    assert [guard.within_rate("a") for _ in range(7)] == [True] * 5 + [False] * 2
    assert guard.within_rate("b")


def guarded(tmp_path: Path, *, requests_per_minute: int = 100) -> tuple[uploads.Guard, httpx.AsyncClient]:
    """Return a guard before a server that reads and takes everything, and a client of it."""

    async def take(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    inside = Starlette(routes=[Route("/{path:path}", take, methods=["GET", "POST"])])
    guard = uploads.Guard(inside, janitor=uploads.Janitor(tmp_path), requests_per_minute=requests_per_minute)
    return guard, httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://space/gradio_api")


@pytest.mark.parametrize("hosted", [True, False])
def test_the_guard_slows_down_each_visitor_by_the_address_that_only_the_hubs_proxy_can_tell(
    tmp_path, monkeypatch, hosted
):
    if hosted:
        monkeypatch.setenv("SPACE_ID", "me/lesions")
    _, client = guarded(tmp_path, requests_per_minute=2)

    async def ask(address: str) -> int:
        return (await client.post("/call/classify", headers={"X-Forwarded-For": address})).status_code

    async def all_answers() -> list[int]:
        return [await ask(address) for address in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2, 10.9.9.9")]

    assert asyncio.run(all_answers()) == [200, 200, 429, 200 if hosted else 429]


def test_the_guard_bounds_uploads_and_counts_them_until_the_next_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 1000)
    monkeypatch.setattr(uploads, "MAX_FOLDER_BYTES", 1500)
    guard, client = guarded(tmp_path)

    async def endless():
        for _ in range(11):
            yield bytes(100)  # no length is announced

    async def all_answers() -> list[int]:
        contents = [bytes(1001), endless(), bytes(900), bytes(700)]
        sent = [(await client.post("/upload", content=content)).status_code for content in contents]
        return [*sent, (await client.post("/call/classify", content=bytes(700))).status_code]

    assert asyncio.run(all_answers()) == [413, 413, 200, 503, 200]
    assert guard.janitor.used_bytes == 900


def test_routes_that_the_page_does_not_use_are_closed(tmp_path):
    _, client = guarded(tmp_path)

    async def all_answers() -> list[int]:
        closed = (
            *("deep_link", "proxy=http://x", "file=http://x", "vibe-code", "undo-vibe-edit", "process_recording"),
            *("component_server", "run-history", "stream/x"),
        )
        places = [base + route for route in closed for base in ("http://space/", "http://space/gradio_api/")]
        return [(await client.get(place)).status_code for place in places] + [(await client.get("/info")).status_code]

    assert asyncio.run(all_answers()) == [404] * 18 + [200]


def test_the_upload_folder_is_private_and_gone_when_the_server_ends():
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    code = "import tempfolder; path = tempfolder.upload_folder(); print(oct(path.stat().st_mode), path)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "space", env=environment, capture_output=True, text=True, check=True
    )
    mode, path = ended.stdout.split()
    assert mode.endswith("700")
    assert not Path(path).exists()


# ---- The page's server ---------------------------------------------------------------------------------------------


def test_gradio_client_gets_typed_answers_from_all_three_endpoints(url, classifier):
    client = gradio_client.Client(url, verbose=False)
    sent = gradio_client.handle_file(str(EXAMPLES[0]))
    expected = classifier.predict(EXAMPLES[0])
    answer = client.predict(sent, api_name="/classify")
    assert answer["diagnosis"] == expected.diagnosis
    assert answer["provenance"] == expected.provenance
    assert answer["notice"] == classifier.notice
    evidence, overlay = client.predict(sent, "mel", api_name="/explain")
    assert evidence["heat_map_of"] == "MEL"
    assert np.allclose(evidence["evidence"]["MEL"], classifier.explain(EXAMPLES[0]).evidence[2], atol=1e-3)
    with Image.open(overlay) as picture:
        assert picture.size == (640, 480)
    table = client.predict([sent, sent], api_name="/batch")
    assert [row["diagnosis"] for row in table["rows"]] == [expected.diagnosis] * 2
    assert (table["provenance"], table["notice"]) == (expected.provenance, classifier.notice)
    info = client.view_api(return_format="dict")["named_endpoints"]
    assert set(info) == {"/classify", "/explain", "/batch"}
    assert "not a medical device" in info["/classify"]["description"]


def test_the_curl_lines_of_the_page_work_as_they_stand(url, classifier, tmp_path):
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    shutil.copy(EXAMPLES[0], tmp_path / "lesion.jpg")
    shown = re.search(r"<h3>curl</h3>\s*<pre[^>]*>(.*?)</pre>", pages.programs(classifier), re.DOTALL)
    script = shown[1].replace("&#39;", "'").replace("&#34;", '"').replace("http://127.0.0.1:7860", url)
    output = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
    assert "event: complete" in output
    answer = json.loads(output.partition("data: ")[2])[0]
    assert answer["diagnosis"] == classifier.predict(EXAMPLES[0]).diagnosis


def test_an_assistant_can_call_the_tools_over_mcp(url, classifier):
    anyio = pytest.importorskip("anyio")
    mcp = pytest.importorskip("mcp")
    from mcp.client.streamable_http import streamablehttp_client

    photo = "data:image/jpeg;base64," + base64.b64encode(EXAMPLES[0].read_bytes()).decode()

    async def talk():
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/") as (reads, writes, _),
            mcp.ClientSession(reads, writes) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            good = await session.call_tool("classify", {"photo": photo})
            bad = await session.call_tool("classify", {"photo": "http://192.0.2.1/x.jpg"})
            return tools, good, bad

    tools, good, bad = anyio.run(talk)
    assert set(tools) == {"classify", "explain", "batch"}
    assert "Research only" in tools["classify"].description
    assert f"'diagnosis': '{classifier.predict(EXAMPLES[0]).diagnosis}'" in good.content[0].text
    assert bad.isError
    assert "fetches nothing" in bad.content[0].text


def test_what_cannot_be_answered_gets_a_sentence_and_the_page_keeps_working(url):
    client = SpaceClient(url)
    with pytest.raises(AnswerError, match=r"photo\.jpg is not an image"):
        client.classify(b"no picture")
    with pytest.raises(AnswerError, match="No photo came"):
        client.call("classify", None)
    with pytest.raises(AnswerError, match=r"no diagnosis 'XYZ'; it has BCC, BKL, MEL, NV"):
        client.explain(photos(1)[0], "xyz")
    with pytest.raises(AnswerError, match="no picture in what you sent"):
        client.call("batch", [])
    assert client.classify(photos(1)[0])["abstained"] is False


def test_an_address_in_place_of_a_file_is_refused_in_every_field_and_never_fetched(url):
    client = SpaceClient(url)
    address = {"path": "http://fetched.example/x.jpg", "meta": {"_type": "gradio.FileData"}}
    sent = client.upload(photos(1)[0])
    for endpoint, data in (
        ("classify", [address]),
        ("batch", [[address]]),
        ("explain", [sent, address]),
        ("explain", [address, "MEL"]),
    ):
        with pytest.raises(AnswerError, match="fetches nothing"):
            client.call(endpoint, *data)
    with pytest.raises(AnswerError):
        client.call("classify", {**address, "is_stream": True})
    assert "fetched.example" not in outside


def test_files_of_the_server_are_neither_read_nor_served(url, folder):
    client = SpaceClient(url)
    for path in ("/etc/passwd", str(ROOT / "space" / "app.py"), str(folder / "config.json"), "../../etc/passwd"):
        with pytest.raises(AnswerError):
            client.call("classify", {"path": path, "meta": {"_type": "gradio.FileData"}})
        assert client.http.get(f"/file={path}").status_code in (403, 404)
    for route in ("/deep_link?session_hash=x", "/proxy=http://example.com", "/file=http://example.com", "/vibe-code"):
        assert client.http.get(route).status_code == 404


def test_too_large_messages_are_refused_before_they_are_read(url):
    client = SpaceClient(url)
    headers = {"Content-Type": "application/json", "Content-Length": str(uploads.MAX_MESSAGE_BYTES + 1)}
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=10) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"POST /gradio_api/call/classify HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        assert b" 413 " in connection.recv(200)
    endless = (b"x" * 1_000_000 for _ in range(60))  # no length is announced
    assert client.http.post("/call/classify", content=endless).status_code in (400, 413)


def test_every_file_of_the_hostile_corpus_is_answered_or_refused_with_a_sentence(url, tmp_path):
    from support.corpus import make_corpus

    files = make_corpus(tmp_path)
    client = SpaceClient(url)
    for start in range(0, len(files), 100):
        part = files[start : start + 100]
        sent = [client.upload(file.path.read_bytes(), f"{start + number}.bin") for number, file in enumerate(part)]
        rows = client.call("batch", sent)[0]["rows"]
        for file, row in zip(part, rows, strict=True):
            assert (row["error"] is None) == (file.expected == "reads"), f"{file.path.name}: {row}"
            assert row["error"] is None or row["image"].split(".")[0] in row["error"]


def test_closing_the_page_makes_the_server_forget_its_answers(url, classifier, monkeypatch):
    monkeypatch.setattr(app, "MAX_FILE_BYTES", 50_000)
    before = {thread for thread in threading.enumerate() if thread.name == "janitor"}
    demo = app.build_demo(classifier)
    address = app.launch(demo, prevent_thread_lock=True, quiet=True)
    (janitor,) = {thread for thread in threading.enumerate() if thread.name == "janitor"} - before
    assert janitor.folder == tempfolder.upload_folder()
    client = SpaceClient(address.rstrip("/"))
    with pytest.raises(AnswerError, match=r"exceeded|size"):
        client.upload(bytes(50_001))
    client.classify(photos(1)[0])
    sessions = demo.state_holder.session_data
    (session,) = sessions
    with client.http.stream("GET", f"/heartbeat/{session}") as heartbeat:  # open for as long as the page is
        next(heartbeat.iter_lines())
    deadline = time.monotonic() + 20
    while len(sessions) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(sessions) == 0
    janitor.stopped.set()
    demo.close(verbose=False)


def test_the_stop_button_ends_the_running_batch_and_nothing_else(classifier):
    functions = app.build_demo(classifier).fns
    (stop,) = [function for function in functions.values() if function.cancels]
    assert [functions[number].name for number in stop.cancels] == ["answer_batch"]


def test_a_client_that_fetches_nothing_is_forgotten_after_a_while_and_one_that_waits_is_not(classifier):
    demo = app.build_demo(classifier)
    queue = demo._queue
    asked = {"done": set(), "waits": {"a"}, "fetches nothing": {"b"}, "asks again": {"c"}}
    for session, requests in asked.items():
        queue.pending_event_ids_session[session] = requests
        queue.pending_messages_per_session[session] = asyncio.Queue()
    queue.event_ids_to_events["a"] = object()
    late = app.KEEP_ANSWERS_S + 1
    seen = app.forget_answers(demo, {}, now_s=0)
    asked["asks again"].add("d")
    seen = app.forget_answers(demo, seen, now_s=app.KEEP_ANSWERS_S - 1)
    assert set(queue.pending_messages_per_session) == set(asked)
    app.forget_answers(demo, seen, now_s=late)
    assert set(queue.pending_messages_per_session) == {"waits", "asks again"}
    assert set(queue.pending_event_ids_session) == {"waits", "asks again"}


def test_a_running_server_keeps_nothing_of_requests_that_are_done(classifier, monkeypatch):
    monkeypatch.setattr(uploads, "SWEEP_EVERY_S", 0.1)
    monkeypatch.setattr(app, "KEEP_ANSWERS_S", 0.5)
    demo = app.build_demo(classifier)
    client = SpaceClient(app.launch(demo, prevent_thread_lock=True, quiet=True).rstrip("/"))
    for data in photos(3):
        assert client.classify(data)["diagnosis"] in classifier.codes
        client.start("explain", client.upload(data), "")
    queue = demo._queue
    deadline = time.monotonic() + 20
    while queue.pending_messages_per_session and time.monotonic() < deadline:
        time.sleep(0.1)
    kept = (queue.pending_messages_per_session, queue.pending_event_ids_session, queue.event_ids_to_events)
    assert [len(part) for part in kept] == [0, 0, 0]
    assert len(queue.event_analytics) <= 1  # gradio makes a table of them at every request
    assert queue.cached_event_analytics_summary == {"functions": {}}
    demo.close(verbose=False)


def test_nothing_in_this_process_reached_beyond_this_machine(url):
    assert outside == []


# ---- Start and faults ----------------------------------------------------------------------------------------------


def test_a_wrong_model_on_the_command_line_ends_with_a_sentence_and_status_2(capsys, tmp_path):
    (tmp_path / "config.json").write_text('{"lesion": {"schema": 99}}')
    assert app.main(["--model", str(tmp_path)]) == 2
    assert "its schema is 99 and this version reads 1" in capsys.readouterr().err


def test_the_page_says_when_the_model_is_an_earlier_download(classifier):
    source = dataclasses.replace(classifier.source, from_cache=True)
    offline = LesionClassifier.from_pretrained(classifier.source.path)
    offline.source = source
    assert "the copy downloaded earlier" in pages.header(offline)
    assert "downloaded earlier" not in pages.header(classifier)


def test_the_model_tab_says_when_there_are_no_numbers_and_escapes_those_there_are(classifier, folder):
    assert "published without it" in pages.card(classifier)
    (folder / "metrics.json").write_text('{"test": {"n_images": "<script>"}}')
    assert "of a form that this page does not know" in pages.card(classifier)
    (folder / "metrics.json").unlink()


METRICS = {
    "model": {"architecture": "<b>net</b>", "codes": ["MEL"], "names": {"MEL": "melanoma"}},
    "data": {"synthetic": False, "dataset": "<script>alert(1)</script>", "split_unit": "lesion"},
    "test": {
        "n_images": 12,
        "n_lesions": 7,
        "balanced_accuracy": {"value": 0.7, "low": 0.6, "high": 0.8},
        "macro_auroc": {"value": 0.9, "low": None, "high": None},
        "macro_f1": {"value": None},
        "per_class": {"MEL": {"n_images": 5, "recall": {"value": 0.11}, "precision": {"value": 0.22}}},
    },
    "calibration": {"test": {"after": {"ece": {"value": 0.03}}}},
    "operating_points": [{"name": "MEL@95", "test": {"sensitivity": {"value": 0.94}, "specificity": {"value": 0.51}}}],
    "figures": ["figures/roc_curves.png", "../../secret.png"],
}


def test_the_model_tab_puts_each_number_into_its_row_and_shows_figures_of_the_model_alone(folder, tmp_path):
    model = shutil.copytree(folder, tmp_path / "a" / "model")
    (model / "figures").mkdir()
    for place in (model / "figures" / "roc_curves.png", tmp_path / "secret.png"):
        Image.new("RGB", (4, 4)).save(place)
    (model / "metrics.json").write_text(json.dumps(METRICS))
    html = pages.card(LesionClassifier.from_pretrained(model))
    assert "<script" not in html
    assert "&lt;b&gt;net&lt;/b&gt;: MEL" in html
    assert html.count("<img") == 1
    assert "roc curves" in html
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    for words in (
        "12 test images of 7 lesions",
        "an unknown share of these images show a lesion that is also in training",
        "Balanced accuracy 0.700 (0.600 to 0.800)",
        "Macro AUROC 0.900 (no interval)",
        "Macro F1 not estimable",
        "Calibration error (ECE) 0.030",
        "MEL@95: sensitivity 0.940",
        "MEL@95: specificity 0.510",
        "melanoma (MEL) 5 0.110 0.220",
    ):
        assert words in text


def test_the_api_tab_names_the_address_of_the_space(classifier, monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "me-lesions.hf.space")
    html = pages.programs(classifier)
    assert "https://me-lesions.hf.space/gradio_api/mcp/" in html
    assert "127.0.0.1" not in html


def test_a_hosted_space_loads_the_revision_of_its_variable(monkeypatch):
    served: list[tuple[str, str | None]] = []
    monkeypatch.setattr(app, "serve_hosted", lambda model_id, revision: served.append((model_id, revision)))
    monkeypatch.setenv("MODEL_ID", "me/lesions")
    monkeypatch.setenv("MODEL_REVISION", "v1.0")
    assert app.main([]) == 0
    assert app.main(["--revision", "v2.0"]) == 0
    monkeypatch.setenv("MODEL_REVISION", "")  # as an empty field of the Space's settings
    assert app.main([]) == 0
    assert served == [("me/lesions", "v1.0"), ("me/lesions", "v2.0"), ("me/lesions", None)]


def test_a_space_without_a_model_explains_what_to_set(monkeypatch):
    seen: list[str] = []

    real = app.launch

    def look(demo, **options):
        address = real(demo, **options)
        seen.append(httpx.get(f"{address}config").text)
        demo.close(verbose=False)
        raise KeyboardInterrupt  # instead of waiting for the next try

    monkeypatch.setattr(app, "launch", look)
    monkeypatch.setenv("MODEL_ID", "")
    with pytest.raises(KeyboardInterrupt):
        app.main([])
    assert "Set the variable MODEL_ID" in seen[0]
    assert "not a medical device" in seen[0]


def test_a_space_heals_when_its_repository_appears_and_outlives_a_hub_that_is_down(folder, tmp_path):
    code = "import app; app.RETRY_EVERY_S = 1; app.main([])"
    with HubServer() as hub:
        environment = hub.env(home=tmp_path) | {"MODEL_ID": "me/lesions"}
        with SpaceServer(environment=environment, code=code) as server:
            server.wait_for_page("the Hub has no model")
            hub.add_repo("me/lesions", folder)
            page = server.wait_for_page("Photos of one lesion")
            assert hub.repo("me/lesions").head.oid[:12] in page
            answer = SpaceClient(server.url).classify(EXAMPLES[0].read_bytes())
            assert answer["provenance"]["revision"] == hub.repo("me/lesions").head.oid
        hub.fail("*", status=503, times=float("inf"))
        environment["MODEL_REVISION"] = hub.repo("me/lesions").head.oid  # as `publish space` sets it
        with SpaceServer(environment=environment, code=code) as server:
            assert "the copy downloaded earlier" in server.wait_for_page("Photos of one lesion")
            assert SpaceClient(server.url).classify(EXAMPLES[0].read_bytes()) == answer


def test_a_space_started_by_model_id_answers_gradio_client_about_a_real_photograph(folder, real_data, tmp_path):
    photograph = next((real_data / "originals").glob("*.jpg"))
    with HubServer() as hub:
        hub.add_repo("me/lesions", folder)
        environment = hub.env(home=tmp_path) | {"MODEL_ID": "me/lesions"}
        with SpaceServer(environment=environment, code="import app; app.main([])") as server:
            server.wait_for_page("Photos of one lesion")
            client = gradio_client.Client(server.url, verbose=False)
            answer = client.predict(gradio_client.handle_file(photograph), api_name="/classify")
    expected = LesionClassifier.from_pretrained(folder, device="cpu").predict(photograph)
    assert answer["diagnosis"] == expected.diagnosis
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert answer["provenance"]["revision"] == hub.repo("me/lesions").head.oid


# ---- Load ----------------------------------------------------------------------------------------------------------


def test_sixteen_clients_get_the_answers_given_alone_and_the_server_does_not_grow(server):
    figures = Soak(server, n_clients=16).run(requests=200, bad_share=0.0)
    assert figures["wrong"] == []
    assert figures["requests"] == 200
    assert figures["memory_at_end_mb"] <= 1.10 * figures["memory_after_20_mb"]


def test_a_short_soak_with_hostile_load_answers_all_good_requests_right(server):
    figures = Soak(server, n_clients=6, seed=1).run(seconds=8, bad_share=0.5)
    assert figures["wrong"] == []
    assert figures["good"] >= 5
    assert figures["max_disk_mb"] < 200


def test_abandoned_requests_block_nobody(server):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for number, data in enumerate(photos(40)):
            packed.writestr(f"{number}.jpg", data)
    gone = SpaceClient(server.url, address="10.9.0.1")
    for _ in range(3):
        gone.start("batch", [gone.upload(archive.getvalue(), "many.zip")])
        gone.start("explain", gone.upload(photos(1)[0]), "")
    gone.http.close()
    started = time.monotonic()
    SpaceClient(server.url, address="10.9.0.2").classify(photos(1)[0])
    assert time.monotonic() - started < 5


# ---- The page in a browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        options = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*options, "--disable-sync"])
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser, url: str, *, width: int = 1280, height: int = 900, scheme: str = "light"):
    """Open the page; at the end, it must have asked nobody else and reported no error."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True)
    page.set_default_timeout(30_000)
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.requests = requests
    page.goto(url)
    page.wait_for_selector("#photos input[type=file]", state="attached")
    yield page
    page.close()
    assert errors == []
    assert [one for one in requests if not one.startswith((url, "data:", "blob:", "ws://127.0.0.1"))] == []


def choose(page, *files: str | Path, field: str = "#photos") -> None:
    """Pick files as a person does: click the field, then choose in the dialogue."""
    with page.expect_file_chooser() as chooser:
        page.locator(f"{field} button").first.click()
    chooser.value.set_files([str(file) for file in files])


def drop(page, data: bytes, name: str) -> None:
    """Drop a file onto the upload field."""
    transfer = page.evaluate_handle(
        """([base64, name]) => {
            const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, { type: "image/jpeg" }));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name],
    )
    page.locator("#photos button").first.dispatch_event("drop", {"dataTransfer": transfer})


def canvas(page, name: str) -> str:
    return page.locator(f"#{name}").evaluate("canvas => canvas.toDataURL()")


def test_a_visitor_uploads_by_click_and_reads_the_answer(browser, url, classifier):
    with visit(browser, url) as page:
        choose(page, EXAMPLES[0])
        page.wait_for_selector("#save-report")
        expected = classifier.predict(EXAMPLES[0])
        rows = page.locator(".differential tbody tr").all_inner_texts()
        assert len(rows) == 4
        assert expected.diagnosis in rows[0]
        assert answers.probability_percent(expected.probability) in rows[0]
        malignant = [row for row in rows if "⚠ malignant" in row]
        assert {re.search(r"\b[A-Z]{2,3}\b", row)[0] for row in malignant} == {"MEL", "BCC"}
        point = page.locator(".points").inner_text()
        assert answers.operating_sentence(MEL_POINT, expected.operating_points["MEL@95"]) in point
        assert page.get_by_role("heading", name="Where the score came from (not why)").is_visible()
        for name in ("original", "heat", "overlay"):
            box = page.locator(f"#{name}").bounding_box()
            assert box["width"] / box["height"] == pytest.approx(640 / 480, rel=0.02)


def test_a_visitor_uploads_by_drop_and_a_hostile_file_name_stays_text(browser, url):
    with visit(browser, url) as page:
        drop(page, EXAMPLES[1].read_bytes(), "<img src=x onerror=alert(1)>.jpg")
        page.wait_for_selector("#save-report")
        assert "onerror" in (page.locator("#original").get_attribute("alt") or "")
        assert page.locator("img[src=x]").count() == 0


def test_choosing_a_diagnosis_the_contrast_and_the_opacity_repaints_without_asking_the_server(browser, url):
    with visit(browser, url) as page:
        choose(page, EXAMPLES[0])
        page.wait_for_selector("#save-report")
        page.wait_for_function(
            "document.querySelector('#answer .lesion-host').shadowRoot.querySelector('#map-note').textContent"
        )
        asked = len(page.requests)
        seen = [canvas(page, "heat")]
        radios = page.locator("fieldset.choice").get_by_role("radio")
        for index in range(1, radios.count()):
            radios.nth(index).check()
            seen.append(canvas(page, "heat"))
        assert len(seen) == 5
        assert "rather than" in page.locator("#map-note").inner_text()
        radios.first.focus()
        page.keyboard.press("ArrowDown")  # the keyboard moves on to the next diagnosis
        assert radios.nth(1).is_checked()
        before = canvas(page, "overlay")
        page.locator("#opacity").fill("5")
        assert canvas(page, "overlay") != before
        assert page.locator("output").inner_text() == "5 %"
        clip = page.locator(".compare canvas").evaluate("canvas => canvas.style.clipPath")
        page.locator("#split").fill("90")
        assert page.locator(".compare canvas").evaluate("canvas => canvas.style.clipPath") != clip
        assert [one for one in page.requests[asked:] if not one.startswith(("data:", "blob:"))] == []


def test_several_photos_can_be_averaged_and_looked_at_one_by_one(browser, url):
    with visit(browser, url) as page:
        choose(page, EXAMPLES[0], EXAMPLES[1])
        page.wait_for_selector("#save-report")
        assert "Mean of 2 photos" in page.locator(".differential caption").inner_text()
        first = page.locator("#original").get_attribute("src")
        page.get_by_role("radio", name=f"2. {EXAMPLES[1].name}").check()
        assert page.locator("#original").get_attribute("src") != first


def test_the_report_and_the_data_can_be_taken_away(browser, url, classifier, tmp_path):
    with visit(browser, url) as page:
        page.locator("#examples button").last.click()
        page.wait_for_selector("#save-report")
        with page.expect_download() as download:
            page.locator("#save-report").click()
        download.value.save_as(tmp_path / "report.html")
        with page.expect_download() as download:
            page.locator("#save-json").click()
        download.value.save_as(tmp_path / "answer.json")
    html = (tmp_path / "report.html").read_text()
    assert "@@" not in html
    assert html.count('src="data:image/jpeg;base64,') == 3
    assert classifier.provenance["weights_sha256"] in html
    data = json.loads((tmp_path / "answer.json").read_text())
    assert data["photos"][0]["name"] == EXAMPLES[-1].name
    assert data["differential"][0]["code"] == classifier.predict(EXAMPLES[-1]).diagnosis
    assert data["notice"] == classifier.notice
    assert "picture" not in data["photos"][0]
    report = browser.new_page()
    asked: list[str] = []
    report.on("request", lambda request: asked.append(request.url))
    report.goto((tmp_path / "report.html").as_uri())
    assert report.locator("img").evaluate_all("images => images.every((image) => image.naturalWidth > 0)")
    assert all(one.startswith(("file:", "data:")) for one in asked)
    report.close()


def test_a_bad_file_gets_a_sentence_and_the_next_good_one_its_answer(browser, url, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(EXAMPLES[0].read_bytes()[:900])
    with visit(browser, url) as page:
        choose(page, tmp_path / "broken.jpg")
        page.wait_for_selector("#answer .alert")
        assert "broken.jpg" in page.locator("#answer .alert").inner_text()
        page.get_by_label("Clear").or_(page.get_by_label("Remove")).first.click()
        choose(page, EXAMPLES[0])
        page.wait_for_selector("#save-report")


def test_an_abstention_stands_before_everything_else(browser, tmp_path):
    refusing = LesionClassifier.from_pretrained(make_model(tmp_path / "model", abstains=True))
    for url in serve(refusing):
        with visit(browser, url) as page:
            choose(page, EXAMPLES[0])
            page.wait_for_selector("#abstention")
            assert "unlike those that this model was trained on" in page.locator("#abstention").inner_text()
            above = page.locator("#abstention").bounding_box()["y"]
            assert above < page.locator(".differential").bounding_box()["y"]


def test_a_batch_shows_a_sortable_table_and_hands_out_its_csv(browser, url, classifier, tmp_path):
    archive = zipped(tmp_path / "three.zip", {file.name: file.read_bytes() for file in EXAMPLES[:3]})
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with visit(browser, url) as page:
        page.get_by_role("tab", name="Batch").click()
        choose(page, archive.source, tmp_path / "broken.jpg", field="#batch-files")
        page.wait_for_selector("#save-csv")
        assert "1 could not be read" in page.locator("#batch [role=status]").inner_text()
        assert page.locator(".batch tbody img").count() == 3
        page.get_by_role("button", name="Probability").click()
        head = page.get_by_role("columnheader", name="Probability")
        assert head.get_attribute("aria-sort") == "descending"
        shown = [classifier.predict(file).probability for file in EXAMPLES[:3]]
        cells = page.locator(".batch tbody tr td.number:nth-child(4)").all_inner_texts()
        assert cells == [answers.probability_percent(value) for value in sorted(shown, reverse=True)]
        with page.expect_download() as download:
            page.locator("#save-csv").click()
        download.value.save_as(tmp_path / "lesions.csv")
    rows = list(csv.DictReader((tmp_path / "lesions.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [row["image"] for row in rows] == [*(file.name for file in EXAMPLES[:3]), "broken.jpg"]


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
def test_the_page_fits_its_screen_and_says_what_it_is_without_scrolling(browser, url, tmp_path, width, height, scheme):
    with visit(browser, url, width=width, height=height, scheme=scheme) as page:
        notice = page.locator("#lesion-head .notice")
        assert "not a medical device" in notice.inner_text()
        box = notice.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] < height
        page.locator("#examples button").first.click()
        page.wait_for_selector("#save-report")
        for tab in ("One lesion", "Batch", "Model", "API"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(150)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
            page.screenshot(path=tmp_path / f"{tab}-{width}.png", full_page=True)
        unnamed = page.evaluate(
            """() => [...document.querySelector("#answer .lesion-host").shadowRoot.querySelectorAll("input, img, canvas, button")]
                .filter((node) => !node.labels?.length && !node.closest("[aria-hidden]") && !node.getAttribute("aria-label")
                    && node.getAttribute("alt") === null && !node.textContent.trim())
                .map((node) => node.outerHTML.slice(0, 80))"""
        )
        assert unnamed == []
