"""metrics.json: what each entry means, and how the file is read. docs/metrics.md is generated from these models.

The file may come from an untrusted repository: texts are bounded and printable, numbers are finite and in the range that
their meaning allows, and entries that are not declared here are dropped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modeling.files import ModelFolderError, read_json, shortened

METRICS_SCHEMA = 3

Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[Text, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-1e9, le=1e9)]


class Section(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class NotMeasured(Section):
    """In place of a section that was not measured."""

    reason: Text


class Rate(Section):
    """A number from 0 to 1 with its 95 % interval; null and a reason where it has no value or no interval."""

    value: Fraction | None
    low: Fraction | None = None
    high: Fraction | None = None
    reason: Text = ""


class Quantity(Section):
    """A number of any size with its 95 % interval: a difference of rates, a loss or a slope."""

    value: Number | None
    low: Number | None = None
    high: Number | None = None
    reason: Text = ""


class Range(Section):
    low: Fraction
    high: Fraction


class CalibrationError(Section):
    """An expected calibration error (ECE)."""

    value: Fraction | None
    if_calibrated: Range | None = None
    """the middle 95 % of the ECEs that a perfectly calibrated model would have on the same images; no confidence interval"""
    reason: Text = ""


class Sized(Section):
    n_images: Count
    n_lesions: Count


class Model(Section):
    codes: Annotated[list[Name], Field(min_length=2, max_length=1000)]
    """diagnoses, in the order of the network's outputs"""
    names: dict[Name, Name]
    architecture: Name
    image_size_px: Count
    weights_sha256: Sha256
    license: Name | None
    run_id: Name | None
    package_version: Name | None
    revision: Name | None
    """commit on the Hub; null for a folder"""
    engine: Literal["onnx", "torch"]
    """what computed all outputs of this file"""
    class_priors: dict[Name, Fraction] | None
    """the dataset's mix: fraction of each diagnosis among the images of train and val"""


class SplitSize(Sized):
    per_class: dict[Name, Count]


class Flow(Section):
    """Numbers of images."""

    in_dataset: Count
    skipped: Count
    """beside these: left out because they cannot be used"""
    other_diagnoses: dict[Name, Count]
    """left out because the model does not have the diagnosis"""
    splits: dict[Name, SplitSize]


class Data(Section):
    dataset: Name | None
    synthetic: bool
    fingerprint: Name | None
    splits_sha256: Sha256
    protocol: Literal["lesion", "original", "given", "file", "external"]
    """how the splits were made: by lesion, by image as in the reference system, by the dataset, by a file; or all is test"""
    split_unit: Literal["lesion", "image"]
    """measured: lesion if the images of each lesion are in one split"""
    test_source: Name | None
    """the source or sources of test, which train and val are without"""
    leakage: dict[Name, Fraction | None]
    """fraction of test images whose lesion is also in train; overall and by diagnosis"""
    test_without_lesion_id: Fraction | None = None
    """fraction of test images whose lesion id is unknown; they are compared by near-duplicates"""
    patients_apart: bool | None = None
    """measured: true if the images of each patient are in one split; null if patients are unknown"""
    flow: Flow
    sources: dict[Name, Count]


class DiagnosisScores(Sized):
    """One diagnosis against all others, at equal priors."""

    precision: Rate
    recall: Rate
    specificity: Rate
    f1: Rate
    auroc: Rate


class Scores(Sized):
    """Scores of a split. The predicted diagnosis is the most probable one, at equal priors unless said otherwise."""

    diagnoses: list[Name]
    """the diagnoses that the split has; balanced and macro scores are averages over these"""
    balanced_accuracy: Rate
    macro_f1: Rate
    macro_auroc: Rate
    accuracy_at_equal_priors: Rate
    accuracy: Rate
    """at the dataset's mix (`model.class_priors`)"""
    per_class: dict[Name, DiagnosisScores]
    confusion: list[list[Count]]
    """images by true (row) and predicted (column) diagnosis"""


class TestScores(Scores):
    """Scores of test, by image."""

    by_lesion: Scores
    """the same by lesion: mean probability over the photos of a lesion"""


