"""Each private part of gradio that the Space changes or reads: these tests fail where gradio moves it."""

import asyncio
import importlib
import inspect
import os
import socket
import time

import endpoints
import gradio as gr
import gradio_internals
import pytest
import serving
import uvicorn.config
from gradio import blocks, queueing, state_holder
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from visitors import Visitors

from stress.space_soak import SpaceClient, photos
from support.ports import free_port
from support.space import served


@pytest.fixture(scope="module")
def demo(classifier):
    return endpoints.blocks(endpoints.endpoints(classifier, Visitors()))


def test_the_method_that_is_replaced_is_there_with_the_same_parameters():
    names = ["self", "block_fn", "inputs", "state", "request", "iterator"]
    assert list(inspect.signature(blocks.Blocks.process_api).parameters)[: len(names)] == names


def test_gradio_looks_for_no_file_in_what_was_sent(demo):
    photo = {"path": "http://192.0.2.1/x.jpg", "meta": {"_type": "gradio.FileData"}}
    sent = [endpoints.Sent(photo), endpoints.Sent({"MEL": photo})]
    (classify,) = [one for one in demo.fns.values() if one.api_name == "classify"]
    assert asyncio.run(demo.preprocess_data(classify, sent, None)) == sent


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


def test_what_idle_clients_left_is_forgotten_at_the_second_look(classifier):
    found = serving.launch(classifier, port=free_port())
    client = SpaceClient(found.local_url.rstrip("/"))
    fetched, left = (client.start("classify", client.upload(photos(1)[0])) for _ in range(2))
    assert "complete" in client.http.get(f"/call/classify/{fetched}").text
    deadline = time.monotonic() + 60
    while found._queue.event_ids_to_events and time.monotonic() < deadline:
        time.sleep(0.05)
    queue, holder = found._queue, found.state_holder
    kept = (queue.pending_messages_per_session, queue.pending_event_ids_session, holder.session_data)
    assert [gradio_internals.has_answer(found, ticket) for ticket in (left, fetched, "other")] == [True, False, False]
    idle = gradio_internals.forget_idle(found, set())
    assert {fetched, left} <= idle
    assert all(left in table for table in kept)
    gradio_internals.forget_idle(found, idle)
    assert not any(kept)
    assert not gradio_internals.has_answer(found, left)
    found.close(verbose=False)


def test_connections_without_a_request_are_closed(classifier, monkeypatch):
    assert uvicorn.config.HTTP_PROTOCOLS["auto"] == "gradio_internals:TimedProtocol"
    for name in ("connection_made", "data_received"):
        assert hasattr(AutoHTTPProtocol, name)
    monkeypatch.setattr(gradio_internals, "REQUEST_WITHIN_S", 0.5)
    whole = b"HEAD /page/page.js HTTP/1.1\r\nHost: x\r\n\r\n"
    with served(classifier) as url:
        for before in (b"", whole):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 10) as slow:
                slow.sendall(before)
                assert bool(before) == (b"200 OK" in (slow.recv(10_000) if before else b""))
                slow.sendall(b"GET /config HTTP/1.1\r\nHost: ")
                started = time.monotonic()
                assert slow.recv(100) == b""  # closed
                assert time.monotonic() - started < 10
        assert SpaceClient(url).classify(photos(1)[0])["verdict"]


@pytest.mark.parametrize(
    ("hosted", "header", "address"),
    [
        (True, "1.1.1.1", "1.1.1.1"),
        (True, "6.6.6.6, 1.1.1.1", "1.1.1.1"),  # the visitor wrote the first himself
        (True, "6.6.6.6, 1.1.1.1, 10.0.3.7", "1.1.1.1"),  # the last is a proxy inside
        (False, "1.1.1.1", "10.0.0.5"),
    ],
)
def test_the_address_of_a_visitor_is_the_one_that_the_hubs_proxy_wrote(monkeypatch, hosted, header, address):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    monkeypatch.delenv("SPACE_ID", raising=False)
    if hosted:
        monkeypatch.setenv("SPACE_ID", "me/lesions")
    importlib.reload(gradio_internals)
    clients = []

    async def take(scope: dict, receive: object, send: object) -> None:
        clients.append(scope["client"][0])

    scope = {"type": "http", "client": ("10.0.0.5", 1), "headers": [(b"x-forwarded-for", header.encode())]}
    asyncio.run(ProxyHeadersMiddleware(take, os.environ["FORWARDED_ALLOW_IPS"])(scope, None, None))
    assert clients == [address]
