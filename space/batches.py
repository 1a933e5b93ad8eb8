"""Many photos at once: files or zip archives in, one row each out."""

import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import images_out
from answers import Photo, Turn
from uploads import shown_name

from modeling.classifier import LesionClassifier
from modeling.images import MAX_FILE_BYTES, ImageError
from modeling.labels import diagnosis_of
from modeling.rows import columns_of, malignant_probability, write_rows

MAX_IMAGES = 200
MAX_UNPACKED_BYTES = 500_000_000
MAX_DIRECTORY_BYTES = 1_000_000  # an entry takes about 100 bytes
BOUNDED_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # zipfile unpacks others without a bound
NO_PHOTO = re.compile(r"__MACOSX/|.*/$|(.*/)?\.[^/]*$|.*\.(csv|txt|json|md|pdf|xml|html)$", re.IGNORECASE)
THUMBNAIL_SIDE_PX = 96
SHARED = ("provenance", "notice", "priors")  # by all rows of a batch, so no row repeats them


@dataclass(frozen=True)
class PackedPhoto(Photo):
    """A photo in a zip archive. No more is unpacked than its entry claims."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def data(self) -> bytes:
        if self.info.flag_bits & 1 or self.info.compress_type not in BOUNDED_METHODS:
            raise ImageError(
                f"{self.name} is encrypted or packed by an unusual method; pack it without a password, by deflate."
            )
        if self.info.file_size > MAX_FILE_BYTES:
            raise ImageError(f"{self.name} unpacks to more than is allowed ({MAX_FILE_BYTES // 10**6} MB).")
        try:
            with self.archive.open(self.info) as file:
                return file.read(self.info.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise ImageError(f"{self.name} is damaged inside the archive; pack it again.") from error


def classify_rows(
    classifier: LesionClassifier, sent: Sequence[Photo], *, turn: Turn = nullcontext
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Classify every image, one after the other, so that each answer is the one that it would get alone.

    Yields:
        How many are done, how many there are, and the row of the last one.

    Raises:
        ImageError: If there is nothing to classify, or too much.
    """
    photos = list_photos(sent)
    for number, photo in enumerate(photos):
        row: dict[str, Any] = {"number": number, "name": photo.name, "error": None}
        with turn():
            try:
                image = photo.decode()
                prediction = classifier.predict(image)
                row |= {key: value for key, value in prediction.to_dict().items() if key not in SHARED}
                row["diagnosis_name"] = diagnosis_of(prediction.diagnosis).name
                row |= malignant_probability(prediction.probabilities)
                row["thumbnail"] = images_out.jpeg_uri(image, THUMBNAIL_SIDE_PX)
            except ImageError as error:
                row["error"] = str(error)
        yield number + 1, len(photos), row


def table(classifier: LesionClassifier, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of a batch and their CSV: flagged ones first, then by the probability of malignancy."""
    rows = sorted(
        ({key: value for key, value in row.items() if key != "thumbnail"} for row in rows),
        key=lambda row: (bool(row["error"]), not row.get("flagged"), -row.get("malignant_probability", 0.0)),
    )
    columns = columns_of(classifier.codes, [point.name for point in classifier.operating_points])
    flat = (
        {
            **row,
            "image": row["name"],
            "flagged": "; ".join(row.get("flagged", ())),
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


def list_photos(sent: Sequence[Photo]) -> list[Photo]:
    """List what is to be classified: the files themselves, and the images inside zip archives."""
    photos: list[Photo] = []
    for one in sent:
        photos += packed_photos(one)
        if len(photos) > MAX_IMAGES:
            raise ImageError(f"More than {MAX_IMAGES} photos came; send them in parts.")
    if not photos:
        raise ImageError("There is no photo in what you sent; send image files, or a zip archive of image files.")
    if sum(photo.info.file_size for photo in photos if isinstance(photo, PackedPhoto)) > MAX_UNPACKED_BYTES:
        raise ImageError(f"The archives unpack to more than {MAX_UNPACKED_BYTES // 10**6} MB; send them in parts.")
    return photos


def packed_photos(sent: Photo) -> Sequence[Photo]:
    """Return the photos of a zip archive, none unpacked and no name followed out of it; anything else as it is."""
    try:
        file = sent.open()
        if file.read(2) != b"PK":  # an image with an archive behind it is an image
            return [sent]
        end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # from which ZipFile takes the same size
        if end and end[zipfile._ECD_SIZE] > MAX_DIRECTORY_BYTES:  # type: ignore[attr-defined]
            return [sent]
        archive = zipfile.ZipFile(file)
    except (ImageError, zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return [sent]  # whose row says why
    return [
        PackedPhoto("", shown_name(info.filename), archive, info)
        for info in archive.infolist()
        if not NO_PHOTO.match(info.filename)
    ]
