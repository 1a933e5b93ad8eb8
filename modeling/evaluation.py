"""Predictions of a split → numbers with intervals → metrics.json, figures and predictions.csv.

    python -m modeling.evaluation MODEL --data_dir DIR

metrics.json, schema 1. It holds no dates and no paths, and the same weights on the same data give the same bytes. A number
with an interval is {"value", "low", "high"} (95 %, lesions resampled); what cannot be estimated is null, with a "reason".
Shares and scores are in [0, 1]. <code> is a diagnosis such as "MEL".

schema_version   1
model            codes, names {code}, architecture, image_size_px, n_parameters, weights_sha256, license, run_id,
                 package_version, revision (commit on the Hub; null for a folder)
data             dataset, synthetic, fingerprint, splits_sha256, protocol, split_unit,
                 leakage {overall, code}: share of test images whose lesion is also in train,
                 flow {in_dataset, skipped, other_diagnoses {code}, splits {split: n_images, n_lesions, per_class {code}}},
                 sources {source: n}
intervals        method, level, n_resamples, seed, unit
val, test        n_images, n_lesions, accuracy, balanced_accuracy, macro_f1, macro_auroc, weighted_precision,
                 weighted_recall, weighted_f1, per_class {code: n_images, n_lesions, precision, recall, specificity, f1,
                 auroc, average_precision}, confusion (rows true, columns called);
                 test.by_lesion: all of it by lesion (mean probability over a lesion's photos);
calibration      method, temperature, val and test {before, after: nll, brier, ece, ece_per_class {code}},
                 reliability {before, after: rows of n_images, confidence, correct}
operating_points  rows of name, codes, wanted_sensitivity, threshold, val {sensitivity, specificity, n_positive, n_negative},
                 test {n_positive_images, n_positive_lesions, n_negative_images, n_negative_lesions, sensitivity,
                 specificity, at_prevalence: rows of prevalence, of, ppv, npv}; or name and reason
abstention       method, threshold, false_alarm_rate, test {abstained, answered {n_images, accuracy, balanced_accuracy}},
                 near {code: malignant, n_images, n_lesions, auroc, fpr_at_95_tpr, abstained, called {code: n},
                 above {operating point}}, far {kind: n_images, auroc, fpr_at_95_tpr, abstained}; or reason
risk_coverage    aurc, risk_at_coverage {"1.00", "0.90", …}
floors           model {balanced_accuracy}, no_pixels and majority {sees, balanced_accuracy, accuracy, model_minus_floor};
                 or reason
groups           source, sex, age_years, site {group: n_images, n_lesions, accuracy, balanced_accuracy, diagnoses (those that
                 it is the mean of), recall {code}, operating points {sensitivity, specificity}, or suppressed (why)};
                 not_measured {what: why}
robustness       n_images, n_lesions, sample, balanced_accuracy, changes {change: changed_answers, balanced_accuracy,
                 balanced_accuracy_gain}
test_time_augmentation  views, n_images, n_lesions, sample, and the three numbers of a change
heat_maps        masks {n_images, n_lesions, n_without_mask, mean_lesion_share, model, randomised, centred_blob and
                 random_map {heat_inside, pointing_game, iou, n_without_heat}, similarity_to_randomised}, or {reason};
                 road {n_images, n_lesions, model, centred_blob}
failures         most_confident: rows of image_id, label, called, probability; missed {operating point: n_images, image_ids}
original         rows of system, protocol, measured_on, leaking_share, scores {name}; or system, protocol and reason
training         options, history (one record an epoch), best_epoch, selection
figures          file names in figures/
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from modeling.calibration import WANTED_SENSITIVITIES, check_logits, operating_targets, softmax
from modeling.data import load_data
from modeling.demo import draw_lesion
from modeling.figures import draw_figures
from modeling.floors import NO_PIXEL_INPUTS, score_floors, score_groups
from modeling.heatmaps import MASK_NAME, read_mask, score_heat_maps, score_road
from modeling.images import decode_image
from modeling.intervals import (
    LEVEL,
    N_RESAMPLES,
    SEED,
    Resampling,
    estimate,
    estimate_share,
    not_estimable,
    resample_lesions,
    resampled_ranking,
)
from modeling.labels import CODES, diagnosis_of
from modeling.loading import LesionDataset, plain_transform, resized_images
from modeling.metrics import (
    by_lesion,
    reliability_table,
    risk_coverage,
    score_balanced,
    score_calibration,
    score_detection,
    score_operating_point,
    score_split,
)
from modeling.model import ModelFolder, ModelFolderError, config_sha256, read_config, read_json, shortened
from modeling.original import compare
from modeling.outliers import FAR_KINDS, far_images
from modeling.predictor import BATCH_SIZE, LesionClassifier
from modeling.robustness import CHANGES, change_images, score_change
from modeling.splits import leakage, load_splits, read_splits, splits_hash

if TYPE_CHECKING:
    from accelerate import Accelerator

SCHEMA_VERSION = 1
METRICS_NAME = "metrics.json"
SPLITS_NAME = "splits.csv"
RUN_NAME = "train_config.json"
HISTORY_KEYS = ("train/loss", "val/loss", "val/balanced_accuracy", "val/accuracy")  # what figures show of an epoch
# What needs many passes of the network is measured on a sample of test: a third of it within these bounds.
MIN_SAMPLE, MAX_SAMPLE = 40, 500
COVERAGES = (1.0, 0.9, 0.8, 0.5)
N_FAILURES = 10
GOLDEN_SIDE_PX = 96
# Two machines may differ by rounding, and JPEG-free drawing leaves nothing else to differ.
GOLDEN_TOLERANCE = 1e-3


# ---- Predictions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outputs:
    """What a model said about each image of a split, sorted by the image's position in the dataset."""

    index: np.ndarray  # (N,) position in the dataset
    labels: np.ndarray  # (N,)
    logits: np.ndarray  # (N, C) float32
    features: np.ndarray  # (N, D) float32, penultimate: what the classifier layer sees
    image_ids: list[str] = field(default_factory=list)


