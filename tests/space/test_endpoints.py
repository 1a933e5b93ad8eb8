"""The model for programs: gradio_client, curl and MCP, and what they get for what cannot be answered."""

import base64
import hashlib
import io
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import gradio_client
import numpy as np
import pages
import pytest
import uploads
from PIL import Image

from stress.space_soak import AnswerError, SpaceClient, photos
from support.space import ROOT, zipped


def test_gradio_client_gets_typed_answers_from_all_three_endpoints(url, classifier, lesions):
    client = gradio_client.Client(url, verbose=False)
    sent = gradio_client.handle_file(str(lesions[0]))
    expected = classifier.predict(lesions[0])
    answer = client.predict(sent, api_name="/classify")
    assert answer["diagnosis"] == expected.diagnosis
    assert answer["provenance"] == expected.provenance
    assert answer["notice"] == classifier.notice
    assert answer["verdict"] == expected.verdict
    assert answer["operating_points"] == expected.operating_points
    evidence, overlay = client.predict(sent, api_name="/explain")  # no diagnosis is named: that of the answer
    assert evidence["heat_map_of"] == expected.diagnosis
    evidence, overlay = client.predict(sent, "mel", api_name="/explain")
    assert evidence["heat_map_of"] == "MEL"
    assert np.allclose(evidence["evidence"]["MEL"], classifier.explain(lesions[0]).evidence[2], atol=1e-3)
    with Image.open(overlay) as picture:
        assert picture.size == (640, 480)
    table = client.predict([sent, sent], api_name="/batch")
    assert [row["diagnosis"] for row in table["rows"]] == [expected.diagnosis] * 2
    assert (table["provenance"], table["notice"]) == (expected.provenance, classifier.notice)
    info = client.view_api(return_format="dict")["named_endpoints"]
    assert set(info) == {"/classify", "/explain", "/batch"}
    assert "not a medical device" in info["/classify"]["description"]


@pytest.mark.parametrize("name", ["my lesion.jpg", "Muttermal größer.jpg", "a;b,c.jpg"])
def test_the_curl_lines_of_the_page_work_as_they_stand(url, classifier, tmp_path, lesions, name):
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    shutil.copy(lesions[0], tmp_path / name)
    shown = re.search(r"<h3>curl</h3>\s*<pre[^>]*>(.*?)</pre>", pages.programs(classifier), re.DOTALL)
    script = shown[1].replace("&#39;", "'").replace("&#34;", '"').replace("http://127.0.0.1:7860", url)
    script = script.replace("my lesion.jpg", name)
    output = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout
    assert "event: complete" in output
    answer = json.loads(output.partition("data: ")[2])[0]
    assert answer["diagnosis"] == classifier.predict(lesions[0]).diagnosis


