"""Turn raw logits into numbers that can be trusted: calibrated probabilities and operating points.

Everything here is fitted on val, never on test. Fitting needs scipy (the `train` extra); applying needs numpy alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modeling.labels import diagnosis_of

TARGET_SENSITIVITIES = (0.90, 0.95)
N_FOLDS = 5


# ---- Calibration ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """What raw logits are multiplied by and shifted by, diagnosis by diagnosis, so that probabilities mean what they say.

    It folds into the classifier layer (`network.fold_calibration`), so that every loader gives calibrated probabilities.
    """

    method: str  # one of CALIBRATIONS
    scale: tuple[float, ...]  # length C, above 0
    bias: tuple[float, ...]  # length C
    nll: dict[str, float]  # mean (nats) of each method on val, cross-validated over lesions

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated logits (N, C) of raw ones, in their own precision."""
        return logits * np.asarray(self.scale, logits.dtype) + np.asarray(self.bias, logits.dtype)

    def undo(self, logits: np.ndarray) -> np.ndarray:
        """Return the raw logits (N, C) of calibrated ones."""
        return (logits - np.asarray(self.bias, logits.dtype)) / np.asarray(self.scale, logits.dtype)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "scale": list(self.scale), "bias": list(self.bias)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """Read what `to_dict` wrote, as `schema.py` has checked it."""
        return cls(**{**values, "scale": tuple(values["scale"]), "bias": tuple(values["bias"])})


def fit_calibration(logits: np.ndarray, labels: np.ndarray, lesion_ids: Sequence[str] | np.ndarray) -> Calibration:
    """Choose on val how raw logits (N, C) become calibrated ones, and fit it.

    The method of the lowest negative log-likelihood under cross-validation that keeps the photos of a lesion together:
    nothing, one temperature (Guo et al. 2017, arXiv:1706.04599), or vector scaling (same source), a factor and a bias for
    each diagnosis. Of equals the simplest.
    """
    logits, fold = np.asarray(logits, dtype=np.float64), lesion_folds(lesion_ids)
    losses = {method: np.empty(len(logits)) for method in CALIBRATIONS}  # (N,), from folds that did not see the image
    for number in np.unique(fold):
        held_out = fold == number
        seen = ~held_out if fold.any() else held_out  # a single lesion has nothing else to learn from
        for method, fit in CALIBRATIONS.items():
            scale, bias = fit(logits[seen], labels[seen])
            log_probs = log_softmax(logits[held_out] * scale + bias)
            losses[method][held_out] = -log_probs[np.arange(held_out.sum()), labels[held_out]]
    nll = {method: float(values.mean()) for method, values in losses.items()}
    method = min(nll, key=nll.__getitem__)
    scale, bias = CALIBRATIONS[method](logits, labels)
    return Calibration(method, tuple(scale.tolist()), tuple(bias.tolist()), nll)


def lesion_folds(lesion_ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the fold of each image for cross-validation, shape (N,): at most five, the photos of a lesion in one."""
    lesions, index = np.unique(np.asarray(lesion_ids), return_inverse=True)
    return (np.random.default_rng(0).permutation(len(lesions)) % min(N_FOLDS, len(lesions)))[index]


def _no_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(logits.shape[1]), np.zeros(logits.shape[1])


def _temperature_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.full(logits.shape[1], 1 / fit_temperature(logits, labels)), np.zeros(logits.shape[1])


def _vector_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and bias (C,); a weak prior, less than one image's worth, holds what the images leave open."""
    from scipy.optimize import minimize  # fitting is for training only; serving does not install scipy

    targets = smoothed_targets(labels, logits.shape[1])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_scale, bias = np.split(parameters, 2)
        log_probs = log_softmax(logits * np.exp(log_scale) + bias)
        gap = np.exp(log_probs) - targets
        slope = np.concatenate([(gap * logits).sum(axis=0) * np.exp(log_scale), gap.sum(axis=0)]) + parameters
        return float(-(log_probs * targets).sum() + 0.5 * (parameters**2).sum()), slope

    found = minimize(
        loss, np.zeros(2 * logits.shape[1]), jac=True, method="L-BFGS-B", bounds=[(-5, 5)] * 2 * logits.shape[1]
    )
    log_scale, bias = np.split(found.x, 2)
    return np.exp(log_scale), bias


# From the simplest to the richest.
CALIBRATIONS = {
    "none": _no_scaling,
    "temperature scaling": _temperature_scaling,
    "vector scaling": _vector_scaling,
}


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit the temperature that raw logits (N, C) are divided by, by negative log-likelihood of `smoothed_targets`."""
    from scipy.optimize import minimize_scalar

    targets = smoothed_targets(labels, logits.shape[1])

    def loss(log_temperature: float) -> float:
        return -float((log_softmax(logits * math.exp(-log_temperature)) * targets).sum())

    return math.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x)


def smoothed_targets(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return what probabilities (N, C) are fitted to: (n + 1) / (n + 2) for a diagnosis seen n times, the rest shared evenly.

    No finite number of images shows that a diagnosis is never mistaken. Fitted to 1, images that the network tells apart
    without a mistake would drive the temperature to 0 and every probability to 100 % (Platt 1999, Probabilistic outputs
    for support vector machines).
    """
    doubt = 1 / (np.bincount(labels, minlength=n_classes)[labels] + 2)  # (N,)
    targets = np.repeat(doubt[:, None] / (n_classes - 1), n_classes, axis=1)
    targets[np.arange(len(labels)), labels] = 1 - doubt
    return targets


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
