"""From a data set to batches: images decoded and resized once into a cache, augmentation that can be repeated exactly.

The cache is one flat file of uint8 pixels, memory-mapped, so memory stays flat however many images there are and
workers share its pages. Its key covers the data, the size and this file's version. Several processes may ask for the
same cache: one builds it under a file lock while the others wait; a killed build goes on where it stopped.
"""

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2
from tqdm import tqdm

from modeling.images import ImageError, decode_image
from modeling.model import eval_transform

CACHE_VERSION = 1
# Training images are kept this much larger than the network's input: random crops then need not enlarge them.
TRAIN_MARGIN = 1.15
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
        CacheError: If the cache does not fit its bound or the disk.
        ImageError: If an image cannot be read.
    """
    source = dataset.select_columns(["image", "image_id"]).cast_column("image", datasets.Image(decode=False))
    if cache_gb <= 0:
        return ResizedImages(source, size_px=size_px, exact=exact, pixels=None)
    shape = (len(dataset), size_px, size_px, 3)
    key = hashlib.sha256(
        "\n".join([str(CACHE_VERSION), fingerprint, str(size_px), str(exact), *dataset["image_id"]]).encode()
    ).hexdigest()[:24]
    cache_dir.mkdir(parents=True, exist_ok=True)
    path = cache_dir / f"{key}.pixels"
    with FileLock(cache_dir / f"{key}.lock"):
        if not path.exists():
            _make_room(cache_dir, needed=int(np.prod(shape)), bound=int(cache_gb * 1e9))
            _build(source, cache_dir / f"{key}.partial", path, shape, exact=exact, show_progress=show_progress)
        os.utime(path)
    return ResizedImages(
        source, size_px=size_px, exact=exact, pixels=np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    )


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


def _build(
    source: Dataset, partial: Path, path: Path, shape: tuple[int, ...], *, exact: bool, show_progress: bool
) -> None:
    """Fill the partial file and rename it when it is whole."""
    done_path = partial.with_suffix(".done")
    _fill(source, partial, done_path, shape, exact=exact, show_progress=show_progress)
    partial.rename(path)
    done_path.unlink()


def _fill(
    source: Dataset, partial: Path, done_path: Path, shape: tuple[int, ...], *, exact: bool, show_progress: bool
) -> None:
    """Decode what is not marked as done into the partial file, row by row in any order."""
    fresh = not (partial.exists() and done_path.exists())
    pixels = np.memmap(partial, dtype=np.uint8, mode="w+" if fresh else "r+", shape=shape)
    done = np.memmap(done_path, dtype=np.bool_, mode="w+" if fresh else "r+", shape=shape[:1])

    def fill(index: int) -> None:
        pixels[index] = _read(source, index, shape[1], exact=exact)
        done[index] = True  # after the pixels: a row that is marked is whole

    todo = np.flatnonzero(~done)
    with (
        ThreadPoolExecutor(max_workers=max(torch.get_num_threads(), 1)) as pool,
        tqdm(
            total=shape[0], initial=shape[0] - len(todo), desc="resizing", unit="image", disable=not show_progress
        ) as bar,
    ):
        for _ in pool.map(fill, todo.tolist()):
            bar.update()
    pixels.flush()


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


def augmentation(size_px: int, mean: Sequence[float], std: Sequence[float]) -> v2.Transform:
    """Dermoscopy-sensible augmentation: uint8 (3, S', S') → pixel_values (3, S, S).

    A lesion has no upright side, its distance and light vary, and hair, rulers or bubbles may hide a part of it. Hue stays,
    because colour is diagnostic; to turn it would also take as long as all the rest.
    """
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomRotation(180, interpolation=v2.InterpolationMode.BILINEAR),
            v2.RandomResizedCrop(size_px, scale=(0.6, 1.0), ratio=(0.8, 1.25), antialias=True),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=list(mean), std=list(std)),
            v2.RandomErasing(p=0.25, scale=(0.02, 0.15)),
        ]
    )


class LesionDataset(TorchDataset):
    """Rows {"pixel_values" (3, S, S), "label", "index"} for a DataLoader.

    Augmentation depends on nothing but (seed, epoch, index), so that a resumed run, and a run on more processes, sees the
    same pixels. Call `set_epoch` before each epoch (accelerate's loaders do).
    """

    def __init__(
        self,
        images: ResizedImages,
        labels: Sequence[int],
        *,
        transform: Callable[[Any], torch.Tensor],
        seed: int | None,
    ) -> None:
        """Take images and labels of one split.

        Args:
            images: Squashed images, N of them.
            labels: N integers.
            transform: uint8 tensor (3, S', S') → pixel_values; see `augmentation` and `plain_transform`.
            seed: Of the augmentation; None for a transform that draws nothing.
        """
        self.images = images
        self.labels = list(labels)
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)  # (3, S', S')
        if self.seed is None:
            pixel_values = self.transform(image)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(mixed_seed(self.seed, self.epoch, index))
                pixel_values = self.transform(image)
        return {"pixel_values": pixel_values, "label": self.labels[index], "index": index}


def plain_transform(pretrained_cfg: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the evaluation preprocessing for an image that is squashed already: the same steps, the resize a no-op."""
    return partial(_transform_tensor, eval_transform(pretrained_cfg))


def _transform_tensor(transform: Callable[[Image.Image], torch.Tensor], image: torch.Tensor) -> torch.Tensor:
    return transform(Image.fromarray(image.permute(1, 2, 0).numpy()))


def mixed_seed(*numbers: int) -> int:
    """Mix numbers into one seed that is unrelated to those of their neighbours."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def leave_signals_to_the_trainer(_worker: int) -> None:
    """Let a loader process ignore SIGTERM and Ctrl-C, which reach the whole group: the trainer ends it in good order."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
