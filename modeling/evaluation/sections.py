"""The sections of metrics.json that need no file of their own, one function of the context each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from modeling.abstention import AbstentionRule
from modeling.calibration import softmax
from modeling.data.splits import lesions_of
from modeling.data.splits_file import describe_split, splits_hash
from modeling.evaluation.bootstrap import Estimate, bootstrap_lesions, estimate, not_estimable, replicated_auroc
from modeling.evaluation.context import METADATA, Context
from modeling.evaluation.metrics import score_balanced, score_calibration, score_operating_point
from modeling.evaluation.split import Split, estimate_rate
from modeling.labels import diagnosis_of
from modeling.operating_points import OperatingPoint
from modeling.schema import plain

UNKNOWN = "unknown"
MIN_LESIONS = 30  # a number on fewer is suppressed
AGE_EDGES_YEARS = (0, 30, 45, 60, 75, 200)
AGE_BANDS = ("0-29", "30-44", "45-59", "60-74", "75+")


def model_section(context: Context) -> dict[str, Any]:
    classifier = context.classifier
    return {
        "codes": list(classifier.codes),
        "names": classifier.names,
        "architecture": classifier.architecture,
        "image_size_px": classifier.size_px,
        **{key: classifier.lesion.get(key) for key in ("weights_sha256", "license", "run_id", "package_version")},
        "revision": classifier.revision,
        "engine": classifier.engine.name,
        "class_priors": classifier.class_priors,
    }


def data_section(context: Context) -> dict[str, Any]:
    lesion, splits, table, codes = context.classifier.lesion, context.splits, context.table, context.classifier.codes
    external, other = context.external, table["label"][~table["label"].isin(codes)].value_counts()
    said = describe_split(splits, patients=table.get("patient_id"))
    lesions = lesions_of(splits, splits["image_id"].tolist())
    parts = {name: splits["split"] == name for name in ("train", "val", "test")}
    return {
        "dataset": external.dataset_name if external else lesion.get("dataset"),
        "synthetic": bool(lesion.get("synthetic")),
        "fingerprint": external.data_fingerprint if external else lesion.get("data_fingerprint"),
        "splits_sha256": splits_hash(splits),
        "protocol": context.protocol,
        **said,
        "test_source": ", ".join(context.run.get("options", {}).get("test_source") or ()) or None,
        "leakage": {name: said["leakage"].get(name) for name in ("overall", *codes)},
        "flow": {
            "in_dataset": len(table),
            "skipped": context.n_skipped,
            "other_diagnoses": {str(code): int(n) for code, n in sorted(other.items())},
            "splits": {
                name: {
                    "n_images": int(chosen.sum()),
                    "n_lesions": len(np.unique(lesions[chosen])),
                    "per_class": {code: int((splits["label"][chosen] == code).sum()) for code in codes},
                }
                for name, chosen in parts.items()
            },
        },
        "sources": {
            str(name): int(n) for name, n in sorted(table.loc[splits["image_id"]]["source"].value_counts().items())
        },
    }


def calibration_section(context: Context) -> dict[str, Any]:
    """Score the calibration on test; val was used to fit it."""
    stored = context.classifier.lesion.get("calibration")
    return {
        "fitted": plain(stored) if stored else {"reason": "the calibration is not recorded in config.json"},
        "test": {moment: score_calibration(probs, context.test) for moment, probs in calibrated(context).items()},
    }


def calibrated(context: Context) -> dict[str, np.ndarray]:
    """Return the probabilities of test before and after calibration, at the dataset's mix, each (N, C)."""
    stored, test = context.classifier.lesion.get("calibration"), context.test
    assert test.outputs is not None
    before = softmax(stored.undo(test.outputs.logits)) if stored else test.probs_at_mix
    return {"before": before, "after": test.probs_at_mix}


def operating_points_section(context: Context) -> list[dict[str, Any]]:
    return [
        {
            "name": point.name,
            "codes": list(point.codes),
            "target_sensitivity": point.target_sensitivity,
            "threshold": point.threshold,
            "val": {key: getattr(point, key) for key in ("sensitivity", "specificity", "n_positive", "n_negative")},
            "test": score_operating_point(point, context.test),
        }
        for point in context.classifier.operating_points
    ]


