"""What stands between a decoded image and the network, in Pillow and numpy: bit by bit what timm's transform gives."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def eval_transform(pretrained_cfg: Mapping[str, Any]) -> Callable[[Image.Image], np.ndarray]:
    """Return the preprocessing of evaluation and prediction: RGB image → pixel_values, float32 (3, S, S).

    Args:
        pretrained_cfg: Of a model folder's config.json, crop_mode "squash" and crop_pct 1.0: no part of the image is cut off.
    """
    height, width = pretrained_cfg["input_size"][1:]
    resampling = RESAMPLING[pretrained_cfg["interpolation"]]
    # Single precision from the start, in timm's order of operations: a product with 1 / std would differ in the last bit.
    mean, std = (np.array(pretrained_cfg[name], dtype=np.float32)[:, None, None] for name in ("mean", "std"))

    def transform(image: Image.Image) -> np.ndarray:
        # Pillow copies an image of this size already: resizing has no effect then, in timm's transform as well.
        pixels = np.asarray(image.resize((width, height), resampling))  # uint8 (S, S, 3)
        values = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
        values /= 255
        values -= mean
        values /= std
        return values

    return transform
