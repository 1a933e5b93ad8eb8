"""Random changes to a training picture that leave its diagnosis: one warp, one colour matrix, one rectangle.

Each draws from a generator that it is given, so that who seeds it sees the same pixels again. Loader processes share the
cores with the training: a millisecond here costs a training on two cores two of them (see benchmarks/README.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# Loader processes are forked, without the threads of opencv's pool: to use it, or to switch it off there, would hang. They
# would also take the cores from the training. So there are none, as in other libraries for augmentation.
cv2.setNumThreads(1)

GREY = np.array([0.299, 0.587, 0.114])  # weights of R, G and B in ITU-R 601 luma


@dataclass(frozen=True)
class Augmentation:
    """Dermoscopy-sensible augmentation of one picture: uint8 RGB (S', S', 3) → (S, S, 3).

    A lesion has no upright side, its distance and light vary, and hair, rulers or bubbles may hide a part of it. Hue stays,
    because colour is diagnostic.
    """

    size_px: int  # S
    fill: tuple[int, int, int]  # RGB of the rectangle
    crop_scale: tuple[float, float] = (0.6, 1.0)  # of the crop's area to the picture's
    crop_ratio: tuple[float, float] = (0.8, 1.25)  # of the crop's width to its height
    brightness: float = 0.2  # factors are drawn from [1 - x, 1 + x]
    contrast: float = 0.2
    saturation: float = 0.2
    erase_probability: float = 0.25
    erase_scale: tuple[float, float] = (0.02, 0.15)  # of the rectangle's area to the result's
    erase_ratio: tuple[float, float] = (0.3, 3.3)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        warped = cv2.warpAffine(
            image,
            self._random_warp(image.shape[0], rng),
            (self.size_px, self.size_px),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        )
        brightness, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * [self.brightness, self.contrast, self.saturation]
        result = cv2.transform(warped, colour_matrix(brightness, contrast, saturation, mean=cv2.mean(warped)[:3]))
        if rng.random() < self.erase_probability:
            self._erase(result, rng)
        return result

    def _random_warp(self, side: int, rng: np.random.Generator) -> np.ndarray:
        """Mirror, turn by any angle, and crop: torchvision's flips, RandomRotation and RandomResizedCrop in one."""
        area = rng.uniform(*self.crop_scale)
        aspect = _between(*self.crop_ratio, rng)
        size = np.minimum(np.sqrt([area * aspect, area / aspect]), 1.0) * side
        return warp_matrix(
            rng.uniform(0, 2 * np.pi),
            size * rng.choice([-1, 1], 2),
            rng.uniform(-0.5, 0.5, 2) * (side - size),
            from_px=side,
            to_px=self.size_px,
        )

    def _erase(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Fill a rectangle in place, as torchvision's RandomErasing does."""
        area = rng.uniform(*self.erase_scale)
        aspect = _between(*self.erase_ratio, rng)
        height, width = (np.minimum(np.sqrt([area * aspect, area / aspect]), 1.0) * self.size_px).astype(int)
        top, left = rng.integers(self.size_px - height + 1), rng.integers(self.size_px - width + 1)
        image[top : top + height, left : left + width] = self.fill


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    """Draw a ratio, as likely 4:5 as 5:4."""
    return float(np.exp(rng.uniform(*np.log([low, high]))))


def warp_matrix(
    angle: float, size: Sequence[float] | np.ndarray, centre: Sequence[float] | np.ndarray, *, from_px: int, to_px: int
) -> np.ndarray:
    """Return the 2 x 3 matrix that takes pixels (x, y) of the result to where they come from in the picture.

    Args:
        angle: By which the picture is turned clockwise about its middle before the crop, in radians.
        size: Width and height of the crop in pixels; negative to mirror it.
        centre: Of the crop, from the middle of the turned picture, in pixels.
        from_px: Side of the picture.
        to_px: Side of the result.
    """
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag(np.asarray(size) / to_px)
    # Pixel (0, 0) has its middle half a pixel from the edge.
    shift = turn @ np.asarray(centre) + (from_px - 1) / 2 - linear @ np.full(2, (to_px - 1) / 2)
    return np.column_stack([linear, shift])


def colour_matrix(
    brightness: float, contrast: float, saturation: float, *, mean: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return the 3 x 4 matrix that takes (R, G, B, 1) to the changed colour.

    As torchvision's adjust_brightness, adjust_contrast and adjust_saturation one after the other; but for the rounding and
    clipping between them, their order makes no difference.

    Args:
        brightness: Factor of every value.
        contrast: Factor of the distance from the picture's mean grey.
        saturation: Factor of the distance from the pixel's own grey.
        mean: Mean colour (R, G, B) of the picture.
    """
    linear = saturation * np.eye(3) + (1 - saturation) * GREY  # each row adds the pixel's own grey
    shift = np.full(3, (1 - contrast) * brightness * (GREY @ mean))
    return np.column_stack([contrast * brightness * linear, shift])
