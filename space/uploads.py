"""What visitors send: kept in one private folder for minutes, bounded in size and rate, and never fetched for them."""

import contextlib
import os
import secrets
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tempfolder

# isort: split
import gradio as gr
from answers import EXPIRED, Photo, QuestionError
from gradio import route_utils
from gradio.exceptions import InvalidPathError
from gradio_client.utils import is_http_url_like
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modeling.images import MAX_FILE_BYTES

KEEP_UPLOADS_S = 300  # long enough for a full queue
SWEEP_EVERY_S = 20
MAX_FOLDER_BYTES = 4 * 10**9
MAX_UPLOAD_BYTES = 3 * MAX_FILE_BYTES  # all files of one upload together
MAX_MESSAGE_BYTES = 40_000_000  # any other message; a photo inside a tool call is the largest
REQUESTS_PER_MINUTE = 600
MAX_NAME_CHARS = 120
MAX_PATH_CHARS = 4096
FETCHES_NOTHING = "This server fetches nothing for visitors: send the file itself, not its address."
FULL = "The server holds too many uploads; try again in a few minutes."
FAULT = "Something went wrong on this server, which is not your doing. Try again; if it stays, tell who runs this page."

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


def received(path: object, name: object) -> Photo:
    """Return a file that was sent by `/upload` as a photo with the visitor's own file name.

    Raises:
        QuestionError: If there is no such upload.
    """
    if not isinstance(path, str):
        raise QuestionError("No photo came; upload an image file and send its path.")
    shown = shown_name(name if isinstance(name, str) and name else path)
    if is_http_url_like(path):
        raise QuestionError(FETCHES_NOTHING)
    folder = tempfolder.upload_folder().resolve()
    # Longer than any path: a photo that was sent in place of its path must not reach a message.
    if len(path) > MAX_PATH_CHARS or "\0" in path or not (real := Path(path).resolve()).is_relative_to(folder):
        raise QuestionError(
            "A photo is sent in two steps: POST the file to /upload, then send the path that it answers."
        )
    if not real.is_file():
        raise QuestionError(f"{shown} {EXPIRED}")
    return Photo(str(real), shown)


def photo_field(**options: Any) -> gr.File:
    """Return an upload field whose value is a `Photo`, or a list of them with file_count="multiple".

    gradio's own preprocessing forgets the visitor's file name and leaves an empty file behind at each request. The
    method is replaced on the object, since gradio writes a .pyi file into the source folder of every subclass.
    """
    field = gr.File(**options)
    several = field.file_count == "multiple"

    def preprocess(payload: Any) -> list[Photo] | Photo:  # of ListFiles, FileData or None
        try:
            if several:
                return [received(file.path, file.orig_name) for file in (payload.root if payload else [])]
            return received(payload and payload.path, payload and payload.orig_name)
        except QuestionError as error:
            raise gr.Error(str(error), print_exception=False) from error

    field.preprocess = preprocess  # type: ignore[assignment,method-assign]
    return field


def shown_name(name: str) -> str:
    """Return a visitor's file name without folders, control characters and excess length."""
    base = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in base)[:MAX_NAME_CHARS] or "photo"


def private_file(name: str) -> Path:
    """Return a place for a file that the server hands out, in a folder that nobody can guess."""
    folder = tempfolder.upload_folder() / secrets.token_hex(16)
    folder.mkdir()
    return folder / name


class RandomFolder:
    """Stands in for the hash that gradio names an upload's folder by, which whoever has the same photo could guess."""

    def update(self, data: bytes) -> None:
        """Take no notice of what the file holds."""

    def hexdigest(self) -> str:
        return secrets.token_hex(16)


