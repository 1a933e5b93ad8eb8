"""The sections of metrics.json that need no file of their own, one function of the context each."""

from typing import Any

import numpy as np

from modeling.abstention import AbstentionRule
from modeling.calibration import softmax
from modeling.data.splits import lesions_of
from modeling.data.splits_file import describe_split, splits_hash
from modeling.evaluation.bootstrap import (
    LEVEL,
    N_REPLICATES,
    SEED,
    bootstrap_lesions,
    estimate,
    not_estimable,
    replicated_auroc,
)
from modeling.evaluation.context import Context
from modeling.evaluation.metrics import score_balanced, score_calibration, score_operating_point
from modeling.evaluation.split import Split, estimate_rate
from modeling.labels import diagnosis_of
from modeling.schema import plain

INTERVALS = {
    "method": "percentile bootstrap; Clopper-Pearson for a rate of 0 or 1, where all lesions agree",
    "level": LEVEL,
    "n_replicates": N_REPLICATES,
    "seed": SEED,
    "unit": "lesion",
}


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


def training_section(context: Context) -> dict[str, Any]:
    """Return the options that had an effect, the initial weights, and one record for each epoch."""
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
