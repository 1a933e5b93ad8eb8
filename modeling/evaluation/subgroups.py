"""Scores by source, sex, age and site; numbers on few lesions are suppressed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from modeling.evaluation.baselines import UNKNOWN
from modeling.evaluation.bootstrap import estimate_rate, not_estimable
from modeling.evaluation.context import Split
from modeling.evaluation.metrics import score_balanced
from modeling.operating_points import OperatingPoint, shows_target

MIN_LESIONS = 30
AGE_EDGES_YEARS = (0, 30, 45, 60, 75, 200)
AGE_BANDS = ("0-29", "30-44", "45-59", "60-74", "75+")


def group_columns(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the group of each image by source, sex, age band and body site."""
    age = pd.to_numeric(table["age_approx"])
    bands = pd.cut(age, AGE_EDGES_YEARS, right=False, labels=AGE_BANDS).astype(object)
    columns = {"source": table["source"], "sex": table["sex"], "age_years": bands, "site": table["anatom_site_general"]}
    return {name: column.where(column.notna(), UNKNOWN).astype(str) for name, column in columns.items()}


def score_groups(test: Split, points: Sequence[OperatingPoint]) -> dict[str, Any]:
    """Return scores by source, sex, age band and site; a number on fewer than 30 lesions is suppressed."""
    return {
        name: {group: _score_group(test, groups.to_numpy() == group, points) for group in sorted(groups.unique())}
        for name, groups in group_columns(test.rows).items()
    }


def _score_group(test: Split, chosen: np.ndarray, points: Sequence[OperatingPoint]) -> dict[str, Any]:
    codes, inside = test.codes, test.bootstrap.of(chosen)
    scores: dict[str, Any] = {"n_images": int(chosen.sum()), "n_lesions": inside.n_lesions}
    if inside.n_lesions < MIN_LESIONS:
        return {**scores, "suppressed": f"fewer than {MIN_LESIONS} lesions"}
    probs, labels, predicted = test.probs[chosen], test.labels[chosen], test.predicted[chosen]

    def rate(hits: np.ndarray, counted: np.ndarray, what: str) -> dict[str, Any]:
        if inside.count(counted) < MIN_LESIONS:
            return not_estimable(f"suppressed: fewer than {MIN_LESIONS} lesions {what}")
        return estimate_rate(hits, counted, inside, reason="no image")

    # The guard holds for each diagnosis that the mean is made of: one lesion of BKL would weigh as much as 300 of NV.
    enough = [index for index in range(len(codes)) if inside.count(labels == index) >= MIN_LESIONS]
    counted = np.isin(labels, enough)
    if len(enough) < 2:
        balanced = not_estimable(f"suppressed: fewer than two diagnoses with {MIN_LESIONS} lesions")
    else:
        balanced = score_balanced(predicted[counted], labels[counted], codes, inside.of(counted))
    scores |= {
        "accuracy": rate(predicted == labels, labels >= 0, "in the group"),
        "balanced_accuracy": balanced,
        "diagnoses": [codes[index] for index in enough],
        "recall": {code: rate(predicted == index, labels == index, code) for index, code in enumerate(codes)},
    }
    for point in points:
        is_positive = shows_target(labels, codes, point.codes)
        reached = point.reached(probs, codes)
        scores[point.name] = {
            "sensitivity": rate(reached, is_positive, "to be caught"),
            "specificity": rate(~reached, ~is_positive, "to be cleared"),
        }
    return scores
