"""The figures of a model folder, drawn from numbers alone: no image of a patient is in them.

They use matplotlib's objects and not pyplot, which keeps a global state and may want a display.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from modeling.evaluation.context import Context
from modeling.evaluation.sections import answer_risk, ood_scores
from modeling.operating_points import operating_targets, shows_target, target_probability

DPI = 110


def draw_figures(folder: Path, metrics: dict[str, Any], context: Context) -> list[str]:
    """Draw all figures of one evaluation into a folder, which is made if missing, and return their file names."""
    folder.mkdir(parents=True, exist_ok=True)
    codes, probs, labels = context.codes, context.test.probs, context.test.labels
    figures = {
        "confusion": _confusion(np.array(metrics["test"]["confusion"]), codes),
        "reliability": _reliability(metrics["calibration"]["reliability"]),
        "roc": _curves("roc", probs, labels, codes),
        "precision_recall": _curves("precision_recall", probs, labels, codes),
        "risk_coverage": _risk_coverage(*answer_risk(context)),
        "robustness": _robustness(metrics["robustness"]["changes"]),
    }
    if metrics["training"]["history"]:
        figures["training"] = _training(metrics["training"]["history"])
    if scores := ood_scores(context):
        figures["ood"] = _ood(scores, metrics["abstention"]["threshold"])
    if "headline" in metrics.get("external", {}) and "reason" not in metrics["external"]["headline"]:
        figures["external"] = _external(metrics["external"]["headline"])
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=DPI)
    return [f"{name}.png" for name in figures]


def _new(width: float = 5.0, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _confusion(confusion: np.ndarray, codes: Sequence[str]) -> Figure:
    """Counts as numbers, coloured by their fraction of the true diagnosis."""
    figure, axes = _new()
    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(fraction, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*confusion.shape):
        text = f"{confusion[row, column]}\n{fraction[row, column]:.0%}"
        axes.text(
            column, row, text, ha="center", va="center", color="white" if fraction[row, column] > 0.5 else "black"
        )
    axes.set_xticks(range(len(codes)), codes)
    axes.set_yticks(range(len(codes)), codes)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix, test")
    return figure


def _reliability(tables: dict[str, list[dict[str, float]]]) -> Figure:
    figure, axes = _new()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for name, table in tables.items():
        axes.plot([row["confidence"] for row in table], [row["correct"] for row in table], marker="o", label=name)
    axes.set(xlabel="mean confidence", ylabel="fraction correct", title="Reliability, test (bins of equal numbers)")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(title="calibration")
    return figure


def _curves(kind: str, probs: np.ndarray, labels: np.ndarray, codes: Sequence[str]) -> Figure:
    """ROC or precision-recall curves of each diagnosis against the rest, and of malignant against benign."""
    figure, axes = _new()
    targets = {code: (code,) for code in codes} | operating_targets(codes)
    for name, target in targets.items():
        is_positive = shows_target(labels, codes, target)
        if is_positive.all() or not is_positive.any():
            continue
        scores = target_probability(probs, codes, target)
        if kind == "roc":
            false_positive_rate, sensitivity, _ = roc_curve(is_positive, scores)
            axes.plot(false_positive_rate, sensitivity, label=name)
        else:
            precision, recall, _ = precision_recall_curve(is_positive, scores)
            axes.plot(recall, precision, label=name)
    if kind == "roc":
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, test")
    else:
        axes.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)", title="Precision and recall, test")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    axes.legend()
    return figure


def _risk_coverage(coverage: np.ndarray, risk: np.ndarray) -> Figure:
    figure, axes = _new()
    axes.plot(coverage, risk)
    axes.set(xlabel="coverage: fraction of images answered, most probable first", ylabel="risk: fraction wrong")
    axes.set(title="Risk against coverage, test", xlim=(0, 1), ylim=(0, None))
    return figure


def _robustness(changes: dict[str, Any]) -> Figure:
    figure, axes = _new(6.4, 4.6)
    names = list(changes)[::-1]
    rates = [changes[name]["flip_rate"] for name in names]
    values = np.array([rate["value"] for rate in rates])
    axes.barh(names, values, color="steelblue")
    for position, rate in enumerate(rates):
        if rate["low"] is not None:
            axes.plot([rate["low"], rate["high"]], [position, position], color="black")
    axes.set(
        xlabel="flip rate: fraction of answers that change (95 % interval)",
        title="Robustness, sample of test",
        xlim=(0, None),
    )
    return figure


def _training(history: Sequence[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    for name in ("train/loss", "val/loss"):
        left.plot(epochs, [record[name] for record in history], marker=".", label=name)
    for name in ("val/balanced_accuracy", "val/accuracy"):
        right.plot(epochs, [record[name] for record in history], marker=".", label=name)
    left.set(xlabel="epoch", title="Loss", ylim=(0, None))
    right.set(xlabel="epoch", title="Scores on val", ylim=(0, 1))
    left.legend()
    right.legend()
    return figure


def _ood(scores: dict[str, np.ndarray], threshold: float) -> Figure:
    """The out-of-distribution score of each kind of image."""
    figure, axes = _new(6.4, 4.6)
    axes.boxplot(list(scores.values()), whis=(5, 95), showfliers=False)
    axes.set_xticks(range(1, len(scores) + 1), list(scores), rotation=45, ha="right")
    axes.axhline(threshold, color="firebrick", linestyle="--", label="threshold: abstain above")
    spread = np.concatenate(list(scores.values()))
    if spread.min() > 0 and spread.max() > 20 * np.median(scores["test"]):
        axes.set_yscale("log")
    axes.set(ylabel="OOD score", title="Abstention: 5th to 95th percentile by kind of image")
    axes.legend()
    return figure


def _external(rows: dict[str, dict[str, Any]]) -> Figure:
    """Each headline number of the model's own test above that of the external dataset, with their intervals."""
    shown = {
        name: row for name, row in rows.items() if None not in (row["internal"]["value"], row["external"]["value"])
    }
    figure, axes = _new(width=6.4, height=1 + 0.34 * len(shown))
    for offset, colour, side in ((-0.12, "tab:blue", "internal"), (0.12, "tab:orange", "external")):
        for place, row in enumerate(shown.values()):
            value, low, high = (row[side].get(bound) for bound in ("value", "low", "high"))
            if low is not None and high is not None:
                axes.plot([low, high], [place + offset] * 2, color=colour)
            axes.plot([value], [place + offset], "o", color=colour, label=f"{side} test" if place == 0 else None)
    axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown])
    axes.invert_yaxis()
    axes.set(title="Own test and external dataset, 95 % intervals")
    if shown:
        axes.legend(loc="best")
    return figure
