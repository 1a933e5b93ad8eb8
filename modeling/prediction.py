"""The one shape of an answer about an image, and the one line that sums it up."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modeling.labels import NOTICE, diagnosis_of
from modeling.operating_points import OperatingPoint

DIGITS = 6  # of a probability: beyond them two machines differ


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        diagnosis: Code of the first answer, as `Decision` makes it, also when abstained; not always the most probable.
        probability: Its calibrated probability.
        probabilities: Calibrated probability of every diagnosis by code, in the model's order; they sum to 1.
        abstained: True if the image is unlike the training data, so that the answer should not be used.
        reason: Why it abstained, in words; None otherwise.
        operating_points: By name ("MEL@95"), whether the image lies above the threshold fitted for that sensitivity.
        provenance: model_id, revision, weights_sha256, data_fingerprint, package_version.
        verdict: The line of `verdict`.
    """

    diagnosis: str
    probability: float
    probabilities: dict[str, float]
    abstained: bool
    reason: str | None
    operating_points: dict[str, bool]
    provenance: dict[str, str | None]
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction with the notice, ready for JSON, its probabilities rounded."""
        return {
            **asdict(self),
            "probability": rounded(self.probability),
            "probabilities": {code: rounded(value) for code, value in self.probabilities.items()},
            "notice": NOTICE,
        }

    def to_row(self) -> dict[str, Any]:
        """Return it as one flat row of a table: each diagnosis and each operating point is a column of its own."""
        fields = self.to_dict()
        first = {key: fields[key] for key in ("verdict", "diagnosis", "probability")}
        then = {key: fields[key] for key in ("abstained", "reason")}
        return {**first, **fields["probabilities"], **then, **fields["operating_points"]}


def verdict(
    points: Sequence[OperatingPoint],
    reached: Mapping[str, bool],
    probabilities: Mapping[str, float],
    diagnosis: str,
    *,
    abstained: bool,
) -> str:
    """Sum an answer up in one line, thresholds first, which every surface shows alike."""
    above = [point for point in points if reached[point.name]]
    below = [point for point in points if not reached[point.name]]
    parts = [f"above {_thresholds(above)}"] if above else []
    parts += [f"below {_thresholds(below)}"] if below else []
    tested = "; ".join(parts) or "this model has no tested threshold"
    if below and not above:
        tested += ": no all-clear"
    best = max(probabilities, key=probabilities.__getitem__)
    warning = "The model abstains: this image is unlike its training images, so do not use what follows. "

    def with_probability(code: str) -> str:
        return f"{diagnosis_of(code).name}, {percent(rounded(probabilities[code]))}"

    weighted = f"weighted towards rare diagnoses{' and melanoma' if 'MEL' in probabilities else ''}"
    first = "" if diagnosis == best else f"First answer, {weighted}: {with_probability(diagnosis)}. "
    return (
        f"{warning if abstained else ''}{tested[0].upper()}{tested[1:]}. {first}"
        f"Most probable: {with_probability(best)}."
    )


def _thresholds(points: Sequence[OperatingPoint]) -> str:
    """Name thresholds by what they were fitted to catch; targets with the same sensitivities are named together."""
    sensitivities: dict[str, list[str]] = {}
    for point in sorted(points, key=lambda point: -point.target_sensitivity):
        sensitivities.setdefault(target_words(point.codes), []).append(percent(point.target_sensitivity))
    targets: dict[str, list[str]] = {}
    for target, values in sensitivities.items():
        targets.setdefault(" and ".join(values), []).append(f"of {target}")
    caught = ", and ".join(f"{values} {' and '.join(names)}" for values, names in targets.items())
    return f"the threshold{'s' if len(points) > 1 else ''} set to catch {caught}"


def target_words(codes: Sequence[str]) -> str:
    """Return what a threshold on these diagnoses is to catch, in the plural."""
    if tuple(codes) == ("MEL",):
        return "melanomas"
    diagnoses = [diagnosis_of(code) for code in codes]
    if not all(diagnosis.malignant for diagnosis in diagnoses):
        return f"lesions such as {', '.join(diagnosis.name for diagnosis in diagnoses)}"
    early = any(diagnosis.behaviour == "pre-malignant" for diagnosis in diagnoses)
    return "malignant and pre-malignant lesions" if early else "malignant lesions"


def rounded(probability: float) -> float:
    """Round a probability; since it is never 0 or 1, it is not rounded to them either."""
    smallest = 10**-DIGITS
    return min(max(round(probability, DIGITS), smallest), 1 - smallest)


def percent(fraction: float) -> str:
    """Write a fraction as people read it: 95 %, 4.2 %, 99.6 %, and never as certain when it is not."""
    value = 100 * fraction
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.9 < value < 100:
        return "> 99.9 %"
    digits = 0 if value in (0, 100) or 10 <= value <= 99 else 1
    return f"{value:.{digits}f} %"
