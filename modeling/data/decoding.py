"""Each image decoded once: checked to its last byte, hashed, and resized to the network's input."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import imagehash
import numpy as np
from PIL import Image

from modeling.files import file_sha256
from modeling.images import ImageError, decode_image
from modeling.preprocessing import squash
from modeling.runtime import own_cores

DECODING_VERSION = 2  # of what `decode_images` caches
BATCH_ROWS = 64  # decoded, and held in memory, at once
# pHash with 16 × 16 = 256 bits: most lesions are a dark spot in the middle, which the usual 64 bits cannot distinguish.
HASH_SIDE = 16
_FEATURES = datasets.Features(
    {name: datasets.Value("string") for name in ("problem", "hash", "sha256")} | {"pixels": datasets.Value("binary")}
)


def decode_images(images: datasets.Dataset, *, size_px: int | None = None) -> datasets.Dataset:
    """Decode every image of the column `image`, in the same order.

    `datasets` caches the result beside the dataset and maps it into memory: a second run decodes nothing, memory stays flat,
    and processes share its pages.

    Args:
        images: Its cache key must change when the content of an image changes.
        size_px: Side S of the network's input; None keeps no pixels.

    Returns:
        problem, why the image cannot be read (empty if it can); perceptual hash; SHA-256 of the file; and pixels, S * S * 3
        bytes of RGB, squashed to a square as prediction does.
    """
    stored = images.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    return stored.map(
        _decode_batch,
        batched=True,
        batch_size=BATCH_ROWS,
        writer_batch_size=BATCH_ROWS,
        remove_columns=["image"],
        features=_FEATURES,
        fn_kwargs={"size_px": size_px, "version": DECODING_VERSION},
        desc="decoding images",
    )


def _decode_batch(batch: dict[str, list[Any]], size_px: int | None, version: int) -> dict[str, list[Any]]:
    # Pillow releases the interpreter while it decodes, so threads use every core.
    with ThreadPoolExecutor(own_cores()) as pool:
        rows = list(pool.map(lambda image: _decode(image, size_px), batch["image"]))
    return dict(zip(_FEATURES, map(list, zip(*rows, strict=True)), strict=True))


def _decode(image: dict[str, Any] | None, size_px: int | None) -> tuple[str, str, str, bytes]:
    content = (image["path"] if image["bytes"] is None else image["bytes"]) if image else b""
    try:
        decoded = decode_image(content)
        sha256 = file_sha256(Path(content)) if isinstance(content, str) else hashlib.sha256(content).hexdigest()
    except (ImageError, OSError) as error:
        return str(error), "", "", b""
    pixels = squash(decoded, size_px).tobytes() if size_px else b""
    return "", perceptual_hash(decoded), sha256, pixels


def perceptual_hash(image: Image.Image) -> str:
    """Return the perceptual hash (pHash) of an RGB image, as hexadecimal digits."""
    # Halved, as a JPEG decoder would, while both sides keep the 4 * HASH_SIDE pixels that pHash uses: a fifth of the time.
    factor = 1 << max(0, min(3, (min(image.size) // (4 * HASH_SIDE)).bit_length() - 1))
    bits = imagehash.phash(image.reduce(factor), hash_size=HASH_SIDE).hash.reshape(-1)  # (256,) bool
    return np.packbits(bits).tobytes().hex()
