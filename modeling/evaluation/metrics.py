"""Scores of one split, each with an interval by a bootstrap of lesions.

The predicted diagnosis is the most probable one. Probabilities are as if all diagnoses were equally frequent, so balanced
accuracy, recall and the confusion matrix are measured with them. Accuracy and calibration depend on how frequent the
diagnoses are, so they are measured with the probabilities re-weighted to the dataset's mix (`Split.probs_at_mix`).
"""

from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn import metrics as sklearn_metrics

from modeling.evaluation.bootstrap import LEVEL, SEED, Bootstrap, Estimate, estimate, ratio, replicated_auroc
from modeling.evaluation.split import Split, estimate_mean, estimate_rate
from modeling.operating_points import OperatingPoint

MAX_BINS = 15
MIN_IMAGES_PER_BIN = 20
# 2 cases per 100 lesions of an unselected population; an illustration, not a measured rate.
ASSUMED_PREVALENCE = 0.02


class LesionMetrics(evaluate.Metric):  # type: ignore[misc]  # the library has no types
    """Balanced accuracy, accuracy and macro F1 of an epoch, as an `evaluate` metric that works offline."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Balanced accuracy, accuracy and macro F1 of probabilities.",
            citation="",
            inputs_description="predictions: probabilities (N, C); references: labels (N,)",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        labels, predicted = np.asarray(references), np.asarray(predictions).argmax(axis=1)
        present = np.unique(labels)
        recall = sklearn_metrics.recall_score(labels, predicted, labels=present, average="macro")
        f1 = sklearn_metrics.f1_score(labels, predicted, labels=present, average="macro", zero_division=0)
        return {
            "balanced_accuracy": float(recall),
            "accuracy": float(sklearn_metrics.accuracy_score(labels, predicted)),
            "macro_f1": float(f1),
        }


def score_split(split: Split) -> dict[str, Any]:
    """Return the headline scores, the scores of each diagnosis, and the confusion matrix of a split."""
    confusion = replicated_confusion(split.predicted, split)
    numbers = _from_confusion(confusion, split.present)
    aurocs = [
        replicated_auroc(split.probs[:, label], split.labels == label, split.bootstrap)
        for label in range(len(split.codes))
    ]
    # A replicate that lacks one of the split's diagnoses has no average.
    numbers["macro_auroc"] = np.mean([aurocs[label] for label in split.present], axis=0)
    reason = f"all images show {split.codes[split.present[0]]}"
    return {
        "n_images": len(split),
        "n_lesions": split.n_lesions,
        "diagnoses": [split.codes[label] for label in split.present],
        **{
            name: estimate(numbers[name], split.n_lesions, reason=reason)
            for name in ("balanced_accuracy", "macro_f1", "macro_auroc")
        },
        "accuracy_at_equal_priors": estimate_rate(split.predicted == split.labels, split),
        "accuracy": estimate_rate(split.predicted_at_mix == split.labels, split),
        "per_class": {
            code: _score_diagnosis(split, code, f1=numbers["f1"][:, label], auroc=aurocs[label])
            for code, label in split.label_of.items()
        },
        "confusion": confusion[0].astype(int).tolist(),
    }


def _score_diagnosis(split: Split, code: str, *, f1: np.ndarray, auroc: np.ndarray) -> dict[str, Any]:
    """Score one diagnosis; F1 and AUROC, (1 + R,), are those of the split and each replicate."""
    shown, predicted = split.shows([code]), split.predicted == split.label_of[code]
    no_image, everywhere = f"no image of {code} in this split", f"every image shows {code}"
    n_lesions = split.bootstrap.count(shown)
    return {
        "n_images": int(shown.sum()),
        "n_lesions": n_lesions,
        "precision": estimate_rate(shown, split, among=predicted, reason=f"no image was predicted {code}"),
        "recall": estimate_rate(predicted, split, among=shown, reason=no_image),
        "specificity": estimate_rate(~predicted, split, among=~shown, reason=everywhere),
        "f1": estimate(f1, n_lesions, reason=no_image),
        "auroc": estimate(auroc, n_lesions, reason=everywhere if shown.all() else no_image),
    }


def replicated_confusion(predicted: np.ndarray, split: Split) -> np.ndarray:
    """Return the confusion matrices of the split and every replicate, rows true, float64 (1 + R, C, C)."""
    n = len(split.codes)
    return split.bootstrap.totals(np.eye(n**2)[split.labels * n + predicted]).reshape(-1, n, n)


def _from_confusion(confusion: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """Compute F1 (R, C), and balanced accuracy and macro F1 (R,), of confusion matrices (R, C, C); NaN where undefined.

    The averages are over the diagnoses that are `present` in the split; one alone has none.
    """
    hits = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    f1 = np.where(support > 0, ratio(2 * hits, support + predicted), np.nan)
    undefined = np.nan if len(present) < 2 else 0
    return {
        "f1": f1,
        "balanced_accuracy": ratio(hits, support)[:, present].mean(axis=1) + undefined,
        "macro_f1": f1[:, present].mean(axis=1) + undefined,
    }


def score_balanced(predicted: np.ndarray, split: Split, *, minus: np.ndarray | None = None) -> Estimate:
    """Return the balanced accuracy of predictions (N,) over the diagnoses that a split has, or its gain over others'."""
    numbers = _from_confusion(replicated_confusion(predicted, split), split.present)["balanced_accuracy"]
    if minus is not None:
        numbers = numbers - _from_confusion(replicated_confusion(minus, split), split.present)["balanced_accuracy"]
    return estimate(numbers, split.n_lesions, reason=f"all images show {split.codes[split.present[0]]}")


