"""Operating points: thresholds on a probability at equal priors, fitted on val for a target sensitivity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from modeling.labels import diagnosis_of
from modeling.schema import Count, Fraction, Name, bounds

TARGET_SENSITIVITIES = (0.90, 0.95)
MIN_THRESHOLD = 1e-12  # a threshold of 0 would flag every image


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the summed probability of `codes`, with its sensitivity and specificity on val."""

    name: Name
    codes: Annotated[tuple[Name, ...], bounds(min_length=1)]
    target_sensitivity: Annotated[float, bounds(gt=0, le=1)]
    threshold: Annotated[float, bounds(gt=0, le=1)]
    sensitivity: Fraction
    specificity: Fraction
    n_positive: Count
    n_negative: Count

    def reached(self, probs: np.ndarray, codes: Sequence[str]) -> np.ndarray:
        """Return for each row of probs (N, C), columns in the order of `codes`, whether it reaches the threshold, (N,)."""
        return target_probability(probs, codes, self.codes) >= self.threshold


def fit_operating_points(probs: np.ndarray, labels: np.ndarray, codes: Sequence[str]) -> list[OperatingPoint]:
    """Fit on val the thresholds for melanoma, and for malignant against benign, at the target sensitivities.

    A target that all images of val show, or none, has no operating point and is left out.
    """
    points = []
    for target, target_codes in operating_targets(codes).items():
        is_positive = np.isin(labels, [list(codes).index(code) for code in target_codes])
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
    """Return the targets, each with the diagnoses whose probabilities are summed for it."""
    malignant = tuple(code for code in codes if diagnosis_of(code).malignant)
    targets: dict[str, tuple[str, ...]] = {"MEL": ("MEL",)} if "MEL" in codes else {}
    if malignant and malignant != ("MEL",):
        targets["malignant"] = malignant
    return targets


def target_probability(probs: np.ndarray, codes: Sequence[str], target_codes: Sequence[str]) -> np.ndarray:
    """Sum the probabilities (N, C) of the target's diagnoses, shape (N,)."""
    return np.asarray(probs)[:, [list(codes).index(code) for code in target_codes]].sum(axis=1)


def choose_threshold(scores: np.ndarray, is_positive: np.ndarray, *, min_sensitivity: float) -> float:
    """Return the highest threshold that reaches the target sensitivity.

    It is half-way between the lowest score that must be caught and the next one below, so that a rounding difference
    between two machines does not move an image across it.

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
    return max(float((lowest_caught + next_below) / 2), MIN_THRESHOLD)
