"""Examples in a model folder, for whoever opens its page without a photo: a few of known diagnosis, and one to abstain on.

`examples/examples.json` lists the images beside it: {"examples": [{"file": "MEL.jpg", "diagnosis": "MEL"}], "license": "…",
"attribution": "…"}; the diagnosis is null for an image that shows no lesion.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.data.demo import draw_lesion
from modeling.data.sources import rows_of
from modeling.evaluation.ood import FAR_KINDS, far_images
from modeling.files import write_json
from modeling.images import decode_image
from modeling.labels import ATTRIBUTION, WEIGHTS_LICENSE
from modeling.model_folder import EXAMPLES_NAME

SIDE_PX = (640, 480)
SEED = 77  # no drawing of the demo's dataset
MAX_TRIES = 20
DRAWN = "Drawn by this project's own code; not photographs of skin."
DRAWN_LICENSE = "Apache-2.0"

Example = tuple[str | None, Image.Image]


def write_examples(folder: Path, examples: list[Example], *, license_name: str, attribution: str) -> None:
    """Write images of known diagnosis (None: no lesion) and what is said of them into a model folder."""
    place = (folder / EXAMPLES_NAME).parent
    place.mkdir(exist_ok=True)
    entries = []
    for number, (code, image) in enumerate(examples, 1):
        name = f"{number}_{code or 'no_lesion'}.jpg"
        image.save(place / name, quality=90)
        entries.append({"file": name, "diagnosis": code})
    write_json(folder / EXAMPLES_NAME, {"examples": entries, "license": license_name, "attribution": attribution})


def write_drawn_examples(folder: Path, classifier: LesionClassifier) -> None:
    """Add the demo's examples: a drawing of each diagnosis that the model answers, and an image that it abstains on."""
    examples: list[Example] = []
    for code in classifier.codes:
        drawn = (
            draw_lesion(np.random.default_rng([SEED, number]), code, width_px=SIDE_PX[0], height_px=SIDE_PX[1])
            for number in range(MAX_TRIES)
        )
        examples += [(code, image) for image in _first(classifier, drawn, abstained=False)]
    write_examples(folder, [*examples, *no_lesion(classifier)], license_name=DRAWN_LICENSE, attribution=DRAWN)


def write_isic_examples(
    folder: Path, classifier: LesionClassifier, dataset: Dataset, splits: pd.DataFrame, n: int
) -> None:
    """Add n test images of ISIC 2019 that the model answers, the diagnoses in turn, and one drawn to abstain on."""
    test = splits[splits["split"] == "test"].sort_values("image_id")
    waiting = {
        code: (decode_image(row["image"]) for row in rows_of(dataset, test["image_id"][test["label"] == code]))
        for code in classifier.codes
    }
    examples: list[Example] = []
    while waiting and len(examples) < n:
        for code in list(waiting):
            found = list(_first(classifier, waiting[code], abstained=False))
            examples += [(code, image) for image in found]
            if not found:
                del waiting[code]
    del examples[n:]
    attribution = f"{ATTRIBUTION} The image without a lesion: {DRAWN}"
    write_examples(folder, [*examples, *no_lesion(classifier)], license_name=WEIGHTS_LICENSE, attribution=attribution)


def no_lesion(classifier: LesionClassifier) -> list[Example]:
    """Return a drawn image that shows no lesion and that the model abstains on; none if it answers them all."""
    drawn = (image for kind in FAR_KINDS for image in far_images(kind, 2))
    return [(None, image) for image in _first(classifier, drawn, abstained=True)]


def _first(classifier: LesionClassifier, images: Iterator[Image.Image], *, abstained: bool) -> Iterator[Image.Image]:
    """Yield the first image that the model abstains on, or answers; nothing if there is none."""
    for image in images:
        if classifier.predict(image).abstained is abstained:
            yield image
            return
