"""Metrics of one split: point values by scikit-learn, intervals by a bootstrap of lesions."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import pandas as pd
from sklearn import metrics as sklearn_metrics

from modeling.calibration import log_softmax
from modeling.evaluation.bootstrap import (
    ALL_AGREE,
    LEVEL,
    SEED,
    Bootstrap,
    Estimate,
    estimate,
    estimate_mean,
    estimate_rate,
    not_estimable,
    replicated_ranking,
    with_exact_bound,
)
from modeling.operating_points import OperatingPoint, shows_target

HEADLINE = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_auroc",
    "weighted_precision",
    "weighted_recall",
    "weighted_f1",
)
PER_CLASS = ("precision", "recall", "specificity", "f1", "auroc", "average_precision")
MAX_BINS = 15
MIN_IMAGES_PER_BIN = 20
# Cases per 100 in a population that is not selected as ISIC 2019 is; a choice for illustration, not a measured rate.
ASSUMED_PREVALENCE = 0.02


class LesionMetrics(evaluate.Metric):
    """The project's `evaluate` metric: defined here, so that it works offline and under several processes."""

    def __init__(self, codes: Sequence[str], **kwargs: Any) -> None:
        self.codes = tuple(codes)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy, weighted, balanced and macro scores, and per-diagnosis scores of probabilities.",
            citation="",
            inputs_description="predictions: probabilities (N, C), columns in the order of `codes`; references: (N,)",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
        return point_metrics(np.asarray(predictions), np.asarray(references), self.codes)


def epoch_scorer(codes: Sequence[str]) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """Return what scores an epoch: val probabilities (N, C) and labels (N,) → the metrics that training looks at."""
    metric = LesionMetrics(codes, keep_in_memory=True)

    def score(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        values = metric.compute(predictions=probs, references=labels)
        return {name: values[name] for name in ("balanced_accuracy", "accuracy", "macro_f1")}

    return score


def point_metrics(
    probs: np.ndarray, labels: np.ndarray, codes: Sequence[str], predicted: np.ndarray | None = None
) -> dict[str, float | None]:
    """Return every headline and per-diagnosis number of probabilities (N, C), as `name` and `code/name`.

    None means not estimable: the number is undefined because a diagnosis has no image, or none was predicted it.
    """
    predicted, classes = probs.argmax(axis=1) if predicted is None else predicted, list(range(len(codes)))
    confusion = sklearn_metrics.confusion_matrix(labels, predicted, labels=classes)
    weighted = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, average="weighted", zero_division=0
    )
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, average=None, zero_division=np.nan
    )
    complete = bool((support > 0).all())
    result: dict[str, float | None] = {
        "accuracy": float(sklearn_metrics.accuracy_score(labels, predicted)),
        "balanced_accuracy": float(recall.mean()) if complete else None,
        "macro_f1": float(f1.mean()) if complete else None,
        "macro_auroc": None,
        "weighted_precision": float(weighted[0]),
        "weighted_recall": float(weighted[1]),
        "weighted_f1": float(weighted[2]),
    }
    aurocs = []
    for index, code in enumerate(codes):
        is_code, n_other = labels == index, len(labels) - int(support[index])
        false_alarms = int(confusion[:, index].sum() - confusion[index, index])
        result[f"{code}/precision"] = None if np.isnan(precision[index]) else float(precision[index])
        result[f"{code}/recall"] = float(recall[index]) if support[index] else None
        result[f"{code}/specificity"] = 1 - false_alarms / n_other if n_other else None
        result[f"{code}/f1"] = float(f1[index]) if support[index] else None
        result[f"{code}/auroc"] = result[f"{code}/average_precision"] = None
        if 0 < support[index] < len(labels):
            auroc = float(sklearn_metrics.roc_auc_score(is_code, probs[:, index]))
            aurocs.append(auroc)
            result[f"{code}/auroc"] = auroc
            result[f"{code}/average_precision"] = float(
                sklearn_metrics.average_precision_score(is_code, probs[:, index])
            )
    if len(aurocs) == len(codes):
        result["macro_auroc"] = float(np.mean(aurocs))
    return result


