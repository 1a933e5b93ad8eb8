"""One door to every dataset: ISIC 2019, the embedded demo, or any image-classification dataset on the Hub."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np

from modeling.data.demo import load_demo
from modeling.data.isic2019 import (
    FEATURES,
    DataError,
    Problem,
    counts,
    describe,
    load_isic2019,
    unreadable_images,
    write_skipped,
)
from modeling.files import is_name, shortened
from modeling.labels import CODES, DIAGNOSES

COLUMNS = tuple(FEATURES)
# Names under which Hub datasets keep the label, and the optional columns of HAM10000's own CSV.
LABEL_NAMES = ("label", "labels", "dx", "diagnosis", "class", "target")
IMAGE_NAMES = ("image", "img", "images")
OTHER_NAMES = {
    "image_id": ("image_id", "isic_id"),
    "lesion_id": ("lesion_id",),
    "source": ("source",),
    "age_approx": ("age_approx", "age"),
    "sex": ("sex",),
    "anatom_site_general": ("anatom_site_general", "localization"),
}
# HAM10000 (doi:10.1038/sdata.2018.161) writes its diagnoses as dx codes; some copies on the Hub write them out.
_ALIASES = {
    **{diagnosis.code.lower(): diagnosis.code for diagnosis in DIAGNOSES},
    **{diagnosis.name: diagnosis.code for diagnosis in DIAGNOSES},
    "akiec": "AK",
    "actinic keratoses": "AK",
    "melanocytic nevi": "NV",
    "nevus": "NV",
    "nevi": "NV",
    "benign keratosis like lesions": "BKL",
    "vascular lesions": "VASC",
}


def load_data(
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    skip_bad_images: bool = False,
    skipped_csv: Path | None = None,
) -> datasets.Dataset:
    """Return all images of a dataset in the columns of the contract.

    Args:
        dataset: "isic2019", "demo", or what `datasets.load_dataset` takes (a Hub id such as "user/name", a folder).
        data_dir: A local copy of ISIC 2019 in the official layout; for other datasets, `load_dataset`'s data_dir.
        skip_bad_images: Leave out images that cannot be used and list them, instead of raising.
        skipped_csv: Where to list them; `skipped.csv` in the working directory if None.

    Raises:
        DataError: If images cannot be used, or a Hub dataset has no image or no label column.
    """
    if dataset == "isic2019":
        return load_isic2019(data_dir, skip_bad_images=skip_bad_images, skipped_csv=skipped_csv)
    if dataset == "demo":
        if data_dir is not None:
            raise DataError("the demo data are drawn, not read: leave --data_dir out, or pass --dataset isic2019.")
        return load_demo()
    folder = None if data_dir is None else str(data_dir)
    parts = cast(datasets.DatasetDict, datasets.load_dataset(dataset, data_dir=folder))  # without `split`: all of them
    image_ids = [f"{split}-{index:06d}" for split, part in parts.items() for index in range(len(part))]
    whole = to_contract(datasets.concatenate_datasets(list(parts.values())), image_ids, name=dataset)
    return _only_usable(whole, skip_bad_images=skip_bad_images, skipped_csv=skipped_csv)


def to_contract(dataset: datasets.Dataset, image_ids: Sequence[str], *, name: str) -> datasets.Dataset:
    """Rename, cast and complete the columns of a Hub dataset; pixels are not touched.

    Args:
        dataset: All of its splits.
        image_ids: Used where it has no unique ids of its own.
        name: What an error calls it.
    """
    image_column = _find_image_column(dataset, name)
    label_column = _find_label_column(dataset, name)
    names, labels = _labels_of(dataset, label_column)
    chosen = {
        column: next((candidate for candidate in candidates if candidate in dataset.column_names), None)
        for column, candidates in OTHER_NAMES.items()
    }
    n = len(dataset)
    table: dict[str, list[Any]] = {}
    for column, existing in chosen.items():
        clean = _number if column == "age_approx" else _text
        table[column] = [None] * n if existing is None else [clean(value) for value in dataset[existing]]
    own_ids = set(table["image_id"])
    if len(own_ids) < n or None in own_ids:
        table["image_id"] = list(image_ids)
    table["source"] = [value or "unknown" for value in table["source"]]

    result = dataset.select_columns([image_column])
    if image_column != "image":
        result = result.rename_column(image_column, "image")
    result = result.cast_column("image", datasets.Image())
    for column, values in table.items():
        result = result.add_column(column, values, feature=FEATURES[column])
    result = result.add_column("label", labels, feature=datasets.ClassLabel(names=names))
    return result.select_columns(list(COLUMNS))


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
    if absent or not chosen or len(set(chosen)) < len(chosen):
        has = ", ".join(f"{name} {n}" for name, n in zip(names, present, strict=True))
        wrong = f"no image of {', '.join(absent)}" if absent else f"empty or repeated list {list(chosen)}"
        raise DataError(f"--diagnoses: {wrong}; the dataset has {has}. Choose from these, or pass all.")
    unusable = [name for name in chosen if not is_name(name)]
    if unusable:  # said now, not when the trained model is saved
        raise DataError(f"the label {shortened(unusable[0])} is too long or not printable; rename it in the dataset.")
    new_label = np.full(len(names) + 1, -1)  # the last entry answers the label -1 (unlabelled)
    new_label[[names.index(code) for code in chosen]] = np.arange(len(chosen))
    relabelled = new_label[labels]
    columns = dataset.column_names
    result = dataset.remove_columns("label").add_column(
        "label", relabelled.tolist(), feature=datasets.ClassLabel(names=list(chosen))
    )
    return result.select_columns(columns).select(np.flatnonzero(relabelled >= 0))


def fingerprint(dataset: datasets.Dataset) -> str:
    """Return a sha256 over image ids, diagnoses and image sizes or contents: the same on every machine.

    An image kept as a file counts with its size in bytes (reading 9 GB for a fingerprint would take minutes), an
    image kept in the table with its content. The order of the rows does not matter.
    """
    names = dataset.features["label"].names
    stored = dataset.cast_column("image", datasets.Image(decode=False))
    lines = []
    for row in stored.select_columns(["image_id", "label", "image"]):
        image = row["image"]
        if image["bytes"] is not None:
            content = hashlib.sha256(image["bytes"]).hexdigest()
        else:
            content = str(os.path.getsize(image["path"]))
        diagnosis = names[row["label"]] if row["label"] is not None and row["label"] >= 0 else ""
        lines.append(f"{row['image_id']}\t{diagnosis}\t{content}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _only_usable(whole: datasets.Dataset, *, skip_bad_images: bool, skipped_csv: Path | None) -> datasets.Dataset:
    stored = whole.cast_column("image", datasets.Image(decode=False))
    ids = whole["image_id"][:]
    problems = [
        Problem(image_id, "", "image without a label")
        for image_id, label in zip(ids, whole["label"], strict=True)
        if label is None or label < 0
    ]

    def load(index: int) -> bytes | str:
        image = stored[index]["image"] or {"bytes": b"", "path": None}
        return image["path"] if image["bytes"] is None else image["bytes"]

    problems += unreadable_images(ids, load)
    if skip_bad_images:
        write_skipped(problems, skipped_csv or Path("skipped.csv"))
    if not problems:
        return whole
    if not skip_bad_images:
        raise DataError(describe(problems))
    bad = {problem.image_id for problem in problems}
    datasets.logging.get_logger("modeling").warning(f"left out {len(bad)} of {len(ids)} images: {counts(problems)}")
    return whole.select([index for index, image_id in enumerate(ids) if image_id not in bad])


def _find_image_column(dataset: datasets.Dataset, name: str) -> str:
    images = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if len(images) == 1:
        return images[0]
    named = [column for column in IMAGE_NAMES if column in images]
    if not named:
        raise DataError(
            f"{name} has {len(images)} image columns ({', '.join(images) or 'none'}) among {', '.join(dataset.features)}; "
            "one, of type datasets.Image, is needed: rename the right one to 'image'."
        )
    return named[0]


def _find_label_column(dataset: datasets.Dataset, name: str) -> str:
    named = [column for column in LABEL_NAMES if column in dataset.features]
    classes = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    for column in named:
        if column in classes or dataset.features[column].dtype in ("string", "large_string", "int64", "int32"):
            return column
    if len(classes) == 1:
        return classes[0]
    raise DataError(
        f"{name} has no label column among {', '.join(dataset.features)}: one ClassLabel column, or one named "
        f"{', '.join(LABEL_NAMES)}, is needed: rename the right one to 'label'."
    )


def _labels_of(dataset: datasets.Dataset, column: str) -> tuple[list[str], list[int]]:
    """Return the label names, ISIC codes where all names are known, and the label of each row (-1: none)."""
    feature = dataset.features[column]
    values = list(dataset[column])
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
        texts = [None if value is None or value < 0 else names[value] for value in values]
    else:
        texts = [_text(value) for value in values]
        names = sorted({text for text in texts if text is not None})
    codes = {text: _ALIASES.get(" ".join(text.lower().replace("_", " ").replace("-", " ").split())) for text in names}
    if all(codes.values()):
        names = list(CODES)
        texts = [None if text is None else codes[text] for text in texts]
    position = {text: index for index, text in enumerate(names)}
    return names, [-1 if text is None else position[text] for text in texts]


def _text(value: Any) -> str | None:
    return None if value is None or str(value).strip() == "" else str(value).strip()


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if np.isnan(number) else number
