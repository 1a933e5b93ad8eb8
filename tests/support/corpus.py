"""Odd and hostile image files: `make_corpus(folder)` writes about 200 and says what to expect of each.

Run as `python tests/support/corpus.py FOLDER` to look at them.
"""

import base64
import io
import struct
import sys
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

# Four colours, one a quarter (top left, top right, bottom left, bottom right), tell every turn and flip apart.
RED, GREEN, BLUE, OCHRE, WHITE = (200, 40, 40), (40, 200, 40), (40, 40, 200), (200, 180, 40), (255, 255, 255)
QUARTERS = (RED, GREEN, BLUE, OCHRE)
SIZE = (96, 64)

Colours = Sequence[tuple[int, int, int]]


@dataclass(frozen=True)
class CorpusFile:
    """One file of the corpus.

    Attributes:
        expected: "reads" or "refused".
        why: What is odd about the file.
        says: A refused file's message contains this.
        size: Width and height after reading, (0, 0) where refused.
        corners: Colours near the four corners after reading (top left, top right, bottom left, bottom right), or None.
        tolerance: How far a channel may be off.
    """

    path: Path
    expected: str
    why: str
    says: str = ""
    size: tuple[int, int] = (0, 0)
    corners: Colours | None = None
    tolerance: int = 0


