"""Images decoded and resized once into a cache.

The cache is one flat file of uint8 pixels, memory-mapped, so memory stays flat however many images there are and
workers share its pages. Its key covers the data, the size and this file's version; it is built under another name, so
that it is whole or not there, and one of another size is made again. Several processes may ask for the same cache: one
builds it under a file lock while the others wait.
"""

import hashlib
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from modeling.images import ImageError, decode_image

logger = logging.getLogger(__name__)

CACHE_VERSION = 3
DEFAULT_CACHE_DIR = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skin-lesion-classifier"


class CacheError(RuntimeError):
    """The cache cannot be built, with the reason and what to do."""


def resized_images(
    dataset: Dataset,
    *,
    fingerprint: str,
    size_px: int,
    exact: bool,
    cache_gb: float,
    cache_dir: Path = DEFAULT_CACHE_DIR,
    show_progress: bool = True,
) -> "ResizedImages":
    """Decode every image once and keep it squashed to S x S pixels.

    Args:
        dataset: With the columns `image` and `image_id`.
        fingerprint: Of the data it comes from; a change of it makes a new cache.
        size_px: Side S.
        exact: Decode at full size, as prediction does (val and test); otherwise JPEGs are decoded at reduced size.
        cache_gb: Bound on the cache folder in gigabytes; the caches used longest ago are deleted to keep to it. 0: no
            cache, every image is decoded each time it is asked for.
        cache_dir: Where caches lie.
        show_progress: Show a progress bar while building.

    Raises:
        CacheError: If the cache does not fit its bound or the disk, or cannot be read or written.
        ImageError: If an image cannot be read.
    """
    source = dataset.select_columns(["image", "image_id"]).cast_column("image", datasets.Image(decode=False))
    if cache_gb <= 0:
        return ResizedImages(source, size_px=size_px, exact=exact, pixels=None)
    shape = (len(dataset), size_px, size_px, 3)
    key = hashlib.sha256(
        "\n".join([str(CACHE_VERSION), fingerprint, str(size_px), str(exact), *dataset["image_id"]]).encode()
    ).hexdigest()[:24]
    path = cache_dir / f"{key}.pixels"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock"):
            if not _is_whole(path, shape):
                _build(source, path, shape, exact=exact, bound=int(cache_gb * 1e9), show_progress=show_progress)
            os.utime(path)
            pixels = np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    except OSError as error:
        raise CacheError(
            f"the image cache {path} cannot be used: {error}. Delete it, or do without it with --image_cache_gb 0."
        ) from error
    return ResizedImages(source, size_px=size_px, exact=exact, pixels=pixels)


def _make_room(cache_dir: Path, *, needed: int, bound: int) -> None:
    """Delete the caches used longest ago until the new one fits the bound; say so if it cannot."""
    hint = "lower --image_size, raise --image_cache_gb, or switch the cache off with --image_cache_gb 0"
    if needed > bound:
        raise CacheError(f"the image cache needs {needed / 1e9:.1f} GB and its bound is {bound / 1e9:.1f} GB; {hint}.")
    by_age = sorted(cache_dir.glob("*.pixels"), key=lambda file: file.stat().st_mtime)
    while by_age and sum(file.stat().st_size for file in by_age) + needed > bound:
        by_age.pop(0).unlink()  # a run that still has it mapped keeps its pages until it ends
    free = shutil.disk_usage(cache_dir).free
    if needed > free:
        raise CacheError(f"the image cache needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB; {hint}.")


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """True if there is a cache of the right size; says so if there is one of another."""
    if not path.exists():
        return False
    found, expected = path.stat().st_size, int(np.prod(shape))
    if found != expected:
        logger.warning(f"the image cache {path} has {found} bytes, not {expected}; it is made again.")
    return found == expected


def _build(
    source: Dataset, path: Path, shape: tuple[int, ...], *, exact: bool, bound: int, show_progress: bool
) -> None:
    """Decode every image into a file under another name, and give it its own when it is whole."""
    partial = path.with_suffix(".partial")
    n_bytes = int(np.prod(shape))
    path.unlink(missing_ok=True)
    partial.unlink(missing_ok=True)  # of a build that was killed
    _make_room(path.parent, needed=n_bytes, bound=bound)
    _reserve(partial, n_bytes)
    pixels = np.memmap(partial, dtype=np.uint8, mode="r+", shape=shape)

    def fill(index: int) -> None:
        pixels[index] = _read(source, index, shape[1], exact=exact)

    with (
        ThreadPoolExecutor(max_workers=max(torch.get_num_threads(), 1)) as pool,
        tqdm(total=shape[0], desc="resizing", unit="image", disable=not show_progress) as bar,
    ):
        for _ in pool.map(fill, range(shape[0])):
            bar.update()
    pixels.flush()
    partial.rename(path)


def _reserve(path: Path, size: int) -> None:
    """Make a file of zeros that has its blocks on the disk, where the system can do that.

    A process that writes to the map of a file for which the disk has no room is killed without a word.
    """
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _read(source: Dataset, index: int, size_px: int, *, exact: bool) -> np.ndarray:
    """Decode one image and squash it to uint8 (S, S, 3)."""
    row = source[index]
    content = row["image"]["bytes"] or row["image"]["path"]
    try:
        image = decode_image(content, min_side_px=None if exact else 2 * size_px)
    except ImageError as error:
        raise ImageError(f"{row['image_id']}: {error}") from error
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC))


class ResizedImages:
    """Images squashed to S x S, from the cache or decoded on demand: `images[i]` is uint8 (S, S, 3)."""

    def __init__(self, source: Dataset, *, size_px: int, exact: bool, pixels: np.ndarray | None) -> None:
        self.source = source
        self.size_px = size_px
        self.exact = exact
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> np.ndarray:
        if self.pixels is not None:
            return self.pixels[index]
        return _read(self.source, index, self.size_px, exact=self.exact)
