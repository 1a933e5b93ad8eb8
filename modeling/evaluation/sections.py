"""The sections of metrics.json, one function of the context each; `evaluate.py` puts them together and holds the schema."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from modeling.abstention import AbstentionRule
from modeling.calibration import softmax
from modeling.data.splits import leakage, splits_hash
from modeling.engines import BATCH_SIZE
from modeling.evaluation.baselines import score_baselines
from modeling.evaluation.bootstrap import (
    LEVEL,
    N_REPLICATES,
    SEED,
    bootstrap_lesions,
    estimate,
    estimate_rate,
    not_estimable,
    replicated_ranking,
)
from modeling.evaluation.context import SAMPLE_WORDS, Context, Outside, Split, classify_images, track
from modeling.evaluation.metrics import (
    by_lesion,
    reliability_table,
    risk_coverage,
    score_balanced,
    score_calibration,
    score_detection,
    score_operating_point,
    score_split,
)
from modeling.evaluation.ood import CHOSEN_ON, FAR_KINDS
from modeling.evaluation.reference import compare
from modeling.evaluation.robustness import CHANGES, change_images, score_change
from modeling.evaluation.saliency import MASK_NAME, read_mask, score_heat_maps, score_road
from modeling.evaluation.subgroups import score_groups
from modeling.labels import diagnosis_of
from modeling.operating_points import TARGET_SENSITIVITIES, operating_targets, shows_target
from modeling.schema import plain as plain_json

COVERAGES = (1.0, 0.9, 0.8, 0.5)
N_FAILURES = 10
NO_VAL = {"reason": "the splits have no val images"}


def model_section(context: Context) -> dict[str, Any]:
    classifier = context.classifier
    return {
        "codes": list(classifier.codes),
        "names": classifier.names,
        "architecture": classifier.architecture,
        "image_size_px": classifier.size_px,
        "n_parameters": sum(parameter.numel() for parameter in classifier.engine.network.parameters()),
        **{key: classifier.lesion.get(key) for key in ("weights_sha256", "license", "run_id", "package_version")},
        "revision": classifier.revision,
    }


def data_section(context: Context) -> dict[str, Any]:
    lesion, splits, table, codes = context.classifier.lesion, context.splits, context.table, context.codes
    other = table["label"][~table["label"].isin(codes)].value_counts()
    rates = leakage(splits)  # of the diagnoses that test has
    parts = {name: splits[splits["split"] == name] for name in ("train", "val", "test")}
    return {
        "dataset": context.dataset_name or lesion.get("dataset"),
        "synthetic": bool(lesion.get("synthetic")),
        "fingerprint": context.data_fingerprint or lesion.get("data_fingerprint"),
        "splits_sha256": splits_hash(splits),
        "protocol": context.protocol,
        "split_unit": "image" if context.protocol == "original" else "lesion",
        "leakage": {name: rates.get(name) for name in ("overall", *codes)},
        "flow": {
            "in_dataset": len(table),
            "skipped": context.n_skipped,
            "other_diagnoses": {str(code): int(n) for code, n in sorted(other.items())},
            "splits": {
                name: {
                    "n_images": len(part),
                    "n_lesions": int(part["lesion_id"].where(part["lesion_id"].notna(), part["image_id"]).nunique()),
                    "per_class": {code: int((part["label"] == code).sum()) for code in codes},
                }
                for name, part in parts.items()
            },
        },
        "sources": {
            str(name): int(n) for name, n in sorted(table.loc[splits["image_id"]]["source"].value_counts().items())
        },
    }


def intervals_section(context: Context) -> dict[str, Any]:
    return {
        "method": "percentile bootstrap; Clopper-Pearson on lesions where all agree",
        "level": LEVEL,
        "n_replicates": N_REPLICATES,
        "seed": SEED,
        "unit": "lesion",
    }


def val_section(context: Context) -> dict[str, Any]:
    return NO_VAL if context.val is None else context.val.scores


def test_section(context: Context) -> dict[str, Any]:
    test = context.test
    probs, labels, lesions = by_lesion(test.probs, test.labels, test.rows["lesion_id"].to_numpy())
    of_lesions = score_split(probs, labels, context.codes, bootstrap_lesions(lesions), probs.argmax(axis=1))
    return {**test.scores, "by_lesion": of_lesions}


def calibration_section(context: Context) -> dict[str, Any]:
    stored = context.classifier.lesion.get("calibration")
    result: dict[str, Any] = {"fitted": plain_json(stored) if stored else {"reason": "not recorded in config.json"}}
    for name, split in (("val", context.val), ("test", context.test)):
        if split is None:
            result[name] = NO_VAL
            continue
        result[name] = {
            when: score_calibration(logits, split.labels, context.codes, split.bootstrap)
            for when, logits in (("before", _raw_logits(split)), ("after", split.outputs.logits))
        }
    test = context.test
    result["reliability"] = {
        when: reliability_table(probs.max(axis=1), probs.argmax(axis=1) == test.labels)
        for when, probs in (("before", softmax(_raw_logits(test))), ("after", test.probs))
    }
    return result


def _raw_logits(split: Split) -> np.ndarray:
    """Return the logits (N, C) before calibration; those of a model without any are what they were."""
    return split.outputs.logits if split.outputs.raw_logits is None else split.outputs.raw_logits


def operating_points_section(context: Context) -> list[dict[str, Any]]:
    points = {point.name: point for point in context.classifier.operating_points}
    names = [
        f"{target}@{round(100 * sensitivity)}"
        for target in operating_targets(context.codes)
        for sensitivity in TARGET_SENSITIVITIES
    ]
    result: list[dict[str, Any]] = []
    for name in names:
        if name not in points:
            result.append({"name": name, "reason": "not fitted: val lacks images on one of its two sides"})
            continue
        point, test = points[name], context.test
        result.append(
            {
                "name": name,
                "codes": list(point.codes),
                "target_sensitivity": point.target_sensitivity,
                "threshold": point.threshold,
                "val": {
                    "sensitivity": point.sensitivity,
                    "specificity": point.specificity,
                    "n_positive": point.n_positive,
                    "n_negative": point.n_negative,
                },
                "test": score_operating_point(point, test.probs, test.labels, context.codes, test.bootstrap),
            }
        )
    return result


def abstention_section(context: Context) -> dict[str, Any]:
    """Measure the abstention rule on test, on diagnoses left out, and on images of something else."""
    rule, test = context.classifier.abstention, context.test
    if rule is None:
        return {"reason": "this model has no abstention rule"}
    abstained = rule.abstains(test.outputs.logits, test.outputs.features)
    unanswered = "the model abstained on every image"
    correct = test.predicted == test.labels
    return {
        "method": rule.method,
        "threshold": rule.threshold,
        "false_alarm_rate": rule.false_alarm_rate,
        "test": {
            "abstained": estimate_rate(abstained, abstained | True, test.bootstrap, reason="no image"),
            "answered": {
                "n_images": int((~abstained).sum()),
                "accuracy": estimate_rate(correct, ~abstained, test.bootstrap, reason=unanswered),
                "balanced_accuracy": not_estimable(unanswered)
                if abstained.all()
                else score_balanced(
                    test.predicted[~abstained], test.labels[~abstained], context.codes, test.bootstrap.of(~abstained)
                ),
            },
        },
        "near": {
            kind: {
                "malignant": diagnosis_of(kind).malignant,
                **_score_detection(context, rule, kind),
                **_answers(context, context.outside[kind]),
            }
            for kind in context.outside
            if kind not in FAR_KINDS
        },
        "far": {
            kind: {
                "chose_the_score": kind in CHOSEN_ON,
                **{name: value for name, value in _score_detection(context, rule, kind).items() if name != "n_lesions"},
            }
            for kind in FAR_KINDS
        },
    }


def ood_scores(context: Context) -> dict[str, np.ndarray]:
    """Return the OOD scores of test and of each kind of image outside, each (n,); nothing without an abstention rule."""
    rule = context.classifier.abstention
    if rule is None:
        return {}
    inside = {"test": rule.score(context.test.outputs.logits, context.test.outputs.features)}
    return inside | {kind: rule.score(images.logits, images.features) for kind, images in context.outside.items()}


def _score_detection(context: Context, rule: AbstentionRule, kind: str) -> dict[str, Any]:
    """Return how well the OOD score tells one kind of image from test, and how many of them are refused."""
    test, images = context.test, context.outside[kind]
    inside = rule.score(test.outputs.logits, test.outputs.features)
    outside, own = rule.score(images.logits, images.features), bootstrap_lesions(images.lesions)
    together = bootstrap_lesions(
        [*(f"in {lesion}" for lesion in test.bootstrap.lesion_index), *(f"out {name}" for name in images.lesions)]
    )
    scores = np.concatenate([inside, outside])
    aurocs, _ = replicated_ranking(scores, np.arange(len(scores)) >= len(inside), together)
    point = score_detection(inside, outside)
    return {
        "n_images": len(outside),
        "n_lesions": own.n_lesions,
        "auroc": estimate(point["auroc"], aurocs, own.n_lesions),
        "fpr_at_95_tpr": point["fpr_at_95_tpr"],
        "abstained": estimate_rate(outside > rule.threshold, outside > -np.inf, own, reason="no image"),
    }


def _answers(context: Context, images: Outside) -> dict[str, Any]:
    """Return what images of an unknown diagnosis are predicted, and how many lie above each operating point."""
    probs, own = softmax(images.logits), bootstrap_lesions(images.lesions)
    counts = np.bincount(probs.argmax(axis=1), minlength=len(context.codes))
    return {
        "predicted": dict(zip(context.codes, counts.tolist(), strict=True)),
        "above": {
            point.name: estimate_rate(point.reached(probs, context.codes), probs[:, 0] >= 0, own, reason="no image")
            for point in context.classifier.operating_points
        },
    }


def risk_coverage_section(context: Context) -> dict[str, Any]:
    _, risk = answer_risk(context)
    return {
        "aurc": float(risk.mean()),
        "risk_at_coverage": {
            f"{coverage:.2f}": float(risk[max(round(coverage * len(risk)), 1) - 1]) for coverage in COVERAGES
        },
    }


def answer_risk(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and risk, each (N,), when the first answers to test are given in order of their probability."""
    test = context.test
    confidence = test.probs[np.arange(len(test.labels)), test.predicted]
    return risk_coverage(1 - confidence, test.predicted != test.labels)


