"""One door to every dataset: ISIC 2019, the embedded demo, or any image-classification dataset on the Hub."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pandas as pd

from modeling.data.demo import load_demo
from modeling.data.duplicates import HASH_SIDE, perceptual_hash
from modeling.data.isic2019 import FEATURES, IMAGE_SUFFIXES, load_isic2019
from modeling.data.problems import BLANK, DataError, Problem, counts, describe, read_ages, write_skipped
from modeling.files import is_name, shortened
from modeling.images import ImageError, decode_image
from modeling.labels import CODES, DIAGNOSES

COLUMNS = tuple(FEATURES)
INSPECTION_VERSION = 1  # of what `inspect_images` caches
INSPECTION_BATCH = 256
# Names under which Hub datasets keep the label, and the optional columns of HAM10000's own CSV.
LABEL_NAMES = ("label", "labels", "dx", "diagnosis", "class", "target")
LABEL_DTYPES = ("string", "large_string", "int", "uint", "bool")  # how their names begin; a float may be NaN
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


@dataclass(frozen=True)
class LoadedImages:
    """All usable images of a dataset."""

    dataset: datasets.Dataset  # in the columns of the contract
    hashes: pd.DataFrame  # image_id, lesion_id and perceptual hash of each (`modeling.data.duplicates`)
    n_skipped: int = 0  # images that were left out since they cannot be used
    given_splits: dict[str, str] | None = None  # the dataset's own split of each image id; None if it has just one


def load_images(
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    skip_bad_images: bool = False,
    skipped_csv: Path | None = None,
    official_test: bool = False,
) -> LoadedImages:
    """Read a dataset; on first use each image is decoded once, to check that it is whole and to hash it.

    Args:
        dataset: "isic2019", "demo", or what `datasets.load_dataset` takes (a Hub id such as "user/name", a folder).
        data_dir: A local copy of ISIC 2019 in the official layout; for other datasets, `load_dataset`'s data_dir.
        skip_bad_images: Leave out images that cannot be used and list them, instead of raising.
        skipped_csv: Where to list them; `skipped.csv` in the working directory if None.
        official_test: Of isic2019, the test of the challenge (with the ninth label UNK) instead of its training data.

    Raises:
        DataError: If images cannot be used, or a Hub dataset has no image or no label column.
    """
    given = None
    if official_test and dataset != "isic2019":
        raise DataError(f"only isic2019 has an official test, not {dataset}; leave --official_test out.")
    if dataset == "isic2019":
        whole, problems = load_isic2019(data_dir, official_test=official_test)
    elif dataset == "demo":
        if data_dir is not None:
            raise DataError("the demo data are drawn, not read: leave --data_dir out, or pass --dataset isic2019.")
        whole, problems = load_demo(), []
    else:
        parts = _load_parts(dataset, data_dir)
        image_ids = [f"{split}-{index:06d}" for split, part in parts.items() for index in range(len(part))]
        whole, problems = to_contract(datasets.concatenate_datasets(list(parts.values())), image_ids, name=dataset)
        problems += _file_problems(whole, Path(dataset, data_dir or ""))
        split_of_row = [split for split, part in parts.items() for _ in range(len(part))]
        given = dict(zip(whole["image_id"][:], split_of_row, strict=True)) if len(parts) > 1 else None

    inspected = inspect_images(whole)
    found_bad = inspected[inspected["kind"] != ""]
    problems += [Problem(*row) for row in found_bad[["image_id", "path", "kind", "detail"]].to_numpy().tolist()]
    bad = {problem.image_id for problem in problems}
    kept = np.flatnonzero(~inspected["image_id"].isin(bad))
    if problems and not (skip_bad_images and len(kept)):
        raise DataError(("" if len(kept) else "no usable image is left. ") + describe(problems))
    if skip_bad_images:
        write_skipped(problems, skipped_csv or Path("skipped.csv"))
    if problems:
        datasets.logging.get_logger("modeling").warning(f"left out {len(bad)} images: {counts(problems)}")
    hashes = inspected.loc[kept, ["image_id", "hash"]].reset_index(drop=True)
    usable = whole if len(kept) == len(whole) else whole.select(kept)
    hashes.insert(1, "lesion_id", usable["lesion_id"][:])
    return LoadedImages(usable, hashes, len(bad), given)


def inspect_images(whole: datasets.Dataset) -> pd.DataFrame:
    """Decode every image to its last byte; return image_id, path, hash, and kind and detail of what is wrong with it.

    The answer is cached by `datasets` where the dataset itself is, so that an image is decoded for this once.
    """
    stored = whole.select_columns(["image_id", "image"]).cast_column("image", datasets.Image(decode=False))
    columns = ("image_id", "path", "hash", "kind", "detail")
    result = stored.map(
        _inspect,
        batched=True,
        batch_size=INSPECTION_BATCH,
        remove_columns=["image"],
        features=datasets.Features({column: datasets.Value("string") for column in columns}),
        fn_kwargs={"version": INSPECTION_VERSION},
        desc="checking images",
    )
    return result.to_pandas()


def _inspect(batch: dict[str, list[Any]], version: int) -> dict[str, list[str]]:
    # Pillow releases the interpreter while it decodes, so threads use every core.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paths, hashes, kinds, details = zip(*pool.map(_inspect_image, batch["image"]), strict=True)
    return {"path": [*paths], "hash": [*hashes], "kind": [*kinds], "detail": [*details]}


def _inspect_image(image: dict[str, Any] | None) -> tuple[str, str, str, str]:
    """Return path, hash, and kind and detail of what is wrong (empty if nothing is)."""
    content = b"" if image is None else image["path"] if image["bytes"] is None else image["bytes"]
    path = content if isinstance(content, str) else ""
    try:
        # The hash shrinks to 4 × HASH_SIDE pixels itself; a JPEG that is decoded smaller is still read to its end.
        return path, perceptual_hash(decode_image(content or b"", min_side_px=4 * HASH_SIDE)), "", ""
    except ImageError as error:
        empty = not content or (path and os.path.isfile(path) and os.path.getsize(path) == 0)
        return path, "", "image file is empty" if empty else "image cannot be read (truncated, or no image)", str(error)


def _load_parts(dataset: str, data_dir: str | Path | None) -> datasets.DatasetDict:
    """Return all splits of a dataset of the Hub or a folder."""
    try:
        parts = datasets.load_dataset(dataset, data_dir=None if data_dir is None else str(data_dir))
    # A stranger's files and a network: the library answers with its own errors, those of pandas, pyarrow, zipfile and more.
    except Exception as error:
        cause = error.__cause__ or error
        said = " ".join(str(cause).split())[:300]
        raise DataError(
            f"--dataset {dataset} cannot be read ({type(cause).__name__}: {said}). It must be isic2019, demo, an image dataset "
            "of the Hub, or a folder that holds a folder of images for each diagnosis, or images and a metadata.csv with the "
            "columns file_name and label."
        ) from error
    return cast(datasets.DatasetDict, parts)


def _file_problems(whole: datasets.Dataset, folder: Path) -> list[Problem]:
    """Return rows that share an image file, and image files of a local folder that are in no row."""
    stored = whole.cast_column("image", datasets.Image(decode=False))["image"]
    paths = [None if image is None or image["bytes"] is not None else image["path"] for image in stored]
    table = pd.DataFrame({"image_id": whole["image_id"][:], "path": paths}).dropna()
    shared = table[table["path"].duplicated(keep=False)]
    problems = [
        Problem(image_id, path, "image file in more than one row") for image_id, path in shared.to_numpy().tolist()
    ]
    used = {os.path.abspath(path) for path in table["path"]}
    root = os.path.abspath(folder)
    if any(path.startswith(root + os.sep) for path in used):
        # `datasets` leaves these out without a word.
        for path in sorted(Path(root).rglob("*")):
            is_image = path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()
            if is_image and str(path) not in used and not path.name.startswith("."):
                kind = "image without a row" if path.is_file() else "image is a link to nothing, or no ordinary file"
                problems.append(Problem(str(path.relative_to(root)), str(path), kind))
    return problems


def to_contract(
    dataset: datasets.Dataset, image_ids: Sequence[str], *, name: str
) -> tuple[datasets.Dataset, list[Problem]]:
    """Rename, cast and complete the columns of a Hub dataset; `image_ids` where it has no unique ids of its own."""
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
        texts = [None] * n if existing is None else [_text(value) for value in dataset[existing]]
        # One "nan" for all images without a lesion id would make one lesion of them.
        table[column] = [None if text is None or text.lower() in BLANK else text for text in texts]
    own_ids = set(table["image_id"])
    if len(own_ids) < n or None in own_ids:
        table["image_id"] = list(image_ids)
    table["source"] = [value or "unknown" for value in table["source"]]
    table["age_approx"], problems = read_ages(table["image_id"], table["age_approx"])
    problems += [
        Problem(image_id, "", "image without a label")
        for image_id, label in zip(table["image_id"], labels, strict=True)
        if label < 0
    ]

    result = dataset.select_columns([image_column])
    if image_column != "image":
        result = result.rename_column(image_column, "image")
    result = result.cast_column("image", datasets.Image())
    for column, values in table.items():
        result = result.add_column(column, values, feature=FEATURES[column])
    result = result.add_column("label", labels, feature=datasets.ClassLabel(names=names))
    return result.select_columns(list(COLUMNS)), problems


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


def rows_of(dataset: datasets.Dataset, image_ids: Iterable[str]) -> datasets.Dataset:
    """Return the rows of these images, in this order."""
    position = {image_id: index for index, image_id in enumerate(dataset["image_id"])}
    return dataset.select([position[image_id] for image_id in image_ids])


def fingerprint(dataset: datasets.Dataset) -> str:
    """Return a sha256 over all columns, and image sizes or contents: the same on every machine.

    An image kept as a file counts with its size in bytes (reading 9 GB for a fingerprint would take minutes), an
    image kept in the table with its content. The order of the rows does not matter.
    """
    names = dataset.features["label"].names
    stored = dataset.cast_column("image", datasets.Image(decode=False))
    lines = []
    for row in stored:
        image, label = row.pop("image"), row.pop("label")
        if image["bytes"] is not None:
            row["content"] = hashlib.sha256(image["bytes"]).hexdigest()
        else:
            row["content"] = os.path.getsize(image["path"])
        row["diagnosis"] = names[label] if label is not None and label >= 0 else None
        lines.append(json.dumps(row, sort_keys=True) + "\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


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
    classes = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.ClassLabel)]
    for column in LABEL_NAMES:
        feature = dataset.features.get(column)
        if column in classes or (isinstance(feature, datasets.Value) and feature.dtype.startswith(LABEL_DTYPES)):
            return column
    if len(classes) == 1:
        return classes[0]
    raise DataError(
        f"{name} has no label column among {', '.join(dataset.features)}: one ClassLabel column, or one of words or whole "
        f"numbers named {', '.join(LABEL_NAMES)}, is needed: rename the right one to 'label'."
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