def abstention_section(context: Context) -> dict[str, Any]:
    """Measure the abstention rule on test, and on diagnoses and images that the model was not trained on."""
    rule, test = context.classifier.abstention, context.test
    if rule is None:
        return {"reason": "this model has no abstention rule"}
    abstained = _scores(rule, test) > rule.threshold
    unanswered = not_estimable("the model abstained on every image")
    answered: dict[str, Any] = {"accuracy": unanswered, "balanced_accuracy": unanswered}
    if not abstained.all():
        part = test.subset(~abstained)
        answered = {
            "accuracy": estimate_rate(part.predicted_at_mix == part.labels, part),
            "balanced_accuracy": score_balanced(part.predicted, part),
        }
    # Both belong to the model alone: an external evaluation does not measure them again.
    near, far = ({}, {}) if context.external else (context.other_diagnoses, context.far_images)
    return {
        "method": rule.method,
        "threshold": rule.threshold,
        "false_alarm_rate": rule.false_alarm_rate,
        "test": {
            "abstained": estimate_rate(abstained, test),
            "answered": {"n_images": int((~abstained).sum()), **answered},
        },
        "near": {
            code: {
                "malignant": diagnosis_of(code).malignant,
                **_score_detection(rule, test, images),
                "above": {
                    point.name: estimate_rate(images.reached(point), images)
                    for point in context.classifier.operating_points
                },
            }
            for code, images in near.items()
        },
        "far": {kind: _score_detection(rule, test, images) for kind, images in far.items()},
    }


def _scores(rule: AbstentionRule, split: Split) -> np.ndarray:
    assert split.outputs is not None
    return rule.score(split.outputs.logits, split.outputs.features)


def _score_detection(rule: AbstentionRule, test: Split, outside: Split) -> dict[str, Any]:
    """Return how well the OOD score separates one kind of image from test, and how many of them are refused."""
    inside_scores, outside_scores = _scores(rule, test), _scores(rule, outside)
    scores = np.concatenate([inside_scores, outside_scores])
    lesions = [*(f"in {lesion}" for lesion in test.lesion_ids), *(f"out {lesion}" for lesion in outside.lesion_ids)]
    aurocs = replicated_auroc(scores, np.arange(len(scores)) >= len(test), bootstrap_lesions(lesions))
    return {
        "n_images": len(outside),
        "n_lesions": outside.n_lesions,
        "auroc": estimate(aurocs, outside.n_lesions),
        "abstained": estimate_rate(outside_scores > rule.threshold, outside),
    }


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
    return {name: _score_baseline(codes, test, sees) for name, (codes, sees) in predictions.items()}


def metadata_only_predictions(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Predict the diagnosis of test images from some of METADATA alone; codes (N,)."""
    baseline = make_pipeline(
        OneHotEncoder(handle_unknown="ignore"), LogisticRegression(class_weight="balanced", max_iter=3000)
    )
    # A missing value is a category, too.
    known, asked = (table[columns].fillna(UNKNOWN).astype(str).to_numpy(dtype=object) for table in (train, test))
    return baseline.fit(known, train["label"].to_numpy(dtype=object)).predict(asked)


def _score_baseline(codes: list[str], test: Split, sees: str) -> dict[str, Any]:
    predicted = np.array([test.label_of[code] for code in codes])
    return {
        "sees": sees,
        "balanced_accuracy": score_balanced(predicted, test),
        "accuracy": estimate_rate(predicted == test.labels, test),
        "model_minus_baseline": score_balanced(test.predicted, test, minus=predicted),
    }


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


def training_section(context: Context) -> dict[str, Any]:
    """Return the options, the initial weights, and one record for each epoch."""
    options, history = context.run.get("options", {}), context.run.get("history", [])
    selection = "val/accuracy" if options.get("recipe") == "original" else "val/balanced_accuracy"
    best = max(history, key=lambda record: record[selection], default=None)
    return {
        "options": {name: value for name, value in options.items() if value is not None},
        "origin": context.run.get("origin"),
        "history": history,
        "best_epoch": best["epoch"] if best else None,
        "selection": selection.removeprefix("val/").replace("_", " "),
    }
