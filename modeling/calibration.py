"""Turn raw logits into answers that can be trusted: calibrated probabilities, operating points, abstention.

Everything here is fitted on val, never on test. Fitting needs scipy (the `train` extra); applying needs numpy alone.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from modeling.labels import diagnosis_of

WANTED_SENSITIVITIES = (0.90, 0.95)
FALSE_ALARM_RATE = 0.05
# Few, because val has few images: more directions fit its images better than those of test.
N_DIRECTIONS = 16
N_FOLDS = 5


# ---- Calibration ---------------------------------------------------------------------------------------------------


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit on val the temperature that calibrated logits are divided by, by negative log-likelihood.

    A temperature changes no answer, so balanced accuracy, which chooses the epoch, stays what it was. A bias per diagnosis
    (arXiv:1901.06852) would undo the prior of the class-weighted loss too; cross-fitted on val of real images it brought
    the calibration error from .042 to .039 and cost balanced accuracy .575 → .493. A weak prior (log T ~ N(0, 1), less
    than one image's worth) keeps a perfectly separated val split from driving the temperature to 0.

    Args:
        logits: Raw logits of val, shape (N, C).
        labels: True labels of val, shape (N,).

    Raises:
        ValueError: If there is no image, or a logit is not finite.

    Source: Guo et al. (2017), arXiv:1706.04599.
    """
    from scipy.optimize import minimize_scalar  # fitting is for training only; serving does not install scipy

    logits = check_logits(logits)
    rows = np.arange(len(logits))

    def loss(log_temperature: float) -> float:
        log_probs = log_softmax(logits * math.exp(-log_temperature))
        return -float(log_probs[rows, labels].sum()) + 0.5 * log_temperature**2

    return math.exp(minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-8}).x)


@torch.no_grad()
def fold_temperature(model: torch.nn.Module, temperature: float) -> None:
    """Divide the classifier of a timm model by the temperature, in place, so that every loader is calibrated.

    Raises:
        ValueError: If the classifier is not one linear layer with a bias.
    """
    classifier = model.get_classifier()  # type: ignore[operator]  # timm's method
    if not isinstance(classifier, torch.nn.Linear) or classifier.bias is None:
        raise ValueError(
            f"the temperature folds into one linear layer with a bias, but the classifier is {classifier}; "
            "choose a backbone whose classifier is such a layer"
        )
    classifier.weight.div_(temperature)
    classifier.bias.div_(temperature)


def check_logits(logits: np.ndarray) -> np.ndarray:
    """Return the logits as float64 (N, C).

    Raises:
        ValueError: If there are none, or some are not finite.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or len(logits) == 0:
        raise ValueError(f"wanted logits of shape (N, C) with N > 0, got {logits.shape}: the split has no images")
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        raise ValueError(
            f"{broken.sum()} of {len(logits)} images have logits that are not finite (first at position "
            f"{int(np.flatnonzero(broken)[0])}): the weights are broken; train again with a lower learning rate, "
            "or in full precision"
        )
    return logits


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, C) of logits (N, C), without overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) of logits (N, C)."""
    return np.exp(log_softmax(np.asarray(logits, dtype=np.float64)))


