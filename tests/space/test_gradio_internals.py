"""Each private part of gradio that the Space changes or reads: these tests fail where gradio moves it."""

import asyncio
import inspect
import os
import socket
import time

import app
import gradio as gr
import gradio_internals
import pytest
import serving
import uvicorn.config
from gradio import blocks, queueing, state_holder
from gradio.components.base import Component
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from visitors import Visitors

from stress.space_soak import SpaceClient, photos
from support.ports import free_port
from support.space import served


@pytest.fixture(scope="module")
def demo(classifier):
    return app.build_demo(lambda: classifier, Visitors())


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (gr.File, "preprocess", ["self", "payload"]),
        (Component, "api_info", ["self"]),
        (Component, "api_info_as_input", ["self"]),
        (blocks.Block, "async_move_resource_to_block_cache", ["self", "url_or_file_path"]),
        (blocks.Blocks, "process_api", ["self", "block_fn", "inputs", "state", "request", "iterator"]),
    ],
)
def test_methods_that_are_replaced_are_there_with_the_same_parameters(owner, name, parameters):
    assert list(inspect.signature(getattr(owner, name)).parameters)[: len(parameters)] == parameters


def test_the_description_of_an_input_is_where_gradio_looks_for_it(demo):
    (classify,) = [one for name, one in demo.get_api_info()["named_endpoints"].items() if name == "/classify"]
    assert classify["parameters"][0]["python_type"]["description"].startswith("The photo (JPEG")


def test_gradio_fetches_and_copies_nothing(demo):
    assert len(demo.blocks) > 5
    for block in demo.blocks.values():
        for path in ("http://192.0.2.1/x.jpg", "/etc/passwd"):
            assert asyncio.run(block.async_move_resource_to_block_cache(path)) == path


def test_the_tables_of_the_queue_and_of_sessions_are_those_that_are_read(demo):
    queue = queueing.Queue(False, 1, 1.0, None, demo)
    for name in ("pending_messages_per_session", "pending_event_ids_session", "event_ids_to_events"):
        assert isinstance(getattr(queue, name), dict)
    assert "session_hash" in inspect.signature(queueing.Event).parameters
    holder = state_holder.StateHolder()
    assert not holder.session_data
    assert not holder.time_last_used
    assert (queue.ANALYTICS_MAX_EVENTS, queue.ANAYLTICS_CACHE_FREQUENCY) == (1, 10**9)
    assert "GRADIO_TEMP_DIR" in os.environ
    assert gr.utils.get_upload_folder() == os.environ["GRADIO_TEMP_DIR"]


def test_what_idle_clients_left_is_forgotten_at_the_second_look_and_what_is_waited_for_is_not(classifier):
    visitors = Visitors()
    found = app.build_demo(lambda: classifier, visitors)
    client = SpaceClient(serving.launch(found, lambda: classifier, visitors, port=free_port()))
    fetched, left, waited = (client.start("classify", client.upload(photos(1)[0])) for _ in range(3))
    assert "complete" in client.http.get(f"/call/classify/{fetched}").text
    deadline = time.monotonic() + 60
    while found._queue.event_ids_to_events and time.monotonic() < deadline:
        time.sleep(0.05)
    kept = (
        found._queue.pending_messages_per_session,
        found._queue.pending_event_ids_session,
        found.state_holder.session_data,
    )
    idle = gradio_internals.forget_idle(found, set(), lambda session: session == waited)
    assert {fetched, left} <= idle
    assert waited not in idle
    assert all(left in table for table in kept)
    assert gradio_internals.has_answer(found, left)
    gradio_internals.forget_idle(found, idle, lambda session: session == waited)
    assert [set(table) for table in kept] == [{waited}] * 3
    assert not gradio_internals.has_answer(found, left)
    assert "complete" in client.http.get(f"/call/classify/{waited}").text
    found.close(verbose=False)


def test_connections_without_a_request_are_closed(classifier, monkeypatch):
    assert uvicorn.config.HTTP_PROTOCOLS["auto"] == "gradio_internals:TimedProtocol"
    for name in ("connection_made", "data_received"):
        assert hasattr(AutoHTTPProtocol, name)
    monkeypatch.setattr(gradio_internals, "REQUEST_WITHIN_S", 0.5)
    with served(classifier) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as slow:
        slow.sendall(b"GET /config HTTP/1.1\r\nHost: ")
        started = time.monotonic()
        assert slow.recv(100) == b""  # closed
        assert time.monotonic() - started < 10
        assert SpaceClient(url).classify(photos(1)[0])["verdict"]


def test_a_visitors_forwarded_header_is_not_believed():
    assert os.environ["FORWARDED_ALLOW_IPS"] == ""
