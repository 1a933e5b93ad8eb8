"""Serve a page with all limits on, nothing phoned home and nothing kept."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any

import gradio as gr
import tempfolder
import uploads
from endpoints import MAX_WAITING
from mcp.server.fastmcp import FastMCP
from starlette.middleware import Middleware
from starlette.routing import Mount

from modeling.images import MAX_FILE_BYTES

HERE = Path(__file__).parent
MAX_SESSIONS = 16  # this page keeps no state, so one that is forgotten misses nothing; their answers hold pictures
KEEP_ANSWERS_S = 60  # that nobody fetches, and of a page that asks for nothing more

Asked = tuple[str, frozenset[str]]  # a client's session, and its requests whose answers have not been fetched


def launch(
    demo: gr.Blocks,
    *,
    tools: FastMCP | None = None,
    requests_per_minute: int = uploads.REQUESTS_PER_MINUTE,
    **options: Any,
) -> str:
    """Serve a page; return its address.

    Args:
        demo: Page of `build_demo` or `build_fault_page`.
        tools: The MCP server that stands beside it.
        requests_per_minute: Of one client.
        options: Further arguments of gradio's launch, such as prevent_thread_lock.
    """
    janitor = uploads.Janitor(tempfolder.upload_folder())
    guard = Middleware(uploads.Guard, janitor=janitor, requests_per_minute=requests_per_minute)
    mounted = [Mount("/gradio_api/mcp", tools.streamable_http_app())] if tools else []
    demo.queue(max_size=MAX_WAITING)
    _, address, _ = demo.launch(
        # gradio's own themes name fonts of a web service.
        theme=gr.themes.Default(
            primary_hue="sky",
            neutral_hue="slate",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css_paths=HERE / "style.css",
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        app_kwargs={"middleware": [guard], "lifespan": lifespan_of(tools, janitor), "routes": mounted},
        max_file_size=MAX_FILE_BYTES,
        state_session_capacity=MAX_SESSIONS,
        mcp_server=False,
        show_error=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        # gradio ends the process if its own page takes longer than 3 s on a busy machine; it has answered it before.
        _frontend=False,
        **options,
    )
    return address


def lifespan_of(tools: FastMCP | None, janitor: uploads.Janitor) -> Any:
    """Return what runs beside the server: the MCP tools, and the forgetting of uploads and of answers that nobody fetches."""

    @contextlib.asynccontextmanager
    async def lifespan(server: gr.routes.App) -> AsyncIterator[None]:
        async def keep_forgetting() -> None:
            seen: dict[Asked, float] = {}
            while True:
                await asyncio.sleep(uploads.SWEEP_EVERY_S)
                try:
                    await asyncio.to_thread(janitor.sweep)
                    seen = forget_answers(server.get_blocks(), seen, now_s=monotonic())
                    forget_sessions(server.get_blocks())
                except Exception as error:  # whatever it is, the next upload is deleted too
                    uploads.note_fault(error)

        async with tools.session_manager.run() if tools else contextlib.nullcontext():
            task = asyncio.create_task(keep_forgetting())
            try:
                yield
            finally:
                task.cancel()

    return lifespan


def forget_sessions(demo: gr.Blocks) -> None:
    """Drop what gradio remembers of a page that asks for nothing, open or closed, such as the last answer with its pictures."""
    holder = demo.state_holder
    for session, used in list(holder.time_last_used.items()):
        if (datetime.now() - used).total_seconds() >= KEEP_ANSWERS_S:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)


def forget_answers(demo: gr.Blocks, seen: dict[Asked, float], *, now_s: float) -> dict[Asked, float]:
    """Drop what gradio's queue keeps of clients whose requests are done, as it would while the server runs.

    Of each it keeps the session, and the answer too where nobody fetched it.

    Args:
        demo: A page that is being served; call this in its event loop, which alone changes the queue.
        seen: What the last call returned; at first {}.
        now_s: A clock that never goes back.

    Returns:
        Since when each idle client has been seen with the same unfetched answers, for the next call.
    """
    queue = demo._queue
    idle: dict[Asked, float] = {}
    for session, requests in list(queue.pending_event_ids_session.items()):
        if not requests.isdisjoint(queue.event_ids_to_events):
            continue  # waiting or being answered
        asked = (session, frozenset(requests))
        since = seen.get(asked, now_s)
        if now_s - since < KEEP_ANSWERS_S:
            idle[asked] = since
        else:
            del queue.pending_event_ids_session[session]
            queue.pending_messages_per_session.pop(session, None)
    return idle
