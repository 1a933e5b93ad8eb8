"""A local folder of images: a folder for each diagnosis, or images and a metadata.csv, with or without splits."""

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import pandas as pd

from modeling.data.columns import LABEL_NAMES, first_named
from modeling.data.problems import DataError, Problem
from modeling.data.tables import read_table
from modeling.images import IMAGE_SUFFIXES
from modeling.rows import printable

TABLE_NAME = "metadata.csv"
OTHER_TABLES = ("metadata.jsonl", "metadata.parquet")  # of Hugging Face's imagefolder
FILE_COLUMN = "file_name"
# What datasets call their own splits.
GIVEN_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
GIVEN_NAMES |= {"training": "train", "testing": "test"}


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

    Raises:
        DataError: If there is another table, or a folder beside those of the splits.
    """
    # Without the table that it comes with, HAM10000 as downloaded would be part 1 against part 2.
    tables = [path for path in files if posixpath.basename(path) == TABLE_NAME]
    others = [path for path in files if path.endswith(".csv") and "/" not in path and not tables]
    if unread := [*others, *(path for path in files if posixpath.basename(path) in OTHER_TABLES)]:
        raise DataError(f"{folder / unread[0]} is not read: write the table as {TABLE_NAME}, or remove it.")
    images = pd.Index([path for path in files if is_image(path)], dtype=object)  # names that are not valid text, too
    tops = {path.split("/")[0] for path in images if "/" in path}
    named = {top for top in tops if top.lower() in GIVEN_NAMES}
    if named and named != tops:
        raise DataError(
            f"{folder} holds folders of splits ({', '.join(sorted(named))}) beside others "
            f"({', '.join(sorted(map(printable, tops - named))[:5])}); put all images into the splits, or none."
        )
    has_splits = bool(named)  # the folders at the top are splits
    tables = [path for path in files if posixpath.basename(path) == TABLE_NAME and path.count("/") <= has_splits]
    table = pd.concat([_read_table(folder, path) for path in tables]) if tables else pd.DataFrame(index=images)
    rows = table.index
    kinds: dict[str, Iterable[str]] = {
        "row without an image file": rows.difference(images),
        "image file in more than one row": rows[rows.duplicated()].intersection(images),
        "image without a row": images.difference(rows),
        "image outside of the folders of splits": [path for path in images if has_splits and "/" not in path],
        "link that leads nowhere": [path for path in files if not is_image(path) and not os.path.exists(folder / path)],
    }
    problems = [Problem(printable(path), kind) for kind, paths in kinds.items() for path in paths]
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
        [path.split("/")[0] if has_splits and "/" in path else "train" for path in images],
        problems,
    )


def images_of_paths(paths: Sequence[str]) -> datasets.Dataset:
    """Return a dataset of image files, whose cache key changes with the path, size and times of a file."""
    stats = [os.stat(path) if os.path.exists(path) else None for path in paths]
    # The time of the last change of the inode cannot be set back, as `cp -p` does with that of the content.
    stamps = [(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) if stat else None for stat in stats]
    return datasets.Dataset.from_generator(
        _rows,
        features=datasets.Features({"image": datasets.Image()}),
        gen_kwargs={"paths": list(paths), "stamps": stamps},
    )


def _rows(paths: Sequence[str], stamps: Sequence[Any]) -> Iterator[dict[str, str]]:
    for path in paths:
        yield {"image": path}


def walk(folder: Path) -> list[str]:
    """Return every file below a folder by its relative path, sorted, without hidden ones, with links that lead nowhere.

    Links to folders are followed, but not to one that contains them.

    Raises:
        DataError: If a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); check its rights.") from error

    paths: list[str] = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        above = Path(root).resolve()
        loops = {name for name in folders if above.is_relative_to(Path(root, name).resolve())}
        folders[:] = [name for name in folders if not name.startswith(".") and name not in loops]
        paths += [Path(root, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    return sorted(paths)


def is_table(path: str) -> bool:
    """True if images may be in this file."""
    return path.endswith((".parquet", ".arrow")) and posixpath.basename(path) not in OTHER_TABLES


def is_image(path: str) -> bool:
    """True if this is an image file by its name."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def _read_table(folder: Path, path: str) -> pd.DataFrame:
    """Return the rows of a metadata.csv by the paths of their images; it names them from the folder that it is in."""
    table, above = read_table(folder / path, [FILE_COLUMN]), posixpath.dirname(path)
    paths = [posixpath.normpath(posixpath.join(above, name)) for name in table.pop(FILE_COLUMN).str.strip()]
    return table.set_axis(pd.Index(paths, dtype=object))
