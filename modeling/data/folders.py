"""A local folder of images: a folder for each diagnosis, or images and a metadata.csv, with or without splits.

Every file is read as an image, or counted and named.
"""

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
OTHER_TABLES = ("metadata.jsonl", "metadata.parquet")
FILE_COLUMN = "file_name"
# What datasets call their own splits.
GIVEN_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}


class Listing(NamedTuple):
    """Images of a dataset and the columns that describe them, before the columns have their common names."""

    images: datasets.Dataset  # with one column, image
    image_ids: list[str]
    columns: dict[str, list[Any]]  # values by column
    label_column: str
    column_names: list[str]  # all that the data have beside the image
    split_names: list[str]  # the dataset's own split of each image
    problems: list[Problem]
    other_files: list[str]


def list_folder(folder: Path) -> Listing:
    """List the images of a folder; links to folders are followed.

    Raises:
        DataError: If the layout is none of those above, with the path that shows it.
    """
    paths = sorted(walk(folder))
    images = [path for path in paths if is_image(path)]
    splits = _splits_of(images, folder)
    tables = [
        path
        for path in paths
        if posixpath.basename(path) == TABLE_NAME and posixpath.dirname(path) in ("", *set(splits.values()) - {""})
    ]
    known = {*images, *tables}
    other_files = [path for path in paths if path not in known]
    if unread := [path for path in other_files if posixpath.basename(path) in OTHER_TABLES]:
        raise DataError(f"{folder / unread[0]} is not read: write the table as {TABLE_NAME}, or remove it.")
    found = pd.Index(images, dtype=object)  # names that are not valid text, too
    table = pd.concat([_read_table(folder, path) for path in tables] or [pd.DataFrame(index=found)])
    rows = table.index
    problems = _problems(folder, rows.difference(found), "row without an image file")
    problems += _problems(folder, rows[rows.duplicated()].intersection(found), "image file in more than one row")
    problems += _problems(folder, found.difference(rows), "image without a row")
    table = table[~rows.duplicated(keep="last")].reindex(found)
    names = [str(name) for name in table]
    columns: dict[str, list[Any]] = {name: table[name].tolist() for name in names}
    label_column = first_named(columns, LABEL_NAMES)
    if label_column is None:
        labels = [_class_folder(path, splits[path], folder) for path in images]
        outside = [path for path, label in zip(images, labels, strict=True) if label is None]
        if tables and outside:
            raise DataError(
                f"{folder / tables[0]} has no label column among {', '.join(names)}: one named {', '.join(LABEL_NAMES)} is "
                "needed, or a folder of images for each diagnosis."
            )
        problems += _problems(folder, outside, "image outside of a class folder")
        label_column, columns["class folder"] = "class folder", labels
    return Listing(
        images_of_paths([str(folder / path) for path in images]),
        [printable(path) for path in images],
        columns,
        label_column,
        names,
        [splits[path] or "train" for path in images],
        problems,
        [printable(path) for path in other_files],
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


def is_table(path: str) -> bool:
    """True if images may be in this file."""
    return path.endswith((".parquet", ".arrow")) and posixpath.basename(path) not in OTHER_TABLES


def is_image(path: str) -> bool:
    """True if this is an image file by its name, and not hidden."""
    return path.lower().endswith(IMAGE_SUFFIXES) and not any(part.startswith(".") for part in path.split("/"))


def walk(folder: Path) -> Iterator[str]:
    """Yield every file below a folder by its relative path; a link to a folder that contains it is yielded as a file."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}); check its rights.") from error

    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        above = Path(root).resolve()
        loops = [name for name in folders if above.is_relative_to(Path(root, name).resolve())]
        folders[:] = sorted(set(folders) - set(loops))
        for name in [*names, *loops]:
            yield Path(root, name).relative_to(folder).as_posix()


def _splits_of(images: Sequence[str], folder: Path) -> dict[str, str]:
    """Return the top folder of each image if these are splits, "" if they are not."""
    tops = {path.split("/")[0] for path in images if "/" in path}
    named = {top for top in tops if top.lower() in GIVEN_NAMES}
    if named and named != tops:
        raise DataError(
            f"{folder} holds folders of splits ({', '.join(sorted(named))}) beside others "
            f"({', '.join(sorted(tops - named)[:5])}); put all images into the splits, or none."
        )
    return {path: path.split("/")[0] if named and "/" in path else "" for path in images}


def _class_folder(path: str, split: str, folder: Path) -> str | None:
    """Return the diagnosis that an image's folder is named after, None if it is in none."""
    parts = path.removeprefix(f"{split}/").split("/")[:-1]
    if len(parts) > 1:
        raise DataError(
            f"{printable(str(folder / path))} is in nested folders, and only one of {' and '.join(parts)} can be the diagnosis. "
            f"Use one folder for each diagnosis, or add a {TABLE_NAME} with the columns {FILE_COLUMN} and label."
        )
    return parts[0] if parts else None


def _problems(folder: Path, paths: Iterable[str], kind: str) -> list[Problem]:
    return [Problem(printable(path), str(folder / path), kind) for path in paths]


def _read_table(folder: Path, path: str) -> pd.DataFrame:
    """Return the rows of a metadata.csv by the paths of their images."""
    table = read_table(folder / path, [FILE_COLUMN])
    names = table.pop(FILE_COLUMN).str.strip()
    paths = [posixpath.normpath(posixpath.join(posixpath.dirname(path), name)) for name in names]
    return table.set_axis(pd.Index(paths, dtype=object))
