"""Classify files, folders and datasets from the command line.

python -m modeling.predictor MODEL IMAGES… --output out.csv
accelerate launch -m modeling.predictor MODEL DIR_OR_DATASET --output out.parquet
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling.process import prepare_process

if __name__ == "__main__":
    prepare_process()  # before torch is loaded

# isort: split
from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.labels import NOTICE

MAX_TABLE_ROWS = 50  # images that are answered on the console


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modeling.predictor", description=f"Classify images. {NOTICE}")
    parser.add_argument("model", metavar="MODEL", help="model folder, or Hub repository id")
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="files; folders, of which every file at any depth gives a row; or one dataset: "
        "a Hub id (user/name, user/name@revision) or a Parquet file, streamed",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help=f"a new .csv or .parquet file, one row per image; without it, up to {MAX_TABLE_ROWS} images are answered as a "
        "table. After a kill, the same command goes on where it stopped",
    )
    parser.add_argument("--split", help="of the dataset; also reads a folder as a dataset. Default: its only split")
    parser.add_argument(
        "--tta", action="store_true", help="average over the eight flips and quarter turns: eight times the cost"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub. Default: its newest commit")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Imported late: what follows belongs to the command line and not to serving.
    from modeling import bulk

    try:
        processes = bulk.join_processes()
        classifier = LesionClassifier.from_pretrained(options.model, options.revision, processes.device)
        if processes.rank == 0:
            print(f"{classifier.origin}. {classifier.notice}", file=sys.stderr)
        if options.output is None:
            print(
                bulk.answer_few(classifier, options.images, split=options.split, tta=options.tta, most=MAX_TABLE_ROWS)
            )
            return 0
        summary = bulk.classify_archive(
            classifier, options.images, options.output, processes=processes, split=options.split, tta=options.tta
        )
    except (ModelFolderError, bulk.ArchiveError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    if processes.rank == 0:
        print(f"{options.output}: {summary}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
