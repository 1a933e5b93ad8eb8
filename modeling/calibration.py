"""Turn raw logits into answers that can be trusted: calibrated probabilities, operating points, abstention.

Everything here is fitted on val, never on test. Fitting needs scipy (the `train` extra); applying needs numpy alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modeling.labels import diagnosis_of

TARGET_SENSITIVITIES = (0.90, 0.95)


# ---- Calibration ---------------------------------------------------------------------------------------------------


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit on val the temperature that calibrated logits are divided by, by negative log-likelihood.

    A temperature changes no answer, so balanced accuracy, which chooses the epoch, stays what it was. A bias per diagnosis
    (arXiv:1901.06852) would undo the prior of the class-weighted loss too; cross-fitted on val of real images it brought
    the calibration error from .042 to .039 and cost balanced accuracy .575 → .493. A weak prior (log T ~ N(0, 1), less
    than one image's worth) keeps a perfectly separated val split from driving the temperature to 0.

    Args:
        logits: Raw logits of val, shape (N, C).
        labels: True labels of val, shape (N,).

    Raises:
        ValueError: If there is no image, or a logit is not finite.

    Source: Guo et al. (2017), arXiv:1706.04599.
    """
    from scipy.optimize import minimize_scalar  # fitting is for training only; serving does not install scipy

    logits = check_logits(logits)
    rows = np.arange(len(logits))

    def loss(log_temperature: float) -> float:
        log_probs = log_softmax(logits * math.exp(-log_temperature))
        return -float(log_probs[rows, labels].sum()) + 0.5 * log_temperature**2

    return math.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x)


def check_logits(logits: np.ndarray) -> np.ndarray:
    """Return the logits as float64 (N, C).

    Raises:
        ValueError: If there are none, or some are not finite.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or len(logits) == 0:
        raise ValueError(f"wanted logits of shape (N, C) with N > 0, got {logits.shape}: the split has no images")
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        raise ValueError(
            f"{broken.sum()} of {len(logits)} images have logits that are not finite (first at position "
            f"{int(np.flatnonzero(broken)[0])}): the weights are broken; train again with a lower learning rate, "
            "or in full precision"
        )
    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, C) of logits (N, C), without overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) of logits (N, C)."""
    return np.exp(log_softmax(np.asarray(logits, dtype=np.float64)))


# ---- Operating points ----------------------------------------------------------------------------------------------


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
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If a number or the name cannot be.
            KeyError, TypeError: If an entry is missing, unknown or of another type.
        """
        point = cls(**{**values, "codes": tuple(values["codes"])})
        shares = (point.target_sensitivity, point.sensitivity, point.specificity)
        counts = (point.n_positive, point.n_negative)
        if (
            not (isinstance(point.name, str) and point.name.isprintable() and 1 <= len(point.name) <= 100)
            or not point.codes
            or len(set(point.codes)) < len(point.codes)
            or not all(0 <= share <= 1 for share in shares)
            or not all(isinstance(count, int) and 0 <= count < 2**53 for count in counts)
            or not math.isfinite(point.threshold)
        ):
            raise ValueError("an operating point has a name, share, count or threshold that cannot be.")
        return point


def fit_operating_points(probs: np.ndarray, labels: np.ndarray, codes: Sequence[str]) -> list[OperatingPoint]:
    """Fit on val the thresholds for melanoma, and for malignant against benign, at the wanted sensitivities.

    A target without images on one of its two sides has no operating point and is left out; the evaluation says so.

    Args:
        probs: Calibrated probabilities of val, shape (N, C).
        labels: True labels of val, shape (N,), into `codes`.
        codes: The model's diagnoses, in the order of the columns.
    """
    points = []
    for target, target_codes in operating_targets(codes).items():
        is_positive = np.isin(labels, [list(codes).index(code) for code in target_codes])
        if is_positive.all() or not is_positive.any():
            continue
        scores = target_probability(probs, codes, target_codes)
        for wanted in TARGET_SENSITIVITIES:
            threshold = choose_threshold(scores, is_positive, min_sensitivity=wanted)
            points.append(
                OperatingPoint(
                    name=f"{target}@{round(100 * wanted)}",
                    codes=target_codes,
                    target_sensitivity=wanted,
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


def target_probability(probs: np.ndarray, codes: Sequence[str], target_codes: Sequence[str]) -> np.ndarray:
    """Sum the probabilities (N, C) of the target's diagnoses, shape (N,)."""
    return np.asarray(probs)[:, [list(codes).index(code) for code in target_codes]].sum(axis=1)


def choose_threshold(scores: np.ndarray, is_positive: np.ndarray, *, min_sensitivity: float) -> float:
    """Return a threshold that still reaches the wanted sensitivity, and no more than needed.

    It lies half-way between the last score that must be caught and the next one below, so that a rounding
    difference between two machines does not move an image across it.

    Args:
        scores: Probability of the target, shape (N,).
        is_positive: True where the image shows it, shape (N,).
        min_sensitivity: Share of positives to catch, in (0, 1].

    Raises:
        ValueError: If no image is positive, so that sensitivity is undefined.

    Source: Fawcett (2006), An introduction to ROC analysis, doi:10.1016/j.patrec.2005.10.010.
    """
    if not is_positive.any():
        raise ValueError("no image is positive: sensitivity is undefined; fit on a split that shows the target")
    positives = np.sort(scores[is_positive])[::-1]
    n_caught = math.ceil(min_sensitivity * len(positives) - 1e-9)
    lowest_caught = positives[n_caught - 1]
    below = scores[scores < lowest_caught]
    next_below = below.max() if len(below) else 0.0
    return float((lowest_caught + next_below) / 2)
