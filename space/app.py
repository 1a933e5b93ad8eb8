"""The Space: add photos of a lesion, read the differential and where it came from. The answers come from `modeling`.

python space/app.py --model runs/demo/model                     # a model folder or a Hub repository
MODEL_ID=me/skin-lesion-b0 MODEL_REVISION=v1.0 python app.py     # as a hosted Space starts it
"""

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import tempfolder

from modeling.process import prepare_server

prepare_server()  # before torch is loaded
# At every request gradio makes a table of the last 10,000, for a monitoring page that is off here.
os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}

# isort: split
import answers
import batches
import gradio as gr
import pages
import render
import uploads
from report import report_html
from starlette.middleware import Middleware

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.images import MAX_FILE_BYTES, ImageError

HERE = Path(__file__).parent
RETRY_EVERY_S = 60
PROGRESS_EVERY_S = 0.4
# Requests that run at once; more only compete for the same cores. Their answers hold pictures, so few sessions are kept.
AT_ONCE = max(1, min(4, (os.cpu_count() or 2)))
MAX_WAITING = 64
MAX_SESSIONS = 16  # this page keeps no state, so one that is forgotten misses nothing
KEEP_ANSWERS_S = 60  # that nobody fetches; clients do at once

Asked = tuple[str, frozenset[str]]  # a client's session, and its requests whose answers have not been fetched


def build_demo(classifier: LesionClassifier) -> gr.Blocks:
    """Return the page of a model, with its endpoints for programs; open it with `launch`."""
    examples = sorted((HERE / "examples").glob("*.jpg"))

    def answer(photos: list[answers.Photo]) -> dict[str, Any] | None:
        if not photos:
            return None
        try:
            fields = answers.answer_lesion(classifier, photos)
        except ImageError as error:
            return {"error": str(error)}
        return {**fields, "report_html": report_html(fields)}

    def forget(request: gr.Request) -> None:
        forget_session(demo, request.session_hash)

    def answer_example(event: gr.EventData) -> tuple[None, dict[str, Any] | None]:
        index = event._data.get("index") if isinstance(event._data, dict) else None
        if type(index) is not int or not 0 <= index < len(examples):
            raise gr.Error("There is no such example.", print_exception=False)
        return None, answer([answers.Photo(str(examples[index]), examples[index].name)])

    def answer_batch(files: list[answers.Photo]) -> Iterator[dict[str, Any] | None]:
        if not files:
            yield None
            return
        rows: list[dict[str, Any]] = []
        told = 0.0
        try:
            for done, total, row in batches.classify_rows(classifier, files, thumbnails=True):
                rows.append(row)
                if done < total and monotonic() - told > PROGRESS_EVERY_S:
                    told = monotonic()
                    yield {"done": done, "total": total}
        except ImageError as error:
            yield {"error": str(error)}
            return
        yield {"done": len(rows), "total": len(rows), "rows": rows, "csv": batches.to_csv(rows, classifier)}

    with gr.Blocks(title="Skin lesion classifier", analytics_enabled=False) as demo:
        gr.HTML(pages.header(classifier), elem_id="lesion-head")
        with gr.Tab("One lesion"), gr.Row():
            with gr.Column(scale=1, min_width=240):
                photos = uploads.photo_field(
                    label="Photos of one lesion", file_count="multiple", height=180, elem_id="photos"
                )
                gr.HTML(pages.UPLOAD_HELP)
                drawn = gr.HTML(pages.examples(examples), js_on_load=pages.EXAMPLES_JS, elem_id="examples")
            with gr.Column(scale=4, min_width=260):
                shown = drawn_by("answer.js", "answer", colours=render.COLOURS, fade_below=render.FADE_BELOW)
        with gr.Tab("Batch"):
            files = uploads.photo_field(
                label="Image files, or zip archives of them", file_count="multiple", height=180, elem_id="batch-files"
            )
            gr.HTML(pages.BATCH_HELP)
            stop = gr.Button("Stop and clear", size="sm", elem_id="batch-stop")
            table = drawn_by("batch.js", "batch")
        with gr.Tab("Model") as model_tab:
            card = gr.HTML(elem_id="card")
        with gr.Tab("API"):
            gr.HTML(pages.programs(classifier), elem_id="programs")

        alone: dict[str, Any] = {"concurrency_id": "one", "concurrency_limit": AT_ONCE, "api_visibility": "private"}
        gr.on([photos.upload, photos.delete, photos.clear], answer, photos, shown, **alone)
        drawn.click(answer_example, None, [photos, shown], **alone)
        running = gr.on(
            [files.upload, files.delete, files.clear],
            answer_batch,
            files,
            table,
            concurrency_id="many",
            concurrency_limit=1,
            api_visibility="private",
            trigger_mode="always_last",
        )
        stop.click(lambda: None, None, table, cancels=running, api_visibility="private")
        model_tab.select(lambda: pages.card(classifier), None, card, api_visibility="private")
        add_endpoints(classifier)
        demo.unload(forget)
    uploads.fetch_nothing(demo)
    return demo