# ---- Operating points ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the summed probability of `codes`, with what it gave on val."""

    name: str
    codes: tuple[str, ...]
    wanted_sensitivity: float
    threshold: float
    sensitivity: float
    specificity: float
    n_positive: int
    n_negative: int

    def reached(self, probs: np.ndarray, codes: Sequence[str]) -> np.ndarray:
        """Tell for each row of probs (N, C), columns in the order of `codes`, whether it is above the threshold."""
        return target_probability(probs, codes, self.codes) >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "codes": list(self.codes)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "OperatingPoint":
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If a number or the name cannot be.
            KeyError, TypeError: If an entry is missing, unknown or of another type.
        """
        point = cls(**{**values, "codes": tuple(values["codes"])})
        shares = (point.wanted_sensitivity, point.sensitivity, point.specificity)
        counts = (point.n_positive, point.n_negative)
        if (
            not (isinstance(point.name, str) and point.name.isprintable() and 1 <= len(point.name) <= 100)
            or not point.codes
            or len(set(point.codes)) < len(point.codes)
            or not all(0 <= share <= 1 for share in shares)
            or not all(isinstance(count, int) and 0 <= count < 2**53 for count in counts)
            or not math.isfinite(point.threshold)
        ):
            raise ValueError("an operating point has a name, share, count or threshold that cannot be.")
        return point


def fit_operating_points(probs: np.ndarray, labels: np.ndarray, codes: Sequence[str]) -> list[OperatingPoint]:
    """Fit on val the thresholds for melanoma, and for malignant against benign, at the wanted sensitivities.

    A target without images on one of its two sides has no operating point and is left out; the evaluation says so.

    Args:
        probs: Calibrated probabilities of val, shape (N, C).
        labels: True labels of val, shape (N,), into `codes`.
        codes: The model's diagnoses, in the order of the columns.
    """
    points = []
    for target, target_codes in operating_targets(codes).items():
        is_positive = np.isin(labels, [list(codes).index(code) for code in target_codes])
        if is_positive.all() or not is_positive.any():
            continue
        scores = target_probability(probs, codes, target_codes)
        for wanted in WANTED_SENSITIVITIES:
            threshold = choose_threshold(scores, is_positive, min_sensitivity=wanted)
            points.append(
                OperatingPoint(
                    name=f"{target}@{round(100 * wanted)}",
                    codes=target_codes,
                    wanted_sensitivity=wanted,
                    threshold=threshold,
                    sensitivity=float((scores[is_positive] >= threshold).mean()),
                    specificity=float((scores[~is_positive] < threshold).mean()),
                    n_positive=int(is_positive.sum()),
                    n_negative=int((~is_positive).sum()),
                )
            )
    return points


def operating_targets(codes: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what is to be caught, with the diagnoses whose probabilities are summed for it."""
    malignant = tuple(code for code in codes if diagnosis_of(code).malignant)
    targets: dict[str, tuple[str, ...]] = {"MEL": ("MEL",)} if "MEL" in codes else {}
    if malignant and malignant != ("MEL",):
        targets["malignant"] = malignant
    return targets


def target_probability(probs: np.ndarray, codes: Sequence[str], target_codes: Sequence[str]) -> np.ndarray:
    """Sum the probabilities (N, C) of the target's diagnoses, shape (N,)."""
    return np.asarray(probs)[:, [list(codes).index(code) for code in target_codes]].sum(axis=1)


def choose_threshold(scores: np.ndarray, is_positive: np.ndarray, *, min_sensitivity: float) -> float:
    """Return a threshold that still reaches the wanted sensitivity, and no more than needed.

    It lies half-way between the last score that must be caught and the next one below, so that a rounding
    difference between two machines does not move an image across it.

    Args:
        scores: Probability of the target, shape (N,).
        is_positive: True where the image shows it, shape (N,).
        min_sensitivity: Share of positives to catch, in (0, 1].

    Raises:
        ValueError: If no image is positive, so that sensitivity is undefined.

    Source: Fawcett (2006), An introduction to ROC analysis, doi:10.1016/j.patrec.2005.10.010.
    """
    if not is_positive.any():
        raise ValueError("no image is positive: sensitivity is undefined; fit on a split that shows the target")
    positives = np.sort(scores[is_positive])[::-1]
    n_caught = math.ceil(min_sensitivity * len(positives) - 1e-9)
    lowest_caught = positives[n_caught - 1]
    below = scores[scores < lowest_caught]
    next_below = below.max() if len(below) else 0.0
    return float((lowest_caught + next_below) / 2)