def score_split(
    probs: np.ndarray,
    labels: np.ndarray,
    codes: Sequence[str],
    bootstrap: Bootstrap,
    predicted: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the numbers of `point_metrics` with their intervals, and the confusion matrix."""
    predicted, n_classes = probs.argmax(axis=1) if predicted is None else predicted, len(codes)
    points = point_metrics(probs, labels, codes, predicted)
    replicates = _from_confusion(replicated_confusion(predicted, labels, n_classes, bootstrap), codes)
    for index, code in enumerate(codes):
        replicates[f"{code}/auroc"], replicates[f"{code}/average_precision"] = replicated_ranking(
            probs[:, index], labels == index, bootstrap
        )
    replicates["macro_auroc"] = np.mean([replicates[f"{code}/auroc"] for code in codes], axis=0)

    missing = [code for index, code in enumerate(codes) if not (labels == index).any()]
    missing_reason = f"{no_image_of(missing)} in this split"
    headline = {
        name: estimate(points[name], replicates[name], bootstrap.n_lesions, reason=missing_reason) for name in HEADLINE
    }
    for name in ("accuracy", "weighted_recall"):  # which are the same number
        headline[name] = with_exact_bound(headline[name], bootstrap.n_lesions)
    per_class = {}
    for index, code in enumerate(codes):
        is_code, is_predicted = labels == index, predicted == index
        scores: dict[str, Any] = {"n_images": int(is_code.sum()), "n_lesions": bootstrap.count(is_code)}
        # The side of the data that a number rests on, and what to say when it is empty.
        bases = {
            "precision": (is_predicted, f"no image was predicted {code}"),
            "specificity": (~is_code, f"every image shows {code}"),
        }
        for name in PER_CLASS:
            base, reason = bases.get(name, (is_code, f"no image of {code} in this split"))
            if name in ("auroc", "average_precision") and is_code.all():
                reason = f"every image shows {code}"
            n_lesions = bootstrap.count(base)
            number = estimate(points[f"{code}/{name}"], replicates[f"{code}/{name}"], n_lesions, reason=reason)
            exact = name in ("precision", "recall", "specificity")
            scores[name] = with_exact_bound(number, n_lesions) if exact else number
        per_class[code] = scores
    return {
        "n_images": len(labels),
        "n_lesions": bootstrap.n_lesions,
        **headline,
        "per_class": per_class,
        "confusion": sklearn_metrics.confusion_matrix(labels, predicted, labels=range(n_classes)).tolist(),
    }


def replicated_confusion(predicted: np.ndarray, labels: np.ndarray, n_classes: int, bootstrap: Bootstrap) -> np.ndarray:
    """Return the confusion matrix of every replicate, shape (R, C, C)."""
    cells = np.bincount(
        bootstrap.lesion_index * n_classes**2 + labels * n_classes + predicted,
        minlength=bootstrap.n_lesions * n_classes**2,
    ).reshape(bootstrap.n_lesions, n_classes**2)
    return (bootstrap.draws.astype(np.float64) @ cells).reshape(-1, n_classes, n_classes)


def _from_confusion(confusion: np.ndarray, codes: Sequence[str]) -> dict[str, np.ndarray]:
    """Compute what follows from confusion matrices (R, C, C), each (R,); NaN where undefined."""
    true_positives = np.diagonal(confusion, axis1=1, axis2=2)  # (R, C)
    support, predicted, total = confusion.sum(axis=2), confusion.sum(axis=1), confusion.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = true_positives / support
        precision = true_positives / predicted
        f1 = np.where(support > 0, 2 * true_positives / (support + predicted), np.nan)
        specificity = 1 - (predicted - true_positives) / (total[:, None] - support)
        weight = support / total[:, None]
    result = {
        "accuracy": true_positives.sum(axis=1) / total,
        "balanced_accuracy": recall.mean(axis=1),
        "macro_f1": f1.mean(axis=1),
        "weighted_precision": (weight * np.nan_to_num(precision)).sum(axis=1),
        "weighted_recall": (weight * np.nan_to_num(recall)).sum(axis=1),
        "weighted_f1": (weight * np.nan_to_num(f1)).sum(axis=1),
    }
    for index, code in enumerate(codes):
        result[f"{code}/precision"] = precision[:, index]
        result[f"{code}/recall"] = recall[:, index]
        result[f"{code}/specificity"] = specificity[:, index]
        result[f"{code}/f1"] = f1[:, index]
    return result


def by_lesion(
    probs: np.ndarray, labels: np.ndarray, lesion_ids: Sequence[str] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Average the probabilities over the photos of each lesion: probs (L, C), labels (L,), lesion ids (L,).

    A group of near-duplicates may hold two labels (the splits warn of it); its images then count as two lesions.
    """
    keys = pd.MultiIndex.from_arrays([np.asarray(lesion_ids), labels])
    index, lesions = pd.factorize(keys, sort=True)
    sums = np.stack([np.bincount(index, weights=column) for column in probs.T], axis=1)
    ids, lesion_labels = (np.asarray(lesions.get_level_values(level)) for level in (0, 1))
    return sums / np.bincount(index)[:, None], lesion_labels.astype(int), ids


def score_balanced(predicted: np.ndarray, labels: np.ndarray, codes: Sequence[str], bootstrap: Bootstrap) -> Estimate:
    """Return balanced accuracy over the diagnoses that occur; for groups and baselines."""
    if len(present := np.unique(labels)) < 2:
        return not_estimable(f"all images show {codes[present[0]]}")
    return estimate(*_balanced_accuracy(predicted, labels, codes, bootstrap), bootstrap.n_lesions)


def balanced_accuracy_gain(
    predicted: np.ndarray, other: np.ndarray, labels: np.ndarray, codes: Sequence[str], bootstrap: Bootstrap
) -> Estimate:
    """Return how far the balanced accuracy of some answers is above that of others to the same images."""
    if len(present := np.unique(labels)) < 2:
        return not_estimable(f"all images show {codes[present[0]]}")
    (ours, our_replicates), (theirs, their_replicates) = (
        _balanced_accuracy(answers, labels, codes, bootstrap) for answers in (predicted, other)
    )
    return estimate(ours - theirs, our_replicates - their_replicates, bootstrap.n_lesions)


def _balanced_accuracy(
    predicted: np.ndarray, labels: np.ndarray, codes: Sequence[str], bootstrap: Bootstrap
) -> tuple[float, np.ndarray]:
    """Return the mean recall of the diagnoses that occur, two or more, and that of each replicate, (R,)."""
    present = np.unique(labels)
    value = sklearn_metrics.recall_score(labels, predicted, labels=present, average="macro")
    confusion = replicated_confusion(predicted, labels, len(codes), bootstrap)[:, present]  # (R, P, C)
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = confusion[:, np.arange(len(present)), present] / confusion.sum(axis=2)  # (R, P)
    return float(value), recalls.mean(axis=1)


# ---- Calibration ---------------------------------------------------------------------------------------------------


def score_calibration(
    logits: np.ndarray, labels: np.ndarray, codes: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return negative log-likelihood (nats) and Brier score (0 to 2) with intervals, and expected calibration errors.

    The ECE is of the most probable diagnosis over bins of equal mass, and per diagnosis of its own probability (Nixon et
    al. 2019, arXiv:1904.01685). It is above 0 by chance alone, and more so in bootstrap replicates, whose interval could
    leave its own value out; so beside it stands what a perfectly calibrated model would have had on these images.
    """
    log_probs = log_softmax(np.asarray(logits, dtype=np.float64))
    probs, rows = np.exp(log_probs), np.arange(len(labels))
    one_hot, most_probable = np.eye(len(codes))[labels], probs.argmax(axis=1)
    drawn = calibrated_labels(probs, bootstrap)

    return {
        "nll": estimate_mean(-log_probs[rows, labels], bootstrap),
        "brier": estimate_mean(((probs - one_hot) ** 2).sum(axis=1), bootstrap),
        "ece": ece_beside_chance(probs[rows, most_probable], labels == most_probable, drawn == most_probable),
        "ece_per_class": {
            code: ece_beside_chance(probs[:, index], labels == index, drawn == index)
            if (labels == index).any()
            else not_estimable(f"no image of {code} in this split")
            for index, code in enumerate(codes)
        },
    }


def no_image_of(codes: Sequence[str]) -> str:
    """Say which diagnoses a score lacks; of many, the first."""
    more = f" and {len(codes) - 5} more" if len(codes) > 5 else ""
    return f"no image of {', '.join(codes[:5])}{more}"


def calibrated_labels(probs: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """Draw the labels that the images would have if these probabilities (N, C) were perfectly calibrated: int16 (R, N).

    The photos of a lesion share one random number, so that they get one label as far as their probabilities agree.
    """
    shape = len(bootstrap.draws), bootstrap.n_lesions
    chance = np.random.default_rng(SEED).random(shape, dtype=np.float32)[:, bootstrap.lesion_index]  # (R, N)
    labels = np.zeros(chance.shape, dtype=np.int16)
    for below in np.cumsum(probs, axis=1).T[:-1]:
        labels += chance > below
    return labels


def ece_beside_chance(confidence: np.ndarray, correct: np.ndarray, if_calibrated: np.ndarray) -> dict[str, Any]:
    """Return the ECE, and the middle 95 % of those that a perfectly calibrated model would have on the same images.

    Args:
        confidence: Probability of what may be correct, shape (N,).
        correct: Whether it was, shape (N,).
        if_calibrated: Whether it would have been, in R draws, shape (R, N).

    Source: consistency resampling, Broecker & Smith (2007), doi:10.1175/WAF993.1.
    """
    bins = equal_mass_bins(confidence)
    membership = np.eye(bins.max() + 1)[bins]  # (N, bins)
    gaps = confidence @ membership - if_calibrated.astype(np.float32) @ membership.astype(np.float32)  # (R, bins)
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(np.abs(gaps).sum(axis=1) / len(confidence), [tail, 100 - tail])
    value = expected_calibration_error(confidence, correct)
    return {"value": value, "if_calibrated": {"low": float(low), "high": float(high)}}


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean gap between confidence and the fraction of correct answers, over equal-mass bins, in [0, 1]."""
    bins = equal_mass_bins(confidence)
    return float(np.abs(np.bincount(bins, weights=confidence - correct)).sum() / len(confidence))


def equal_mass_bins(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each image, shape (N,): bins of equal numbers of images, equal values always together."""
    n_bins = int(np.clip(len(confidence) // MIN_IMAGES_PER_BIN, 1, MAX_BINS))
    edges = np.quantile(confidence, np.linspace(0, 1, n_bins + 1)[1:-1])
    bins = np.searchsorted(edges, confidence, side="right")
    return np.unique(bins, return_inverse=True)[1]


def reliability_table(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Return mean confidence and fraction of correct answers of each bin."""
    bins = equal_mass_bins(confidence)
    return [
        {
            "n_images": int((bins == index).sum()),
            "confidence": float(confidence[bins == index].mean()),
            "correct": float(correct[bins == index].mean()),
        }
        for index in range(bins.max() + 1)
    ]


# ---- Operating points ----------------------------------------------------------------------------------------------


def score_operating_point(
    point: OperatingPoint, probs: np.ndarray, labels: np.ndarray, codes: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return what a threshold fitted on val reaches here, with PPV and NPV at two stated prevalences."""
    is_positive = shows_target(labels, codes, point.codes)
    reached = point.reached(probs, codes)
    sensitivity = estimate_rate(reached, is_positive, bootstrap, reason=f"no image of {', '.join(point.codes)}")
    specificity = estimate_rate(~reached, ~is_positive, bootstrap, reason=f"every image is {', '.join(point.codes)}")
    prevalence = float(is_positive.mean())
    return {
        "n_positive_images": int(is_positive.sum()),
        "n_positive_lesions": bootstrap.count(is_positive),
        "n_negative_images": int((~is_positive).sum()),
        "n_negative_lesions": bootstrap.count(~is_positive),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "at_prevalence": [
            {"prevalence": prevalence, "of": "this split"}
            | {
                "ppv": estimate_rate(is_positive, reached, bootstrap, reason="no image is above the threshold"),
                "npv": estimate_rate(~is_positive, ~reached, bootstrap, reason="no image is below the threshold"),
            },
            {"prevalence": ASSUMED_PREVALENCE, "of": "an assumed population, by Bayes' rule"}
            | _predictive_values(reached, is_positive, bootstrap, ASSUMED_PREVALENCE, sensitivity, specificity),
        ],
    }


def _predictive_values(
    reached: np.ndarray,
    is_positive: np.ndarray,
    bootstrap: Bootstrap,
    prevalence: float,
    sensitivity: Estimate,
    specificity: Estimate,
) -> dict[str, Estimate]:
    """Return PPV and NPV at another prevalence than that of these images, with intervals.

    Where a replicate cannot differ (nothing was missed, or nothing alarmed), the bounds of sensitivity and specificity are
    carried through Bayes' rule instead: a perfect score on few lesions is no certainty.
    """
    counts = np.stack([reached & is_positive, is_positive, ~reached & ~is_positive, ~is_positive], axis=1)

    def bayes(sensitivity: Any, specificity: Any) -> tuple[Any, Any]:
        caught, missed = sensitivity * prevalence, (1 - sensitivity) * prevalence
        cleared, alarmed = specificity * (1 - prevalence), (1 - specificity) * (1 - prevalence)
        return caught / (caught + alarmed), cleared / (cleared + missed)

    def values(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            return bayes(totals[..., 0] / totals[..., 1], totals[..., 2] / totals[..., 3])

    replicates = values(bootstrap.totals(counts))
    whole = values(counts.sum(axis=0).astype(np.float64))
    reason = "sensitivity or specificity is undefined here, or no image is on that side of the threshold"
    found = {
        name: estimate(float(value), numbers, bootstrap.n_lesions, reason=reason)
        for name, value, numbers in zip(("ppv", "npv"), whole, replicates, strict=True)
    }
    bounds = [sensitivity["low"], specificity["low"], sensitivity["high"], specificity["high"]]
    if all(bound is not None for bound in bounds):
        lowest = bayes(np.float64(bounds[0]), np.float64(bounds[1]))
        highest = bayes(np.float64(bounds[2]), np.float64(bounds[3]))
        for name, low, high in zip(("ppv", "npv"), lowest, highest, strict=True):
            if found[name].get("reason") == ALL_AGREE:
                found[name] = {"value": found[name]["value"], "low": float(low), "high": float(high)}
    return found


# ---- Binary scores: out-of-distribution and risk against coverage ---------------------------------------------------


def score_detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """Return how well an OOD score tells outside from inside images.

    `fpr_at_95_tpr` is the fraction of outside images taken for inside ones at the threshold that keeps 95 % of the inside
    ones (Hendrycks & Gimpel 2017, arXiv:1610.02136).
    """
    is_outside = np.concatenate([np.zeros(len(inside), bool), np.ones(len(outside), bool)])
    auroc = sklearn_metrics.roc_auc_score(is_outside, np.concatenate([inside, outside]))
    threshold = np.quantile(inside, 0.95, method="higher")
    return {"auroc": float(auroc), "fpr_at_95_tpr": float((outside <= threshold).mean())}


def risk_coverage(uncertainty: np.ndarray, wrong: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and the fraction of wrong answers (risk) when the most certain images are answered first, each (N,).

    Source: Geifman & El-Yaniv (2017), arXiv:1705.08500; the mean risk is the AURC.
    """
    order = np.argsort(uncertainty, kind="stable")
    answered = np.arange(1, len(wrong) + 1)
    return answered / len(wrong), np.cumsum(wrong[order]) / answered
