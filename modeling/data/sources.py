"""Load any supported dataset: ISIC 2019, the synthetic demo, a folder of images, or an image dataset of the Hub."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pandas as pd

from modeling.data.columns import (
    BLANK,
    COLUMNS,
    FEATURES,
    LABEL_NAMES,
    OPTIONAL_COLUMNS,
    OTHER_NAMES,
    check_label_names,
    first_named,
    map_labels,
    read_ages,
    text_of,
)
from modeling.data.decoding import decode_images
from modeling.data.demo import load_demo
from modeling.data.folders import TABLE_NAME, Listing, is_image, is_table, list_folder, walk
from modeling.data.isic2019 import load_isic2019
from modeling.data.problems import DataError, Problem, counts, describe, write_skipped
from modeling.files import is_name, shortened

IMAGE_NAMES = ("image", "img", "images")
WANTED = f"needed is a column {', '.join(LABEL_NAMES)}, or a folder for each diagnosis"


@dataclass(frozen=True)
class LoadedImages:
    """All usable images of a dataset."""

    dataset: datasets.Dataset  # in the columns of the contract, and those of OPTIONAL_COLUMNS that the data have
    hashes: pd.DataFrame  # image_id, lesion_id, hash and sha256 of each (`modeling.data.duplicates`)
    pixels: datasets.Dataset | None = None  # image_id, and S * S * 3 bytes of RGB (`decode_images`)
    n_skipped: int = 0  # images that were left out since they cannot be used
    given_splits: dict[str, str] | None = None  # the dataset's own split of each image id; None if it has just one
    report: str = ""  # what was found, used and left out, and why

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over all columns and the content of each image file, whatever the order of the rows."""
        names = self.dataset.features["label"].names
        table = self.dataset.remove_columns("image")
        lines = []
        for row, content in zip(table, self.hashes["sha256"], strict=True):
            row |= {"content": content, "diagnosis": names[row.pop("label")]}
            lines.append(json.dumps(row, sort_keys=True) + "\n")
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def load_images(
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    skip_bad_images: bool = False,
    skipped_csv: Path | None = None,
    official_test: bool = False,
    size_px: int | None = None,
) -> LoadedImages:
    """Read a dataset; each image is decoded once, to check that it is whole, to hash it and to resize it.

    Args:
        dataset: "isic2019", "demo", a folder of images (`modeling.data.folders`), or what `datasets.load_dataset` takes.
        data_dir: A local copy of ISIC 2019 in the official layout; for other datasets a folder in the dataset.
        skip_bad_images: Leave out images that cannot be used and list them, instead of raising.
        skipped_csv: Where to list them; `skipped.csv` in the working directory if None.
        official_test: Of isic2019, the test of the challenge (with the ninth label UNK) instead of its training data.
        size_px: Side of the network's input, to keep the pixels of; None keeps none.

    Raises:
        DataError: If images cannot be used, or the dataset has no image or no label column.
    """
    listing = _list_images(dataset, data_dir, official_test=official_test)
    table, written = _read_columns(listing)
    ids: list[str] = table["image_id"]
    names, labels, mapping = map_labels(written)
    decoded = decode_images(listing.images, size_px=size_px)
    problems = [*listing.problems]
    known = {problem.image_id for problem in problems}
    unlabelled = [name for name, label in zip(ids, labels, strict=True) if label is None]
    problems += [Problem(name, "image without a label", WANTED) for name in unlabelled if name not in known]
    read = zip(ids, decoded["problem"][:], strict=True)
    problems += [Problem(name, "image cannot be read", reason) for name, reason in read if reason]
    bad = {problem.image_id for problem in problems}
    kept = np.flatnonzero(~np.isin(ids, list(bad)) & ~np.isin(listing.image_ids, list(bad)))
    if problems and not (skip_bad_images and len(kept)):
        raise DataError(("" if len(kept) else "no usable image is left. ") + describe(problems))
    if skip_bad_images:
        write_skipped(problems, skipped_csv or Path("skipped.csv"))

    whole = listing.images
    for column, values in table.items():
        whole = whole.add_column(column, values, feature=FEATURES.get(column, datasets.Value("string")))
    numbers = [-1 if label is None else names.index(label) for label in labels]
    whole = whole.add_column("label", numbers, feature=datasets.ClassLabel(names=names))
    whole = whole.select_columns([*COLUMNS, *(column for column in OPTIONAL_COLUMNS if column in table)]).select(kept)
    pixels = decoded.select_columns(["pixels"]).add_column("image_id", ids).select(kept) if size_px else None
    hashes = pd.DataFrame({"image_id": ids, "lesion_id": table["lesion_id"]}, dtype=object)
    hashes = hashes.assign(hash=decoded["hash"][:], sha256=decoded["sha256"][:]).iloc[kept].reset_index(drop=True)
    split_of = dict(zip(ids, listing.split_names, strict=True))
    given = {name: split_of[name] for name in whole["image_id"]} if len(set(split_of.values())) > 1 else None
    report = [f"images: {len({*ids, *bad})} found, {len(whole)} used"]
    report += [*(f"  left out: {line}" for line in counts(problems)), *([f"  {mapping}"] if mapping else [])]
    return LoadedImages(whole, hashes, pixels, len(bad), given, "\n".join(report))


