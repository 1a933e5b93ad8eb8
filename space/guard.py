"""ASGI middleware: which routes there are, and how much, how fast and how often a visitor may send."""

import asyncio
import contextlib
import ipaddress
import json
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from batches import MAX_IMAGES
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uploads import FAULT, Janitor, note_fault
from visitors import Visitors

from modeling.images import MAX_FILE_BYTES

API = "/gradio_api"
# All that the page, gradio_client, curl and MCP clients use.
ROUTES = re.compile(
    rf"/|/page/.+|/config/?|{API}/(startup-events|info/?|upload/?|mcp/?|queue/(join|data)|cancel|reset|heartbeat/\w+|"
    r"file=/.+|call/(classify|explain|batch|page_about|page_answer)(/\w*)?)"
)
ANSWER_ROUTE, SESSION = re.compile(rf"{API}/call/\w+/(\w+)"), re.compile(rb"session_hash=(\w+)")
MAX_UPLOAD_BYTES = 3 * MAX_FILE_BYTES  # all files of one request together
MAX_MCP_BYTES = 40_000_000
MAX_MESSAGE_BYTES = 200_000  # of any other request, and of an MCP request beside its photos
MAX_FOLDER_BYTES = 4 * 10**9
PHOTO_TEXT, FILE = re.compile(rb'"[\w+/=:;,.\\-]{300,}"'), re.compile(rb'"path"\s*:')
REQUESTS_PER_MINUTE = 600
NO_SUCH_PLACE = "There is no such page or endpoint here; docs/api.md lists the endpoints."
PAUSE_S, REQUEST_S = 30, 600  # between two parts of a request, and for all of it
HEADERS = {"X-Content-Type-Options": "nosniff"}
PAGE_HEADERS = {
    **HEADERS,
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'",
}


