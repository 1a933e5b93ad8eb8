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
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from modeling.calibration import softmax
from modeling.data import load_data
from modeling.figures import draw_figures
from modeling.floors import score_groups
from modeling.intervals import LEVEL, N_RESAMPLES, SEED, resample_lesions
from modeling.loading import LesionDataset, resized_images
from modeling.metrics import risk_coverage, score_split
from modeling.model import METRICS_NAME, SPLITS_NAME, ModelFolder, ModelFolderError, read_json, shortened
from modeling.original import compare
from modeling.outputs import Outputs, run_model
from modeling.predictor import LesionClassifier
from modeling.sections import (
    HISTORY_KEYS,
    Pictures,
    abstention_section,
    by_lesion_section,
    calibration_section,
    classify_pictures,
    data_section,
    failures_section,
    floors_section,
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
from modeling.splits import leakage, load_splits, read_splits
from modeling.verification import file_beside, verify

if TYPE_CHECKING:
    from accelerate import Accelerator

SCHEMA_VERSION = 1
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
    chosen = {name: rows_of(splits, table, name, outputs) for name, outputs in (("val", val), ("test", test))}
    rows = chosen["test"]
    logits = test.logits / temperature
    probs, labels = softmax(logits), test.labels
    called = probs.argmax(axis=1)
    resampling = resample_lesions(rows["lesion_id"].to_numpy())
    raw_probs = softmax(test.logits)
    sample = sample_evenly(labels)
    images = Pictures(dataset, table)
    sample_images = images.load(rows["image_id"].iloc[sample])
    sample_resampling = resample_lesions(rows["lesion_id"].to_numpy()[sample])

    plain = classify_pictures(classifier, sample_images)
    unlike = abstention_section(classifier, table, images, logits, test.features, labels, resampling, len(sample))
    coverage, risk = risk_coverage(1 - probs.max(axis=1), called != labels)
    test_scores = score_split(probs, labels, codes, resampling)
    metrics: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": model_section(classifier),
        "data": data_section(classifier, table, splits, protocol, n_skipped),
        "intervals": {
            "method": "percentile bootstrap; Clopper-Pearson on lesions where all agree",
            "level": LEVEL,
            "n_resamples": N_RESAMPLES,
            "seed": SEED,
            "unit": "lesion",
        },
        "val": val_section(val, chosen["val"], temperature, codes),
        "test": {
            **test_scores,
            "by_lesion": by_lesion_section(probs, labels, rows, codes),
        },
        "calibration": calibration_section(val, test, chosen, temperature, codes),
        "operating_points": operating_points_section(classifier, probs, labels, resampling),
        "abstention": unlike[0],
        "risk_coverage": {
            "aurc": float(risk.mean()),
            "risk_at_coverage": {
                f"{share:.2f}": float(risk[max(round(share * len(risk)), 1) - 1]) for share in COVERAGES
            },
        },
        "floors": floors_section(splits, table, rows, called, codes, resampling),
        "groups": {
            **score_groups(rows, probs, labels, codes, classifier.operating_points, resampling),
            "not_measured": {"skin tone": "ISIC 2019 does not record it, so fairness over skin tones is unknown"},
        },
        "robustness": robustness_section(classifier, sample_images, plain, labels[sample], sample_resampling),
        "test_time_augmentation": tta_section(classifier, images, rows, labels, sample, everything=tta_on_all),
        "heat_maps": heat_maps_section(classifier, sample_images, rows.iloc[sample], sample_resampling, masks_dir),
        "failures": failures_section(classifier, probs, labels, test.image_ids),
        "original": compare(
            test_scores,
            protocol=protocol,
            dataset=str(classifier.lesion.get("dataset")),
            codes=codes,
            leaking_share=leakage(splits)["overall"],
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
    splits_csv = options.splits or file_beside(classifier.source, SPLITS_NAME)
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
    part = LesionDataset(images, [classifier.codes.index(names[label]) for label in rows["label"]])
    loader = accelerator.prepare(DataLoader(part, batch_size=batch_size))
    return run_model(classifier.model, loader, accelerator, image_ids=image_ids)


def _known_before(source: ModelFolder) -> dict[str, Any]:
    """Return protocol, run and history as the metrics.json beside the weights has them.

    Raises:
        ModelFolderError: If the file is damaged.
    """
    path = file_beside(source, METRICS_NAME)
    if path is None:
        return {"protocol": "lesion", "run": None, "history": []}
    content = read_json(path)
    try:
        training, protocol = content["training"], content["data"]["protocol"]
        training_section(training, training["history"])
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
        return f"{number['value']:.3f} ({number['reason']})"
    return f"{number['value']:.3f} ({number['low']:.3f} to {number['high']:.3f})"


if __name__ == "__main__":
    sys.exit(main())
