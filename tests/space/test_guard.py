"""The guard before the server: routes, sizes, rates, addresses, headers and time-outs."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import guard
import httpx
import pytest
from guard import Guard
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route, Router
from uploads import Janitor

CALL = "/gradio_api/call/classify"


def guarded(answer: Callable | None = None, **options) -> tuple[Guard, httpx.AsyncClient]:
    """Return a guard before a server that takes everything, and a client of it."""

    async def take(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{len(await request.body())} {request.client.host}")

    inside = Router([Route("/{path:path}", answer or take, methods=["GET", "POST"])])
    made = Guard(inside, janitor=Janitor(Path("/nonexistent")), has_answer=lambda ticket: ticket == "abc", **options)
    return made, httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://space")


def statuses(*requests: Awaitable[httpx.Response]) -> list[int]:
    async def all_of_them() -> list[int]:
        return [(await request).status_code for request in requests]

    return asyncio.run(all_of_them())


def test_a_visitor_is_slowed_down_and_another_is_not(monkeypatch):
    monkeypatch.setattr(guard, "REQUESTS_PER_MINUTE", 5)
    made, _ = guarded()
    assert [made.within_rate("a") for _ in range(7)] == [True] * 5 + [False] * 2
    assert made.within_rate("b")


def test_uploads_are_bounded_and_counted_until_the_next_sweep(monkeypatch):
    monkeypatch.setattr(guard, "MAX_UPLOAD_BYTES", 1000)
    monkeypatch.setattr(guard, "MAX_FOLDER_BYTES", 3500)
    made, client = guarded()

    async def unannounced(n_bytes: int):
        for _ in range(n_bytes // 100):
            yield bytes(100)

    def upload(content) -> Awaitable[httpx.Response]:
        return client.post("/gradio_api/upload", content=content)

    contents = [bytes(1000), bytes(1001), unannounced(1100), unannounced(900), bytes(700), unannounced(100)]
    assert statuses(*map(upload, contents)) == [200, 413, 413, 200, 503, 503]
    assert made.janitor.used_bytes == 1000 + 1000 + 900 + 700 + 100
    assert statuses(client.post(CALL, content=b"{}")) == [200]
    made.janitor.used_bytes = 0
    assert statuses(upload(bytes(700))) == [200]


@pytest.mark.parametrize("announced", [True, False])
def test_any_other_body_is_bounded_before_the_server_sees_it(announced):
    _, client = guarded()

    async def parts(body: bytes):
        yield body

    def post(route: str, body: bytes) -> Awaitable[httpx.Response]:
        return client.post(f"/gradio_api{route}", content=body if announced else parts(body))

    photo = {"path": "/tmp/x.jpg", "orig_name": "x.jpg", "meta": {"_type": "gradio.FileData"}}
    lists = [json.dumps({"data": [[photo] * n]}).encode() for n in (200, 201, 20_000)]
    assert statuses(*(post("/call/batch", body) for body in lists)) == [200, 413, 413]
    text = b'{"photo": "data:image/jpeg;base64,' + b"A" * 30_000_000 + b'"}'
    numbers = b'{"x": [' + b"1," * 150_000 + b"1]}"
    assert statuses(post("/mcp/", text), post("/queue/join", text)) == [200, 413]
    assert statuses(post("/mcp/", numbers), post("/mcp/", b'{"x": "' + b"A" * 40_000_000 + b'"}')) == [413, 413]
    nested = [b"[" * 100_000, b'{"data": ' + b"[" * 100_000, b"{", b"", b"[]", b"\xff", b'"x"']
    for route in ("/call/classify", "/mcp/", "/queue/join", "/cancel"):
        assert statuses(*(post(route, body) for body in nested)) == [400] * len(nested)


def test_bodies_that_are_held_at_the_same_time_are_bounded_together(monkeypatch):
    monkeypatch.setattr(guard, "MAX_HELD_BYTES", 2_500)
    made, client = guarded()
    body = b'{"x": "' + b"A" * 900 + b'"}'

    async def at_once(n: int) -> list[int]:
        waiting = asyncio.Event()

        async def slow():
            yield body[:500]
            await waiting.wait()
            yield body[500:]

        requests = [asyncio.create_task(client.post("/gradio_api/mcp/", content=slow())) for _ in range(n)]
        await asyncio.sleep(0.1)
        assert made.held_bytes == 500 * n
        waiting.set()
        return [(await request).status_code for request in requests]

    assert asyncio.run(at_once(2)) == [200, 200]
    assert 503 in asyncio.run(at_once(4))
    assert made.held_bytes == 0
    assert asyncio.run(at_once(2)) == [200, 200]


def test_only_routes_that_the_page_and_its_programs_use_are_open():
    _, client = guarded()
    closed = (
        *("deep_link", "proxy=http://x", "file=http://x", "vibe-code", "undo-vibe-edit", "process_recording", "runs"),
        *("component_server", "run-history/records", "stream/x", "call/v2/classify", "call/nothing", "run/predict"),
        *("api/predict", "custom_component/%0aFAKE%20LINE/server/component/index.js", "monitoring", "login", "token"),
    )
    places = [base + route for route in closed for base in ("/", "/gradio_api/")]
    assert statuses(*(client.get(place) for place in places)) == [404] * len(places)
    used = ("/", "/page/server.js", "/config", "/gradio_api/info", "/gradio_api/file=/tmp/x.jpg", "/gradio_api/mcp/")
    assert statuses(*(client.get(place) for place in used)) == [200] * len(used)


def test_refusals_and_faults_are_sentences_that_repeat_nothing(capsys):
    async def fail(request: Request) -> JSONResponse:
        if "form" in request.url.path:
            return JSONResponse({"detail": "SECRET"}, 422)
        raise ValueError("SECRET")

    _, client = guarded(fail)
    form, fault = asyncio.run(client.get("/page/form")), asyncio.run(client.get("/config"))
    assert (form.status_code, fault.status_code) == (400, 500)
    for answer in (form, fault):
        assert set(answer.json()) == {"error"}
        assert "SECRET" not in answer.text
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    log = capsys.readouterr().err
    assert log.startswith("fault: ValueError at test_guard.py:")
    assert "SECRET" not in log


def test_every_answer_forbids_sniffing():
    _, client = guarded()
    for path in ("/", "/page/server.js", "/gradio_api/file=/tmp/x.jpg"):
        headers = asyncio.run(client.get(path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_body_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "PAUSE_S", 0.2)
    made, _ = guarded()
    sent: list[dict] = []

    async def ask() -> None:
        async def receive() -> dict:
            await asyncio.sleep(60)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: dict) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": CALL, "headers": [], "query_string": b"", "client": ("a", 1)}
        await made(scope, receive, send)

    started = time.monotonic()
    asyncio.run(ask())
    assert sent[0]["status"] == 408
    assert time.monotonic() - started < 5


def test_what_is_not_there_is_said_at_once():
    _, client = guarded()
    assert statuses(*(client.get(f"{CALL}/{name}") for name in ("abc", "other", "abcd"))) == [200, 404, 404]