def _list_images(dataset: str, data_dir: str | Path | None, *, official_test: bool) -> Listing:
    """Return the images and columns of a dataset."""
    if dataset == "isic2019":
        return load_isic2019(data_dir, official_test=official_test)
    if dataset == "demo":
        if data_dir is not None:
            raise DataError("the demo data are synthetic: leave --data_dir out, or pass --dataset isic2019.")
        return _listing_of({"train": load_demo()}, dataset)
    folder = Path(dataset, data_dir or "")
    files = walk(folder) if folder.is_dir() else []
    if any(map(is_image, files)) and not any(map(is_table, files)):
        return list_folder(folder, files)
    try:
        parts = datasets.load_dataset(dataset, data_dir=None if data_dir is None else str(data_dir))
    # Untrusted files and a network: the library raises its own errors, and those of pandas, pyarrow, zipfile and more.
    except Exception as error:
        cause = error.__cause__ or error
        said = " ".join(str(cause).split())[:300]
        raise DataError(
            f"--dataset {dataset} cannot be read ({type(cause).__name__}: {said}). It must be isic2019, demo, an image dataset "
            "of the Hub, or a folder that holds a folder of images for each diagnosis, or images and a "
            f"{TABLE_NAME} with the columns file_name and label."
        ) from error
    return _listing_of(cast(dict[str, datasets.Dataset], dict(parts)), dataset)


def _listing_of(parts: dict[str, datasets.Dataset], name: str) -> Listing:
    """List the rows of all splits.

    Raises:
        DataError: If there is not one column of images, and one of labels.
    """
    whole = datasets.concatenate_datasets(list(parts.values()))
    images = [column for column, feature in whole.features.items() if isinstance(feature, datasets.Image)]
    classes = [column for column, feature in whole.features.items() if isinstance(feature, datasets.ClassLabel)]
    image_column = first_named(images, IMAGE_NAMES) or (images[0] if len(images) == 1 else None)
    values = [column for column, feature in whole.features.items() if isinstance(feature, datasets.Value)]
    label_column = first_named([*classes, *values], LABEL_NAMES) or (classes[0] if len(classes) == 1 else None)
    if image_column is None or label_column is None:
        raise DataError(
            f"{name} needs a column of images, image, and one of labels (words or whole numbers), {', '.join(LABEL_NAMES)}; it "
            f"has {', '.join(whole.features)}: rename the right ones to image and label."
        )
    candidates = [label_column, *(column for names in OTHER_NAMES.values() for column in names)]
    columns = {column: _values(whole, column) for column in candidates if column in whole.features}
    ids = [f"{split}-{index:06d}" for split, part in parts.items() for index in range(len(part))]
    split_names = [split for split, part in parts.items() for _ in range(len(part))]
    only_images = whole.select_columns([image_column]).rename_columns({image_column: "image"})
    return Listing(only_images.cast_column("image", datasets.Image()), ids, columns, label_column, split_names, [])


