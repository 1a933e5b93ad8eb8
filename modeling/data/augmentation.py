"""Random changes to a training image that leave its diagnosis: a warp, another light, another camera, one rectangle.

The random generator is an argument, so the same seed gives the same pixels. Loader processes share the cores with the
training: on two cores, 1 ms here costs 2 ms of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# Forked loader processes would hang in opencv's thread pool, and its threads would take the cores from the training.
cv2.setNumThreads(1)

# Random crops enlarge a lesion, and at serving nothing is cropped. Training at this fraction of the input's side makes up for
# it ("FixRes": Touvron et al. 2019, arXiv:1906.06423).
TRAIN_FRACTION = 1 / 1.2

GREY = np.array([0.299, 0.587, 0.114])  # weights of R, G and B in ITU-R 601 luma


@dataclass(frozen=True)
class Augmentation:
    """Dermoscopy-sensible augmentation of one image: uint8 RGB (S', S', 3) → (S, S, 3).

    A lesion has no upright side, its distance and light vary, and hair, rulers or bubbles may hide a part of it. Hue stays,
    because colour is diagnostic; the colour of the light varies a little.

    All images of one archive went through one chain of lens, scaling and compression, and a network learns its traces. So
    focus, resolution, noise and compression vary too, in the order in which a camera and an archive add them. They come after
    the warp: then the blocks of the compression are parallel to the rows of the input, as they are at serving.
    """

    size_px: int  # S, of the result
    fill: tuple[int, int, int]  # RGB of the rectangle
    crop_scale: tuple[float, float] = (0.5, 1.2)  # of the crop's area to the image's
    crop_ratio: tuple[float, float] = (0.8, 1.25)  # of the crop's width to its height
    brightness: float = 0.2  # factors are in [1 - x, 1 + x]
    contrast: float = 0.2
    saturation: float = 0.2
    white_balance: float = 0.06  # gain of each channel is in [1 - x, 1 + x]
    gamma: tuple[float, float] = (0.8, 1.25)  # exponent of the tone curve
    blur_probability: float = 0.4
    blur_sigma: tuple[float, float] = (0.002, 0.024)  # of the Gaussian, as a fraction of the side
    sharpen_probability: float = 0.2
    sharpen_amount: tuple[float, float] = (0.2, 1.0)  # of an unsharp mask of 1/160 of the side
    downscale_probability: float = 0.4
    downscale: tuple[float, float] = (0.4, 1.0)  # of the side, and back
    noise_probability: float = 0.2
    noise_sigma: tuple[float, float] = (1.0, 8.0)  # of 255
    jpeg_probability: float = 0.5
    jpeg_quality: tuple[int, int] = (30, 95)
    erase_probability: float = 0.25
    erase_scale: tuple[float, float] = (0.02, 0.15)  # of the rectangle's area to the result's
    erase_ratio: tuple[float, float] = (0.3, 3.3)

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        result = cv2.warpAffine(
            image,
            self._random_warp(image.shape[0], rng),
            (self.size_px, self.size_px),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,  # black corners would be a cue
        )
        result = self.reprocess(result, rng)
        if rng.random() < self.erase_probability:
            self._erase(result, rng)
        return result

    def reprocess(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Pass an image of the result's size through another light, lens, scaling and compression."""
        result = self._change_light(image, rng)
        result = self._change_focus(result, rng)
        if rng.random() < self.noise_probability:
            result = self._add_noise(result, rng)
        if rng.random() < self.jpeg_probability:
            result = compress(result, int(rng.integers(self.jpeg_quality[0], self.jpeg_quality[1] + 1)))
        return result

    def _random_warp(self, side: int, rng: np.random.Generator) -> np.ndarray:
        """Mirror, turn by any angle, and crop: torchvision's flips, RandomRotation and RandomResizedCrop in one."""
        area = rng.uniform(*self.crop_scale)
        aspect = _between(*self.crop_ratio, rng)
        largest = max(1.0, self.crop_scale[1] ** 0.5)
        size = np.minimum(np.sqrt([area * aspect, area / aspect]), largest) * side
        return warp_matrix(
            rng.uniform(0, 2 * np.pi),
            size * rng.choice([-1, 1], 2),
            rng.uniform(-0.5, 0.5, 2) * np.maximum(side - size, 0),
            from_px=side,
            to_px=self.size_px,
        )

    def _change_light(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change brightness, contrast, saturation and the light's colour by one matrix, and the tone curve by one table."""
        brightness, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * [self.brightness, self.contrast, self.saturation]
        gains = 1 + rng.uniform(-1, 1, 3) * self.white_balance
        matrix = colour_matrix(brightness, contrast, saturation, mean=cv2.mean(image)[:3])
        result = cv2.transform(image, gains[:, None] * matrix)
        return cv2.LUT(result, tone_curve(_between(*self.gamma, rng)))

    def _change_focus(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Blur or sharpen, and take away resolution."""
        draw = rng.random()
        if draw < self.blur_probability:
            sigma = rng.uniform(*self.blur_sigma) * self.size_px
            image = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
        elif draw < self.blur_probability + self.sharpen_probability:
            amount = rng.uniform(*self.sharpen_amount)
            soft = cv2.GaussianBlur(image, (0, 0), self.size_px / 160)
            image = cv2.addWeighted(image, 1 + amount, soft, -amount, 0)
        if rng.random() < self.downscale_probability:
            small = max(round(rng.uniform(*self.downscale) * self.size_px), 8)
            image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
            image = cv2.resize(image, (self.size_px, self.size_px), interpolation=cv2.INTER_LINEAR)
        return image

    def _add_noise(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Add the same Gaussian noise to the three channels: noise of colour costs three times as much to draw."""
        sigma = rng.uniform(*self.noise_sigma)
        noise = rng.standard_normal(image.shape[:2], dtype=np.float32) * np.float32(sigma)
        return cv2.add(image, cv2.merge([noise] * 3), dtype=cv2.CV_8U)

    def _erase(self, image: np.ndarray, rng: np.random.Generator) -> None:
        """Fill a rectangle in place, as torchvision's RandomErasing does."""
        area = rng.uniform(*self.erase_scale)
        aspect = _between(*self.erase_ratio, rng)
        height, width = (np.minimum(np.sqrt([area * aspect, area / aspect]), 1.0) * self.size_px).astype(int)
        top, left = rng.integers(self.size_px - height + 1), rng.integers(self.size_px - width + 1)
        image[top : top + height, left : left + width] = self.fill


def compress(image: np.ndarray, quality: int) -> np.ndarray:
    """Save uint8 RGB (H, W, 3) as a JPEG of this quality and read it again."""
    # The codec expects BGR.
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, quality))
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()  # type: ignore[index]  # None for damaged files only


