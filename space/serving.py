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
DEFAULT_PORT = 7860
mimetypes.add_type("text/javascript", ".js")  # whatever the host's own list says


def launch(
    demo: gr.Blocks,
    get: GetClassifier,
    visitors: Visitors,
    *,
    port: int | None = None,
    requests_per_minute: int = REQUESTS_PER_MINUTE,
) -> str:
    """Serve in a thread, and return the address.

    Args:
        demo: Blocks of `build_demo`.
        get: Returns the model.
        visitors: As given to `build_demo`.
        port: Of this machine; a free one by default.
        requests_per_minute: Of one visitor.
    """
    janitor = uploads.Janitor(tempfolder.upload_folder())
    # The protection is for servers of one user's machine against other web pages; this page is public and has no secret.
    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    manager = StreamableHTTPSessionManager(
        mcp_server(get, visitors),
        json_response=True,
        stateless=True,
        security_settings=security,
        max_request_body_size=MAX_MCP_BYTES,
    )
    limits: dict[str, Any] = {"janitor": janitor, "visitors": visitors, "requests_per_minute": requests_per_minute}
    demo.queue(max_size=MAX_ALL)
    _, address, _ = demo.launch(
        app_kwargs={
            "middleware": [Middleware(Guard, has_answer=lambda request: has_answer(demo, request), **limits)],
            "lifespan": lifespan_of(manager, janitor, visitors),
            "routes": routes(get, manager),
        },
        server_port=port or free_port(),
        max_threads=MAX_ALL,
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


def routes(get: GetClassifier, manager: StreamableHTTPSessionManager) -> list[Route | Mount]:
    """Return the routes that come before gradio's own."""

    def file_of_model(find: Callable[[LesionClassifier, str], Path | None]) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            try:
                path = find(get(), request.path_params["name"])
            except ModelFolderError as error:
                return JSONResponse({"error": str(error)}, 503)
            return FileResponse(path) if path else JSONResponse({"error": "There is no such file."}, 404)

        return answer

    return [
        Route("/", lambda request: FileResponse(PAGE / "server.html")),
        Route(f"{API}/upload", uploads.upload, methods=["POST"]),
        Route("/page/figures/{name}", file_of_model(figure_path)),
        Route("/page/examples/{name}", file_of_model(example_path)),
        Mount("/page", StaticFiles(directory=PAGE)),
        Mount(f"{API}/mcp", manager.handle_request),
    ]


def lifespan_of(manager: StreamableHTTPSessionManager, janitor: uploads.Janitor, visitors: Visitors) -> Any:
    """Return what runs beside the server: the MCP tools, and the deletion of uploads and of answers that nobody fetches."""

    @contextlib.asynccontextmanager
    async def lifespan(server: gr.routes.App) -> AsyncIterator[None]:
        async def keep_forgetting() -> None:
            idle: set[str] = set()
            while True:
                await asyncio.sleep(SWEEP_EVERY_S)
                try:
                    await asyncio.to_thread(janitor.sweep)
                    idle = forget_idle(server.get_blocks(), idle, visitors.waits)
                except Exception as error:  # the next upload is deleted too
                    uploads.note_fault(error)

        async with manager.run():
            task = asyncio.create_task(keep_forgetting())
            try:
                yield
            finally:
                task.cancel()

    return lifespan


def port_of(text: str | None) -> int:
    """Return the port that an option or GRADIO_SERVER_PORT names, if a server can listen there.

    Raises:
        ValueError: In words.
    """
    given = text or os.environ.get("GRADIO_SERVER_PORT") or str(DEFAULT_PORT)
    if not (given.isdecimal() and 0 < int(given) < 2**16):
        raise ValueError(f"a port is a number from 1 to 65535, not {given[:40]!r}.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", int(given)))
        except OSError as error:
            raise ValueError(f"port {given} cannot be used ({error.strerror}); give another with --port.") from error
    return int(given)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
