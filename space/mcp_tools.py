"""The model for assistants: the tools classify, explain and batch of an MCP server.

The server is the `mcp` package's own: gradio's returns Python's notation, drops images, and knows no list of files.
"""

import base64
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
from endpoints import DESCRIPTIONS, DIAGNOSIS, FORMATS, PRIORS, Sent
from errors import QuestionError, in_sentences
from mcp.server.lowlevel import Server
from mcp.types import CallToolResult, ImageContent, TextContent, Tool, ToolAnnotations
from visitors import MAX_ALL

from modeling import __version__
from modeling.labels import NOTICE

INPUTS = {
    "photo": {
        "type": "string",
        "description": f"The photo ({FORMATS}; at most 29 MB, 51 megapixels) as 'data:image/jpeg;base64,…', or the path that "
        "POST /gradio_api/upload returned for its file (at most 100 MB). Web addresses are not fetched.",
    },
    "photos": {
        "type": "array",
        "items": {"type": ["string", "object"]},
        "description": "Each photo as for classify, or {'name': …, 'photo': …} to name its row. At most 40 MB in one request.",
    },
    "diagnosis": {"type": "string", "description": DIAGNOSIS},
    "priors": {"anyOf": [{"type": "string"}, {"type": "object"}], "description": PRIORS},
}
TOOLS = {
    name: Tool(
        name=name,
        description=DESCRIPTIONS[name],
        inputSchema={"type": "object", "properties": {key: INPUTS[key] for key in inputs}, "required": inputs[:1]},
        annotations=ToolAnnotations(readOnlyHint=True, openWorldHint=False),
    )
    for name, *inputs in (
        ("classify", "photo", "priors"),
        ("explain", "photo", "diagnosis", "priors"),
        ("batch", "photos", "priors"),
    )
}


def mcp_server(functions: dict[str, Callable[..., Any]]) -> Server[Any, Any]:
    """Return a server with the three tools; each returns JSON as text and as structured content, explain an image too."""
    # The library's messages repeat what a visitor sent; some of them go to the root logger.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(lambda record: False)
    server: Server[Any, Any] = Server("skin-lesion", version=__version__, instructions=NOTICE)
    limiter = anyio.CapacityLimiter(MAX_ALL)  # `Visitors` decides who is next

    @server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]
    async def list_tools() -> list[Tool]:
        return list(TOOLS.values())

    @server.call_tool(validate_input=False)  # type: ignore[untyped-decorator]  # its messages repeat what was sent
    async def call_tool(name: str, arguments: dict[str, Any]) -> CallToolResult:
        request = server.request_context.request

        def answer() -> CallToolResult:
            with in_sentences(QuestionError):
                if name not in TOOLS:
                    raise QuestionError(f"There is no such tool; there are {', '.join(TOOLS)}.")
                inputs = TOOLS[name].inputSchema["properties"]
                return result(functions[name](request, **{key: Sent(arguments.get(key)) for key in inputs}))

        return await anyio.to_thread.run_sync(answer, limiter=limiter)

    return server


def result(answered: Any) -> CallToolResult:
    """Return an answer as JSON text and as structured content, with the picture that belongs to it."""
    pictures = []
    if isinstance(answered, tuple):  # of explain
        answered, overlay = answered
        data = base64.b64encode(Path(overlay["path"]).read_bytes()).decode("ascii")
        pictures = [ImageContent(type="image", data=data, mimeType="image/jpeg")]
    elif not isinstance(answered, dict):  # batch, whose last step is the table
        *_, answered = answered
    text = TextContent(type="text", text=json.dumps(answered, ensure_ascii=False, allow_nan=False))
    return CallToolResult(content=[text, *pictures], structuredContent=answered)
