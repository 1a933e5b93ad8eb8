"""A local folder of images: a folder for each diagnosis, or images and a metadata.csv, with or without splits."""

import glob
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pandas as pd

from modeling.data.columns import LABEL_NAMES, first_named
from modeling.data.problems import Problem
from modeling.data.tables import read_table
from modeling.images import IMAGE_SUFFIXES
from modeling.rows import printable

TABLE_NAME = "metadata.csv"
FILE_COLUMN = "file_name"
# What datasets call their own splits.
GIVEN_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}


class Listing(NamedTuple):
    """Images of a dataset and the columns that describe them, before the columns have their common names."""

    images: datasets.Dataset  # with one column, image
    image_ids: list[str]
    columns: dict[str, list[Any]]  # values by column
    label_column: str
    split_names: list[str]  # the dataset's own split of each image
    problems: list[Problem]


def list_folder(folder: Path, files: Sequence[str]) -> Listing:
    """List the images among the files of a folder (`walk`).

    The label is that of a metadata.csv, in the folder or in its folders of splits, if it has such a column; else the name of
    the folder at the top, or below the folders of splits, that an image is in.
    """
    images = pd.Index([path for path in files if is_image(path)], dtype=object)  # names that are not valid text, too
    has_splits = all(path.split("/")[0].lower() in GIVEN_NAMES for path in images)
    tables = [path for path in files if posixpath.basename(path) == TABLE_NAME and path.count("/") <= has_splits]
    table = pd.concat([_read_table(folder, path) for path in tables]) if tables else pd.DataFrame(index=images)
    rows = table.index
    problems = [Problem(printable(path), "row without an image file") for path in rows.difference(images)]
    twice = rows[rows.duplicated()].intersection(images)
    problems += [Problem(printable(path), "image file in more than one row") for path in twice]
    table = table[~rows.duplicated(keep="last")].reindex(images)
    columns: dict[str, list[Any]] = {str(name): table[name].tolist() for name in table}
    label_column = first_named(columns, LABEL_NAMES)
    if label_column is None:
        label_column = "class folder"
        above = [path.split("/")[has_splits:-1] for path in images]
        columns[label_column] = [parts[0] if parts else None for parts in above]
    return Listing(
        images_of_paths([str(folder / path) for path in images]),
        [printable(path) for path in images],
        columns,
        label_column,
        [path.split("/")[0] if has_splits else "train" for path in images],
        problems,
    )


def images_of_paths(paths: Sequence[str]) -> datasets.Dataset:
    """Return a dataset of image files, whose cache key changes with the path, size and times of a file."""
    stats = [os.stat(path) for path in paths]
    # The time of the last change of the inode cannot be set back, as `cp -p` does with that of the content.
    stamps = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for stat in stats]
    return datasets.Dataset.from_generator(
        _rows,
        features=datasets.Features({"image": datasets.Image()}),
        gen_kwargs={"paths": list(paths), "stamps": stamps},
    )


def _rows(paths: Sequence[str], stamps: Sequence[Any]) -> Iterator[dict[str, str]]:
    for path in paths:
        yield {"image": path}


def walk(folder: Path) -> list[str]:
    """Return every file below a folder by its relative path, sorted, without hidden ones; links to folders are followed."""
    paths = glob.glob("**", root_dir=folder, recursive=True)
    return sorted(Path(path).as_posix() for path in paths if (folder / path).is_file())


def is_image(path: str) -> bool:
    """True if this is an image file by its name."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def _read_table(folder: Path, path: str) -> pd.DataFrame:
    """Return the rows of a metadata.csv by the paths of their images; it names them from the folder that it is in."""
    table, above = read_table(folder / path, [FILE_COLUMN]), posixpath.dirname(path)
    paths = [posixpath.normpath(posixpath.join(above, name)) for name in table.pop(FILE_COLUMN).str.strip()]
    return table.set_axis(pd.Index(paths, dtype=object))
