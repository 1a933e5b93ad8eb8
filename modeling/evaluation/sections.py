"""The sections of metrics.json, one function each; `evaluate.py` puts them together and holds the schema."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from PIL import Image

from modeling.calibration import TARGET_SENSITIVITIES, operating_targets, softmax
from modeling.classifier import BATCH_SIZE, LesionClassifier
from modeling.data.splits import leakage, splits_hash
from modeling.evaluation.baselines import METADATA_INPUTS, score_baselines
from modeling.evaluation.bootstrap import (
    SEED,
    Bootstrap,
    bootstrap_lesions,
    estimate,
    estimate_rate,
    not_estimable,
    replicated_ranking,
)
from modeling.evaluation.metrics import (
    by_lesion,
    reliability_table,
    score_balanced,
    score_calibration,
    score_detection,
    score_operating_point,
    score_split,
)
from modeling.evaluation.ood import FAR_KINDS, far_images
from modeling.evaluation.robustness import CHANGES, change_images, score_change
from modeling.evaluation.saliency import MASK_NAME, read_mask, score_heat_maps, score_road
from modeling.images import decode_image
from modeling.labels import diagnosis_of
from modeling.training.outputs import Outputs

# What needs many passes of the network is measured on a sample of test: a third of it within these bounds.
MIN_SAMPLE, MAX_SAMPLE = 40, 500
SAMPLE_WORDS = "an even sample of test: as many images of each diagnosis as possible"
N_FAILURES = 10
HISTORY_KEYS = ("train/loss", "val/loss", "val/balanced_accuracy", "val/accuracy")  # what figures show of an epoch


def metadata_table(dataset: datasets.Dataset) -> pd.DataFrame:
    """Return every column but the pixels, with the label as a code, indexed by image id."""
    table = dataset.remove_columns("image").with_format("pandas")[:]
    table = table.assign(
        label=[dataset.features["label"].names[label] for label in table["label"]], position=np.arange(len(table))
    )
    return table.set_index("image_id", drop=False)


def rows_of(splits: pd.DataFrame, table: pd.DataFrame, split: str, outputs: Outputs | None) -> pd.DataFrame:
    """Return metadata and lesion of the images of one split, in the order of its outputs."""
    if outputs is None:
        return splits.iloc[:0]
    of_split = splits[splits["split"] == split].set_index("image_id", drop=False)
    if sorted(outputs.image_ids) != sorted(of_split["image_id"]):
        raise ValueError(
            f"the outputs of {split} are of {len(outputs.image_ids)} images and the splits name {len(of_split)}; "
            "run the model on the images of splits.csv"
        )
    of_split = of_split.loc[outputs.image_ids]
    rows = table.loc[outputs.image_ids, list(METADATA_INPUTS)].copy()
    # Images without a lesion id stand for themselves; near-duplicates share an id since the splits were made.
    rows["lesion_id"] = of_split["lesion_id"].where(of_split["lesion_id"].notna(), of_split["image_id"])
    return rows.assign(label=of_split["label"], image_id=of_split["image_id"])


class TestImages:
    """The pictures of a dataset by image id, decoded as prediction decodes them."""

    def __init__(self, dataset: datasets.Dataset, table: pd.DataFrame) -> None:
        self.stored = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        self.position = table["position"]

    def load(self, image_ids: Sequence[str] | pd.Series) -> list[Image.Image]:
        stored = (self.stored[int(self.position[image_id])]["image"] for image_id in image_ids)
        return [decode_image(image["bytes"] or image["path"]) for image in stored]


def classify_images(classifier: LesionClassifier, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated logits (N, C) and features (N, D) of upright RGB pictures."""
    logits, features = [], []
    for start in range(0, len(images), BATCH_SIZE):
        batch = np.stack([classifier.transform(image) for image in images[start : start + BATCH_SIZE]])
        outputs = classifier.forward(batch)
        logits.append(outputs.logits)
        features.append(outputs.features)
    return np.concatenate(logits), np.concatenate(features)