class PrivateUpload(route_utils.GradioUploadFile):
    """An upload in a folder of its own."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.sha = RandomFolder()  # type: ignore[assignment]


route_utils.GradioUploadFile = PrivateUpload  # type: ignore[misc]


def guard_requests(demo: gr.Blocks) -> None:
    """Fetch and copy nothing for a visitor, and hand errors back as sentences without what was sent or where we are."""
    for block in demo.blocks.values():
        block.async_move_resource_to_block_cache = _take_as_it_is  # type: ignore[assignment,method-assign]
    process = demo.process_api

    async def in_sentences(*arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return await process(*arguments, **options)
        except gr.Error:
            raise
        except InvalidPathError:
            sentence = f"This file {EXPIRED} (A file is sent to /upload first.)"
        except ValidationError:
            sentence = "The request is not of the form that the tab API shows."
        except Exception as error:
            note_fault(error)
            sentence = FAULT
        raise gr.Error(sentence, print_exception=False) from None

    demo.process_api = in_sentences  # type: ignore[method-assign]


async def _take_as_it_is(path: str | Path | None) -> str | None:
    if path is not None and is_http_url_like(str(path)):
        raise gr.Error(FETCHES_NOTHING, print_exception=False)
    return None if path is None else str(path)


def note_fault(error: BaseException) -> None:
    """Log where one of our own faults happened; its message may hold what a visitor sent, so it is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-4:]))
    print(f"fault: {type(error).__name__} at {where}", file=sys.stderr)


@dataclass
class Janitor:
    """Deletes uploads after minutes, and knows how much the folder holds."""

    folder: Path
    used_bytes: int = 0

    def sweep(self) -> None:
        """Delete what is older than `KEEP_UPLOADS_S`, and count the rest."""
        oldest, used = time.time() - KEEP_UPLOADS_S, 0
        for directory, _, names in os.walk(self.folder, topdown=False):
            for file in (Path(directory) / name for name in names):
                with contextlib.suppress(FileNotFoundError):  # an upload that was just moved to its place
                    about = file.lstat()
                    if about.st_mtime < oldest:
                        file.unlink()
                    else:
                        used += about.st_size
            if Path(directory) != self.folder:
                with contextlib.suppress(OSError):  # it is not empty
                    if os.path.getmtime(directory) < oldest:
                        os.rmdir(directory)
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
        is_upload = route.startswith("upload")
        limit = MAX_UPLOAD_BYTES if is_upload else MAX_MESSAGE_BYTES
        refusal = self.refusal(scope, route, limit, is_upload=is_upload)
        if refusal:
            return await refusal(scope, receive, send)
        begun = False

        async def tell(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, self.bounded(receive, limit, is_upload=is_upload), tell)
        except Exception as error:  # its message may hold the whole request, and the server would log it
            note_fault(error)
            if not begun:
                await PlainTextResponse(FAULT, 500)(scope, receive, send)

    def refusal(self, scope: Scope, route: str, limit: int, *, is_upload: bool) -> PlainTextResponse | None:
        """Return why a request is not answered, if so."""
        if route.startswith(CLOSED_ROUTES):
            return PlainTextResponse("Not part of this page.", 404)
        if scope["method"] != "POST":
            return None
        headers = dict(scope["headers"])
        length = int(headers.get(b"content-length", b"0"))
        client = (scope.get("client") or ("unknown", 0))[0]
        if self.behind_proxy:
            client = headers.get(b"x-forwarded-for", client.encode()).decode("latin-1").partition(",")[0].strip()
        if not self.within_rate(client):
            return PlainTextResponse("Too many requests; wait a minute.", 429, {"Retry-After": "60"})
        if length > limit:
            return PlainTextResponse(too_large(limit), 413)
        if is_upload and self.janitor.used_bytes + length > MAX_FOLDER_BYTES:
            return PlainTextResponse(FULL, 503)
        return None

    def bounded(self, receive: Receive, limit: int, *, is_upload: bool) -> Receive:
        """Count what really arrives, whatever its header said, and stop reading what is too much."""
        seen = 0

        async def read() -> Message:
            nonlocal seen
            message = await receive()
            size = len(message.get("body", b""))
            seen += size
            if seen > limit:
                raise HTTPException(413, too_large(limit))
            if is_upload:
                self.janitor.used_bytes += size
                if self.janitor.used_bytes > MAX_FOLDER_BYTES:
                    raise HTTPException(503, FULL)
            return message

        return read

    def within_rate(self, client: str) -> bool:
        """Take one request from a client's budget, which refills evenly."""
        now = time.monotonic()
        if len(self.budgets) > 10_000:  # forget those whose budget has long been full again
            self.budgets = {name: entry for name, entry in self.budgets.items() if now - entry[1] < 60}
        left, when = self.budgets.get(client, (self.burst, now))
        left = min(self.burst, left + (now - when) * self.per_second)
        self.budgets[client] = (max(left - 1, 0.0), now)
        return left >= 1


def too_large(limit: int) -> str:
    return f"Too large: at most {limit // 10**6} MB at once."
