"""Proves `modeling/images.py` on the corpus of odd and hostile files, on random damage and on real photographs."""

import functools
import io
import json
import os
import random
import re
import struct
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngInfo

from modeling.images import MAX_FILE_BYTES, ImageError, decode_image
from support.corpus import CorpusFile, corners, encode, exif, heic, make_corpus, picture, tiff, with_segment

MAX_SECONDS = 10  # for one file; the largest allowed takes about 1 s
MAX_MEGABYTES = 1000  # on top of what Python and Pillow take


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> list[CorpusFile]:
    return make_corpus(tmp_path_factory.mktemp("images") / "corpus")


def plain_pillow(path: Path) -> Image.Image:
    """Return what other loaders see: timm, torchvision and transformers read files like this."""
    return ImageOps.exif_transpose(Image.open(path)).convert("RGB")


# ---- the corpus ----

DECODE_ALL = """
import json, resource, sys, time, warnings
warnings.simplefilter("ignore")
from PIL import Image
from modeling.images import ImageError, decode_image
from support.corpus import corners

resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))  # should a bound fail, the machine stays usable
Image.MAX_IMAGE_PIXELS = None if sys.argv[2] == "unlimited" else Image.MAX_IMAGE_PIXELS
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answers = []
for path in json.load(open(sys.argv[1])):
    start = time.perf_counter()
    try:
        image = decode_image(path)
        answer = {"read": [image.mode, image.size, corners(image)]}
    except ImageError as error:
        answer = {"refused": str(error)}
    image = None
    answer["seconds"] = time.perf_counter() - start
    answer["megabytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    answers.append(answer)
print(json.dumps(answers))
"""


@pytest.mark.parametrize("pillow_limit", ["default", "unlimited"])
def test_every_corpus_file_is_read_right_or_refused_with_the_reason_within_time_and_memory(
    corpus, tmp_path, pillow_limit
):
    assert len(corpus) >= 60
    (tmp_path / "paths.json").write_text(json.dumps([str(file.path) for file in corpus]))
    # A process of its own: memory is measured from a clean start, and a crash of the decoder would be seen.
    process = subprocess.run(
        [sys.executable, "-c", DECODE_ALL, str(tmp_path / "paths.json"), pillow_limit],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{Path(__file__).parent}"},
    )
    assert process.returncode == 0, process.stderr
    wrong = []
    for file, answer in zip(corpus, json.loads(process.stdout), strict=True):
        if file.expected == "refused":
            message = answer.get("refused", "")
            # An embedding program may lift Pillow's pixel limit; ours then speaks, in its own words.
            says = "" if pillow_limit == "unlimited" and file.says == "pixels" else file.says
            right = message and says in message and (repr(str(file.path)) in message)
        else:
            mode, size, colours = answer.get("read", [None, None, None])
            right = mode == "RGB" and tuple(size) == file.size
            if right and file.corners is not None:
                right = np.abs(np.subtract(colours, file.corners)).max() <= file.tolerance
        if not right or answer["seconds"] > MAX_SECONDS or answer["megabytes"] > MAX_MEGABYTES:
            wrong.append((file.path.name, file.why, answer))
    assert not wrong


def test_a_table_of_a_tiffs_exif_is_not_turned_into_python_numbers():
    # 600,000 fractions in 5 MB; as Python objects they are 150 MB, and a file of 100 MB would take 3 GB.
    start = 5_000
    picture_part = tiff({256: 64, 257: 64, 279: 4096, 0x8769: start})
    table = struct.pack("<HHHLLL", 1, 1000, 5, 600_000, 100, 0)
    data = picture_part + bytes(start - len(picture_part)) + table + bytes(5_000_000)
    tracemalloc.start()
    decode_image(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000_000


def test_the_limit_for_tables_of_a_tiff_does_not_count_its_pixels():
    large = picture().resize((2400, 1600))  # 11.5 MB, uncompressed
    assert decode_image(encode(large, "TIFF")).tobytes() == large.tobytes()


def test_files_of_plain_colour_give_the_pixels_that_other_loaders_see(corpus):
    compared = 0
    for file in corpus:
        # Pillow alone fails on broken Exif, reads gigabytes of it, or knows no HEIC.
        alone = not file.path.name.startswith(("exif-", "bomb", "large")) and file.path.suffix != ".heic"
        if file.expected == "reads" and alone:
            with Image.open(file.path) as image:
                ordinary = image.mode in ("RGB", "L", "P", "1", "CMYK") and not image.has_transparency_data
            if ordinary:
                assert decode_image(file.path).tobytes() == plain_pillow(file.path).tobytes(), file.path.name
                compared += 1
    assert compared > 50


def test_eight_threads_get_the_answers_of_one(corpus):
    paths = [file.path for file in corpus if not file.path.name.startswith("large")] * 3
    random.Random(0).shuffle(paths)
    alone = {path: answer_to(path) for path in set(paths)}
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer_to, paths))
    assert together == [alone[path] for path in paths]