def baselines_section(context: Context) -> dict[str, Any]:
    train = context.table.loc[context.splits["image_id"][context.splits["split"] == "train"]]
    if train["label"].nunique() < 2:
        return {"reason": "the splits have no train images of two diagnoses to fit a baseline on"}
    return score_baselines(train, context.test.rows, context.test.predicted, context.codes, context.test.bootstrap)


def groups_section(context: Context) -> dict[str, Any]:
    return {
        **score_groups(context.test, context.classifier.operating_points),
        "not_measured": {"skin tone": "no column of the data gives it, so fairness over skin tones is unknown"},
    }


def robustness_section(context: Context) -> dict[str, Any]:
    sample, codes = context.sample, context.codes

    def score(name: str) -> dict[str, Any]:
        logits, _ = classify_images(context.classifier, change_images(name, sample.images))
        return score_change(sample.predicted, logits.argmax(axis=1), sample.labels, codes, sample.bootstrap)

    return {
        "n_images": len(sample.images),
        "n_lesions": sample.bootstrap.n_lesions,
        "sample": SAMPLE_WORDS,
        "balanced_accuracy": score_balanced(sample.predicted, sample.labels, codes, sample.bootstrap),
        "changes": {name: score(name) for name in track(CHANGES, "robustness")},
    }