def _values(dataset: datasets.Dataset, column: str) -> list[Any]:
    """Return the values of a column, names in place of class numbers."""
    feature, values = dataset.features[column], dataset[column][:]
    if not isinstance(feature, datasets.ClassLabel):
        return list(values)
    return [None if value is None or value < 0 else feature.names[value] for value in values]


def _read_columns(listing: Listing) -> tuple[dict[str, list[Any]], list[str | None]]:
    """Return the columns of the contract by name, and the label of each row as written.

    Optional columns are there only if the data have them.
    """
    n, given = len(listing.image_ids), listing.columns
    table: dict[str, list[Any]] = {}
    for column, candidates in OTHER_NAMES.items():
        existing = first_named(given, candidates)
        if existing is None and column in OPTIONAL_COLUMNS:
            continue
        # A blank that was written out stays blank: one "nan" for all images would be one lesion.
        texts = [text_of(value) for value in ([None] * n if existing is None else given[existing])]
        table[column] = [None if text is None or text.lower() in BLANK else text for text in texts]
    # A row with a problem may have no id of its own.
    faulty = {problem.image_id for problem in listing.problems}
    ids = zip(table["image_id"], listing.image_ids, strict=True)
    table["image_id"] = [own or (listed if listed in faulty else None) for own, listed in ids]
    if len(set(table["image_id"])) < n or None in table["image_id"]:
        table["image_id"] = listing.image_ids
    for column in ("image_id", "lesion_id", "source"):
        unusable = [name for name in table[column] if name is not None and not is_name(name)]
        if unusable:
            raise DataError(
                f"the {column} {shortened(unusable[0])} is too long or not printable; rename it in the data."
            )
    table["source"] = [value or "unknown" for value in table["source"]]
    table["age_approx"] = read_ages(table["age_approx"])
    return table, [text_of(value) for value in given[listing.label_column]]


def select_diagnoses(dataset: datasets.Dataset, diagnoses: Sequence[str]) -> datasets.Dataset:
    """Keep the images of these diagnoses; their labels become 0, 1, … in the order given.

    Args:
        dataset: With a ClassLabel column `label`.
        diagnoses: Codes as in the dataset's label names, or ["all"] for all that are present, in its order.

    Raises:
        DataError: If a diagnosis is not in the dataset, is named twice, or has no image.
    """
    names: list[str] = dataset.features["label"].names
    labels = np.asarray(dataset.with_format("numpy")["label"][:], dtype=np.int64)  # (N,)
    present = np.bincount(labels[labels >= 0], minlength=len(names))
    chosen = [name for name, n in zip(names, present, strict=True) if n] if list(diagnoses) == ["all"] else diagnoses
    absent = [code for code in chosen if code not in names or present[names.index(code)] == 0]
    if absent or len(set(chosen)) < len(chosen):
        has = ", ".join(f"{name} {n}" for name, n in zip(names, present, strict=True))
        wrong = f"no image of {', '.join(absent)}" if absent else "a diagnosis is repeated"
        raise DataError(f"--diagnoses: {wrong}; the dataset has {has}. Choose from these, or pass all.")
    check_label_names(chosen)
    new_label = np.full(len(names) + 1, -1)  # the last entry is for the label -1 (unlabelled)
    new_label[[names.index(code) for code in chosen]] = np.arange(len(chosen))
    relabelled = new_label[labels]
    columns = dataset.column_names
    result = dataset.remove_columns("label").add_column(
        "label", relabelled.tolist(), feature=datasets.ClassLabel(names=list(chosen))
    )
    return result.select_columns(columns).select(np.flatnonzero(relabelled >= 0))


def rows_of(dataset: datasets.Dataset, image_ids: Iterable[str]) -> datasets.Dataset:
    """Return the rows of these images, in this order."""
    position = {image_id: index for index, image_id in enumerate(dataset["image_id"])}
    return dataset.select([position[image_id] for image_id in image_ids])
