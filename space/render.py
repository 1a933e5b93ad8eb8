"""The pictures of an answer: the photo, what the model saw of it, and small grey heat maps that the page colours itself.

The browser gets the numbers (0 to 255) of every map at once, so choosing a diagnosis, another opacity or the contrast
costs it a repaint and the server nothing.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from modeling.explain import Explanation

DISPLAY_SIDE_PX = 640  # long side of the photo on the page: what a phone or half a desktop window shows
MAP_SIDE_PX = 128  # the network's grid is 7 x 7; more pixels than this only cost time
OVERLAY_SIDE_PX = 1024
OVERLAY_OPACITY = 0.6
FADE_BELOW = 0.35  # weak evidence is see-through, so that the skin stays visible where nothing speaks for the diagnosis

# Perceptually uniform maps of matplotlib (viridis; berlin, doi:10.5281/zenodo.1243862), 256 RGB triples in hexadecimal.
COLOURS: dict[str, str] = json.loads((Path(__file__).parent / "colours.json").read_text(encoding="utf-8"))


def grey_maps(explanation: Explanation, contrast: tuple[str, str]) -> tuple[str, tuple[int, int]]:
    """Draw the heat maps of all diagnoses and, last, the contrast of two, one below the other.

    Args:
        explanation: Evidence of one photo.
        contrast: The diagnosis that bright values of the last map speak for, and the one that dark values speak for.

    Returns:
        A grey PNG as a data URI, and (width, height) of one map. Heat: 0 is none, 255 the strongest evidence for any
        diagnosis. Contrast: 128 is neutral.
    """
    height, width = explanation.size
    scale = MAP_SIDE_PX / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    heat = [explanation.heat_map(code, size=size) * 255 for code in explanation.codes]
    signed = explanation.contrast(*contrast, size=size) * 127 + 128
    tall = np.rint(np.concatenate([*heat, signed])).astype(np.uint8)  # ((C + 1) * h, w)
    return data_uri(Image.fromarray(tall), "PNG", compress_level=1), (size[1], size[0])


def overlay(picture: Image.Image, explanation: Explanation, code: str) -> Image.Image:
    """Lay one diagnosis' heat map over the photo, for programs; the page does the same in the browser."""
    small = fit_within(picture, OVERLAY_SIDE_PX)
    heat = explanation.heat_map(code, size=(small.height, small.width))
    colour = colour_table("viridis")[np.rint(heat * 255).astype(np.uint8)]  # (h, w, 3)
    alpha = OVERLAY_OPACITY * np.minimum(heat / FADE_BELOW, 1)[..., None]
    mixed = np.asarray(small) * (1 - alpha) + colour * alpha
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def colour_table(name: str) -> np.ndarray:
    """Return a colour map as uint8 (256, 3)."""
    return np.frombuffer(bytes.fromhex(COLOURS[name]), dtype=np.uint8).reshape(256, 3)


def thumbnail(picture: Image.Image, side_px: int = 96) -> str:
    """Return a small square-bounded picture as a data URI."""
    return data_uri(fit_within(picture, side_px), "JPEG", quality=75)


def fit_within(picture: Image.Image, side_px: int) -> Image.Image:
    """Return the picture with no side longer than `side_px`, its aspect kept."""
    scale = side_px / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def data_uri(picture: Image.Image, file_format: str, **options: int) -> str:
    """Encode a picture for use inside a page."""
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
