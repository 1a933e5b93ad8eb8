"""From splits to prepared loaders: images at the network's size, train augmented."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from datasets import Dataset
from torch.utils.data import DataLoader

from modeling.data.augmentation import TRAIN_FRACTION, Augmentation
from modeling.data.dataset import LesionDataset, leave_signals_to_the_trainer
from modeling.data.sources import rows_of
from modeling.network import TimmModel
from modeling.runtime import default_num_workers
from modeling.training.run_folder import Run


@dataclass(frozen=True)
class RunData:
    """The images of a run and their splits."""

    everything: Dataset  # all usable images
    pixels: Dataset  # of all usable images, at the network's size
    chosen: Dataset  # the images of the diagnoses to distinguish; labels count from 0 in the order of `codes`
    codes: list[str]
    splits: pd.DataFrame  # rows of splits.csv
    config: dict[str, Any]  # content of train_config.json
    n_skipped: int  # images that cannot be used


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


def images_of(run: Run, data: RunData, model: TimmModel, name: str) -> LesionDataset:
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
    pixels = rows_of(data.pixels, rows["image_id"])
    return LesionDataset(pixels, rows["label"], augmentation=augmentation, seed=options.seed)