def test_an_assistant_can_call_the_tools_over_mcp(url, classifier, lesions, tmp_path):
    anyio = pytest.importorskip("anyio")
    mcp = pytest.importorskip("mcp")
    from mcp.client.streamable_http import streamablehttp_client

    def data_uri(data: bytes, kind: str = "image/jpeg") -> str:
        return f"data:{kind};base64," + base64.b64encode(data).decode()

    expected = classifier.predict(lesions[0])
    uploaded = SpaceClient(url).upload(lesions[0].read_bytes(), "größer als 3.jpg")["path"]
    archive = zipped(tmp_path / "two.zip", {file.name: file.read_bytes() for file in lesions[:2]})
    photo = data_uri(lesions[0].read_bytes())

    async def talk():
        async with (
            streamablehttp_client(f"{url}/gradio_api/mcp/") as (reads, writes, _),
            mcp.ClientSession(reads, writes) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            return tools, {
                "classify": await session.call_tool("classify", {"photo": photo}),
                "uploaded": await session.call_tool("classify", {"photo": uploaded}),
                "explain": await session.call_tool("explain", {"photo": photo, "diagnosis": "MEL"}),
                "batch": await session.call_tool(
                    "batch", {"photos": [photo, data_uri(Path(archive.source).read_bytes(), "application/zip")]}
                ),
                "address": await session.call_tool("classify", {"photo": "http://192.0.2.1/x.jpg"}),
                "passwd": await session.call_tool("classify", {"photo": "/etc/passwd"}),
                "nonsense": await session.call_tool("classify", {"photo": "data:image/jpeg;base64,@@@"}),
                "not ASCII": await session.call_tool("classify", {"photo": "data:image/jpeg;base64,größer"}),
            }

    tools, told = anyio.run(talk)
    assert set(tools) == {"classify", "explain", "batch"}
    for tool in tools.values():
        assert "Research only" in tool.description
        assert tool.description.endswith("notice.") or tool.name == "explain"
    shown = tools["classify"].inputSchema["properties"]["photo"]
    assert "base64" in shown["description"]
    assert "http" not in shown["description"].split("Web addresses")[0]
    for name in ("classify", "uploaded", "explain"):
        assert not told[name].isError, told[name].content
        answer = json.loads(told[name].content[0].text)
        assert answer == told[name].structuredContent
        assert answer["verdict"] == expected.verdict
        assert answer["operating_points"] == expected.operating_points
    (picture,) = [part for part in told["explain"].content if part.type == "image"]
    with Image.open(io.BytesIO(base64.b64decode(picture.data))) as overlay:
        assert overlay.size == (640, 480)
    rows = json.loads(told["batch"].content[0].text)["rows"]
    assert [row["diagnosis"] for row in rows] == [
        classifier.predict(file).diagnosis for file in (lesions[0], *lesions[:2])
    ]
    refused = {"address": "fetches nothing", "passwd": "two steps", "nonsense": "in base64", "not ASCII": "in base64"}
    for name, sentence in refused.items():
        assert told[name].isError
        assert sentence in told[name].content[0].text


def test_what_cannot_be_answered_gets_a_sentence_and_the_page_keeps_working(url):
    client = SpaceClient(url)
    with pytest.raises(AnswerError, match=r"photo\.jpg is not an image"):
        client.classify(b"no picture")
    with pytest.raises(AnswerError, match="No photo came"):
        client.call("classify", None)
    with pytest.raises(AnswerError, match=r"no diagnosis 'XYZ'; it has BCC, BKL, MEL, NV"):
        client.explain(photos(1)[0], "xyz")
    with pytest.raises(AnswerError) as error:
        client.explain(photos(1)[0], "x" * 1_000_000)
    assert len(str(error.value)) < 200
    with pytest.raises(AnswerError, match="no photo in what you sent"):
        client.call("batch", [])
    assert client.classify(photos(1)[0])["abstained"] is False


def test_an_address_in_place_of_a_file_is_refused_in_every_field_and_never_fetched(url, reached_outside):
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
    assert "fetched.example" not in reached_outside


def test_files_of_the_server_are_neither_read_nor_served_and_no_path_of_it_is_told(url, folder):
    client = SpaceClient(url)
    for path in ("/etc/passwd", str(ROOT / "space" / "app.py"), str(folder / "config.json"), "../../etc/passwd"):
        with pytest.raises(AnswerError, match="sent to /upload first") as error:
            client.call("classify", {"path": path, "meta": {"_type": "gradio.FileData"}})
        assert str(Path.cwd()) not in str(error.value)
        assert client.http.get(f"/file={path}").status_code in (403, 404)
    for route in ("/deep_link?session_hash=x", "/proxy=http://example.com", "/file=http://example.com", "/vibe-code"):
        assert client.http.get(route).status_code == 404


def test_an_upload_that_is_gone_is_explained_as_such(url):
    client = SpaceClient(url)
    sent = client.upload(photos(1)[0], "mole.jpg")
    Path(sent["path"]).unlink()
    with pytest.raises(AnswerError, match=r"deleted after five minutes\. Send it again"):
        client.call("classify", sent)


def test_the_same_photo_sent_twice_lies_in_two_folders_that_nobody_can_guess(url):
    folders = {Path(SpaceClient(url).upload(photos(1)[0])["path"]).parent.name for _ in range(3)}
    assert len(folders) == 3
    assert all(len(name) == 32 for name in folders)
    digest = hashlib.sha256(photos(1)[0]).hexdigest()
    assert digest not in folders


def test_the_overlay_lies_in_a_folder_of_its_own(url):
    client = SpaceClient(url)
    sent = client.upload(photos(1)[0])
    paths = {client.call("explain", sent, "")[1]["path"] for _ in range(2)}
    assert len({Path(path).parent.name for path in paths}) == 2


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