def make_corpus(folder: Path) -> list[CorpusFile]:
    """Write all files into `folder` (made if missing; about 20 MB) and return what is to be expected of each."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[CorpusFile] = []

    def reads(
        name: str,
        data: bytes,
        why: str,
        size: tuple[int, int] = SIZE,
        corners: Colours | None = QUARTERS,
        tolerance: int = 0,
    ) -> None:
        (folder / name).write_bytes(data)
        files.append(CorpusFile(folder / name, "reads", why, size=size, corners=corners, tolerance=tolerance))

    def refused(name: str, data: bytes, why: str, says: str) -> None:
        (folder / name).write_bytes(data)
        files.append(CorpusFile(folder / name, "refused", why, says=says))

    image = picture()
    jpeg = encode(image, "JPEG", quality=95, subsampling=0)
    plain = {
        "JPEG": jpeg,
        "PNG": encode(image, "PNG"),
        "GIF": encode(image.quantize(256), "GIF"),
        "WEBP": encode(image, "WEBP", lossless=True),
        "TIFF": encode(image, "TIFF"),
        "BMP": encode(image, "BMP"),
    }

    # --- ordinary ---
    for format, data in plain.items():
        reads(f"plain.{format.lower()}", data, f"plain {format}", tolerance=8)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        data = encode(image, "TIFF", compression=compression)
        reads(f"{compression}.tif", data, f"TIFF compressed with {compression}", tolerance=8)
    progressive = encode(image, "JPEG", quality=95, subsampling=0, progressive=True)
    reads("progressive.jpg", progressive, "progressive JPEG", tolerance=8)
    reads("arithmetic.jpg", ARITHMETIC_JPEG, "arithmetic-coded JPEG, by cjpeg", (48, 32), (*QUARTERS[:3], YELLOW), 2)
    reads(
        "arithmetic-progressive.jpg", ARITHMETIC_PROGRESSIVE_JPEG, "progressive arithmetic-coded JPEG", (48, 32), None
    )
    reads("webp-lossy.webp", encode(image, "WEBP", quality=90), "lossy WebP", tolerance=20)
    reads("interlaced.png", INTERLACED_PNG, "interlaced PNG of one colour, 8x8", (8, 8), [RED] * 4)

    # --- modes ---
    grey = [(level(c),) * 3 for c in QUARTERS]
    reads("grey.jpg", encode(image.convert("L"), "JPEG", quality=95), "grey JPEG", corners=grey, tolerance=4)
    reads("grey.png", encode(image.convert("L"), "PNG"), "grey PNG", corners=grey)
    alpha = Image.new("L", SIZE, 255)
    alpha.paste(0, (0, 0, SIZE[0] // 2, SIZE[1] // 2))  # the top left quarter is transparent
    grey_alpha = Image.merge("LA", (image.convert("L"), alpha))
    reads("grey-alpha.png", encode(grey_alpha, "PNG"), "grey with alpha", corners=[WHITE, *grey[1:]])
    rgba = image.copy()
    rgba.putalpha(alpha)
    reads("rgba.png", encode(rgba, "PNG"), "RGBA: white where transparent", corners=[WHITE, *QUARTERS[1:]])
    reads("rgba.webp", encode(rgba, "WEBP", lossless=True), "RGBA WebP", corners=[WHITE, *QUARTERS[1:]])
    reads("rgba.tif", encode(rgba, "TIFF"), "RGBA TIFF", corners=[WHITE, *QUARTERS[1:]])
    half = image.copy()
    half.putalpha(128)
    blend = [tuple(round(c * 128 / 255 + 127) for c in colour) for colour in QUARTERS]
    reads("half-transparent.png", encode(half, "PNG"), "half transparent", corners=blend, tolerance=1)
    reads(
        "rgb-trns.png",
        encode(quarters(), "PNG", transparency=RED),
        "one RGB colour is transparent (tRNS)",
        corners=[WHITE, *QUARTERS[1:]],
    )
    palette = quarters().quantize(4)
    reads("palette.png", encode(palette, "PNG"), "palette")
    red_index = palette.getpixel((1, 1))
    for format in ("PNG", "GIF"):
        data = encode(palette, format, transparency=red_index)
        reads(
            f"palette-transparent.{format.lower()}", data, "palette with transparency", corners=[WHITE, *QUARTERS[1:]]
        )
    one_bit = Image.new("1", SIZE)
    one_bit.paste(1, (0, 0, SIZE[0] // 2, SIZE[1]))
    black_and_white = [WHITE, (0, 0, 0), WHITE, (0, 0, 0)]
    reads("one-bit.png", encode(one_bit, "PNG"), "1-bit PNG", corners=black_and_white)
    reads("one-bit-g4.tif", encode(one_bit, "TIFF", compression="group4"), "1-bit fax TIFF", corners=black_and_white)
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
    reads("grey-16-bit.png", encode(Image.fromarray(deep), "PNG"), "16-bit grey PNG", corners=grey)
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG", transparency=1)
    reads("grey-16-bit-transparent.png", buffer.getvalue(), "16-bit grey PNG with a transparent value", corners=grey)
    reads("grey-16-bit.tif", encode(Image.fromarray(deep), "TIFF"), "16-bit grey TIFF", corners=grey)
    rows = np.asarray(image).astype(">u2") * 257
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    reads("rgb-16-bit.png", png(SIZE, 16, 2, raw), "16-bit RGB PNG")
    for kind in (np.int32, np.float32):
        data = encode(Image.fromarray(deep.astype(kind)), "TIFF")
        refused(f"{kind.__name__}.tif", data, "32-bit pixels of a range that no reader knows", "32-bit pixels")
    cmyk = image.convert("CMYK")
    reads("cmyk.jpg", encode(cmyk, "JPEG", quality=95, subsampling=0), "CMYK JPEG", tolerance=8)
    reads("cmyk.tif", encode(cmyk, "TIFF"), "CMYK TIFF")
    reads("ycck.jpg", ycck_jpeg(image), "YCCK JPEG (Adobe transform 2)", tolerance=8)
    reads("ycbcr.tif", encode(image.convert("YCbCr"), "TIFF", compression="tiff_lzw"), "YCbCr TIFF", tolerance=4)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    as_lab = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    reads("lab.tif", encode(as_lab, "TIFF"), "LAB TIFF", tolerance=8)

    # --- several pictures in one file: the first counts ---
    other = Image.new("RGB", SIZE, (1, 2, 3))
    for name, format, options in (
        ("animated.gif", "GIF", {}),
        ("animated.webp", "WEBP", {"lossless": True}),
        ("animated.png", "PNG", {}),
        ("pages.tif", "TIFF", {}),
        ("two.mpo.jpg", "MPO", {"quality": 95}),
    ):
        data = encode(quarters(), format, save_all=True, append_images=[other, other], **options)
        reads(name, data, "several pictures, the first counts", tolerance=8)

    # --- orientation and metadata ---
    for orientation in range(1, 9):
        stored = stored_as(image, orientation)
        data = encode(stored, "JPEG", quality=95, subsampling=0, exif=b"Exif\0\0" + exif(orientation))
        reads(f"orientation-{orientation}.jpg", data, f"Exif orientation {orientation}", tolerance=8)
    stored = stored_as(image, 6)
    reads("orientation-6.png", encode(stored, "PNG", exif=exif(6)), "Exif orientation in PNG")
    reads("orientation-6.webp", encode(stored, "WEBP", lossless=True, exif=exif(6)), "Exif orientation in WebP")
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[274] = 6
    reads("orientation-6.tif", encode(stored, "TIFF", tiffinfo=tags), "orientation in TIFF")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(stored, "JPEG", quality=95, subsampling=0, xmp=xmp)
    reads("orientation-6-xmp.jpg", data, "orientation in XMP only", tolerance=8)
    for name, block in {
        "empty": b"",
        "random": np.random.default_rng(0).bytes(500),
        "cut": exif(6)[:16],
        "far-away": b"II*\0" + struct.pack("<L", 0xFFFFFFF0),
        "orientation-0": exif(0),
        "orientation-9": exif(9),
        "orientation-as-text": ifd([(274, 2, 4, b"6\0\0\0")]),
        "endless-loop": ifd([(0x8769, 4, 1, struct.pack("<L", 8))], next_ifd=8),
        "huge-count": ifd([(274, 3, 0xFFFFFFFF, struct.pack("<L", 8))]),
        "xmp-in-exif": ifd([(700, 1, 0x7FFFFFFF, struct.pack("<L", 8))]),
    }.items():
        data = with_segment(jpeg, 0xE1, b"Exif\0\0" + block)
        reads(f"exif-{name}.jpg", data, f"broken Exif ({name}) is ignored", tolerance=8)
    reads("exif-random.png", png_with(plain["PNG"], b"eXIf", b"\xff" * 100), "broken Exif in PNG")
    profile = ImageCms.ImageCmsProfile(srgb).tobytes()
    reads(
        "icc-srgb.jpg",
        encode(image, "JPEG", quality=95, subsampling=0, icc_profile=profile),
        "sRGB profile",
        tolerance=8,
    )
    reads(
        "icc-broken.jpg",
        encode(image, "JPEG", quality=95, subsampling=0, icc_profile=b"\xff" * 300),
        "no profile",
        tolerance=8,
    )
    reads("icc-broken.png", encode(image, "PNG", icc_profile=b"\xff" * 300), "no profile")
    reads("comment.jpg", with_segment(jpeg, 0xFE, b"<script>alert(1)</script>"), "script in a comment", tolerance=8)
    reads("trailing-zip.jpg", jpeg + zip_of_zeros(1_000_000), "a zip archive after the picture", tolerance=8)

    # --- as phones save ---
    film = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\xff\xda" * 20_000 + np.random.default_rng(2).bytes(200_000)
    reads("motion-photo.jpg", jpeg + film, "a film behind the image, full of what look like scans", tolerance=8)
    reads("motion-photo-progressive.jpg", progressive + film, "the same behind a progressive JPEG", tolerance=8)
    burst = encode(image, "MPO", quality=95, save_all=True, append_images=[other] * 60)
    reads("burst.jpg", burst, "61 images in one file (MPF), one scan each", tolerance=8)
    thumbnails = jpeg
    for _ in range(80):
        thumbnails = with_segment(thumbnails, 0xEB, jpeg * 4)
    thumbnails = with_segment(thumbnails, 0xE1, b"Exif\0\0" + exif(1))
    reads("large-metadata.jpg", thumbnails, "2 MB of metadata with 320 small JPEGs in them", tolerance=8)
    restarts = encode(image, "JPEG", quality=95, subsampling=0, restart_marker_blocks=1)
    reads("restart-markers.jpg", restarts, "a restart marker after every block", tolerance=8)
    reads("orientation-6.heic", heic(stored, exif=b"Exif\0\0" + exif(6)), "HEIC, held upright", tolerance=24)
    reads("rgba.heic", heic(rgba), "HEIC with transparency", corners=[WHITE, *QUARTERS[1:]], tolerance=24)
    refused("cut.heic", heic(image)[:-500], "HEIC, incomplete", "Send it again")
    refused("film.heic", film, "a film with the ending of a photograph", "not an image")
    large = heic(Image.new("RGB", (640, 480)))
    size = large.index(b"ispe") + 8  # width and height
    lie = patched(large, size, struct.pack(">LL", 64, 64))
    refused("bomb-lie.heic", lie, "HEIC of 640x480 that says 64x64", "damaged")
    claim = patched(large, size, struct.pack(">LL", 60_000, 60_000))
    refused("bomb-claim.heic", claim, "HEIC that claims 3.6 gigapixels", "more than 51 megapixels")

    # --- names ---
    for name in (
        "with spaces  and (brackets).jpg",
        "läsion-皮膚-🩺.jpg",
        "new\nline.jpg",
        "-rf.jpg",
        "=1+1,quote\"and'.jpg",
        "<img src=x onerror=alert(1)>.jpg",
        "..\\..\\..%2f..%2fetc%2fpasswd.jpg",
        "$(touch owned);`id`.jpg",
        "UPPER.JPG",
        "no-extension",
        "wrong-extension.png",
        "x" * 200 + ".jpg",
    ):
        reads(name, jpeg, "an odd name", tolerance=8)

    # --- no pictures ---
    says = "not an image"
    refused("empty.jpg", b"", "0 bytes", "empty")
    refused("text.jpg", b"This is a text, not an image.\n" * 20, "text", says)
    refused("page.jpg", b"<!doctype html><script>alert(1)</script>", "HTML", says)
    refused(
        "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "SVG", says
    )
    refused("drawing.jpg", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG as .jpg", says)
    refused("document.jpg", encode(image, "PDF"), "PDF", says)
    refused("script.eps", encode(image, "EPS"), "EPS, which would start Ghostscript", says)
    refused("pixmap.jpg", encode(image, "PPM"), "a format not on the list", says)
    refused("jpeg2000.jpg", encode(image, "JPEG2000"), "a format not on the list", says)
    refused("archive.zip", zip_of_zeros(50_000_000), "zip bomb", says)
    refused("archive.jpg", zip_of_zeros(1_000_000), "zip as .jpg", says)
    refused("random.jpg", np.random.default_rng(1).bytes(5000), "random bytes", says)
    refused("zeros.png", bytes(5000), "zero bytes", says)
    refused("pickle.jpg", b"\x80\x04cposix\nsystem\n(S'touch owned'\ntR.", "a pickle", says)

    # --- incomplete ---
    for format, data in {**plain, "PROGRESSIVE": progressive}.items():
        for percent in (1, 10, 30, 50, 70, 90):
            part = data[: len(data) * percent // 100]
            refused(f"cut-{percent}-percent.{format.lower()}", part, f"{format} cut after {percent} %", "Send ")
    refused("only-soi.jpg", b"\xff\xd8", "two bytes of a JPEG", "incomplete")
    refused("signature.png", b"\x89PNG\r\n\x1a\n", "eight bytes of a PNG", says)
    refused("no-idat.png", plain["PNG"][:33], "PNG without pixels", "start is damaged")
    refused("flipped.png", flipped(plain["PNG"]), "PNG with wrong pixel data", "damaged")

    # --- shapes ---
    black = (0, 0, 0)
    refused("1x1.png", encode(Image.new("RGB", (1, 1)), "PNG"), "1x1", "at least 8")
    refused("1x10000.png", encode(Image.new("RGB", (1, 10_000)), "PNG"), "1x10000", "at least 8")
    refused("7x7.jpg", encode(Image.new("RGB", (7, 7)), "JPEG"), "7x7", "at least 8")
    reads("8x8.png", encode(Image.new("RGB", (8, 8)), "PNG"), "the smallest allowed", (8, 8), [black] * 4)
    reads("80x8.png", encode(Image.new("RGB", (80, 8)), "PNG"), "the longest allowed", (80, 8), [black] * 4)
    refused("81x8.png", encode(Image.new("RGB", (81, 8)), "PNG"), "too long a strip", "strip")
    refused("30000x20.jpg", encode(Image.new("RGB", (30_000, 20)), "JPEG"), "30,000 px wide strip", "strip")
    refused(
        "30000x2500.png", png((30_000, 2500), 1, 0, bytes(3751 * 2500)), "30,000 px wide, 75 megapixels", "more than 51"
    )
    reads(
        "large-wide.png", png((12_000, 1200), 1, 0, bytes(1501 * 1200)), "large, allowed", (12_000, 1200), [black] * 4
    )
    reads(
        "large.jpg",
        encode(Image.new("RGB", (7100, 7100), RED), "JPEG", quality=30),
        "50.4 megapixels, nearly the most allowed",
        (7100, 7100),
        [RED] * 4,
        8,
    )

    # --- bombs ---
    zeros = zlib.compress(bytes(50_000_000), 9)
    refused(
        "bomb-30000x30000.png", png((30_000, 30_000), 1, 0, bytes(3751 * 30_000)), "900 megapixels in 110 kB", "pixels"
    )
    refused("bomb-claim.png", png((100_000, 100_000), 8, 2, b""), "header claims 10 gigapixels", "pixels")
    refused("bomb-claim-2.png", png((2**31 - 1, 2**31 - 1), 16, 6, b""), "header claims the largest PNG", "pixels")
    refused(
        "bomb-claim.gif",
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + plain["GIF"][10:],
        "claims 4 gigapixels",
        "pixels",
    )
    refused(
        "bomb-claim.bmp",
        patched(plain["BMP"], 18, struct.pack("<ll", 60_000, 60_000)),
        "claims 3.6 gigapixels",
        "pixels",
    )
    sof = jpeg.index(b"\xff\xc0")
    refused(
        "bomb-claim.jpg", patched(jpeg, sof + 5, struct.pack(">HH", 65_500, 65_500)), "claims 4 gigapixels", "pixels"
    )
    canvas = b"VP8X" + struct.pack("<LL", 10, 0) + (16_383).to_bytes(3, "little") * 2
    refused("bomb-claim.webp", riff(canvas + plain["WEBP"][12:]), "claims a canvas of 268 megapixels", "damaged")
    refused("bomb-claim.tif", tiff({256: 50_000, 257: 50_000}), "claims 2.5 gigapixels", "pixels")
    refused(
        "bomb-tile.tif",
        tiff({256: 64, 257: 64, 322: 60_000, 323: 60_000, 324: 8, 325: 10, 259: 5}),
        "64x64, but one tile of 3.6 gigapixels",
        "tiles",
    )
    refused(
        "bomb-text.png",
        png_with(plain["PNG"], b"zTXt", b"k\0\0" + zeros),
        "compressed text of 50 MB",
        "damaged or incomplete",
    )
    refused(
        "bomb-international-text.png",
        png_with(plain["PNG"], b"iTXt", b"k\0\1\0\0\0" + zeros),
        "compressed text of 50 MB",
        "damaged or incomplete",
    )
    refused(
        "bomb-profile.png",
        png_with(plain["PNG"], b"iCCP", b"k\0\0" + zeros),
        "colour profile of 50 MB",
        "damaged or incomplete",
    )
    reads("bomb-pixels.png", png(SIZE, 8, 2, raw_rgb(image) + bytes(50_000_000)), "50 MB behind the pixels")
    chunks = png_chunk(b"tEXt", b"a\0") * 150_000
    refused("bomb-chunks.png", plain["PNG"][:33] + chunks + plain["PNG"][33:], "150,000 chunks", "fragmented")
    plenty = jpeg
    for _ in range(130):
        plenty = with_segment(plenty, 0xE2, bytes(65_000))
    refused("bomb-metadata.jpg", plenty, "8.5 MB of metadata", "8.5 MB of metadata")
    refused("bomb-segments.jpg", jpeg[:2] + b"\xff\xfe\0\x02" * 500_000 + jpeg[2:], "500,000 comments", "segments")
    # Joined, as Pillow does, the blocks are 1.36 MB, and 5,000 tables of 1.2 MB each are 6 GB.
    table = ifd([(tag, 1, 1_200_000, struct.pack("<L", 8)) for tag in range(1000, 6000)], pad=5000)[:65_000]
    many = jpeg
    for block in [bytes(65_000)] * 20 + [table]:
        many = with_segment(many, 0xE1, b"Exif\0\0" + block)
    refused("bomb-exif.jpg", many, "5,000 overlapping Exif tables, 6 GB together", "of metadata")
    # PNG Exif may be far longer than JPEG's: 20,000 tables of 240 kB each are 4.8 GB
    table = ifd([(tag, 1, 240_000, struct.pack("<L", 8)) for tag in range(1000, 21_000)])
    refused("bomb-exif.png", png_with(plain["PNG"], b"eXIf", table), "20,000 tables, 4.8 GB together", "Exif metadata")
    tables = [(tag, 1, 240_000, struct.pack("<L", 8)) for tag in range(1000, 21_000)]
    refused("bomb-tables.tif", tiff({256: 64, 257: 64, 279: 4096}, tables), "the same in a TIFF", "too large")
    strips = [(273, 4, 3_000_000, struct.pack("<L", 8))]
    refused("bomb-offsets.tif", tiff({256: 64, 257: 64}, strips, 12_000_000), "3 million strips", "too large")
    inner = ifd([(tag, 1, 240_000, struct.pack("<L", 8)) for tag in range(1000, 21_000)])[8:]
    body = tiff({256: 64, 257: 64, 279: 4096, 0x8769: 10_000})
    reads("bomb-exif.tif", body + bytes(10_000 - len(body)) + inner, "the same in a TIFF's Exif", (64, 64), None)
    last_scan = progressive.rindex(b"\xff\xda")
    hidden = b"\xff\xc4\0\0" * 10_000  # empty tables, each read by the decoder
    refused("bomb-tables.jpg", jpeg[:-2] + hidden + b"\xff\xd9", "10,000 empty tables between scans", "damaged")
    refused("bomb-scans.jpg", progressive[:-2] + progressive[last_scan:-2] * 5000 + b"\xff\xd9", "5,000 scans", "scans")
    return files


# ---- pictures ----


def quarters() -> Image.Image:
    """Return four quarters of one colour each."""
    image = Image.new("RGB", SIZE, RED)
    half_width, half_height = SIZE[0] // 2, SIZE[1] // 2
    image.paste(GREEN, (half_width, 0, SIZE[0], half_height))
    image.paste(BLUE, (0, half_height, half_width, SIZE[1]))
    image.paste(OCHRE, (half_width, half_height, SIZE[0], SIZE[1]))
    return image


def picture() -> Image.Image:
    """Return the four quarters with noise in the middle, so that files have a body that can be cut."""
    image = quarters()
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    image.paste(Image.fromarray(noise), (24, 16))
    return image


def corners(image: Image.Image) -> list[tuple[int, int, int]]:
    """Return the colours three pixels in from the corners: top left, top right, bottom left, bottom right."""
    right, bottom = image.width - 4, image.height - 4
    return [image.getpixel(point) for point in ((3, 3), (right, 3), (3, bottom), (right, bottom))]


def level(colour: tuple[int, int, int]) -> int:
    return Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0))


def encode(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def heic(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=90, **options)
    return file.getvalue()


def stored_as(image: Image.Image, orientation: int) -> Image.Image:
    """Return the pixels as a camera held that way stores them: turned back by the viewer, they are `image`.

    Written with numpy from the table of the Exif standard (row 0 and column 0 of the stored picture show the visual
    side named there), independent of Pillow's transpose methods.
    """
    upright = np.asarray(image)
    stored = {
        1: upright,  # row 0 is the top, column 0 the left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright.swapaxes(0, 1)[::-1],  # right, top
        7: upright.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
        8: upright.swapaxes(0, 1)[:, ::-1],  # left, bottom
    }[orientation]
    return Image.fromarray(np.ascontiguousarray(stored))


def ycck_jpeg(image: Image.Image) -> bytes:
    """Return a YCCK JPEG, made by hand: luma and chroma in the first planes, the Adobe marker's transform set to 2."""
    luma_chroma = [plane.point(lambda value: 255 - value) for plane in ImageOps.invert(image).convert("YCbCr").split()]
    # Pillow inverts CMYK while it saves, as Adobe does; C = 255 - R, hence the inverted picture.
    black = Image.new("L", image.size, 0)
    data = encode(Image.merge("CMYK", (*luma_chroma, black)), "JPEG", quality=95, subsampling=0)
    adobe = data.index(b"Adobe")
    return patched(data, adobe + 11, b"\2")


