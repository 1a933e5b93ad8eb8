"""From a data set to batches: images decoded and resized once into a cache, augmentation that can be repeated exactly.

The cache is one flat file of uint8 pixels, memory-mapped, so memory stays flat however many images there are and
workers share its pages. After the pixels stands a checksum of each image: at every start, images that are damaged or were
never finished are decoded again. The file's key covers the data, the size and this file's version. Several processes may
ask for the same cache: one builds it under a file lock while the others wait; a killed build goes on where it stopped.
"""

import hashlib
import logging
import os
import shutil
import signal
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
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

logger = logging.getLogger(__name__)

CACHE_VERSION = 2
CHECKSUM_BYTES = 4
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
            pixels = _mapped(path, shape, mode="r")[0]
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


def _file_bytes(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) + CHECKSUM_BYTES * shape[0]


def _mapped(path: Path, shape: tuple[int, ...], *, mode: Literal["r", "r+"]) -> tuple[np.memmap, np.memmap]:
    """Return the pixels (N, S, S, 3) and the checksums (N,) of a cache file."""
    pixels = np.memmap(path, dtype=np.uint8, mode=mode, shape=shape)
    return pixels, np.memmap(path, dtype="<u4", mode=mode, shape=shape[:1], offset=pixels.nbytes)


def _unfinished(pixels: np.ndarray, checksums: np.ndarray) -> list[int]:
    """Return the indices of the images that do not agree with their checksum; never-written ones do not either."""
    return [index for index, image in enumerate(pixels) if zlib.crc32(image) != checksums[index]]


def _is_whole(path: Path, shape: tuple[int, ...]) -> bool:
    """True if there is a cache and nothing in it is damaged; says so if something is. 4 GB are checked in a second."""
    if not path.exists():
        return False
    if path.stat().st_size != _file_bytes(shape):
        logger.warning(
            f"the image cache {path} has {path.stat().st_size} bytes, not {_file_bytes(shape)}; it is made again."
        )
        return False
    damaged = _unfinished(*_mapped(path, shape, mode="r"))
    if damaged:
        logger.warning(f"the image cache {path} has {len(damaged)} damaged images; they are decoded again.")
    return not damaged


def _build(
    source: Dataset, path: Path, shape: tuple[int, ...], *, exact: bool, bound: int, show_progress: bool
) -> None:
    """Make the file, or go on with what is there of it, under another name until it is whole."""
    partial = path.with_suffix(".partial")
    if path.exists():
        path.replace(partial)
    if not partial.exists() or partial.stat().st_size != _file_bytes(shape):
        partial.unlink(missing_ok=True)
        _make_room(path.parent, needed=_file_bytes(shape), bound=bound)
        _reserve(partial, _file_bytes(shape))
    _fill(source, partial, shape, exact=exact, show_progress=show_progress)
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


def _fill(source: Dataset, partial: Path, shape: tuple[int, ...], *, exact: bool, show_progress: bool) -> None:
    """Decode what is not finished into the partial file, row by row in any order."""
    pixels, checksums = _mapped(partial, shape, mode="r+")

    def fill(index: int) -> None:
        pixels[index] = _read(source, index, shape[1], exact=exact)
        checksums[index] = zlib.crc32(pixels[index])

    todo = _unfinished(pixels, checksums)
    with (
        ThreadPoolExecutor(max_workers=max(torch.get_num_threads(), 1)) as pool,
        tqdm(
            total=shape[0], initial=shape[0] - len(todo), desc="resizing", unit="image", disable=not show_progress
        ) as bar,
    ):
        for _ in pool.map(fill, todo):
            bar.update()
    pixels.flush()
    checksums.flush()


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
            RandomWarp(size_px, scale=(0.6, 1.0), ratio=(0.8, 1.25)),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=list(mean), std=list(std)),
            v2.RandomErasing(p=0.25, scale=(0.02, 0.15)),
        ]
    )


class RandomWarp:
    """Mirror, turn by any angle, crop and resize at random: uint8 (3, S', S') → (3, S, S), black where the picture ends.

    The same as torchvision's RandomHorizontalFlip, RandomVerticalFlip, RandomRotation(180) and RandomResizedCrop one after
    the other, but interpolated once: sharper, and at a fraction of what was most of the augmentation's cost.
    """

    def __init__(self, size_px: int, *, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
        self.size_px = size_px
        self.scale = scale  # of the crop's area to the picture's
        self.ratio = ratio  # of the crop's width to its height

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        side = image.shape[1]
        flip_x, flip_y, turn, scale, ratio, left, top = torch.rand(7).tolist()
        area = self.scale[0] + scale * (self.scale[1] - self.scale[0])
        aspect = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** ratio  # as likely 4:5 as 5:4
        size = np.minimum(np.sqrt([area * aspect, area / aspect]), 1.0) * side
        matrix = warp_matrix(
            2 * np.pi * turn,
            size * [1 if flip_x < 0.5 else -1, 1 if flip_y < 0.5 else -1],
            (np.array([left, top]) - 0.5) * (side - size),
            from_px=side,
            to_px=self.size_px,
        )
        warped = cv2.warpAffine(
            np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
            matrix,
            (self.size_px, self.size_px),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        # Contiguous: the steps that follow are three times as fast then.
        return torch.from_numpy(warped).permute(2, 0, 1).contiguous()


def warp_matrix(angle: float, size: np.ndarray, centre: np.ndarray, *, from_px: int, to_px: int) -> np.ndarray:
    """Return the 2 x 3 matrix that takes pixels (x, y) of the result to where they come from in the picture.

    Args:
        angle: By which the picture is turned clockwise about its middle before the crop, in radians.
        size: Width and height of the crop in pixels; negative to mirror it.
        centre: Of the crop, from the middle of the turned picture, in pixels.
        from_px: Side of the picture.
        to_px: Side of the result.
    """
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag(size / to_px)
    # Pixel (0, 0) has its middle half a pixel from the edge.
    shift = turn @ centre + (from_px - 1) / 2 - linear @ np.full(2, (to_px - 1) / 2)
    return np.column_stack([linear, shift])


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
        # Shared with loader processes, which live on from one epoch to the next.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

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
