"""The server: it starts, says what is wrong, bears load, and forgets."""

import asyncio
import base64
import dataclasses
import io
import json
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import app
import gradio_client
import httpx
import numpy as np
import pages
import pytest
import render
import serving
import tempfolder
import uploads
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.images import decode_image
from stress.space_soak import AnswerError, Soak, SpaceClient, SpaceServer, photos
from support.hub import HubServer
from support.scored import make_scored_folder
from support.space import pixels_of


def wait_until(happened: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_server_forgets_uploads_and_the_last_answer_of_a_page_that_stays_open(classifier, monkeypatch):
    monkeypatch.setattr(serving, "MAX_FILE_BYTES", 50_000)
    monkeypatch.setattr(uploads, "SWEEP_EVERY_S", 0.1)
    monkeypatch.setattr(serving, "KEEP_ANSWERS_S", 0.5)
    demo = app.build_demo(classifier)
    address = serving.launch(demo, prevent_thread_lock=True, quiet=True)
    client = SpaceClient(address.rstrip("/"))
    with pytest.raises(AnswerError, match=r"exceeded|size"):
        client.upload(bytes(50_001))
    client.classify(photos(1)[0])
    holder = demo.state_holder
    assert holder.session_data
    wait_until(lambda: not holder.session_data and not holder.time_last_used)
    assert client.classify(photos(1)[0])["diagnosis"] in classifier.codes  # the same page goes on
    path = Path(client.upload(photos(1)[0])["path"])
    assert path.is_relative_to(tempfolder.upload_folder().resolve())
    monkeypatch.setattr(uploads, "KEEP_UPLOADS_S", 0)
    wait_until(lambda: not path.exists())
    demo.close(verbose=False)


def test_a_page_that_was_closed_leaves_no_thread_behind():
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if not thread.name.startswith("AnyIO")}

    before = threads()
    for _ in range(2):  # as while a hosted Space waits for its model
        demo = app.build_fault_page("no model")
        serving.launch(demo, prevent_thread_lock=True, quiet=True)
        demo.close(verbose=False)
    wait_until(lambda: threads() <= before)


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
    late = serving.KEEP_ANSWERS_S + 1
    seen = serving.forget_answers(demo, {}, now_s=0)
    asked["asks again"].add("d")
    seen = serving.forget_answers(demo, seen, now_s=serving.KEEP_ANSWERS_S - 1)
    assert set(queue.pending_messages_per_session) == set(asked)
    serving.forget_answers(demo, seen, now_s=late)
    assert set(queue.pending_messages_per_session) == {"waits", "asks again"}
    assert set(queue.pending_event_ids_session) == {"waits", "asks again"}


def test_a_running_server_keeps_nothing_of_requests_that_are_done(classifier, monkeypatch):
    monkeypatch.setattr(uploads, "SWEEP_EVERY_S", 0.1)
    monkeypatch.setattr(serving, "KEEP_ANSWERS_S", 0.5)
    demo = app.build_demo(classifier)
    client = SpaceClient(serving.launch(demo, prevent_thread_lock=True, quiet=True).rstrip("/"))
    for data in photos(3):
        assert client.classify(data)["diagnosis"] in classifier.codes
        client.start("explain", client.upload(data), "")
    queue = demo._queue
    wait_until(lambda: not queue.pending_messages_per_session)
    kept = (queue.pending_messages_per_session, queue.pending_event_ids_session, queue.event_ids_to_events)
    assert [len(part) for part in kept] == [0, 0, 0]
    assert len(queue.event_analytics) <= 1  # gradio makes a table of them at every request
    assert queue.cached_event_analytics_summary == {"functions": {}}
    demo.close(verbose=False)


def test_nothing_in_this_process_reached_beyond_this_machine(url, reached_outside):
    assert reached_outside == []


def test_the_page_says_when_the_model_is_an_earlier_download(classifier):
    source = dataclasses.replace(classifier.source, from_cache=True)
    offline = LesionClassifier.from_pretrained(classifier.source.path)
    offline.source = source
    assert "the copy downloaded earlier" in pages.header(offline)
    assert "downloaded earlier" not in pages.header(classifier)


def test_the_model_tab_says_when_there_are_no_numbers(classifier):
    assert "It was published without metrics.json." in pages.card(classifier)


def test_a_model_from_an_earlier_download_does_not_wait_for_the_hub_to_show_its_numbers(tmp_path, folder, monkeypatch):
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path)
        hub.add_repo("me/lesions", folder)
        hub.add_repo("me/lesions", {**hub.repo("me/lesions").files(), "metrics.json": b"{}"})
        downloaded = LesionClassifier.from_pretrained("me/lesions")
        downloaded.source = dataclasses.replace(downloaded.source, from_cache=True)
        hub.log.clear()
        assert "metrics.json of me/lesions could not be downloaded" in pages.card(downloaded)
    assert not hub.log


