"""Facts about the model for the page: names, examples, and the numbers and figures of its card."""

import re
from pathlib import Path
from typing import Any

from errors import note_fault

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError, read_json
from modeling.labels import CODES, diagnosis_of
from modeling.metrics_file import read_metrics
from modeling.model_folder import EXAMPLES_NAME, METRICS_NAME, file_beside

MAX_EXAMPLES = 12
PICTURE = re.compile(r"(figures|examples)/[\w-]{1,100}\.(png|jpg)")


def about(classifier: LesionClassifier) -> dict[str, Any]:
    """Return what the page shows before it is asked for an answer; docs/api.md lists the keys."""
    metrics: dict[str, Any] | None = None
    problem: str | None = f"The model was published without {METRICS_NAME}."
    try:
        if path := file_beside(classifier.source, METRICS_NAME):
            metrics, problem = read_metrics(path), None
    except ModelFolderError as error:
        problem = f"The numbers of this model cannot be shown: {error}"
    examples, source = examples_of(classifier)
    figures = (metrics or {}).get("figures", [])
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
            "provenance": classifier.provenance,
        },
        "examples": examples,
        "examples_source": source,
        "metrics": metrics,
        "metrics_problem": problem,
        "figures": [{**figure, "src": f"page/figures/{figure['file']}"} for figure in figures],
    }


def examples_of(classifier: LesionClassifier) -> tuple[list[dict[str, Any]], str]:
    """Return a model's examples, photos of known diagnosis, and their source; none where its file cannot be used.

    `modeling/publish/examples.py` describes the file; a diagnosis is null for an image that the model should not answer.
    """
    try:
        listed = file_beside(classifier.source, EXAMPLES_NAME)
        content = read_json(listed) if listed else {"examples": []}
        examples = []
        for entry in content["examples"][:MAX_EXAMPLES]:
            name, code = entry["file"], entry["diagnosis"]
            shows = "not a lesion" if code is None else diagnosis_of(str(code)).name
            if picture(classifier, f"examples/{name}"):
                examples.append({"name": name, "about": shows[:200], "src": f"page/examples/{name}"})
        words = [content.get("attribution"), content.get("license")]
        return examples, " ".join(str(word)[:500] for word in words if word)
    except Exception as error:  # an untrusted file; the rest of the page answers
        note_fault(error)
        return [], ""


def picture(classifier: LesionClassifier, name: str) -> Path | None:
    """Return the file of a figure or an example, if the model has it."""
    return file_beside(classifier.source, name) if PICTURE.fullmatch(name) else None
