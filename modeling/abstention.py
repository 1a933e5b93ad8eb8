"""When not to answer: an OOD score of how far an image lies from the training data, and its threshold."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from modeling.calibration import lesion_folds

FALSE_ALARM_RATE = 0.05
# Few, because val has few images: more directions fit its images better than those of test.
N_DIRECTIONS = 16
DISTANCE_WEIGHT = 2.0


@dataclass(frozen=True, eq=False)
class AbstentionRule:
    """Abstain where the image is unlike the training data: its score is above a threshold fitted on val.

    The OOD score is ViM (Wang et al. 2022, arXiv:2203.10807): how far the features lie from the few directions in which
    those of known images vary, minus the energy of the calibrated logits. The features stand there twice, as they are and
    scaled to length 1 (Mahalanobis++, arXiv:2505.18032): some networks give a blank image weak features, which as they are
    lie near the centre, and others give it strong ones, which stand out by their length alone. benchmarks/README.md
    compares this with what else there is; the kinds that chose it are marked in metrics.json.
    """

    method: ClassVar[str] = "ViM with and without normalisation"

    threshold: float  # images with a higher score are refused
    false_alarm_rate: float  # fraction of val images above the threshold
    residual_weight: float  # brings the distance to the scale of the logits
    length: float  # of the features, on average over val
    centre: np.ndarray  # mean of what `_both` makes of the features of val, float32 (2 D,)
    directions: np.ndarray  # orthonormal, of greatest variance, float32 (K, 2 D)

    @classmethod
    def fit(
        cls,
        logits: np.ndarray,
        features: np.ndarray,
        lesion_ids: Sequence[str] | np.ndarray,
        false_alarm_rate: float = FALSE_ALARM_RATE,
    ) -> "AbstentionRule":
        """Fit on calibrated logits (N, C) and features (N, D) of val; refuses about `false_alarm_rate` of such images."""
        logits, features = (np.asarray(values, dtype=np.float64) for values in (logits, features))
        length = max(float(np.linalg.norm(features, axis=1).mean()), 1e-12)
        rule = cls(math.inf, false_alarm_rate, 1.0, length, *_principal_plane(_both(features, length)))
        # In the paper the distance is on known images as large as the highest logit on average; here twice as large.
        weight = DISTANCE_WEIGHT * abs(logits.max(axis=1).mean()) / max(rule._distance(features).mean(), 1e-12)
        rule = replace(rule, residual_weight=float(weight))
        # The plane fits the images that it was laid through better than new ones, so each fifth of val's
        # lesions is scored against the plane of the others.
        scores, fold = np.empty(len(features)), lesion_folds(lesion_ids)
        for number in np.unique(fold):
            held_out = fold == number
            centre, directions = _principal_plane(_both(features[~held_out] if fold.any() else features, length))
            scores[held_out] = replace(rule, centre=centre, directions=directions).score(
                logits[held_out], features[held_out]
            )
        return replace(rule, threshold=float(np.quantile(scores, 1 - false_alarm_rate)))

    def score(self, logits: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return the OOD score of each image, (N,), of logits (N, C) and features (N, D); higher is further away."""
        energy = np.logaddexp.reduce(np.asarray(logits, dtype=np.float64), axis=1)
        return self.residual_weight * self._distance(features) - energy

    def _distance(self, features: np.ndarray) -> np.ndarray:
        """Distance of features (N, D) from the plane that the directions span through the centre, shape (N,)."""
        offsets = _both(features, self.length) - self.centre
        directions = self.directions.astype(np.float64)
        return np.linalg.norm(offsets - (offsets @ directions.T) @ directions, axis=1)

    def abstains(self, logits: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Tell for each image whether the model should not answer, shape (N,)."""
        return self.score(logits, features) > self.threshold

    def reasons(self, logits: np.ndarray, features: np.ndarray) -> list[str | None]:
        """Say in words why each image is refused, or None where it is not; length N."""
        return [
            "The image is unlike those that this model was trained on, more so than about "
            f"{100 * (1 - self.false_alarm_rate):.0f} % of ordinary images, so its probabilities should not be used."
            if score > self.threshold
            else None
            for score in self.score(logits, features)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the arrays (about 230 kB for EfficientNet-B0) as base64 of float32."""
        return {
            "method": self.method,
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "residual_weight": self.residual_weight,
            "length": self.length,
            "n_features": len(self.centre) // 2,
            "centre": _to_base64(self.centre),
            "directions": _to_base64(self.directions),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AbstentionRule":
        """Read what `to_dict` wrote, as `schema.py` has checked it.

        Raises:
            ValueError: If an array is damaged.
        """
        centre, directions = (_from_base64(values[name], 2 * values["n_features"]) for name in ("centre", "directions"))
        numbers = {name: float(values[name]) for name in ("threshold", "false_alarm_rate", "residual_weight", "length")}
        return cls(**numbers, centre=centre[0], directions=directions)


def _both(features: np.ndarray, length: float) -> np.ndarray:
    """Return features (N, D) scaled to length 1 each, and by one length for all, side by side, float64 (N, 2 D)."""
    features = np.asarray(features, dtype=np.float64)
    return np.hstack([features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), features / length])


def _principal_plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D,) of features (N, D) and their directions of greatest variance (K, D), float32."""
    from sklearn.utils.extmath import randomized_svd  # fitting is for training only

    centre, n_directions = features.mean(axis=0), min(N_DIRECTIONS, features.shape[1] - 1)
    # A few directions out of 1,280: a whole decomposition takes a hundred times longer.
    _, _, directions = randomized_svd(
        features - centre, n_components=n_directions, n_oversamples=24, n_iter=10, random_state=0
    )
    # In the order in memory in which they are read again: otherwise scores differ in the last bit.
    return centre.astype(np.float32), np.ascontiguousarray(directions, np.float32)


def _to_base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


def _from_base64(text: str, n_columns: int) -> np.ndarray:
    """Return float32 (rows, n_columns)."""
    array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").reshape(-1, n_columns)
    if len(array) == 0 or not np.isfinite(array).all():
        raise ValueError("an array of the abstention rule is empty or not finite; download the model again.")
    return array