@pytest.mark.parametrize(
    "content",
    [
        "null", "[]", '"text"', "{}", "[" * 100_000, '{"schema_version": 2}', '{"schema_version": 2, "figures": {}}',
        '{"schema_version": 2, "data": null, "model": 3}', '{"schema_version": 2, "test": {"n_images": "<script>"}}',
        '{"schema_version": 2, "operating_points": [null]}', '{"schema_version": 2, "baselines": [1]}',
        '{"schema_version": 2, "model": {"codes": 7, "architecture": []}, "operating_points": [{"test": 1}]}',
    ],
)  # fmt: skip
def test_a_strangers_metrics_break_nothing(folder, tmp_path, content, capsys):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "metrics.json").write_text(content)
    html = pages.card(LesionClassifier.from_pretrained(model))
    assert 'id="no-card"' in html
    assert "<script" not in html
    assert "Traceback" not in capsys.readouterr().err


def test_a_strangers_config_ends_with_a_sentence(folder, tmp_path, capsys):
    model = shutil.copytree(folder, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    changes = (
        {"num_classes": 4.0},
        {"label_names": None},
        {"pretrained_cfg": []},
        {"lesion": 3},
        {"lesion": {"schema": 99}},
    )
    for change in changes:
        (model / "config.json").write_text(json.dumps({**config, **change}))
        assert app.main(["--model", str(model)]) == 2
        said = capsys.readouterr().err
        assert "error: " in said
        assert "Traceback" not in said
    assert "its schema is 99 and this version reads" in said


def test_the_model_tab_puts_each_number_into_its_row_and_shows_figures_of_the_model_alone(tmp_path):
    model = make_scored_folder(tmp_path)
    metrics = json.loads((model / "metrics.json").read_text())
    metrics["data"]["dataset"] = "<script>alert(1)</script>"
    metrics["data"]["synthetic"] = False
    metrics["test"]["balanced_accuracy"] = {"value": 0.7, "low": 0.6, "high": 0.8}
    metrics["test"]["macro_auroc"] = {"value": 0.9, "low": None, "high": None}
    metrics["test"]["macro_f1"] = {"value": None}
    metrics["calibration"]["test"]["after"]["ece"] = {"value": 0.03}
    metrics["test"]["per_class"]["MEL"] |= {"n_images": 5, "recall": {"value": 0.11}, "precision": {"value": 0.22}}
    (point,) = [point for point in metrics["operating_points"] if point["name"] == "MEL@95"]
    point["test"] |= {"sensitivity": {"value": 0.94}, "specificity": {"value": 0.51}}
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    Image.new("RGB", (4, 4)).save(model / "figures" / "roc_curves.png")
    (model / "metrics.json").write_text(json.dumps({**metrics, "figures": ["roc_curves.png", "../../secret.png"]}))
    refused = pages.card(LesionClassifier.from_pretrained(model))
    assert "<img" not in refused
    assert "cannot be shown here" in refused
    metrics["figures"] = ["roc_curves.png"]
    (model / "metrics.json").write_text(json.dumps(metrics))
    html = pages.card(LesionClassifier.from_pretrained(model))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert html.count("<img") == 1
    assert "roc curves" in html
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    for words in (
        f"{metrics['test']['n_images']} test images of {metrics['test']['n_lesions']} lesions",
        "Balanced accuracy fraction recognised, averaged over the diagnoses 0.700 (0.600 to 0.800)",
        "scores higher for it than one without 0.900 (no interval)",
        "Macro F1 of precision and recall, averaged over the diagnoses not estimable",
        "Calibration error (ECE) how far probabilities lie from what comes true 0.030",
        "Set to catch Sensitivity fraction of them caught Specificity fraction of the others left alone",
        "95 % of melanomas 0.940 0.510",
        "… of a baseline which sees only age, sex, body site, source",
        "… of a baseline which answers always",
        "melanoma (MEL) 5 0.110 0.220",
    ):
        assert words in text
    assert "_" not in text.replace(metrics["model"]["architecture"], "")  # no column of the data, no key


def test_a_hosted_space_loads_the_revision_of_its_variable(monkeypatch):
    served: list[tuple[str, str | None]] = []
    monkeypatch.setattr(app, "open_model", lambda model_id, revision: served.append((model_id, revision)))
    monkeypatch.setattr(app, "build_demo", lambda classifier: None)
    monkeypatch.setattr(app, "mcp_server", lambda classifier: None)
    ports: list[int | None] = []
    monkeypatch.setattr(app, "launch", lambda demo, *, tools, server_port: ports.append(server_port))
    monkeypatch.setenv("MODEL_ID", "me/lesions")
    monkeypatch.setenv("MODEL_REVISION", "v1.0")
    assert app.main([]) == 0
    assert app.main(["--revision", "v2.0", "--port", "8123"]) == 0
    monkeypatch.setenv("MODEL_REVISION", "")  # as an empty field of the Space's settings
    assert app.main([]) == 0
    assert served == [("me/lesions", "v1.0"), ("me/lesions", "v2.0"), ("me/lesions", None)]
    assert ports == [None, 8123, None]


def test_a_space_without_a_model_explains_what_to_set(monkeypatch):
    seen: list[str] = []

    real = serving.launch

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


def test_a_space_heals_when_its_repository_appears_and_outlives_a_hub_that_is_down(folder, tmp_path, lesions):
    code = "import app; app.RETRY_EVERY_S = 1; app.main([])"
    with HubServer() as hub:
        environment = hub.env(home=tmp_path) | {"MODEL_ID": "me/lesions"}
        with SpaceServer(environment=environment, code=code) as server:
            server.wait_for_page("the Hub has no model")
            hub.add_repo("me/lesions", folder)
            page = server.wait_for_page("Photos of one lesion")
            assert hub.repo("me/lesions").head.oid[:12] in page
            answer = SpaceClient(server.url).classify(lesions[0].read_bytes())
            assert answer["provenance"]["revision"] == hub.repo("me/lesions").head.oid
        hub.fail("*", status=503, times=float("inf"))
        environment["MODEL_REVISION"] = hub.repo("me/lesions").head.oid  # as `publish space` sets it
        with SpaceServer(environment=environment, code=code) as server:
            assert "the copy downloaded earlier" in server.wait_for_page("Photos of one lesion")
            assert SpaceClient(server.url).classify(lesions[0].read_bytes()) == answer


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


def test_sixteen_visitors_at_once_get_each_the_answers_and_pictures_of_their_own_photo(url, classifier):
    pictures = photos(16)
    explained = [classifier.explain(data) for data in pictures]
    told_apart = {tuple(round(value, 5) for value in one.prediction.probabilities.values()) for one in explained}
    assert len(told_apart) == 16
    together = threading.Barrier(16)

    def visit(number: int) -> dict[str, dict]:
        client = SpaceClient(url, address=f"10.16.0.{number}")
        sent = client.upload(pictures[number], f"{number}.jpg")
        asks = {
            "classify": lambda: client.call("classify", sent)[0],
            "explain": lambda: client.call("explain", sent, "")[0],
            "batch": lambda: client.call("batch", [sent])[0]["rows"][0],
            "page": lambda: client.look(sent),
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
            assert np.allclose(told["explain"]["evidence"]["MEL"], explained[number].evidence[2], atol=1e-3)
            assert told["batch"]["image"] == f"{number}.jpg"
            (shown,) = told["page"]["photos"]
            assert shown["name"] == f"{number}.jpg"
            own = render.squashed(decode_image(pictures[number]), classifier)
            assert (pixels_of(shown["model_input"]) == np.asarray(own)).all()


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


def test_nothing_that_a_visitor_sends_gets_into_the_log(folder):
    with SpaceServer("--model", str(folder)) as server:
        client = SpaceClient(server.url)
        photo = "data:image/jpeg;base64," + base64.b64encode(photos(1)[0] * 500).decode()
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
        client.http.post("/mcp/", json={"jsonrpc": "2.0", "id": 1, "method": photo}, headers=MCP_HEADERS)
        call = {"name": "classify", "arguments": {"photo": [photo]}}
        client.http.post(
            "/mcp/", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}, headers=MCP_HEADERS
        )
        client.classify(photos(1)[0])
        log = server.output()
    assert photo[30:90] not in log
    assert "Traceback" not in log
    assert len(log) - quiet < 10_000
    assert all(len(line) < 300 for line in log.splitlines())


MCP_HEADERS = {"Accept": "application/json, text/event-stream"}


def test_a_server_that_its_host_stops_leaves_no_upload_behind(folder):
    with SpaceServer("--model", str(folder)) as server:
        SpaceClient(server.url).upload(photos(1)[0])
        assert server.disk_bytes() > 0
        server.process.terminate()
        server.process.wait(30)
        assert server.disk_bytes() == 0
        assert "Traceback" not in server.output()