@torch.inference_mode()
def run_model(
    model: torch.nn.Module,
    loader: Any,
    accelerator: "Accelerator | None" = None,
    *,
    image_ids: Sequence[str] | None = None,
) -> Outputs:
    """Run a timm model over a loader and gather its outputs from all processes, exactly once per image.

    Args:
        model: A timm model, bare or wrapped by accelerate.
        loader: Yields `pixel_values` (B, 3, S, S), `label` (B,) and `index` (B,), the position in the dataset.
        accelerator: Given under several processes; the loader must then be prepared by it.
        image_ids: Names by position in the dataset; without them `Outputs.image_ids` stays empty.

    Raises:
        ValueError: If an image came twice or is missing, or a logit is not finite.
    """
    bare: Any = accelerator.unwrap_model(model) if accelerator else model  # timm's methods are unknown to mypy
    device = accelerator.device if accelerator else next(bare.parameters()).device
    was_training = bare.training
    bare.eval()
    parts: dict[str, list[torch.Tensor]] = {"index": [], "labels": [], "logits": [], "features": []}
    for batch in loader:
        pixel_values = batch["pixel_values"].to(device)
        features = bare.forward_head(bare.forward_features(pixel_values), pre_logits=True)
        values = {
            "index": batch["index"].to(device),
            "labels": batch["label"].to(device),
            "logits": bare.get_classifier()(features).float(),
            "features": features.float(),
        }
        if accelerator:
            values = accelerator.gather_for_metrics(values)
        for name, value in values.items():
            parts[name].append(value.cpu())
    bare.train(was_training)
    if not parts["index"]:
        raise ValueError("the loader gave no batch: the split has no images")
    gathered = {name: torch.cat(values).numpy() for name, values in parts.items()}
    order = np.argsort(gathered["index"], kind="stable")
    index = gathered["index"][order]
    n_wanted = len(loader.dataset)
    if len(np.unique(index)) != len(index) or len(index) != n_wanted:
        raise ValueError(
            f"wanted each of {n_wanted} images once, got {len(index)} predictions of {len(np.unique(index))} images"
        )
    check_logits(gathered["logits"])
    return Outputs(
        index=index,
        labels=gathered["labels"][order],
        logits=gathered["logits"][order],
        features=gathered["features"][order],
        image_ids=[] if image_ids is None else [image_ids[position] for position in index],
    )


# ---- The whole evaluation ------------------------------------------------------------------------------------------


