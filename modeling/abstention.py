"""When not to answer: an out-of-distribution (OOD) score of an image, and its threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np

from modeling.calibration import lesion_folds
from modeling.formatting import TEXTS
from modeling.schema import Fraction, Positive, bounds

FALSE_ALARM_RATE = 0.05
# Chosen on val against generated images; a direction for every ten images, since more fit val better than new images.
MAX_DIRECTIONS, IMAGES_PER_DIRECTION = 64, 10
DISTANCE_WEIGHT = 4.0


@dataclass(frozen=True, eq=False)
class AbstentionRule:
    """Abstain when the OOD score of an image exceeds a threshold fitted on val.

    The score is ViM (Wang et al. 2022, arXiv:2203.10807): distance of the features to the principal subspace of val, minus
    the energy of the calibrated logits. Two copies of the features are concatenated, raw and scaled to length 1
    (Mahalanobis++, arXiv:2505.18032), because blank images have small features in some networks and large ones in others.
    """

    threshold: Annotated[float, bounds(gt=-1e6, lt=1e6)]  # images with a higher score are refused
    false_alarm_rate: Fraction  # fraction of the images that the rule was fitted on above the threshold
    residual_weight: Positive  # brings the distance to the scale of the logits
    length: Positive  # of the features, on average over val
    centre: np.ndarray  # mean of what `_both` makes of the features of val, float32 (2 D,)
    directions: np.ndarray  # orthonormal, of greatest variance, float32 (K, 2 D)
    method: Literal["ViM with and without normalisation"] = "ViM with and without normalisation"

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", self.directions.reshape(-1, len(self.centre)))  # JSON has no shapes

    @classmethod
    def fit(
        cls,
        logits: np.ndarray,
        features: np.ndarray,
        lesion_ids: Sequence[str] | np.ndarray,
        false_alarm_rate: float = FALSE_ALARM_RATE,
    ) -> "AbstentionRule":
        """Fit a rule that refuses about `false_alarm_rate` of images like these.

        Args:
            logits: Calibrated logits (N, C) of val images, and of the same images passed through other processing chains:
                otherwise the score would measure the camera's and the archive's traces.
            features: Their features (N, D).
            lesion_ids: Their lesions (N,); versions of an image share one.
            false_alarm_rate: Fraction to refuse, in (0, 1).
        """
        logits, features = (np.asarray(values, dtype=np.float64) for values in (logits, features))
        length = max(float(np.linalg.norm(features, axis=1).mean()), 1e-12)
        rule = cls(math.inf, false_alarm_rate, 1.0, length, *_principal_plane(_both(features, length)))
        # In the paper the mean distance on known images equals the mean of the highest logit; here it is a multiple.
        # A plane through two or three images leaves no distance; features have length 1, so 0.001 is none.
        weight = DISTANCE_WEIGHT * abs(logits.max(axis=1).mean()) / max(rule._distance(features).mean(), 1e-3)
        rule = replace(rule, residual_weight=float(weight))
        # The plane fits its own images better than new ones, so each fifth of val's lesions is scored against
        # the plane of the others.
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
        """Return whether the model abstains on each image, shape (N,)."""
        return self.score(logits, features) > self.threshold

    def reasons(self, logits: np.ndarray, features: np.ndarray) -> list[str | None]:
        """Return why each image is refused, or None where it is not; length N."""
        reason = TEXTS["reason"].format(percent=f"{100 * (1 - self.false_alarm_rate):.0f} %")
        return [reason if score > self.threshold else None for score in self.score(logits, features)]


def _both(features: np.ndarray, length: float) -> np.ndarray:
    """Return features (N, D) scaled to length 1 each, and by one length for all, side by side, float64 (N, 2 D)."""
    features = np.asarray(features, dtype=np.float64)
    return np.hstack([features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12), features / length])


def _principal_plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D,) of features (N, D) and their directions of greatest variance (K, D), float32."""
    from sklearn.utils.extmath import randomized_svd  # fitting is for training only

    centre = features.mean(axis=0)
    n_directions = max(min(MAX_DIRECTIONS, len(features) // IMAGES_PER_DIRECTION, features.shape[1] - 1), 1)
    # A few directions out of 1,280: a whole decomposition takes a hundred times longer.
    _, _, directions = randomized_svd(
        features - centre, n_components=n_directions, n_oversamples=24, n_iter=10, random_state=0
    )
    # In the order in memory in which they are read again: otherwise scores differ in the last bit.
    return centre.astype(np.float32), np.ascontiguousarray(directions, np.float32)
