"""Calibrate logits, so that probabilities match observed frequencies when all diagnoses are equally frequent.

Fitted on val, never on test. Fitting needs scipy (the `train` extra); applying needs numpy alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modeling.schema import Name, Positive

N_FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """Scale and bias of each diagnosis' raw logit. It includes the change from the mix of train to equal priors.

    It is folded into the classifier layer (`network.fold_calibration`), so every loader gives the same probabilities.
    """

    method: Name  # one of CALIBRATIONS
    scale: tuple[Positive, ...]  # length C
    bias: tuple[float, ...]  # length C
    nll: dict[str, float]  # nats of each method on val, each diagnosis weighted equally, cross-validated over lesions

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Return calibrated logits (N, C) of raw ones, in their own precision."""
        return logits * np.asarray(self.scale, logits.dtype) + np.asarray(self.bias, logits.dtype)

    def undo(self, logits: np.ndarray) -> np.ndarray:
        """Return the raw logits (N, C) of calibrated ones."""
        return (logits - np.asarray(self.bias, logits.dtype)) / np.asarray(self.scale, logits.dtype)


def fit_calibration(
    logits: np.ndarray, labels: np.ndarray, lesion_ids: Sequence[str] | np.ndarray, *, priors: np.ndarray
) -> Calibration:
    """Choose and fit on val the calibration of raw logits (N, C).

    First the log of `priors` (C,), the mix of the images trained on, is subtracted: what remains assumes equally
    frequent diagnoses. Then the method with the lowest negative log-likelihood is taken, each diagnosis weighted equally,
    under cross-validation that keeps the photos of a lesion together: nothing, one temperature (Guo et al. 2017,
    arXiv:1706.04599), or vector scaling (same source), a scale and a bias for each diagnosis. Ties go to the simplest.
    """
    to_equal = -np.log(priors)
    logits, fold = np.asarray(logits, dtype=np.float64) + to_equal, lesion_folds(lesion_ids)
    losses = {method: np.empty(len(logits)) for method in CALIBRATIONS}  # (N,), from folds that did not see the image
    for number in np.unique(fold):
        held_out = fold == number
        seen = ~held_out if fold.any() else held_out  # with a single lesion there is nothing else to fit to
        for method, fit in CALIBRATIONS.items():
            scale, bias = fit(logits[seen], labels[seen])
            log_probs = log_softmax(logits[held_out] * scale + bias)
            losses[method][held_out] = -log_probs[np.arange(held_out.sum()), labels[held_out]]
    nll = {method: float(np.average(values, weights=equal_weights(labels))) for method, values in losses.items()}
    method = min(nll, key=nll.__getitem__)
    scale, bias = CALIBRATIONS[method](logits, labels)
    return Calibration(method, tuple(scale.tolist()), tuple((bias + scale * to_equal).tolist()), nll)


def equal_weights(labels: np.ndarray) -> np.ndarray:
    """Return the weight of each image (N,) that makes the diagnoses weigh the same; the mean is 1."""
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return len(labels) / (len(counts) * counts[place])


def lesion_folds(lesion_ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the fold of each image for cross-validation, shape (N,): at most five, the photos of a lesion in one."""
    lesions, index = np.unique(np.asarray(lesion_ids), return_inverse=True)
    return (np.random.default_rng(0).permutation(len(lesions)) % min(N_FOLDS, len(lesions)))[index]


def _temperature_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import minimize_scalar  # fitting is for training only; serving does not install scipy

    targets = smoothed_targets(labels, logits.shape[1]) * equal_weights(labels)[:, None]

    def loss(log_temperature: float) -> float:
        return -float((log_softmax(logits * math.exp(-log_temperature)) * targets).sum())

    log_temperature = minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x
    return np.full(logits.shape[1], math.exp(-log_temperature)), np.zeros(logits.shape[1])


def _vector_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and bias (C,); a weak prior, less than one image's worth, fixes what the images leave open."""
    from scipy.optimize import minimize

    targets, weights = smoothed_targets(labels, logits.shape[1]), equal_weights(labels)[:, None]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_scale, bias = np.split(parameters, 2)
        log_probs = log_softmax(logits * np.exp(log_scale) + bias)
        gap = weights * (np.exp(log_probs) - targets)
        slope = np.concatenate([(gap * logits).sum(axis=0) * np.exp(log_scale), gap.sum(axis=0)]) + parameters
        return float(-(weights * log_probs * targets).sum() + 0.5 * (parameters**2).sum()), slope

    found = minimize(
        loss, np.zeros(2 * logits.shape[1]), jac=True, method="L-BFGS-B", bounds=[(-5, 5)] * 2 * logits.shape[1]
    )
    log_scale, bias = np.split(found.x, 2)
    return np.exp(log_scale), bias


# From the simplest to the richest.
CALIBRATIONS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "none": lambda logits, labels: (np.ones(logits.shape[1]), np.zeros(logits.shape[1])),
    "temperature scaling": _temperature_scaling,
    "vector scaling": _vector_scaling,
}


def smoothed_targets(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the targets (N, C) of calibration: (n + 1) / (n + 2) for a diagnosis with n images, the rest shared evenly.

    No finite number of images shows that a diagnosis is never mistaken. With targets of 1, perfectly separated images
    would drive the temperature to 0 and every probability to 100 % (Platt 1999, Probabilistic outputs for support vector
    machines).
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
