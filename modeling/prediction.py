"""The one shape of an answer about an image."""

from dataclasses import asdict, dataclass
from typing import Any

from modeling.labels import NOTICE


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        diagnosis: Code of the most probable diagnosis, also when abstained.
        probability: Its calibrated probability.
        probabilities: Calibrated probability of every diagnosis by code, in the model's order; they sum to 1.
        abstained: True if the image is unlike the training data, so that the answer should not be used.
        reason: Why it abstained, in words; None otherwise.
        operating_points: By name ("MEL@95"), whether the image lies above the threshold fitted for that sensitivity.
        provenance: model_id, revision, weights_sha256, data_fingerprint, package_version.
    """

    diagnosis: str
    probability: float
    probabilities: dict[str, float]
    abstained: bool
    reason: str | None
    operating_points: dict[str, bool]
    provenance: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction with the notice, ready for JSON."""
        return {**asdict(self), "notice": NOTICE}
