"""The server: it starts, says what is wrong, bears load, and forgets."""

import base64
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import app
import gradio_client
import numpy as np
import pytest
import serving
import uploads

from modeling.classifier import LesionClassifier
from stress.space_soak import (
    AnswerError,
    Soak,
    SpaceClient,
    SpaceServer,
    large_photo,
    photos,
    wait_beside_abandoned_batches,
    wait_beside_costly_requests,
)
from support.hub import HubServer
from support.ports import free_port

pytestmark = pytest.mark.slow

MCP_HEADERS = {"Accept": "application/json, text/event-stream"}


def wait_until(happened: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_server_forgets_uploads_and_answers_and_leaves_no_thread_behind(classifier, monkeypatch):
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if not thread.name.startswith("AnyIO")}

    monkeypatch.setattr(uploads, "MAX_FILE_BYTES", 50_000)
    monkeypatch.setattr(serving, "SWEEP_EVERY_S", 0.2)
    before = threads()
    demo = serving.launch(classifier, port=free_port())
    client = SpaceClient(demo.local_url.rstrip("/"))
    with pytest.raises(AnswerError, match="at most 0 MB a file"):
        client.upload(bytes(50_001))
    for data in photos(3):
        assert client.classify(data)["diagnosis"] in classifier.codes
        client.start("explain", client.upload(data))
    queue, holder = demo._queue, demo.state_holder
    wait_until(lambda: not (queue.pending_messages_per_session or queue.pending_event_ids_session))
    wait_until(lambda: not (holder.session_data or holder.time_last_used or queue.event_ids_to_events))
    assert len(queue.event_analytics) <= 1  # gradio makes a table of them at every request
    path = Path(client.upload(photos(1)[0])["path"])
    assert path.is_relative_to(uploads.FOLDER.resolve())
    os.utime(path, (0, 0))  # a janitor looks after the folders of all servers, other tests' too
    wait_until(lambda: not path.exists())
    client.http.close()
    demo.close(verbose=False)
    wait_until(lambda: threads() <= before)


def test_nothing_in_this_process_reached_beyond_this_machine(url, reached_outside):
    assert reached_outside == []


