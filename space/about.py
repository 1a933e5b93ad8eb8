"""Facts about the model for the page: names, examples, and the numbers and figures of its card."""

import functools
import re
from pathlib import Path
from typing import Any

from answers import MAX_PHOTOS
from batches import MAX_IMAGES
from uploads import note_fault

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError, is_name, read_json
from modeling.images import MAX_FILE_BYTES, ImageError
from modeling.labels import CODES, diagnosis_of
from modeling.metrics_file import read_metrics
from modeling.model_folder import EXAMPLES_NAME, METRICS_NAME, file_beside

MAX_EXAMPLES, MAX_FIGURES = 12, 20
MAX_FIGURE_BYTES = 5_000_000
EXAMPLE_NAME = re.compile(r"[\w-]{1,80}\.(jpg|png)")


def about(classifier: LesionClassifier) -> dict[str, Any]:
    """Return what the page shows before it is asked for an answer; docs/api.md lists the keys."""
    metrics, problem = numbers(classifier)
    examples, source = examples_of(classifier)
    figures = (metrics or {}).get("figures", [])[:MAX_FIGURES]
    return {
        "model": {
            "id": classifier.model_id,
            "revision": classifier.revision,
            "notice": classifier.notice,
            "license": classifier.lesion.get("license"),
            "codes": list(classifier.codes),
            "names": {code: diagnosis_of(code).name for code in (*CODES, *classifier.codes)},
            "class_priors": classifier.class_priors,
            "from_cache": classifier.source.from_cache,
        },
        "limits": {"photos": MAX_PHOTOS, "files": MAX_IMAGES, "file_bytes": MAX_FILE_BYTES},
        "examples": examples,
        "examples_source": source,
        "metrics": metrics,
        "metrics_problem": problem,
        "figures": [{**figure, "src": f"page/figures/{figure['file']}"} for figure in figures],
    }


def numbers(classifier: LesionClassifier) -> tuple[dict[str, Any] | None, str | None]:
    """Return the checked content of metrics.json, or why there is none."""
    try:
        path = file_beside(classifier.source, METRICS_NAME)
        return (read_once(path), None) if path else (None, f"The model was published without {METRICS_NAME}.")
    except ModelFolderError as error:
        return None, f"The numbers of this model cannot be shown: {error}"


@functools.lru_cache(maxsize=2)
def read_once(path: Path) -> dict[str, Any]:
    """Read and check a metrics.json; each figure needs it."""
    return read_metrics(path)


def examples_of(classifier: LesionClassifier) -> tuple[list[dict[str, Any]], str]:
    """Return a model's examples, photos of known diagnosis, and their source; none where its file cannot be used.

    `modeling/publish/examples.py` describes the file; a diagnosis is null for an image that the model should not answer.
    """
    try:
        listed = file_beside(classifier.source, EXAMPLES_NAME)
        content = read_json(listed) if listed else {"examples": []}
        examples = [example(classifier, entry) for entry in content["examples"][:MAX_EXAMPLES]]
        words = [content.get("attribution"), content.get("license")]
        return examples, " ".join(str(word)[:500] for word in words if word)
    except Exception as error:  # an untrusted file; the rest of the page answers
        note_fault(error)
        return [], ""


def example(classifier: LesionClassifier, entry: dict[str, Any]) -> dict[str, Any]:
    """Return one example for the page."""
    name, code = entry["file"], entry["diagnosis"]
    shows = "not a lesion" if code is None else diagnosis_of(str(code)).name
    path = example_path(classifier, name)
    if path is None or not is_name(shows):
        raise ImageError("an example is not there, or has no diagnosis.")
    return {"name": name, "about": shows, "src": f"page/examples/{name}"}


def example_path(classifier: LesionClassifier, name: str) -> Path | None:
    """Return the file of an example, if the model has it."""
    return file_beside(classifier.source, f"examples/{name}") if EXAMPLE_NAME.fullmatch(name) else None


def figure_path(classifier: LesionClassifier, name: str) -> Path | None:
    """Return the file of a figure that metrics.json lists, unless it is larger than `MAX_FIGURE_BYTES`."""
    metrics, _ = numbers(classifier)
    listed = [figure["file"] for figure in (metrics or {}).get("figures", [])[:MAX_FIGURES]]
    path = file_beside(classifier.source, f"figures/{name}") if name in listed else None
    return path if path and path.stat().st_size <= MAX_FIGURE_BYTES else None
