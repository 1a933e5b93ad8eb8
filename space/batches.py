"""Many photos at once: one row each."""

import io
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import images_out
from answers import Photo, Turn
from uploads import MAX_FILES

from modeling.classifier import LesionClassifier
from modeling.images import ImageError
from modeling.labels import diagnosis_of
from modeling.rows import columns_of, malignant_probability, write_rows

THUMBNAIL_SIDE_PX = 96
SHARED = ("provenance", "notice", "priors")  # by all rows of a batch, so no row repeats them


def classify_rows(
    classifier: LesionClassifier, photos: Sequence[Photo], *, turn: Turn = nullcontext
) -> Iterator[dict[str, Any]]:
    """Yield the row of each photo, classified by itself; an ImageError says that there is no photo, or too many."""
    if not photos:
        raise ImageError("There is no photo in what you sent; send image files.")
    if len(photos) > MAX_FILES:
        raise ImageError(f"The limit is {MAX_FILES} photos; send fewer at a time.")
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
        yield row


def table(classifier: LesionClassifier, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rows of a batch and their CSV, sorted as on the page: flagged, no answer, not flagged, not read."""
    rows = sorted(
        ({key: value for key, value in row.items() if key != "thumbnail"} for row in rows),
        key=lambda row: (
            3 if row["error"] else 1 if row.get("abstained") else 0 if row.get("flagged") else 2,
            -row.get("malignant_probability", 0.0),
        ),
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
