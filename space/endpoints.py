"""The model for programs: /classify, /explain and /batch over HTTP, and the same three as tools of an MCP server.

The MCP server is the `mcp` package's own: gradio's answers with Python's notation instead of JSON, loses pictures, and has
no schema for a list of files.
"""

import base64
import io
import json
import os
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import answers
import anyio.to_thread
import batches
import gradio as gr
import uploads
from answers import Photo, QuestionError
from mcp.server.fastmcp import FastMCP
from mcp.server.fastmcp.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import Field

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.images import ImageError

# Requests that run at once; more only compete for the same cores.
AT_ONCE = max(1, min(4, (os.cpu_count() or 2)))
MAX_WAITING = 64
ONE_LESION: dict[str, Any] = {"concurrency_id": "one", "concurrency_limit": AT_ONCE}
MANY: dict[str, Any] = {"concurrency_id": "many", "concurrency_limit": 1}

_Answer = TypeVar("_Answer")

FORMATS = "JPEG, PNG, WebP, HEIC, TIFF, BMP or GIF"
CLASSIFY = """Classify one dermoscopic photo of a skin lesion. Research only: not a medical device, rules nothing out.

Answers JSON: verdict (one line to show first), diagnosis, probability and probabilities of all diagnoses (calibrated),
differential (with full names), abstained and reason (if true, do not use the answer), operating_points (true: above the
threshold), thresholds (what each is for, its cut-off, this photo's value, and what it caught and falsely alarmed in
validation), not_known (diagnoses that this model can never give), provenance, notice."""
EXPLAIN = """Classify one dermoscopic photo and show where the score of a diagnosis came from (not why).

Answers the JSON of classify with the signed evidence grid of every diagnosis, and the photo with the heat map of one
diagnosis over it. Research only: not a medical device, rules nothing out."""
BATCH = """Classify many dermoscopic photos, sent as image files or zip archives; at most 200. Research only.

Answers JSON: rows with image (file name), verdict, diagnosis, probability, probabilities, malignant_probability, abstained,
reason, operating_points and error (why a file could not be read, else null); the same as csv; provenance, notice."""


def batch_answer(classifier: LesionClassifier, files: list[Photo]) -> dict[str, Any]:
    """Return the rows of a batch and their CSV."""
    rows = [row for _, _, row in batches.classify_rows(classifier, files, for_page=False)]
    shared = {"provenance": classifier.provenance, "notice": classifier.notice}
    return {"rows": rows, "csv": batches.to_csv(rows, classifier), **shared}


# ---- HTTP, as gradio_client and curl speak it ------------------------------------------------------------------------


def add_endpoints(classifier: LesionClassifier) -> None:
    """Add /classify, /explain and /batch to the page that is being built."""

    def classify(photo: Photo) -> dict[str, Any]:
        return in_words(lambda: answers.classify_photo(classifier, photo))

    def explain(photo: Photo, diagnosis: str | None) -> tuple[dict[str, Any], str]:
        fields, overlay = in_words(lambda: answers.explain_photo(classifier, photo, diagnosis or ""))
        path = uploads.private_file("overlay.jpg")
        overlay.save(path, quality=90)
        return fields, str(path)

    def batch(files: list[Photo]) -> dict[str, Any]:
        return in_words(lambda: batch_answer(classifier, files))

    with gr.Group(visible=False):
        photo = uploads.photo_field(label="Photo")
        files = uploads.photo_field(label="Photos or zip archives", file_count="multiple")
        diagnosis = gr.Textbox("", label="Diagnosis code; empty for that of the answer")
        result, picture = gr.JSON(label="Answer"), gr.Image(label="Overlay", type="filepath")
        button = gr.Button()
    button.click(classify, photo, result, api_name="classify", api_description=CLASSIFY, **ONE_LESION)
    button.click(
        explain, [photo, diagnosis], [result, picture], api_name="explain", api_description=EXPLAIN, **ONE_LESION
    )
    button.click(batch, files, result, api_name="batch", api_description=BATCH, **MANY)


