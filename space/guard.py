"""ASGI middleware: which routes there are, and how much, how fast and how often a visitor may send."""

import asyncio
import contextlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable

from errors import FAULT, note_fault
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uploads import MAX_FILES, Janitor

from modeling.images import MAX_FILE_BYTES

API = "/gradio_api"
# All that the page, gradio_client, curl and MCP clients use.
ROUTES = re.compile(
    rf"/|/page/.+|/config/?|{API}/(startup-events|info/?|upload/?|mcp/?|queue/(join|data)|cancel|reset|heartbeat/\w+|"
    r"file=/.+|call/(classify|explain|batch|page_about|page_answer)(/\w*)?)"
)
ANSWER_ROUTE = re.compile(rf"{API}/call/\w+/(\w+)")
MAX_UPLOAD_BYTES = 3 * MAX_FILE_BYTES  # all files of one request together
MAX_MCP_BYTES = 40_000_000
MAX_MESSAGE_BYTES = 200_000  # of any other request, and of an MCP request beside its photos
MAX_FOLDER_BYTES = 4 * 10**9  # all uploads together
MAX_HELD_BYTES = 10**9  # all other requests together, which are in memory
PHOTO_TEXT, FILE = re.compile(rb'"[\w+/=:;,.\\-]{300,}"'), re.compile(rb'"path"\s*:')
REQUESTS_PER_MINUTE = 600
PAUSE_S, REQUEST_S = 30, 600  # between two parts of a request, and for all of it
HEADERS = {"X-Content-Type-Options": "nosniff"}


class RefusedError(Exception):
    """A request that is not passed on; its arguments are the status and the sentence that the visitor gets."""


class Guard:
    """Passes on the requests that the server can answer, and refuses others with a sentence."""

    def __init__(self, app: ASGIApp, *, janitor: Janitor, has_answer: Callable[[str], bool]) -> None:
        self.app, self.janitor, self.has_answer = app, janitor, has_answer
        self.minute, self.requests = 0.0, Counter[str]()  # of this minute, by address
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        begun, status, sentence = False, 500, FAULT

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                if message["status"] == 422:  # the library's own answer would repeat what was sent
                    raise RefusedError(400, "The request is not of the form that docs/api.md shows.")
                begun = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            return await self.app(scope, await self.checked(scope, receive), send_guarded)
        except RefusedError as error:
            status, sentence = error.args
        except ClientDisconnect:
            return None
        except Exception as error:  # its message may hold the whole request, and the server would log it
            note_fault(error)
        finally:
            self.held_bytes -= scope.get("held_bytes", 0)
        if not begun:
            wait = {"Retry-After": "60"} if status == 429 else {}
            await JSONResponse({"error": sentence}, status, {**HEADERS, **wait})(scope, receive, send)

    async def checked(self, scope: Scope, receive: Receive) -> Receive:
        """Return what passes on the body of a request that may be answered."""
        path = scope["path"]
        if not ROUTES.fullmatch(path):
            raise RefusedError(404, "There is no such page or endpoint here; docs/api.md lists the endpoints.")
        if (found := ANSWER_ROUTE.fullmatch(path)) and not self.has_answer(found[1]):
            raise RefusedError(404, "There is no such request, or its answer has been fetched.")
        if scope["method"] != "POST":
            return receive
        if not self.within_rate(scope["client"][0]):
            raise RefusedError(429, "Too many requests; wait a minute.")
        is_upload, is_mcp = path.startswith(f"{API}/upload"), path.startswith(f"{API}/mcp")
        limit = MAX_UPLOAD_BYTES if is_upload else MAX_MCP_BYTES if is_mcp else MAX_MESSAGE_BYTES
        seen, deadline = 0, time.monotonic() + REQUEST_S

        async def read() -> Message:
            """Count what really arrives, whatever the header said."""
            nonlocal seen
            try:
                message = await asyncio.wait_for(receive(), min(PAUSE_S, deadline - time.monotonic()))
            except TimeoutError:
                raise RefusedError(408, "The request came too slowly; send it again.") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            seen += (size := len(message.get("body", b"")))
            if seen > limit:
                raise RefusedError(413, f"Too large: at most {limit / 10**6:g} MB in one request.")
            if is_upload:
                self.janitor.used_bytes += size
            else:
                self.held_bytes, scope["held_bytes"] = self.held_bytes + size, seen
            if self.janitor.used_bytes > MAX_FOLDER_BYTES if is_upload else self.held_bytes > MAX_HELD_BYTES:
                raise RefusedError(503, "The server holds too many uploads; try again in a few minutes.")
            return message

        if is_upload:
            return read
        body = await Request(scope, read).body()
        check_json(PHOTO_TEXT.sub(b'""', body) if is_mcp else body)
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def within_rate(self, address: str) -> bool:
        """Count a request; False if the address has sent too many in this minute."""
        if (minute := time.monotonic() // 60) != self.minute:
            self.minute, self.requests = minute, Counter()
        self.requests[address] += 1
        return self.requests[address] <= REQUESTS_PER_MINUTE


def check_json(body: bytes) -> None:
    """Raise a RefusedError unless a body, without its photos, is a JSON object that costs little to take apart."""
    if len(body) > MAX_MESSAGE_BYTES or len(FILE.findall(body)) > MAX_FILES:
        raise RefusedError(413, f"Too large: at most {MAX_FILES} files in one request, each in a string of its own.")
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(json.loads(body), dict):
            return
    raise RefusedError(400, "The request is not a JSON object; docs/api.md shows its form.")
