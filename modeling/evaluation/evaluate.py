"""A model and a dataset → metrics.json (described in docs/metrics.md), figures/ and predictions.csv."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modeling.evaluation import external, sections
from modeling.evaluation.bootstrap import INTERVALS
from modeling.evaluation.context import Context
from modeling.evaluation.figures import draw_figures
from modeling.evaluation.metrics import score_split
from modeling.evaluation.robustness import robustness_section
from modeling.evaluation.saliency import heat_maps_section
from modeling.files import write_json
from modeling.formatting import format_estimate
from modeling.metrics_file import METRICS_SCHEMA
from modeling.model_folder import METRICS_NAME
from modeling.rows import write_rows


def evaluate_model(context: Context, *, output_dir: Path, predictions_csv: Path) -> dict[str, Any]:
    """Measure a model; write metrics.json and figures/ into `output_dir`, and predictions.csv.

    Returns:
        The content of metrics.json.
    """
    of_the_model = {"reason": "an external evaluation does not repeat what belongs to the model alone"}
    metrics: dict[str, Any] = {
        "schema_version": METRICS_SCHEMA,
        "model": sections.model_section(context),
        "data": sections.data_section(context),
        "intervals": INTERVALS,
        "val": score_split(context.val) if context.val else {"reason": "the splits have no val images"},
        "test": {**score_split(context.test), "by_lesion": score_split(context.test.by_lesion())},
        "calibration": sections.calibration_section(context),
        "operating_points": sections.operating_points_section(context),
        "abstention": sections.abstention_section(context),
        "baselines": sections.baselines_section(context),
        "groups": sections.score_groups(context.test, context.classifier.operating_points),
        "robustness": of_the_model if context.external else robustness_section(context),
        "heat_maps": of_the_model if context.external else heat_maps_section(context),
        "training": sections.training_section(context),
    }
    if context.external:
        metrics["external"] = external.external_section(context, metrics)
    metrics["figures"] = draw_figures(output_dir / "figures", metrics, context)
    metrics = rounded(metrics)
    write_json(output_dir / METRICS_NAME, metrics, indent=1)
    write_predictions(predictions_csv, context)
    return metrics


def rounded(value: Any) -> Any:
    """Return plain JSON values with floats of 6 decimals; further digits depend on the machine."""
    text = json.dumps(value, default=lambda number: number.item())  # a number of numpy
    return json.loads(text, parse_float=lambda digits: round(float(digits), 6) + 0.0)  # no minus zero


def write_predictions(path: Path, context: Context) -> None:
    """Write image_id, lesion_id, split, label, one probability for each diagnosis (equal priors), predicted, abstained."""
    rows: list[Any] = []
    rule = context.classifier.abstention
    for name, split in (("val", context.val), ("test", context.test)):
        if split is None or split.table is None or split.outputs is None:
            continue
        table = split.table[["image_id", "lesion_id"]].assign(split=name, label=split.table["label"])
        for code, probs in zip(split.codes, split.probs.T, strict=True):
            table[code] = [f"{value:.6f}" for value in probs]
        table["predicted"] = np.array(split.codes)[split.predicted]
        table["abstained"] = rule.abstains(split.outputs.logits, split.outputs.features) if rule else False
        rows += table.to_dict("records")
    write_rows(path, rows, columns=rows[0])


def summary(metrics: Mapping[str, Any]) -> str:
    """Return the main scores, for the console."""
    model, data, test = metrics["model"], metrics["data"], metrics["test"]
    mix = "the mix of train and val" if model["class_priors"] else "equal priors"
    lines = [
        f"test: {test['n_images']} images of {test['n_lesions']} lesions; averages over {', '.join(test['diagnoses'])}; 95 % "
        "intervals by lesion",
        f"accuracy, ECE, Brier score and NLL at {mix}; all other scores at equal priors",
        *(f"  {name}: {format_estimate(number)}" for name, number in external.headline(metrics).items()),
    ]
    if "balanced_accuracy" in (baseline := metrics["baselines"].get("metadata_only", {})):
        lines.append(f"  metadata-only baseline, balanced_accuracy: {format_estimate(baseline['balanced_accuracy'])}")
    if metrics.get("external"):
        lines += external.summary_lines(metrics["external"])
    else:
        lines.append(f"  {data['leakage']['overall']:.1%} of the test images show a lesion that is also in train")
    lines.append(
        f"model of run {model['run_id']}, revision {model['revision'] or 'local'}, weights sha256 "
        f"{model['weights_sha256'][:12]}, data {str(data['fingerprint'])[:12]}, {model['engine']} engine"
    )
    return "\n".join(lines)
