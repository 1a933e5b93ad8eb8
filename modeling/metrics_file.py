"""Read metrics.json, which may come from an untrusted repository; docs/metrics.md says what each entry means.

What the page shows and an external validation compares is declared here. Of all else, which the card shows, only the texts
and numbers are bounded: the card escapes its texts, and its templates fail with a sentence where an entry is missing.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from modeling.files import ModelFolderError, read_json, shortened
from modeling.schema import Count, Fraction, Name, bounds, checked

METRICS_SCHEMA = 3
MAX_TEXT, MAX_NUMBER, MAX_DEPTH = 500, 2**53, 20  # of every text and number in the file
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Rate(TypedDict):
    value: Fraction | None
    low: NotRequired[Fraction | None]
    high: NotRequired[Fraction | None]
    if_calibrated: NotRequired[dict[Literal["low", "high"], Fraction]]
    reason: NotRequired[str]


class Loss(TypedDict):
    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    reason: NotRequired[str]


class Model(TypedDict):
    codes: Annotated[list[Name], bounds(min_length=2, max_length=1000)]
    names: dict[Name, Name]
    architecture: Name
    weights_sha256: Name


class Data(TypedDict):
    dataset: Name | None
    synthetic: bool
    protocol: Name
    split_unit: Name
    leakage: dict[Name, Fraction | None]
    test_without_lesion_id: NotRequired[Fraction | None]
    sources: NotRequired[dict[Name, Count]]


class Diagnosis(TypedDict):
    n_images: Count
    precision: Rate
    recall: Rate
    auroc: Rate


class Test(TypedDict):
    n_images: Count
    n_lesions: Count
    diagnoses: list[Name]
    balanced_accuracy: Rate
    macro_f1: Rate
    macro_auroc: Rate
    accuracy: Rate
    per_class: dict[Name, Diagnosis]


class Calibrated(TypedDict):
    ece: Rate
    brier: Loss
    nll: Loss


class CalibrationOnTest(TypedDict):
    after: Calibrated


class Calibration(TypedDict):
    test: CalibrationOnTest


class PointOnTest(TypedDict):
    sensitivity: Rate
    specificity: Rate


class OperatingPoint(TypedDict):
    name: Name
    codes: list[Name]
    target_sensitivity: Fraction
    threshold: Fraction
    test: PointOnTest


class Refused(TypedDict):
    n_images: NotRequired[Count | None]
    abstained: Rate


class Abstention(TypedDict):
    reason: NotRequired[str]
    test: NotRequired[Refused]
    near: NotRequired[dict[Name, Refused]]
    far: NotRequired[dict[Name, Refused]]


class Baseline(TypedDict):
    sees: str
    balanced_accuracy: Rate


class NotMeasured(TypedDict):
    reason: str


class Figure(TypedDict):
    file: Annotated[str, bounds(pattern=r"^[a-z0-9_]{1,100}\.png$")]
    title: str
    caption: str
    alt: str


class Metrics(TypedDict):
    schema_version: Literal[3]
    model: Model
    data: Data
    intervals: dict[Name, str | Count | float]
    test: Test
    calibration: Calibration
    operating_points: list[OperatingPoint]
    abstention: Abstention
    baselines: dict[Name, Baseline | NotMeasured | str]
    figures: Annotated[list[Figure], bounds(max_length=20)]
    training: dict[Name, Any]  # read by `read_metrics_of` alone


def read_metrics(path: Path) -> dict[str, Any]:
    """Read the declared entries of a metrics.json of this version's schema, but those about the training.

    Raises:
        ModelFolderError: If it is not one; names the entry.
    """
    metrics = _checked(read_json(path), path)
    return {name: section for name, section in metrics.items() if name != "training"}


def read_metrics_of(path: Path, codes: Sequence[str], weights_sha256: str) -> dict[str, Any]:
    """Read all of a metrics.json, which must be about the model with these diagnoses and weights.

    Raises:
        ModelFolderError: If it is not, or cannot be read.
    """
    content = read_json(path)
    model = _checked(content, path)["model"]
    if model["codes"] != list(codes) or model["weights_sha256"] != weights_sha256:
        raise ModelFolderError(f"{path} is of another model: its weights_sha256 or diagnoses differ; remove it.")
    return content


def _checked(content: dict[str, Any], path: Path) -> Metrics:
    again = f"make it again with `python -m modeling.evaluation MODEL --output {path.parent}`"
    if (version := content.get("schema_version")) != METRICS_SCHEMA:
        raise ModelFolderError(
            f"{path} has schema {shortened(version)} and this version reads {METRICS_SCHEMA}; remove it and {again}."
        )
    damaged = f"{path} is damaged, so remove it and {again}: "
    for place, value, depth in _values(content):
        long = isinstance(value, str) and (len(value) > MAX_TEXT or CONTROL.search(value))
        if long or (isinstance(value, int | float) and abs(value) > MAX_NUMBER) or depth > MAX_DEPTH:
            raise ModelFolderError(f"{damaged}{shortened(place)}: {shortened(value)}.")
    metrics = checked(Metrics, content, damaged, extra="ignore")
    if set(metrics["test"]["per_class"]) != set(metrics["model"]["codes"]):
        raise ModelFolderError(f"{damaged}test is not about the diagnoses of model.codes.")
    return metrics


def _values(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Yield every key, and every value that is not an object or list, with its place and depth; nothing below MAX_DEPTH."""
    if not isinstance(value, dict | list) or depth > MAX_DEPTH:
        yield place, value, depth
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield place, key, depth
        yield from _values(item, f"{place}.{key}".removeprefix("."), depth + 1)
