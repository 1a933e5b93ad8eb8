"""Operating points: thresholds on a probability, fitted on val for a target sensitivity."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modeling.labels import diagnosis_of

TARGET_SENSITIVITIES = (0.90, 0.95)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the summed probability of `codes`, with what it gave on val."""

    name: str
    codes: tuple[str, ...]
    target_sensitivity: float
    threshold: float
    sensitivity: float
    specificity: float
    n_positive: int
    n_negative: int

    def reached(self, probs: np.ndarray, codes: Sequence[str]) -> np.ndarray:
        """Tell for each row of probs (N, C), columns in the order of `codes`, whether it is above the threshold."""
        return target_probability(probs, codes, self.codes) >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "codes": list(self.codes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "OperatingPoint":
        """Read what `to_dict` wrote, as `schema.py` has checked it."""
        return cls(**{**values, "codes": tuple(values["codes"])})


def fit_operating_points(probs: np.ndarray, labels: np.ndarray, codes: Sequence[str]) -> list[OperatingPoint]:
    """Fit on val the thresholds for melanoma, and for malignant against benign, at the target sensitivities.

    A target without images on one of its two sides has no operating point and is left out; the evaluation says so.
    """
    points = []
    for target, target_codes in operating_targets(codes).items():
        is_positive = shows_target(labels, codes, target_codes)
        if is_positive.all() or not is_positive.any():
            continue
        scores = target_probability(probs, codes, target_codes)
        for target_sensitivity in TARGET_SENSITIVITIES:
            threshold = choose_threshold(scores, is_positive, min_sensitivity=target_sensitivity)
            points.append(
                OperatingPoint(
                    name=f"{target}@{round(100 * target_sensitivity)}",
                    codes=target_codes,
                    target_sensitivity=target_sensitivity,
                    threshold=threshold,
                    sensitivity=float((scores[is_positive] >= threshold).mean()),
                    specificity=float((scores[~is_positive] < threshold).mean()),
                    n_positive=int(is_positive.sum()),
                    n_negative=int((~is_positive).sum()),
                )
            )
    return points


def operating_targets(codes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what is to be caught, with the diagnoses whose probabilities are summed for it."""
    malignant = tuple(code for code in codes if diagnosis_of(code).malignant)
    targets: dict[str, tuple[str, ...]] = {"MEL": ("MEL",)} if "MEL" in codes else {}
    if malignant and malignant != ("MEL",):
        targets["malignant"] = malignant
    return targets


def shows_target(labels: np.ndarray, codes: Sequence[str], target_codes: Sequence[str]) -> np.ndarray:
    """Tell for each label (N,) whether it is one of the target's diagnoses, shape (N,)."""
    return np.isin(labels, [list(codes).index(code) for code in target_codes])


def target_probability(probs: np.ndarray, codes: Sequence[str], target_codes: Sequence[str]) -> np.ndarray:
    """Sum the probabilities (N, C) of the target's diagnoses, shape (N,)."""
    return np.asarray(probs)[:, [list(codes).index(code) for code in target_codes]].sum(axis=1)


def choose_threshold(scores: np.ndarray, is_positive: np.ndarray, *, min_sensitivity: float) -> float:
    """Return a threshold that still reaches the target sensitivity, and no more than needed.

    It lies half-way between the last score that must be caught and the next one below, so that a rounding
    difference between two machines does not move an image across it.

    Args:
        scores: Probability of the target, shape (N,).
        is_positive: True where the image shows it, shape (N,); at least one does.
        min_sensitivity: Fraction of positives to catch, in (0, 1].

    Source: Fawcett (2006), An introduction to ROC analysis, doi:10.1016/j.patrec.2005.10.010.
    """
    positives = np.sort(scores[is_positive])[::-1]
    n_caught = math.ceil(min_sensitivity * len(positives) - 1e-9)
    lowest_caught = positives[n_caught - 1]
    below = scores[scores < lowest_caught]
    next_below = below.max() if len(below) else 0.0
    return float((lowest_caught + next_below) / 2)
