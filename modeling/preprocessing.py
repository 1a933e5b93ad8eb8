"""From a decoded image to the network's input, in Pillow and numpy: bit by bit what timm's transform gives."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


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
        return self.normalise(self.squash(image))

    def squash(self, image: Image.Image) -> np.ndarray:
        """Return the square of the network's size, uint8 (S, S, 3)."""
        # Pillow only copies an image that already has this size, and so does timm's transform.
        return np.asarray(image.resize((self.size_px, self.size_px), self.resampling))

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixel_values, float32 (3, S, S), of uint8 (S, S, 3)."""
        values = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
        values /= 255
        values -= self.mean
        values /= self.std
        return values
