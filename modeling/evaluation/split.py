"""`Split`: the model's outputs for some images with their true labels; the argument of every evaluation function."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from modeling.evaluation.bootstrap import ALL_AGREE, LEVEL, Bootstrap, Estimate, bootstrap_lesions, estimate, ratio
from modeling.inference import Outputs
from modeling.operating_points import OperatingPoint
from modeling.priors import reweight


@dataclass(frozen=True, eq=False)
class Split:
    """N images of C diagnoses."""

    codes: tuple[str, ...]  # diagnosis codes of the model, length C
    probs: np.ndarray  # probabilities at equal priors, float64 (N, C)
    labels: np.ndarray  # true labels, (N,); -1 for a diagnosis that the model does not have
    lesion_ids: np.ndarray  # lesion of each image, (N,)
    mix: np.ndarray | None = None  # fraction of each diagnosis in train and val, (C,), if the model states it
    outputs: Outputs | None = None  # that `probs` came from; None for a subset and for means over photos
    table: pd.DataFrame | None = None  # metadata of each image, in the same order

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def bootstrap(self) -> Bootstrap:
        return bootstrap_lesions(self.lesion_ids)

    @cached_property
    def probs_at_mix(self) -> np.ndarray:
        """Probabilities at the dataset's mix, float64 (N, C)."""
        return self.probs if self.mix is None else reweight(self.probs, self.mix)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable diagnosis at equal priors, (N,)."""
        return self.probs.argmax(axis=1)

    @cached_property
    def predicted_at_mix(self) -> np.ndarray:
        """The most probable diagnosis at the dataset's mix, (N,)."""
        return self.probs_at_mix.argmax(axis=1)

    @property
    def label_of(self) -> dict[str, int]:
        return {code: label for label, code in enumerate(self.codes)}

    @property
    def n_lesions(self) -> int:
        return self.bootstrap.n_lesions

    @property
    def image_ids(self) -> list[str]:
        return [] if self.table is None else self.table["image_id"].tolist()

    @property
    def present(self) -> np.ndarray:
        """Labels of the diagnoses that these images show, ascending."""
        return np.unique(self.labels[self.labels >= 0])

    def shows(self, codes: Sequence[str]) -> np.ndarray:
        """Return whether each image shows one of these diagnoses, boolean (N,)."""
        return np.isin(self.labels, [self.label_of[code] for code in codes])

    def reached(self, point: OperatingPoint) -> np.ndarray:
        """Return whether each image is above an operating point, boolean (N,)."""
        return point.reached(self.probs, self.codes)

    def subset(self, chosen: np.ndarray) -> "Split":
        """Return some of the images: boolean (N,) or positions."""
        return replace(
            self,
            probs=self.probs[chosen],
            labels=self.labels[chosen],
            lesion_ids=self.lesion_ids[chosen],
            outputs=None,
            table=None if self.table is None else self.table.iloc[np.arange(len(self))[chosen]],
        )

    def by_lesion(self) -> "Split":
        """Average the probabilities over the photos of each lesion.

        A group of near-duplicates may hold two labels (the splits warn of it); it then has a row for each label.
        """
        means = pd.DataFrame(self.probs).groupby([self.lesion_ids, self.labels]).mean()
        lesion_ids, labels = (means.index.get_level_values(level).to_numpy() for level in (0, 1))
        return Split(self.codes, means.to_numpy(), labels, lesion_ids, self.mix)


def estimate_mean(values: np.ndarray, split: Split, *, reason: str = "") -> Estimate:
    """Return the mean over the defined (not NaN) values (N,) with its interval; `reason` says why there are none."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    totals = split.bootstrap.totals(np.stack([np.where(known, values, 0), known], axis=1))
    return estimate(ratio(totals[:, 0], totals[:, 1]), split.bootstrap.count(known), reason=reason)


def estimate_rate(
    hits: np.ndarray, split: Split, *, among: np.ndarray | None = None, reason: str = "no image"
) -> Estimate:
    """Return the rate of hits, boolean (N,), with its interval: among all images of a split, or some, boolean (N,).

    Where every lesion agrees (0 % or 100 %) no replicate can differ, and the bootstrap would claim certainty. The open
    end is then the exact binomial bound for that many lesions (Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404).
    """
    counted = np.ones(len(hits), dtype=bool) if among is None else among
    rate = estimate_mean(np.where(counted, hits, np.nan), split, reason=reason)
    if rate.get("reason") != ALL_AGREE or rate["value"] not in (0.0, 1.0):
        return rate
    bound = ((1 - LEVEL) / 2) ** (1 / split.bootstrap.count(counted))
    low, high = (bound, 1.0) if rate["value"] == 1.0 else (0.0, 1 - bound)
    return {"value": rate["value"], "low": low, "high": high}
