"""The model as programs use it: the functions classify, explain and batch for HTTP and MCP, and two for the page."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import answers
import batches
import gradio as gr
import images_out
import uploads
from about import about
from errors import QuestionError
from gradio.events import api
from visitors import Visitors

from modeling.classifier import LesionClassifier

SAFE = "Research only: not a medical device, rules nothing out."
FORMATS = "JPEG, PNG, WebP, HEIC, TIFF, BMP or GIF"
PRIORS = "How common the diagnoses are: 'equal', 'dataset' (as in training) or {code: weight, …}. No threshold changes."
DIAGNOSIS = "Diagnosis code whose heat map is laid over the photo; default: the most probable one flagged, else of all."
FIELDS = """verdict (the line to show first), abstained and reason (if true, do not use the answer), flagged (targets whose
95 %-sensitivity threshold is reached), diagnosis (the most probable one), probabilities"""
CLASSIFY = f"""Classify one dermoscopic photo of a skin lesion. {SAFE} Returns JSON: {FIELDS}, thresholds (what each catches,
its cut-off, this photo's value), not_known (diagnoses that this model cannot give) and more."""
EXPLAIN = f"""Classify one dermoscopic photo and show where the score of a diagnosis came from (not why). {SAFE} Returns the
JSON of classify with the signed evidence grid of every diagnosis, and the photo under the heat map of one."""
BATCH = f"""Classify at most {uploads.MAX_FILES} dermoscopic photos. {SAFE} Returns JSON: rows, flagged ones first, each with
name, error (why a file could not be read, else null), {FIELDS} and more; the same as csv."""
DESCRIPTIONS = {"classify": CLASSIFY, "explain": EXPLAIN, "batch": BATCH}


@dataclass(frozen=True)
class Sent:
    """What a visitor sent for one input, wrapped so that gradio does not look for files in it to fetch and to copy."""

    value: Any

    def photos(self) -> list[answers.Photo]:
        if not isinstance(self.value, list):
            raise QuestionError("The photos are missing: send a list of them.")
        return [uploads.received(one, f"photo-{number}") for number, one in enumerate(self.value, 1)]


def endpoints(classifier: LesionClassifier, visitors: Visitors) -> dict[str, Callable[..., Any]]:
    """Return the functions that answer, by name. Their request is gradio's, or starlette's with the same attributes."""

    def classify(request: gr.Request, photo: Any, priors: Any = "equal") -> dict[str, Any]:
        with visitors.answering(request.client.host) as turn, turn():
            sent, chosen = uploads.received(photo.value), answers.with_priors(classifier, priors.value)
            return answers.answer_fields(chosen, chosen.predict(sent.decode()))

    def explain(
        request: gr.Request, photo: Any, diagnosis: Any = "", priors: Any = "equal"
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        with visitors.answering(request.client.host) as turn, turn():
            sent, chosen = uploads.received(photo.value), answers.with_priors(classifier, priors.value)
            fields, overlay = answers.explain_photo(chosen, sent, diagnosis.value)
        path = uploads.private_file("overlay.jpg")
        path.write_bytes(images_out.jpeg(overlay, quality=90))
        return fields, {"path": str(path), "meta": {"_type": "gradio.FileData"}}

    def batch(request: gr.Request, photos: Any, priors: Any = "equal") -> Iterator[dict[str, Any]]:
        with visitors.answering(request.client.host) as turn:
            sent, chosen = photos.photos(), answers.with_priors(classifier, priors.value)
            rows = []
            for row in batches.classify_rows(chosen, sent, turn=turn):
                rows.append(row)
                yield {"done": len(rows), "total": len(sent), "row": row}
            yield batches.table(chosen, rows)

    def page_answer(request: gr.Request, photos: Any, priors: Any = "equal") -> dict[str, Any]:
        with visitors.answering(request.client.host) as turn:
            return answers.answer_lesion(classifier, photos.photos(), priors=priors.value, turn=turn)

    def page_about() -> dict[str, Any]:
        return about(classifier)

    return {one.__name__: one for one in (classify, explain, batch, page_answer, page_about)}


def blocks(functions: dict[str, Callable[..., Any]]) -> gr.Blocks:
    """Return the functions as gradio's endpoints; the page itself is `page/`."""
    with gr.Blocks(title="Skin lesion classifier", analytics_enabled=False) as demo:
        for name, function in functions.items():
            description = DESCRIPTIONS.get(name)
            api(
                function,
                api_description=f"{description}\n\npriors: {PRIORS}" if description else False,
                api_visibility="public" if description else "undocumented",
                concurrency_limit=None,  # `Visitors` decides who is next
            )
    return demo
