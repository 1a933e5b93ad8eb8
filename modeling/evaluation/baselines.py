"""What a score is worth: baselines that see no pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from modeling.evaluation.bootstrap import Bootstrap, estimate_rate
from modeling.evaluation.context import METADATA
from modeling.evaluation.metrics import balanced_accuracy_gain, score_balanced

UNKNOWN = "unknown"


def metadata_only_predictions(train: pd.DataFrame, test: pd.DataFrame, codes: Sequence[str]) -> np.ndarray:
    """Diagnose test images from age, sex, body site and source alone; labels (N,) into `codes`.

    Logistic regression with class weights on the categories (age is given in steps of 5 years), fitted on train: what
    can be reached by reading nothing but the form that came with the image. Boosted trees and forests were no better.
    """
    baseline = make_pipeline(
        OneHotEncoder(handle_unknown="ignore"), LogisticRegression(class_weight="balanced", max_iter=3000)
    )
    predicted = baseline.fit(_inputs(train), train["label"].to_numpy(dtype=object)).predict(_inputs(test))
    return np.array([list(codes).index(code) for code in predicted])


def _inputs(table: pd.DataFrame) -> np.ndarray:
    """Every input as a category, the blank one included, shape (N, 4)."""
    return np.stack([table[name].fillna(UNKNOWN).astype(str).to_numpy(dtype=object) for name in METADATA], axis=1)


def score_baselines(
    train: pd.DataFrame, test: pd.DataFrame, predicted: np.ndarray, codes: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return balanced accuracy of the baselines beside the model's, `predicted` (N,), and how far it is above them."""
    labels = np.array([list(codes).index(code) for code in test["label"]])
    majority = list(codes).index(str(train["label"].value_counts().idxmax()))
    baselines = {
        "metadata_only": (metadata_only_predictions(train, test, codes), f"only {', '.join(METADATA)}"),
        "majority": (np.full(len(labels), majority), f"always {codes[majority]}, the most frequent in train"),
    }
    result: dict[str, Any] = {"model": {"balanced_accuracy": score_balanced(predicted, labels, codes, bootstrap)}}
    for name, (answers, sees) in baselines.items():
        result[name] = {
            "sees": sees,
            "balanced_accuracy": score_balanced(answers, labels, codes, bootstrap),
            "accuracy": estimate_rate(answers == labels, labels >= 0, bootstrap, reason="no image"),
            "model_minus_baseline": balanced_accuracy_gain(predicted, answers, labels, codes, bootstrap),
        }
    return result
