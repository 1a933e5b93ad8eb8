"""From a decoded image to the network's input, in Pillow and numpy: bit by bit what timm's transform gives."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def squash(image: Image.Image, size_px: int, resampling: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """Return an RGB image resized to a square, whatever its shape, uint8 (S, S, 3); training and prediction share it."""
    # Pillow only copies an image that already has this size, and so does timm's transform.
    return np.asarray(image.resize((size_px, size_px), resampling))


class Preprocessing:
    """The preprocessing of evaluation and prediction: RGB image → pixel_values, float32 (3, S, S).

    Args:
        pretrained_cfg: Of a model folder's config.json, crop_mode "squash" and crop_pct 1.0: no part of the image is cut off.
    """

    def __init__(self, pretrained_cfg: Mapping[str, Any]) -> None:
        self.size_px = int(pretrained_cfg["input_size"][1])
        self.resampling = RESAMPLING[pretrained_cfg["interpolation"]]
        # Single precision from the start, in timm's order of operations: a product with 1 / std would differ in the last bit.
        self.mean, self.std = (
            np.array(pretrained_cfg[name], dtype=np.float32)[:, None, None] for name in ("mean", "std")
        )

    def __call__(self, image: Image.Image) -> np.ndarray:
        values = squash(image, self.size_px, self.resampling).transpose(2, 0, 1).astype(np.float32, order="C")
        values /= 255
        values -= self.mean
        values /= self.std
        return values
