"""How much an answer depends on what should not matter: light, focus, compression, position, and things on the skin."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from modeling.data.artefacts import draw_ink, draw_ruler, draw_vignette
from modeling.evaluation.bootstrap import Bootstrap, estimate_rate
from modeling.evaluation.metrics import balanced_accuracy_gain, score_balanced

SEED = 0
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def brightness(factor: float) -> Change:
    return lambda image, rng: ImageEnhance.Brightness(image).enhance(factor)


def blur(fraction: float) -> Change:
    """Gaussian blur with a radius that is a fraction of the shorter side."""
    return lambda image, rng: image.filter(ImageFilter.GaussianBlur(fraction * min(image.size)))


def jpeg(quality: int) -> Change:
    def compress(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return compress


def turn_and_scale(*, degrees: float = 0.0, scale: float = 1.0) -> Change:
    """Turn about the centre and magnify; what comes into view at the rim is a mirror image, not black corners."""

    def warp(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        width, height = image.size
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
        warped = cv2.warpAffine(
            np.asarray(image), matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        return Image.fromarray(warped)

    return warp


CHANGES: dict[str, Change] = {
    "brightness -20 %": brightness(0.8),
    "brightness +20 %": brightness(1.2),
    "blur 0.5 % of the side": blur(0.005),
    "blur 1.5 % of the side": blur(0.015),
    "JPEG quality 50": jpeg(50),
    "JPEG quality 15": jpeg(15),
    "rotation 15°": turn_and_scale(degrees=15),
    "rotation 90°": lambda image, rng: image.transpose(Image.Transpose.ROTATE_90),
    "scale 80 %": turn_and_scale(scale=0.8),
    "scale 125 %": turn_and_scale(scale=1.25),
    "drawn ink": draw_ink,
    "drawn ruler": draw_ruler,
    "drawn vignette": draw_vignette,
}


def change_images(name: str, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Apply one of CHANGES to each image, the same way each time."""
    generators = np.random.default_rng([SEED, list(CHANGES).index(name)]).spawn(len(images))
    return [CHANGES[name](image, generator) for image, generator in zip(images, generators, strict=True)]


def score_change(
    plain: np.ndarray, changed: np.ndarray, labels: np.ndarray, codes: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Return the flip rate from plain to changed answers (N,), balanced accuracy after the change, and its gain."""
    return {
        "flip_rate": estimate_rate(changed != plain, labels >= 0, bootstrap, reason="no image"),
        "balanced_accuracy": score_balanced(changed, labels, codes, bootstrap),
        "balanced_accuracy_gain": balanced_accuracy_gain(changed, plain, labels, codes, bootstrap),
    }
