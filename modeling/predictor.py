"""Command line: classify files, folders and datasets.

python -m modeling.predictor [MODEL] IMAGES… --output out.csv
accelerate launch -m modeling.predictor [MODEL] DIR_OR_DATASET --output out.parquet
"""

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from modeling.runtime import prepare_process

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while the libraries are imported shows no traceback
    prepare_process()  # before torch is loaded

# isort: split
from modeling.bulk import classify_archive, join_processes
from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.images import IMAGE_SUFFIXES, ImageError
from modeling.inputs import ArchiveError, StreamedDataset, in_words, is_dataset, list_files, no_image
from modeling.labels import NOTICE
from modeling.model_folder import CONFIG_NAME, RUN_NAME
from modeling.prediction import Prediction
from modeling.rows import Row, printable

MAX_TABLE_ROWS = 50  # images that are answered on the console


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
        "end like an image file. IMAGES: image files; folders, with the image files at any depth; or one dataset, "
        "streamed: a Hub id (user/name, user/name@revision) or a Parquet file",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"a new .csv or .parquet file, one row per image; without it, up to {MAX_TABLE_ROWS} images are answered "
        "here. The same command resumes a killed run, and tries rows with an error again",
    )
    parser.add_argument(
        "--priors",
        default="equal",
        help="how common are the diagnoses where these photos come from? equal (default); dataset: as in the images that "
        "the model was trained on; or a weight for each diagnosis, MEL=0.1,NV=0.9. It changes the probabilities and the "
        "most likely diagnosis, not what is flagged",
    )
    parser.add_argument("--split", help="of the dataset; also reads a folder as a dataset. Default: its only split")
    parser.add_argument(
        "--fetch_urls", action="store_true", help="fetch images for which a dataset has nothing but a web address"
    )
    parser.add_argument(
        "--tta", action="store_true", help="average over the eight flips and quarter turns: eight times the cost"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub. Default: its newest commit")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        processes = join_processes()
        model, inputs = split_arguments(options.arguments)
        classifier = LesionClassifier.from_pretrained(model, options.revision, processes.device)
        classifier = at_priors(classifier, options.priors)
        how = {"split": options.split, "tta": options.tta, "fetch_urls": options.fetch_urls}
        if options.output:
            summary = classify_archive(classifier, inputs, options.output, processes=processes, **how)
        if processes.rank == 0:
            print(summary_of(summary, options.output) if options.output else answer_few(classifier, inputs, **how))
            revision = f", revision {classifier.revision}" if classifier.revision else ""
            print(f"\nModel: {classifier.model_id}{revision}. {classifier.notice}", file=sys.stderr)
    except (ModelFolderError, ArchiveError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Stopped{'; the same command resumes' if options.output else ''}.", file=sys.stderr)
        return 130
    return 0


def split_arguments(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Split the arguments into the model, or None, and the images."""
    first = arguments[0]
    is_model = any(os.path.exists(os.path.join(first, name)) for name in (CONFIG_NAME, RUN_NAME))
    is_image = os.path.lexists(first) or first.lower().endswith((*IMAGE_SUFFIXES, ".parquet"))
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


def answer_few(
    classifier: LesionClassifier, inputs: Sequence[str], *, split: str | None, tta: bool, fetch_urls: bool
) -> str:
    """Return the answers for at most MAX_TABLE_ROWS images, for people.

    Raises:
        ArchiveError: If there are more or none, or an input cannot be opened.
    """
    left_out = Counter[str]()
    if is_dataset(inputs, split):
        items = StreamedDataset(inputs[0], split, fetch_urls=fetch_urls).items()
    else:
        items = ((path, path) for path in list_files(inputs, left_out))
    few = list(islice(items, MAX_TABLE_ROWS + 1))
    if len(few) > MAX_TABLE_ROWS:
        raise ArchiveError(f"there are more than {MAX_TABLE_ROWS} images: add --output FILE.csv or FILE.parquet.")
    if not few:
        raise no_image(inputs, in_words(left_out))
    answers = classifier.predict_each((image for _, image in few), tta=tta)
    return f"{table(zip((name for name, _ in few), answers, strict=True))}\n{in_words(left_out)}".rstrip()


def table(answers: Iterable[tuple[str, Prediction | ImageError | None]]) -> str:
    """Return a line per image; control characters in file names are written out, since terminals run them."""
    lines = []
    for name, answer in answers:
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(name))
        lines.append((shown, answer.verdict if isinstance(answer, Prediction) else f"Not read: {answer}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {answer}" for name, answer in lines)


def summary_of(summary: Row, output: Path) -> str:
    """Say in a few sentences what `classify_archive` did."""
    now = (
        f"{summary['classified_now']} classified now by the first process"
        if summary["classified_now"]
        else "all done earlier"
    )
    again = " (column error; the same command tries them again)" if summary["unreadable"] else ""
    return (
        f"{output}: one row for each image ({now}). Images: {summary['images']}. Not read: {summary['unreadable']}{again}. "
        f"Abstained: {summary['abstained']}. {summary['left_out']}"
    ).rstrip()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
