"""Metrics of one split: point values by scikit-learn, and 95 % intervals by resampling lesions."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn import metrics as sklearn_metrics


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


def point_metrics(probs: np.ndarray, labels: np.ndarray, codes: Sequence[str]) -> dict[str, float | None]:
    """Return every headline and per-diagnosis number of one split, as `name` and `code/name`.

    None means not estimable: the number is undefined because a diagnosis has no image (or none was called it).

    Args:
        probs: Probabilities, shape (N, C), columns in the order of `codes`.
        labels: True labels, shape (N,).
        codes: Diagnoses of the model.

    Raises:
        ValueError: If a probability is not finite, or there is no image.
    """
    probs, labels = np.asarray(probs, dtype=np.float64), np.asarray(labels)
    if len(labels) == 0:
        raise ValueError("the split has no images: nothing can be scored")
    if not np.isfinite(probs).all():
        raise ValueError("some probabilities are not finite: the weights are broken")
    called, classes = probs.argmax(axis=1), range(len(codes))
    confusion = sklearn_metrics.confusion_matrix(labels, called, labels=list(classes))
    weighted = sklearn_metrics.precision_recall_fscore_support(
        labels, called, labels=list(classes), average="weighted", zero_division=0
    )
    precision, recall, f1, support = sklearn_metrics.precision_recall_fscore_support(
        labels, called, labels=list(classes), average=None, zero_division=np.nan
    )
    result: dict[str, float | None] = {
        "accuracy": float(sklearn_metrics.accuracy_score(labels, called)),
        "weighted_precision": float(weighted[0]),
        "weighted_recall": float(weighted[1]),
        "weighted_f1": float(weighted[2]),
        "balanced_accuracy": _number(recall.mean()),
        "macro_f1": float(f1.mean()) if (support > 0).all() else None,
        "macro_auroc": None,
    }
    aurocs: list[float] = []
    for index, code in enumerate(codes):
        negatives = len(labels) - support[index]
        false_positives = confusion[:, index].sum() - confusion[index, index]
        result[f"{code}/precision"] = _number(precision[index])
        result[f"{code}/recall"] = _number(recall[index])
        result[f"{code}/specificity"] = float(1 - false_positives / negatives) if negatives else None
        result[f"{code}/f1"] = _number(f1[index]) if support[index] else None
        estimable = 0 < support[index] < len(labels)
        result[f"{code}/auroc"] = (
            float(sklearn_metrics.roc_auc_score(labels == index, probs[:, index])) if estimable else None
        )
        result[f"{code}/average_precision"] = (
            float(sklearn_metrics.average_precision_score(labels == index, probs[:, index])) if estimable else None
        )
        aurocs.append(result[f"{code}/auroc"] if estimable else np.nan)  # type: ignore[arg-type]
    result["macro_auroc"] = _number(np.mean(aurocs))
    return result


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
