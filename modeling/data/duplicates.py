"""Near-duplicates by perceptual hash: photographs saved again, shrunk or copied between archives.

hashes = hash_images(dataset)                                   # a table of image_id, lesion_id and hash
write_hashes(hashes, folder / HASHES_NAME)                      # beside splits.csv in a model folder
known = read_hashes(folder / HASHES_NAME)
both = find_known(hash_images(external), known)                 # which images of one are in the other, and why
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from modeling.data.problems import DataError
from modeling.images import decode_image

# pHash with 16 × 16 = 256 bits: most lesions are a dark blot in the middle, which the usual 64 bits cannot tell apart.
# Measured on the 10,015 images of HAM10000, 50 million pairs: at most 32 of 256 bits differ in 113 pairs of one lesion
# and in 1 pair of two lesions (which shows the same spot and hair: its ids are wrong); with 64 bits and 4 differing,
# 109 and 322. The 80 originals at hand differ from their small, saved-again copies in at most 14 bits.
HASH_SIDE = 16
HASH_DIGITS = HASH_SIDE**2 // 4  # of the hexadecimal number that stands for a hash
MAX_HASH_DISTANCE = 32
HASH_BLOCK_ROWS = 256  # bounds the memory of the pairwise comparison: 256 × 25,000 × 8 bytes ≈ 50 MB

HASHES_NAME = "image_hashes.csv"  # in a model folder, beside splits.csv
MAX_HASHES_BYTES = 200_000_000  # 2 million images
COLUMNS = ("image_id", "lesion_id", "hash")
DUPLICATE_PREFIX = "dup:"  # of the lesion ids that are made from near-duplicates
GENERATED_ID = r"(?:\w+)-\d{6}"  # ids that `sources` makes of split and row: those of two datasets mean nothing

SAME_IMAGE_ID, SAME_LESION_ID, NEAR_DUPLICATE = "image id", "lesion id", "near-duplicate"


def hash_images(dataset: datasets.Dataset) -> pd.DataFrame:
    """Return image_id, lesion_id (None where unknown) and hash of each image; `load_images` has them without decoding anew."""
    stored = dataset.cast_column("image", datasets.Image(decode=False))["image"]

    def hash_of(index: int) -> str:
        image = stored[index]
        return perceptual_hash(decode_image(image["bytes"] or image["path"], min_side_px=4 * HASH_SIDE))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashed = pool.map(hash_of, range(len(dataset)))
        hashes = list(tqdm(hashed, total=len(dataset), desc="looking for near-duplicates", unit="image"))
    return pd.DataFrame({**{name: dataset[name][:] for name in ("image_id", "lesion_id")}, "hash": hashes})


def perceptual_hash(image: Image.Image) -> str:
    """Return the perceptual hash (pHash) of an image of at least 4 × HASH_SIDE pixels a side, as hexadecimal digits."""
    bits = imagehash.phash(image, hash_size=HASH_SIDE).hash.reshape(-1)  # (256,) bool
    return np.packbits(bits).tobytes().hex()


def find_known(images: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Find which images are among the known ones: image_id, known_id and reason, a row for each image that is.

    The reason is the first that holds: "image id" (the same, and not one that was made of split and row), "lesion id"
    (another photograph of a known lesion; ids that were made from near-duplicates do not count) or "near-duplicate".

    Args:
        images: image_id, lesion_id and hash, as of `hash_images`; N rows.
        known: The same of the dataset to compare with, such as the training images of a model (`read_hashes`).
    """
    own_ids = images["image_id"].where(~images["image_id"].str.fullmatch(GENERATED_ID))
    own_lesions = images["lesion_id"].where(~images["lesion_id"].astype("string").str.startswith(DUPLICATE_PREFIX))
    first_of_lesion = known.dropna(subset="lesion_id").drop_duplicates("lesion_id").set_index("lesion_id")["image_id"]
    same_id = own_ids.where(own_ids.isin(known["image_id"]))
    same_lesion = own_lesions.map(first_of_lesion)

    n = len(images)
    stacked = pd.concat([images["hash"], known["hash"]])
    left, right = near_duplicates(stacked, among=np.arange(len(stacked)) < n)
    across = right >= n
    look_alike = pd.Series(known["image_id"].to_numpy()[right[across] - n], index=left[across])
    look_alike = look_alike[~look_alike.index.duplicated()].reindex(range(n)).set_axis(images.index)

    found = pd.DataFrame({"image_id": images["image_id"], "known_id": None, "reason": None}, dtype=object)
    for reason, match in (
        (NEAR_DUPLICATE, look_alike), (SAME_LESION_ID, same_lesion), (SAME_IMAGE_ID, same_id),
    ):  # fmt: skip
        hit = match.notna()
        found.loc[hit, "known_id"], found.loc[hit, "reason"] = match[hit], reason
    return found.dropna(subset="reason").reset_index(drop=True)


def write_hashes(hashes: pd.DataFrame, path: Path) -> None:
    """Write image_hashes.csv, sorted by image id."""
    hashes[list(COLUMNS)].sort_values("image_id").to_csv(path, index=False, lineterminator="\n")


def read_hashes(path: Path) -> pd.DataFrame:
    """Read image_hashes.csv, which a stranger may have written.

    Raises:
        DataError: If it is no such table.
    """
    try:
        if path.stat().st_size > MAX_HASHES_BYTES:
            raise ValueError(f"it is larger than {MAX_HASHES_BYTES // 10**6} MB")
        with path.open(encoding="utf-8") as file:  # a name alone pandas would also download or unpack
            hashes = pd.read_csv(file, dtype=str, keep_default_na=False, usecols=list(COLUMNS))[list(COLUMNS)]
        if not hashes["hash"].str.fullmatch(f"[0-9a-f]{{{HASH_DIGITS}}}").all():
            raise ValueError(f"a hash is not {HASH_DIGITS} hexadecimal digits")
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no table of {', '.join(COLUMNS)} ({str(error)[:300]}).") from error
    hashes["lesion_id"] = hashes["lesion_id"].astype(object).where(hashes["lesion_id"] != "", None)
    return hashes


def near_duplicates(hashes: pd.Series, *, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return index pairs (left, right) of hashes at most MAX_HASH_DISTANCE bits apart, shape (P,) each.

    Args:
        hashes: As of `hash_images`, N of them.
        among: True where an image may stand on the left, shape (N,).
    """
    words = np.frombuffer(bytes.fromhex("".join(hashes)), dtype=np.uint64).reshape(-1, HASH_SIDE**2 // 64)  # (N, 4)
    asked = np.flatnonzero(among)
    left, right = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start in range(0, len(asked), HASH_BLOCK_ROWS):
        block = asked[start : start + HASH_BLOCK_ROWS]
        distance = np.zeros((len(block), len(words)), dtype=np.uint16)  # (B, N)
        for word in words.T:
            distance += np.bitwise_count(word[block, None] ^ word[None, :])
        row, column = np.nonzero(distance <= MAX_HASH_DISTANCE)
        keep = block[row] != column
        row, column = row[keep], column[keep]
        left.append(block[row])
        right.append(column)
    return np.concatenate(left), np.concatenate(right)
