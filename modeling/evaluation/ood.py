"""Far-OOD images, which show no lesion: blank images, drawings, outdoor scenes and coloured textures.

They are generated from a seed, so that every model is measured on the same ones. All four kinds were seen while the OOD
score of `modeling/abstention.py` was designed, so rates on them are optimistic. Near-OOD images, of diagnoses that a model
was not trained on, come from the dataset.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE_PX = 160
SEED = 0


def far_images(kind: str, n: int) -> list[Image.Image]:
    """Generate n images of one of FAR_KINDS, the same ones each time."""
    generators = np.random.default_rng([SEED, list(FAR_KINDS).index(kind)]).spawn(n)
    return [FAR_KINDS[kind](generator) for generator in generators]


def _blank(rng: np.random.Generator) -> Image.Image:
    """One colour, like a covered lens or an empty page."""
    colour = rng.integers(0, 256, size=3) if rng.random() < 0.7 else np.full(3, rng.choice([0, 128, 255]))
    return Image.new("RGB", (SIDE_PX, SIDE_PX), tuple(int(value) for value in colour))


def _drawing(rng: np.random.Generator) -> Image.Image:
    """Flat figures with outlines, like a logo."""
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 10))):
        x, y = rng.integers(0, SIDE_PX - 40, size=2)
        width, height = rng.integers(20, 90, size=2)
        colour = tuple(int(value) for value in rng.integers(0, 256, size=3))
        box = (int(x), int(y), int(x + width), int(y + height))
        figure = rng.choice(["ellipse", "rectangle", "line", "triangle"])
        if figure == "ellipse":
            draw.ellipse(box, fill=colour, outline="black", width=3)
        elif figure == "rectangle":
            draw.rectangle(box, fill=colour, outline="black", width=3)
        elif figure == "line":
            draw.line(box, fill=colour, width=5)
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), (box[0] + int(width) // 2, box[1])], fill=colour)
    return image


def _scene(rng: np.random.Generator) -> Image.Image:
    """An outdoor scene with the broad colours of a photograph: sky, hills, sun, trees or houses, and grain."""
    sky = np.array([rng.uniform(60, 150), rng.uniform(120, 200), rng.uniform(180, 255)])
    rows = np.linspace(0, 1, SIDE_PX)[:, None, None]
    canvas = np.broadcast_to(sky * (1 - rows) + 235 * rows, (SIDE_PX, SIDE_PX, 3))
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    x, y = (int(value) for value in rng.integers(10, SIDE_PX - 40, size=2) * np.array([1, 0.3]))
    draw.ellipse((x, y, x + 22, y + 22), fill=(255, 240, 180))
    horizon = rng.uniform(0.45, 0.7) * SIDE_PX
    for layer in range(3):
        steps = np.arange(0, SIDE_PX + 8, 8)
        heights = horizon + 18 * layer + 12 * np.sin(steps / rng.uniform(12, 30) + rng.uniform(0, 6))
        green = tuple(int(value) for value in rng.uniform([30, 80, 20], [110, 150, 70]) * (1 - 0.2 * layer))
        draw.polygon(
            [(0, SIDE_PX), *zip(steps.tolist(), heights.tolist(), strict=True), (SIDE_PX, SIDE_PX)], fill=green
        )
    for _ in range(int(rng.integers(2, 7))):
        left, base, size = rng.uniform(0, SIDE_PX), rng.uniform(horizon + 10, SIDE_PX), rng.uniform(12, 40)
        if rng.random() < 0.5:
            draw.rectangle((left, base - size, left + size, base), fill=(170, 110, 90))
            draw.polygon(
                [(left - 3, base - size), (left + size + 3, base - size), (left + size / 2, base - 1.5 * size)],
                fill=(90, 40, 30),
            )
        else:
            draw.rectangle((left + size / 2 - 2, base - size / 2, left + size / 2 + 2, base), fill=(80, 55, 35))
            draw.ellipse((left, base - 1.3 * size, left + size, base - 0.4 * size), fill=(40, 110, 45))
    grain = rng.normal(0, 6, size=(SIDE_PX, SIDE_PX, 1))
    return Image.fromarray(
        np.clip(np.asarray(image.filter(ImageFilter.GaussianBlur(0.8))) + grain, 0, 255).astype(np.uint8)
    )


def _texture(rng: np.random.Generator) -> Image.Image:
    """Smooth coloured clouds with the 1/f spectrum of photographs (Field 1987, doi:10.1364/JOSAA.4.002379)."""
    frequency = np.hypot(np.fft.fftfreq(SIDE_PX)[:, None], np.fft.fftfreq(SIDE_PX)[None, :])
    frequency[0, 0] = 1
    white = np.fft.fft2(rng.normal(size=(3, SIDE_PX, SIDE_PX)))
    clouds = np.fft.ifft2(white / frequency ** rng.uniform(0.8, 1.6)).real
    clouds = (clouds - clouds.mean(axis=(1, 2), keepdims=True)) / clouds.std(axis=(1, 2), keepdims=True)
    colours = rng.uniform(-1, 1, size=(3, 3)) + np.eye(3)
    mixed = np.einsum("ij,jyx->yxi", colours, clouds) * 40 + rng.uniform(70, 190, size=3)
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


FAR_KINDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "blank": _blank,
    "drawing": _drawing,
    "scene": _scene,
    "texture": _texture,
}