def answer_to(source) -> bytes | str:
    try:
        return decode_image(source).tobytes()
    except ImageError as error:
        return str(error)


def test_bytes_and_open_images_give_the_pixels_of_the_path(corpus):
    for file in corpus:
        if file.expected == "reads" and not file.path.name.startswith(("bomb", "large")):
            pixels = decode_image(file.path).tobytes()
            assert decode_image(file.path.read_bytes()).tobytes() == pixels, file.path.name
            if file.path.suffix != ".heic":
                with Image.open(file.path) as image:
                    assert decode_image(image).tobytes() == pixels, file.path.name


# ---- what a caller may hand over ----


def test_a_path_that_is_no_file_is_named_in_the_error(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "missing.jpg", tmp_path, tmp_path / "pipe.jpg", tmp_path / ("x" * 300)):
        with pytest.raises(ImageError) as error:
            decode_image(path)
        assert repr(str(path)) in str(error.value)
    with pytest.raises(ImageError, match="check the path"):
        decode_image("nul\0byte.jpg")
    with pytest.raises(ImageError, match="download the file first"):
        decode_image("https://example.org/lesion.jpg")
    with pytest.raises(ImageError, match="check the path") as error:
        decode_image("data:image/jpeg;base64," + "A" * 1_000_000)
    assert len(str(error.value)) < 1000


def test_a_file_that_calls_itself_empty_but_never_ends_is_not_read():
    never_ends = Path("/proc/kmsg")  # a regular file of 0 bytes, whose reader waits for the kernel's next message
    if not never_ends.is_file():
        pytest.skip("this system has no /proc/kmsg")
    with pytest.raises(ImageError, match="'/proc/kmsg' is empty"):
        decode_image(never_ends)


def test_what_a_message_says_has_no_words_of_the_decoder(corpus):
    for file in corpus:
        if file.expected == "refused":
            with pytest.raises(ImageError) as error:
                decode_image(file.path)
            said = str(error.value).removeprefix(repr(str(file.path)))
            assert not re.search(r"b'|b\"|0x|<|\bPIL\b|Pillow|libheif|178956970|DOS", said), said


def test_a_heic_photograph_without_the_reader_says_what_to_install(corpus, monkeypatch):
    (path,) = [file.path for file in corpus if file.path.name == "orientation-6.heic"]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"HEIC photograph.* save it as JPEG .*pip install pillow-heif"):
        decode_image(path)


def test_a_heic_photograph_is_decoded_from_its_pixels_and_not_from_its_thumbnail():
    image = picture().resize((960, 640))
    thumbnail = heic(image, thumbnails=[256])
    assert decode_image(thumbnail).size == image.size


def test_a_file_over_the_byte_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large.bmp"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match="larger than 100 MB"):
        decode_image(path)


def test_arrays_of_uint8_are_read_and_kept_apart_from_the_answer():
    colour = np.asarray(picture()).copy()
    decoded = decode_image(colour)
    assert np.array_equal(np.asarray(decoded), colour)
    before = decoded.tobytes()
    colour[:] = 0
    assert decoded.tobytes() == before
    grey = np.full((10, 12), 77, np.uint8)
    assert decode_image(grey).getpixel((0, 0)) == (77, 77, 77)
    transparent = np.zeros((10, 12, 4), np.uint8)
    assert decode_image(transparent).getpixel((0, 0)) == (255, 255, 255)
    turned = np.asarray(picture()).transpose(1, 0, 2)[::-1]  # not contiguous
    assert np.array_equal(np.asarray(decode_image(turned)), turned)


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.zeros((9, 9, 3), np.float32), "uint8"),
        (np.full((9, 9, 3), np.nan), "uint8"),
        (np.zeros((9, 9, 3), np.int64), "uint8"),
        (np.zeros((9, 9), bool), "uint8"),
        (np.array([["a"]], dtype=object), "uint8"),
        (np.zeros((3, 9, 9), np.uint8), "shape"),
        (np.zeros((2, 9, 9, 3), np.uint8), "shape"),
        (np.zeros(9, np.uint8), "shape"),
        (np.zeros((0, 0, 3), np.uint8), "0 x 0|damaged"),
        (np.zeros((4, 9, 3), np.uint8), "at least 8"),
        (np.broadcast_to(np.uint8(0), (9000, 9000)), "51 megapixels"),
    ],
)
def test_other_arrays_are_refused_with_advice(array, advice):
    with pytest.raises(ImageError, match=advice):
        decode_image(array)


@pytest.mark.parametrize("source", [None, 7, object(), bytearray(b"x"), [1, 2], io.BytesIO(b"x")])
def test_other_objects_are_refused_with_the_list_of_what_is_allowed(source):
    with pytest.raises(ImageError, match="path, bytes, a PIL image or a uint8 array"):
        decode_image(source)


