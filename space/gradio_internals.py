"""Every private part of gradio that the Space changes or reads. tests/space/test_gradio_internals.py has a test of each.

gradio would fetch addresses for visitors, copy each upload once more, forget file names, repeat what was sent in its error
messages, and keep answers that nobody fetches for as long as it runs.
"""

import os
from collections.abc import Callable
from typing import Any

# At every request gradio makes a table of the last 10,000, for a monitoring page that is off here.
os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}
# By default uvicorn trusts the X-Forwarded-For of local clients. The owner of a proxy sets its address here.
os.environ.setdefault("FORWARDED_ALLOW_IPS", "")

# isort: split
import gradio as gr
import uvicorn.config
from answers import Photo, QuestionError
from gradio.exceptions import InvalidPathError
from uploads import FAULT, TWO_STEPS, note_fault, received
from uvicorn.protocols.http.auto import AutoHTTPProtocol

REQUEST_WITHIN_S = 30  # until the head of a request is there


def photo_field(name: str, description: str, *, several: bool = False) -> gr.File:
    """Return an upload field whose value is a `Photo`, or a list of them.

    Methods are replaced on the object, since gradio writes a .pyi file into the source folder of every subclass.
    """
    field = gr.File(label=name, file_count="multiple" if several else "single")

    def preprocess(payload: Any) -> list[Photo] | Photo:  # of ListFiles, FileData or None
        try:
            if several:
                return [received(file.path, file.orig_name) for file in (payload.root if payload else [])]
            return received(payload and payload.path, payload and payload.orig_name)
        except QuestionError as error:
            raise gr.Error(str(error), print_exception=False) from error

    field.preprocess = preprocess  # type: ignore[assignment,method-assign]
    return described(field, description)


def value_field(name: str, value: str, description: str) -> gr.Textbox:
    """Return a field for a text, or for any JSON value in its place."""
    field = gr.Textbox(value, label=name)
    field.preprocess = lambda payload: payload  # type: ignore[method-assign]
    return described(field, description)


def described(field: Any, description: str) -> Any:
    """Give a field the description that `view_api` shows."""
    schema = {**field.api_info(), "additional_description": description}
    field.api_info = lambda: schema
    field.api_info_as_input = lambda: schema
    return field


def guard(demo: gr.Blocks) -> None:
    """Fetch and copy nothing for a visitor; hand errors back as sentences, without what was sent or where we are.

    Inputs that are left out are None.
    """

    async def take_as_it_is(path: Any) -> str | None:  # `received` judges it
        return None if path is None else str(path)

    for block in demo.blocks.values():
        block.async_move_resource_to_block_cache = take_as_it_is  # type: ignore[assignment,method-assign]
    process = demo.process_api

    async def in_sentences(block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        missing = [None] * (len(block_fn.inputs) - len(inputs))
        try:
            if len(inputs) > len(block_fn.inputs):
                raise gr.Error(f"This endpoint has {len(block_fn.inputs)} inputs, not {len(inputs)}.")
            return await process(block_fn, [*inputs, *missing], *arguments, **options)
        except gr.Error as error:
            sentence = str(error.message)
        except (InvalidPathError, OSError):  # the latter: a path that is too long
            sentence = TWO_STEPS
        except ValueError:  # pydantic's, about a file that is none
            sentence = "The request is not of the form that docs/api.md shows."
        except Exception as error:
            note_fault(error)
            sentence = FAULT
        raise gr.Error(sentence, print_exception=False) from None

    demo.process_api = in_sentences  # type: ignore[method-assign]


def has_answer(demo: gr.Blocks, request: str) -> bool:
    """True if a request is being answered, or its answer has not been fetched."""
    queue = demo._queue
    return request in queue.event_ids_to_events or any(
        request in requests for requests in queue.pending_event_ids_session.values()
    )


def forget_idle(demo: gr.Blocks, idle_before: set[str], waits: Callable[[str], bool]) -> set[str]:
    """Drop what gradio keeps of idle clients: their inputs, and answers that nobody fetches.

    Args:
        demo: A page that is being served. Call this in its event loop, which alone changes these tables.
        idle_before: Value of the last call; at first an empty set.
        waits: True for a session of which somebody waits for answers.

    Returns:
        The sessions that are idle; those that were so before, too, are forgotten.
    """
    queue, kept = demo._queue, demo.state_holder
    busy = {event.session_hash for event in queue.event_ids_to_events.values()}
    sessions = {*queue.pending_event_ids_session, *queue.pending_messages_per_session, *kept.session_data}
    idle = {session for session in sessions - busy if not waits(session)}
    tables = (
        queue.pending_event_ids_session, queue.pending_messages_per_session, kept.session_data, kept.time_last_used
    )  # fmt: skip
    for session in idle & idle_before:
        for table in tables:
            table.pop(session, None)
    return idle - idle_before


class TimedProtocol(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """uvicorn's HTTP connection, closed where the head of a request does not come."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(REQUEST_WITHIN_S, self.close_if_idle, None)

    def close_if_idle(self, last: Any) -> None:
        """Close the connection if it has had no other request since the last look; uvicorn ends idle ones after 5 s."""
        if self.cycle is last and (last is None or last.response_complete):
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(REQUEST_WITHIN_S, self.close_if_idle, self.cycle)


uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:TimedProtocol"