def evaluate_model(
    *,
    classifier: LesionClassifier,
    dataset: datasets.Dataset,
    splits: pd.DataFrame,
    val: Outputs | None,
    test: Outputs,
    temperature: float,
    output_dir: Path,
    predictions_csv: Path,
    protocol: str = "lesion",
    n_skipped: int = 0,
    run: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    masks_dir: Path | None = None,
    tta_on_all: bool = False,
) -> dict[str, Any]:
    """Measure a model and write metrics.json and figures/ into `output_dir`, and predictions.csv.

    Args:
        classifier: The finished model: temperature folded in, operating points and abstention rule in its config.
        dataset: All images in the columns of the contract, those of other diagnoses included.
        splits: Rows of `splits.make_splits` or `read_splits`.
        val: Outputs before the temperature, with image ids; None if the splits have no val.
        test: The same of test.
        temperature: What is folded into the classifier.
        output_dir: The model folder.
        predictions_csv: Where the probabilities of val and test go.
        protocol: How the splits were made, "lesion" or "original".
        n_skipped: Images left out because they could not be read.
        run: Content of train_config.json, if known.
        history: One record an epoch, as in log.jsonl.
        masks_dir: Holds `<image_id>_segmentation.png`; without it heat maps are not scored against masks.
        tta_on_all: Measure test-time augmentation on all of test, not on the sample.

    Returns:
        The content of metrics.json; this module's docstring is its schema.

    Raises:
        ValueError: If outputs and splits are not about the same images, or test is empty.
    """
    codes = classifier.codes
    table = metadata_table(dataset)
    chosen = {name: _rows(splits, table, name, outputs) for name, outputs in (("val", val), ("test", test))}
    rows = chosen["test"]
    logits = test.logits / temperature
    probs, labels = softmax(logits), test.labels
    called = probs.argmax(axis=1)
    resampling = resample_lesions(rows["lesion_id"].to_numpy())
    raw_probs = softmax(test.logits)
    sample = sample_evenly(labels)
    images = _Images(dataset, table)
    sample_images = images.load(rows["image_id"].iloc[sample])
    sample_resampling = resample_lesions(rows["lesion_id"].to_numpy()[sample])

    plain = _classify(classifier, sample_images)
    unlike = _score_abstention(classifier, table, images, logits, test.features, labels, resampling, len(sample))
    coverage, risk = risk_coverage(1 - probs.max(axis=1), called != labels)
    test_scores = score_split(probs, labels, codes, resampling)
    metrics: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": _describe_model(classifier),
        "data": _describe_data(classifier, table, splits, protocol, n_skipped),
        "intervals": {
            "method": "percentile bootstrap; Clopper-Pearson on lesions where all agree",
            "level": LEVEL,
            "n_resamples": N_RESAMPLES,
            "seed": SEED,
            "unit": "lesion",
        },
        "val": _score_val(val, chosen["val"], temperature, codes),
        "test": {
            **test_scores,
            "by_lesion": _score_by_lesion(probs, labels, rows, codes),
        },
        "calibration": _score_calibrations(val, test, chosen, temperature, codes),
        "operating_points": _score_operating_points(classifier, probs, labels, resampling),
        "abstention": unlike[0],
        "risk_coverage": {
            "aurc": float(risk.mean()),
            "risk_at_coverage": {
                f"{share:.2f}": float(risk[max(round(share * len(risk)), 1) - 1]) for share in COVERAGES
            },
        },
        "floors": _score_floors(splits, table, rows, called, codes, resampling),
        "groups": {
            **score_groups(rows, probs, labels, codes, classifier.operating_points, resampling),
            "not_measured": {"skin tone": "ISIC 2019 does not record it, so fairness over skin tones is unknown"},
        },
        "robustness": _score_robustness(classifier, sample_images, plain, labels[sample], sample_resampling),
        "test_time_augmentation": _score_tta(classifier, images, rows, labels, sample, everything=tta_on_all),
        "heat_maps": _score_heat_maps(classifier, sample_images, rows.iloc[sample], sample_resampling, masks_dir),
        "failures": _list_failures(classifier, probs, labels, test.image_ids),
        "original": compare(
            test_scores,
            protocol=protocol,
            dataset=str(classifier.lesion.get("dataset")),
            codes=codes,
            leaking_share=leakage(splits)["overall"],
        ),
        "training": _describe_training(run, history),
    }
    metrics["figures"] = draw_figures(
        output_dir / "figures",
        metrics=metrics,
        labels=labels,
        probs=probs,
        uncalibrated_probs=raw_probs,
        risk_coverage=(coverage, risk),
        unlike_scores=unlike[1],
    )
    metrics = rounded(metrics)
    text = json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False)
    (output_dir / METRICS_NAME).write_text(text + "\n", encoding="utf-8")
    write_predictions(
        predictions_csv, classifier, temperature, {"val": (val, chosen["val"]), "test": (test, chosen["test"])}
    )
    return metrics


def rounded(value: Any) -> Any:
    """Return plain JSON values with floats of 6 decimals: what is beyond depends on the machine.

    Raises:
        ValueError: If a number is not finite; such a number must be null with a reason.
    """
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, np.generic):
        return rounded(value.item())
    if isinstance(value, float):
        if not np.isfinite(value):
            raise ValueError("a number that is not finite must be null with a reason")
        return round(value, 6) + 0.0  # no minus zero
    return value


def write_predictions(
    path: Path,
    classifier: LesionClassifier,
    temperature: float,
    parts: Mapping[str, tuple[Outputs | None, pd.DataFrame]],
) -> None:
    """Write image_id, lesion_id, split, label, one probability column per diagnosis, and abstained."""
    frames = []
    for split, (outputs, rows) in parts.items():
        if outputs is None:
            continue
        logits = outputs.logits / temperature
        abstained = classifier.abstention.abstains(logits, outputs.features) if classifier.abstention else False
        columns = {"image_id": outputs.image_ids, "lesion_id": rows["lesion_id"].to_numpy(), "split": split}
        frame = pd.DataFrame({**columns, "label": rows["label"].to_numpy()})
        frame[list(classifier.codes)] = softmax(logits)
        frames.append(frame.assign(abstained=abstained))
    pd.concat(frames).to_csv(path, index=False, float_format="%.6f", lineterminator="\n")


# ---- Its parts -----------------------------------------------------------------------------------------------------


def metadata_table(dataset: datasets.Dataset) -> pd.DataFrame:
    """Return every column but the pixels, with the label as a code, indexed by image id."""
    table = dataset.remove_columns("image").with_format("pandas")[:]
    table = table.assign(
        label=[dataset.features["label"].names[label] for label in table["label"]], position=np.arange(len(table))
    )
    return table.set_index("image_id", drop=False)