class CalibrationScores(Section):
    """Probabilities at the dataset's mix."""

    nll: Quantity
    """negative log-likelihood, nats"""
    brier: Quantity
    """Brier score, 0 to 2"""
    ece: CalibrationError
    """of the most probable diagnosis"""


class CalibrationOnTest(Section):
    before: CalibrationScores
    """the network's own probabilities, which estimate the mix of train"""
    after: CalibrationScores
    """the calibrated probabilities, re-weighted to the dataset's mix"""
    ece_at_equal_priors: CalibrationError
    """of the stored probabilities, images weighted so that the diagnoses count the same"""


class Fitted(Section):
    """The calibration, which includes the change from the mix of train to equal priors; fitted on val."""

    method: Name
    scale: list[Number]
    bias: list[Number]
    nll: dict[Name, Number]
    """of each method, cross-validated over lesions of val, each diagnosis weighted equally"""


class Calibration(Section):
    fitted: Fitted | NotMeasured
    test: CalibrationOnTest
    reliability: dict[Name, list[dict[Name, Count | Number]]]
    """before and after: n_images, confidence and correct of bins of equally many images"""


class PointOnTest(Section):
    n_positive_images: Count
    n_positive_lesions: Count
    sensitivity: Rate
    specificity: Rate
    prevalence: Fraction
    """assumed, for illustration"""
    ppv: Rate
    """at that prevalence, by Bayes' rule"""
    npv: Rate
    missed: list[Name]
    """image ids of the positives below the threshold"""


class OperatingPoint(Section):
    """A threshold on the summed probability (equal priors) of some diagnoses, fitted on val for a target sensitivity."""

    name: Name
    codes: list[Name]
    target_sensitivity: Fraction
    threshold: Fraction
    val: dict[Name, Count | Number]
    """sensitivity, specificity, n_positive, n_negative"""
    test: PointOnTest


class Answered(Section):
    """The images on which the model does not abstain."""

    n_images: Count
    accuracy: Rate
    balanced_accuracy: Rate


class AbstentionOnTest(Section):
    abstained: Rate
    answered: Answered


class FarOod(Sized):
    """Generated images of one kind that show no lesion."""

    auroc: Rate
    """how well the OOD score separates them from test images"""
    abstained: Rate


class NearOod(FarOod):
    """Images of a diagnosis that the model does not have."""

    malignant: bool
    above: dict[Name, Rate]
    """fraction above each operating point"""


class Abstention(Section):
    """The rule: abstain if the OOD score is above the threshold, which was fitted on val."""

    method: Name
    threshold: Number
    false_alarm_rate: Fraction
    test: AbstentionOnTest
    near: dict[Name, NearOod]
    """by diagnosis; empty in an external evaluation, like `far`"""
    far: dict[Name, FarOod]


class Baseline(Section):
    """A classifier that does not use the image."""

    sees: Text
    balanced_accuracy: Rate
    accuracy: Rate
    model_minus_baseline: Quantity
    """in balanced accuracy"""


class Group(Sized):
    """Test images of one group."""

    balanced_accuracy: Rate
    """over `diagnoses`"""
    diagnoses: list[Name]
    """those of which the group has 30 lesions or more"""
    recall: dict[Name, Rate]
    operating_points: dict[Name, dict[Name, Rate]]
    """sensitivity and specificity of each"""


class SuppressedGroup(Sized):
    suppressed: Text


class Change(Section):
    flip_rate: Rate
    """fraction of predictions that change"""
    balanced_accuracy_gain: Quantity


class Robustness(Sized):
    """On a sample of test: equally many images of each diagnosis, as far as there are so many."""

    balanced_accuracy: Rate
    """of the unchanged images"""
    changes: dict[Name, Change]
    test_time_augmentation: Change
    """mean probability over the eight flips and quarter turns"""


class MapScores(Section):
    heat_inside: Rate
    """fraction of the heat inside the lesion"""
    pointing_game: Rate
    """fraction of maps whose hottest pixel is inside the lesion"""
    iou: Rate
    """overlap of the lesion with as many of the hottest pixels"""


class HeatMaps(Sized):
    """Heat maps of the predicted diagnosis against lesion masks."""

    mean_lesion_fraction: Fraction
    model: MapScores
    centred_blob: MapScores
    """a Gaussian in the middle of the image, as concentrated as the map"""