# ---- pieces of files ----


def patched(data: bytes, position: int, replacement: bytes) -> bytes:
    return data[:position] + replacement + data[position + len(replacement) :]


def flipped(data: bytes) -> bytes:
    return patched(data, len(data) // 2, bytes(byte ^ 0xFF for byte in data[len(data) // 2 :][:8]))


def with_segment(jpeg: bytes, marker: int, content: bytes) -> bytes:
    return jpeg[:2] + b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))


def png(size: tuple[int, int], depth: int, colour_type: int, raw: bytes, *, interlace: int = 0) -> bytes:
    header = struct.pack(">LLBBBBB", *size, depth, colour_type, 0, 0, interlace)
    pixels = png_chunk(b"IDAT", zlib.compress(raw, 9))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + pixels + png_chunk(b"IEND", b"")


def png_with(data: bytes, kind: bytes, content: bytes) -> bytes:
    return data[:33] + png_chunk(kind, content) + data[33:]  # the header chunk ends at byte 33


def raw_rgb(image: Image.Image) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in np.asarray(image))


def riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<L", len(chunks) + 4) + b"WEBP" + chunks


def exif(orientation: int) -> bytes:
    return ifd([(274, 3, 1, struct.pack("<HH", orientation, 0))])


def ifd(entries: list[tuple[int, int, int, bytes]], *, next_ifd: int = 0, pad: int = 0) -> bytes:
    """Return a TIFF structure of one directory; entries are (tag, type, count, 4 bytes of value or offset)."""
    body = b"".join(struct.pack("<HHL", *entry[:3]) + entry[3] for entry in sorted(entries))
    return b"II*\0" + struct.pack("<LH", 8, len(entries)) + body + struct.pack("<L", next_ifd) + bytes(pad)


