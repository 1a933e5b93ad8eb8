"""Splits of lesions, not of images: every photograph of a lesion is in one of train, val and test."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import datasets
import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from modeling.data.duplicates import DUPLICATE_PREFIX, near_duplicates
from modeling.data.folders import GIVEN_NAMES
from modeling.data.problems import DataError
from modeling.data.sources import LoadedImages
from modeling.data.splits_file import COLUMNS, SPLITS, check_no_leakage, load_splits, to_table
from modeling.labels import REFERENCE_CODES

FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
MIN_STRATUM_LESIONS = 20  # of a diagnosis from one source; smaller ones are split together

Protocol = Literal["lesion", "original", "given"]
Table: TypeAlias = datasets.Dataset | pd.DataFrame
logger = logging.getLogger(__name__)


def splits_of(options: Any, dataset: datasets.Dataset, codes: list[str], loaded: LoadedImages) -> pd.DataFrame:
    """Make the splits of a run, or read those that --splits names; train and val must have each diagnosis.

    `options` are `TrainOptions`; `dataset` holds the images of the run's diagnoses, `loaded` all images.
    """
    if options.splits:
        splits = read_splits(options.splits, dataset, hashes=loaded.hashes, test_source=options.test_source)
    else:
        splits = make_splits(
            dataset,
            protocol=options.protocol,
            diagnoses=codes,
            seed=options.seed,
            hashes=loaded.hashes,
            given=loaded.given_splits,
        )
    if options.test_source:
        splits = leave_sources_out(splits, options.test_source)
    if options.protocol == "lesion":
        check_no_leakage(splits)
    counts = pd.crosstab(splits["label"], splits["split"]).reindex(index=codes, columns=list(SPLITS), fill_value=0)
    empty = [f"{code} in {split}" for code in codes for split in ("train", "val") if counts.loc[code, split] == 0]
    empty += [] if counts["test"].any() else ["any diagnosis in test"]
    if empty:
        raise DataError(
            f"no image of {', '.join(empty)}: the model could not be trained, chosen or scored. Add images, or leave the "
            "diagnosis out with --diagnoses."
        )
    return splits


def diagnoses_of(options: Any, dataset: datasets.Dataset) -> list[str]:
    """Return the codes to distinguish; a dataset without images of each of the default four is used whole."""
    names, labels = dataset.features["label"].names, set(dataset["label"][:])
    present = {name for number, name in enumerate(names) if number in labels}
    whole = options.diagnoses == list(REFERENCE_CODES) and not set(REFERENCE_CODES) <= present
    return ["all"] if whole else list(options.diagnoses)


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
    """Return one row per image of these diagnoses: image_id, lesion_id, label (code), source, split, patient_id if known.

    Near-duplicates without a lesion id get one, so that `leakage` measures every protocol alike.

    Args:
        dataset: A dataset in the columns of the contract, or a table of them without pixels.
        protocol: "lesion" keeps lesions, near-duplicates and, where they are known, patients together, stratified by diagnosis
            and source (small sources as one), 70/15/15; "original" is the reference system's random split of images, kept only
            for comparison: it leaks, see `leakage`; "given" is the dataset's own, as it is.
        diagnoses: Codes to keep.
        seed: Other seeds give other splits; the order of the rows does not matter.
        hashes: Perceptual hashes of the images (`load_images`); without them, each image without lesion id is a lesion.
        given: The dataset's own split of each image, by image id (`load_images`).
    """
    table = to_table(dataset)
    table = table[table["label"].isin(list(diagnoses))].sort_values("image_id", ignore_index=True)
    if table.empty:
        raise DataError(f"no image has a diagnosis of {list(diagnoses)}; nothing to split.")
    table, group = group_lesions(table, hashes)
    if protocol == "original":
        table["split"] = _original_splits(table, seed)
    elif protocol == "given":
        table["split"] = _given_splits(table["image_id"], given or {})
    else:
        table["split"] = _assign(table, group, seed)
    return table.filter(items=[*COLUMNS, "patient_id"])


def _given_splits(image_ids: pd.Series, given: Mapping[str, str]) -> list[str]:
    own = sorted(set(given.values()))
    if {GIVEN_NAMES.get(name.lower()) for name in own} != set(SPLITS):
        raise DataError(
            f"--protocol given needs a dataset with train, validation and test; this one has {', '.join(own) or 'no splits'}. "
            "Use --protocol lesion, which makes them."
        )
    return [GIVEN_NAMES[given[image_id].lower()] for image_id in image_ids]


def leave_sources_out(splits: pd.DataFrame, sources: Sequence[str]) -> pd.DataFrame:
    """Return splits whose test is every image of these sources; of the others, train and val stay as they are.

    The other sources' test images are left out, so that results of all sources are trained on like data.
    """
    if absent := sorted(set(sources) - set(splits["source"])):
        present = ", ".join(f"{name} {n}" for name, n in splits["source"].value_counts().items())
        raise DataError(f"no image is of source {', '.join(absent)}; the splits have {present}.")
    in_test = splits["source"].isin(list(sources))
    kept = splits[in_test | (splits["split"] != "test")]
    kept = kept.assign(split=kept["split"].where(~in_test, "test"))
    # A group of near-duplicates, or a patient, may have several sources: what is in test may not be trained on.
    for column in ("lesion_id", "patient_id"):
        if column in kept:
            tested = kept["split"] == "test"
            kept = kept[tested | ~kept[column].isin(kept[column][tested].dropna())]
    return kept.reset_index(drop=True)


def read_splits(
    path: str | Path, dataset: Table, *, hashes: pd.DataFrame | None = None, test_source: Sequence[str] = ()
) -> pd.DataFrame:
    """Read splits.csv, check that it is about exactly these images and labels, and take the lesions from the data.

    Args:
        path: A file of `write_splits`.
        dataset: The dataset to split, already reduced to the diagnoses of the run.
        hashes: Perceptual hashes of the images: near-duplicates without a lesion id are one lesion, whatever the file says.
        test_source: Images of other sources may be missing then: `leave_sources_out` leaves their test images out.

    Returns:
        The splits, with patient_id if the data have one; `check_no_leakage` says whether they leak.

    Raises:
        DataError: If a column is missing, images are missing or unknown, or labels or lesion ids differ; with counts.
    """
    splits = load_splits(path)
    table = to_table(dataset)
    given, wanted = set(splits["image_id"]), set(table["image_id"])
    needed = set(table["image_id"][table["source"].isin(list(test_source))]) if test_source else wanted
    both = splits.drop_duplicates("image_id").merge(table, on="image_id", suffixes=("", "_data"))
    other_lesion = both["lesion_id_data"].notna() & (both["lesion_id_data"] != both["lesion_id"])
    wrong = [
        f"{len(ids)} {what}, such as {', '.join(sorted(ids)[:5])}"
        for ids, what in (
            (needed - given, "images of the data have no row"),
            (given - wanted, "rows name images that the data do not have"),
            (set(both["image_id"][both["label"] != both["label_data"]]), "labels differ from the data"),
            (set(both["image_id"][other_lesion]), "lesion ids differ from the data"),
            (set(splits["image_id"][splits["image_id"].duplicated()]), "images have more than one row"),
        )
        if ids
    ]
    if wrong:
        raise DataError(
            f"{path} does not belong to these data: {'; '.join(wrong)}. "
            "Use the data, --diagnoses and --test_source that it was made with, or leave --splits out to make new splits."
        )
    if hashes is None:
        return splits
    table, _ = group_lesions(table.sort_values("image_id", ignore_index=True), hashes)
    return table.merge(splits[["image_id", "split"]], on="image_id").filter(items=[*COLUMNS, "patient_id"])


def lesions_of(splits: pd.DataFrame, image_ids: Sequence[str]) -> np.ndarray:
    """Return the lesion of each image, shape (N,); an image without a lesion id is a lesion."""
    rows = splits.set_index("image_id", drop=False).loc[list(image_ids)]
    return rows["lesion_id"].where(rows["lesion_id"].notna(), rows["image_id"]).to_numpy(dtype=object)


def group_lesions(table: pd.DataFrame, hashes: pd.DataFrame | None) -> tuple[pd.DataFrame, np.ndarray]:
    """Give each image without lesion id that of its near-duplicates; return the table and each row's group number.

    Without a near-duplicate that has an id, the id is "dup:" and the first image id of the group. Pairs of images that both
    have a lesion id are left as they are: there the ids are trusted over the hash. A group is what must share a split: lesions
    that near-duplicates or a patient connect.
    """
    missing = table["lesion_id"].isna().to_numpy()
    pairs = (np.empty(0, np.int64), np.empty(0, np.int64))
    if missing.any() and hashes is not None:
        digits = hashes.set_index("image_id")["hash"].loc[table["image_id"]].tolist()
        pairs = near_duplicates(digits, np.flatnonzero(missing))
    group = _join(table[["lesion_id"]], pairs)
    first = table.groupby(group)[["image_id", "lesion_id"]].transform("first")  # the first that is known
    found = first["lesion_id"].where(first["lesion_id"].notna(), DUPLICATE_PREFIX + first["image_id"])
    table = table.assign(lesion_id=table["lesion_id"].where(~missing, found))
    n_labels = table.groupby("lesion_id")["label"].nunique()
    if mixed := n_labels.index[n_labels > 1].tolist():
        logger.warning(
            f"{len(mixed)} lesions have images of more than one diagnosis, such as {', '.join(mixed[:3])}; each stays in one "
            "split, but at least one label is probably wrong."
        )
    return table, _join(table.filter(items=["lesion_id", "patient_id"]), pairs)


def _join(keys: pd.DataFrame, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Return each row's group number (N,): rows that share a key or are a pair are in one; blank keys join nothing."""
    # A graph with a node per row and one per key: its connected components are the groups.
    first, second, size = [pairs[0]], [pairs[1]], len(keys)
    for column in keys:
        key, names = pd.factorize(keys[column])  # -1: blank
        known = np.flatnonzero(key >= 0)
        first.append(known)
        second.append(size + key[known])
        size += len(names)
    edges = np.concatenate(first), np.concatenate(second)
    graph = coo_matrix((np.ones(len(edges[0])), edges), shape=(size, size))
    joined: np.ndarray = connected_components(graph, directed=False)[1]
    return joined[: len(keys)]


def _assign(table: pd.DataFrame, group: np.ndarray, seed: int) -> np.ndarray:
    """Give each group a split: in each stratum, the largest group first, to the split that is emptiest for its size.

    So each split also has its part of the lesions with many photographs. On the full CSV, each stratum (diagnosis ×
    source) of 100 images or more is within 0.8 points of 70/15/15, against 5.1 for scikit-learn's
    StratifiedGroupKFold in 20 folds, which also depends on the order of the rows.
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


def _original_splits(table: pd.DataFrame, seed: int) -> np.ndarray:
    """Reproduce `random_split(ImageFolder(...), [0.7, 0.15, rest])` of the reference system, image by image."""
    files = (table["image_id"] + ".jpg").to_numpy(dtype=str)
    place = np.lexsort((files, table["label"].to_numpy(dtype=str)))  # as an ImageFolder sorts
    n = len(table)
    order = place[torch.randperm(n, generator=torch.Generator().manual_seed(seed)).numpy()]
    n_train, n_val = int(0.7 * n), int(0.15 * n)
    split = np.full(n, "test", dtype=object)
    split[order[:n_train]] = "train"
    split[order[n_train : n_train + n_val]] = "val"
    return split
