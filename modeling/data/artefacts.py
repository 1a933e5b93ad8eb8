"""Imaging artefacts in dermoscopy: hair, a ruler, dark corners, ink. They are independent of the diagnosis."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Array = np.ndarray


def draw_hair(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw 4 to 14 curved hairs, mostly dark, over an image of any size."""
    width, height = image.size
    unit = min(width, height)
    layer, draw = new_layer(image)
    dark = rng.random() < 0.85
    for _ in range(int(rng.integers(4, 15))):
        middle = rng.uniform([0, 0], [width, height])
        angle, bend = rng.uniform(0, np.pi), rng.uniform(-0.35, 0.35)
        length = unit * rng.uniform(0.4, 1.3)
        along = np.array([np.cos(angle), np.sin(angle)])
        across = np.array([-along[1], along[0]])
        t = np.linspace(-0.5, 0.5, 24)[:, None]
        points = middle + length * (t * along + bend * (t**2 - 0.125) * across)  # (24, 2)
        shade = rng.uniform(15, 60) if dark else rng.uniform(170, 225)
        colour = tuple(int(shade * tint) for tint in (1.0, 0.82, 0.66))
        draw_line(draw, points, (*colour, int(rng.uniform(170, 245))), unit * rng.uniform(0.004, 0.011))
    return composite(image, layer)


def draw_ruler(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw the millimetre scale of a dermatoscope along one side of an image of any size."""
    width, height = image.size
    unit = min(width, height)
    layer, draw = new_layer(image)
    vertical, far = rng.random() < 0.5, rng.random() < 0.5
    length, across = (height, width) if vertical else (width, height)
    base = across * (rng.uniform(0.93, 0.98) if far else rng.uniform(0.02, 0.07))
    direction = -1 if far else 1
    colour = (20, 20, 24, 220) if rng.random() < 0.7 else (240, 240, 235, 220)
    step = unit * rng.uniform(0.03, 0.06)
    start = rng.uniform(0.0, 0.2) * length
    for index in range(int((length * rng.uniform(0.8, 1.0) - start) / step)):
        tick = unit * (0.075 if index % 10 == 0 else 0.055 if index % 5 == 0 else 0.035)
        ends = np.array([[start + index * step, base], [start + index * step, base + direction * tick]])
        draw_line(draw, ends[:, ::-1] if vertical else ends, colour, unit * 0.008)
    return composite(image, layer)


def draw_vignette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Darken an image of any size outside the round field of view of the lens, with a hard or a soft rim."""
    width, height = image.size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    centre = np.array([width, height]) * rng.uniform(0.46, 0.54, size=2)
    radius = np.hypot(width, height) / 2 * rng.uniform(0.74, 0.92)
    distance = np.hypot(x - centre[0], y - centre[1]) / radius  # (H, W), 1 on the rim
    softness = rng.uniform(0.01, 0.12)
    light = 1 / (1 + np.exp(np.clip((distance - 1) / softness * 4, -30, 30)))
    floor = rng.uniform(0.02, 0.15)
    return to_image(to_array(image) * (floor + (1 - floor) * light)[..., None])


def draw_ink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw strokes of a surgical marker (violet, blue or green) near the rim of an image of any size."""
    width, height = image.size
    unit = min(width, height)
    layer, draw = new_layer(image)
    colour = [(72, 40, 130), (40, 60, 150), (30, 110, 90)][int(rng.integers(3))]
    for _ in range(int(rng.integers(1, 4))):
        angle = rng.uniform(0, 2 * np.pi)
        reach = rng.uniform(0.78, 1.0) / 2
        middle = np.array([width, height]) * (0.5 + reach * np.array([np.cos(angle), np.sin(angle)]))
        turn = angle + np.pi / 2 + rng.normal(0, 0.5)
        t = np.linspace(-0.5, 0.5, 16)[:, None]
        along = np.array([np.cos(turn), np.sin(turn)])
        points = middle + unit * rng.uniform(0.2, 0.6) * t * along + rng.normal(0, 0.006 * unit, size=(16, 2))
        draw_line(draw, points, (*colour, int(rng.uniform(110, 190))), unit * rng.uniform(0.02, 0.05))
    return composite(image, layer.filter(ImageFilter.GaussianBlur(unit * 0.004)))


def new_layer(image: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a transparent layer of twice the size, so that lines on it are smooth when it is reduced."""
    layer = Image.new("RGBA", (2 * image.width, 2 * image.height), (0, 0, 0, 0))
    return layer, ImageDraw.Draw(layer)


def draw_line(draw: ImageDraw.ImageDraw, points: Array, colour: tuple[int, ...], width: float) -> None:
    doubled = [tuple(point) for point in (2 * points).tolist()]
    draw.line(doubled, fill=colour, width=max(1, round(2 * width)), joint="curve")


def composite(image: Image.Image, layer: Image.Image) -> Image.Image:
    small = np.asarray(layer.convert("RGBa").resize(image.size, Image.Resampling.BOX), dtype=np.float32)
    return to_image(to_array(image) * (1 - small[..., 3:] / 255) + small[..., :3])  # RGBa is premultiplied


def to_array(image: Image.Image) -> Array:
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def to_image(array: Array) -> Image.Image:
    return Image.fromarray(array.clip(0, 255).round().astype(np.uint8))
