"""The columns of every dataset: their names, and how ids, ages and labels are read from what the data hold."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import pandas as pd

from modeling.data.problems import DataError
from modeling.files import is_name, shortened
from modeling.labels import CODES, DIAGNOSES
from modeling.rows import RESERVED_NAMES

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "label": datasets.ClassLabel(names=list(CODES)),
        "lesion_id": datasets.Value("string"),
        "source": datasets.Value("string"),
        "age_approx": datasets.Value("float32"),
        "sex": datasets.Value("string"),
        "anatom_site_general": datasets.Value("string"),
    }
)
COLUMNS = tuple(FEATURES)
OPTIONAL_COLUMNS = ("patient_id", "fitzpatrick_skin_type")  # only where the data have them
# Names under which datasets keep the label, and the columns of HAM10000's own CSV and of the ISIC archive's.
LABEL_NAMES = ("label", "labels", "dx", "diagnosis", "class", "target")
OTHER_NAMES = {
    **{name: (name,) for name in (*COLUMNS, *OPTIONAL_COLUMNS) if name not in ("image", "label")},
    "image_id": ("image_id", "isic_id"),
    "age_approx": ("age_approx", "age"),
    "anatom_site_general": ("anatom_site_general", "localization"),
}
BLANK = ("", "na", "n/a", "nan", "none", "null", "unknown")
MAX_AGE_YEARS = 120

# HAM10000 (doi:10.1038/sdata.2018.161) writes its diagnoses as dx codes; some copies on the Hub write them out.
_ALIASES = {
    **{diagnosis.code.lower(): diagnosis.code for diagnosis in DIAGNOSES},
    **{diagnosis.name: diagnosis.code for diagnosis in DIAGNOSES},
    "akiec": "AK",
    "actinic keratoses": "AK",
    "melanocytic nevi": "NV",
    "nevus": "NV",
    "nevi": "NV",
    "benign keratosis like lesions": "BKL",
    "vascular lesions": "VASC",
}
# "all" and "overall" are rows of tables; a blank that was written out is not a diagnosis.
_RESERVED_LABELS = RESERVED_NAMES | {"all", "overall", "na", "n/a", "nan", "none", "null"}
_UNSAFE_LABEL = re.compile(r"^[=+\-@＝＋－＠]|[<>|`]")  # a formula in a spreadsheet; markup in a card


def text_of(value: Any) -> str | None:
    """Return a cell as text, None where it is blank; a whole number that became 7.0 beside blank cells is 7 again."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = unicodedata.normalize("NFC", str(value)).strip()
    return text or None


def read_ages(values: Sequence[str | None]) -> list[float | None]:
    """Return ages in years, None where blank or no number from 0 to 120."""
    numbers = pd.to_numeric(pd.Series([value or "" for value in values], dtype=object), errors="coerce")
    return [float(number) if 0 <= number <= MAX_AGE_YEARS else None for number in numbers]


def map_labels(labels: Sequence[str | None]) -> tuple[list[str], list[str | None], str]:
    """Give each label its ISIC code, where it is written as a code or full name; any other label is kept.

    Returns:
        The names that occur (ISIC codes first, in ISIC's order), the name of each row, and a sentence about the mapping.

    Raises:
        DataError: If two names differ in case alone.
    """
    written = {label: re.sub(r"[\s_-]+", " ", label.lower()).strip() for label in labels if label is not None}
    found = {label: _ALIASES.get(plain, label) for label, plain in written.items()}
    others = sorted({name for name in found.values() if name not in CODES})
    names = [code for code in CODES if code in found.values()] + others
    folded: dict[str, str] = {}
    for name in others:
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise DataError(f"the labels {other!r} and {name!r} differ in case alone; write both alike.")
    renamed = [f"{label} → {code}" for label, code in sorted(found.items()) if label != code]
    parts = [f"labels read as ISIC diagnoses: {', '.join(renamed)}"] * bool(renamed)
    parts += [f"labels kept, no diagnosis of ISIC 2019: {', '.join(others)}"] * bool(others)
    return names, [None if label is None else found[label] for label in labels], "; ".join(parts)


def check_label_names(names: Sequence[str]) -> None:
    """Fail early on a label that no table, card or model folder can show.

    Raises:
        DataError: With the label and what to do.
    """
    for name in names:
        if not is_name(name) or _UNSAFE_LABEL.search(name) or name.lower() in _RESERVED_LABELS:
            raise DataError(
                f"the label {shortened(name)} cannot be shown: it is too long, not printable, begins with = + - @, has < > | or "
                "`, or is the name of a result or a word for a blank cell. Rename it in the dataset."
            )


def first_named(columns: Mapping[str, Any] | Sequence[str], names: Sequence[str]) -> str | None:
    """Return the first of these names that is a column."""
    return next((name for name in names if name in columns), None)
