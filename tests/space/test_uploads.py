"""What visitors send: kept private and for minutes, bounded in size and rate."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import uploads
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from support.space import ROOT


def test_the_janitor_deletes_old_uploads_and_their_folders_and_counts_the_rest(tmp_path):
    old, new = tmp_path / "a" / "old.jpg", tmp_path / "b" / "new.jpg"
    for file in (old, new):
        file.parent.mkdir()
        file.write_bytes(b"12345")
    janitor = uploads.Janitor(tmp_path)
    long_ago = time.time() - uploads.KEEP_UPLOADS_S - 1
    for path in (old, old.parent):
        os.utime(path, (long_ago,) * 2)
    janitor.sweep()
    assert not old.exists()
    assert new.exists()
    assert janitor.used_bytes == 5
    os.utime(old.parent, (long_ago,) * 2)  # deleting the file made the folder young again
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


def test_the_guard_bounds_uploads_and_counts_what_arrives_until_the_next_sweep(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UPLOAD_BYTES", 1000)
    monkeypatch.setattr(uploads, "MAX_FOLDER_BYTES", 2500)
    guard, client = guarded(tmp_path)

    async def unannounced(n_bytes: int):
        for _ in range(n_bytes // 100):
            yield bytes(100)

    async def all_answers() -> list[int]:
        announced = {"Content-Length": "1000"}
        empty = [(await client.post("/upload", content=b"x", headers=announced)).status_code for _ in range(3)]
        contents = [bytes(1001), unannounced(1100), unannounced(900), bytes(700), unannounced(700)]
        sent = [(await client.post("/upload", content=content)).status_code for content in contents]
        return [*empty, *sent, (await client.post("/call/classify", content=bytes(700))).status_code]

    assert asyncio.run(all_answers()) == [200, 200, 200, 413, 413, 200, 503, 503, 200]
    assert guard.janitor.used_bytes == 3 + 1000 + 900 + 600


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


def start(parent: Path, code: str) -> subprocess.Popen:
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(parent), "PYTHONPATH": str(ROOT / "space")}
    begin = (
        "import tempfolder, time; path = tempfolder.upload_folder(); print(oct(path.stat().st_mode), path, flush=True);"
    )
    command = [sys.executable, "-c", begin + code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_upload_folder_is_private_and_gone_when_the_server_ends(tmp_path):
    mode, path = start(tmp_path, "pass").communicate()[0].split()
    assert mode.endswith("700")
    assert not Path(path).exists()


def test_what_a_killed_server_left_is_swept_at_the_next_start_and_a_running_ones_is_not(tmp_path):
    killed, running = (start(tmp_path, "time.sleep(60)") for _ in range(2))
    left, kept = (Path(process.stdout.readline().split()[1]) for process in (killed, running))
    for path in (left, kept):
        (path / "photo.jpg").write_bytes(b"x")
    killed.kill()
    killed.wait()
    assert left.exists()
    start(tmp_path, "pass").communicate()
    assert not left.exists()
    assert kept.exists()
    running.kill()
    running.wait()