def tta_section(context: Context) -> dict[str, Any]:
    """Compare the mean over the eight flips and quarter turns with the plain answer."""
    test, classifier = context.test, context.classifier
    places = np.arange(len(test.labels)) if context.tta_on_all else context.sample.places
    plain, augmented = [], []
    for start in track(range(0, len(places), BATCH_SIZE), "test-time augmentation"):
        images = context.images.load(test.rows["image_id"].iloc[places[start : start + BATCH_SIZE]])
        pixel_values = np.stack([classifier.transform(image) for image in images])
        plain.append(classifier.forward(pixel_values).probs.argmax(axis=1))
        augmented.append(classifier.tta_probs(pixel_values).argmax(axis=1))
    bootstrap = bootstrap_lesions(test.rows["lesion_id"].to_numpy()[places])
    return {
        "views": 8,
        "n_images": len(places),
        "n_lesions": bootstrap.n_lesions,
        "sample": "all of test" if context.tta_on_all else SAMPLE_WORDS,
        **score_change(np.concatenate(plain), np.concatenate(augmented), test.labels[places], context.codes, bootstrap),
    }


def heat_maps_section(context: Context) -> dict[str, Any]:
    """Score the heat maps of the sample: against masks where there are any, and by ROAD on a tenth of it."""
    classifier, masks_dir, sample = context.classifier, context.masks_dir, context.sample
    few = list(range(0, len(sample.images), max(len(sample.images) // max(len(sample.images) // 10, 6), 1)))
    road = score_road(
        classifier, [sample.images[place] for place in few], bootstrap_lesions(sample.rows["lesion_id"].to_numpy()[few])
    )
    if masks_dir is None:
        return {"masks": {"reason": "no lesion masks were given (--masks DIR)"}, "road": road}
    has_mask = np.array([(masks_dir / MASK_NAME.format(image_id=name)).is_file() for name in sample.rows["image_id"]])
    if not has_mask.any():
        raise ValueError(
            f"{masks_dir} holds no mask of the test images; wanted {MASK_NAME.format(image_id='<image_id>')}"
        )
    masked = np.flatnonzero(has_mask).tolist()
    images = [sample.images[place] for place in masked]
    masks = [
        read_mask(masks_dir, sample.rows["image_id"].iloc[place], (image.height, image.width))
        for place, image in zip(masked, images, strict=True)
    ]
    scores = score_heat_maps(classifier, images, masks, sample.bootstrap.of(has_mask))
    return {"masks": {**scores, "n_without_mask": int((~has_mask).sum())}, "road": road}


def failures_section(context: Context) -> dict[str, Any]:
    """Name the most confident wrong answers, and the images that each operating point misses."""
    codes, test = context.codes, context.test
    image_ids, labels, predicted = test.outputs.image_ids, test.labels, test.predicted
    confidence = test.probs[np.arange(len(labels)), predicted].round(6)
    wrong = np.flatnonzero(predicted != labels).tolist()
    worst = sorted(wrong, key=lambda place: (-confidence[place], image_ids[place]))[:N_FAILURES]
    missed = {}
    for point in context.classifier.operating_points:
        is_positive = shows_target(labels, codes, point.codes)
        places = np.flatnonzero(is_positive & ~point.reached(test.probs, codes)).tolist()
        missed[point.name] = {"n_images": len(places), "image_ids": sorted(image_ids[place] for place in places)}
    return {
        "most_confident": [
            {
                "image_id": image_ids[place],
                "label": codes[labels[place]],
                "predicted": codes[predicted[place]],
                "probability": float(confidence[place]),
            }
            for place in worst
        ],
        "missed": missed,
    }


def reference_section(context: Context) -> list[dict[str, Any]]:
    return compare(
        context.test.scores,
        protocol=context.protocol,
        dataset=str(context.dataset_name or context.classifier.lesion.get("dataset")),
        codes=context.codes,
        leakage_rate=leakage(context.splits)["overall"],
    )


def training_section(run: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    options = dict((run or {}).get("options", {}))
    selection = "val/accuracy" if options.get("recipe") == "original" else "val/balanced_accuracy"
    best = max(history, key=lambda record: record[selection], default=None)
    return {
        "options": options,
        "origin": (run or {}).get("origin"),
        "history": [dict(record) for record in history],
        "best_epoch": best["epoch"] if best else None,
        "selection": selection.removeprefix("val/").replace("_", " "),
    }
