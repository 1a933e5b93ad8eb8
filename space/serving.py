"""Serve the page, its API and the MCP tools, with all limits on, no telemetry and no stored data."""

import asyncio
import contextlib
import mimetypes
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import gradio as gr
import tempfolder
import uploads
from about import example_path, figure_path
from endpoints import GetClassifier
from gradio_internals import forget_idle, has_answer
from guard import API, MAX_MCP_BYTES, REQUESTS_PER_MINUTE, Guard
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_tools import mcp_server
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from visitors import MAX_ALL, Visitors

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError

PAGE = Path(__file__).with_name("page")
MAX_SESSIONS = 16  # the server keeps no state, so a client that is forgotten misses nothing
SWEEP_EVERY_S = 30
mimetypes.add_type("text/javascript", ".js")  # whatever the host's own list says


def launch(
    demo: gr.Blocks,
    get: GetClassifier,
    visitors: Visitors,
    *,
    port: int,
    requests_per_minute: int = REQUESTS_PER_MINUTE,
) -> str:
    """Serve the Blocks of `build_demo` and all that is beside them in a thread, and return the address."""
    janitor = uploads.Janitor(tempfolder.upload_folder())
    guard = Middleware(
        Guard,
        janitor=janitor,
        visitors=visitors,
        has_answer=lambda request: has_answer(demo, request),
        n_functions=len(demo.fns),
        requests_per_minute=requests_per_minute,
    )
    manager = StreamableHTTPSessionManager(
        mcp_server(get, visitors),
        json_response=True,
        stateless=True,
        # It protects servers of one user's machine from other web pages; this page is public and has no secret.
        security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        max_request_body_size=MAX_MCP_BYTES,
    )

    def of_model(find: Callable[[LesionClassifier, str], Path | None]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            with contextlib.suppress(ModelFolderError):
                if path := find(get(), request.path_params["name"]):
                    return FileResponse(path)
            return JSONResponse({"error": "There is no such file."}, 404)

        return answer

    async def keep_forgetting() -> None:
        idle: set[str] = set()
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                await asyncio.to_thread(janitor.sweep)
                idle = forget_idle(demo, idle, visitors.waits)
            except Exception as error:  # the next upload is deleted too
                uploads.note_fault(error)

    @contextlib.asynccontextmanager
    async def lifespan(server: Any) -> AsyncIterator[None]:
        async with manager.run():
            task = asyncio.create_task(keep_forgetting())
            yield
            task.cancel()

    routes = [
        Route("/", lambda request: FileResponse(PAGE / "server.html")),
        Route(f"{API}/upload", uploads.upload, methods=["POST"]),
        Route("/page/figures/{name}", of_model(figure_path)),
        Route("/page/examples/{name}", of_model(example_path)),
        Mount("/page", StaticFiles(directory=PAGE)),
        Mount(f"{API}/mcp", manager.handle_request),
    ]
    demo.queue(max_size=MAX_ALL)
    _, address, _ = demo.launch(
        app_kwargs={"middleware": [guard], "lifespan": lifespan, "routes": routes},
        server_port=port,
        max_threads=2 * MAX_ALL,  # waiting for a turn takes one
        state_session_capacity=MAX_SESSIONS,
        prevent_thread_lock=True,
        show_error=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        # Its check of the page ends the process if a busy machine takes longer than 3 s.
        _frontend=False,
    )
    return address.rstrip("/")


def port_of(text: str | None) -> int:
    """Return the port that an option, GRADIO_SERVER_PORT or our default names; a ValueError says why it cannot be used."""
    given = os.environ.get("GRADIO_SERVER_PORT", "7860") if text is None else text
    if not (given.isdecimal() and 0 < int(given) < 2**16):
        raise ValueError(f"a port is a number from 1 to 65535, not {given[:40]!r}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(given)))
        except OSError as error:
            raise ValueError(f"port {given} cannot be used ({error.strerror}); give another with --port.") from error
    return int(given)
