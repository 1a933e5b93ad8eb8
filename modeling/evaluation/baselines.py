"""Baselines that do not use the image: metadata-only and majority class."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from modeling.evaluation.context import METADATA, Context
from modeling.evaluation.metrics import score_balanced
from modeling.evaluation.split import Split, estimate_rate

UNKNOWN = "unknown"


def baselines_section(context: Context) -> dict[str, Any]:
    """Fit both baselines on train and score them on test, beside the model."""
    train = context.table.loc[context.splits["image_id"][context.splits["split"] == "train"]]
    if train["label"].nunique() < 2:
        return {"reason": "the splits have no train images of two diagnoses to fit a baseline on"}
    return score_baselines(train, context.test)


def score_baselines(train: pd.DataFrame, test: Split) -> dict[str, Any]:
    """Return balanced accuracy and accuracy of the baselines, and the gain of the model over them.

    The metadata-only baseline is a logistic regression with class weights on the columns that vary in train, each value a
    category (age is given in steps of 5 years); there is none if no column varies. Boosted trees and forests were no better.
    """
    assert test.table is not None
    majority = str(train["label"].value_counts().idxmax())
    predictions = {"majority": ([majority] * len(test), f"nothing: always {majority}, the most frequent in train")}
    if columns := [name for name in METADATA if train[name].fillna(UNKNOWN).nunique() > 1]:
        predicted = metadata_only_predictions(train, test.table, columns)
        predictions["metadata_only"] = predicted.tolist(), f"only {', '.join(columns)}"
    return {name: _score(codes, test, sees) for name, (codes, sees) in predictions.items()}


def metadata_only_predictions(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Predict the diagnosis of test images from some of METADATA alone; codes (N,)."""
    baseline = make_pipeline(
        OneHotEncoder(handle_unknown="ignore"), LogisticRegression(class_weight="balanced", max_iter=3000)
    )
    # A missing value is a category, too.
    known, asked = (
        np.stack([table[name].fillna(UNKNOWN).astype(str).to_numpy(dtype=object) for name in columns], axis=1)
        for table in (train, test)
    )
    return baseline.fit(known, train["label"].to_numpy(dtype=object)).predict(asked)


def _score(codes: list[str], test: Split, sees: str) -> dict[str, Any]:
    predicted = np.array([test.label_of[code] for code in codes])
    return {
        "sees": sees,
        "balanced_accuracy": score_balanced(predicted, test),
        "accuracy": estimate_rate(predicted == test.labels, test),
        "model_minus_baseline": score_balanced(test.predicted, test, minus=predicted),
    }
