"""The examples that a model brings along: photos of known diagnosis in `examples/` of its folder, for whoever has none.

`examples/examples.json` lists them: {"examples": [{"file": "MEL.jpg", "diagnosis": "MEL"}], "license": "…",
"attribution": "…"}; the diagnosis is null for an image that the model should not answer.
"""

import re
from dataclasses import dataclass
from typing import Any

import render
from answers import Photo
from uploads import note_fault

from modeling.classifier import LesionClassifier
from modeling.files import is_name, read_json
from modeling.images import ImageError
from modeling.labels import diagnosis_of
from modeling.model_folder import EXAMPLES_NAME, file_beside

MAX_EXAMPLES = 12


@dataclass(frozen=True)
class Sample:
    """One example: its file, what it shows, and a thumbnail."""

    photo: Photo
    about: str
    thumbnail: str


def load_samples(classifier: LesionClassifier) -> tuple[list[Sample], str]:
    """Return a model's examples and where they come from; none where it has none, or where a stranger wrote something else."""
    try:
        listed = file_beside(classifier.source, EXAMPLES_NAME)
        if listed is None:
            return [], ""
        content = read_json(listed)
        items = [_sample(classifier, entry) for entry in content["examples"][:MAX_EXAMPLES]]
        words = [content.get("attribution"), content.get("license")]
        return items, " ".join(str(word)[:500] for word in words if word)
    except Exception as error:  # whatever a stranger's file makes of this: a page without examples still answers
        note_fault(error)
        return [], ""


def _sample(classifier: LesionClassifier, entry: dict[str, Any]) -> Sample:
    name, code = entry["file"], entry["diagnosis"]
    if not re.fullmatch(r"[\w-]{1,80}\.(jpg|png)", name):
        raise ValueError("an example has no plain file name")
    path = file_beside(classifier.source, f"examples/{name}")
    if path is None:
        raise FileNotFoundError(name)
    about = "not a lesion" if code is None else diagnosis_of(str(code)).name
    if not is_name(about):
        raise ImageError("an example has no diagnosis")
    photo = Photo(str(path), name)
    return Sample(photo, about, render.thumbnail(photo.decode(), 144))