def drawn_by(script: str, elem_id: str, **props: Any) -> gr.HTML:
    """Return a component whose value is JSON and whose looks are a script's."""
    return gr.HTML(
        html_template='<div class="lesion-host"></div>',
        js_on_load=(HERE / "shared.js").read_text(encoding="utf-8") + (HERE / script).read_text(encoding="utf-8"),
        style=(HERE / "answer.css").read_text(encoding="utf-8"),
        elem_id=elem_id,
        **props,
    )


def add_endpoints(classifier: LesionClassifier) -> None:
    """Add /classify, /explain and /batch, which are also the tools of the MCP server."""

    def classify(photo: answers.Photo | None) -> dict[str, Any]:
        """Classify one dermoscopic photo of a skin lesion. Research only: not a medical device, rules nothing out.

        Args:
            photo: Image file (JPEG, PNG, WebP, TIFF, BMP or GIF). Addresses are not fetched: upload the file, or (MCP)
                send it as a data:image/jpeg;base64 string.

        Returns:
            diagnosis, probability, probabilities of all diagnoses (calibrated), differential with full names,
            abstained and reason (if true, do not use the answer), operating_points (true: above the threshold),
            operating_points_in_words, provenance, notice.
        """
        with sentences():
            return answers.classify_photo(classifier, sent(photo))

    def explain(photo: answers.Photo | None, diagnosis: str = "") -> tuple[dict[str, Any], Any]:
        """Classify one dermoscopic photo and show where the score of a diagnosis came from (not why).

        Args:
            photo: Image file (JPEG, PNG, WebP, TIFF, BMP or GIF). Addresses are not fetched: upload the file, or (MCP)
                send it as a data:image/jpeg;base64 string.
            diagnosis: Code such as MEL whose heat map is drawn; empty for the most probable diagnosis.

        Returns:
            The fields of classify with the signed evidence grid of every diagnosis, and the photo with the heat map
            over it.
        """
        with sentences():
            return answers.explain_photo(classifier, sent(photo), diagnosis.strip().upper() or None)

    def batch(files: list[answers.Photo]) -> dict[str, Any]:
        """Classify many dermoscopic photos, sent as files or zip archives; at most 200.

        Args:
            files: Image files or zip archives of image files. Addresses are not fetched: upload the files, or (MCP) send them
                as data: strings in base64.

        Returns:
            rows with image (file name), diagnosis, probability, probabilities, malignant_probability, abstained, reason,
            operating_points and error (why a file could not be read, else null); the same as csv; provenance, notice.
        """
        with sentences():
            rows = [row for _, _, row in batches.classify_rows(classifier, files, thumbnails=False)]
        return {
            "rows": rows,
            "csv": batches.to_csv(rows, classifier),
            "provenance": classifier.provenance,
            "notice": classifier.notice,
        }

    with gr.Group(visible=False):
        photo = uploads.photo_field(label="Photo")
        files = uploads.photo_field(label="Photos or zip archives", file_count="multiple")
        diagnosis = gr.Textbox("", label="Diagnosis code")
        result, picture = gr.JSON(label="Answer"), gr.Image(label="Overlay", format="jpeg", type="pil")
        button = gr.Button()
    one: dict[str, Any] = {"concurrency_id": "one", "concurrency_limit": AT_ONCE}
    button.click(classify, photo, result, api_name="classify", **one)
    button.click(explain, [photo, diagnosis], [result, picture], api_name="explain", **one)
    button.click(batch, files, result, api_name="batch", concurrency_id="many", concurrency_limit=1)


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Hand what a caller did wrong back as a sentence; any other error stays one of ours."""
    try:
        yield
    except (ImageError, answers.QuestionError) as error:
        raise gr.Error(str(error), print_exception=False) from error


def sent(photo: answers.Photo | None) -> answers.Photo:
    """Return the photo of a request.

    Raises:
        QuestionError: If there is none.
    """
    if photo is None:
        raise answers.QuestionError("No photo came; upload an image file and send its path.")
    return photo


def forget_session(demo: gr.Blocks, session: str | None) -> None:
    """Drop what gradio remembers of a closed page, such as the last answer with its pictures."""
    if session is not None:
        demo.state_holder.session_data.pop(session, None)


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


@contextlib.asynccontextmanager
async def forgetting(server: gr.routes.App) -> AsyncIterator[None]:
    """While the server runs, forget the answers that nobody fetches."""

    async def keep_forgetting() -> None:
        seen: dict[Asked, float] = {}
        while True:
            await asyncio.sleep(uploads.SWEEP_EVERY_S)
            seen = forget_answers(server.get_blocks(), seen, now_s=monotonic())

    task = asyncio.create_task(keep_forgetting())
    try:
        yield
    finally:
        task.cancel()


def build_fault_page(sentence: str) -> gr.Blocks:
    """Return the page that is shown while there is no model to answer with."""
    with gr.Blocks(title="Skin lesion classifier", analytics_enabled=False) as demo:
        gr.HTML(pages.fault(sentence), elem_id="lesion-head")
    return demo


def launch(demo: gr.Blocks, *, requests_per_minute: int = uploads.REQUESTS_PER_MINUTE, **options: Any) -> str:
    """Serve a page with all limits on, nothing phoned home and nothing kept; return its address.

    Args:
        demo: Page of `build_demo` or `build_fault_page`.
        requests_per_minute: Of one client.
        options: Further arguments of gradio's launch, such as prevent_thread_lock.
    """
    janitor = uploads.Janitor(tempfolder.upload_folder())
    janitor.start()
    guard = Middleware(uploads.Guard, janitor=janitor, requests_per_minute=requests_per_minute)
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
        app_kwargs={"middleware": [guard], "lifespan": forgetting},
        max_file_size=MAX_FILE_BYTES,
        state_session_capacity=MAX_SESSIONS,
        mcp_server=True,
        show_error=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=["api"],
        # gradio ends the process if its own page takes longer than 3 s on a busy machine; it has answered it before.
        _frontend=False,
        **options,
    )
    return address


def main(arguments: list[str] | None = None) -> int:
    """Load the model that the command line or MODEL_ID names, and serve its page."""
    parser = argparse.ArgumentParser(description="Serve the page of a skin lesion model.")
    parser.add_argument("--model", help="model folder or Hub repository; default: the variable MODEL_ID")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub; default: the variable MODEL_REVISION")
    options = parser.parse_args(arguments)
    if options.model:
        try:
            demo = build_demo(LesionClassifier.from_pretrained(options.model, revision=options.revision))
        except ValueError as error:  # ModelFolderError, or an entry of its configuration that this version cannot read
            print(f"error: {error}", file=sys.stderr)
            return 2
        launch(demo)
        return 0
    serve_hosted(os.environ.get("MODEL_ID", ""), options.revision or os.environ.get("MODEL_REVISION") or None)
    return 0


def serve_hosted(model_id: str, revision: str | None) -> None:
    """Serve the model of a hosted Space; while it cannot be had, a page that says why, and try again."""
    while True:
        try:
            if not model_id:
                raise ModelFolderError(
                    "No model is named. Set the variable MODEL_ID to a model repository such as me/skin-lesion-b0 "
                    "(and MODEL_REVISION to a tag or commit), or start with --model FOLDER."
                )
            demo = build_demo(LesionClassifier.from_pretrained(model_id, revision=revision))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            fault_page = build_fault_page(str(error))
            launch(fault_page, prevent_thread_lock=True)
            sleep(RETRY_EVERY_S)
            fault_page.close()
            continue
        launch(demo)
        return


if __name__ == "__main__":
    sys.exit(main())
