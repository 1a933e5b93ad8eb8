"""Transition only: callers move to `LoadedImages.pixels`."""

from typing import Any

from datasets import Dataset

from modeling.data.decoding import decode_images


class CacheError(RuntimeError):
    """Not raised any more."""


def resized_images(dataset: Dataset, *, size_px: int, **_: Any) -> Dataset:
    """Return image_id and pixels."""
    return (
        decode_images(dataset, size_px=size_px)
        .select_columns(["pixels"])
        .add_column("image_id", dataset["image_id"][:])
    )
