"""Rows of tables: one flat row per image, and the one writer of CSV files.

Archives, the Space's batches and the evaluation's predictions.csv share it.
"""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

from modeling.files import ModelFolderError
from modeling.images import ImageError
from modeling.labels import diagnosis_of
from modeling.prediction import Prediction, rounded

Row = dict[str, Any]
# Columns beside those of the diagnoses and operating points; no diagnosis may have one of these names.
ANSWER_COLUMNS = ("image", "verdict", "diagnosis", "probability", "flagged")
OTHER_COLUMNS = ("malignant_probability", "abstained", "reason", "error")
SPLIT_COLUMNS = ("image_id", "lesion_id", "split", "label", "predicted")  # of predictions.csv
RESERVED_NAMES = frozenset((*ANSWER_COLUMNS, *OTHER_COLUMNS, *SPLIT_COLUMNS))


def row_of(answer: Prediction | ImageError, name: str) -> Row:
    """Return the row of one image: its prediction, or the reason why there is none."""
    if isinstance(answer, ImageError):
        return {"image": printable(name), "error": str(answer)}
    fields = answer.to_dict()
    return {
        "image": printable(name),
        **{key: fields[key] for key in ("verdict", "diagnosis", "probability")},
        "flagged": "; ".join(answer.flagged),
        **fields["probabilities"],
        **malignant_probability(answer.probabilities),
        **{key: fields[key] for key in ("abstained", "reason")},
        **fields["operating_points"],
    }


def columns_of(codes: Sequence[str], operating_points: Sequence[str]) -> dict[str, type]:
    """Return the columns of such rows in order, with the type of their values.

    Raises:
        ModelFolderError: If two columns would have the same name.
    """
    columns: list[tuple[str, type]] = [(name, float if name == "probability" else str) for name in ANSWER_COLUMNS]
    columns += [(name, float) for name in (*codes, *malignant_probability(dict.fromkeys(codes, 0.0)))]
    columns += [("abstained", bool), ("reason", str), *((name, bool) for name in operating_points), ("error", str)]
    names = [name for name, _ in columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ModelFolderError(f"the model has a diagnosis named {', '.join(twice)}, as another column is; rename it.")
    return dict(columns)


def malignant_probability(probabilities: Mapping[str, float]) -> dict[str, float]:
    """Return the sum over malignant and pre-malignant diagnoses as a field; none if the model knows no such diagnosis."""
    malignant = [value for code, value in probabilities.items() if diagnosis_of(code).malignant]
    return {"malignant_probability": rounded(sum(malignant))} if malignant else {}


def write_rows(file: Path | IO[str], rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
    """Write a CSV file that spreadsheets open safely; a missing or None value is an empty cell.

    `file` is a path, or a text file opened with newline="".
    """
    columns = list(columns)
    with file.open("w", encoding="utf-8", newline="") if isinstance(file, Path) else nullcontext(file) as opened:
        # Lines end in CR LF, as RFC 4180 has it; so cells that hold either character are quoted.
        writer = csv.writer(opened, lineterminator="\r\n")
        writer.writerow(map(harmless, columns))
        for row in rows:
            cells = (row.get(name) for name in columns)
            writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in cells])


def harmless(text: str) -> str:
    """Keep a spreadsheet from running an untrusted text as a formula.

    Source: OWASP, CSV injection, https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")) else text


def printable(name: str) -> str:
    r"""Return a file name as valid text: bytes that are not UTF-8 are written as \xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
