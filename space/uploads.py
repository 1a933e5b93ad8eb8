"""What visitors send: kept in one private folder for minutes, bounded in size and rate, and never fetched for them."""

import os
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import tempfolder  # noqa: F401 (before gradio)

# isort: split
import gradio as gr
from answers import Photo
from gradio.data_classes import FileData, ListFiles
from gradio_client.utils import is_http_url_like
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modeling.images import MAX_FILE_BYTES

MovesFile = Callable[[str | Path | None], Coroutine[Any, Any, str | None]]

KEEP_UPLOADS_S = 300  # long enough for a full queue; gradio names files by content, so a visitor may share one
SWEEP_EVERY_S = 20
MAX_FOLDER_BYTES = 4 * 10**9
MAX_UPLOAD_BYTES = 3 * MAX_FILE_BYTES  # all files of one upload together
MAX_MESSAGE_BYTES = 40_000_000  # any other message; a photo inside a tool call is the largest
REQUESTS_PER_MINUTE = 600
MAX_NAME_CHARS = 120

# Parts of gradio that this page does not use, and that would keep or fetch things for a visitor.
CLOSED_ROUTES = (
    "deep_link",
    "proxy=",
    "file=http",
    "vibe-",
    "undo-vibe-edit",
    "process_recording",
    "component_server",
    "run-history",
    "stream/",
)


def photo_field(**options: Any) -> gr.File:
    """Return an upload field whose value is a `Photo`, or a list of them with file_count="multiple".

    gradio's own preprocessing forgets the visitor's file name and leaves an empty file behind at each request. The
    method is replaced on the object, since gradio writes a .pyi file into the source folder of every subclass.
    """
    field = gr.File(**options)
    several = field.file_count == "multiple"

    def preprocess(payload: ListFiles | FileData | None) -> list[Photo] | Photo | None:
        files = [] if payload is None else payload.root if isinstance(payload, ListFiles) else [payload]
        photos = [Photo(file.path, shown_name(file.orig_name or file.path)) for file in files]
        return photos if several else photos[0] if photos else None

    field.preprocess = preprocess  # type: ignore[assignment,method-assign]
    return field


def shown_name(name: str) -> str:
    """Return a visitor's file name without folders, control characters and excess length."""
    base = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in base)[:MAX_NAME_CHARS] or "photo"


def fetch_nothing(demo: gr.Blocks) -> None:
    """Make every component refuse an address in place of a file; gradio would download it."""
    for block in demo.blocks.values():
        keep = block.async_move_resource_to_block_cache
        block.async_move_resource_to_block_cache = _refusing(keep)  # type: ignore[assignment,method-assign]


def _refusing(keep: MovesFile) -> MovesFile:
    async def move(path: str | Path | None) -> str | None:
        if path is not None and is_http_url_like(str(path)):
            raise gr.Error(
                "This server fetches nothing for visitors: send the file itself, not its address.",
                print_exception=False,
            )
        return await keep(path)

    return move


class Janitor(threading.Thread):
    """Deletes uploads after minutes, and knows how much the folder holds."""

    def __init__(self, folder: Path, *, keep_s: float = KEEP_UPLOADS_S, every_s: float = SWEEP_EVERY_S) -> None:
        super().__init__(name="janitor", daemon=True)
        self.folder, self.keep_s, self.every_s = folder, keep_s, every_s
        self.used_bytes = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        """Sweep until stopped."""
        while not self.stopped.wait(self.every_s):
            self.sweep()

    def sweep(self) -> None:
        """Delete what is older than `keep_s`, and count the rest."""
        oldest, used = time.time() - self.keep_s, 0
        for directory, _, names in os.walk(self.folder, topdown=False):
            for name in names:
                file = Path(directory) / name
                try:
                    about = file.lstat()
                    if about.st_mtime < oldest:
                        file.unlink()
                    else:
                        used += about.st_size
                except FileNotFoundError:
                    continue  # an upload that was just moved to its place
            if (
                Path(directory) != self.folder
                and Path(directory).stat().st_mtime < oldest
                and not os.listdir(directory)
            ):
                Path(directory).rmdir()
        self.used_bytes = used


class Guard:
    """ASGI middleware: bounds the rate and size of what comes in, and closes routes that the page does not use."""

    def __init__(self, app: ASGIApp, *, janitor: Janitor, requests_per_minute: int) -> None:
        self.app, self.janitor = app, janitor
        self.behind_proxy = "SPACE_ID" in os.environ  # set by the Hub, whose proxy stands before every Space
        self.per_second, self.burst = requests_per_minute / 60, float(requests_per_minute)
        self.budgets: dict[str, tuple[float, float]] = {}  # client → (requests left, when)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with a sentence."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        route = scope["path"].removeprefix("/gradio_api").lstrip("/")
        if route.startswith(CLOSED_ROUTES):
            return await PlainTextResponse("Not part of this page.", 404)(scope, receive, send)
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        is_upload = route.startswith("upload")
        limit = MAX_UPLOAD_BYTES if is_upload else MAX_MESSAGE_BYTES
        headers = dict(scope["headers"])
        length = int(headers.get(b"content-length", b"0"))
        client = (scope.get("client") or ("unknown", 0))[0]
        if self.behind_proxy:
            client = headers.get(b"x-forwarded-for", client.encode()).decode("latin-1").partition(",")[0].strip()
        refusal = None
        if not self.within_rate(client):
            refusal = PlainTextResponse("Too many requests; wait a minute.", 429, {"Retry-After": "60"})
        elif length > limit:
            refusal = PlainTextResponse(f"Too large: at most {limit // 10**6} MB at once.", 413)
        elif is_upload and self.janitor.used_bytes + length > MAX_FOLDER_BYTES:
            refusal = PlainTextResponse("The server holds too many uploads; try again in a few minutes.", 503)
        if refusal:
            return await refusal(scope, receive, send)
        if is_upload:
            self.janitor.used_bytes += length
        return await self.app(scope, bounded(receive, limit), send)

    def within_rate(self, client: str) -> bool:
        """Take one request from a client's budget, which refills evenly."""
        now = time.monotonic()
        if len(self.budgets) > 10_000:  # forget those whose budget has long been full again
            self.budgets = {name: entry for name, entry in self.budgets.items() if now - entry[1] < 60}
        left, when = self.budgets.get(client, (self.burst, now))
        left = min(self.burst, left + (now - when) * self.per_second)
        self.budgets[client] = (max(left - 1, 0.0), now)
        return left >= 1


def bounded(receive: Receive, limit: int) -> Receive:
    """Stop reading a body that turns out longer than its header said."""
    seen = 0

    async def read() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, f"Too large: at most {limit // 10**6} MB at once.")
        return message

    return read
