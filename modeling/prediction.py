"""`Prediction`: the result for one image, and its one-line verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modeling.formatting import TEXTS, percent
from modeling.labels import diagnosis_of
from modeling.operating_points import OperatingPoint

DIGITS = 6  # of a probability: beyond them two machines differ


@dataclass(frozen=True)
class Prediction:
    """The result for one image, or for the photos of one lesion.

    Attributes:
        diagnosis: Code of the most probable diagnosis, also when abstained.
        probability: Its probability.
        probabilities: Calibrated probability of every diagnosis by code at `priors`, in the model's order; they sum to 1.
        priors: Prior probability of every diagnosis by code; equal unless `from_pretrained` got others.
        flagged: Targets ("melanoma", "malignancy") whose threshold of highest sensitivity is reached.
        abstained: True if the image does not resemble the training data, so that the answer should not be used.
        reason: Why it abstained; None otherwise.
        operating_points: By name ("MEL@95"), whether the threshold for that sensitivity is reached. Thresholds are
            compared with the probabilities at equal priors, whatever `priors` is.
        verdict: The result in one line.
        provenance: model_id, revision, weights_sha256, data_fingerprint, package_version.
        notice: The model's disclaimer.
    """

    diagnosis: str
    probability: float
    probabilities: dict[str, float]
    priors: dict[str, float]
    flagged: tuple[str, ...]
    abstained: bool
    reason: str | None
    operating_points: dict[str, bool]
    verdict: str
    provenance: dict[str, str | None]
    notice: str

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction ready for JSON, its probabilities rounded."""
        return {
            **asdict(self),
            "probability": rounded(self.probability),
            "probabilities": {code: rounded(value) for code, value in self.probabilities.items()},
            "flagged": list(self.flagged),
        }


def verdict(
    points: Sequence[OperatingPoint],
    reached: Mapping[str, bool],
    *,
    diagnosis: str,
    probability: float,
    abstained: bool,
) -> str:
    """Return the line that commands, API, page and report show; its wording is in texts.json."""
    if abstained:
        return TEXTS["abstained"]
    most_likely = TEXTS["most_likely"].format(
        name=diagnosis_of(diagnosis).name, probability=percent(rounded(probability))
    )
    points = headline_points(points)
    above = [point for point in points if reached[point.name]]
    state = "flagged" if above else "not_flagged" if points else "no_threshold"
    thresholds = ""
    if points:
        targets = [target_name(point.codes) for point in above or points]
        thresholds = TEXTS["threshold" if len(targets) == 1 else "thresholds"].format(
            sensitivity=percent(points[0].target_sensitivity), target=TEXTS["and"].join(targets)
        )
    return TEXTS[state].format(thresholds=thresholds, most_likely=most_likely)


def headline_points(points: Sequence[OperatingPoint]) -> list[OperatingPoint]:
    """Return the operating points of the highest target sensitivity, one per target: a reader needs one threshold each."""
    highest = max((point.target_sensitivity for point in points), default=0.0)
    return [point for point in points if point.target_sensitivity == highest]


def target_name(codes: Sequence[str]) -> str:
    """Return the name of what a threshold on these diagnoses is to catch."""
    if tuple(codes) == ("MEL",):
        return TEXTS["melanoma"]
    diagnoses = [diagnosis_of(code) for code in codes]
    if all(diagnosis.malignant for diagnosis in diagnoses):
        return TEXTS["malignancy"]
    return " or ".join(diagnosis.name for diagnosis in diagnoses)


def rounded(probability: float) -> float:
    """Round a probability; since it is never 0 or 1, it is not rounded to them either."""
    smallest = 10**-DIGITS
    return min(max(round(probability, DIGITS), smallest), 1 - smallest)
