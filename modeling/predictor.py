"""Classify files, folders and datasets from the command line.

python -m modeling.predictor MODEL IMAGES… --output out.csv
accelerate launch -m modeling.predictor MODEL DIR_OR_DATASET --output out.parquet
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from modeling.runtime import join_processes, prepare_process

if __name__ == "__main__":
    prepare_process()  # before torch is loaded

# isort: split
from modeling.bulk import classify_archive
from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.images import ImageError
from modeling.inputs import ArchiveError, Item, StreamedDataset, dataset_revision, is_dataset, list_files
from modeling.labels import NOTICE
from modeling.prediction import Prediction
from modeling.rows import printable

MAX_TABLE_ROWS = 50  # images that are answered on the console


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modeling.predictor", description=f"Classify images. {NOTICE}")
    parser.add_argument("model", metavar="MODEL", help="model folder, or Hub repository id")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="files; folders, of which every file at any depth gives a row, but not in hidden or linked folders; or one dataset: "
        "a Hub id (user/name, user/name@revision) or a Parquet file, streamed",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"a new .csv or .parquet file, one row per image; without it, up to {MAX_TABLE_ROWS} images are answered as a "
        "table. After a kill, the same command goes on where it stopped",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="if files were added, replaced or removed since --output was complete, classify those and keep all other rows",
    )
    parser.add_argument("--split", help="of the dataset; also reads a folder as a dataset. Default: its only split")
    parser.add_argument(
        "--tta", action="store_true", help="average over the eight flips and quarter turns: eight times the cost"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub. Default: its newest commit")
    return parser


def answer_few(classifier: LesionClassifier, inputs: Sequence[str], *, split: str | None, tta: bool) -> str:
    """Return a table for people of the answers about at most MAX_TABLE_ROWS images.

    Raises:
        ArchiveError: If there are more, or an input cannot be opened.
    """
    if is_dataset(inputs, split):
        source = StreamedDataset(*dataset_revision(inputs[0]), split)
        items = (item for part in range(source.num_parts) for item in source.read(part))
    else:
        items = (Item(file.path, file.path) for file in list_files(inputs))
    few = list(islice(items, MAX_TABLE_ROWS + 1))
    if len(few) > MAX_TABLE_ROWS:
        raise ArchiveError(f"there are more than {MAX_TABLE_ROWS} images: add --output FILE.csv or FILE.parquet.")
    answers = classifier.predict_each((item.image for item in few), tta=tta)
    return table(zip((item.name for item in few), answers, strict=True))


def table(answers: Iterable[tuple[str, Prediction | ImageError | None]]) -> str:
    """Return a table for people; control characters in file names are written out, since terminals obey them."""
    lines = [("image", "answer")]
    for name, answer in answers:
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(name))
        lines.append((shown, answer.verdict if isinstance(answer, Prediction) else f"Not read: {answer}"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {answer}" for name, answer in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.update and options.output is None:
        parser.error("--update is about a finished --output: name that file.")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        processes = join_processes()
        classifier = LesionClassifier.from_pretrained(options.model, options.revision, processes.device)
        if processes.rank == 0:
            print(f"{classifier.origin}. {classifier.notice}", file=sys.stderr)
        if options.output is None:
            if processes.rank == 0:
                print(answer_few(classifier, options.images, split=options.split, tta=options.tta))
            return 0
        summary = classify_archive(
            classifier,
            options.images,
            options.output,
            processes=processes,
            split=options.split,
            tta=options.tta,
            update=options.update,
        )
    except (ModelFolderError, ArchiveError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Stopped{'; the same command goes on from here' if options.output else ''}.", file=sys.stderr)
        return 130
    if processes.rank == 0:
        print(f"{options.output}: {summary}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
