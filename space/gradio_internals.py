"""Every private part of gradio that the Space changes or reads. tests/space/test_gradio_internals.py has a test of each.

gradio would repeat what was sent in its error messages, and keep answers that nobody fetches for as long as it runs.
"""

import os
from typing import Any

import gradio as gr
import uvicorn.config
from endpoints import Sent
from errors import in_sentences
from uvicorn.protocols.http.auto import AutoHTTPProtocol

# At every request gradio makes a table of the last 10,000, for a monitoring page that is off here.
os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}
# Whose X-Forwarded-For is believed. On the Hub every Space is behind proxies in private networks; elsewhere the owner of a
# proxy sets its address here, since uvicorn would believe all local clients.
PROXIES = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,127.0.0.0/8" if "SPACE_ID" in os.environ else ""
os.environ.setdefault("FORWARDED_ALLOW_IPS", PROXIES)
REQUEST_WITHIN_S = 30  # until the head of a request is there


def guard(demo: gr.Blocks) -> None:
    """Pass inputs on unchanged, those left out as None; replace errors by sentences without request data or paths."""
    process = demo.process_api

    async def guarded(block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        given = [*inputs, *[None] * (len(block_fn.inputs) - len(inputs))]
        with in_sentences(lambda sentence: gr.Error(sentence, print_exception=False)):
            return await process(block_fn, [Sent(value) for value in given], *arguments, **options)

    demo.process_api = guarded  # type: ignore[method-assign]


def has_answer(demo: gr.Blocks, ticket: str) -> bool:
    """Return whether gradio holds or is computing this answer, not yet fetched; for any other it would wait forever."""
    return any(ticket in tickets for tickets in demo._queue.pending_event_ids_session.values())


def forget_idle(demo: gr.Blocks, idle_before: set[str]) -> set[str]:
    """Drop inputs and unfetched answers of the sessions that were idle at the last call too; return those idle now.

    Call this in the event loop of a page that is being served, which alone changes these tables.
    """
    queue, kept = demo._queue, demo.state_holder
    tables: list[Any] = [queue.pending_event_ids_session, queue.pending_messages_per_session]
    tables += [kept.session_data, kept.time_last_used]
    busy = {event.session_hash for event in queue.event_ids_to_events.values()}
    idle = {session for table in tables for session in table} - busy
    for session in idle & idle_before:
        for table in tables:
            table.pop(session, None)
    for block in demo.blocks.values():
        block.temp_files.clear()  # paths of overlays; `uploads.Janitor` deletes the files
    return idle - idle_before


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """uvicorn's HTTP connection, closed where the head of a request does not come."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(REQUEST_WITHIN_S, self.close_if_idle, None)

    def close_if_idle(self, last: Any) -> None:
        """Close the connection if it has had no other request since the last look."""
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(REQUEST_WITHIN_S, self.close_if_idle, self.cycle)


uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:TimedProtocol"
