"""Score a model folder or Hub repository: `python -m modeling.evaluation MODEL --data_dir DIR`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modeling.classifier import LesionClassifier
from modeling.data.duplicates import check_same_images, read_hashes
from modeling.data.sources import LoadedImages, load_images
from modeling.data.splits import read_splits
from modeling.data.splits_file import load_splits, splits_hash
from modeling.evaluation.context import Context
from modeling.evaluation.evaluate import evaluate_model, summary
from modeling.evaluation.external import open_external
from modeling.evaluation.saliency import MASK_NAME
from modeling.metrics_file import read_metrics_of
from modeling.model_folder import HASHES_NAME, METRICS_NAME, SPLITS_NAME, file_beside


def evaluate_folder(options: argparse.Namespace) -> dict[str, Any]:
    """Score a model folder or Hub repository and write the results; return the content of metrics.json.

    Raises:
        ValueError: If the options, the model and the data do not go together.
    """
    output = Path(options.output)
    classifier = LesionClassifier.from_pretrained(options.model, revision=options.revision)
    if options.masks and not any(Path(options.masks).glob(MASK_NAME.format(image_id="*"))):
        raise ValueError(f"--masks {options.masks} has no file {MASK_NAME.format(image_id='<image_id>')}.")
    if options.masks and (options.external or options.official_test):
        raise ValueError("--masks are of the model's own images: leave out --masks, or --external and --official_test.")
    path = file_beside(classifier.source, METRICS_NAME)
    own = read_metrics_of(path, classifier.codes, classifier.lesion["weights_sha256"]) if path else None
    if options.external or options.official_test:
        if output.resolve() == classifier.source.path.resolve():
            raise ValueError(
                f"--output {output} is the model folder, whose own {METRICS_NAME} would be replaced; name another folder."
            )
        loaded, name = open_data(classifier, options)
        context = open_external(classifier, loaded, name=name, challenge=options.official_test, internal=own)
    else:
        context = open_own(classifier, options, own)
    output.mkdir(parents=True, exist_ok=True)
    return evaluate_model(context, output_dir=output, predictions_csv=output / "predictions.csv")


def open_data(classifier: LesionClassifier, options: argparse.Namespace) -> tuple[LoadedImages, str]:
    """Return the images that the options name, and the name that files for others use for them."""
    isic = "isic2019" if options.data_dir or options.official_test else None
    name = options.dataset or isic or classifier.lesion.get("dataset")
    if name is None or (options.official_test and name != "isic2019"):
        raise ValueError("give --dataset, the data to score on; --official_test is of isic2019 alone.")
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


def open_own(classifier: LesionClassifier, options: argparse.Namespace, own: Mapping[str, Any] | None) -> Context:
    """Return the model's own data and splits, which must be those that it was trained on, and its metrics.json if it has one.

    Raises:
        ValueError: If they are others.
    """
    splits_csv = file_beside(classifier.source, SPLITS_NAME)
    if splits_csv is None:
        raise ValueError(f"{classifier.model_id} has no {SPLITS_NAME}: give --external to score it on other data.")
    rows = load_splits(splits_csv)
    if classifier.lesion.get("splits_sha256") not in (None, splits_hash(rows)):
        raise ValueError(f"{splits_csv} does not belong to this model; download the folder again.")
    loaded, name = open_data(classifier, options)
    # A run that leaves a source out has no row for the other sources' test images.
    part = loaded.dataset.select(np.flatnonzero(np.isin(loaded.dataset["image_id"], rows["image_id"])))
    if len(part) < len(rows):
        raise ValueError(
            f"{name} is not the data that the model was trained on: it has {len(part)} of the {len(rows)} images of the model's "
            f"{SPLITS_NAME}. Add --external to score the model on other data, or give the data that it was trained on."
        )
    if hashes_csv := file_beside(classifier.source, HASHES_NAME):
        check_same_images(loaded.hashes, read_hashes(hashes_csv))
    return Context(
        classifier=classifier,
        dataset=loaded.dataset,
        splits=read_splits(splits_csv, part),
        n_skipped=loaded.n_skipped,
        protocol=own["data"]["protocol"] if own else classifier.lesion.get("protocol") or "lesion",
        run=own["training"] if own else {},
        masks_dir=Path(options.masks) if options.masks else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all went well, 1 with a message otherwise."""
    parser = argparse.ArgumentParser(prog="python -m modeling.evaluation", description=__doc__, allow_abbrev=False)
    add, flag = parser.add_argument, partial(parser.add_argument, action="store_true")
    add("model", help="a model folder, or a Hub repository id")
    add(
        "--dataset",
        help="isic2019 (with --data_dir or --official_test), demo, a folder, a Hub dataset; else the model's own",
    )
    add("--data_dir", help="local copy of ISIC 2019 in the official layout")
    add("--masks", help="folder of <image_id>_segmentation.png, to score heat maps against")
    flag("--external", help="score on other data: every image of the model's diagnoses that the model has not seen")
    flag("--official_test", help="score on the official test of ISIC 2019, also as the challenge did")
    flag("--skip_bad_images", help="leave unusable images out and list them in skipped.csv, instead of stopping")
    add("--output", default="evaluation", help="folder for the results, not the model folder; default: evaluation")
    add("--revision", help="branch, tag or commit of a Hub repository")
    options = parser.parse_args(arguments)
    try:
        metrics = evaluate_folder(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(metrics))
    print(f"written: {Path(options.output) / METRICS_NAME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