def test_an_untrusted_config_ends_with_a_sentence(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(free_port()))
    model = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    for change in ({"num_classes": 4.0}, {"label_names": None}, {"pretrained_cfg": []}, {"lesion": 3}):
        (model / "config.json").write_text(json.dumps({**config, **change}))
        assert app.main(["--model", str(model)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert "Traceback" not in said


@pytest.mark.parametrize("static", [[], ["--static"]])
@pytest.mark.parametrize("port", ["99999", "busy"])
def test_a_port_that_cannot_be_used_is_refused_in_a_sentence(capsys, port, static, folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = str(taken.getsockname()[1])
        assert app.main(["--model", str(folder), "--port", busy if port == "busy" else port, *static]) == 2
    shown, said = capsys.readouterr()
    assert not shown
    assert said.startswith("error: ")
    assert "port" in said
    assert said.count("\n") == 1


def test_the_model_is_the_named_one_or_that_of_the_commit_or_the_released_one(monkeypatch, tmp_path):
    opened: list[tuple[str | None, str | None]] = []

    class Opened(Exception):
        pass

    def note(model: str | None, revision: str | None) -> None:
        opened.append((model, revision))
        raise Opened

    monkeypatch.setattr(app, "LesionClassifier", type("Noted", (), {"from_pretrained": staticmethod(note)}))
    monkeypatch.setattr(app, "__file__", str(tmp_path / "app.py"))

    def start(*arguments: str) -> tuple[str | None, str | None]:
        with pytest.raises(Opened):
            app.main(list(arguments))
        return opened.pop()

    assert start() == (None, None)  # the released one
    (tmp_path / "model.json").write_text('{"model_id": "me/lesions", "revision": "abc"}')
    assert start() == ("me/lesions", "abc")
    assert start("--revision", "v2.0") == ("me/lesions", "v2.0")
    assert start("--model", "runs/demo/model") == ("runs/demo/model", None)


def test_a_space_waits_for_the_hub_and_answers_from_an_earlier_download_while_it_does_not_answer(
    folder, tmp_path, lesions
):
    code = f"import app; app.__file__ = {str(tmp_path / 'app.py')!r}; app.RETRY_EVERY_S = 1; app.main([])"
    with HubServer() as hub:
        hub.add_repo("me/lesions", folder)
        # As `publish space` writes it.
        named = {"model_id": "me/lesions", "revision": hub.repo("me/lesions").head.oid}
        (tmp_path / "model.json").write_text(json.dumps(named))
        environment, answers = hub.env(home=tmp_path), []
        hub.fail("*", status=503, times=2)
        for from_cache in (False, True):
            with SpaceServer(environment=environment, code=code) as server:
                told = server.about("me/lesions")["model"]
                assert (told["revision"], told["from_cache"]) == (named["revision"], from_cache)
                answers.append(SpaceClient(server.url).classify(lesions[0].read_bytes()))
                if not from_cache:
                    assert "Trying again in 1 s" in server.output()
            hub.fail("*", status=503, times=float("inf"))
    assert answers[0] == answers[1]


def test_a_space_answers_gradio_client_about_a_real_photograph_and_says_where_it_is(folder, real_data):
    photograph = next((real_data / "originals").glob("*.jpg"))
    with SpaceServer("--model", str(folder)) as server:
        client = gradio_client.Client(server.url, verbose=False)
        answer = client.predict(gradio_client.handle_file(photograph), api_name="/classify")
        log = server.output()
    expected = LesionClassifier.from_pretrained(folder, device="cpu").predict(photograph)
    assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert f"The page is at {server.url}" in log
    assert "share" not in log


def test_sixteen_visitors_at_once_get_each_the_answers_about_their_own_photo(url, classifier):
    images = photos(16)
    explained = [classifier.explain(data) for data in images]
    different = {tuple(round(value, 5) for value in one.prediction.probabilities.values()) for one in explained}
    assert len(different) == 16
    together = threading.Barrier(16)

    def visit(number: int) -> dict[str, dict]:
        client = SpaceClient(url, address=f"10.16.0.{number}")
        sent = client.upload(images[number], f"{number}.jpg")
        asks = {
            "classify": lambda: client.call("classify", sent)[0],
            "explain": lambda: client.call("explain", sent)[0],
            "batch": lambda: client.call("batch", [sent])[0]["rows"][0],
            "page": lambda: client.lesion(sent),
        }
        together.wait()
        names = sorted(asks, key=lambda name: (list(asks).index(name) + number) % 4)  # all four kinds at any time
        return {name: asks[name]() for name in names}

    with ThreadPoolExecutor(16) as pool:
        for number, told in enumerate(pool.map(visit, range(16))):
            for answer in told.values():
                expected = explained[number].prediction
                assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=2e-6)
                assert answer["verdict"] == expected.verdict
            assert told["batch"]["name"] == f"{number}.jpg"
            (shown,) = told["page"]["photos"]
            for evidence in (told["explain"]["evidence"], shown["evidence"]):
                assert np.allclose(evidence["MEL"], explained[number].evidence[2], atol=1e-3)
            assert shown["name"] == f"{number}.jpg"


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
    assert "fault" not in server.output()


def test_one_visitor_does_not_stop_the_others(server):
    # The harness asks for 1 s and 10 s on a machine of its own; tests share theirs.
    assert wait_beside_costly_requests(server.url) < 5
    assert wait_beside_abandoned_batches(server.url) < 10


def test_a_batch_whose_client_leaves_stops(classifier):
    demo = serving.launch(classifier, port=free_port())
    client = SpaceClient(demo.local_url.rstrip("/"))
    ticket = client.start("batch", [client.upload(large_photo(), "large.png")] * 40)
    with client.http.stream("GET", f"/call/batch/{ticket}") as lines:
        assert next(line for line in lines.iter_lines() if line.startswith("data: ["))
    wait_until(lambda: not demo._queue.event_ids_to_events)
    wait_until(lambda: not demo.app.iterators)
    demo.close(verbose=False)


def test_nothing_that_a_visitor_sends_gets_into_the_log(folder):
    with SpaceServer("--model", str(folder)) as server:
        client = SpaceClient(server.url)
        photo = "image/jpeg;base64," + base64.b64encode(photos(1)[0] * 10).decode()
        wait_until(lambda: "The page is at" in server.output())
        quiet = len(server.output())
        bad = [photo, {"path": photo, "meta": {"_type": "gradio.FileData"}}, {"path": [photo]}, [photo], {photo: photo}]
        for endpoint in ("classify", "explain", "batch"):
            for sent in bad:
                for data in ([sent], [[sent]], [sent, photo], [sent, sent, sent, sent]):
                    with pytest.raises(AnswerError) as error:
                        client.call(endpoint, *data)
                    assert photo[30:90] not in str(error.value)
                    assert "Traceback" not in str(error.value)
        for body in (photo.encode(), json.dumps({"data": photo}).encode(), json.dumps({photo: 1}).encode()):
            for route in ("/call/classify", "/queue/join", "/run/predict", "/upload", "/mcp/", "/cancel", "/reset"):
                kind = {"Content-Type": "application/json"}
                assert client.http.post(route, content=body, headers=kind).status_code >= 400
        for method, arguments in ((photo, {}), ("tools/call", {"name": "classify", "arguments": {"photo": [photo]}})):
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": arguments}
            client.http.post("/mcp/", json=body, headers=MCP_HEADERS)
        client.http.get("/custom_component/%0aFAKE%20LOG%20LINE/server/component/index.js")
        client.classify(photos(1)[0])
        log = server.output()
    assert photo[30:90] not in log
    assert "FAKE" not in log
    assert "Traceback" not in log
    assert "fault" not in log
    assert len(log) == quiet


def test_a_server_that_its_host_stops_leaves_no_upload_behind(folder):
    with SpaceServer("--model", str(folder)) as server:
        SpaceClient(server.url).upload(photos(1)[0])
        assert server.disk_bytes() > 0
        server.process.terminate()
        server.process.wait(30)
        assert server.disk_bytes() == 0
        assert "Traceback" not in server.output()