class Failure(Section):
    image_id: Name
    label: Name
    predicted: Name
    probability: Fraction


Option = Text | bool | Count | Number | None


class Training(Section):
    options: dict[Name, Option | list[Option]]
    """those that had an effect"""
    origin: dict[Name, Text | None] | None
    """the initial weights: kind (scratch, pretrained or weights), name, sha256, base_model, overlap with val and test"""
    history: list[dict[Name, Count | Number]]
    """one record an epoch"""
    best_epoch: Count | None
    selection: Name
    """the score on val that chose the epoch"""


class Figure(Section):
    file: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}\.png$")]
    """in figures/"""
    title: Text
    """its result in a few words"""
    caption: Text
    alt: Text


class Challenge(Section):
    """The official test of ISIC 2019, scored as the challenge did."""

    n_images: Count
    mean_recall: Rate
    recall: dict[Name, Rate]
    note: Text


class External(Section):
    """The model's own test beside images from elsewhere."""

    compared_by: Text
    """how images that the model has seen were found"""
    left_out: dict[Name, Count]
    """how many, by how they were found"""
    headline: dict[Name, dict[Name, Quantity]] | NotMeasured
    """internal, external and difference (external minus internal) of each score"""
    calibration: dict[Name, dict[Name, Quantity]]
    """excess_probability, mean probability minus frequency (0 if calibrated); slope of the log odds (1 if calibrated)"""
    challenge: Challenge | NotMeasured


class Metrics(Section):
    """The whole file."""

    schema_version: Literal[3]
    model: Model
    data: Data
    intervals: dict[Name, Text | Count | Number]
    """method, level, n_replicates, seed, unit"""
    val: Scores | NotMeasured
    test: TestScores
    calibration: Calibration
    operating_points: list[OperatingPoint]
    abstention: Abstention | NotMeasured
    baselines: dict[Name, Baseline | NotMeasured] | NotMeasured
    """majority, metadata_only"""
    groups: dict[Name, dict[Name, Group | SuppressedGroup]]
    """by source, sex, age_years and site"""
    robustness: Robustness | NotMeasured
    heat_maps: HeatMaps | NotMeasured
    failures: list[Failure]
    """the most confident wrong predictions"""
    training: Training
    figures: Annotated[list[Figure], Field(max_length=20)]
    external: External | None = None
    """only of an external evaluation"""


def declared(content: dict[str, Any]) -> dict[str, Any]:
    """Return the declared entries of a content; pydantic raises a ValidationError if one does not fit."""
    return Metrics.model_validate(content).model_dump(exclude_unset=True)


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a metrics.json of this version's schema; return the entries that are declared here.

    Raises:
        ModelFolderError: If it is not one; names the entry.
    """
    content = read_json(path)
    advice = f"remove it and make it again with `python -m modeling.evaluation MODEL --output {path.parent}`."
    if content.get("schema_version") != METRICS_SCHEMA:
        raise ModelFolderError(
            f"{path} has schema {shortened(content.get('schema_version'))} and this version reads {METRICS_SCHEMA}; {advice}"
        )
    try:
        metrics = declared(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelFolderError(f"{path} is damaged: {shortened(place)}: {first['msg'][:200]}; {advice}") from error
    codes, test = metrics["model"]["codes"], metrics["test"]
    for name, scores in {"test": test, "test.by_lesion": test["by_lesion"], "val": metrics["val"]}.items():
        shape = [len(row) for row in scores.get("confusion", [])]
        if "reason" not in scores and (set(scores["per_class"]) != set(codes) or shape != [len(codes)] * len(codes)):
            raise ModelFolderError(f"{path} is damaged: {name} is not about the diagnoses of model.codes; {advice}")
    return metrics


def read_metrics_of(path: Path, codes: Sequence[str], weights_sha256: str) -> dict[str, Any]:
    """Read a metrics.json that must be about the model with these diagnoses and weights.

    Raises:
        ModelFolderError: If it is not, or cannot be read.
    """
    metrics = read_metrics(path)
    model = metrics["model"]
    if model["codes"] != list(codes) or model["weights_sha256"] != weights_sha256:
        raise ModelFolderError(f"{path} is of another model: its weights_sha256 or diagnoses differ; remove it.")
    return metrics
