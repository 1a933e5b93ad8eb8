"""Command line: classify files and folders.

python -m modeling.predictor [MODEL] IMAGES… --output out.csv
accelerate launch -m modeling.predictor [MODEL] DIR --output out.parquet
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling.runtime import prepare_process

if __name__ == "__main__":
    prepare_process()  # before torch is loaded

# isort: split
from modeling.bulk import ArchiveError, classify_archive, list_files
from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.images import IMAGE_SUFFIXES, ImageError
from modeling.labels import NOTICE
from modeling.model_folder import CONFIG_NAME, RUN_NAME
from modeling.prediction import Prediction
from modeling.rows import printable


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m modeling.predictor",
        description=f"Classify images. {NOTICE}",
        usage="%(prog)s [options] [MODEL] IMAGES…",
    )
    parser.add_argument(
        "arguments",
        metavar="[MODEL] IMAGES…",
        nargs="+",
        help="MODEL, if given first: a model folder or a Hub repository id. Default: the released model of this clone. The "
        f"first of several arguments is the model if it is a folder with a {CONFIG_NAME}, or if it is not here and does not "
        "end like an image file. IMAGES: image files, and folders, with the image files at any depth",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="a new .csv or .parquet file, one row per image; the same command resumes a killed run. Without it, the "
        "verdicts are printed",
    )
    parser.add_argument(
        "--priors",
        default="equal",
        help="how common are the diagnoses where these photos come from? equal (default); dataset: as in the images that "
        "the model was trained on; or a weight for each diagnosis, MEL=0.1,NV=0.9. It changes the probabilities and the "
        "most likely diagnosis, not what is flagged",
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over the eight flips and quarter turns: eight network passes, not one",
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub. Default: its newest commit")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        model, inputs = split_arguments(options.arguments)
        classifier = at_priors(LesionClassifier.from_pretrained(model, options.revision), options.priors)
        if options.output:
            summary = classify_archive(classifier, inputs, options.output, tta=options.tta)
            if summary is None:
                return 0  # the process that ends last will say it
            print(
                f"{options.output}: one row for each image. Images: {summary['images']}. Not read: "
                f"{summary['unreadable']} (column error). Abstained: {summary['abstained']}."
            )
        else:
            files = list_files(inputs)
            for name, answer in zip(files, classifier.predict_each(files, tta=options.tta), strict=True):
                print(line_of(name, answer))
            sys.stdout.flush()
        revision = f", revision {classifier.revision}" if classifier.revision else ""
        print(f"\nModel: {classifier.model_id}{revision}. {classifier.notice}", file=sys.stderr)
    except (ModelFolderError, ArchiveError) as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has gone: discard what is buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"Stopped{'; the same command resumes' if options.output else ''}.", file=sys.stderr)
        return 130
    return 0


def split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Split the arguments into the model, or None, and the images."""
    first = arguments[0]
    is_model = any(os.path.exists(os.path.join(first, name)) for name in (CONFIG_NAME, RUN_NAME))
    is_image = os.path.lexists(first) or first.lower().endswith(IMAGE_SUFFIXES)
    if is_model and len(arguments) == 1:
        raise ArchiveError(f"{first} is a model; name the images to classify after it.")
    if is_model or (len(arguments) > 1 and not is_image):
        return first, arguments[1:]
    return None, arguments


def at_priors(classifier: LesionClassifier, text: str) -> LesionClassifier:
    """Return the classifier for the option --priors.

    Raises:
        ArchiveError: If the option cannot be read or does not fit the model.
    """
    try:
        weights = {code.strip(): float(weight) for code, _, weight in (item.partition("=") for item in text.split(","))}
    except ValueError:
        weights = {}
    choice: Any = weights or text
    try:
        return classifier.with_priors(choice)
    except ValueError as error:
        raise ArchiveError(f"--priors {text:.200}: {error} Weights are written as MEL=0.1,NV=0.9.") from error


def line_of(name: str, answer: Prediction | ImageError) -> str:
    """Return the line for one image; control characters in its name are written out, since terminals run them."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(name))
    return f"{shown}  {answer.verdict if isinstance(answer, Prediction) else f'Not read: {answer}'}"


if __name__ == "__main__":
    sys.exit(main())