def tiff(values: dict[int, int], more: list[tuple[int, int, int, bytes]] | None = None, pad: int = 0) -> bytes:
    """Return an 8-bit grey TIFF with these LONG tags, whose pixels do not matter."""
    tags = {258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 279: 100, **values}
    for entry in more or []:
        tags.pop(entry[0], None)
    entries = [(tag, 4, 1, struct.pack("<L", value)) for tag, value in tags.items()]
    return ifd(entries + (more or []), pad=pad)


def zip_of_zeros(size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../zeros.jpg", bytes(size))
    return file.getvalue()


INTERLACED_PNG = png(  # Adam7 passes of an 8x8 picture: width x height of each, one filter byte a row
    (8, 8),
    8,
    2,
    b"".join(
        (b"\0" + bytes(RED) * width) * height
        for width, height in ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))
    ),
    interlace=1,
)

# Pillow reads arithmetic coding but cannot write it: made with `cjpeg -arithmetic -quality 90` of libjpeg-turbo 2.1.5,
# the second one also with `-progressive`. 48x32, quarters RED, GREEN, BLUE, YELLOW.
YELLOW = (200, 200, 40)
ARITHMETIC_JPEG = base64.b64decode(
    """
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGB
    YUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/yQARCAAg
    ADADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANH/AOUCAisPN1CMLzgWwV2TZijYdnOfv6wO6c6KMHxzf5pH+WnR9GGDSa
    7p5fEdz+y+HYuwvKqPV7aUSuD/2Q==
    """
)
ARITHMETIC_PROGRESSIVE_JPEG = base64.b64decode(
    """
    /9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGB
    YUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/ygARCAAg
    ADADASIAAhEBAxEB/8wABgAQARD/2gAMAwEAAhADEAAAAf8ApRaUnMEPx3TwXH3HdI4AeySuzGAR6SW8iamEvlCo+v/MAAQQBf/aAAgBAQABBQ
    Kw/8wABBEF/9oACAEDAQE/Ae7Fi4SZ6Wp7hOMV/8wABBEF/9oACAECAQE/Ae6Hx+P3FySkyiqewP/MAAQQBf/aAAgBAQAGPwKw/8wABBAF/9oA
    CAEBAAE/IbD/2gAMAwEAAgADAAAAEPlyV9aQ/8wABBEF/9oACAEDAQE/ENRZ9AnmBuD/zAAEEQX/2gAIAQIBAT8QpeNaHlJ9wP/MAAQQBf/aAA
    gBAQABPxCw/9k=
    """
)

if __name__ == "__main__":
    for file in make_corpus(Path(sys.argv[1])):
        print(file.expected, repr(file.path.name), file.why, sep="\t")
