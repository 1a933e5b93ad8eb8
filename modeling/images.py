"""One decoder for every image that enters: path, bytes, PIL image or array in; upright RGB out, or a sentence why not."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

ImageInput = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

# Pillow knows some fifty formats, among them EPS, which starts Ghostscript. Only parsers on this list ever see a file.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")

MAX_FILE_BYTES = 100_000_000
MAX_PIXELS = 64_000_000  # a 50-megapixel phone fits; Pillow holds 4 bytes a pixel, so one copy is at most 256 MB
MIN_SIDE_PX = 8
MAX_ASPECT_RATIO = 10  # models squash to a square: a longer strip shows no lesion any more


class ImageError(ValueError):
    """An image that cannot be used; the message says what was wrong and what to do."""


def decode_image(source: ImageInput, *, min_side_px: int | None = None) -> Image.Image:
    """Return the image as a person sees it: upright, RGB, 8 bits a channel.

    A plain RGB file gives exactly the pixels of `ImageOps.exif_transpose(Image.open(path)).convert("RGB")`.

    Args:
        source: A path, the bytes of a file, a PIL image, or a uint8 array of shape (H, W), (H, W, 3) or (H, W, 4).
            Of an animation or a file of several pages the first picture is taken.
        min_side_px: JPEGs may be decoded smaller, which is faster, as long as both sides keep this length.

    Raises:
        ImageError: If the image cannot be read or is no sensible picture. No other exception is raised for bad input.
    """
    name = _name(source)
    # Hostile files make Pillow raise OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error,
    # zlib.error, OverflowError, MemoryError, RecursionError, DecompressionBombError and more. There is no list of them,
    # and every one means the same here: this image cannot be read. So this one boundary translates all of them.
    try:
        if isinstance(source, np.ndarray):
            return _checked_size(_from_array(source), name).convert("RGB")
        if isinstance(source, Image.Image):
            return _to_rgb(_upright(_checked_size(source, name)), name)
        return _from_file(_read_bytes(source, name), name, min_side_px)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{name} is damaged and cannot be decoded ({type(error).__name__}: {error}). "
            "Send it again, or save it once more as JPEG or PNG."
        ) from error


def _from_file(data: bytes, name: str, min_side_px: int | None) -> Image.Image:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture of a known format; send {', '.join(FORMATS)}.") from None
    with image:
        _checked_size(image, name)
        if min_side_px is not None and image.format == "JPEG":
            scale = min(image.size) // min_side_px
            if scale > 1:
                image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        return _to_rgb(_upright(image), name)


def _read_bytes(source: str | os.PathLike[str] | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        path = Path(source)
        if not path.is_file():
            raise ImageError(f"{name} is not a file; check the path.")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if not data:
        raise ImageError(f"{name} is empty (0 bytes); send it again.")
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_FILE_BYTES // 10**6} MB; save it as JPEG.")
    return data


def _checked_size(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} megapixels; make it smaller."
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"{name} has {width} x {height} pixels; both sides need at least {MIN_SIDE_PX} pixels.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{name} has {width} x {height} pixels, a strip longer than {MAX_ASPECT_RATIO}:1; crop it to the lesion."
        )
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:
        return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    # Colour profiles are ignored: training, transformers and timm read files with a plain convert("RGB"), and a model
    # must see the same numbers here as there.
    if image.mode == "RGB" and not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        profile = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profile, outputMode="RGB")
    if image.mode in ("I", "F"):
        values = np.asarray(image)
        top = 65535 if image.mode == "I" else 1 if values.max() <= 1 else 255
        if not (values.min() >= 0 and values.max() <= top):
            raise ImageError(f"{name} has {image.mode} pixels outside 0 to {top}; save it with 8 bits a channel.")
        return Image.fromarray((values / top * 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        # What lies under transparent pixels was never seen by the person who sends the picture (often it is black);
        # viewers and web pages show them on white.
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Image.Image:
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8:
        raise ImageError(
            f"An array image must have dtype uint8 (0 to 255), got {array.dtype}; convert floats in 0 to 1 with "
            "(array * 255).round().astype(np.uint8)."
        )
    if not is_image:
        raise ImageError(
            f"An array image must have the shape (height, width), (height, width, 3) or (height, width, 4), "
            f"got {array.shape}; move the channels last with array.transpose(1, 2, 0)."
        )
    image = Image.fromarray(np.ascontiguousarray(array))
    return _to_rgb(image, "The array")


def _name(source: ImageInput) -> str:
    if isinstance(source, np.ndarray):
        return "The array"
    if isinstance(source, Image.Image | bytes):
        return "The image"
    return repr(os.fspath(source))
