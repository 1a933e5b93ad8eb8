"""The Space: add photos of a lesion, read the verdict and where it came from. The answers come from `modeling`.

python space/app.py --model runs/demo/model                     # a model folder or a Hub repository
MODEL_ID=me/skin-lesion-b0 MODEL_REVISION=v1.0 python app.py     # as a hosted Space starts it
"""

import argparse
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import tempfolder

from modeling.runtime import prepare_server

prepare_server()  # before an engine is loaded
# At every request gradio makes a table of the last 10,000, for a monitoring page that is off here.
os.environ |= {"GRADIO_ANALYTICS_MAX_EVENTS": "1", "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9)}

# isort: split
import answers
import batches
import gradio as gr
import pages
import render
import uploads
from answers import Photo, QuestionError
from endpoints import MANY, ONE_LESION, add_endpoints, mcp_server
from report import report_html
from samples import load_samples
from serving import launch

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.images import ImageError

HERE = Path(__file__).parent
RETRY_EVERY_S = 60
PROGRESS_EVERY_S = 0.4
# While the browser waits it says so itself; what the server cannot even begin to answer ends up there too.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
UNREACHED = """() => ({ nonce: Math.random(), opened: %s,
  error: "The server did not answer. It may be busy or restarting: try again in a minute." })"""


def told(**fields: Any) -> dict[str, Any]:
    """Return what the page is told; gradio passes on only what differs from what it was told before."""
    return {**fields, "nonce": secrets.token_hex(4)}


def build_demo(classifier: LesionClassifier) -> gr.Blocks:
    """Return the page of a model, with its endpoints for programs; open it with `launch`."""
    samples, samples_source = load_samples(classifier)

    def answer(event: gr.EventData, photos: Callable[[], list[Photo]]) -> dict[str, Any]:
        asked = event._data.get("asked")  # by which the page knows the answer to its newest question
        try:
            fields = answers.answer_lesion(classifier, photos())
            return told(**fields, asked=asked, report_html=report_html(fields))
        except (ImageError, QuestionError, ModelFolderError) as error:  # the last: no weights for heat maps
            return told(error=str(error), asked=asked)
        except Exception as error:
            uploads.note_fault(error)
            return told(error=uploads.FAULT, asked=asked)

    def answer_photos(event: gr.EventData) -> dict[str, Any]:
        return answer(event, lambda: photos_of(event))

    def answer_example(event: gr.EventData) -> dict[str, Any]:
        index = event._data["index"]
        if type(index) is not int or not 0 <= index < len(samples):
            return told(error="There is no such example.")
        sample = samples[index]
        return {**answer(event, lambda: [sample.photo]), "example": f"Example, known diagnosis: {sample.about}."}

    def answer_row(event: gr.EventData) -> dict[str, Any]:
        number = event._data["number"]
        return {**answer(event, lambda: [batches.photo_of(photos_of(event), int(number))]), "opened": True}

    def answer_batch(event: gr.EventData) -> Iterator[dict[str, Any]]:
        asked = event._data.get("asked")
        rows: list[dict[str, Any]] = []
        told_at = 0.0
        try:
            for done, total, row in batches.classify_rows(classifier, photos_of(event), for_page=True):
                rows.append(row)
                if done < total and monotonic() - told_at > PROGRESS_EVERY_S:
                    told_at = monotonic()
                    yield {"asked": asked, "done": done, "total": total}
        except (ImageError, QuestionError) as error:
            yield told(asked=asked, error=str(error))
        else:
            yield told(asked=asked, done=len(rows), total=len(rows), rows=rows, csv=batches.to_csv(rows, classifier))

    with gr.Blocks(title="Skin lesion classifier", analytics_enabled=False) as demo:
        gr.HTML(pages.header(classifier), elem_id="lesion-head")
        lesion = drawn_by(
            "lesion.js",
            "lesion",
            colours=render.COLOURS,
            fade_below=render.FADE_BELOW,
            samples=[{"about": sample.about, "thumbnail": sample.thumbnail} for sample in samples],
            samples_source=samples_source,
        )
        batch = drawn_by("batch.js", "batch")
        card = gr.HTML("", elem_id="card", js_on_load=pages.CARD_JS)
        gr.HTML(pages.programs(classifier), elem_id="programs", js_on_load=pages.PROGRAMS_JS)
        for event, function in (
            (lesion.photos, answer_photos),
            (lesion.example, answer_example),
            (batch.open, answer_row),
        ):
            # Unless told otherwise, gradio drops what is asked while an earlier question waits for its answer.
            asked = event(function, None, lesion, trigger_mode="multiple", **ONE_LESION, **QUIET)
            opened = "true" if function is answer_row else "false"
            asked.failure(None, None, lesion, js=UNREACHED % opened)
        running = batch.photos(answer_batch, None, batch, trigger_mode="multiple", **MANY, **QUIET)
        running.failure(None, None, batch, js=UNREACHED % "false")
        batch.halt(lambda: None, None, batch, cancels=running, **QUIET)
        card.wanted(lambda: pages.card(classifier), None, card, **QUIET)
        add_endpoints(classifier)
    uploads.guard_requests(demo)
    return demo


def photos_of(event: gr.EventData) -> list[Photo]:
    """Return the photos that an event of the page names.

    Raises:
        QuestionError: If one was not sent here, or is gone.
    """
    return [uploads.received(photo["path"], photo["name"]) for photo in event._data["photos"]]


def drawn_by(script: str, elem_id: str, **props: Any) -> gr.HTML:
    """Return a component whose value is JSON and whose looks are a script's."""
    return gr.HTML(
        html_template='<div class="lesion-host"></div>',
        js_on_load="".join((HERE / name).read_text(encoding="utf-8") for name in ("shared.js", script)),
        style=(HERE / "answer.css").read_text(encoding="utf-8"),
        elem_id=elem_id,
        **props,
    )


def build_fault_page(sentence: str) -> gr.Blocks:
    """Return the page that is shown while there is no model to answer with."""
    with gr.Blocks(title="Skin lesion classifier", analytics_enabled=False) as demo:
        gr.HTML(pages.fault(sentence), elem_id="lesion-head")
    return demo


def open_model(model: str, revision: str | None) -> LesionClassifier:
    """Load a model.

    Raises:
        ModelFolderError: If that cannot be; also where a stranger's file makes a library fail in a way of its own.
    """
    try:
        return LesionClassifier.from_pretrained(model, revision=revision)
    except ModelFolderError:
        raise
    except Exception as error:
        uploads.note_fault(error)
        raise ModelFolderError(f"{model} cannot be used ({type(error).__name__}): {str(error)[:300]}") from error


def main(arguments: list[str] | None = None) -> int:
    """Load the model that the command line or MODEL_ID names, and serve its page."""
    parser = argparse.ArgumentParser(description="Serve the page of a skin lesion model.")
    parser.add_argument("--model", help="model folder or Hub repository; default: the variable MODEL_ID")
    parser.add_argument("--revision", help="branch, tag or commit on the Hub; default: the variable MODEL_REVISION")
    parser.add_argument("--port", type=int, help="of this machine; default: the variable GRADIO_SERVER_PORT, or 7860")
    options = parser.parse_args(arguments)
    tempfolder.end_by_sigterm()
    if options.model:
        try:
            classifier = open_model(options.model, options.revision)
        except ModelFolderError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        launch(build_demo(classifier), tools=mcp_server(classifier), server_port=options.port)
        return 0
    revision = options.revision or os.environ.get("MODEL_REVISION") or None
    serve_hosted(os.environ.get("MODEL_ID", ""), revision, options.port)
    return 0


def serve_hosted(model_id: str, revision: str | None, port: int | None) -> None:
    """Serve the model of a hosted Space; while it cannot be had, a page that says why, and try again."""
    while True:
        try:
            if not model_id:
                raise ModelFolderError(
                    "No model is named. Set the variable MODEL_ID to a model repository such as me/skin-lesion-b0 "
                    "(and MODEL_REVISION to a tag or commit), or start with --model FOLDER."
                )
            classifier = open_model(model_id, revision)
        except ModelFolderError as error:
            print(f"error: {error}", file=sys.stderr)
            fault_page = build_fault_page(str(error))
            launch(fault_page, prevent_thread_lock=True, server_port=port)
            sleep(RETRY_EVERY_S)
            fault_page.close()
            continue
        launch(build_demo(classifier), tools=mcp_server(classifier), server_port=port)
        return


if __name__ == "__main__":
    sys.exit(main())
