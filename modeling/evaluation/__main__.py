"""Score a model folder or Hub repository: `python -m modeling.evaluation MODEL --data_dir DIR`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import HfArgumentParser

from modeling.classifier import LesionClassifier
from modeling.data.duplicates import check_same_images, read_hashes
from modeling.data.sources import LoadedImages, load_images
from modeling.data.splits import read_splits
from modeling.data.splits_file import load_splits
from modeling.evaluation.context import Context, External
from modeling.evaluation.evaluate import evaluate_model, summary
from modeling.evaluation.external import open_external
from modeling.evaluation.saliency import MASK_NAME
from modeling.evaluation.verify import verify
from modeling.metrics_file import read_metrics_of
from modeling.model_folder import HASHES_NAME, METRICS_NAME, SPLITS_NAME, file_beside
from modeling.training.options import option


@dataclass
class EvaluationOptions:
    """Score a model folder or Hub repository. The first argument is the model."""

    dataset: str | None = option(
        None, "isic2019, demo, a folder or a Hub dataset. Default: isic2019 with --data_dir, else the model's own."
    )
    data_dir: str | None = option(None, "Local copy of ISIC 2019 in the official layout.")
    splits: str | None = option(None, "splits.csv to score on. Default: the one in the model folder.")
    masks: str | None = option(None, "Folder of <image_id>_segmentation.png, to score heat maps against.")
    external: bool = option(
        False,
        "External validation on data that are not the model's own: test is every image of the model's diagnoses that it has not "
        "seen.",
    )
    official_test: bool = option(
        False, "Score on the official test of ISIC 2019, with the usual scores and that of the challenge."
    )
    skip_bad_images: bool = option(
        False, "Leave unusable images out and list them in skipped.csv. Default: stop and name them."
    )
    output: str = option("evaluation", "Folder for metrics.json, figures/ and predictions.csv; not the model folder.")
    revision: str | None = option(None, "Branch, tag or commit of a Hub repository.")
    verify: bool = option(
        False, "Only compare the model folder's files with the hashes that they state; reads no data."
    )


def evaluate_folder(model: str, options: EvaluationOptions) -> dict[str, Any]:
    """Score a model folder or Hub repository and write the results; return the content of metrics.json.

    Raises:
        ValueError: If the options, the model and the data do not go together.
    """
    output = Path(options.output)
    classifier = LesionClassifier.from_pretrained(model, revision=options.revision)
    check_options(classifier, options)
    path = file_beside(classifier.source, METRICS_NAME)
    own = read_metrics_of(path, classifier.codes, classifier.lesion["weights_sha256"]) if path else None
    external: External | None = None
    if options.external or options.official_test:
        loaded, name = open_data(classifier, options)
        dataset, splits, external = open_external(
            classifier, loaded, name=name, challenge=options.official_test, internal=own
        )
        protocol = "external"
    else:
        loaded, name, splits = open_own_data(classifier, options)
        dataset = loaded.dataset
        recorded = own["data"]["protocol"] if own else classifier.lesion.get("protocol") or "lesion"
        protocol = "file" if options.splits else recorded
    if not (splits["split"] == "test").any():
        raise ValueError("no row of the splits says test: there is nothing to report on.")
    other_data = external is not None or options.splits is not None
    context = Context(
        classifier=classifier,
        dataset=dataset,
        splits=splits,
        dataset_name=name if other_data else None,
        data_fingerprint=loaded.fingerprint if other_data else None,
        n_skipped=loaded.n_skipped,
        protocol=protocol,
        run=own["training"] if own else {},
        masks_dir=Path(options.masks) if options.masks else None,
        external=external,
    )
    output.mkdir(parents=True, exist_ok=True)
    return evaluate_model(context, output_dir=output, predictions_csv=output / "predictions.csv")


def check_options(classifier: LesionClassifier, options: EvaluationOptions) -> None:
    """Refuse options that cannot work before any image is read.

    Raises:
        ValueError: With the option and what to do.
    """
    others = options.external or options.official_test
    if others and Path(options.output).resolve() == classifier.source.path.resolve():
        raise ValueError(
            f"--output {options.output} is the model folder, whose own {METRICS_NAME} would be replaced; name another folder."
        )
    if options.masks is not None and not any(Path(options.masks).glob(MASK_NAME.format(image_id="*"))):
        raise ValueError(
            f"--masks {options.masks} is no folder with files {MASK_NAME.format(image_id='<image_id>')}; give one, or "
            "leave --masks out."
        )
    if options.external and options.splits:
        raise ValueError("--external makes every image test; leave --splits out.")
    if options.official_test and options.dataset not in (None, "isic2019"):
        raise ValueError(f"--official_test is of isic2019; leave --dataset {options.dataset} out.")


def open_data(classifier: LesionClassifier, options: EvaluationOptions) -> tuple[LoadedImages, str]:
    """Return the images that the options name, and the name that files for others use for them."""
    given = options.dataset or ("isic2019" if options.data_dir or options.official_test else None)
    name = given or classifier.lesion.get("dataset")
    if name is None:
        raise ValueError(f"{classifier.model_id} has no dataset in config.json: give --dataset.")
    images = load_images(
        name,
        data_dir=options.data_dir,
        skip_bad_images=options.skip_bad_images,
        skipped_csv=Path(options.output) / "skipped.csv",
        official_test=options.official_test,
    )
    if options.official_test:
        return images, "ISIC 2019 official test"
    return images, Path(name).resolve().name if Path(name).is_dir() else name


def open_own_data(classifier: LesionClassifier, options: EvaluationOptions) -> tuple[LoadedImages, str, pd.DataFrame]:
    """Return the model's own data, their name, and their splits.

    Raises:
        ValueError: If the data or the splits are others, or lack a diagnosis of the model.
    """
    splits_csv = options.splits or file_beside(classifier.source, SPLITS_NAME)
    if splits_csv is None:
        raise ValueError(
            f"{classifier.model_id} has no {SPLITS_NAME}: give --splits, or --external if the model was trained on other data."
        )
    rows = load_splits(splits_csv)
    unknown = sorted(set(rows["label"]) - set(classifier.codes))
    if unknown:
        raise ValueError(
            f"{splits_csv} has images of {', '.join(unknown)}, but the model has the diagnoses {', '.join(classifier.codes)}: "
            "remove the rows of other diagnoses."
        )
    loaded, name = open_data(classifier, options)
    # A run that leaves a source out has no row for the other sources' test images.
    part = loaded.dataset.select(np.flatnonzero(np.isin(loaded.dataset["image_id"], rows["image_id"])))
    if options.splits:
        return loaded, name, read_splits(splits_csv, part, hashes=loaded.hashes)
    if len(part) < len(rows):
        raise ValueError(
            f"{name} is not the data that the model was trained on: it has {len(part)} of the {len(rows)} images of the model's "
            f"{SPLITS_NAME}. Add --external to score the model on other data, or give the data that it was trained on."
        )
    if hashes_csv := file_beside(classifier.source, HASHES_NAME):
        check_same_images(loaded.hashes, read_hashes(hashes_csv))
    return loaded, name, read_splits(splits_csv, part)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all went well, 1 with a message otherwise."""
    parser = HfArgumentParser(
        EvaluationOptions,  # type: ignore[arg-type]
        prog="python -m modeling.evaluation",
        formatter_class=argparse.HelpFormatter,  # `option` writes the defaults
    )
    parser.add_argument("model", help="A model folder, or a Hub repository id.")
    values = vars(parser.parse_args(arguments))
    model = values.pop("model")
    options = EvaluationOptions(**values)
    try:
        if options.verify:
            classifier = LesionClassifier.from_pretrained(model, revision=options.revision)
            print(*(f"{key}: {value}" for key, value in classifier.provenance.items()), verify(classifier), sep="\n")
            return 0
        metrics = evaluate_folder(model, options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(metrics))
    print(f"written: {Path(options.output) / METRICS_NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
