"""Scores by source, sex, age and body site; numbers on few lesions are suppressed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from modeling.evaluation.baselines import UNKNOWN
from modeling.evaluation.bootstrap import Estimate, not_estimable
from modeling.evaluation.metrics import score_balanced
from modeling.evaluation.split import Split, estimate_rate
from modeling.operating_points import OperatingPoint

MIN_LESIONS = 30
AGE_EDGES_YEARS = (0, 30, 45, 60, 75, 200)
AGE_BANDS = ("0-29", "30-44", "45-59", "60-74", "75+")


def score_groups(test: Split, points: Sequence[OperatingPoint]) -> dict[str, Any]:
    """Return scores by source, sex, age band and site; a number on fewer than MIN_LESIONS lesions is suppressed."""
    assert test.table is not None
    return {
        name: {group: _score_group(test, groups.to_numpy() == group, points) for group in sorted(groups.unique())}
        for name, groups in group_columns(test.table).items()
    }


def group_columns(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return the group of each image by source, sex, age band and body site."""
    age = pd.to_numeric(table["age_approx"])
    bands = pd.cut(age, AGE_EDGES_YEARS, right=False, labels=AGE_BANDS).astype(object)
    columns = {"source": table["source"], "sex": table["sex"], "age_years": bands, "site": table["anatom_site_general"]}
    return {name: column.where(column.notna(), UNKNOWN).astype(str) for name, column in columns.items()}


def _score_group(test: Split, chosen: np.ndarray, points: Sequence[OperatingPoint]) -> dict[str, Any]:
    n_lesions = test.bootstrap.count(chosen)
    scores: dict[str, Any] = {"n_images": int(chosen.sum()), "n_lesions": n_lesions}
    if n_lesions < MIN_LESIONS:
        return {**scores, "suppressed": f"fewer than {MIN_LESIONS} lesions"}
    group = test.subset(chosen)

    def rate(hits: np.ndarray, among: np.ndarray, what: str) -> Estimate:
        if group.bootstrap.count(among) < MIN_LESIONS:
            return not_estimable(f"suppressed: fewer than {MIN_LESIONS} lesions {what}")
        return estimate_rate(hits, group, among=among)

    # Otherwise a diagnosis with one lesion would weigh as much as one with 300.
    enough = [label for label in group.present if group.bootstrap.count(group.labels == label) >= MIN_LESIONS]
    balanced = not_estimable(f"suppressed: fewer than two diagnoses with {MIN_LESIONS} lesions")
    if len(enough) >= 2:
        part = group.subset(np.isin(group.labels, enough))
        balanced = score_balanced(part.predicted, part)
    return {
        **scores,
        "balanced_accuracy": balanced,
        "diagnoses": [group.codes[label] for label in enough],
        "recall": {
            code: rate(group.predicted == label, group.labels == label, f"of {code}")
            for code, label in group.label_of.items()
        },
        "operating_points": {
            point.name: {
                "sensitivity": rate(group.reached(point), group.shows(point.codes), "with one of its diagnoses"),
                "specificity": rate(~group.reached(point), ~group.shows(point.codes), "without its diagnoses"),
            }
            for point in points
        },
    }
