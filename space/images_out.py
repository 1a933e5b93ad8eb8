"""Images that the server sends: thumbnails, previews and the overlay of `/explain`."""

import base64
import io

import numpy as np
from PIL import Image

from modeling.explain import Explanation

OVERLAY_SIDE_PX = 1024
OVERLAY_OPACITY = 0.6
FADE_BELOW = 0.35  # weak evidence is transparent, so that the skin stays visible
# matplotlib's viridis at nine places, linearly interpolated.
VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "27ad81", "5cc863", "aadc32", "fde725")


def overlay(image: Image.Image, explanation: Explanation, code: str) -> Image.Image:
    """Lay one diagnosis' heat map over the photo."""
    small = fit_within(image, OVERLAY_SIDE_PX)
    heat = explanation.heat_map(code, size=(small.height, small.width))
    colours = np.array([list(bytes.fromhex(colour)) for colour in VIRIDIS])  # (9, 3)
    places = np.linspace(0, 1, len(colours))
    colour = np.stack([np.interp(heat, places, channel) for channel in colours.T], axis=-1)  # (h, w, 3)
    alpha = OVERLAY_OPACITY * np.minimum(heat / FADE_BELOW, 1)[..., None]
    return Image.fromarray(np.rint(np.asarray(small) * (1 - alpha) + colour * alpha).astype(np.uint8))


def fit_within(image: Image.Image, side_px: int) -> Image.Image:
    """Return a copy of the image with no side longer than `side_px`, its aspect kept."""
    small = image.copy()
    small.thumbnail((side_px, side_px))
    return small


def jpeg(image: Image.Image, *, quality: int = 85) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg_uri(image: Image.Image, side_px: int) -> str:
    """Return an image, no side longer than `side_px`, as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(fit_within(image, side_px))).decode('ascii')}"
