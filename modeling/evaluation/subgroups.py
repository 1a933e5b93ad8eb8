"""Scores by source, sex, age and site; numbers on few lesions are suppressed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from modeling.calibration import OperatingPoint
from modeling.evaluation.baselines import UNKNOWN
from modeling.evaluation.bootstrap import Bootstrap, estimate_rate, not_estimable
from modeling.evaluation.metrics import score_balanced

MIN_LESIONS = 30
AGE_EDGES_YEARS = (0, 30, 45, 60, 75, 200)
AGE_BANDS = ("0-29", "30-44", "45-59", "60-74", "75+")


def group_columns(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the group of each image by source, sex, age band and body site."""
    age = pd.to_numeric(table["age_approx"])
    bands = pd.cut(age, AGE_EDGES_YEARS, right=False, labels=AGE_BANDS).astype(object)
    columns = {"source": table["source"], "sex": table["sex"], "age_years": bands, "site": table["anatom_site_general"]}
    return {name: column.where(column.notna(), UNKNOWN).astype(str) for name, column in columns.items()}


def score_groups(
    table: pd.DataFrame,
    probs: np.ndarray,
    labels: np.ndarray,
    codes: Sequence[str],
    points: Sequence[OperatingPoint],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Return scores by source, sex, age band and site; a number on fewer than 30 lesions is suppressed.

    Args:
        table: Columns `source`, `sex`, `age_approx`, `anatom_site_general` of the images, in their order.
        probs: Calibrated probabilities, shape (N, C).
        labels: True labels, shape (N,).
        codes: Diagnoses of the model.
        points: Operating points, whose sensitivity and specificity are given for each group.
        bootstrap: Of the lesions of these N images.
    """
    result: dict[str, Any] = {}
    for name, groups in group_columns(table).items():
        result[name] = {
            group: _score_group(groups.to_numpy() == group, probs, labels, codes, points, bootstrap)
            for group in sorted(groups.unique())
        }
    return result


def _score_group(
    chosen: np.ndarray,
    probs: np.ndarray,
    labels: np.ndarray,
    codes: Sequence[str],
    points: Sequence[OperatingPoint],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    inside = bootstrap.of(chosen)
    scores: dict[str, Any] = {"n_images": int(chosen.sum()), "n_lesions": inside.n_lesions}
    if inside.n_lesions < MIN_LESIONS:
        return {**scores, "suppressed": f"fewer than {MIN_LESIONS} lesions"}
    probs, labels = probs[chosen], labels[chosen]
    predicted = probs.argmax(axis=1)

    def share(hits: np.ndarray, counted: np.ndarray, what: str) -> dict[str, Any]:
        if len(np.unique(inside.lesion_index[counted])) < MIN_LESIONS:
            return not_estimable(f"suppressed: fewer than {MIN_LESIONS} lesions {what}")
        return estimate_rate(hits, counted, inside, reason="no image")

    balanced, present = score_balanced(predicted, labels, codes, inside)
    scores |= {
        "accuracy": share(predicted == labels, labels >= 0, "in the group"),
        "balanced_accuracy": balanced,
        "diagnoses": present,
        "recall": {code: share(predicted == index, labels == index, code) for index, code in enumerate(codes)},
    }
    for point in points:
        is_positive = np.isin(labels, [list(codes).index(code) for code in point.codes])
        reached = point.reached(probs, codes)
        scores[point.name] = {
            "sensitivity": share(reached, is_positive, "to be caught"),
            "specificity": share(~reached, ~is_positive, "to be cleared"),
        }
    return scores
