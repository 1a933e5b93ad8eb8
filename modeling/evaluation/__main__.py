"""Score a model folder or Hub repository: `python -m modeling.evaluation MODEL --data_dir DIR`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from modeling.classifier import LesionClassifier
from modeling.data.cache import resized_images
from modeling.data.dataset import LesionDataset
from modeling.data.sources import LoadedImages, fingerprint, load_images, rows_of
from modeling.data.splits import load_splits, read_splits
from modeling.evaluation.context import Context, External
from modeling.evaluation.evaluate import evaluate_model, summary
from modeling.evaluation.external import open_external
from modeling.evaluation.verify import verify
from modeling.files import ModelFolderError
from modeling.inference import Outputs, run_model
from modeling.metrics_file import read_metrics
from modeling.model_folder import METRICS_NAME, SPLITS_NAME, file_beside
from modeling.training.options import option

# ---- Command line --------------------------------------------------------------------------------------------------


@dataclass
class EvaluationOptions:
    """Score a model folder or Hub repository. The first argument is the model."""

    dataset: str | None = option(
        None, "isic2019, demo, a folder or a Hub dataset; by default isic2019 with --data_dir, else the model's own."
    )
    data_dir: str | None = option(None, "Local copy of ISIC 2019 in the official layout.")
    splits: str | None = option(None, "splits.csv to score on; by default the one in the model folder.")
    masks: str | None = option(None, "Folder of <image_id>_segmentation.png, to score heat maps against.")
    tta: bool = option(False, "Measure test-time augmentation on all of test; by default on a sample of it.")
    external: bool = option(
        False,
        "External validation: score data that are not the model's own. All images that it has not seen are test.",
    )
    official_test: bool = option(
        False, "Score on the official test of ISIC 2019, as the challenge did and with the usual numbers."
    )
    skip_bad_images: bool = option(
        False, "Leave unusable images out and list them in skipped.csv. Default: stop and name them."
    )
    output: str = option("evaluation", "Folder for metrics.json, figures/ and predictions.csv.")
    revision: str | None = option(None, "Branch, tag or commit of a Hub repository.")
    batch_size: int = option(64, "Images at once; it changes the speed, not the numbers.")
    verify: bool = option(False, "Only compare the files of the model with their hashes; no data.")


def evaluate_folder(model: str, options: EvaluationOptions) -> dict[str, Any] | None:
    """Score a model folder or Hub repository; None on all processes but the first.

    Raises:
        ValueError: If the model's diagnoses are not in the data, or files do not belong together.
    """
    accelerator = Accelerator()  # `accelerate launch -m modeling.evaluation` spreads the images over processes
    output = Path(options.output)
    classifier = LesionClassifier.from_pretrained(model, revision=options.revision, device=accelerator.device)
    before = own_metrics(classifier)
    external: External | None = None
    if options.external or options.official_test:
        if output.resolve() == classifier.source.path.resolve():
            raise ValueError(
                f"--output {output} is the model itself, whose own {METRICS_NAME} would be replaced; name another folder."
            )
        loaded, name = open_data(classifier, options)
        dataset, splits, external = open_external(
            classifier, loaded, name=name, challenge=options.official_test, internal=before
        )
    else:
        loaded, name, splits = open_own_data(classifier, options)
        dataset = loaded.dataset
    outputs: dict[str, Outputs | None] = {}
    for split in ("val", "test"):
        ids = splits.loc[splits["split"] == split, "image_id"].tolist()
        outputs[split] = _run_split(classifier, dataset, ids, accelerator, options.batch_size) if ids else None
    if outputs["test"] is None:
        raise ValueError("no row of the splits says test: there is nothing to report on")
    if not accelerator.is_main_process:
        return None
    output.mkdir(parents=True, exist_ok=True)
    other_data = external is not None or options.splits is not None
    protocol = before["data"]["protocol"] if before else classifier.lesion.get("protocol") or "lesion"
    context = Context(
        classifier=classifier,
        dataset=dataset,
        splits=splits,
        val_outputs=outputs["val"],
        test_outputs=outputs["test"],
        dataset_name=name if other_data else None,
        data_fingerprint=fingerprint(loaded.dataset) if other_data else None,
        n_skipped=loaded.n_skipped,
        protocol="external" if external else protocol,
        run=before["training"] if before else None,
        history=before["training"]["history"] if before else (),
        masks_dir=Path(options.masks) if options.masks else None,
        tta_on_all=options.tta,
        external=external,
    )
    return evaluate_model(context, output_dir=output, predictions_csv=output / "predictions.csv")


def open_data(classifier: LesionClassifier, options: EvaluationOptions) -> tuple[LoadedImages, str]:
    """Return the images that the options name, and what they are called in files that others see."""
    name = options.dataset or ("isic2019" if options.data_dir else classifier.lesion.get("dataset"))
    if options.official_test:
        name, title = "isic2019", "ISIC 2019 official test"
    elif name is None:
        raise ValueError(f"{classifier.model_id} has no dataset in config.json: give --dataset.")
    else:
        title = Path(name).resolve().name if Path(name).is_dir() else name
    images = load_images(
        name,
        data_dir=options.data_dir,
        skip_bad_images=options.skip_bad_images,
        skipped_csv=Path(options.output) / "skipped.csv",
        official_test=options.official_test,
    )
    return images, title


def own_metrics(classifier: LesionClassifier) -> dict[str, Any] | None:
    """Return the content of the metrics.json that was published with a model, None if there is none.

    Raises:
        ModelFolderError: If it is damaged, or of another model.
    """
    path = file_beside(classifier.source, METRICS_NAME)
    if path is None:
        return None
    metrics = read_metrics(path)
    model = metrics["model"]
    if model["weights_sha256"] != classifier.lesion["weights_sha256"] or tuple(model["codes"]) != classifier.codes:
        raise ModelFolderError(f"{path} is of another model: its weights_sha256 or diagnoses differ; remove it.")
    return metrics


def open_own_data(classifier: LesionClassifier, options: EvaluationOptions) -> tuple[LoadedImages, str, pd.DataFrame]:
    """Return the model's own data, what they are called, and their splits.

    Raises:
        ValueError: If the data or the splits are others, or lack a diagnosis of the model.
    """
    splits_csv = options.splits or file_beside(classifier.source, SPLITS_NAME)
    if splits_csv is None:
        raise ValueError(
            f"{classifier.model_id} has no {SPLITS_NAME}: give --splits, or --external if the model was trained on other data."
        )
    loaded, name = open_data(classifier, options)
    dataset = loaded.dataset
    check_diagnoses(classifier, dataset)
    rows = load_splits(splits_csv)
    unknown = sorted(set(rows["label"]) - set(classifier.codes))
    if unknown:
        raise ValueError(
            f"{splits_csv} has images of {', '.join(unknown)}, but the model answers {', '.join(classifier.codes)}: leave the "
            "rows of other diagnoses out."
        )
    # A run that leaves a source out has no row for the other sources' test images.
    named = np.isin(dataset["image_id"], rows["image_id"])
    if options.splits is None and named.sum() < len(rows):
        raise ValueError(
            f"{name} is not what the model was trained on: it has {named.sum()} of the {len(rows)} images of its {SPLITS_NAME}. "
            "Add --external to score the model on other data than its own, or give the data that it was trained on."
        )
    return loaded, name, read_splits(splits_csv, dataset.select(np.flatnonzero(named)))


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
    accelerator: Accelerator,
    batch_size: int,
) -> Outputs:
    rows = rows_of(dataset, image_ids)
    names = dataset.features["label"].names
    images = resized_images(rows, fingerprint="", size_px=classifier.size_px, exact=True, cache_gb=0)
    part = LesionDataset(images, [classifier.codes.index(names[label]) for label in rows["label"]])
    loader = accelerator.prepare(DataLoader(part, batch_size=batch_size))
    outputs = run_model(classifier.engine.network, loader, accelerator)
    stored = classifier.lesion.get("calibration")
    # The folder's weights are calibrated already; what they said before follows from its config.
    return replace(outputs, raw_logits=stored.undo(outputs.logits)) if stored else outputs


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


if __name__ == "__main__":
    sys.exit(main())