def _rows(splits: pd.DataFrame, table: pd.DataFrame, split: str, outputs: Outputs | None) -> pd.DataFrame:
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
    rows = table.loc[outputs.image_ids, list(NO_PIXEL_INPUTS)].copy()
    # Images without a lesion id stand for themselves; near-duplicates share an id since the splits were made.
    rows["lesion_id"] = of_split["lesion_id"].where(of_split["lesion_id"].notna(), of_split["image_id"])
    return rows.assign(label=of_split["label"], image_id=of_split["image_id"])


class _Images:
    """The pictures of a dataset by image id, decoded as prediction decodes them."""

    def __init__(self, dataset: datasets.Dataset, table: pd.DataFrame) -> None:
        self.stored = dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        self.position = table["position"]

    def load(self, image_ids: Sequence[str] | pd.Series) -> list[Image.Image]:
        stored = (self.stored[int(self.position[image_id])]["image"] for image_id in image_ids)
        return [decode_image(image["bytes"] or image["path"]) for image in stored]


def _classify(classifier: LesionClassifier, images: Sequence[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Return calibrated logits (N, C) and features (N, D) of upright RGB pictures."""
    logits, features = [], []
    for start in range(0, len(images), BATCH_SIZE):
        batch = torch.stack([classifier.transform(image) for image in images[start : start + BATCH_SIZE]])
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


SAMPLE_WORDS = "an even sample of test: as many images of each diagnosis as possible"


def _describe_model(classifier: LesionClassifier) -> dict[str, Any]:
    return {
        "codes": list(classifier.codes),
        "names": classifier.names,
        "architecture": classifier.model.pretrained_cfg["architecture"],
        "image_size_px": classifier.size_px,
        "n_parameters": sum(parameter.numel() for parameter in classifier.model.parameters()),
        **{key: classifier.lesion.get(key) for key in ("weights_sha256", "license", "run_id", "package_version")},
        "revision": classifier.revision,
    }


def _describe_data(
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


def _describe_training(run: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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


def _score_val(val: Outputs | None, rows: pd.DataFrame, temperature: float, codes: Sequence[str]) -> dict[str, Any]:
    if val is None:
        return {"reason": "the splits have no val images"}
    probs = softmax(val.logits / temperature)
    return score_split(probs, val.labels, codes, resample_lesions(rows["lesion_id"].to_numpy()))


def _score_by_lesion(probs: np.ndarray, labels: np.ndarray, rows: pd.DataFrame, codes: Sequence[str]) -> dict[str, Any]:
    lesion_probs, lesion_labels, lesions = by_lesion(probs, labels, rows["lesion_id"].to_numpy())
    return score_split(lesion_probs, lesion_labels, codes, resample_lesions(lesions))


def _score_calibrations(
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
        resampling = resample_lesions(chosen[name]["lesion_id"].to_numpy())
        result[name] = {
            "before": score_calibration(outputs.logits, outputs.labels, codes, resampling),
            "after": score_calibration(outputs.logits / temperature, outputs.labels, codes, resampling),
        }
    result["reliability"] = {
        name: reliability_table(probs.max(axis=1), probs.argmax(axis=1) == test.labels)
        for name, probs in (("before", softmax(test.logits)), ("after", softmax(test.logits / temperature)))
    }
    return result


def _score_operating_points(
    classifier: LesionClassifier, probs: np.ndarray, labels: np.ndarray, resampling: Resampling
) -> list[dict[str, Any]]:
    points = {point.name: point for point in classifier.operating_points}
    result: list[dict[str, Any]] = []
    for target in operating_targets(classifier.codes):
        for wanted in WANTED_SENSITIVITIES:
            name = f"{target}@{round(100 * wanted)}"
            if name not in points:
                result.append({"name": name, "reason": "not fitted: val lacks images on one of its two sides"})
                continue
            point = points[name]
            result.append(
                {
                    "name": name,
                    "codes": list(point.codes),
                    "wanted_sensitivity": point.wanted_sensitivity,
                    "threshold": point.threshold,
                    "val": {
                        "sensitivity": point.sensitivity,
                        "specificity": point.specificity,
                        "n_positive": point.n_positive,
                        "n_negative": point.n_negative,
                    },
                    "test": score_operating_point(point, probs, labels, classifier.codes, resampling),
                }
            )
    return result


def _score_abstention(
    classifier: LesionClassifier,
    table: pd.DataFrame,
    images: _Images,
    logits: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    resampling: Resampling,
    n_each: int,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Measure the abstention rule on test, on diagnoses left out, and on pictures of something else."""
    rule = classifier.abstention
    if rule is None:
        return {"reason": "this model has no abstention rule"}, {}
    inside = rule.score(logits, features)
    abstained, called = rule.abstains(logits, features), logits.argmax(axis=1)
    everywhere = np.ones(len(labels), dtype=bool)
    result: dict[str, Any] = {
        "method": rule.method,
        "threshold": rule.threshold,
        "false_alarm_rate": rule.false_alarm_rate,
        "test": {
            "abstained": estimate_share(abstained, everywhere, resampling, reason="no image"),
            "answered": {
                "n_images": int((~abstained).sum()),
                "accuracy": estimate_share(
                    called == labels, ~abstained, resampling, reason="the model abstained on every image"
                ),
                "balanced_accuracy": not_estimable("the model abstained on every image")
                if abstained.all()
                else score_balanced(
                    called[~abstained], labels[~abstained], classifier.codes, resampling.of(~abstained)
                )[0],
            },
        },
        "near": {},
        "far": {},
    }
    by_kind = {"test": inside}

    def measure(outside: np.ndarray, lesions: np.ndarray) -> dict[str, Any]:
        own = resample_lesions(lesions)
        point = score_detection(inside, outside)
        together = resample_lesions(
            np.concatenate(
                [[f"in {lesion}" for lesion in resampling.lesion_index], [f"out {name}" for name in lesions]]
            )
        )
        aurocs, _ = resampled_ranking(
            np.concatenate([inside, outside]), np.arange(len(inside) + len(outside)) >= len(inside), together
        )
        return {
            "n_images": len(outside),
            "n_lesions": own.n_lesions,
            "auroc": estimate(point["auroc"], aurocs, own.n_lesions),
            "fpr_at_95_tpr": point["fpr_at_95_tpr"],
            "abstained": estimate_share(outside > rule.threshold, outside > -np.inf, own, reason="no image"),
        }

    for code in sorted(set(table["label"]) - set(classifier.codes)):
        rows = table[table["label"] == code]
        rows = rows.iloc[np.sort(np.random.default_rng(SEED).permutation(len(rows))[:n_each])]
        near_logits, near_features = _classify(classifier, images.load(rows["image_id"]))
        near_probs = softmax(near_logits)
        counts = np.bincount(near_probs.argmax(axis=1), minlength=len(classifier.codes))
        by_kind[code] = rule.score(near_logits, near_features)
        lesions = rows["lesion_id"].where(rows["lesion_id"].notna(), rows["image_id"]).to_numpy()
        own = resample_lesions(lesions)
        result["near"][code] = {
            "malignant": diagnosis_of(code).malignant,
            **measure(by_kind[code], lesions),
            "called": dict(zip(classifier.codes, counts.tolist(), strict=True)),
            "above": {
                point.name: estimate_share(
                    point.reached(near_probs, classifier.codes), near_probs[:, 0] >= 0, own, reason="no image"
                )
                for point in classifier.operating_points
            },
        }
    n_far = max(n_each // 5, 12)
    for kind in FAR_KINDS:
        by_kind[kind] = rule.score(*_classify(classifier, far_images(kind, n_far)))
        result["far"][kind] = measure(by_kind[kind], np.arange(n_far))
        del result["far"][kind]["n_lesions"]
    return result, by_kind


def _score_floors(
    splits: pd.DataFrame,
    table: pd.DataFrame,
    rows: pd.DataFrame,
    called: np.ndarray,
    codes: Sequence[str],
    resampling: Resampling,
) -> dict[str, Any]:
    train = table.loc[splits["image_id"][splits["split"] == "train"]]
    if train["label"].nunique() < 2:
        return {"reason": "the splits have no train images of two diagnoses to fit a floor on"}
    return score_floors(train, rows, called, codes, resampling)


def _score_robustness(
    classifier: LesionClassifier,
    images: Sequence[Image.Image],
    plain: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    resampling: Resampling,
) -> dict[str, Any]:
    plain_called = plain[0].argmax(axis=1)
    return {
        "n_images": len(images),
        "n_lesions": resampling.n_lesions,
        "sample": SAMPLE_WORDS,
        "balanced_accuracy": score_balanced(plain_called, labels, classifier.codes, resampling)[0],
        "changes": {
            name: score_change(
                plain_called,
                _classify(classifier, change_images(name, images))[0].argmax(axis=1),
                labels,
                classifier.codes,
                resampling,
            )
            for name in CHANGES
        },
    }


def _score_tta(
    classifier: LesionClassifier,
    images: _Images,
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
        pixel_values = torch.stack([classifier.transform(picture) for picture in pictures])
        plain.append(classifier.forward(pixel_values).logits.argmax(axis=1))
        augmented.append(classifier.tta_probs(pixel_values).argmax(axis=1))
    resampling = resample_lesions(rows["lesion_id"].to_numpy()[measured])
    return {
        "views": 8,
        "n_images": len(measured),
        "n_lesions": resampling.n_lesions,
        "sample": "all of test" if everything else SAMPLE_WORDS,
        **score_change(
            np.concatenate(plain), np.concatenate(augmented), labels[measured], classifier.codes, resampling
        ),
    }


def _score_heat_maps(
    classifier: LesionClassifier,
    images: Sequence[Image.Image],
    rows: pd.DataFrame,
    resampling: Resampling,
    masks_dir: Path | None,
) -> dict[str, Any]:
    """Score the heat maps of the sample: against masks where there are any, and by ROAD on a tenth of it."""
    few = list(range(0, len(images), max(len(images) // max(len(images) // 10, 6), 1)))
    road = score_road(classifier, [images[place] for place in few], resample_lesions(rows["lesion_id"].to_numpy()[few]))
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
    scores = score_heat_maps(classifier, [images[place] for place in masked], masks, resampling.of(has_mask))
    return {"masks": {**scores, "n_without_mask": int((~has_mask).sum())}, "road": road}


def _list_failures(
    classifier: LesionClassifier, probs: np.ndarray, labels: np.ndarray, image_ids: Sequence[str]
) -> dict[str, Any]:
    """Name the most confident wrong answers, and the images that each operating point misses."""
    codes, called, confidence = classifier.codes, probs.argmax(axis=1), probs.max(axis=1).round(6)
    wrong = np.flatnonzero(called != labels).tolist()
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
                "called": codes[called[place]],
                "probability": float(confidence[place]),
            }
            for place in worst
        ],
        "missed": missed,
    }


# ---- A stored answer, to verify a model folder ----------------------------------------------------------------------


def golden_prediction(classifier: LesionClassifier) -> dict[str, Any]:
    """Return the answer for a drawn picture, to be stored in config.json as `lesion.golden` and compared by --verify."""
    code = classifier.codes[0] if classifier.codes[0] in CODES else CODES[0]
    image = draw_lesion(np.random.default_rng(SEED), code, width_px=GOLDEN_SIDE_PX, height_px=GOLDEN_SIDE_PX)
    prediction = classifier.predict(image)
    return {
        "image": f"draw_lesion(seed {SEED}, {code}, {GOLDEN_SIDE_PX} px)",
        "mean_rgb": [round(float(value), 3) for value in np.asarray(image).mean(axis=(0, 1))],
        "diagnosis": prediction.diagnosis,
        "probabilities": {name: round(value, 6) for name, value in prediction.probabilities.items()},
        "abstained": prediction.abstained,
    }


def verify(classifier: LesionClassifier) -> str:
    """Check a loaded model against the hashes and the answer stored in its config, and say what was checked.

    Loading has compared the weights with `lesion.weights_sha256` already. Compared here: every value of config.json with
    its own hash, splits.csv with its hash, whether metrics.json and train_config.json are of this model, and the answer for
    a drawn picture. The numbers of metrics.json have no hash; scoring again shows whether they hold.

    Raises:
        ModelFolderError: If there is no stored answer, or something differs.
    """
    lesion = classifier.lesion
    if not lesion.get("golden"):
        raise ModelFolderError(
            "config.json stores no golden prediction; only models trained by train.py can be verified."
        )
    checked = [f"weights sha256 {str(lesion['weights_sha256'])[:12]}"]
    if lesion.get("config_sha256"):  # written since it exists
        now = config_sha256(read_config(classifier.source.path))
        if now != lesion["config_sha256"]:
            raise ModelFolderError(
                f"config.json is not as it was saved: its hash is {now[:12]}, stored {lesion['config_sha256'][:12]}; a label, "
                "the preprocessing, a threshold or another entry was changed."
            )
        checked.append("every entry of config.json")
    try:
        beside = [_check_beside(classifier, name) for name in (METRICS_NAME, RUN_NAME, SPLITS_NAME)]
        gap, diagnosis, probability = _check_golden(classifier)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelFolderError(
            f"what is stored beside the weights cannot be compared ({type(error).__name__}: {str(error)[:300]}); "
            "download the folder again."
        ) from error
    return (
        f"verified: {', '.join([*checked, *filter(None, beside)])}, golden prediction {diagnosis} {probability:.4f}, "
        f"largest difference {gap:.1e}. Not covered: the numbers of {METRICS_NAME}; score again to compare them."
    )


def _check_beside(classifier: LesionClassifier, name: str) -> str | None:
    """Compare one file beside the weights with config.json; return what was checked, None if there is no such file."""
    path, lesion = _file_beside(classifier.source, name), classifier.lesion
    if path is None:
        return None
    if name == SPLITS_NAME:
        stored = {"splits_sha256": splits_hash(load_splits(path))}
    elif name == RUN_NAME:
        content = read_json(path)
        stored = {key: content[key] for key in ("run_id", "data_fingerprint", "splits_sha256")}
    else:
        content = read_json(path)
        if content["model"]["codes"] != list(classifier.codes):
            raise ModelFolderError(f"{name} has other diagnoses than config.json, or in another order.")
        stored = {
            **{key: content["model"][key] for key in ("weights_sha256", "run_id")},
            "data_fingerprint": content["data"]["fingerprint"],
        }
    for key, value in stored.items():
        if lesion.get(key) is not None and lesion[key] != value:
            raise ModelFolderError(
                f"{name} is not of this model: its {key} is {shortened(value)}, and config.json says {lesion[key]!r}."
            )
    return name


def _check_golden(classifier: LesionClassifier) -> tuple[float, str, float]:
    """Compare the answer for the drawn picture with the stored one; return the difference, diagnosis and probability."""
    stored, now = classifier.lesion["golden"], golden_prediction(classifier)
    if now["mean_rgb"] != stored["mean_rgb"]:
        raise ModelFolderError(
            f"the drawn picture itself differs (mean colour {now['mean_rgb']}, stored {shortened(stored['mean_rgb'])}): this "
            "version of the package or of Pillow draws differently, so the model cannot be verified with it."
        )
    if list(stored["probabilities"]) != list(now["probabilities"]):
        raise ModelFolderError(
            f"the stored answer is of {shortened(list(stored['probabilities']))}, the model's diagnoses are "
            f"{', '.join(classifier.codes)}: the labels are not those that it was saved with."
        )
    gap = max(abs(now["probabilities"][code] - value) for code, value in stored["probabilities"].items())
    if not gap <= GOLDEN_TOLERANCE:
        raise ModelFolderError(
            f"the answer for the drawn picture differs by {gap:.4f} (now {now['probabilities']}, stored "
            f"{shortened(stored['probabilities'])}): the weights, the preprocessing or a library is not what it was."
        )
    return gap, now["diagnosis"], now["probabilities"][now["diagnosis"]]


# ---- Command line --------------------------------------------------------------------------------------------------


@dataclass
class EvaluationOptions:
    """Score a model folder or Hub repository. The first argument is the model."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "isic2019, demo, or a Hub dataset; by default isic2019 with --data_dir, else the model's own."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Local copy of ISIC 2019 in the official layout."})
    splits: str | None = field(
        default=None, metadata={"help": "splits.csv to score on; by default the one in the model folder."}
    )
    masks: str | None = field(
        default=None, metadata={"help": "Folder of <image_id>_segmentation.png, to score heat maps against."}
    )
    tta: bool = field(
        default=False, metadata={"help": "Measure test-time augmentation on all of test; by default on a sample of it."}
    )
    output: str = field(
        default="evaluation", metadata={"help": "Folder for metrics.json, figures/ and predictions.csv."}
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub repository."})
    batch_size: int = field(default=64, metadata={"help": "Images at once; it changes the speed, not the numbers."})
    verify: bool = field(
        default=False,
        metadata={"help": "Only check the weights' hash and the golden prediction of the model; no data."},
    )


def evaluate_folder(model: str, options: EvaluationOptions) -> dict[str, Any] | None:
    """Score a model folder or Hub repository; None on all processes but the first.

    Raises:
        ValueError: If the model's diagnoses are not in the data, or files do not belong together.
    """
    from accelerate import Accelerator  # `accelerate launch -m modeling.evaluation` spreads the images over processes

    accelerator = Accelerator()
    classifier = LesionClassifier.from_pretrained(model, revision=options.revision, device=accelerator.device)
    name = options.dataset or ("isic2019" if options.data_dir else classifier.lesion.get("dataset"))
    splits_csv = options.splits or _file_beside(classifier.source, SPLITS_NAME)
    if name is None or splits_csv is None:
        missing = "data set in config.json: give --dataset" if name is None else f"{SPLITS_NAME}: give --splits"
        raise ValueError(f"{classifier.model_id} has no {missing}.")
    before = _known_before(classifier.source)
    dataset = load_data(name, data_dir=options.data_dir)
    check_diagnoses(classifier, dataset)
    # A run that leaves a source out has no row for the other sources' test images.
    named = np.isin(dataset["image_id"], load_splits(splits_csv)["image_id"])
    splits = read_splits(splits_csv, dataset.select(np.flatnonzero(named)))
    outputs: dict[str, Outputs | None] = {}
    for split in ("val", "test"):
        ids = splits.loc[splits["split"] == split, "image_id"].tolist()
        outputs[split] = _run_split(classifier, dataset, ids, accelerator, options.batch_size) if ids else None
    if outputs["test"] is None:
        raise ValueError("no row of the splits says test: there is nothing to report on")
    if not accelerator.is_main_process:
        return None
    # The folder's weights are calibrated already; what they were before follows from its config.
    temperature = float(classifier.lesion.get("temperature") or 1.0)
    raw = {
        split: None
        if part is None
        else Outputs(part.index, part.labels, part.logits * temperature, part.features, part.image_ids)
        for split, part in outputs.items()
    }
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    return evaluate_model(
        classifier=classifier,
        dataset=dataset,
        splits=splits,
        val=raw["val"],
        test=raw["test"],  # type: ignore[arg-type]  # checked above
        temperature=temperature,
        output_dir=output,
        predictions_csv=output / "predictions.csv",
        protocol=before["protocol"],
        run=before["run"],
        history=before["history"],
        masks_dir=Path(options.masks) if options.masks else None,
        tta_on_all=options.tta,
    )


def check_diagnoses(classifier: LesionClassifier, dataset: datasets.Dataset) -> None:
    """Refuse data that lack a diagnosis of the model.

    Raises:
        ValueError: With what the model has and what the data have.
    """
    have = dataset.features["label"].names
    missing = [code for code in classifier.codes if code not in have]
    if missing:
        raise ValueError(
            f"the model answers {', '.join(classifier.codes)}, but the data have {', '.join(have)}: "
            f"{', '.join(missing)} is missing. Evaluate on data with the model's diagnoses."
        )


def _run_split(
    classifier: LesionClassifier,
    dataset: datasets.Dataset,
    image_ids: Sequence[str],
    accelerator: "Accelerator",
    batch_size: int,
) -> Outputs:
    position = {image_id: place for place, image_id in enumerate(dataset["image_id"])}
    rows = dataset.select([position[image_id] for image_id in image_ids])
    names = dataset.features["label"].names
    images = resized_images(rows, fingerprint="", size_px=classifier.size_px, exact=True, cache_gb=0)
    part = LesionDataset(
        images,
        [classifier.codes.index(names[label]) for label in rows["label"]],
        transform=plain_transform(classifier.model.pretrained_cfg),
        seed=None,
    )
    loader = accelerator.prepare(DataLoader(part, batch_size=batch_size))
    return run_model(classifier.model, loader, accelerator, image_ids=image_ids)


def _file_beside(source: ModelFolder, name: str) -> Path | None:
    """Return a file beside the model's weights, from its folder or from the same revision on the Hub; None without one."""
    path = source.path / name
    if source.revision is not None and not path.is_file():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(source.model_id, name, revision=source.revision))
        except EntryNotFoundError:
            return None
    return path if path.is_file() else None


def _known_before(source: ModelFolder) -> dict[str, Any]:
    """Return protocol, run and history as the metrics.json beside the weights has them.

    Raises:
        ModelFolderError: If the file is damaged.
    """
    path = _file_beside(source, METRICS_NAME)
    if path is None:
        return {"protocol": "lesion", "run": None, "history": []}
    content = read_json(path)
    try:
        training, protocol = content["training"], content["data"]["protocol"]
        _describe_training(training, training["history"])
        numbers = [record[key] for record in training["history"] for key in ("epoch", *HISTORY_KEYS)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelFolderError(f"{path} is damaged or of another version ({type(error).__name__}: {error}).") from error
    if protocol not in ("lesion", "original") or not all(isinstance(number, int | float) for number in numbers):
        raise ModelFolderError(f"{path} is damaged: protocol {shortened(protocol)}, or an epoch without its numbers.")
    return {"protocol": protocol, "run": training, "history": training["history"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all went well, 1 with a message otherwise."""
    parser = HfArgumentParser(EvaluationOptions, prog="python -m modeling.evaluation")  # type: ignore[arg-type]
    parser.add_argument("model", help="A model folder, or a Hub repository id.")
    values = vars(parser.parse_args(arguments))
    model = values.pop("model")
    options = EvaluationOptions(**values)
    try:
        if options.verify:
            classifier = LesionClassifier.from_pretrained(model, revision=options.revision)
            print(f"{classifier.origin}\n{verify(classifier)}")
            return 0
        metrics = evaluate_folder(model, options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if metrics is not None:
        print(summary(metrics))
        print(f"written: {Path(options.output) / METRICS_NAME}")
    return 0


def summary(metrics: Mapping[str, Any]) -> str:
    """Return the few lines that a reader wants first."""
    test = metrics["test"]
    lines = [f"test: {test['n_images']} images of {test['n_lesions']} lesions"]
    floor = metrics["floors"].get("no_pixels", {}).get("balanced_accuracy")
    named = {
        "balanced accuracy": test["balanced_accuracy"],
        "balanced accuracy of the floor without pixels": floor,
        "accuracy": test["accuracy"],
        "macro AUROC": test["macro_auroc"],
        "calibration error (ECE)": metrics["calibration"]["test"]["after"]["ece"],
    }
    lines += [f"  {name}: {_in_words(number)}" for name, number in named.items() if number]
    for point in metrics["operating_points"]:
        if "test" in point:
            lines.append(
                f"  {point['name']}: sensitivity {_in_words(point['test']['sensitivity'])}, "
                f"specificity {_in_words(point['test']['specificity'])}"
            )
    if metrics["data"]["protocol"] == "original":
        lines.append(
            f"  {metrics['data']['leakage']['overall']:.1%} of the test images show a lesion that is also in train"
        )
    model, data = metrics["model"], metrics["data"]
    lines.append(
        f"model of run {model['run_id']}, revision {model['revision'] or 'local'}, weights sha256 {model['weights_sha256']}, "
        f"data {data['fingerprint']}, skin-lesion-classifier {model['package_version']}"
    )
    return "\n".join(lines)


def _in_words(number: Mapping[str, Any]) -> str:
    if number["value"] is None:
        return f"not estimable ({number['reason']})"
    if number["low"] is None:
        return f"{number['value']:.3f} (no interval: {number['reason']})"
    return f"{number['value']:.3f} ({number['low']:.3f} to {number['high']:.3f})"


if __name__ == "__main__":
    sys.exit(main())
