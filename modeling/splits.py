"""Splits of lesions, not of images: every photograph of a lesion is in one of train, val and test."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import imagehash
import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from modeling.images import decode_image
from modeling.isic2019 import DataError

SPLITS = ("train", "val", "test")
SHARES = {"train": 0.70, "val": 0.15, "test": 0.15}
COLUMNS = ("image_id", "lesion_id", "label", "source", "split")
DUPLICATE_PREFIX = "dup:"
# Hamming distance of 64-bit perceptual hashes up to which two images count as one picture.
MAX_HASH_DISTANCE = 4
# Blocks of this many rows bound the memory of the pairwise comparison (512 × 25,000 × 8 bytes ≈ 100 MB).
HASH_BLOCK_ROWS = 512
HASH_SIDE_PX = 64

Protocol = Literal["lesion", "original"]
Table: TypeAlias = datasets.Dataset | pd.DataFrame


class LeakageError(ValueError):
    """A lesion, or an image, is in two splits: scores on such splits are too high."""


def make_splits(
    dataset: Table, *, protocol: Protocol = "lesion", diagnoses: Sequence[str], seed: int = 42
) -> pd.DataFrame:
    """Return one row per image of these diagnoses: image_id, lesion_id, label (code), source, split.

    Args:
        dataset: A data set in the columns of the contract, or a table of image_id, lesion_id, label (code) and
            source without pixels; in the latter each image without lesion_id counts as a lesion of its own.
        protocol: "lesion" keeps lesions together, stratified by diagnosis and source, 70/15/15; "original" is the
            original system's random split of images, kept only for comparison: it leaks, see `leakage`.
        diagnoses: Codes to keep.
        seed: Other seeds give other splits; the order of the rows does not matter.
    """
    table = to_table(dataset)
    table = table[table["label"].isin(list(diagnoses))].sort_values("image_id", ignore_index=True)
    if table.empty:
        raise DataError(f"no image has a diagnosis of {list(diagnoses)}; nothing to split.")
    if protocol == "original":
        return _original_splits(table, seed)
    table, group = group_lesions(table, dataset if isinstance(dataset, datasets.Dataset) else None)
    table["split"] = _assign(table, group, seed)
    splits = table[list(COLUMNS)]
    check_no_leakage(splits)
    return splits


def check_no_leakage(splits: pd.DataFrame) -> None:
    """Raise if an image or a lesion is in two splits, or a row belongs to none of train, val and test.

    Raises:
        LeakageError: With the number of lesions and the first few.
    """
    _check_columns(splits, "the splits")
    strange = sorted(set(splits["split"]) - set(SPLITS))
    if strange:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {', '.join(map(str, strange[:5]))}.")
    twice = splits["image_id"][splits["image_id"].duplicated()].unique()
    if len(twice):
        raise LeakageError(f"{len(twice)} images have two rows in the splits: {', '.join(twice[:5])}.")
    known = splits[splits["lesion_id"].notna()]
    spread = known.groupby("lesion_id")["split"].nunique()
    leaking = spread.index[spread > 1]
    if len(leaking):
        raise LeakageError(
            f"{len(leaking)} lesions are in more than one split: {', '.join(leaking[:5])}; "
            "make the splits again with --protocol lesion, or correct the file given by --splits."
        )


def leakage(splits: pd.DataFrame) -> dict[str, float]:
    """Return the share of test images whose lesion is also in train: {"overall": …, and each diagnosis}.

    Images without a lesion id count as not leaking, so the share is a lower bound.
    """
    in_train = set(splits["lesion_id"][splits["split"] == "train"].dropna())
    test = splits[splits["split"] == "test"]
    leaks = test["lesion_id"].isin(in_train)
    per_diagnosis = leaks.groupby(test["label"]).mean()
    return {"overall": float(leaks.mean()), **{str(code): float(share) for code, share in per_diagnosis.items()}}


def leave_one_source_out(splits: pd.DataFrame, source: str) -> pd.DataFrame:
    """Return splits whose test is every image of one source; of the others, train and val stay as they are.

    The other sources' test images are left out, so that results of all sources are trained on like data.
    """
    here = splits["source"] == source
    present = ", ".join(f"{name} {n}" for name, n in splits["source"].value_counts().items())
    if not here.any():
        raise DataError(f"no image is of source {source!r}; the splits have {present}.")
    if here.all():
        raise DataError(f"every image is of source {source!r}; leaving it out leaves nothing to train on.")
    kept = splits[here | (splits["split"] != "test")].copy()
    kept.loc[kept["source"] == source, "split"] = "test"
    # A near-duplicate group may span sources: what shows a test lesion may not be trained on.
    test_lesions = set(kept["lesion_id"][kept["split"] == "test"].dropna())
    kept = kept[(kept["split"] == "test") | ~kept["lesion_id"].isin(test_lesions)].reset_index(drop=True)
    check_no_leakage(kept)
    return kept


def write_splits(splits: pd.DataFrame, path: str | Path) -> None:
    """Write splits.csv, sorted by image id."""
    splits[list(COLUMNS)].sort_values("image_id").to_csv(path, index=False, lineterminator="\n")


def read_splits(path: str | Path, dataset: Table) -> pd.DataFrame:
    """Read splits.csv and check that it is about exactly these images and labels.

    Args:
        path: A file of `write_splits`.
        dataset: The data set to split, already reduced to the diagnoses of the run.

    Raises:
        DataError: If a column is missing, images are missing or unknown, or labels differ; with counts.
    """
    splits = pd.read_csv(path, dtype=str, keep_default_na=False)
    _check_columns(splits, str(path))
    splits["lesion_id"] = splits["lesion_id"].map(lambda text: text or None).astype(object)
    table = to_table(dataset)
    given, wanted = set(splits["image_id"]), set(table["image_id"])
    label_of = dict(zip(table["image_id"], table["label"], strict=True))
    known = splits[splits["image_id"].isin(wanted)]
    differing = known["image_id"][known["image_id"].map(label_of) != known["label"]].tolist()
    wrong = [
        f"{len(ids)} {what}, such as {', '.join(sorted(ids)[:5])}"
        for ids, what in (
            (wanted - given, "images of the data have no row"),
            (given - wanted, "rows name images that the data do not have"),
            (set(differing), "labels differ from the data"),
        )
        if ids
    ]
    if wrong:
        raise DataError(
            f"{path} does not belong to these data: {'; '.join(wrong)}. "
            "Use the data and --diagnoses that it was made with, or leave --splits out to make new splits."
        )
    return splits[list(COLUMNS)].sort_values("image_id", ignore_index=True)


def splits_hash(splits: pd.DataFrame) -> str:
    """Return a sha256 of the content, whatever the order of the rows."""
    text = splits[list(COLUMNS)].fillna("").sort_values("image_id").to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def to_table(dataset: Table) -> pd.DataFrame:
    """Return image_id, lesion_id (None where unknown), label (code) and source, without touching pixels."""
    wanted = [column for column in COLUMNS if column != "split"]
    if isinstance(dataset, pd.DataFrame):
        table = dataset[wanted].copy()
    else:
        table = dataset.select_columns(wanted).with_format("arrow")[:].to_pandas()
        table["label"] = [dataset.features["label"].names[label] for label in table["label"]]
    table["lesion_id"] = table["lesion_id"].astype(object).where(table["lesion_id"].notna(), None)
    return table


def group_lesions(table: pd.DataFrame, dataset: datasets.Dataset | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Give each image without lesion id that of its near-duplicates; return the table and each row's group number.

    Pairs of images that both have a lesion id are left as they are: there the id is the better witness.
    """
    missing = table["lesion_id"].isna().to_numpy()
    n = len(table)
    left, right = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    if missing.any() and dataset is not None:
        left, right = near_duplicates(perceptual_hashes(dataset, table["image_id"]), among=missing)
    lesion, _ = pd.factorize(table["lesion_id"])
    known = np.flatnonzero(~missing)
    first_of_lesion = pd.Series(known).groupby(lesion[known]).transform("first").to_numpy(dtype=np.int64)
    rows, columns = np.concatenate([known, left]), np.concatenate([first_of_lesion, right])
    _, group = connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n, n)), directed=False)

    table = table.copy()
    smallest_id = table.groupby(group)["image_id"].transform("min")
    smallest_lesion = table["lesion_id"].groupby(group).transform(lambda ids: min(ids.dropna(), default=None))
    found = smallest_lesion.where(smallest_lesion.notna(), DUPLICATE_PREFIX + smallest_id)
    table["lesion_id"] = table["lesion_id"].where(~missing, found)
    mixed = table.groupby(group)["label"].nunique()
    if (mixed > 1).any():
        examples = [table["image_id"][group == number].tolist()[:3] for number in mixed.index[mixed > 1][:3]]
        warnings.warn(
            f"{(mixed > 1).sum()} groups of near-duplicates have more than one diagnosis, such as {examples}; "
            "each is kept in one split, but one of its labels may be wrong.",
            stacklevel=2,
        )
    return table, group