def sample_evenly(labels: np.ndarray) -> np.ndarray:
    """Choose positions for costly measurements: as many of each diagnosis as there are, the same ones each time."""
    size = int(np.clip(len(labels) // 3, MIN_SAMPLE, MAX_SAMPLE))
    order = np.random.default_rng(SEED).permutation(len(labels))
    place_in_class = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        place_in_class[members] = np.arange(len(members))
    return np.sort(np.lexsort((labels, place_in_class))[:size])


def model_section(classifier: LesionClassifier) -> dict[str, Any]:
    return {
        "codes": list(classifier.codes),
        "names": classifier.names,
        "architecture": classifier.architecture,
        "image_size_px": classifier.size_px,
        "n_parameters": sum(parameter.numel() for parameter in classifier.engine.network.parameters()),
        **{key: classifier.lesion.get(key) for key in ("weights_sha256", "license", "run_id", "package_version")},
        "revision": classifier.revision,
    }


def data_section(
    classifier: LesionClassifier, table: pd.DataFrame, splits: pd.DataFrame, protocol: str, n_skipped: int
) -> dict[str, Any]:
    other = table["label"][~table["label"].isin(classifier.codes)].value_counts()
    in_splits = table.loc[splits["image_id"]]
    shares = {code: share if np.isfinite(share) else None for code, share in leakage(splits).items()}
    return {
        "dataset": classifier.lesion.get("dataset"),
        "synthetic": bool(classifier.lesion.get("synthetic")),
        "fingerprint": classifier.lesion.get("data_fingerprint"),
        "splits_sha256": splits_hash(splits),
        "protocol": protocol,
        "split_unit": "lesion" if protocol == "lesion" else "image",
        "leakage": shares,
        "flow": {
            "in_dataset": len(table),
            "skipped": n_skipped,
            "other_diagnoses": {str(code): int(n) for code, n in sorted(other.items())},
            "splits": {
                name: {
                    "n_images": len(part),
                    "n_lesions": int(part["lesion_id"].where(part["lesion_id"].notna(), part["image_id"]).nunique()),
                    "per_class": {code: int((part["label"] == code).sum()) for code in classifier.codes},
                }
                for name in ("train", "val", "test")
                for part in [splits[splits["split"] == name]]
            },
        },
        "sources": {str(name): int(n) for name, n in sorted(in_splits["source"].value_counts().items())},
    }


def training_section(run: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    options = {
        name: value
        for name, value in (run or {}).get("options", {}).items()
        # A path belongs to one machine.
        if not (name.endswith("_dir") or name in ("splits", "init_from", "config"))
    }
    selection = "val/accuracy" if options.get("recipe") == "original" else "val/balanced_accuracy"
    best = max(history, key=lambda record: record[selection], default=None)
    return {
        "options": options,
        "history": [dict(record) for record in history],
        "best_epoch": best["epoch"] if best else None,
        "selection": selection.removeprefix("val/").replace("_", " "),
    }


def val_section(val: Outputs | None, rows: pd.DataFrame, temperature: float, codes: Sequence[str]) -> dict[str, Any]:
    if val is None:
        return {"reason": "the splits have no val images"}
    probs = softmax(val.logits / temperature)
    return score_split(probs, val.labels, codes, bootstrap_lesions(rows["lesion_id"].to_numpy()))


def by_lesion_section(
    probs: np.ndarray, labels: np.ndarray, rows: pd.DataFrame, codes: Sequence[str]
) -> dict[str, Any]:
    lesion_probs, lesion_labels, lesions = by_lesion(probs, labels, rows["lesion_id"].to_numpy())
    return score_split(lesion_probs, lesion_labels, codes, bootstrap_lesions(lesions))


def calibration_section(
    val: Outputs | None,
    test: Outputs,
    chosen: Mapping[str, pd.DataFrame],
    temperature: float,
    codes: Sequence[str],
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "method": "temperature scaling, fitted on val (arXiv:1706.04599)",
        "temperature": temperature,
    }
    for name, outputs in (("val", val), ("test", test)):
        if outputs is None:
            result[name] = {"reason": "the splits have no val images"}
            continue
        bootstrap = bootstrap_lesions(chosen[name]["lesion_id"].to_numpy())
        result[name] = {
            "before": score_calibration(outputs.logits, outputs.labels, codes, bootstrap),
            "after": score_calibration(outputs.logits / temperature, outputs.labels, codes, bootstrap),
        }
    result["reliability"] = {
        name: reliability_table(probs.max(axis=1), probs.argmax(axis=1) == test.labels)
        for name, probs in (("before", softmax(test.logits)), ("after", softmax(test.logits / temperature)))
    }
    return result


def operating_points_section(
    classifier: LesionClassifier, probs: np.ndarray, labels: np.ndarray, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    points = {point.name: point for point in classifier.operating_points}
    result: list[dict[str, Any]] = []
    for target in operating_targets(classifier.codes):
        for wanted in TARGET_SENSITIVITIES:
            name = f"{target}@{round(100 * wanted)}"
            if name not in points:
                result.append({"name": name, "reason": "not fitted: val lacks images on one of its two sides"})
                continue
            point = points[name]
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
                    "test": score_operating_point(point, probs, labels, classifier.codes, bootstrap),
                }
            )
    return result


def abstention_section(
    classifier: LesionClassifier,
    table: pd.DataFrame,
    images: TestImages,
    logits: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    bootstrap: Bootstrap,
    n_each: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measure the abstention rule on test, on diagnoses left out, and on pictures of something else."""
    rule = classifier.abstention
    if rule is None:
        return {"reason": "this model has no abstention rule"}, {}
    inside = rule.score(logits, features)
    abstained, predicted = rule.abstains(logits, features), logits.argmax(axis=1)
    everywhere = np.ones(len(labels), dtype=bool)
    result: dict[str, Any] = {
        "method": rule.method,
        "threshold": rule.threshold,
        "false_alarm_rate": rule.false_alarm_rate,
        "test": {
            "abstained": estimate_rate(abstained, everywhere, bootstrap, reason="no image"),
            "answered": {
                "n_images": int((~abstained).sum()),
                "accuracy": estimate_rate(
                    predicted == labels, ~abstained, bootstrap, reason="the model abstained on every image"
                ),
                "balanced_accuracy": not_estimable("the model abstained on every image")
                if abstained.all()
                else score_balanced(
                    predicted[~abstained], labels[~abstained], classifier.codes, bootstrap.of(~abstained)
                )[0],
            },
        },
        "near": {},
        "far": {},
    }
    by_kind = {"test": inside}

    def measure(outside: np.ndarray, lesions: np.ndarray) -> dict[str, Any]:
        own = bootstrap_lesions(lesions)
        point = score_detection(inside, outside)
        together = bootstrap_lesions(
            np.concatenate([[f"in {lesion}" for lesion in bootstrap.lesion_index], [f"out {name}" for name in lesions]])
        )
        aurocs, _ = replicated_ranking(
            np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) >= len(inside), together
        )
        return {
            "n_images": len(outside),
            "n_lesions": own.n_lesions,
            "auroc": estimate(point["auroc"], aurocs, own.n_lesions),
            "fpr_at_95_tpr": point["fpr_at_95_tpr"],
            "abstained": estimate_rate(outside > rule.threshold, outside > -np.inf, own, reason="no image"),
        }

    for code in sorted(set(table["label"]) - set(classifier.codes)):
        rows = table[table["label"] == code]
        rows = rows.iloc[np.sort(np.random.default_rng(SEED).permutation(len(rows))[:n_each])]
        near_logits, near_features = classify_images(classifier, images.load(rows["image_id"]))
        near_probs = softmax(near_logits)
        counts = np.bincount(near_probs.argmax(axis=1), minlength=len(classifier.codes))
        by_kind[code] = rule.score(near_logits, near_features)
        lesions = rows["lesion_id"].where(rows["lesion_id"].notna(), rows["image_id"]).to_numpy()
        own = bootstrap_lesions(lesions)
        result["near"][code] = {
            "malignant": diagnosis_of(code).malignant,
            **measure(by_kind[code], lesions),
            "predicted": dict(zip(classifier.codes, counts.tolist(), strict=True)),
            "above": {
                point.name: estimate_rate(
                    point.reached(near_probs, classifier.codes), near_probs[:, 0] >= 0, own, reason="no image"
                )
                for point in classifier.operating_points
            },
        }
    n_far = max(n_each // 5, 12)
    for kind in FAR_KINDS:
        by_kind[kind] = rule.score(*classify_images(classifier, far_images(kind, n_far)))
        result["far"][kind] = measure(by_kind[kind], np.arange(n_far))
        del result["far"][kind]["n_lesions"]
    return result, by_kind


def baselines_section(
    splits: pd.DataFrame,
    table: pd.DataFrame,
    rows: pd.DataFrame,
    predicted: np.ndarray,
    codes: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    train = table.loc[splits["image_id"][splits["split"] == "train"]]
    if train["label"].nunique() < 2:
        return {"reason": "the splits have no train images of two diagnoses to fit a baseline on"}
    return score_baselines(train, rows, predicted, codes, bootstrap)


def robustness_section(
    classifier: LesionClassifier,
    images: Sequence[Image.Image],
    plain: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    plain_called = plain[0].argmax(axis=1)
    return {
        "n_images": len(images),
        "n_lesions": bootstrap.n_lesions,
        "sample": SAMPLE_WORDS,
        "balanced_accuracy": score_balanced(plain_called, labels, classifier.codes, bootstrap)[0],
        "changes": {
            name: score_change(
                plain_called,
                classify_images(classifier, change_images(name, images))[0].argmax(axis=1),
                labels,
                classifier.codes,
                bootstrap,
            )
            for name in CHANGES
        },
    }


def tta_section(
    classifier: LesionClassifier,
    images: TestImages,
    rows: pd.DataFrame,
    labels: np.ndarray,
    sample: np.ndarray,
    *,
    everything: bool,
) -> dict[str, Any]:
    """Compare the mean over the eight flips and quarter turns with the plain answer."""
    measured = np.arange(len(labels)) if everything else sample
    plain, augmented = [], []
    for start in range(0, len(measured), BATCH_SIZE):
        pictures = images.load(rows["image_id"].iloc[measured[start : start + BATCH_SIZE]])
        pixel_values = np.stack([classifier.transform(picture) for picture in pictures])
        plain.append(classifier.forward(pixel_values).logits.argmax(axis=1))
        augmented.append(classifier.tta_probs(pixel_values).argmax(axis=1))
    bootstrap = bootstrap_lesions(rows["lesion_id"].to_numpy()[measured])
    return {
        "views": 8,
        "n_images": len(measured),
        "n_lesions": bootstrap.n_lesions,
        "sample": "all of test" if everything else SAMPLE_WORDS,
        **score_change(np.concatenate(plain), np.concatenate(augmented), labels[measured], classifier.codes, bootstrap),
    }


def heat_maps_section(
    classifier: LesionClassifier,
    images: Sequence[Image.Image],
    rows: pd.DataFrame,
    bootstrap: Bootstrap,
    masks_dir: Path | None,
) -> dict[str, Any]:
    """Score the heat maps of the sample: against masks where there are any, and by ROAD on a tenth of it."""
    few = list(range(0, len(images), max(len(images) // max(len(images) // 10, 6), 1)))
    road = score_road(
        classifier, [images[place] for place in few], bootstrap_lesions(rows["lesion_id"].to_numpy()[few])
    )
    if masks_dir is None:
        return {"masks": {"reason": "no lesion masks were given (--masks DIR)"}, "road": road}
    has_mask = np.array([(masks_dir / MASK_NAME.format(image_id=name)).is_file() for name in rows["image_id"]])
    if not has_mask.any():
        raise ValueError(
            f"{masks_dir} holds no mask of the test images; wanted {MASK_NAME.format(image_id='<image_id>')}"
        )
    masked = np.flatnonzero(has_mask).tolist()
    masks = [
        read_mask(masks_dir, rows["image_id"].iloc[place], (images[place].height, images[place].width))
        for place in masked
    ]
    scores = score_heat_maps(classifier, [images[place] for place in masked], masks, bootstrap.of(has_mask))
    return {"masks": {**scores, "n_without_mask": int((~has_mask).sum())}, "road": road}


def failures_section(
    classifier: LesionClassifier, probs: np.ndarray, labels: np.ndarray, image_ids: Sequence[str]
) -> dict[str, Any]:
    """Name the most confident wrong answers, and the images that each operating point misses."""
    codes, predicted, confidence = classifier.codes, probs.argmax(axis=1), probs.max(axis=1).round(6)
    wrong = np.flatnonzero(predicted != labels).tolist()
    worst = sorted(wrong, key=lambda place: (-confidence[place], image_ids[place]))[:N_FAILURES]
    missed = {}
    for point in classifier.operating_points:
        is_positive = np.isin(labels, [codes.index(code) for code in point.codes])
        places = np.flatnonzero(is_positive & ~point.reached(probs, codes)).tolist()
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
