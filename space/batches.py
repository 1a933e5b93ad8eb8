"""Many photos at once: files or zip archives in, one row each out."""

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import images_out
from answers import Photo, Turn
from uploads import shown_name

from modeling.classifier import LesionClassifier
from modeling.images import MAX_FILE_BYTES, ImageError
from modeling.labels import diagnosis_of
from modeling.prediction import Prediction
from modeling.rows import columns_of, malignant_probability, write_rows

MAX_IMAGES = 200
MAX_UNPACKED_BYTES = 500_000_000
MAX_DIRECTORY_BYTES = 1_000_000  # an entry takes about 100 bytes
END_RECORD_REACH_BYTES = 66_000  # the end record is within 64 KiB of an archive's end (APPNOTE 4.3.16)
BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks others without a bound
NO_PHOTO = re.compile(r"__MACOSX/|.*/$|(.*/)?\.[^/]*$|.*\.(csv|txt|json|md|pdf|xml|html)$", re.IGNORECASE)
THUMBNAIL_SIDE_PX = 96


@dataclass
class Budget:
    """How many bytes the archives of one batch may still unpack to; an entry that is refused costs as much."""

    left: int


# One file of a batch: its name, and what returns it, or raises an ImageError with the reason why it cannot be used.
Entry = tuple[str, Callable[[Budget], Photo]]


def classify_rows(
    classifier: LesionClassifier, uploads: Sequence[Photo], *, thumbnails: bool = False, turn: Turn = nullcontext
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Classify every image, one after the other, so that each answer is the one that it would get alone.

    Yields:
        How many are done, how many there are, and the row of the last one.

    Raises:
        ImageError: If there is nothing to classify, or too much.
    """
    entries, budget = list_entries(uploads), Budget(MAX_UNPACKED_BYTES)
    for number, (name, read) in enumerate(entries):
        row: dict[str, Any] = {"number": number, "name": name, "error": None}
        with turn():
            try:
                image = read(budget).decode()
                row |= row_fields(classifier.predict(image))
                if thumbnails:
                    row["thumbnail"] = images_out.jpeg_uri(image, THUMBNAIL_SIDE_PX)
            except ImageError as error:
                row["error"] = str(error)
        yield number + 1, len(entries), row


def row_fields(prediction: Prediction) -> dict[str, Any]:
    """Return one prediction as a row: `Prediction.to_dict` without what all rows share, the name, and one sum."""
    shared = ("provenance", "notice", "priors")
    return {
        **{key: value for key, value in prediction.to_dict().items() if key not in shared},
        "diagnosis_name": diagnosis_of(prediction.diagnosis).name,
        **malignant_probability(prediction.probabilities),
    }


def table(classifier: LesionClassifier, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of a batch and their CSV: flagged ones first, then by the probability of malignancy."""
    rows = sorted(
        rows, key=lambda row: (bool(row["error"]), not row.get("flagged"), -row.get("malignant_probability", 0.0))
    )
    columns = columns_of(classifier.codes, [point.name for point in classifier.operating_points])
    flat = (
        {
            **{**row, "image": row["name"], "flagged": "; ".join(row.get("flagged", ()))},
            **row.get("probabilities", {}),
            **row.get("operating_points", {}),
            **classifier.provenance,
        }
        for row in rows
    )
    buffer = io.StringIO(newline="")
    write_rows(buffer, flat, [*columns, *classifier.provenance])
    return {
        "rows": rows,
        "csv": buffer.getvalue(),
        "provenance": classifier.provenance,
        "notice": classifier.notice,
    }


def as_sent(photo: Photo, _: Budget) -> Photo:
    """Return a photo that was sent by itself."""
    return photo


def list_entries(uploads: Sequence[Photo]) -> list[Entry]:
    """List what is to be classified: the files themselves, and the images inside zip archives."""
    entries: list[Entry] = []
    for upload in uploads:
        entries += archive_entries(upload) if is_archive(upload) else [(upload.name, partial(as_sent, upload))]
        if len(entries) > MAX_IMAGES:
            raise ImageError(f"More than {MAX_IMAGES} photos came; send them in parts.")
    if not entries:
        raise ImageError("There is no photo in what you sent; send image files, or a zip archive of image files.")
    return entries


def is_archive(upload: Photo) -> bool:
    """True for a zip archive, also a truncated or self-extracting one; an image with an archive behind it is an image."""
    if isinstance(upload.source, bytes):
        return False
    head = upload.head()
    return head.startswith(b"PK") or (head.startswith(b"MZ") and zipfile.is_zipfile(upload.source))


def archive_entries(upload: Photo) -> list[Entry]:
    """List the files of a zip archive, without unpacking any and without following names out of it."""
    if not small_directory(str(upload.source)):
        return [
            (upload.name, partial(refuse, f"{upload.name} lists too many files; pack at most {MAX_IMAGES} photos."))
        ]
    try:
        archive = zipfile.ZipFile(str(upload.source))
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return [(upload.name, partial(refuse, f"{upload.name} is a damaged archive; pack it again."))]
    named = [(shown_name(info.filename), info) for info in archive.infolist() if not NO_PHOTO.match(info.filename)]
    return [(name, partial(unpack, archive, info, name)) for name, info in named]


def refuse(sentence: str, _: Budget) -> NoReturn:
    """Raise the reason why a file cannot be used."""
    raise ImageError(sentence)


def small_directory(path: str) -> bool:
    """True if a zip archive's list of files is short enough to be read into memory at all."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - END_RECORD_REACH_BYTES))
        tail = file.read()
    records = [match.start() for match in re.finditer(rb"PK\x05\x06", tail) if match.start() + 16 <= len(tail)]
    sizes = [struct.unpack_from("<L", tail, start + 12)[0] for start in records]
    # A zip64 archive keeps its numbers elsewhere; nobody needs one for this few images.
    return b"PK\x06\x07" not in tail and max(sizes, default=0) <= MAX_DIRECTORY_BYTES


def unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, budget: Budget) -> Photo:
    """Read one entry of an archive into memory, counting the bytes that really come out of it."""
    allowed = min(MAX_FILE_BYTES, budget.left)
    if info.flag_bits & 1:
        raise ImageError(f"{name} is encrypted; pack the archive without a password.")
    if info.compress_type not in BOUNDED_METHODS:
        raise ImageError(f"{name} is compressed by an unusual method; pack the archive with the usual one (deflate).")
    data = b""
    try:
        with archive.open(info) as file:
            data = file.read(allowed + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ImageError(f"{name} is damaged inside the archive; pack it again.") from error
    finally:
        budget.left -= min(len(data) or info.file_size, allowed)  # no more is unpacked than an entry claims
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(f"{name} unpacks to more than is allowed ({MAX_FILE_BYTES // 10**6} MB); it is left out.")
    if len(data) > allowed:
        limit = MAX_UNPACKED_BYTES // 10**6
        raise ImageError(
            f"{name} is left out: the archives together unpack to more than {limit} MB; send it in another batch."
        )
    if data.startswith(b"PK") and zipfile.is_zipfile(io.BytesIO(data)):
        raise ImageError(f"{name} is an archive inside an archive; unpack it first.")
    return Photo(data, name)
