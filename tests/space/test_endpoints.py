"""The model over HTTP: gradio_client, curl and the page, and what they get for what cannot be answered."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import gradio_client
import httpx
import pytest
import uploads
from PIL import Image

from modeling.classifier import LesionClassifier
from stress.space_soak import AnswerError, SpaceClient, photos
from support.space import ROOT, served

PHOTO = {"meta": {"_type": "gradio.FileData"}}


def test_gradio_client_gets_typed_answers_from_all_three_endpoints(url, classifier, lesions):
    client = gradio_client.Client(url, verbose=False)
    sent = gradio_client.handle_file(str(lesions[0]))
    expected = classifier.predict(lesions[0])
    answer = client.predict(sent, api_name="/classify")
    assert (answer["diagnosis"], answer["verdict"]) == (expected.diagnosis, expected.verdict)
    assert (answer["provenance"], answer["notice"]) == (expected.provenance, classifier.notice)
    weights = {"BCC": 1, "BKL": 1, "MEL": 1, "NV": 97}
    assert client.predict(sent, weights, api_name="/classify")["priors"]["NV"] == 0.97
    evidence, overlay = client.predict(sent, "bkl", api_name="/explain")
    assert evidence["shown"] == "BKL"
    with Image.open(overlay) as image:
        assert (image.format, image.size) == ("JPEG", (640, 480))
    table = client.predict([sent, sent], api_name="/batch")
    assert [row["diagnosis"] for row in table["rows"]] == [expected.diagnosis] * 2
    assert "thumbnail" not in table["rows"][0]
    assert (table["provenance"], table["notice"]) == (expected.provenance, classifier.notice)


def test_each_endpoint_is_described(url):
    info = gradio_client.Client(url, verbose=False).view_api(return_format="dict")["named_endpoints"]
    inputs = {name: [one["parameter_name"] for one in endpoint["parameters"]] for name, endpoint in info.items()}
    assert inputs == {
        "/classify": ["photo", "priors"],
        "/explain": ["photo", "diagnosis", "priors"],
        "/batch": ["photos", "priors"],
    }
    for endpoint in info.values():
        assert "not a medical device" in endpoint["description"]
        assert "How common" in endpoint["description"]


@pytest.mark.parametrize("name", ["my lesion.jpg", "Muttermal größer.jpg", "a;b,c.jpg"])
def test_the_curl_lines_of_the_documentation_work_as_they_are(url, classifier, tmp_path, lesions, name):
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    shutil.copy(lesions[0], tmp_path / name)
    script = re.search(r"```bash\n(FILE=.*?)```", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    script = script.replace("http://127.0.0.1:7860", url).replace("my lesion.jpg", name)
    output = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
    assert "event: complete" in output
    answer = json.loads(output.partition("data: ")[2])[0]
    assert answer["diagnosis"] == classifier.predict(lesions[0]).diagnosis


def test_the_page_and_its_files_are_served_and_nothing_of_gradios(url):
    page = httpx.get(f"{url}/")
    assert 'src="page/server.js"' in page.text
    assert "gradio" not in page.text
    assert "default-src 'self'" in page.text
    assert httpx.get(f"{url}/page/server.html").text == page.text
    for path in (
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/nothing.js",
        "/page/figures/x.png",
        "/page/examples/x.jpg",
    ):
        assert httpx.get(f"{url}{path}").status_code == 404


def test_the_page_gets_answers_and_rows_as_they_come(url, classifier, lesions):
    client = SpaceClient(url)
    assert client.call("page_about")[0]["model"]["codes"] == list(classifier.codes)
    sent = [client.upload(file.read_bytes(), file.name) for file in lesions[:2]]
    answer = client.lesion(*sent)
    assert [photo["name"] for photo in answer["photos"]] == [file.name for file in lesions[:2]]
    ticket = client.start("batch", sent, "equal")
    with client.http.stream("GET", f"/call/batch/{ticket}") as lines:
        told = [json.loads(line.removeprefix("data: "))[0] for line in lines.iter_lines() if line.startswith("data: [")]
    assert [(one["done"], one["total"], one["row"]["name"]) for one in told[:2]] == [
        (1, 2, lesions[0].name), (2, 2, lesions[1].name),
    ]  # fmt: skip
    assert all(one["row"]["thumbnail"].startswith("data:image/jpeg;base64,") for one in told[:2])
    assert {row["name"] for row in told[-1]["rows"]} == {file.name for file in lesions[:2]}


def test_what_cannot_be_answered_gets_a_sentence_and_the_server_goes_on(url, capfd):
    client = SpaceClient(url)
    sent = client.upload(photos(1)[0])
    with pytest.raises(AnswerError, match=r"photo\.jpg is not an image"):
        client.classify(b"no picture")
    with pytest.raises(AnswerError, match=r"no diagnosis 'XYZ'; it has BCC, BKL, MEL, NV"):
        client.explain(photos(1)[0], "xyz")
    with pytest.raises(AnswerError) as error:
        client.explain(photos(1)[0], "x" * 100_000)
    assert len(str(error.value)) < 200
    for endpoint, data, sentence in (
        ("classify", [], "There is no photo"),
        ("classify", [None], "There is no photo"),
        ("classify", [sent, "seldom"], "priors must be"),
        ("classify", [["x"]], "There is no photo"),
        ("classify", [{**PHOTO, "path": ["x"]}], "There is no photo"),
        ("classify", [{**PHOTO, "path": "data:image/jpeg;base64," + "A" * 100_000}], "not an image"),
        ("classify", [{**PHOTO, "path": "x\0y"}], "There is no photo"),
        ("explain", [], "There is no photo"),
        ("batch", [[]], "no photo in what you sent"),
        ("batch", [], "photos are missing"),
        ("page_answer", [[]], "No photo was received"),
        ("page_answer", [[sent] * 9], "at most 8"),
    ):
        with pytest.raises(AnswerError, match=sentence) as error:
            client.call(endpoint, *data)
        assert len(str(error.value)) < 200
    assert client.http.post("/call/nothing", json={"data": []}).status_code == 404
    for upload in ({"data": {"files": "text"}}, {"content": b"x"}, {"files": {"other": b"x"}}):
        answer = client.http.post("/upload", **upload)
        assert answer.status_code == 400
        assert "error" in answer.json()
    assert client.classify(photos(1)[0])["abstained"] is False
    assert "fault" not in capfd.readouterr().err


def test_an_address_in_place_of_a_file_is_refused_in_every_field_and_never_fetched(url, reached_outside):
    client = SpaceClient(url)
    address = {**PHOTO, "path": "http://fetched.example/x.jpg"}
    sent = client.upload(photos(1)[0])
    for endpoint, data in (("classify", [address]), ("batch", [[address]]), ("page_answer", [[sent, address]])):
        with pytest.raises(AnswerError, match="fetches nothing"):
            client.call(endpoint, *data)
    for data in ([{**address, "is_stream": True}], [sent, address], [{**address, "url": "http://fetched.example/y"}]):
        with pytest.raises(AnswerError):
            client.call("classify", *data)
    assert "fetched.example" not in reached_outside


def test_files_of_the_server_are_neither_read_nor_served_and_no_path_of_it_is_told(url, folder):
    client = SpaceClient(url)
    for path in ("/etc/passwd", str(ROOT / "space" / "app.py"), str(folder / "config.json"), "../../etc/passwd"):
        with pytest.raises(AnswerError, match="There is no photo") as error:
            client.call("classify", {**PHOTO, "path": path})
        assert str(Path.cwd()) not in str(error.value)
        assert client.http.get(f"/file={path}").status_code in (403, 404)


def test_an_upload_that_is_gone_is_explained_as_such(url):
    client = SpaceClient(url)
    sent = client.upload(photos(1)[0], "mole.jpg")
    Path(sent["path"]).unlink()
    with pytest.raises(
        AnswerError, match=r"mole\.jpg is no longer here: .* deleted after five minutes\. Send it again"
    ):
        client.call("classify", sent)


def test_uploads_and_overlays_are_in_folders_that_nobody_can_guess(url):
    client = SpaceClient(url)
    sent = [client.upload(photos(1)[0]) for _ in range(3)]
    overlays = [client.call("explain", sent[0])[1] for _ in range(2)]
    folders = {Path(one["path"]).parent.name for one in (*sent, *overlays)}
    assert len(folders) == 5
    assert hashlib.sha256(photos(1)[0]).hexdigest() not in folders
    assert all(Path(one["path"]).is_relative_to(uploads.FOLDER) for one in sent)


def test_an_answer_that_was_fetched_or_never_asked_for_is_not_waited_for(url):
    client = SpaceClient(url)
    photo = client.upload(photos(1)[0])
    for _ in range(20):  # at once after the answer, when gradio may still know the request
        ticket = client.start("classify", photo)
        assert "event: complete" in client.http.get(f"/call/classify/{ticket}").text
        for gone in (ticket, "0" * 32):
            answer = client.http.get(f"/call/classify/{gone}")
            assert answer.status_code == 404
            assert "has been fetched" in answer.json()["error"]


@pytest.mark.slow
def test_fifty_photographs_get_the_answers_of_the_predictor(real_data, folder):
    files = sorted((real_data / "originals").glob("*.jpg"))[:50]
    classifier = LesionClassifier.from_pretrained(folder, device="cpu")
    with served(classifier) as url:
        client = SpaceClient(url)
        sent = [client.upload(file.read_bytes(), file.name) for file in files]
        rows = {row["name"]: row for row in client.call("batch", sent)[0]["rows"]}
        for file, one in list(zip(files, sent, strict=True))[:5]:
            answer = client.lesion(one)
            assert answer["verdict"] == rows[file.name]["verdict"]
            assert answer["probabilities"] == rows[file.name]["probabilities"]
    assert len(rows) == 50
    for file in files:
        expected = classifier.predict(file)
        row = rows[file.name]
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
        told = (row["diagnosis"], row["verdict"], row["flagged"], row["abstained"], row["operating_points"])
        assert told == (
            expected.diagnosis, expected.verdict, list(expected.flagged), expected.abstained, expected.operating_points,
        )  # fmt: skip


@pytest.mark.slow
def test_every_file_of_the_hostile_corpus_is_answered_or_refused_with_a_sentence(url, tmp_path):
    from support.corpus import make_corpus

    files = make_corpus(tmp_path)
    client = SpaceClient(url)
    for start in range(0, len(files), 100):
        part = files[start : start + 100]
        sent = [client.upload(file.path.read_bytes(), f"{start + number}.bin") for number, file in enumerate(part)]
        rows = sorted(client.call("batch", sent)[0]["rows"], key=lambda row: row["number"])
        for file, row in zip(part, rows, strict=True):
            assert (row["error"] is None) == (file.expected == "reads"), f"{file.path.name}: {row}"
            assert row["error"] is None or row["name"].split(".")[0] in row["error"]