def test_the_callers_image_is_left_alone_and_not_handed_back():
    image = picture()
    decoded = decode_image(image)
    decoded.paste(0, (0, 0, 96, 64))
    assert image.tobytes() == picture().tobytes()


def test_an_answer_read_again_is_not_turned_again(corpus):
    (path,) = [file.path for file in corpus if file.path.name == "orientation-6.jpg"]
    decoded = decode_image(path)
    assert decode_image(decoded).tobytes() == decoded.tobytes()
    assert ImageOps.exif_transpose(decoded).tobytes() == decoded.tobytes()


def test_a_lazy_image_that_is_incomplete_is_refused():
    data = encode(picture(), "JPEG")
    with Image.open(io.BytesIO(data[: len(data) // 2])) as image, pytest.raises(ImageError, match="incomplete"):
        decode_image(image)


def test_a_program_that_lets_incomplete_images_pass_is_told_so(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        decode_image(encode(picture(), "JPEG")[:-500])


def test_a_png_whose_checksums_do_not_fit_is_refused():
    data = encode(picture(), "PNG")
    places = [
        (data.index(b"IDAT") + 8, 1 << bit) for bit in range(8)
    ]  # some can be unpacked all the same, to other pixels
    for place, mask in [*places, (data.index(b"IEND") - 8, 1)]:  # the last one is in the checksum itself
        changed = bytes(value ^ mask if at == place else value for at, value in enumerate(data))
        with pytest.raises(ImageError, match=r"damaged|incomplete"):
            decode_image(changed)


# ---- real photographs ----


def test_real_originals_decode_exactly_as_with_plain_pillow(real_data):
    paths = sorted((real_data / "originals").glob("*.jpg"))[:40]
    assert paths
    for path in paths:
        assert decode_image(path).tobytes() == plain_pillow(path).tobytes(), path.name


# ---- random damage ----

BOUNDED = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@functools.cache
def valid_file(format: str) -> bytes:
    options = {"TIFF": {"compression": "tiff_lzw"}, "PNG": {"exif": b"Exif\0\0"}}.get(format, {})
    return encode(picture(), format, **options)


def reads_or_refuses(data: bytes) -> None:
    answer = answer_to(data)
    assert isinstance(answer, bytes) or len(answer) > 20


@BOUNDED
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_image_errors(data):
    reads_or_refuses(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"])
@BOUNDED
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=6),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_files_raise_nothing_but_image_errors(format, changes, keep):
    data = bytearray(valid_file(format))
    for place, replacement in changes:
        # Most of the damage goes where the structure is: the first 200 bytes.
        position = int(place * 2 * 200) if place < 0.5 else int(place * len(data))
        data[position : position + len(replacement)] = replacement
    reads_or_refuses(bytes(data[: int(keep * len(data))]))


@BOUNDED
@given(
    st.dictionaries(st.sampled_from([270, 271, 272, 305, 306]), st.text("abc", max_size=20), max_size=4),
    st.integers(0, 10),
    st.booleans(),
)
def test_the_orientation_is_the_one_that_pillow_reads(texts, orientation, is_big_endian):
    block = Image.Exif()
    block.endian = ">" if is_big_endian else "<"
    block.update(texts)
    block[274] = orientation
    data = encode(picture(), "JPEG", exif=block)
    assert decode_image(data).tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).tobytes()


def test_metadata_that_disagree_turn_a_file_as_pillow_does():
    image, text = picture(), PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif(6))}\n{exif(6).hex()}\n")
    xmp = {700: b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'}
    files = {
        "PNG": ({"pnginfo": text}, {"pnginfo": text, "exif": exif(1)}, {"pnginfo": text, "exif": exif(3)}),
        "TIFF": ({"tiffinfo": xmp}, *({"tiffinfo": {**xmp, 274: orientation}} for orientation in (1, 3, 6))),
    }
    for format, each in files.items():
        for options in each:
            data = encode(image, format, **options)
            expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            assert decode_image(data).tobytes() == expected.tobytes(), (format, options)


@BOUNDED
@given(st.binary(max_size=60), st.sampled_from([b"II*\0", b"MM\0*", b""]))
def test_broken_exif_never_costs_the_picture(block, start):
    plain = valid_file("JPEG")
    damaged = with_segment(plain, 0xE1, b"Exif\0\0" + start + block)
    assert sorted(decode_image(damaged).size) == sorted(decode_image(plain).size)


def test_corner_colours_tell_every_orientation_apart():
    """The corpus can only show what its picture can show."""
    turned = {tuple(corners(picture().transpose(method))) for method in Image.Transpose}
    assert len(turned | {tuple(corners(picture()))}) == 8
