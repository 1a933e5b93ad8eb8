"""Read metrics.json, which may come from an untrusted repository; docs/metrics.md says what each entry means.

What the page shows and an external validation compares is declared here. Of all else, which the card shows, only the texts
and numbers are bounded: the card escapes its texts, and its templates fail with a sentence where an entry is missing.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modeling.files import ModelFolderError, read_json, shortened

METRICS_SCHEMA = 3
MAX_TEXT, MAX_NUMBER, MAX_DEPTH = 500, 2**53, 20
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[Text, Field(min_length=1)]
Count = Annotated[int, Field(ge=0, lt=MAX_NUMBER)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class Section(BaseModel):
    """A part of the file; entries that it does not declare are dropped."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Rate(Section):
    value: Fraction | None
    low: Fraction | None = None
    high: Fraction | None = None
    if_calibrated: dict[Literal["low", "high"], Fraction] | None = None
    reason: Text = ""


class Loss(Section):
    value: Number | None
    low: Number | None = None
    high: Number | None = None
    reason: Text = ""


class Model(Section):
    codes: Annotated[list[Name], Field(min_length=2, max_length=1000)]
    names: dict[Name, Name]
    architecture: Name
    weights_sha256: Name


class Data(Section):
    dataset: Name | None
    synthetic: bool
    protocol: Name
    split_unit: Name
    leakage: dict[Name, Fraction | None]


class Diagnosis(Section):
    n_images: Count
    precision: Rate
    recall: Rate
    auroc: Rate


class Test(Section):
    n_images: Count
    n_lesions: Count
    diagnoses: list[Name]
    balanced_accuracy: Rate
    macro_f1: Rate
    macro_auroc: Rate
    accuracy: Rate
    per_class: dict[Name, Diagnosis]


class Calibrated(Section):
    ece: Rate
    brier: Loss
    nll: Loss


class CalibrationOnTest(Section):
    after: Calibrated


class Calibration(Section):
    test: CalibrationOnTest


class PointOnTest(Section):
    sensitivity: Rate
    specificity: Rate


class OperatingPoint(Section):
    name: Name
    codes: list[Name]
    target_sensitivity: Fraction
    threshold: Fraction
    test: PointOnTest


class Refused(Section):
    n_images: Count | None = None
    abstained: Rate


class Abstention(Section):
    reason: Text = ""
    test: Refused | None = None
    near: dict[Name, Refused] = {}
    far: dict[Name, Refused] = {}


class Baseline(Section):
    sees: Text
    balanced_accuracy: Rate


class NotMeasured(Section):
    reason: Text


class Figure(Section):
    file: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}\.png$")]
    title: Text
    caption: Text
    alt: Text


class Metrics(Section):
    schema_version: Literal[3]
    model: Model
    data: Data
    intervals: dict[Name, Text | Count | Number]
    test: Test
    calibration: Calibration
    operating_points: list[OperatingPoint]
    abstention: Abstention
    baselines: dict[Name, Baseline | NotMeasured | Text]
    figures: Annotated[list[Figure], Field(max_length=20)]
    training: Annotated[dict[Name, Any], Field(exclude=True)]


def read_metrics(path: Path) -> dict[str, Any]:
    """Read the declared entries of a metrics.json of this version's schema.

    Raises:
        ModelFolderError: If it is not one; names the entry.
    """
    return _checked(read_json(path), path).model_dump(exclude_unset=True)


def read_metrics_of(path: Path, codes: Sequence[str], weights_sha256: str) -> dict[str, Any]:
    """Read all of a metrics.json, which must be about the model with these diagnoses and weights.

    Raises:
        ModelFolderError: If it is not, or cannot be read.
    """
    content = read_json(path)
    model = _checked(content, path).model
    if model.codes != list(codes) or model.weights_sha256 != weights_sha256:
        raise ModelFolderError(f"{path} is of another model: its weights_sha256 or diagnoses differ; remove it.")
    return content


def _checked(content: dict[str, Any], path: Path) -> Metrics:
    advice = f"remove it and make it again with `python -m modeling.evaluation MODEL --output {path.parent}`."
    if (version := content.get("schema_version")) != METRICS_SCHEMA:
        raise ModelFolderError(
            f"{path} has schema {shortened(version)} and this version reads {METRICS_SCHEMA}; {advice}"
        )
    for place, value, depth in _values(content):
        long = isinstance(value, str) and (len(value) > MAX_TEXT or CONTROL.search(value))
        if long or (isinstance(value, int | float) and abs(value) > MAX_NUMBER) or depth > MAX_DEPTH:
            raise ModelFolderError(f"{path} is damaged: {shortened(place)}: {shortened(value)}; {advice}")
    try:
        metrics = Metrics.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelFolderError(f"{path} is damaged: {shortened(where)}: {first['msg'][:200]}; {advice}") from error
    if set(metrics.test.per_class) != set(metrics.model.codes):
        raise ModelFolderError(f"{path} is damaged: test is not about the diagnoses of model.codes; {advice}")
    return metrics


def _values(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Any, int]]:
    """Yield every key, and every value that is no object or list, with its place and depth; nothing below MAX_DEPTH."""
    if not isinstance(value, dict | list) or depth > MAX_DEPTH:
        yield place, value, depth
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield place, key, depth
        yield from _values(item, f"{place}.{key}".removeprefix("."), depth + 1)
