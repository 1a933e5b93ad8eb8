"""The model for assistants: the tools classify, explain and batch of an MCP server.

The server is the `mcp` package's own: gradio's returns Python's notation instead of JSON, drops images, and has no schema
for a list of files.
"""

import base64
import json
import logging
from typing import Any

import answers
import anyio.to_thread
import batches
import images_out
import uploads
from answers import Photo, QuestionError, Turn
from endpoints import BATCH, CLASSIFY, DIAGNOSIS, EXPLAIN, FORMATS, PRIORS, GetClassifier, in_sentences
from mcp.server.lowlevel import Server
from mcp.types import CallToolResult, ImageContent, TextContent, Tool, ToolAnnotations
from visitors import MAX_ALL, Visitors

from modeling import __version__
from modeling.labels import NOTICE


def schema(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """Return the JSON schema of an object; by default all properties are required."""
    return {"type": "object", "properties": properties, "required": required or list(properties)}


NAMED = schema({"name": {"type": "string"}, "photo": {"type": "string"}}, ["photo"])
INPUTS = {
    "photo": {
        "type": "string",
        "description": f"The photo ({FORMATS}; at most 29 MB, 51 megapixels) as 'data:image/jpeg;base64,…', or the path that "
        "POST /gradio_api/upload returned for its file (at most 100 MB). Web addresses are not fetched.",
    },
    "photos": {
        "type": "array",
        "items": {"anyOf": [{"type": "string"}, NAMED]},
        "description": "Photos as for classify, or zip archives as 'data:application/zip;base64,…'; each may be given as "
        "{'name': …, 'photo': …}, so that its row has that name. At most 40 MB in one request.",
    },
    "diagnosis": {"type": "string", "description": DIAGNOSIS},
    "priors": {"anyOf": [{"type": "string"}, {"type": "object"}], "description": PRIORS},
}


TEXT, TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
ANSWER: dict[str, Any] = {
    **{"verdict": TEXT, "diagnosis": TEXT, "probability": {"type": "number"}, "reason": TEXT_OR_NULL},
    "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
    "flagged": {"type": "array", "items": TEXT},
    "abstained": {"type": "boolean"},
    "operating_points": {"type": "object", "additionalProperties": {"type": "boolean"}},
}
ROWS = {"type": "array", "items": schema({**ANSWER, "name": TEXT, "error": TEXT_OR_NULL}, ["name", "error"])}
ONE, MANY = schema({**ANSWER, "notice": TEXT}), schema({"rows": ROWS, "csv": TEXT, "notice": TEXT})


def tool(name: str, description: str, inputs: list[str], output: dict[str, Any]) -> Tool:
    """Return the description of a tool, which needs the first of its inputs."""
    return Tool(
        name=name,
        description=description,
        inputSchema=schema({key: INPUTS[key] for key in inputs}, inputs[:1]),
        outputSchema=output,
        annotations=ToolAnnotations(readOnlyHint=True, openWorldHint=False),
    )


def mcp_server(get: GetClassifier, visitors: Visitors) -> Server[Any, Any]:
    """Return a server with the three tools; each returns JSON as text and as structured content, explain an image too."""
    # The library's messages repeat what a visitor sent; some of them go to the root logger.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(silent)
    server: Server[Any, Any] = Server("skin-lesion", version=__version__, instructions=NOTICE)
    limiter = anyio.CapacityLimiter(MAX_ALL)  # `Visitors` decides who is next

    def classify(arguments: dict[str, Any], turn: Turn, session: str) -> CallToolResult:
        with turn():
            classifier = answers.with_priors(get(), arguments.get("priors"))
            return result(answers.classify_photo(classifier, photo_of(arguments.get("photo"))))

    def explain(arguments: dict[str, Any], turn: Turn, session: str) -> CallToolResult:
        with turn():
            classifier, photo = answers.with_priors(get(), arguments.get("priors")), photo_of(arguments.get("photo"))
            fields, overlay = answers.explain_photo(classifier, photo, arguments.get("diagnosis"))
        data = base64.b64encode(images_out.jpeg(overlay, quality=90)).decode("ascii")
        return result(fields, ImageContent(type="image", data=data, mimeType="image/jpeg"))

    def batch(arguments: dict[str, Any], turn: Turn, session: str) -> CallToolResult:
        sent = arguments.get("photos")
        if not isinstance(sent, list) or len(sent) > batches.MAX_IMAGES:
            raise QuestionError(f"'photos' is missing or too long: send a list of at most {batches.MAX_IMAGES} photos.")
        named = [one if isinstance(one, dict) else {"photo": one} for one in sent]
        files = [photo_of(one.get("photo"), one.get("name") or f"photo-{n}") for n, one in enumerate(named, 1)]
        classifier = answers.with_priors(get(), arguments.get("priors"))
        rows = visitors.while_waited(batches.classify_rows(classifier, files, turn=turn), session)
        return result(batches.table(classifier, [row for _, _, row in rows]))

    tools = {"classify": classify, "explain": explain, "batch": batch}

    @server.list_tools()  # type: ignore[no-untyped-call,untyped-decorator]
    async def list_tools() -> list[Tool]:
        return [
            tool("classify", CLASSIFY, ["photo", "priors"], ONE),
            tool("explain", EXPLAIN, ["photo", "diagnosis", "priors"], ONE),
            tool("batch", BATCH, ["photos", "priors"], MANY),
        ]

    @server.call_tool(validate_input=False)  # type: ignore[untyped-decorator]  # its messages repeat what was sent
    async def call_tool(name: str, arguments: dict[str, Any]) -> CallToolResult:
        request: Any = server.request_context.request
        visitor, session = request.client.host, request.scope["session"]["id"]

        def run() -> CallToolResult:
            with in_sentences(QuestionError), visitors.answering(visitor):
                if name not in tools:
                    raise QuestionError(f"There is no such tool; there are {', '.join(tools)}.")
                return tools[name](arguments, lambda: visitors.turn(visitor), session)

        return await anyio.to_thread.run_sync(run, limiter=limiter)

    return server


def silent(record: logging.LogRecord) -> bool:
    """Log nothing."""
    return False


def result(fields: dict[str, Any], *more: ImageContent) -> CallToolResult:
    """Return an answer as JSON text and as structured content, and what else belongs to it."""
    text = TextContent(type="text", text=json.dumps(fields, ensure_ascii=False, allow_nan=False))
    return CallToolResult(content=[text, *more], structuredContent=fields)


def photo_of(text: object, name: object = "photo") -> Photo:
    """Return the photo of a data URI, or of the path of an upload.

    Raises:
        QuestionError: If it is neither.
    """
    how = "A photo is sent as 'data:image/jpeg;base64,' and its bytes in base64, or as the path of an upload."
    if not isinstance(text, str) or not text:
        raise QuestionError(f"A photo is missing. {how}")
    name = uploads.shown_name(str(name))
    if not text.startswith("data:"):
        return uploads.received(text, name if name != "photo" else None)
    head, _, body = text.partition(",")
    try:
        data = base64.b64decode(body, validate=True) if head.endswith(";base64") else b""
    except ValueError:
        data = b""
    if not data:
        raise QuestionError(how)
    if data.startswith(b"PK"):  # archives are read from disk, as uploads are
        path = uploads.private_file(f"{name}.zip")
        path.write_bytes(data)
        return Photo(str(path), path.name)
    return Photo(data, name)
