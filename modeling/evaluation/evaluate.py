"""Predictions of a split → numbers with intervals → metrics.json, figures and predictions.csv.

    python -m modeling.evaluation MODEL --data_dir DIR

metrics.json, schema 2. It holds no dates and no paths, and the same weights on the same data give the same bytes. A number
with an interval is {"value", "low", "high"} (95 %, by a bootstrap of lesions); what cannot be estimated is null, with a "reason".
Rates and scores are in [0, 1]. <code> is a diagnosis such as "MEL".

schema_version   2
model            codes, names {code}, architecture, image_size_px, n_parameters, weights_sha256, license, run_id,
                 package_version, revision (commit on the Hub; null for a folder)
data             dataset, synthetic, fingerprint, splits_sha256, protocol, split_unit,
                 leakage {overall, code}: fraction of test images whose lesion is also in train,
                 flow {in_dataset, skipped, other_diagnoses {code}, splits {split: n_images, n_lesions, per_class {code}}},
                 sources {source: n}
intervals        method, level, n_replicates, seed, unit
val, test        n_images, n_lesions, accuracy, balanced_accuracy, macro_f1, macro_auroc, weighted_precision,
                 weighted_recall, weighted_f1, per_class {code: n_images, n_lesions, precision, recall, specificity, f1,
                 auroc, average_precision}, confusion (rows true, columns predicted);
                 test.by_lesion: all of it by lesion (mean probability over a lesion's photos);
calibration      fitted {method, scale and bias (one a diagnosis), nll {method}: cross-validated over lesions of val};
                 val and test {before, after: nll, brier, ece, ece_per_class {code}; an ECE is {value, if_calibrated {low, high}:
                 the middle 95 % of what a perfectly calibrated model would have on the same images}},
                 reliability {before, after: rows of n_images, confidence, correct}
operating_points  rows of name, codes, target_sensitivity, threshold, val {sensitivity, specificity, n_positive, n_negative},
                 test {n_positive_images, n_positive_lesions, n_negative_images, n_negative_lesions, sensitivity,
                 specificity, at_prevalence: rows of prevalence, of, ppv, npv}; or name and reason
abstention       method, threshold, false_alarm_rate, test {abstained, answered {n_images, accuracy, balanced_accuracy}},
                 near {code: malignant, n_images, n_lesions, auroc, fpr_at_95_tpr, abstained, predicted {code: n},
                 above {operating point}}, far {kind: chose_the_score, n_images, auroc, fpr_at_95_tpr, abstained}; or reason
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
                 random_map {heat_inside, pointing_game, iou, n_without_heat}, similarity_to_randomised, off_centre
                 {n_images, model and centred_blob, on crops to a corner}}, or {reason};
                 road {n_images, n_lesions, model, centred_blob}
failures         most_confident: rows of image_id, label, predicted, probability; missed {operating point: n_images, image_ids}
reference        rows of system, protocol, measured_on, leakage_rate, scores {name}; or system, protocol and reason
image_properties  long_side_px, sharpness, jpeg_quality and brightness {lower_quartile, median, upper_quartile} of a
                 sample of test
external         only where the images are not the model's own: compared_by, left_out {reason: n}, headline {name: internal,
                 external, difference}, calibration {code: excess_probability, slope}, thresholds {operating point: stored,
                 needed}, mix {what {group: internal, external}}, image_properties {property {internal, external}},
                 accuracy_at_internal_mix, challenge {n_images, mean_recall, recall {code}, note}; or reason in place of any
training         options, history (one record an epoch), best_epoch, selection
figures          file names in figures/
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modeling.evaluation import external, sections
from modeling.evaluation.context import Context, track
from modeling.evaluation.figures import draw_figures
from modeling.files import METRICS_SCHEMA
from modeling.formatting import format_estimate
from modeling.model_folder import METRICS_NAME

SECTIONS: dict[str, Callable[[Context], Any]] = {
    "model": sections.model_section,
    "data": sections.data_section,
    "intervals": sections.intervals_section,
    "val": sections.val_section,
    "test": sections.test_section,
    "calibration": sections.calibration_section,
    "operating_points": sections.operating_points_section,
    "abstention": sections.abstention_section,
    "risk_coverage": sections.risk_coverage_section,
    "baselines": sections.baselines_section,
    "groups": sections.groups_section,
    "robustness": sections.robustness_section,
    "test_time_augmentation": sections.tta_section,
    "heat_maps": sections.heat_maps_section,
    "failures": sections.failures_section,
    "reference": sections.reference_section,
    "image_properties": external.image_properties_section,
    "training": lambda context: sections.training_section(context.run, context.history),
}


def evaluate_model(context: Context, *, output_dir: Path, predictions_csv: Path) -> dict[str, Any]:
    """Measure a model and write metrics.json and figures/ into `output_dir`, and predictions.csv.

    Returns:
        The content of metrics.json; this module's docstring is its schema.
    """
    metrics: dict[str, Any] = {"schema_version": METRICS_SCHEMA}
    for name, section in track(SECTIONS.items(), "evaluation"):
        metrics[name] = section(context)
    if context.external:
        metrics["external"] = external.external_section(context, metrics)
    metrics["figures"] = draw_figures(output_dir / "figures", metrics, context)
    metrics = rounded(metrics)
    text = json.dumps(metrics, indent=1, allow_nan=False, ensure_ascii=False)
    (output_dir / METRICS_NAME).write_text(text + "\n", encoding="utf-8")
    write_predictions(predictions_csv, context)
    return metrics


def rounded(value: Any) -> Any:
    """Return plain JSON values with floats of 6 decimals: what is beyond depends on the machine."""
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, np.generic):
        return rounded(value.item())
    if isinstance(value, float):
        return round(value, 6) + 0.0  # no minus zero
    return value


def write_predictions(path: Path, context: Context) -> None:
    """Write image_id, lesion_id, split, label, one probability column per diagnosis, the predicted one, and abstained."""
    frames, rule = [], context.classifier.abstention
    for name, split in (("val", context.val), ("test", context.test)):
        if split is None:
            continue
        frame = split.rows[["image_id", "lesion_id", "label"]].reset_index(drop=True)
        frame.insert(2, "split", name)
        frame[list(context.codes)] = split.probs
        outputs = split.outputs
        frame["predicted"] = np.array(context.codes)[split.predicted]
        frames.append(frame.assign(abstained=rule.abstains(outputs.logits, outputs.features) if rule else False))
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
    lines += [f"  {name}: {format_estimate(number)}" for name, number in named.items() if number]
    if "MEL" in test["per_class"]:
        melanoma = test["per_class"]["MEL"]
        lines.append(
            f"  predicted diagnosis is melanoma: sensitivity {format_estimate(melanoma['recall'])}, "
            f"specificity {format_estimate(melanoma['specificity'])}"
        )
    for point in metrics["operating_points"]:
        if "test" in point:
            lines.append(
                f"  {point['name']}: sensitivity {format_estimate(point['test']['sensitivity'])}, "
                f"specificity {format_estimate(point['test']['specificity'])}"
            )
    if "external" not in metrics:
        lines.append(
            f"  {metrics['data']['leakage']['overall']:.1%} of the test images show a lesion that is also in train"
        )
    if "external" in metrics:
        lines += external.summary_lines(metrics["external"])
    model, data = metrics["model"], metrics["data"]
    lines.append(
        f"model of run {model['run_id']}, revision {model['revision'] or 'local'}, weights sha256 {model['weights_sha256']}, "
        f"data {data['fingerprint']}, skin-lesion-classifier {model['package_version']}"
    )
    return "\n".join(lines)
