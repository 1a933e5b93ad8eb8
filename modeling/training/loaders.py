"""From splits to prepared loaders: decoded and resized once, train augmented."""

from typing import Any

import pandas as pd
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader

from modeling.data.augmentation import TRAIN_FRACTION, Augmentation
from modeling.data.cache import resized_images
from modeling.data.dataset import LesionDataset, leave_signals_to_the_trainer
from modeling.data.sources import rows_of
from modeling.runtime import default_num_workers
from modeling.training.options import TrainOptions


def split_datasets(
    options: TrainOptions,
    dataset: Dataset,
    splits: pd.DataFrame,
    data_fingerprint: str,
    pretrained_cfg: dict[str, Any],
    accelerator: Accelerator,
) -> dict[str, LesionDataset]:
    """Decode and resize the images of each split; train is augmented unless the recipe is the reference system's."""
    return {
        split: lesion_dataset(
            rows_of(dataset, splits["image_id"][splits["split"] == split]),
            options,
            pretrained_cfg,
            training=split == "train",
            data_fingerprint=data_fingerprint,
            cache_gb=options.image_cache_gb,
            show_progress=accelerator.is_main_process,
        )
        for split in ("train", "val", "test")
    }


def lesion_dataset(
    rows: Dataset,
    options: TrainOptions,
    pretrained_cfg: dict[str, Any],
    *,
    training: bool,
    data_fingerprint: str = "",
    cache_gb: float = 0,
    show_progress: bool = False,
) -> LesionDataset:
    """Return images at the network's size, augmented and smaller for training; without a cache decoded when asked for."""
    augment = training and options.recipe != "original"
    red, green, blue = (round(255 * value) for value in pretrained_cfg["mean"])
    images = resized_images(
        rows,
        fingerprint=data_fingerprint,
        size_px=options.image_size,
        exact=not augment,
        cache_gb=cache_gb,
        show_progress=show_progress,
    )
    # Most networks halve their input five times, so they need 32 px.
    train_px = max(round(options.image_size * TRAIN_FRACTION), min(options.image_size, 32))
    augmentation = Augmentation(train_px, fill=(red, green, blue)) if augment else None
    return LesionDataset(images, rows["label"], augmentation=augmentation, seed=options.seed)


def make_loaders(options: TrainOptions, parts: dict[str, LesionDataset], accelerator: Accelerator) -> dict[str, Any]:
    """Make the prepared loaders: train shuffled, without its incomplete last batch; val and test in order."""
    workers = default_num_workers() if options.num_workers is None else options.num_workers
    loaders = {}
    for split, images in parts.items():
        training = split == "train"
        loaders[split] = DataLoader(
            images,
            batch_size=options.batch_size,
            shuffle=training,
            # A last batch of one or two images would spoil the statistics of batch normalisation.
            drop_last=training and len(images) >= options.batch_size * accelerator.num_processes,
            num_workers=workers,
            # To start them anew copies, page by page, the memory that this process has come to hold: seconds an epoch.
            persistent_workers=workers > 0 and split != "test",
            worker_init_fn=leave_signals_to_the_trainer,
            pin_memory=accelerator.device.type == "cuda",
        )
    return {split: accelerator.prepare(loader) for split, loader in loaders.items()}
