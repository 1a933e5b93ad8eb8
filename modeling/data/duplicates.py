"""Images that two datasets share: copied, re-encoded or resized photographs, and photographs of one lesion.

write_hashes(loaded.hashes, folder / HASHES_NAME)               # beside splits.csv in a model folder
found = find_known(external.hashes, read_hashes(folder / HASHES_NAME))  # which images of one are in the other, and why
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from modeling.data.decoding import HASH_SIDE
from modeling.data.problems import DataError
from modeling.data.tables import read_table

# Measured on the 10,015 images of HAM10000, 50 million pairs: at most 32 of 256 bits differ in 113 pairs of one lesion
# and in 1 pair of two lesions (which shows the same spot and hair: its ids are wrong); with 64 bits and 4 differing,
# 109 and 322. Of 108 originals and their small, re-encoded copies at most 24 bits differ.
MAX_HASH_DISTANCE = 32
HASH_DIGITS = HASH_SIDE**2 // 4  # hexadecimal digits of a hash
BLOCK_PAIRS = 2**24  # compared at once: 200 MB, however many images there are
MAX_PAIRS_EACH = 10  # kept, of an image on average

COLUMNS = ("image_id", "lesion_id", "hash", "sha256")
DUPLICATE_PREFIX = "dup:"  # of the lesion ids that are made from near-duplicates
# Ids of the ISIC archive mean the same image or lesion in every dataset; "7" or "MEL/1.jpg" does not.
ISIC_IMAGE_ID = r"ISIC_\d{7}\w*"
ISIC_LESION_ID = r"(?:BCN|HAM|MSK\d*|IL)_\d{7}"

SAME_FILE, SAME_IMAGE_ID, SAME_LESION_ID, NEAR_DUPLICATE = "same file", "image id", "lesion id", "near-duplicate"


def find_known(images: pd.DataFrame, known: pd.DataFrame, *, same_names: bool | None = None) -> pd.DataFrame:
    """Find which images are among the known ones: image_id, known_id and reason, a row for each image that is.

    The reason is the first that holds: "same file", "image id" (of the ISIC archive), "lesion id" (another photograph of a
    known lesion) or "near-duplicate". Ids made from near-duplicates do not count.

    Args:
        images: image_id, lesion_id, hash and sha256 (`load_images`); N rows.
        known: The same of the dataset to compare with, such as the training images of a model (`read_hashes`).
        same_names: Whether equal lesion ids are the same lesion in both. Default: if the two share a file. Ids of the ISIC
            archive always are.
    """
    if images.empty or known.empty:
        return pd.DataFrame(columns=["image_id", "known_id", "reason"])
    matches = {
        SAME_FILE: _same(images["sha256"].where(images["sha256"] != ""), known, "sha256"),
        SAME_IMAGE_ID: _same(images["image_id"].where(_fully(images["image_id"], ISIC_IMAGE_ID)), known, "image_id"),
    }
    lesions = images["lesion_id"].where(~images["lesion_id"].astype("string").str.startswith(DUPLICATE_PREFIX))
    if not (matches[SAME_FILE].notna().any() if same_names is None else same_names):
        lesions = lesions.where(_fully(lesions, ISIC_LESION_ID))
    matches[SAME_LESION_ID] = _same(lesions, known, "lesion_id")
    blocks = _blocks(_words(images["hash"]), _words(known["hash"]))
    best = [(block.argmin(axis=1), block.min(axis=1)) for _, block in blocks]
    nearest, distance = map(np.concatenate, zip(*best, strict=True))  # both (N,)
    look_alike = pd.Series(known["image_id"].to_numpy(dtype=object)[nearest], index=images.index, dtype=object)
    matches[NEAR_DUPLICATE] = look_alike.where(distance <= MAX_HASH_DISTANCE)

    found = pd.DataFrame({"image_id": images["image_id"], "known_id": None, "reason": None}, dtype=object)
    for reason, match in reversed(matches.items()):
        hit = match.notna()
        found.loc[hit, "known_id"], found.loc[hit, "reason"] = match[hit], reason
    return found.dropna(subset="reason").reset_index(drop=True)


def check_same_images(images: pd.DataFrame, known: pd.DataFrame) -> None:
    """Check that images which have the id of a known one show the same.

    Raises:
        DataError: If some do not, with their number: they are of another dataset with the same names.
    """
    both = images.merge(known, on="image_id", suffixes=("", "_known"))
    both = both[both["sha256"] != both["sha256_known"]]
    distance = np.bitwise_count(_words(both["hash"]) ^ _words(both["hash_known"])).sum(axis=1)
    if others := both["image_id"][distance > MAX_HASH_DISTANCE].tolist():
        raise DataError(
            f"{len(others)} images differ from the model's images of the same name, such as "
            f"{', '.join(others[:3])}. Give the model's own data, or --external to score it on these."
        )


def _fully(ids: pd.Series, pattern: str) -> pd.Series:
    return ids.astype("string").str.fullmatch(pattern).fillna(False).astype(bool)


def _same(values: pd.Series, known: pd.DataFrame, column: str) -> pd.Series:
    """Return the known image id that has each value in this column, None where there is none."""
    first = known[known[column].notna() & (known[column] != "")].drop_duplicates(column)
    return values.map(dict(zip(first[column], first["image_id"], strict=True)))


def _words(hashes: Iterable[str]) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint64).reshape(-1, HASH_SIDE**2 // 64)  # (N, 4)


def _blocks(words: np.ndarray, others: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield how many bits of words (M, 4) and others (N, 4) differ, (B, N), for B words at a time and the first's index."""
    rows = max(1, BLOCK_PAIRS // len(others))
    for start in range(0, len(words), rows):
        block = words[start : start + rows]
        distance = np.zeros((len(block), len(others)), dtype=np.uint16)
        for part, other in zip(block.T, others.T, strict=True):
            distance += np.bitwise_count(part[:, None] ^ other[None, :])
        yield start, distance


def near_duplicates(hashes: Sequence[str], among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of images whose hashes are at most MAX_HASH_DISTANCE bits apart, in bounded memory.

    Args:
        hashes: Perceptual hash of each image, N of them.
        among: Indices of the images, one or more, that are compared with all; pairs of two others are not compared.

    Returns:
        The indices of the first and of the second image of each pair, both (P,). Where very many look alike, fewer pairs that
        connect the same images.
    """
    words, n = _words(hashes), len(hashes)
    first = second = np.empty(0, dtype=np.int64)
    for start, block in _blocks(words[among], words):
        row, column = np.nonzero(block <= MAX_HASH_DISTANCE)
        first, second = np.concatenate([first, among[start + row]]), np.concatenate([second, column])
        if len(first) > MAX_PAIRS_EACH * n:
            graph = coo_matrix((np.ones(len(first), dtype=np.int8), (first, second)), shape=(n, n))
            _, group = connected_components(graph, directed=False)
            first, second = np.arange(n), np.unique(group, return_index=True)[1][group]
    return first, second


def write_hashes(hashes: pd.DataFrame, path: Path) -> None:
    """Write image_hashes.csv, sorted by image id."""
    hashes[list(COLUMNS)].sort_values("image_id").to_csv(path, index=False, lineterminator="\n")


def read_hashes(path: Path) -> pd.DataFrame:
    """Read image_hashes.csv, an untrusted file.

    Raises:
        DataError: If it is not such a table.
    """
    hashes = read_table(path, COLUMNS[:3]).reindex(columns=list(COLUMNS), fill_value="")  # version 0.1 had no sha256
    if not hashes["hash"].str.fullmatch(f"[0-9a-f]{{{HASH_DIGITS}}}").all():
        raise DataError(f"{path}: a hash is not {HASH_DIGITS} hexadecimal digits.")
    hashes["lesion_id"] = hashes["lesion_id"].astype(object).where(hashes["lesion_id"] != "", None)
    return hashes
