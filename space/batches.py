"""Many pictures at once: files or zip archives in, one row each out, and a CSV that spreadsheets open safely."""

import io
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import render
from answers import Photo
from uploads import shown_name

from modeling.classifier import LesionClassifier
from modeling.images import MAX_FILE_BYTES, ImageError
from modeling.labels import diagnosis_of
from modeling.prediction import Prediction, rounded
from modeling.rows import write_rows

MAX_IMAGES = 200
MAX_UNPACKED_BYTES = 500_000_000
MAX_DIRECTORY_BYTES = 1_000_000  # an entry takes about 100 bytes
END_RECORD_REACH_BYTES = 66_000  # the end record lies within 64 KiB of an archive's end (APPNOTE 4.3.16)


@dataclass(frozen=True)
class Packed:
    """A file inside an archive, still packed."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str


@dataclass(frozen=True)
class Refused:
    """An upload that holds no picture to classify, with the reason."""

    name: str
    reason: str


def classify_rows(
    classifier: LesionClassifier, uploads: Sequence[Photo], *, for_page: bool
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Classify every picture, one after the other, so that each answer is the one that it would get alone.

    Yields:
        How many are done, how many there are, and the row of the last one.

    Raises:
        ImageError: If there is nothing to classify, or too much.
    """
    entries = list_entries(uploads)
    left_bytes = MAX_UNPACKED_BYTES
    for number, entry in enumerate(entries, 1):
        try:
            photo = open_entry(entry, left_bytes)
            left_bytes -= len(photo.source) if isinstance(photo.source, bytes) else 0
            picture = photo.decode()
            row = {"image": photo.name, "error": None, **row_fields(classifier, classifier.predict(picture))}
            if for_page:
                row |= {"thumbnail": render.thumbnail(picture), "number": number - 1}
        except ImageError as error:
            row = {"image": entry.name, "error": str(error)}
        yield number, len(entries), row


def photo_of(uploads: Sequence[Photo], number: int) -> Photo:
    """Return the photo of one row of a batch, read again from what was sent.

    Raises:
        ImageError: If there is no such photo, or it cannot be read.
    """
    entries = list_entries(uploads)
    if not 0 <= number < len(entries):
        raise ImageError("This row is no longer here; send the batch again.")
    return open_entry(entries[number], MAX_UNPACKED_BYTES)


def row_fields(classifier: LesionClassifier, prediction: Prediction) -> dict[str, Any]:
    """Return one prediction as a flat row: `Prediction.to_dict` without what all rows share, and one sum."""
    shared = ("provenance", "notice")
    malignant = sum(value for code, value in prediction.probabilities.items() if diagnosis_of(code).malignant)
    return {
        **{key: value for key, value in prediction.to_dict().items() if key not in shared},
        "malignant_probability": rounded(malignant),
    }


def list_entries(uploads: Sequence[Photo]) -> list[Photo | Packed | Refused]:
    """List what is to be classified: the files themselves, and the pictures inside zip archives.

    Raises:
        ImageError: If there is nothing to classify, or too much.
    """
    entries: list[Photo | Packed | Refused] = []
    for upload in uploads:
        entries.extend(archive_entries(upload) if is_archive(upload) else [upload])
        if len(entries) > MAX_IMAGES:
            raise ImageError(f"More than {MAX_IMAGES} photos came; send them in parts.")
    if not entries:
        raise ImageError("There is no photo in what you sent; send image files, or a zip archive of image files.")
    return entries


def is_archive(upload: Photo) -> bool:
    """Tell a zip archive from a picture; a picture with an archive behind its last byte is a picture."""
    if isinstance(upload.source, bytes):
        return False
    with open(upload.source, "rb") as file:
        return file.read(2) == b"PK" and zipfile.is_zipfile(file)


def archive_entries(upload: Photo) -> list[Photo | Packed | Refused]:
    """List the files of a zip archive, without unpacking any and without following names out of it."""
    if not small_directory(str(upload.source)):
        return [Refused(upload.name, f"{upload.name} lists too many files; pack at most {MAX_IMAGES} photos.")]
    try:
        archive = zipfile.ZipFile(upload.source)  # type: ignore[arg-type]  # an upload is a path
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return [Refused(upload.name, f"{upload.name} is a damaged zip archive; pack it again.")]
    return [
        Packed(archive, info, name)
        for info in archive.infolist()
        if not info.is_dir()
        and not info.filename.startswith("__MACOSX/")
        and not (name := shown_name(info.filename)).startswith(".")
    ]


def small_directory(path: str) -> bool:
    """Tell whether a zip archive's list of files is short enough to be read into memory at all."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - END_RECORD_REACH_BYTES))
        tail = file.read()
    records = [match.start() for match in re.finditer(rb"PK\x05\x06", tail) if match.start() + 16 <= len(tail)]
    sizes = [struct.unpack_from("<L", tail, start + 12)[0] for start in records]
    # A zip64 archive keeps its numbers elsewhere; nobody needs one for this few pictures.
    return b"PK\x06\x07" not in tail and max(sizes, default=0) <= MAX_DIRECTORY_BYTES


def open_entry(entry: Photo | Packed | Refused, budget_bytes: int) -> Photo:
    """Return the photo of an entry.

    Raises:
        ImageError: If it is none.
    """
    if isinstance(entry, Refused):
        raise ImageError(entry.reason)
    return unpack(entry, budget_bytes) if isinstance(entry, Packed) else entry


def unpack(packed: Packed, budget_bytes: int) -> Photo:
    """Read one entry into memory, counting the bytes that really come out of it.

    Raises:
        ImageError: If it is encrypted, damaged, itself an archive, or larger than allowed.
    """
    if packed.info.flag_bits & 1:
        raise ImageError(f"{packed.name} is encrypted; pack the archive without a password.")
    try:
        with packed.archive.open(packed.info) as file:
            data = file.read(min(MAX_FILE_BYTES, budget_bytes) + 1)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise ImageError(f"{packed.name} is damaged inside the archive; pack it again.") from error
    if len(data) > MAX_FILE_BYTES:
        raise ImageError(
            f"{packed.name} unpacks to more than is allowed ({MAX_FILE_BYTES // 10**6} MB); it is left out."
        )
    if len(data) > budget_bytes:
        raise ImageError(
            f"{packed.name} is left out: the archives together unpack to more than {MAX_UNPACKED_BYTES // 10**6} MB; send it "
            "in another batch."
        )
    if data.startswith(b"PK") and zipfile.is_zipfile(io.BytesIO(data)):
        raise ImageError(f"{packed.name} is an archive inside an archive; unpack it first.")
    return Photo(data, packed.name)


def to_csv(rows: Sequence[dict[str, Any]], classifier: LesionClassifier) -> str:
    """Return the rows as CSV text, one probability column per diagnosis, named by its code."""
    columns = [
        *("image", "verdict", "diagnosis", "probability", *classifier.codes),
        *("malignant_probability", "abstained", "reason"),
        *(*(point.name for point in classifier.operating_points), "error", *classifier.provenance),
    ]
    buffer = io.StringIO()
    flat = (
        {**classifier.provenance, **row.get("probabilities", {}), **row.get("operating_points", {}), **row}
        for row in rows
    )
    write_rows(buffer, flat, columns)
    return buffer.getvalue()