def tone_curve(gamma: float) -> np.ndarray:
    """Return the table (256,) of uint8 that takes a value v to 255 (v / 255) ** gamma."""
    return (255 * np.linspace(0, 1, 256) ** gamma).round().astype(np.uint8)


def _between(low: float, high: float, rng: np.random.Generator) -> float:
    """Draw a ratio, as likely 4:5 as 5:4."""
    return float(np.exp(rng.uniform(*np.log([low, high]))))


def warp_matrix(
    angle: float, size: Sequence[float] | np.ndarray, centre: Sequence[float] | np.ndarray, *, from_px: int, to_px: int
) -> np.ndarray:
    """Return the 2 x 3 matrix that takes pixels (x, y) of the result to where they come from in the image.

    Args:
        angle: Clockwise rotation of the image about its middle before the crop, in radians.
        size: Width and height of the crop in pixels; negative to mirror it.
        centre: Of the crop, from the middle of the turned image, in pixels.
        from_px: Side of the image.
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
        contrast: Factor of the distance from the image's mean grey.
        saturation: Factor of the distance from the pixel's own grey.
        mean: Mean colour (R, G, B) of the image.
    """
    linear = saturation * np.eye(3) + (1 - saturation) * GREY  # each row adds the pixel's own grey
    shift = np.full(3, (1 - contrast) * brightness * (GREY @ mean))
    return np.column_stack([contrast * brightness * linear, shift])
