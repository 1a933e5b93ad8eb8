"""Predictions of a split → numbers with intervals → metrics.json, figures and predictions.csv.

    python -m modeling.evaluation MODEL --data_dir DIR

metrics.json, schema 2. It holds no dates and no paths, and the same weights on the same data give the same bytes. A number
with an interval is {"value", "low", "high"} (95 %, lesions replicates); what cannot be estimated is null, with a "reason".
Shares and scores are in [0, 1]. <code> is a diagnosis such as "MEL".

schema_version   2
model            codes, names {code}, architecture, image_size_px, n_parameters, weights_sha256, license, run_id,
                 package_version, revision (commit on the Hub; null for a folder)
data             dataset, synthetic, fingerprint, splits_sha256, protocol, split_unit,
                 leakage {overall, code}: share of test images whose lesion is also in train,
                 flow {in_dataset, skipped, other_diagnoses {code}, splits {split: n_images, n_lesions, per_class {code}}},
                 sources {source: n}
intervals        method, level, n_replicates, seed, unit
val, test        n_images, n_lesions, accuracy, balanced_accuracy, macro_f1, macro_auroc, weighted_precision,
                 weighted_recall, weighted_f1, per_class {code: n_images, n_lesions, precision, recall, specificity, f1,
                 auroc, average_precision}, confusion (rows true, columns predicted);
                 test.by_lesion: all of it by lesion (mean probability over a lesion's photos);
calibration      method, temperature, val and test {before, after: nll, brier, ece, ece_per_class {code}},
                 reliability {before, after: rows of n_images, confidence, correct}
operating_points  rows of name, codes, target_sensitivity, threshold, val {sensitivity, specificity, n_positive, n_negative},
                 test {n_positive_images, n_positive_lesions, n_negative_images, n_negative_lesions, sensitivity,
                 specificity, at_prevalence: rows of prevalence, of, ppv, npv}; or name and reason
abstention       method, threshold, false_alarm_rate, test {abstained, answered {n_images, accuracy, balanced_accuracy}},
                 near {code: malignant, n_images, n_lesions, auroc, fpr_at_95_tpr, abstained, predicted {code: n},
                 above {operating point}}, far {kind: n_images, auroc, fpr_at_95_tpr, abstained}; or reason
risk_coverage    aurc, risk_at_coverage {"1.00", "0.90", …}
baselines        model {balanced_accuracy}, metadata_only and majority {sees, balanced_accuracy, accuracy,
                 model_minus_baseline};
                 or reason
groups           source, sex, age_years, site {group: n_images, n_lesions, accuracy, balanced_accuracy, diagnoses (those that
                 it is the mean of), recall {code}, operating points {sensitivity, specificity}, or suppressed (why)};
                 not_measured {what: why}
robustness       n_images, n_lesions, sample, balanced_accuracy, changes {change: flip_rate, balanced_accuracy,
                 balanced_accuracy_gain}
test_time_augmentation  views, n_images, n_lesions, sample, and the three numbers of a change
heat_maps        masks {n_images, n_lesions, n_without_mask, mean_lesion_fraction, model, randomised, centred_blob and
                 random_map {heat_inside, pointing_game, iou, n_without_heat}, similarity_to_randomised}, or {reason};
                 road {n_images, n_lesions, model, centred_blob}
failures         most_confident: rows of image_id, label, predicted, probability; missed {operating point: n_images, image_ids}
reference        rows of system, protocol, measured_on, leakage_rate, scores {name}; or system, protocol and reason
training         options, history (one record an epoch), best_epoch, selection
figures          file names in figures/
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd

from modeling.calibration import softmax
from modeling.classifier import LesionClassifier
from modeling.data.splits import leakage
from modeling.evaluation.bootstrap import LEVEL, N_REPLICATES, SEED, bootstrap_lesions
from modeling.evaluation.figures import draw_figures
from modeling.evaluation.metrics import risk_coverage, score_split
from modeling.evaluation.reference import compare
from modeling.evaluation.sections import (
    TestImages,
    abstention_section,
    baselines_section,
    by_lesion_section,
    calibration_section,
    classify_images,
    data_section,
    failures_section,
    heat_maps_section,
    metadata_table,
    model_section,
    operating_points_section,
    robustness_section,
    rows_of,
    sample_evenly,
    training_section,
    tta_section,
    val_section,
)
from modeling.evaluation.subgroups import score_groups
from modeling.files import METRICS_NAME, METRICS_SCHEMA
from modeling.training.outputs import Outputs

COVERAGES = (1.0, 0.9, 0.8, 0.5)


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
        protocol: How the splits were made, "lesion", "original" or "given".
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
    chosen = {name: rows_of(splits, table, name, outputs) for name, outputs in (("val", val), ("test", test))}
    rows = chosen["test"]
    logits = test.logits / temperature
    probs, labels = softmax(logits), test.labels
    predicted = probs.argmax(axis=1)
    bootstrap = bootstrap_lesions(rows["lesion_id"].to_numpy())
    raw_probs = softmax(test.logits)
    sample = sample_evenly(labels)
    images = TestImages(dataset, table)
    sample_images = images.load(rows["image_id"].iloc[sample])
    sample_bootstrap = bootstrap_lesions(rows["lesion_id"].to_numpy()[sample])

    plain = classify_images(classifier, sample_images)
    ood = abstention_section(classifier, table, images, logits, test.features, labels, bootstrap, len(sample))
    coverage, risk = risk_coverage(1 - probs.max(axis=1), predicted != labels)
    test_scores = score_split(probs, labels, codes, bootstrap)
    metrics: dict[str, Any] = {
        "schema_version": METRICS_SCHEMA,
        "model": model_section(classifier),
        "data": data_section(classifier, table, splits, protocol, n_skipped),
        "intervals": {
            "method": "percentile bootstrap; Clopper-Pearson on lesions where all agree",
            "level": LEVEL,
            "n_replicates": N_REPLICATES,
            "seed": SEED,
            "unit": "lesion",
        },
        "val": val_section(val, chosen["val"], temperature, codes),
        "test": {
            **test_scores,
            "by_lesion": by_lesion_section(probs, labels, rows, codes),
        },
        "calibration": calibration_section(val, test, chosen, temperature, codes),
        "operating_points": operating_points_section(classifier, probs, labels, bootstrap),
        "abstention": ood[0],
        "risk_coverage": {
            "aurc": float(risk.mean()),
            "risk_at_coverage": {
                f"{share:.2f}": float(risk[max(round(share * len(risk)), 1) - 1]) for share in COVERAGES
            },
        },
        "baselines": baselines_section(splits, table, rows, predicted, codes, bootstrap),
        "groups": {
            **score_groups(rows, probs, labels, codes, classifier.operating_points, bootstrap),
            "not_measured": {"skin tone": "ISIC 2019 does not record it, so fairness over skin tones is unknown"},
        },
        "robustness": robustness_section(classifier, sample_images, plain, labels[sample], sample_bootstrap),
        "test_time_augmentation": tta_section(classifier, images, rows, labels, sample, everything=tta_on_all),
        "heat_maps": heat_maps_section(classifier, sample_images, rows.iloc[sample], sample_bootstrap, masks_dir),
        "failures": failures_section(classifier, probs, labels, test.image_ids),
        "reference": compare(
            test_scores,
            protocol=protocol,
            dataset=str(classifier.lesion.get("dataset")),
            codes=codes,
            leakage_rate=leakage(splits)["overall"],
        ),
        "training": training_section(run, history),
    }
    metrics["figures"] = draw_figures(
        output_dir / "figures",
        metrics=metrics,
        labels=labels,
        probs=probs,
        uncalibrated_probs=raw_probs,
        risk_coverage=(coverage, risk),
        ood_scores=ood[1],
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


def summary(metrics: Mapping[str, Any]) -> str:
    """Return the few lines that a reader wants first."""
    test = metrics["test"]
    lines = [f"test: {test['n_images']} images of {test['n_lesions']} lesions"]
    baseline = metrics["baselines"].get("metadata_only", {}).get("balanced_accuracy")
    named = {
        "balanced accuracy": test["balanced_accuracy"],
        "balanced accuracy of the baseline without pixels": baseline,
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
    if metrics["data"]["protocol"] != "lesion":
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
        return f"{number['value']:.3f} ({number['reason']})"
    return f"{number['value']:.3f} ({number['low']:.3f} to {number['high']:.3f})"
