"""The decoder of all images: path, bytes, PIL image or array in; upright RGB out, or an ImageError that explains why not."""

import io
import os
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

ImageInput = str | os.PathLike[str] | bytes | Image.Image | np.ndarray

# Pillow knows some fifty formats, among them EPS, which starts Ghostscript. Only these parsers see a file.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
    *(".heic", ".heif"),
)
# The photographs of an iPhone; read by pillow-heif where it is installed. Brands as in ISO/IEC 23008-12, annex B.
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

# Together these bound one call to 1 GB of memory (a WebP with transparency at the pixel limit) and some 6 s of one core
# (a JPEG at the limits of pixels and scans).
MAX_FILE_BYTES = 100_000_000
MAX_PIXELS = 51_000_000  # a 50-megapixel phone (8192 x 6144) fits; Pillow holds 4 bytes a pixel, so a copy is 204 MB
MIN_SIDE_PX = 8
MAX_ASPECT_RATIO = 10  # the image is squashed to a square, so long strips would be unrecognisable
MAX_JPEG_SCANS = 50  # progressive JPEGs have about 10; every scan goes over all pixels, so thousands take minutes
MAX_JPEG_SEGMENTS = 5_000  # before the pixels; an ICC profile or depth map of 4 MB takes 64
MAX_METADATA_BYTES = 8_000_000  # of a JPEG, before the pixels
# Pillow reads every table of an Exif block, and tables may overlap, so memory grows with the square of its size. A camera's
# block is at most 64 kB, since it must fit into one segment of a JPEG.
MAX_EXIF_BYTES = 131_072
MAX_READS = 100_000  # by Pillow, per file: millions of empty chunks would keep it busy for minutes
MAX_SHOWN_NAME = 500  # characters of a path in a message
MAX_TIFF_TAG_BYTES = 8_000_000  # as Python numbers they take up to 25 times as much

_MOST_PIXELS = f"more than {MAX_PIXELS // 10**6} megapixels"


# Pillow would print it with a line of its source; the image is fine.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


class ImageError(ValueError):
    """An image that cannot be used; the message says what was wrong and what to do."""


def decode_image(source: ImageInput) -> Image.Image:
    """Return the image as a person sees it: upright, RGB, 8 bits a channel, without metadata.

    A plain RGB file gives exactly the pixels of `ImageOps.exif_transpose(Image.open(path)).convert("RGB")`.
    Safe to call from several threads, but not with one and the same PIL image that is not loaded yet.

    Args:
        source: A path, the bytes of a file, a PIL image, or a uint8 array of shape (H, W), (H, W, 3) or (H, W, 4).
            Of an animation or a file of several pages the first image is taken.

    Raises:
        ImageError: If the image cannot be read or cannot show a lesion. Bad input raises nothing else.
    """
    name = _name(source)
    try:
        if isinstance(source, np.ndarray):
            image = _from_array(source)
        elif isinstance(source, Image.Image):
            image = source
        else:
            image = _open(source if isinstance(source, bytes) else _read(source, name), name)
        _check_size(image, name)
        image.load()
        return _upright_rgb(image, name)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name} needs more memory than there is; make it smaller.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} has {_MOST_PIXELS}; make it smaller.") from error
    # Hostile files make Pillow raise OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError,
    # AttributeError, struct.error, zlib.error, OverflowError, RecursionError and more. There is no list of them, and
    # every one means the same here: this image cannot be read.
    except Exception as error:
        raise ImageError(
            f"{name} is damaged or incomplete. Send it again, or save it once more as JPEG or PNG."
        ) from error


