"""Calibrate raw logits, so that probabilities match observed frequencies.

Fitted on val, never on test. Fitting needs scipy (the `train` extra); applying needs numpy alone.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

N_FOLDS = 5


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
