"""From splits to prepared loaders: images at the network's size, train augmented, the same way each time."""

import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from modeling.data.augmentation import TRAIN_FRACTION, Augmentation
from modeling.data.sources import LoadedImages, rows_of
from modeling.network import TimmModel
from modeling.runtime import default_num_workers
from modeling.training.run_folder import Run


@dataclass(frozen=True)
class RunData:
    """The images of a run and their splits."""

    loaded: LoadedImages  # all usable images, with their pixels at the network's size
    chosen: Dataset  # the images of the diagnoses to distinguish; labels count from 0 in the order of `config["codes"]`
    splits: pd.DataFrame  # rows of splits.csv
    config: dict[str, Any]  # content of train_config.json


def make_loaders(run: Run, data: RunData, model: TimmModel) -> dict[str, Any]:
    """Return the prepared loaders.

    "train" is shuffled, without an incomplete last batch; "val" is in order; "reprocessed" is val in another light, focus and
    compression (`Augmentation.reprocess`), from which the abstention rule learns what may vary.
    """
    options = run.options
    workers = default_num_workers() if options.num_workers is None else options.num_workers
    loaders = {}
    for name in ("train", "val", "reprocessed"):
        training = name == "train"
        images = images_of(run, data, model, name)
        loader = DataLoader(
            images,
            batch_size=options.batch_size,
            shuffle=training,
            # A last batch of one or two images would spoil the statistics of batch normalisation.
            drop_last=training and len(images) >= options.batch_size * run.accelerator.num_processes,
            num_workers=workers,
            # Restarting workers re-forks this process's memory, which costs seconds per epoch.
            persistent_workers=workers > 0 and name != "reprocessed",
            worker_init_fn=leave_signals_to_the_trainer,
            pin_memory=run.accelerator.device.type == "cuda",
        )
        loaders[name] = run.accelerator.prepare(loader)
    return loaders


def images_of(run: Run, data: RunData, model: TimmModel, name: str) -> "LesionDataset":
    """Return the images of a loader: "val" as it is, "train" augmented and smaller unless the recipe is original."""
    options = run.options
    split = "train" if name == "train" else "val"
    rows = rows_of(data.chosen, data.splits["image_id"][data.splits["split"] == split])
    red, green, blue = (round(255 * value) for value in model.pretrained_cfg["mean"])
    augmentation: Any = None
    if name == "reprocessed":
        augmentation = Augmentation(options.image_size, fill=(red, green, blue)).reprocess
    elif name == "train" and options.recipe != "original":
        # Most networks halve their input five times, so they need 32 px.
        train_px = max(round(options.image_size * TRAIN_FRACTION), min(options.image_size, 32))
        augmentation = Augmentation(train_px, fill=(red, green, blue))
    pixels = rows_of(data.loaded.pixels, rows["image_id"])
    n_views = 2 if name == "train" and options.consistency else 1
    return LesionDataset(pixels, rows["label"], augmentation=augmentation, seed=options.seed, n_views=n_views)


class LesionDataset(TorchDataset[dict[str, Any]]):
    """Rows {"pixels" uint8 (S, S, 3), "label"} for a DataLoader; `network.normalise` makes a batch pixel_values.

    With two views, "pixels" is (2, S, S, 3). Augmentation depends on (seed, epoch, index) alone, so that a resumed run, and a
    run on more processes, sees the same pixels. Call `set_epoch` before each epoch (accelerate's loaders do).
    """

    def __init__(
        self,
        pixels: Dataset,
        labels: Sequence[int],
        *,
        augmentation: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        seed: int = 0,
        n_views: int = 1,
    ) -> None:
        """Take the pixels (`LoadedImages.pixels`) and labels of one split; without `augmentation` the images stay as they are."""
        self.pixels = pixels.with_format("arrow", columns=["pixels"])  # rows stay in the file, mapped into memory
        self.image_ids: list[str] = pixels["image_id"][:]
        self.labels = list(labels)
        self.augmentation = augmentation
        self.seed, self.n_views = seed, n_views
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
        # The second view is drawn as the first one 1000 epochs later.
        rngs = (np.random.default_rng((self.seed, self.epoch + 1000 * view, index)) for view in range(self.n_views))
        views = [np.array(image) if self.augmentation is None else self.augmentation(image, rng) for rng in rngs]
        pixels = np.stack(views) if self.n_views > 1 else views[0]
        return {"pixels": torch.from_numpy(pixels), "label": self.labels[index]}


def leave_signals_to_the_trainer(_worker: int) -> None:
    """Ignore SIGTERM and SIGINT in a loader process; the main process shuts it down."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
