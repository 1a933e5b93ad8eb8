"""Robustness: how often predictions change with light, focus, compression, position and artefacts on the skin."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from tqdm import tqdm

from modeling.data.artefacts import draw_ink, draw_ruler, draw_vignette
from modeling.evaluation.context import Context
from modeling.evaluation.metrics import score_balanced
from modeling.evaluation.split import Split, estimate_rate
from modeling.inference import run_images

SEED = 0
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def brightness(image: Image.Image, rng: np.random.Generator, *, factor: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def blur(image: Image.Image, rng: np.random.Generator, *, fraction: float) -> Image.Image:
    """Gaussian blur with a radius that is a fraction of the shorter side."""
    return image.filter(ImageFilter.GaussianBlur(fraction * min(image.size)))


def jpeg(image: Image.Image, rng: np.random.Generator, *, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def warp(image: Image.Image, rng: np.random.Generator, *, degrees: float = 0.0, scale: float = 1.0) -> Image.Image:
    """Rotate about the centre and magnify; new pixels at the rim are mirrored, so there are no black corners."""
    width, height = image.size
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
    warped = cv2.warpAffine(
        np.asarray(image), matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return Image.fromarray(warped)


CHANGES: dict[str, Change] = {
    "brightness -20 %": partial(brightness, factor=0.8),
    "brightness +20 %": partial(brightness, factor=1.2),
    "blur 0.5 % of the side": partial(blur, fraction=0.005),
    "blur 1.5 % of the side": partial(blur, fraction=0.015),
    "JPEG quality 50": partial(jpeg, quality=50),
    "JPEG quality 15": partial(jpeg, quality=15),
    "rotation 15°": partial(warp, degrees=15),
    "rotation 90°": lambda image, rng: image.transpose(Image.Transpose.ROTATE_90),
    "scale 80 %": partial(warp, scale=0.8),
    "scale 125 %": partial(warp, scale=1.25),
    "synthetic ink": draw_ink,
    "synthetic ruler": draw_ruler,
    "synthetic vignette": draw_vignette,
}


def change_image(name: str, image: Image.Image, number: int) -> Image.Image:
    """Apply one of CHANGES to the image of this number in the sample, the same way each time."""
    return CHANGES[name](image, np.random.default_rng([SEED, list(CHANGES).index(name), number]))


def robustness_section(context: Context) -> dict[str, Any]:
    """Compare the predictions for a sample of test with those for changed images."""
    sample, ids = context.sample, context.sample.image_ids

    def changed() -> Iterator[Callable[[], Image.Image]]:
        for number, image_id in enumerate(tqdm(ids, desc="robustness")):
            image = context.load(image_id)  # decoded once for all changes
            yield from (partial(change_image, name, image, number) for name in CHANGES)

    n = len(CHANGES)
    outputs = run_images(
        context.classifier, changed(), image_ids=np.repeat(ids, n).tolist(), labels=np.repeat(sample.labels, n)
    )
    predicted = outputs.logits.argmax(axis=1).reshape(len(ids), n)
    return {
        "n_images": len(sample),
        "n_lesions": sample.n_lesions,
        "balanced_accuracy": score_balanced(sample.predicted, sample),
        "changes": {name: score_change(predicted[:, place], sample) for place, name in enumerate(CHANGES)},
    }


def score_change(changed: np.ndarray, split: Split) -> dict[str, Any]:
    """Return the flip rate of predictions for changed images (N,), and the gain in balanced accuracy."""
    return {
        "flip_rate": estimate_rate(changed != split.predicted, split),
        "balanced_accuracy_gain": score_balanced(changed, split, minus=split.predicted),
    }
