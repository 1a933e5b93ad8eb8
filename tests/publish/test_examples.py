"""The examples of a model folder: of known diagnosis, answered, and one that is not; with their licence beside them."""

import json

import numpy as np
import pytest

from modeling.classifier import LesionClassifier
from modeling.data.demo import draw_lesion
from modeling.evaluation.ood import FAR_KINDS, far_images
from modeling.images import decode_image
from modeling.model_folder import EXAMPLES_NAME
from modeling.publish.examples import MAX_TRIES, SEED, write_demo_examples
from support.space import make_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that abstains on some image without a lesion, and on no lesion."""
    place = tmp_path_factory.mktemp("examples")
    open_to_all = LesionClassifier.from_pretrained(make_model(place / "first" / "model"))

    def score(image) -> float:
        outputs = open_to_all.engine.forward(open_to_all.preprocess(image)[None])
        return float(open_to_all.abstention.score(outputs.logits, outputs.features)[0])

    odd = max(score(image) for kind in FAR_KINDS for image in far_images(kind, 2))
    return make_model(place / "second" / "model", threshold=odd - 1e-3)


def read(folder):
    listed = json.loads((folder / EXAMPLES_NAME).read_text())
    return listed, [(entry["diagnosis"], folder / "examples" / entry["file"]) for entry in listed["examples"]]


@pytest.mark.slow
def test_the_demo_brings_an_image_of_each_diagnosis_and_one_to_abstain_on(folder):
    classifier = LesionClassifier.from_pretrained(folder)
    write_demo_examples(folder, classifier)
    listed, examples = read(folder)
    assert [code for code, _ in examples] == [*classifier.codes, None]
    assert (listed["license"], listed["attribution"].startswith("Generated")) == ("apache-2.0", True)
    for code, file in examples[:-1]:
        found = np.asarray(decode_image(file), np.float32)
        made = (
            draw_lesion(np.random.default_rng([SEED, n]), code, width_px=640, height_px=480) for n in range(MAX_TRIES)
        )
        assert min(np.abs(found - np.asarray(image, np.float32)).mean() for image in made) < 3  # JPEG
