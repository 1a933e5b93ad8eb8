"""Splits of lesions, not of images: every photograph of a lesion is in one of train, val and test."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from modeling.data.duplicates import DUPLICATE_PREFIX, hash_images, near_duplicates
from modeling.data.problems import DataError
from modeling.data.sources import LoadedImages
from modeling.labels import REFERENCE_CODES

SPLITS = ("train", "val", "test")
FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
MIN_STRATUM_LESIONS = 20  # of a diagnosis from one source; smaller ones are split together
COLUMNS = ("image_id", "lesion_id", "label", "source", "split")
MAX_CELL = 200  # characters
MAX_LINE = 10_000  # characters; pandas makes a column of every comma, so that one long line fills the memory

# What datasets call their own splits.
GIVEN_NAMES = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}

Protocol = Literal["lesion", "original", "given"]
Table: TypeAlias = datasets.Dataset | pd.DataFrame


class LeakageError(ValueError):
    """A lesion, or an image, is in two splits: scores on such splits are too high."""


def diagnoses_of(options: Any, dataset: datasets.Dataset) -> list[str]:
    """Return the codes to tell apart: a Hub dataset without the default four is used whole."""
    names = dataset.features["label"].names
    if options.diagnoses == list(REFERENCE_CODES) and not set(REFERENCE_CODES) <= set(names):
        return ["all"]
    return options.diagnoses


def splits_of(options: Any, dataset: datasets.Dataset, codes: list[str], loaded: LoadedImages) -> pd.DataFrame:
    """Make the splits, or read those that --splits names; each diagnosis must be in each of them."""
    if options.splits:
        splits = read_splits(options.splits, dataset, test_source=options.test_source)
    else:
        protocol: Any = options.protocol
        given = loaded.given_splits
        splits = make_splits(
            dataset, protocol=protocol, diagnoses=codes, seed=options.seed, hashes=loaded.hashes, given=given
        )
        if given and protocol != "given":
            print(
                f"the dataset's own splits ({', '.join(sorted(set(given.values())))}) are not used: they may part the images of "
                "one lesion, and scores would be too high; --protocol given uses them and reports how far they leak"
            )
    if options.test_source:
        splits = leave_sources_out(splits, options.test_source)
    counts = pd.crosstab(splits["label"], splits["split"]).reindex(index=codes, columns=list(SPLITS), fill_value=0)
    empty = [f"{code} in {split}" for code in codes for split in ("train", "val") if counts.loc[code, split] == 0]
    empty += [] if counts["test"].any() else ["any diagnosis in test"]
    if empty:
        raise ValueError(
            f"no image of {', '.join(empty)}: the model could not be trained, chosen or scored. Add images, or leave the "
            "diagnosis out with --diagnoses."
        )
    return splits


def split_table(splits: pd.DataFrame, codes: Sequence[str]) -> str:
    """Return the number of images of each diagnosis in each split, as a table for people."""
    counts = pd.crosstab(splits["label"], splits["split"], margins=True, margins_name="all")
    return counts.reindex(index=[*codes, "all"], columns=[*SPLITS, "all"], fill_value=0).to_string()


def make_splits(
    dataset: Table,
    *,
    protocol: Protocol = "lesion",
    diagnoses: Sequence[str],
    seed: int = 42,
    hashes: pd.DataFrame | None = None,
    given: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Return one row per image of these diagnoses: image_id, lesion_id, label (code), source, split.

    Args:
        dataset: A dataset in the columns of the contract, or a table of image_id, lesion_id, label (code) and
            source without pixels; in the latter each image without lesion_id counts as a lesion of its own.
        protocol: "lesion" keeps lesions together, stratified by diagnosis and source (small sources as one), 70/15/15; "original"
            is the reference system's random split of images, kept only for comparison: it leaks, see `leakage`; "given" is the
            dataset's own, as it is: near-duplicates get one lesion id, so that `leakage` counts them too.
        diagnoses: Codes to keep.
        seed: Other seeds give other splits; the order of the rows does not matter.
        hashes: Perceptual hashes of the images (`load_images`); made here where they are needed and not given.
        given: The dataset's own split of each image, by image id (`load_images`).
    """
    table = to_table(dataset)
    table = table[table["label"].isin(list(diagnoses))].sort_values("image_id", ignore_index=True)
    if table.empty:
        raise DataError(f"no image has a diagnosis of {list(diagnoses)}; nothing to split.")
    if protocol == "original":
        return _original_splits(table, seed)
    if hashes is None and table["lesion_id"].isna().any() and isinstance(dataset, datasets.Dataset):
        hashes = hash_images(dataset)
    table, group = group_lesions(table, hashes)
    if protocol == "given":
        return table.assign(split=_given_splits(table["image_id"], given or {}))[list(COLUMNS)]
    table["split"] = _assign(table, group, seed)
    splits = table[list(COLUMNS)]
    check_no_leakage(splits)
    return splits


