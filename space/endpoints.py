"""The model over HTTP, as the page, gradio_client and curl use it: /classify, /explain, /batch, and three for the page."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import answers
import batches
import gradio as gr
import images_out
import uploads
from about import about
from answers import Photo, QuestionError, Turn
from gradio_internals import photo_field, value_field
from visitors import BusyError, Visitors

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.images import ImageError

GetClassifier = Callable[[], LesionClassifier]  # raises ModelFolderError while there is none

SAFE = "Research only: not a medical device, rules nothing out."
FORMATS = "JPEG, PNG, WebP, HEIC, TIFF, BMP or GIF"
PRIORS = (
    "How common the diagnoses are where the photo comes from: 'equal' (all equally frequent), 'dataset' (as in the images "
    "that the model was trained on), or weights by diagnosis code as a JSON object. It changes probabilities, not thresholds."
)
DIAGNOSIS = "Code whose heat map is laid over the photo; empty: what was flagged."
FIELDS = """verdict (the line to show first), diagnosis (the most probable one) with probability, probabilities of all
diagnoses, flagged (targets whose 95 %-sensitivity threshold is reached), abstained and reason (if true, do not use the
answer), operating_points"""
CLASSIFY = f"""Classify one dermoscopic photo of a skin lesion. {SAFE}

Returns JSON: {FIELDS}, thresholds (what each catches, its cut-off, this photo's value, counts on validation), differential
(with full names), not_known (diagnoses that this model cannot give), provenance, notice."""
EXPLAIN = f"""Classify one dermoscopic photo and show where the score of a diagnosis came from (not why). {SAFE}

Returns the JSON of classify with the signed evidence grid of every diagnosis, and the photo under the heat map of one."""
BATCH = f"""Classify many dermoscopic photos, sent as image files or zip archives; at most {batches.MAX_IMAGES}. {SAFE}

Returns JSON: rows, flagged ones first, each with name, {FIELDS}, malignant_probability (where the model knows a
malignant diagnosis) and error (why a file could not be read, else null); the same as csv; provenance, notice."""


@contextlib.contextmanager
def in_sentences(refuse: Callable[[str], Exception]) -> Iterator[None]:
    """Turn mistakes of the caller into their sentences, and faults of ours into one that says nothing of the request."""
    try:
        yield
    except (ImageError, QuestionError, BusyError, ModelFolderError) as error:
        raise refuse(str(error)) from None
    except Exception as error:
        uploads.note_fault(error)
        raise refuse(uploads.FAULT) from None


def add_endpoints(get: GetClassifier, visitors: Visitors) -> None:
    """Add the endpoints to the Blocks that are being built."""

    @contextlib.contextmanager
    def answering(request: gr.Request) -> Iterator[Turn]:
        visitor = request.client.host
        with in_sentences(lambda sentence: gr.Error(sentence, print_exception=False)), visitors.answering(visitor):
            yield lambda: visitors.turn(visitor)

    def classify(photo: Photo, priors: Any, request: gr.Request) -> dict[str, Any]:
        with answering(request) as turn, turn():
            return answers.classify_photo(answers.with_priors(get(), priors), photo)

    def explain(photo: Photo, diagnosis: Any, priors: Any, request: gr.Request) -> tuple[dict[str, Any], str]:
        with answering(request) as turn, turn():
            fields, overlay = answers.explain_photo(answers.with_priors(get(), priors), photo, diagnosis)
            path = uploads.private_file("overlay.jpg")
            path.write_bytes(images_out.jpeg(overlay, quality=90))
            return fields, str(path)

    def batch(files: list[Photo], priors: Any, request: gr.Request) -> Iterator[dict[str, Any]]:
        with answering(request) as turn:
            classifier, rows = answers.with_priors(get(), priors), []
            steps = batches.classify_rows(classifier, files, thumbnails=True, turn=turn)
            for done, total, row in visitors.while_waited(steps, request.session_hash):
                rows.append({key: value for key, value in row.items() if key != "thumbnail"})
                yield {"done": done, "total": total, "row": row}
            yield batches.table(classifier, rows)

    def page_about() -> dict[str, Any]:
        with in_sentences(lambda sentence: gr.Error(sentence, print_exception=False)):
            return about(get())

    def page_answer(photos: list[Photo], priors: Any, request: gr.Request) -> dict[str, Any]:
        with answering(request) as turn:
            return answers.answer_lesion(get(), photos, priors=priors, turn=turn)

    with gr.Group(visible=False):
        photo = photo_field("photo", f"The photo ({FORMATS}).")
        files = photo_field("files", f"Photos ({FORMATS}) and zip archives of photos.", several=True)
        diagnosis = value_field("diagnosis", "", DIAGNOSIS)
        priors = value_field("priors", "equal", PRIORS)
        result, overlay = gr.JSON(label="answer"), gr.Image(label="overlay", type="filepath")
        button = gr.Button()
    for function, name, inputs, outputs, description in (
        (classify, "classify", [photo, priors], result, CLASSIFY),
        (explain, "explain", [photo, diagnosis, priors], [result, overlay], EXPLAIN),
        (batch, "batch", [files, priors], result, BATCH),
        (page_about, "page_about", None, result, None),
        (page_answer, "page_answer", [files, priors], result, None),
    ):
        button.click(
            function,
            inputs,
            outputs,
            api_name=name,
            api_description=description,
            api_visibility="public" if description else "undocumented",
            concurrency_id="all",
            concurrency_limit=None,  # `Visitors` decides who is next
        )
