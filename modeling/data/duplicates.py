"""Near-duplicates by perceptual hash: photographs saved again, shrunk or copied between archives."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import datasets
import imagehash
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from modeling.images import decode_image

# pHash with 16 × 16 = 256 bits: most lesions are a dark blot in the middle, which the usual 64 bits cannot tell apart.
# Measured on the 10,015 images of HAM10000, 50 million pairs: at most 32 of 256 bits differ in 113 pairs of one lesion
# and in 1 pair of two lesions (which shows the same spot and hair: its ids are wrong); with 64 bits and 4 differing,
# 109 and 322. The 80 originals at hand differ from their small, saved-again copies in at most 14 bits.
HASH_SIDE = 16
MAX_HASH_DISTANCE = 32
HASH_BLOCK_ROWS = 256  # bounds the memory of the pairwise comparison: 256 × 25,000 × 8 bytes ≈ 50 MB


def perceptual_hashes(dataset: datasets.Dataset, image_ids: Sequence[str] | pd.Series) -> np.ndarray:
    """Return the perceptual hash (pHash) of each image, shape (N, 4) of uint64, in the order of image_ids."""
    stored = dataset.cast_column("image", datasets.Image(decode=False))
    position = {image_id: index for index, image_id in enumerate(dataset["image_id"][:])}
    indices = [position[image_id] for image_id in image_ids]

    def hash_of(index: int) -> np.ndarray:
        image = stored[index]["image"]
        # pHash shrinks to 4 × HASH_SIDE pixels itself, so a JPEG need not be decoded larger than that.
        small = decode_image(image["bytes"] or image["path"], min_side_px=4 * HASH_SIDE)
        return imagehash.phash(small, hash_size=HASH_SIDE).hash.reshape(-1)  # (256,) bool

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashed = pool.map(hash_of, indices)
        bits = list(tqdm(hashed, total=len(indices), desc="looking for near-duplicates", unit="image"))
    return np.packbits(np.stack(bits), axis=1).view(np.uint64)


def near_duplicates(hashes: np.ndarray, *, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return index pairs (left, right) of hashes at most MAX_HASH_DISTANCE bits apart, shape (P,) each.

    Args:
        hashes: Shape (N, 4), as of `perceptual_hashes`.
        among: True where an image may stand on the left, shape (N,).
    """
    asked = np.flatnonzero(among)
    left, right = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for start in range(0, len(asked), HASH_BLOCK_ROWS):
        block = asked[start : start + HASH_BLOCK_ROWS]
        distance = np.zeros((len(block), len(hashes)), dtype=np.uint16)  # (B, N)
        for word in hashes.T:
            distance += np.bitwise_count(word[block, None] ^ word[None, :])
        row, column = np.nonzero(distance <= MAX_HASH_DISTANCE)
        keep = block[row] != column
        row, column = row[keep], column[keep]
        left.append(block[row])
        right.append(column)
    return np.concatenate(left), np.concatenate(right)
