"""splits.csv: written, read, compared with the data, and checked for lesions in more than one split."""

import hashlib
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from modeling.data.duplicates import DUPLICATE_PREFIX
from modeling.data.problems import DataError
from modeling.data.tables import read_table

SPLITS = ("train", "val", "test")
COLUMNS = ("image_id", "lesion_id", "label", "source", "split")
MAX_CELL = 200  # characters


class LeakageError(ValueError):
    """A lesion, or an image, is in two splits: scores on such splits are too high."""


def check_no_leakage(splits: pd.DataFrame) -> None:
    """Raise if an image, a lesion or a patient is in two splits.

    Raises:
        LeakageError: With their number and the first few.
    """
    for column, what in (("image_id", "images"), ("lesion_id", "lesions"), ("patient_id", "patients")):
        spread = in_several_splits(splits, column) if column in splits else []
        if spread:
            raise LeakageError(
                f"{len(spread)} {what} are in more than one split: {', '.join(spread[:5])}; "
                "make the splits again with --protocol lesion, or correct the file given by --splits."
            )


def in_several_splits(splits: pd.DataFrame, column: str) -> list[str]:
    """Return the lesions (or patients) that are in more than one split."""
    n_splits = splits.groupby(column)["split"].nunique()  # rows without an id are in no group
    return [str(name) for name in n_splits.index[n_splits > 1]]


def leakage(splits: pd.DataFrame) -> dict[str, float]:
    """Return the fraction of test images whose lesion is also in train: {"overall": …, and each diagnosis}.

    Images without a lesion id are compared by near-duplicates, which have one id in splits.csv. Other photographs of their
    lesion are not found, so the fraction is a lower bound.
    """
    in_train = set(splits["lesion_id"][splits["split"] == "train"].dropna())
    test = splits[splits["split"] == "test"]
    leaks = test["lesion_id"].isin(in_train)
    per_diagnosis = leaks.groupby(test["label"]).mean()
    return {"overall": float(leaks.mean()), **{str(code): float(rate) for code, rate in per_diagnosis.items()}}


def describe_split(splits: pd.DataFrame, *, patients: pd.Series | None = None) -> dict[str, Any]:
    """Return the measured properties of a split, whatever the options asked for.

    `patients` are patient ids by image id, where the data have them.

    Returns:
        split_unit, "lesion" if no lesion is in two splits, else "image"; leakage (`leakage`); test_without_lesion_id, the
        fraction of test images whose lesion id is unknown or made from near-duplicates; patients_apart, None where patients are
        unknown.
    """
    test = splits["lesion_id"][splits["split"] == "test"]
    apart = None
    if patients is not None and patients.notna().any():
        apart = not in_several_splits(splits.assign(patient_id=splits["image_id"].map(patients)), "patient_id")
    return {
        "split_unit": "image" if in_several_splits(splits, "lesion_id") else "lesion",
        "leakage": leakage(splits),
        "test_without_lesion_id": float((test.isna() | test.astype("string").str.startswith(DUPLICATE_PREFIX)).mean()),
        "patients_apart": apart,
    }


def write_splits(splits: pd.DataFrame, path: str | Path) -> None:
    """Write splits.csv, sorted by image id."""
    splits[list(COLUMNS)].sort_values("image_id").to_csv(path, index=False, lineterminator="\n")


def load_splits(path: str | Path) -> pd.DataFrame:
    """Read splits.csv as it is, sorted by image id; `splits.read_splits` also compares it with the data.

    Raises:
        DataError: If it is not a table with the columns of splits.
    """
    splits = read_table(Path(path), COLUMNS)
    if strange := sorted(set(splits["split"]) - set(SPLITS)):
        raise DataError(f"{path}: split must be one of {', '.join(SPLITS)}, got {', '.join(map(repr, strange[:5]))}.")
    if splits[list(COLUMNS)].map(len).to_numpy().max(initial=0) > MAX_CELL:
        raise DataError(f"{path} has a cell of more than {MAX_CELL} characters; no id or name is that long.")
    splits["lesion_id"] = splits["lesion_id"].astype(object).where(splits["lesion_id"] != "", None)
    return splits[list(COLUMNS)].sort_values("image_id", ignore_index=True)


def splits_hash(splits: pd.DataFrame) -> str:
    """Return a sha256 of the content, whatever the order of the rows."""
    text = splits[list(COLUMNS)].fillna("").sort_values("image_id").to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def to_table(dataset: datasets.Dataset | pd.DataFrame) -> pd.DataFrame:
    """Return image_id, lesion_id (None where unknown), label (code), source, and patient_id if there is one, without pixels."""
    names = dataset.columns if isinstance(dataset, pd.DataFrame) else dataset.column_names
    wanted = [column for column in (*COLUMNS[:4], "patient_id") if column in names]
    if isinstance(dataset, pd.DataFrame):
        table = dataset[wanted].copy()
    else:
        table = dataset.select_columns(wanted).with_format("arrow")[:].to_pandas()
        table["label"] = [dataset.features["label"].names[label] for label in table["label"]]
    table["lesion_id"] = table["lesion_id"].astype(object).where(table["lesion_id"].notna(), None)
    return table
