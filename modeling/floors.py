"""What a score is worth: floors that see no pixels, and scores by source, sex, age and body site."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from modeling.calibration import OperatingPoint
from modeling.intervals import Resampling, estimate, estimate_share, not_estimable
from modeling.metrics import resampled_balanced_accuracy, score_balanced

NO_PIXEL_INPUTS = ("age_approx", "sex", "anatom_site_general", "source")
MIN_LESIONS = 30
AGE_EDGES_YEARS = (0, 30, 45, 60, 75, 200)
AGE_BANDS = ("0-29", "30-44", "45-59", "60-74", "75+")
UNKNOWN = "unknown"


def no_pixel_calls(train: pd.DataFrame, test: pd.DataFrame, codes: Sequence[str]) -> np.ndarray:
    """Diagnose test images from age, sex, body site and source alone; labels (N,) into `codes`.

    Logistic regression with class weights on the categories (age is given in steps of 5 years), fitted on train: what
    can be reached by reading nothing but the form that came with the picture. Boosted trees and forests were no better.

    Args:
        train: Columns `label` (code) and NO_PIXEL_INPUTS, one row an image.
        test: The same columns.
        codes: Diagnoses of the model.
    """
    floor = make_pipeline(
        OneHotEncoder(handle_unknown="ignore"), LogisticRegression(class_weight="balanced", max_iter=3000)
    )
    called = floor.fit(_inputs(train), train["label"].to_numpy(dtype=object)).predict(_inputs(test))
    return np.array([list(codes).index(code) for code in called])


def _inputs(table: pd.DataFrame) -> np.ndarray:
    """Every input as a category, the blank one included, shape (N, 4)."""
    return np.stack(
        [table[name].fillna(UNKNOWN).astype(str).to_numpy(dtype=object) for name in NO_PIXEL_INPUTS], axis=1
    )


def score_floors(
    train: pd.DataFrame, test: pd.DataFrame, called: np.ndarray, codes: Sequence[str], resampling: Resampling
) -> dict[str, Any]:
    """Return the balanced accuracy of the floors beside the model's, and how far it is above them, with intervals.

    Args:
        train: Columns `label` (code) and NO_PIXEL_INPUTS.
        test: The same columns, in the order of `called`.
        called: What the model calls each test image, shape (N,).
        codes: Diagnoses of the model.
        resampling: Of the test lesions.
    """
    labels = np.array([list(codes).index(code) for code in test["label"]])
    model, _ = score_balanced(called, labels, codes, resampling)
    model_resampled = resampled_balanced_accuracy(called, labels, len(codes), resampling)
    majority = list(codes).index(str(train["label"].value_counts().idxmax()))
    floors = {
        "no_pixels": (no_pixel_calls(train, test, codes), f"only {', '.join(NO_PIXEL_INPUTS)}"),
        "majority": (np.full(len(labels), majority), f"always {codes[majority]}, the most frequent in train"),
    }
    result: dict[str, Any] = {"model": {"balanced_accuracy": model}}
    for name, (floor_called, sees) in floors.items():
        floor, _ = score_balanced(floor_called, labels, codes, resampling)
        difference = model_resampled - resampled_balanced_accuracy(floor_called, labels, len(codes), resampling)
        gain = (
            estimate(model["value"] - floor["value"], difference, resampling.n_lesions)
            if model["value"] is not None and floor["value"] is not None
            else not_estimable("one of the two is not estimable")
        )
        result[name] = {
            "sees": sees,
            "balanced_accuracy": floor,
            "accuracy": estimate_share(floor_called == labels, labels >= 0, resampling, reason="no image"),
            "model_minus_floor": gain,
        }
    return result


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
    resampling: Resampling,
) -> dict[str, Any]:
    """Return scores by source, sex, age band and site; a number on fewer than 30 lesions is suppressed.

    Args:
        table: Columns `source`, `sex`, `age_approx`, `anatom_site_general` of the images, in their order.
        probs: Calibrated probabilities, shape (N, C).
        labels: True labels, shape (N,).
        codes: Diagnoses of the model.
        points: Operating points, whose sensitivity and specificity are given for each group.
        resampling: Of the lesions of these N images.
    """
    result: dict[str, Any] = {}
    for name, groups in group_columns(table).items():
        result[name] = {
            group: _score_group(groups.to_numpy() == group, probs, labels, codes, points, resampling)
            for group in sorted(groups.unique())
        }
    return result


def _score_group(
    chosen: np.ndarray,
    probs: np.ndarray,
    labels: np.ndarray,
    codes: Sequence[str],
    points: Sequence[OperatingPoint],
    resampling: Resampling,
) -> dict[str, Any]:
    inside = resampling.of(chosen)
    scores: dict[str, Any] = {"n_images": int(chosen.sum()), "n_lesions": inside.n_lesions}
    if inside.n_lesions < MIN_LESIONS:
        return {**scores, "suppressed": f"fewer than {MIN_LESIONS} lesions"}
    probs, labels = probs[chosen], labels[chosen]
    called = probs.argmax(axis=1)

    def share(hits: np.ndarray, counted: np.ndarray, what: str) -> dict[str, Any]:
        if len(np.unique(inside.lesion_index[counted])) < MIN_LESIONS:
            return not_estimable(f"suppressed: fewer than {MIN_LESIONS} lesions {what}")
        return estimate_share(hits, counted, inside, reason="no image")

    balanced, present = score_balanced(called, labels, codes, inside)
    scores |= {
        "accuracy": share(called == labels, labels >= 0, "in the group"),
        "balanced_accuracy": balanced,
        "diagnoses": present,
        "recall": {code: share(called == index, labels == index, code) for index, code in enumerate(codes)},
    }
    for point in points:
        is_positive = np.isin(labels, [list(codes).index(code) for code in point.codes])
        reached = point.reached(probs, codes)
        scores[point.name] = {
            "sensitivity": share(reached, is_positive, "to be caught"),
            "specificity": share(~reached, ~is_positive, "to be cleared"),
        }
    return scores