def score_calibration(probs: np.ndarray, split: Split) -> dict[str, Any]:
    """Return negative log-likelihood (nats) and Brier score (0 to 2) with intervals, and the expected calibration error.

    The ECE is that of the most probable diagnosis, over bins of equal mass. By chance alone it is above 0, and more so in
    bootstrap replicates, whose interval could exclude its own value. So it has the range that a perfectly calibrated model
    would have instead.
    """
    labels, confidence = split.labels, probs.max(axis=1)
    log_probs = np.log(np.maximum(probs, np.finfo(np.float64).tiny))
    one_hot = np.eye(len(split.codes))[labels]
    return {
        "nll": estimate_mean(-log_probs[np.arange(len(split)), labels], split),
        "brier": estimate_mean(((probs - one_hot) ** 2).sum(axis=1), split),
        "ece": ece_with_range(confidence, labels == probs.argmax(axis=1), split.bootstrap),
    }


def if_calibrated(confidence: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """Simulate whether events of such probabilities (N,) occur if these are perfectly calibrated: bool (R, N).

    The photos of a lesion share one random number, so that they agree as far as their probabilities do.
    """
    shape = len(bootstrap.draws) - 1, bootstrap.n_lesions
    return np.random.default_rng(SEED).random(shape, dtype=np.float32)[:, bootstrap.lesion_index] < confidence


def ece_with_range(confidence: np.ndarray, correct: np.ndarray, bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the ECE, and the middle 95 % of the ECEs that a perfectly calibrated model would have on the same images.

    The ECE is the mean gap between confidence and the fraction correct, over bins of equal numbers of images, in [0, 1].
    Source: consistency resampling, Broecker & Smith (2007), doi:10.1175/WAF993.1.
    """
    simulated, bins = if_calibrated(confidence, bootstrap), equal_mass_bins(confidence)
    membership = np.eye(bins.max() + 1)[bins]  # (N, bins)
    gaps = confidence @ membership - simulated.astype(np.float32) @ membership.astype(np.float32)  # (R, bins)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.abs(gaps).sum(axis=1) / len(confidence), [tail, 100 - tail])
    value = float(np.abs(np.bincount(bins, weights=confidence - correct)).sum() / len(confidence))
    return {"value": value, "if_calibrated": {"low": float(low), "high": float(high)}}


def equal_mass_bins(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each image, shape (N,): bins of equal numbers of images, equal values always together."""
    n_bins = int(np.clip(len(confidence) // MIN_IMAGES_PER_BIN, 1, MAX_BINS))
    edges = np.quantile(confidence, np.linspace(0, 1, n_bins + 1)[1:-1])
    bins = np.searchsorted(edges, confidence, side="right")
    return np.unique(bins, return_inverse=True)[1]


def score_operating_point(point: OperatingPoint, split: Split) -> dict[str, Any]:
    """Return sensitivity and specificity of a stored threshold on a split, and PPV and NPV at the assumed prevalence."""
    is_positive, reached = split.shows(point.codes), split.reached(point)
    counts = np.stack([reached & is_positive, is_positive, ~reached & ~is_positive, ~is_positive], axis=1)
    totals = split.bootstrap.totals(counts)
    sensitivity, specificity = ratio(totals[:, 0], totals[:, 1]), ratio(totals[:, 2], totals[:, 3])
    caught, missed = sensitivity * ASSUMED_PREVALENCE, (1 - sensitivity) * ASSUMED_PREVALENCE
    cleared, flagged = specificity * (1 - ASSUMED_PREVALENCE), (1 - specificity) * (1 - ASSUMED_PREVALENCE)
    named, reason = ", ".join(point.codes), "sensitivity or specificity is undefined, or no image is on that side"
    return {
        "n_positive_images": int(is_positive.sum()),
        "n_positive_lesions": split.bootstrap.count(is_positive),
        "sensitivity": estimate_rate(reached, split, among=is_positive, reason=f"no image of {named}"),
        "specificity": estimate_rate(~reached, split, among=~is_positive, reason=f"every image shows {named}"),
        "prevalence": ASSUMED_PREVALENCE,
        "ppv": estimate(ratio(caught, caught + flagged), split.n_lesions, reason=reason),
        "npv": estimate(ratio(cleared, cleared + missed), split.n_lesions, reason=reason),
        "missed": sorted(split.image_ids[place] for place in np.flatnonzero(is_positive & ~reached)),
    }
