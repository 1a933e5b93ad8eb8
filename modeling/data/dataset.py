"""From resized images to batches: the dataset that a DataLoader reads, augmented the same way each time."""

import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from modeling.data.augmentation import Augmentation
from modeling.data.cache import ResizedImages


class LesionDataset(TorchDataset):
    """Rows {"pixels" uint8 (S, S, 3), "label", "index"} for a DataLoader; `model.normalise` makes a batch pixel_values.

    Augmentation depends on nothing but (seed, epoch, index), so that a resumed run, and a run on more processes, sees the
    same pixels. Call `set_epoch` before each epoch (accelerate's loaders do).
    """

    def __init__(
        self, images: ResizedImages, labels: Sequence[int], *, augmentation: Augmentation | None = None, seed: int = 0
    ) -> None:
        """Take images and labels of one split; without `augmentation`, of this seed, the images stay as they are."""
        self.images = images
        self.labels = list(labels)
        self.augmentation = augmentation
        self.seed = seed
        # Shared with loader processes, which live on from one epoch to the next.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def image_ids(self) -> list[str]:
        return self.images.source["image_id"][:]

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        if self.augmentation is None:
            pixels = np.array(image)  # the cache is a map that nobody may write to
        else:
            pixels = self.augmentation(image, np.random.default_rng((self.seed, self.epoch, index)))
        return {"pixels": torch.from_numpy(pixels), "label": self.labels[index], "index": index}


def leave_signals_to_the_trainer(_worker: int) -> None:
    """Let a loader process ignore SIGTERM and Ctrl-C, which reach the whole group: the trainer ends it in good order."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
