"""Inputs shared by all sections of an evaluation: the model, its outputs for val and test, and the images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from modeling.calibration import softmax
from modeling.classifier import LesionClassifier
from modeling.data.splits import lesions_of
from modeling.evaluation.bootstrap import SEED
from modeling.evaluation.ood import FAR_KINDS, far_images
from modeling.evaluation.split import Split
from modeling.images import decode_image
from modeling.inference import run_images

METADATA = ("age_approx", "sex", "anatom_site_general", "source")
# Costly measurements use a sample of test; the images of each OOD kind are a part of it.
MAX_SAMPLE, MAX_NEAR, N_FAR = 200, 100, 40


@dataclass(frozen=True)
class External:
    """Data that are not the model's own, and what their scores are compared with."""

    dataset_name: str
    data_fingerprint: str
    internal: Mapping[str, Any] | None  # the model's own metrics.json; None if it was published without
    left_out: Mapping[str, int]  # number of images that the model has seen, by how they were found
    compared_by: str  # what they were found by, in words
    challenge: bool  # the official test of ISIC 2019, which is also scored as the challenge did


@dataclass(frozen=True)
class Context:
    """Everything that the sections of metrics.json are computed from."""

    classifier: LesionClassifier
    dataset: datasets.Dataset  # all images in the columns of the contract, other diagnoses included
    splits: pd.DataFrame
    protocol: str = "lesion"
    n_skipped: int = 0  # images left out because they cannot be used
    run: Mapping[str, Any] = field(default_factory=dict)  # options, origin and history of the training, if known
    masks_dir: Path | None = None  # of <image_id>_segmentation.png, to score heat maps against
    external: External | None = None  # only where the images are not the model's own data

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every column of the dataset except the pixels, with the label as a code, indexed by image id."""
        table: pd.DataFrame = self.dataset.remove_columns("image").with_format("pandas")[:]
        codes = np.array(self.dataset.features["label"].names, dtype=object)
        table = table.assign(label=codes[table["label"]], position=np.arange(len(table)))
        return table.set_index("image_id", drop=False)

    @cached_property
    def val(self) -> Split | None:
        return self._run_split("val") if (self.splits["split"] == "val").any() else None

    @cached_property
    def test(self) -> Split:
        return self._run_split("test")

    @cached_property
    def sample(self) -> Split:
        """The images of test for costly measurements."""
        return self.test.subset(sample_evenly(self.test.labels, MAX_SAMPLE))

    @cached_property
    def other_diagnoses(self) -> dict[str, Split]:
        """Outputs for the diagnoses of the dataset that the model does not have, at most MAX_NEAR images of each."""
        found = {}
        for code in sorted(set(self.table["label"]) - set(self.classifier.codes)):
            rows = self.table[self.table["label"] == code]
            chosen = np.sort(np.random.default_rng(SEED).permutation(len(rows))[:MAX_NEAR])
            found[code] = self.score_rows(rows.iloc[chosen], f"images of {code}")
        return found

    @cached_property
    def far_images(self) -> dict[str, Split]:
        """Outputs for generated images that show no lesion, by kind."""
        rows = pd.DataFrame({"image_id": map(str, range(N_FAR)), "lesion_id": None, "label": None}, dtype=object)
        return {kind: self.score_rows(rows, f"images of kind {kind}", far_images(kind, N_FAR)) for kind in FAR_KINDS}

    def load(self, image_id: str) -> Image.Image:
        """Decode an image of the dataset as prediction does."""
        image = self._stored[int(self.table["position"][image_id])]["image"]
        return decode_image(image["bytes"] or image["path"])

    def score_rows(self, rows: pd.DataFrame, stage: str, images: Iterable[Image.Image] | None = None) -> Split:
        """Run the model over the images of some rows of `table`, or over `images`, and put outputs and rows together."""
        codes, priors, ids = self.classifier.codes, self.classifier.class_priors, rows["image_id"].tolist()
        read: Iterable[Any] = images or (partial(self.load, image_id) for image_id in ids)
        labels = [codes.index(code) if code in codes else -1 for code in rows["label"]]
        outputs = run_images(self.classifier, tqdm(read, desc=stage, total=len(ids)), image_ids=ids, labels=labels)
        mix = np.array([priors[code] for code in codes]) if priors else None
        return Split(codes, softmax(outputs.logits), outputs.labels, lesions_of(rows, ids), mix, outputs, rows)

    @cached_property
    def _stored(self) -> datasets.Dataset:
        return self.dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))

    def _run_split(self, name: str) -> Split:
        part = self.splits[self.splits["split"] == name]
        image_ids = part["image_id"].tolist()
        # Near-duplicates share a lesion id in the splits, and a label may be corrected there.
        rows = self.table.loc[image_ids].assign(lesion_id=lesions_of(part, image_ids), label=part["label"].to_numpy())
        return self.score_rows(rows, name)


def sample_evenly(labels: np.ndarray, size: int) -> np.ndarray:
    """Choose the positions of a class-balanced sample, as far as the labels (N,) allow; always the same ones."""
    shuffled = pd.Series(labels).iloc[np.random.default_rng(SEED).permutation(len(labels))]
    place_in_class = shuffled.groupby(shuffled).cumcount().sort_index()
    return np.sort(np.lexsort((labels, place_in_class))[:size])