# ---- Abstention ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AbstentionRule:
    """Abstain where the image is unlike the training data: its score is above a threshold fitted on val.

    The score is ViM (Wang et al. 2022, arXiv:2203.10807), higher is more unlike: how far the penultimate features lie
    from the few directions in which those of known images vary, minus the energy of the calibrated logits. Of the
    scores compared on models of ISIC 2019 images (energy, maximum, Mahalanobis, nearest neighbours, ViM) it told other
    pictures apart best, but none is reliable where the features have few directions left; metrics.json says how far.

    Attributes:
        threshold: Images with a higher score are refused.
        false_alarm_rate: Share of val images above the threshold.
        residual_weight: Brings the distance to the scale of the logits.
        centre: Mean features of val, float32 (D,).
        directions: Orthonormal directions of greatest variance, float32 (K, D).
    """

    method: ClassVar[str] = "ViM"

    threshold: float
    false_alarm_rate: float
    residual_weight: float
    centre: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(
        cls,
        logits: np.ndarray,
        features: np.ndarray,
        labels: np.ndarray,
        false_alarm_rate: float = FALSE_ALARM_RATE,
    ) -> "AbstentionRule":
        """Fit on val: about `false_alarm_rate` of such images, all of known diagnoses, lie above the threshold.

        Args:
            logits: Calibrated logits of val, shape (N, C).
            features: Penultimate features of val, shape (N, D).
            labels: True labels of val, shape (N,); this score needs none of them.
            false_alarm_rate: Share of ordinary images that may be refused, in (0, 1).

        Raises:
            ValueError: If there is no image, or a logit or feature is not finite.
        """
        logits, features = check_logits(logits), check_logits(features)
        rule = cls(math.inf, false_alarm_rate, 1.0, *_principal_plane(features))
        # As in the paper: on known images the distance is on average as large as the highest logit.
        weight = abs(logits.max(axis=1).mean()) / max(rule._distance(features).mean(), 1e-12)
        rule = replace(rule, residual_weight=float(weight))
        # The plane fits the images that it was laid through better than new ones, so each fifth of val is scored against
        # the plane of the other four.
        scores, fold = np.empty(len(features)), np.arange(len(features)) % min(N_FOLDS, len(features))
        for number in np.unique(fold):
            held_out = fold == number
            centre, directions = _principal_plane(features[~held_out] if len(features) > 1 else features)
            scores[held_out] = replace(rule, centre=centre, directions=directions).score(
                logits[held_out], features[held_out]
            )
        return replace(rule, threshold=float(np.quantile(scores, 1 - false_alarm_rate)))

    def score(self, logits: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Return how unlike the training data each image is, shape (N,).

        Args:
            logits: Calibrated logits, shape (N, C).
            features: Penultimate features, shape (N, D).
        """
        logits = np.asarray(logits, dtype=np.float64)
        highest = logits.max(axis=1)
        energy = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        return self.residual_weight * self._distance(features) - energy

    def _distance(self, features: np.ndarray) -> np.ndarray:
        """Distance of features (N, D) from the plane that the directions span through the centre, shape (N,)."""
        offsets = np.asarray(features, dtype=np.float64) - self.centre
        directions = self.directions.astype(np.float64)
        return np.linalg.norm(offsets - (offsets @ directions.T) @ directions, axis=1)

    def abstains(self, logits: np.ndarray, features: np.ndarray) -> np.ndarray:
        """Tell for each image whether the model should not answer, shape (N,)."""
        return self.score(logits, features) > self.threshold

    def reasons(self, logits: np.ndarray, features: np.ndarray) -> list[str | None]:
        """Say in words why each image is refused, or None where it is not; length N."""
        return [
            f"The image is unlike those that this model was trained on (score {score:.2f}, limit {self.threshold:.2f}; "
            f"about {self.false_alarm_rate:.0%} of ordinary images exceed it), so its probabilities should not be used."
            if score > self.threshold
            else None
            for score in self.score(logits, features)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; the arrays (about 120 kB for EfficientNet-B0) as base64 of float32."""
        return {
            "method": self.method,
            "threshold": self.threshold,
            "false_alarm_rate": self.false_alarm_rate,
            "residual_weight": self.residual_weight,
            "n_features": len(self.centre),
            "centre": _to_base64(self.centre),
            "directions": _to_base64(self.directions),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "AbstentionRule":
        """Read what `to_dict` wrote.

        Raises:
            ValueError: If it is of another method, or an array is damaged.
        """
        if values.get("method") != cls.method:
            raise ValueError(
                f"the abstention rule is of method {values.get('method')!r}, and this version knows {cls.method}; "
                "update skin-lesion-classifier or take an older revision of the model."
            )
        n_features = int(values["n_features"])
        centre, directions = (_from_base64(values[name], n_features) for name in ("centre", "directions"))
        numbers = {name: float(values[name]) for name in ("threshold", "false_alarm_rate", "residual_weight")}
        if not all(map(math.isfinite, numbers.values())) or not 0 <= numbers["false_alarm_rate"] <= 1:
            raise ValueError("a number of the abstention rule cannot be; download the model again.")
        return cls(**numbers, centre=centre[0], directions=directions)


def _principal_plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D,) of features (N, D) and their directions of greatest variance (K, D), float32."""
    from sklearn.utils.extmath import randomized_svd  # fitting is for training only

    centre, n_directions = features.mean(axis=0), min(N_DIRECTIONS, features.shape[1] - 1)
    # A few directions out of 1,280: a whole decomposition takes a hundred times longer.
    _, _, directions = randomized_svd(
        features - centre, n_components=n_directions, n_oversamples=24, n_iter=10, random_state=0
    )
    return centre.astype(np.float32), directions.astype(np.float32)


def _to_base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


def _from_base64(text: str, n_columns: int) -> np.ndarray:
    """Return float32 (rows, n_columns)."""
    array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").reshape(-1, n_columns)
    if len(array) == 0 or not np.isfinite(array).all():
        raise ValueError("an array of the abstention rule is empty or not finite; download the model again.")
    return array