def perceptual_hashes(dataset: datasets.Dataset, image_ids: Sequence[str] | pd.Series) -> np.ndarray:
    """Return the 64-bit perceptual hash (pHash) of each image as uint64, shape (N,), in the order of image_ids."""
    stored = dataset.cast_column("image", datasets.Image(decode=False))
    position = {image_id: index for index, image_id in enumerate(dataset["image_id"])}
    indices = [position[image_id] for image_id in image_ids]

    def hash_of(index: int) -> np.ndarray:
        image = stored[index]["image"]
        small = decode_image(image["bytes"] or image["path"], min_side_px=HASH_SIDE_PX)
        return imagehash.phash(small).hash.reshape(-1)  # (64,) bool

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashed = pool.map(hash_of, indices)
        bits = list(tqdm(hashed, total=len(indices), desc="hashing images without lesion id", unit="image"))
    return np.packbits(np.stack(bits), axis=1).view(np.uint64).reshape(-1)


def near_duplicates(hashes: np.ndarray, *, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index pairs (left, right) of hashes at most MAX_HASH_DISTANCE bits apart, left in `among`."""
    asked = np.flatnonzero(among)
    left, right = [], []
    for start in range(0, len(asked), HASH_BLOCK_ROWS):
        block = asked[start : start + HASH_BLOCK_ROWS]
        distance = np.bitwise_count(hashes[block, None] ^ hashes[None, :])  # (B, N)
        row, column = np.nonzero(distance <= MAX_HASH_DISTANCE)
        left.append(block[row])
        right.append(column)
    return np.concatenate(left), np.concatenate(right)


def _assign(table: pd.DataFrame, group: np.ndarray, seed: int) -> np.ndarray:
    """Give each group a split: in each stratum, the largest group first, to the split that is emptiest."""
    groups = table.groupby(group).agg(
        name=("lesion_id", "min"), size=("image_id", "size"), label=("label", "first"), source=("source", "first")
    )
    # A hash of seed and name orders groups of one size: no generator's stream, which may change with its library.
    groups["order"] = [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in groups["name"]]
    groups = groups.sort_values(["size", "order"], ascending=[False, True])
    shares = np.array([SHARES[split] for split in SPLITS])
    chosen: dict[Any, int] = {}
    for _, stratum in groups.groupby(["label", "source"], sort=True):
        filled = np.zeros(len(SPLITS))
        for number, size in zip(stratum.index, stratum["size"], strict=True):
            best = int(np.argmin(filled / shares))
            filled[best] += size
            chosen[number] = best
    return np.array(SPLITS, dtype=object)[[chosen[number] for number in group]]


def _original_splits(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Reproduce `random_split(ImageFolder(...), [0.7, 0.15, rest])` of the original system, image by image."""
    table = table.assign(file=table["image_id"] + ".jpg").sort_values(["label", "file"], ignore_index=True)
    n = len(table)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()
    n_train, n_val = int(0.7 * n), int(0.15 * n)
    split = np.empty(n, dtype=object)
    split[order[:n_train]] = "train"
    split[order[n_train : n_train + n_val]] = "val"
    split[order[n_train + n_val :]] = "test"
    return table.assign(split=split)[list(COLUMNS)].sort_values("image_id", ignore_index=True)


def _check_columns(splits: pd.DataFrame, what: str) -> None:
    missing = [column for column in COLUMNS if column not in splits]
    if missing:
        raise DataError(f"{what} lack the columns {', '.join(missing)}; needed are {', '.join(COLUMNS)}.")