def _given_splits(image_ids: pd.Series, given: Mapping[str, str]) -> list[str]:
    own = sorted(set(given.values()))
    named = {GIVEN_NAMES.get(name.lower()) for name in own}
    if named != set(SPLITS):
        raise DataError(
            f"--protocol given needs a dataset with train, validation and test; this one has {', '.join(own) or 'no splits'}. "
            "Use --protocol lesion, which makes them."
        )
    return [GIVEN_NAMES[given[image_id].lower()] for image_id in image_ids]


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
    """Return the fraction of test images whose lesion is also in train: {"overall": …, and each diagnosis}.

    Images without a lesion id count as not leaking, so the fraction is a lower bound.
    """
    in_train = set(splits["lesion_id"][splits["split"] == "train"].dropna())
    test = splits[splits["split"] == "test"]
    leaks = test["lesion_id"].isin(in_train)
    per_diagnosis = leaks.groupby(test["label"]).mean()
    return {"overall": float(leaks.mean()), **{str(code): float(rate) for code, rate in per_diagnosis.items()}}


def leave_sources_out(splits: pd.DataFrame, sources: Sequence[str]) -> pd.DataFrame:
    """Return splits whose test is every image of these sources; train and val keep the images of the others.

    The other sources' test images are left out, so that results of all sources are trained on like data.
    """
    here = splits["source"].isin(sources)
    present = ", ".join(f"{name} {n}" for name, n in splits["source"].value_counts().items())
    absent = [source for source in sources if source not in set(splits["source"])]
    if absent:
        raise DataError(f"no image is of source {', '.join(absent)}; the splits have {present}.")
    if here.all():
        raise DataError(f"every image is of source {', '.join(sources)}; leaving it out leaves nothing to train on.")
    kept = splits[here | (splits["split"] != "test")].copy()
    kept.loc[kept["source"].isin(sources), "split"] = "test"
    # A near-duplicate group may span sources: what shows a test lesion may not be trained on.
    test_lesions = set(kept["lesion_id"][kept["split"] == "test"].dropna())
    kept = kept[(kept["split"] == "test") | ~kept["lesion_id"].isin(test_lesions)].reset_index(drop=True)
    check_no_leakage(kept)
    return kept


def write_splits(splits: pd.DataFrame, path: str | Path) -> None:
    """Write splits.csv, sorted by image id."""
    splits[list(COLUMNS)].sort_values("image_id").to_csv(path, index=False, lineterminator="\n")


def read_splits(path: str | Path, dataset: Table, *, test_source: Sequence[str] = ()) -> pd.DataFrame:
    """Read splits.csv and check that it is about exactly these images and labels.

    Args:
        path: A file of `write_splits`.
        dataset: The dataset to split, already reduced to the diagnoses of the run.
        test_source: Images of other sources may be missing then: `leave_sources_out` leaves their test images out.

    Raises:
        DataError: If a column is missing, images are missing or unknown, or labels or lesion ids differ; with counts.
    """
    splits = load_splits(path)
    table = to_table(dataset)
    given, wanted = set(splits["image_id"]), set(table["image_id"])
    needed = set(table["image_id"][table["source"].isin(test_source)]) if test_source else wanted
    label_of = dict(zip(table["image_id"], table["label"], strict=True))
    lesion_of = dict(zip(table["image_id"], table["lesion_id"], strict=True))
    known = splits[splits["image_id"].isin(wanted)]
    other_label = known["image_id"][known["image_id"].map(label_of) != known["label"]]
    expected = known["image_id"].map(lesion_of)
    other_lesion = known["image_id"][expected.notna() & (expected != known["lesion_id"])]
    wrong = [
        f"{len(ids)} {what}, such as {', '.join(sorted(ids)[:5])}"
        for ids, what in (
            (needed - given, "images of the data have no row"),
            (given - wanted, "rows name images that the data do not have"),
            (set(other_label), "labels differ from the data"),
            (set(other_lesion), "lesion ids differ from the data"),
            (set(splits["image_id"][splits["image_id"].duplicated()]), "images have more than one row"),
        )
        if ids
    ]
    if wrong:
        raise DataError(
            f"{path} does not belong to these data: {'; '.join(wrong)}. "
            "Use the data, --diagnoses and --test_source that it was made with, or leave --splits out to make new splits."
        )
    return splits