def in_words(answer: Callable[[], _Answer]) -> _Answer:
    """Hand what a caller did wrong back as a sentence; any other error stays one of ours."""
    try:
        return answer()
    except (ImageError, QuestionError, ModelFolderError) as error:  # the last: heat maps that need torch
        raise gr.Error(str(error), print_exception=False) from error


# ---- MCP -----------------------------------------------------------------------------------------------------------

PhotoText = Annotated[
    str,
    Field(
        description=f"The photo ({FORMATS}) as 'data:image/jpeg;base64,…', or the path that POST /gradio_api/upload "
        "answered for its file. Web addresses are not fetched."
    ),
]


def mcp_server(classifier: LesionClassifier) -> FastMCP:
    """Return a server with the three tools; each answers JSON as text and as structured content, explain an image too."""
    server = FastMCP(
        "skin-lesion",
        instructions=classifier.notice,
        stateless_http=True,
        json_response=True,
        streamable_http_path="/",
        log_level="ERROR",
        # Guards servers of one user's machine against other web pages; this page is for everybody, and holds no secret.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    at_once, one_batch = anyio.CapacityLimiter(AT_ONCE), anyio.CapacityLimiter(1)
    harmless = ToolAnnotations(readOnlyHint=True, openWorldHint=False)

    async def run(answer: Callable[[], _Answer], limiter: anyio.CapacityLimiter = at_once) -> _Answer:
        if limiter.statistics().tasks_waiting >= MAX_WAITING:
            raise ToolError("Too many requests are waiting; try again in a minute.")
        try:
            return await anyio.to_thread.run_sync(answer, limiter=limiter)
        except (ImageError, QuestionError, ModelFolderError) as error:
            raise ToolError(str(error)) from None
        except Exception as error:
            uploads.note_fault(error)
            raise ToolError(uploads.FAULT) from None

    async def classify(photo: PhotoText) -> CallToolResult:
        return tool_result(await run(lambda: answers.classify_photo(classifier, photo_of_text(photo))))

    async def explain(
        photo: PhotoText,
        diagnosis: Annotated[
            str, Field(description=f"Whose heat map is drawn: {', '.join(classifier.codes)}; empty: of the answer.")
        ] = "",
    ) -> CallToolResult:
        fields, overlay = await run(lambda: answers.explain_photo(classifier, photo_of_text(photo), diagnosis))
        buffer = io.BytesIO()
        overlay.save(buffer, "JPEG", quality=90)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return tool_result(fields, ImageContent(type="image", data=data, mimeType="image/jpeg"))

    async def batch(
        photos: Annotated[list[str], Field(description="Photos, or zip archives as 'data:application/zip;base64,…'.")],
    ) -> CallToolResult:
        def answer() -> dict[str, Any]:
            return batch_answer(classifier, [photo_of_text(text, f"photo-{n}") for n, text in enumerate(photos, 1)])

        return tool_result(await run(answer, one_batch))

    for tool, description in ((classify, CLASSIFY), (explain, EXPLAIN), (batch, BATCH)):
        server.add_tool(tool, description=description, annotations=harmless)
    return server


def tool_result(fields: dict[str, Any], *more: ImageContent) -> CallToolResult:
    """Return an answer as JSON text and as structured content, and what else belongs to it."""
    text = TextContent(type="text", text=json.dumps(fields, ensure_ascii=False, allow_nan=False))
    return CallToolResult(content=[text, *more], structuredContent=fields)


def photo_of_text(text: str, name: str = "photo") -> Photo:
    """Return the photo of a data URI, or of the path of an upload.

    Raises:
        QuestionError: If it is neither.
    """
    if not text.startswith("data:"):
        return uploads.received(text, None)
    head, _, body = text.partition(",")
    try:
        data = base64.b64decode(body, validate=True) if head.endswith(";base64") else b""
    except ValueError:
        data = b""
    if not data:
        raise QuestionError("A photo as text is written 'data:image/jpeg;base64,' and then its bytes in base64.")
    if data.startswith(b"PK"):  # archives are read from disk, as uploads are
        path = uploads.private_file(f"{name}.zip")
        path.write_bytes(data)
        return Photo(str(path), path.name)
    return Photo(data, name)
