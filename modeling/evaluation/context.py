"""What an evaluation knows before it measures: the model, its answers for val and test, the images, a sample of them."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from modeling.calibration import softmax
from modeling.classifier import LesionClassifier
from modeling.data.splits import lesions_of
from modeling.engines import BATCH_SIZE
from modeling.evaluation.bootstrap import SEED, Bootstrap, bootstrap_lesions
from modeling.evaluation.metrics import score_split
from modeling.evaluation.ood import FAR_KINDS, far_images
from modeling.images import decode_image
from modeling.inference import Outputs

# What needs many passes of the network is measured on a sample of test: a third of it within these bounds.
MIN_SAMPLE, MAX_SAMPLE = 40, 500
SAMPLE_WORDS = "an even sample of test: as many images of each diagnosis as possible"
METADATA = ("age_approx", "sex", "anatom_site_general", "source")

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Split:
    """One split as the model answers it, N images."""

    codes: Sequence[str]  # of the model, length C
    outputs: Outputs  # calibrated
    rows: pd.DataFrame  # METADATA, `image_id`, `lesion_id` and `label` (code), in the order of the outputs
    probs: np.ndarray  # float64 (N, C)
    predicted: np.ndarray  # most probable diagnosis, a label for each image, (N,)
    bootstrap: Bootstrap  # of the lesions of these images

    @property
    def labels(self) -> np.ndarray:
        """True labels, shape (N,)."""
        return self.outputs.labels

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Scores of the predicted diagnoses."""
        return score_split(self.probs, self.labels, self.codes, self.bootstrap, self.predicted)


@dataclass(frozen=True)
class External:
    """What the images of an external evaluation are compared with."""

    internal: Mapping[str, Any] | None  # content of the model's own metrics.json; None if it was published without
    left_out: Mapping[str, int]  # how many images the model has seen, by how that was found
    compared_by: str  # what they were found by, in words
    challenge: bool  # the official test of ISIC 2019, which is also scored as the challenge did


