"""Serve the page, its API and the MCP tools, with all limits on, no telemetry and no stored data."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import gradio_internals
import uploads
from about import about, picture
from endpoints import blocks, endpoints
from errors import note_fault
from guard import API, MAX_MCP_BYTES, Guard
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
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
SWEEP_EVERY_S = 60


def launch(classifier: LesionClassifier, *, port: int) -> gr.Blocks:
    """Serve the page of a model and all that is beside it in a thread, and return what has the address, as `local_url`."""
    janitor, told = uploads.Janitor(), about(classifier)
    pictures = {entry["src"] for entry in (*told["figures"], *told["examples"])}  # the Hub is asked for no other
    functions = endpoints(classifier, Visitors())
    demo = blocks(functions)
    gradio_internals.guard(demo)
    manager = StreamableHTTPSessionManager(
        mcp_server(functions), json_response=True, stateless=True, max_request_body_size=MAX_MCP_BYTES
    )

    def of_model(request: Request) -> Response:
        name = "{folder}/{name}".format(**request.path_params)
        with contextlib.suppress(ModelFolderError):
            if f"page/{name}" in pictures and (path := picture(classifier, name)):
                return FileResponse(path)
        return JSONResponse({"error": "There is no such file."}, 404)

    async def keep_forgetting() -> None:
        idle: set[str] = set()
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            try:
                await asyncio.to_thread(janitor.sweep)
                idle = gradio_internals.forget_idle(demo, idle)
            except Exception as error:  # the next upload is deleted too
                note_fault(error)

    @contextlib.asynccontextmanager
    async def lifespan(server: Any) -> AsyncIterator[None]:
        async with manager.run():
            task = asyncio.create_task(keep_forgetting())
            yield
            task.cancel()

    routes = [
        Route("/", lambda request: FileResponse(PAGE / "server.html")),
        Route(f"{API}/upload", uploads.upload, methods=["POST"]),
        Route("/page/{folder}/{name}", of_model),
        Mount("/page", StaticFiles(directory=PAGE)),
        Mount(f"{API}/mcp", manager.handle_request),
    ]
    limits = Middleware(Guard, janitor=janitor, has_answer=functools.partial(gradio_internals.has_answer, demo))
    demo.queue(max_size=MAX_ALL).launch(
        app_kwargs={"middleware": [limits], "lifespan": lifespan, "routes": routes},
        server_port=port,
        max_threads=2 * MAX_ALL,  # waiting for a turn takes one
        state_session_capacity=MAX_SESSIONS,
        prevent_thread_lock=True,
        show_error=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        # Its check of the page ends the process if a busy machine takes longer than 3 s.
        _frontend=False,
    )
    return demo
