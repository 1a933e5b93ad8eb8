"""The dataset that a DataLoader reads: resized images, augmented the same way each time."""

import math
import signal
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset


class LesionDataset(TorchDataset[dict[str, Any]]):
    """Rows {"pixels" uint8 (S, S, 3), "label"} for a DataLoader; `model.normalise` makes a batch pixel_values.

    Augmentation depends on (seed, epoch, index) alone, so that a resumed run, and a run on more processes, sees the same
    pixels. Call `set_epoch` before each epoch (accelerate's loaders do).
    """

    def __init__(
        self,
        pixels: datasets.Dataset,
        labels: Sequence[int],
        *,
        augmentation: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        """Take the pixels (`LoadedImages.pixels`) and labels of one split; without `augmentation` the images stay as they are."""
        self.pixels = pixels.with_format(
            "arrow", columns=["pixels"]
        )  # rows stay in the file that is mapped into memory
        self.image_ids: list[str] = pixels["image_id"][:]
        self.labels = list(labels)
        self.augmentation = augmentation
        self.seed = seed
        # Shared with loader processes, which live from one epoch to the next.
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def image(self, index: int) -> np.ndarray:
        """Return one image without augmentation, uint8 (S, S, 3), read-only."""
        data = np.frombuffer(self.pixels[index]["pixels"][0].as_buffer(), dtype=np.uint8)
        side = math.isqrt(len(data) // 3)
        return data.reshape(side, side, 3)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.image(index)
        if self.augmentation is None:
            pixels = np.array(image)
        else:
            pixels = self.augmentation(image, np.random.default_rng((self.seed, self.epoch, index)))
        return {"pixels": torch.from_numpy(pixels), "label": self.labels[index]}


def leave_signals_to_the_trainer(_worker: int) -> None:
    """Ignore SIGTERM and SIGINT in a loader process; the main process shuts it down."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