@dataclass(frozen=True)
class Context:
    """Everything that the sections of metrics.json are computed from; each section is a function of it."""

    classifier: LesionClassifier
    dataset: datasets.Dataset  # all images in the columns of the contract, those of other diagnoses included
    splits: pd.DataFrame
    val_outputs: Outputs | None  # calibrated; None if the splits have no val
    test_outputs: Outputs
    dataset_name: str | None = None  # given, like the fingerprint, where the dataset need not be the model's own
    data_fingerprint: str | None = None
    protocol: str = "lesion"  # how the splits were made
    n_skipped: int = 0  # images left out because they could not be used
    run: Mapping[str, Any] | None = None  # content of train_config.json, if known
    history: Sequence[Mapping[str, Any]] = ()  # one record an epoch, as in log.jsonl
    masks_dir: Path | None = None  # of <image_id>_segmentation.png; without it heat maps are not scored against masks
    tta_on_all: bool = False  # measure test-time augmentation on all of test, not on the sample
    external: External | None = None  # given where the images are not the model's own data

    @property
    def codes(self) -> tuple[str, ...]:
        return self.classifier.codes

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every column of the dataset but the pixels, with the label as a code, indexed by image id."""
        return metadata_table(self.dataset)

    @cached_property
    def val(self) -> Split | None:
        return None if self.val_outputs is None else self._split("val", self.val_outputs)

    @cached_property
    def test(self) -> Split:
        return self._split("test", self.test_outputs)

    @cached_property
    def images(self) -> "StoredImages":
        return StoredImages(self.dataset, self.table)

    @cached_property
    def sample(self) -> "Sample":
        """The images of test for costly measurements, decoded and answered."""
        places = sample_evenly(self.test.labels)
        rows = self.test.rows.iloc[places]
        images = self.images.load(rows["image_id"])
        probs = softmax(classify_images(self.classifier, images)[0])
        bootstrap = bootstrap_lesions(rows["lesion_id"].to_numpy())
        return Sample(places, rows, images, self.test.labels[places], probs.argmax(axis=1), bootstrap)

    @cached_property
    def outside(self) -> dict[str, "Outside"]:
        """What the model says of images that it should refuse, by kind: diagnoses left out, then other things."""
        found = {}
        left_out = sorted(set(self.table["label"]) - set(self.codes))
        for kind in track([*left_out, *FAR_KINDS], "out-of-distribution images"):
            if kind in FAR_KINDS:
                images = far_images(kind, max(len(self.sample.places) // 5, 12))
                lesions = np.arange(len(images)).astype(str)
            else:
                rows = self.table[self.table["label"] == kind]
                rows = rows.iloc[np.sort(np.random.default_rng(SEED).permutation(len(rows))[: len(self.sample.places)])]
                images = self.images.load(rows["image_id"])
                lesions = rows["lesion_id"].where(rows["lesion_id"].notna(), rows["image_id"]).to_numpy(dtype=str)
            found[kind] = Outside(*classify_images(self.classifier, images), lesions)
        return found

    def _split(self, name: str, outputs: Outputs) -> Split:
        """Put outputs and metadata of one split together."""
        of_split = self.splits[self.splits["split"] == name]
        rows = self.table.loc[outputs.image_ids, list(METADATA)].assign(
            image_id=outputs.image_ids,
            # Near-duplicates share a lesion id since the splits were made.
            lesion_id=lesions_of(of_split, outputs.image_ids),
            label=of_split.set_index("image_id")["label"].loc[outputs.image_ids].to_numpy(),
        )
        probs = softmax(outputs.logits)
        bootstrap = bootstrap_lesions(rows["lesion_id"].to_numpy())
        return Split(self.codes, outputs, rows, probs, probs.argmax(axis=1), bootstrap)


@dataclass(frozen=True)
class Sample:
    """The n images of test that are looked at many times."""

    places: np.ndarray  # position of each in test, (n,)
    rows: pd.DataFrame  # as in `Split`
    images: list[Image.Image]  # upright RGB
    labels: np.ndarray  # (n,)
    predicted: np.ndarray  # most probable diagnosis of each image as it is, (n,)
    bootstrap: Bootstrap


@dataclass(frozen=True)
class Outside:
    """Images that the model should refuse: calibrated logits (n, C), features (n, D) and lesions (n,)."""

    logits: np.ndarray
    features: np.ndarray
    lesions: np.ndarray


class StoredImages:
    """The images of a dataset by image id, decoded as prediction decodes them."""

    def __init__(self, dataset: datasets.Dataset, table: pd.DataFrame) -> None:
        self.stored = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        self.position = table["position"]

    def load(self, image_ids: Sequence[str] | pd.Series) -> list[Image.Image]:
        return [decode_image(file) for file in self.files(image_ids)]

    def files(self, image_ids: Sequence[str] | pd.Series) -> list[bytes | str]:
        """Return the bytes of images as they are stored, or their paths."""
        stored = (self.stored[int(self.position[image_id])]["image"] for image_id in image_ids)
        return [image["bytes"] or image["path"] for image in stored]


def metadata_table(dataset: datasets.Dataset) -> pd.DataFrame:
    """Return every column but the pixels, with the label as a code, indexed by image id."""
    table = dataset.remove_columns("image").with_format("pandas")[:]
    names = dataset.features["label"].names
    table = table.assign(label=[names[label] for label in table["label"]], position=np.arange(len(table)))
    return table.set_index("image_id", drop=False)


def classify_images(classifier: LesionClassifier, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated logits (N, C) and features (N, D) of upright RGB images."""
    logits, features = [], []
    for start in range(0, len(images), BATCH_SIZE):
        batch = np.stack([classifier.transform(image) for image in images[start : start + BATCH_SIZE]])
        outputs = classifier.forward(batch)
        logits.append(outputs.logits)
        features.append(outputs.features)
    return np.concatenate(logits), np.concatenate(features)


def sample_evenly(labels: np.ndarray) -> np.ndarray:
    """Choose positions for costly measurements: as many of each diagnosis as there are, the same ones each time."""
    size = int(np.clip(len(labels) // 3, MIN_SAMPLE, MAX_SAMPLE))
    order = np.random.default_rng(SEED).permutation(len(labels))
    place_in_class = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place_in_class[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, place_in_class))[:size])


def track(items: Iterable[_Item], stage: str) -> Iterator[_Item]:
    """Yield the items behind a progress bar with the name of the stage; where no terminal shows bars, say how long it took."""
    started = time.monotonic()
    yield from tqdm(items, desc=stage, leave=True, disable=None, mininterval=0.5)
    if not sys.stderr.isatty():
        print(f"{stage}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)
