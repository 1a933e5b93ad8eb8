"""The figures of a model folder, plotted from numbers alone: they show no image of a patient.

They are 390 px wide on a phone and have a transparent background, so that they fit light and dark pages. matplotlib's objects
are used and not pyplot, which keeps a global state.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.calibration import CalibrationDisplay
from sklearn.metrics import ConfusionMatrixDisplay, RocCurveDisplay

from modeling.evaluation.context import Context
from modeling.evaluation.metrics import equal_mass_bins
from modeling.evaluation.sections import calibrated
from modeling.formatting import format_number
from modeling.labels import diagnosis_of
from modeling.operating_points import operating_targets, target_probability

SIZE_INCHES, DPI = (3.9, 3.6), 200
GREY = "#777777"  # contrast of 4.2 or more with white and with a dark page
STYLE: Any = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 10,
    "legend.fontsize": 9,
    "legend.framealpha": 0,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
}


def draw_figures(folder: Path, metrics: Mapping[str, Any], context: Context) -> list[dict[str, str]]:
    """Draw the figures of one evaluation into a folder; return file, title, caption and alt text of each."""
    folder.mkdir(parents=True, exist_ok=True)
    described = []
    with mpl.rc_context(STYLE):
        for name, draw in {"roc": _roc, "reliability": _reliability, "confusion": _confusion}.items():
            figure = Figure(figsize=SIZE_INCHES, layout="constrained")
            words = draw(figure.add_subplot(), metrics, context)
            figure.savefig(folder / f"{name}.png", dpi=DPI)
            described.append({"file": f"{name}.png", **words})
    return described


def _roc(axes: Axes, metrics: Mapping[str, Any], context: Context) -> dict[str, str]:
    test = context.test
    # The curves of the operating points' targets, or of all diagnoses where there are no such targets.
    targets = operating_targets(test.codes) or {code: (code,) for code in test.codes}
    areas = []
    for codes in targets.values():
        is_positive, name = test.shows(codes), diagnosis_of(codes[0]).name if len(codes) == 1 else "malignancy"
        if is_positive.any() and not is_positive.all():
            scores = target_probability(test.probs, test.codes, codes)
            display = RocCurveDisplay.from_predictions(is_positive, scores, ax=axes, name=name, plot_chance_level=False)
            areas.append(f"{name[0].upper()}{name[1:]} AUROC {display.roc_auc:.2f}")
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":")
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.01), aspect="auto")
    if areas:
        axes.legend(loc="lower right")
    return {
        "title": areas[0] if areas else "No ROC curve: test has one diagnosis",
        "caption": "ROC curves on test: sensitivity against 1 − specificity over all thresholds.",
        "alt": f"ROC curves on test. {'; '.join(areas) or 'There is none'}.",
    }


def _reliability(axes: Axes, metrics: Mapping[str, Any], context: Context) -> dict[str, str]:
    for moment, probs in calibrated(context).items():
        confidence, bins = probs.max(axis=1), equal_mass_bins(probs.max(axis=1))
        stated, correct = (
            np.bincount(bins, weights=values) / np.bincount(bins)
            for values in (confidence, probs.argmax(axis=1) == context.test.labels)
        )
        CalibrationDisplay(correct, stated, confidence).plot(ax=axes, name=f"{moment} calibration", ref_line=False)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    axes.set(
        xlabel="probability of the prediction", ylabel="fraction correct", xlim=(0, 1), ylim=(0, 1.01), aspect="auto"
    )
    axes.legend(loc="upper left")
    ece = {name: format_number(scores["ece"]["value"], 2) for name, scores in metrics["calibration"]["test"].items()}
    return {
        "title": f"Calibration error {ece['after']}",
        "caption": "Probability of the prediction against the fraction correct on test, at the dataset's mix of diagnoses, in "
        "bins of equally many images.",
        "alt": f"Reliability diagram on test. Calibration error (ECE) {ece['before']} before calibration, {ece['after']} after.",
    }


def _confusion(axes: Axes, metrics: Mapping[str, Any], context: Context) -> dict[str, str]:
    confusion, codes = np.array(metrics["test"]["confusion"]), context.classifier.codes
    fraction = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    size = {"fontsize": 10 if len(codes) <= 5 else 7}
    ConfusionMatrixDisplay(fraction, display_labels=codes).plot(
        ax=axes, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1}, values_format=".0%", text_kw=size
    )
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(labelsize=size["fontsize"])
    recalls = ", ".join(
        f"{code} {format_number(metrics['test']['per_class'][code]['recall']['value'], 2)}" for code in codes
    )
    return {
        "title": f"Balanced accuracy {format_number(metrics['test']['balanced_accuracy']['value'], 2)}",
        "caption": "Confusion matrix on test: of the images of each true diagnosis (row), the fraction predicted as each "
        "diagnosis (column).",
        "alt": f"Confusion matrix on test. Recall: {recalls}.",
    }