def load_splits(path: str | Path) -> pd.DataFrame:
    """Read splits.csv as it stands, sorted by image id; `read_splits` also compares it with the data.

    Raises:
        DataError: If it is no table with the columns of splits.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:  # a name alone pandas would also download or unpack
            while line := file.readline(MAX_LINE):
                if len(line) == MAX_LINE:
                    raise ValueError(f"it has a line of {MAX_LINE} characters or more")
            file.seek(0)
            splits = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} cannot be read as a table ({type(error).__name__}: {str(error)[:300]}).") from error
    _check_columns(splits, str(path))
    if splits[list(COLUMNS)].map(len).to_numpy().max(initial=0) > MAX_CELL:
        raise DataError(f"{path} has a cell of more than {MAX_CELL} characters; no id or name is that long.")
    splits["lesion_id"] = splits["lesion_id"].astype(object).where(splits["lesion_id"] != "", None)
    return splits[list(COLUMNS)].sort_values("image_id", ignore_index=True)


def lesions_of(splits: pd.DataFrame, image_ids: Sequence[str]) -> np.ndarray:
    """Return the lesion of each image, shape (N,); an image without a lesion id stands for itself."""
    rows = splits.set_index("image_id", drop=False).loc[list(image_ids)]
    return rows["lesion_id"].where(rows["lesion_id"].notna(), rows["image_id"]).to_numpy(dtype=object)


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


def group_lesions(table: pd.DataFrame, hashes: pd.DataFrame | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Give each image without lesion id that of its near-duplicates; return the table and each row's group number.

    Without a near-duplicate that has an id, the id is "dup:" and the first image id of the group. Pairs of images
    that both have a lesion id are left as they are: there the id is the better witness.
    """
    missing = table["lesion_id"].isna().to_numpy()
    n = len(table)
    left, right = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    if missing.any() and hashes is not None:
        left, right = near_duplicates(hashes.set_index("image_id")["hash"].loc[table["image_id"]], among=missing)
    # A graph with a node per image and one per lesion: its connected components are the groups.
    lesion, names = pd.factorize(table["lesion_id"])
    known = np.flatnonzero(~missing)
    rows, columns = np.concatenate([known, left]), np.concatenate([n + lesion[known], right])
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(n + len(names),) * 2)
    group = connected_components(graph, directed=False)[1][:n]

    first = table.groupby(group)[["image_id", "lesion_id"]].transform("first")  # the first that is known
    found = first["lesion_id"].where(first["lesion_id"].notna(), DUPLICATE_PREFIX + first["image_id"])
    table = table.assign(lesion_id=table["lesion_id"].where(~missing, found))
    mixed = table.groupby(group)["label"].nunique()
    if (mixed > 1).any():
        examples = [table["image_id"][group == number].tolist()[:3] for number in mixed.index[mixed > 1][:3]]
        warnings.warn(
            f"{(mixed > 1).sum()} groups of near-duplicates have more than one diagnosis, such as {examples}; "
            "each is kept in one split, but one of its labels may be wrong.",
            stacklevel=2,
        )
    return table, group


def _assign(table: pd.DataFrame, group: np.ndarray, seed: int) -> np.ndarray:
    """Give each group a split: in each stratum, the largest group first, to the split that is emptiest for its size.

    So each split also has its part of the lesions with many photographs. On the full CSV, each stratum (diagnosis ×
    source) of 100 images or more is within 0.8 points of 70/15/15, against 5.1 for scikit-learn's
    StratifiedGroupKFold in 20 folds, which moreover depends on the order of the rows.
    """
    groups = table.groupby(group).agg(
        name=("lesion_id", "first"), size=("image_id", "size"), label=("label", "first"), source=("source", "first")
    )
    # A hash of seed and name orders groups of one size: no generator's stream, which may change with its library.
    groups["order"] = [hashlib.sha256(f"{seed}:{name}".encode()).hexdigest() for name in groups["name"]]
    groups = groups.sort_values(["size", "order"], ascending=[False, True])
    # The first lesion of a stratum goes to train, the second to val: many small ones would leave nothing for test.
    n_alike = groups.groupby(["label", "source"])["size"].transform("count")
    groups["source"] = groups["source"].where(n_alike >= MIN_STRATUM_LESIONS, "")
    fractions = np.array([FRACTIONS[split] for split in SPLITS])
    chosen: dict[Any, int] = {}
    for _, stratum in groups.groupby(["label", "source"], sort=True):
        filled = np.zeros(len(SPLITS))
        for number, size in zip(stratum.index, stratum["size"], strict=True):
            best = int(np.argmin(filled / fractions))
            filled[best] += size
            chosen[number] = best
    return np.array(SPLITS, dtype=object)[[chosen[number] for number in group]]


def _original_splits(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Reproduce `random_split(ImageFolder(...), [0.7, 0.15, rest])` of the reference system, image by image."""
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