class RefusedError(Exception):
    """A request that is not passed on, with the status and the sentence that the visitor gets."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """Passes on the requests that the server can answer, and refuses others with a sentence."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        janitor: Janitor,
        visitors: Visitors,
        has_answer: Callable[[str], bool] = lambda request: True,
        n_functions: int = 1,
        requests_per_minute: int = REQUESTS_PER_MINUTE,
    ) -> None:
        self.app, self.janitor, self.visitors = app, janitor, visitors
        self.has_answer, self.n_functions = has_answer, n_functions  # of gradio's queue
        self.behind_proxy = "SPACE_ID" in os.environ  # set by the Hub, whose proxy is before every Space
        self.per_second, self.burst = requests_per_minute / 60, float(requests_per_minute)
        self.budgets: dict[str, tuple[float, float]] = {}  # address → (requests left, when)
        self.fetched = deque[str](maxlen=1000)  # requests whose answer was sent, which gradio forgets a little later

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        path, begun, refusal = scope["path"], False, RefusedError(500, FAULT)

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                if message["status"] == 422:  # the library's own answer would repeat what was sent
                    raise RefusedError(400, "The request is not of the form that docs/api.md shows.")
                begun = True
                MutableHeaders(scope=message).update(
                    PAGE_HEADERS if path == "/" or path.startswith("/page/") else HEADERS
                )
            await send(message)

        try:
            scope["client"] = (self.address_of(scope), 0)
            return await self.pass_on(scope, await self.checked(scope, receive), send_guarded, connection=receive)
        except RefusedError as error:
            refusal = error
        except ClientDisconnect:
            return None
        except Exception as error:  # its message may hold the whole request, and the server would log it
            note_fault(error)
        if not begun:
            wait = {"Retry-After": "60"} if refusal.status == 429 else {}
            answer = JSONResponse({"error": refusal.sentence}, refusal.status, {**HEADERS, **wait})
            await answer(scope, receive, send)

    def address_of(self, scope: Scope) -> str:
        """Return the visitor's address. On the Hub: the last public one of X-Forwarded-For, which the proxy wrote."""
        if self.behind_proxy:
            for entry in reversed(Headers(scope=scope).get("x-forwarded-for", "").split(",")):
                with contextlib.suppress(ValueError):
                    if ipaddress.ip_address(entry.strip()).is_global:
                        return entry.strip()
        return str((scope.get("client") or ("unknown",))[0])

    async def pass_on(self, scope: Scope, receive: Receive, send: Send, *, connection: Receive) -> None:
        """Let the app answer; while the connection is open, somebody waits for the answer."""
        found, query = ANSWER_ROUTE.fullmatch(scope["path"]), SESSION.search(scope["query_string"])
        if found and (found[1] in self.fetched or not self.has_answer(found[1])):
            raise RefusedError(404, "There is no such request, or its answer has been fetched.")

        async def send_answer(message: Message) -> None:
            if found and message.get("body", b"").startswith((b"event: complete", b"event: error")):
                self.fetched.append(found[1])
            await send(message)

        session = found[1] if found else query[1].decode() if query else secrets.token_hex(8)
        scope["session"] = {"id": session}  # for the MCP tools
        with contextlib.ExitStack() as while_open:
            while_open.enter_context(self.visitors.listening(session))

            async def watch() -> None:
                while (await connection())["type"] != "http.disconnect":
                    pass
                while_open.close()

            is_call = scope["path"].startswith(f"{API}/mcp") and scope["method"] == "POST"  # its server does not watch
            watching = asyncio.create_task(watch()) if is_call else None
            try:
                await self.app(scope, receive, send_answer)
            finally:
                if watching:
                    watching.cancel()

    async def checked(self, scope: Scope, receive: Receive) -> Receive:
        """Return what passes on the body of a request that may be answered."""
        path = scope["path"]
        if not ROUTES.fullmatch(path):
            raise RefusedError(404, NO_SUCH_PLACE)
        if scope["method"] != "POST":
            return receive
        if not self.within_rate(scope["client"][0]):
            raise RefusedError(429, "Too many requests; wait a minute.")
        is_upload, is_mcp = path.startswith(f"{API}/upload"), path.startswith(f"{API}/mcp")
        limit = MAX_UPLOAD_BYTES if is_upload else MAX_MCP_BYTES if is_mcp else MAX_MESSAGE_BYTES
        seen, deadline = 0, time.monotonic() + REQUEST_S

        def check(size: int, stored: int) -> None:
            if size > limit:
                raise RefusedError(413, f"Too large: at most {limit / 10**6:g} MB in one request.")
            if is_upload and stored > MAX_FOLDER_BYTES:
                raise RefusedError(503, "The server holds too many uploads; try again in a few minutes.")

        async def read() -> Message:
            """Count what really arrives, whatever the header said."""
            nonlocal seen
            try:
                message = await asyncio.wait_for(receive(), min(PAUSE_S, deadline - time.monotonic()))
            except TimeoutError:
                raise RefusedError(408, "The request came too slowly; send it again.") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            seen += len(message.get("body", b""))
            if is_upload:
                self.janitor.used_bytes += len(message.get("body", b""))
            check(seen, self.janitor.used_bytes)
            return message

        announced = Headers(scope=scope).get("content-length", "0")
        check(int(announced), self.janitor.used_bytes + int(announced))
        if is_upload:
            return read
        body, more = bytearray(), True
        while more:
            message = await read()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        number = checked_json(bytes(body), is_mcp=is_mcp).get("fn_index", 0)
        if not isinstance(number, int) or not 0 <= number < self.n_functions:
            raise RefusedError(404, NO_SUCH_PLACE)
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Message:
            return whole.pop() if whole else await receive()

        return again

    def within_rate(self, address: str) -> bool:
        """Take one request from the budget of an address, which refills evenly."""
        now = time.monotonic()
        if len(self.budgets) > 10_000:  # forget those whose budget has long been full again
            self.budgets = {name: entry for name, entry in self.budgets.items() if now - entry[1] < 60}
        left, when = self.budgets.get(address, (self.burst, now))
        left = min(self.burst, left + (now - when) * self.per_second)
        self.budgets[address] = (max(left - 1, 0.0), now)
        return left >= 1


def checked_json(body: bytes, *, is_mcp: bool) -> dict[str, Any]:
    """Return a body without its photos; raise a RefusedError unless it is a JSON object that costs little to take apart."""
    bare = PHOTO_TEXT.sub(b'""', body) if is_mcp else body
    if len(bare) > MAX_MESSAGE_BYTES or len(FILE.findall(bare)) > MAX_IMAGES:
        raise RefusedError(413, f"Too large: at most {MAX_IMAGES} files in one request, each in a string of its own.")
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(content := json.loads(bare), dict):
            return content
    raise RefusedError(400, "The request is not a JSON object; docs/api.md shows its form.")