def _read(source: str | os.PathLike[str], name: str) -> bytes:
    try:
        if not Path(source).is_file():  # also keeps out devices and pipes, which may never end
            raise ImageError(f"{name} is not a file; check the path (URLs are not supported; download the file first).")
        # Check the size first: /proc/kmsg looks like an empty regular file but never ends.
        _check_bytes(Path(source).stat().st_size, name)
        with open(source, "rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ImageError(f"{name} cannot be opened ({error.strerror}); check the path and its rights.") from error


def _check_bytes(n_bytes: int, name: str) -> None:
    if n_bytes == 0:
        raise ImageError(f"{name} is empty (0 bytes); send it again.")
    if n_bytes > MAX_FILE_BYTES:
        raise ImageError(f"{name} is larger than {MAX_FILE_BYTES // 10**6} MB; save it as JPEG.")


def _open(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header; the pixels wait for `load`."""
    _check_bytes(len(data), name)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        # The switch is global to the process: changing it here would race with the code that set it.
        raise ImageError(
            f"{name} cannot be checked: this program set PIL.ImageFile.LOAD_TRUNCATED_IMAGES, so that incomplete "
            "images would pass, grey where a part is missing. Set it to False."
        )
    if data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS:
        return _open_heic(data, name)
    if data.startswith(b"\xff\xd8"):
        data = _checked_jpeg(data, name)
    file = _MeteredFile(data, name)
    if data.startswith((b"II", b"MM")):
        file.bytes_left = MAX_TIFF_TAG_BYTES
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image, or its start is damaged. Send one of {', '.join(FORMATS)} or HEIC."
        ) from error
    if image.format == "PNG":  # whose checksums Pillow does not compare with what it decodes
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
    if image.format == "TIFF":
        # Loading a TIFF also expands the tables these tags point to, of any size; nothing here needs them.
        for tag in (0x8769, 0x8825, 0xA005):  # Exif, GPS, Interoperability
            image.getexif().pop(tag, None)
        # The decoder's buffer holds one tile, which may be larger than the image.
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(322, 0) * tags.get(323, 0) > MAX_PIXELS:  # TileWidth, TileLength
            raise ImageError(f"{name} claims tiles of absurd size; save it once more as JPEG or PNG.")
    file.bytes_left = sys.maxsize  # from here on Pillow reads the pixels
    return image


def _open_heic(data: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header of a HEIC photograph; libheif never decodes more pixels than its header declares."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ImageError(
            f"{name} is a HEIC photograph, and this installation cannot read those; save it as JPEG "
            "(or install the reader: pip install pillow-heif)."
        ) from error
    return HeifImageFile(io.BytesIO(data))  # type: ignore[no-untyped-call]


class _MeteredFile(io.BytesIO):
    """The bytes of a file; a parser that reads far more, or more often, than an image needs is stopped."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.image_name = name
        self.reads_left = MAX_READS
        self.bytes_left = sys.maxsize

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.reads_left -= 1
        self.bytes_left -= len(data)
        if self.reads_left < 0 or self.bytes_left < 0:
            raise ImageError(
                f"{self.image_name} has metadata that are too large or too fragmented; save it once more as JPEG or PNG."
            )
        return data


def _checked_jpeg(data: bytes, name: str) -> bytes:
    """Return the first image of a JPEG file, without what phones append to it (a film, a depth map, a second image).

    Raises:
        ImageError: If it has too much metadata or too many scans.
    """
    position, n_metadata, n_exif = 2, 0, 0
    for _ in range(MAX_JPEG_SEGMENTS):
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            raise ImageError(f"{name} is incomplete: it ends before its pixels start. Send it again.")
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDA:  # start of scan
            break
        if marker == 0xFF:  # padding
            position += 1
        elif marker <= 0x01 or 0xD0 <= marker <= 0xD9:  # without content
            position += 2
        else:
            if 0xE0 <= marker <= 0xEF:  # APP segments
                n_metadata += length
                n_exif += length if data.startswith(b"Exif", position + 4) else 0
            position += 2 + length
    else:
        raise ImageError(f"{name} has more than {MAX_JPEG_SEGMENTS} segments of metadata; save it once more.")
    if n_metadata > MAX_METADATA_BYTES or n_exif > MAX_EXIF_BYTES:
        raise ImageError(f"{name} has {n_metadata / 1e6:.1f} MB of metadata; save it once more without them.")
    # In compressed pixels 0xFF is followed by 0 or by a restart marker, so this is the end of the image.
    end = data.find(b"\xff\xd9", position) + 2
    data = data[:end] if end > 1 else data
    if data.count(b"\xff\xda", position) > MAX_JPEG_SCANS:
        raise ImageError(f"{name} has more than {MAX_JPEG_SCANS} scans; save it as an ordinary JPEG.")
    return data


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            "An array image must be uint8 of shape (height, width), (height, width, 3) or (height, width, 4), got "
            f"{array.dtype} of shape {array.shape}."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    size = f"{name} has {width} x {height} pixels"
    if width * height > MAX_PIXELS:
        raise ImageError(f"{size}, {_MOST_PIXELS}; make it smaller.")
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"{size}; both sides need at least {MIN_SIDE_PX}. Send the photograph itself.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"{size}, a strip longer than {MAX_ASPECT_RATIO}:1; crop it to the lesion.")


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    rgb = _to_rgb(image, name)
    method = _TRANSPOSE.get(_orientation(image, name))
    upright = rgb.transpose(method) if method is not None else rgb.copy() if rgb is image else rgb
    upright.info = {}  # an orientation left behind would be applied a second time by the next reader
    return upright


# As in `ImageOps.exif_transpose`, which would also decode and write all of the Exif block.
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image, name: str) -> int:
    """Return the Exif orientation that has not been applied yet, 1 to 8; 1 where there is none or it is broken."""
    exif = image.info.get("exif") or image.info.get("Raw profile type exif") or b""
    if len(exif) > MAX_EXIF_BYTES * (2 if isinstance(exif, str) else 1):  # the raw profile is hexadecimal
        raise ImageError(f"{name} has {len(exif) / 1e6:.1f} MB of Exif metadata; save it once more without them.")
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata do not make the image unreadable
        return 1


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    # Colour profiles are ignored: training, transformers and timm read files with a plain convert("RGB"), and a model
    # must see the same numbers here as there.
    if image.mode.startswith("I;16"):  # convert("RGB") would cut at 255, which leaves white
        to_8_bits = ((np.arange(65536) + 128) // 257).astype(np.uint8)
        return Image.fromarray(to_8_bits[np.asarray(image)]).convert("RGB")
    if image.has_transparency_data:
        # Colours under transparent pixels, often black, are never shown; viewers and web pages put white there.
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = Image.new("RGB", image.size, "white")
        rgb.paste(rgba, mask=rgba.getchannel("A"))
        return rgb
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F"):  # the value of white is undefined
        raise ImageError(f"{name} has 32-bit pixels; save it with 8 bits a channel.")
    return image.convert("RGB")


def _name(source: ImageInput) -> str:
    if isinstance(source, np.ndarray):
        return "The array"
    if isinstance(source, Image.Image | bytes):
        return "The image"
    if isinstance(source, str | os.PathLike):
        return f"{os.fspath(source)!r:.{MAX_SHOWN_NAME}}"  # a data URI may hold a whole photo
    raise ImageError(
        f"An image must be a path, bytes, a PIL image or a uint8 array, got {type(source).__name__}; "
        "convert tensors with tensor.numpy(), file objects with file.read()."
    )
