"""95 % intervals from a bootstrap of lesions, not of images.

Photos of one lesion are alike. Resampling images would count the same evidence several times and give intervals that are
too narrow (Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x). The replicates are one matrix of weights; every metric
is a function of weighted sums. Its first row is the split itself, so each metric is computed by one piece of code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

N_REPLICATES = 1000
LEVEL = 0.95
SEED = 0
INTERVALS = {  # as metrics.json describes them
    "method": "percentile bootstrap; Clopper-Pearson for a rate of 0 or 1, where all lesions agree",
    "level": LEVEL,
    "n_replicates": N_REPLICATES,
    "seed": SEED,
    "unit": "lesion",
}
# A replicate may lack a diagnosis altogether; an interval from the few replicates that have it would be too narrow.
MIN_ESTIMABLE = 0.95
ALL_AGREE = "no replicate differs: no interval"
ROUNDING = 1e-6  # single-precision weights: smaller differences between replicates are rounding

# A number of metrics.json: {"value", "low", "high"}, and "reason" where one of them is None.
Estimate = dict[str, Any]


@dataclass(frozen=True)
class Bootstrap:
    """How often each of L lesions counts in the split itself (first row, all ones) and in each of R replicates."""

    lesion_index: np.ndarray  # which lesion each image shows, (N,), in 0 … L-1
    draws: np.ndarray  # float32 (1 + R, L)

    @property
    def n_lesions(self) -> int:
        return int(self.draws.shape[1])

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sum values (N,) or (N, K) of the images over the split and each replicate: (1 + R,) or (1 + R, K)."""
        values = np.asarray(values, dtype=np.float64)
        by_lesion = np.zeros((self.n_lesions, *values.shape[1:]))
        np.add.at(by_lesion, self.lesion_index, values)
        return self.draws.astype(np.float64) @ by_lesion

    def count(self, images: np.ndarray) -> int:
        """Return how many lesions some images show, boolean (N,)."""
        return len(np.unique(self.lesion_index[images]))


def bootstrap_lesions(lesion_ids: Sequence[Any] | np.ndarray, *, n_replicates: int = N_REPLICATES) -> Bootstrap:
    """Resample the lesions of N images, `lesion_ids` (N,), with replacement, as many as there are, with a fixed seed."""
    lesions, lesion_index = np.unique(np.asarray(lesion_ids), return_inverse=True)
    n = len(lesions)
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=n_replicates)
    return Bootstrap(lesion_index, np.vstack([np.ones(n), draws]).astype(np.float32))


def estimate(numbers: np.ndarray, n_lesions: int, *, reason: str = "") -> Estimate:
    """Return a value that rests on `n_lesions` with its percentile interval, or the `reason` why it is undefined.

    `numbers` (1 + R,) are those of the split itself, then of every replicate; NaN where one is undefined.
    """
    value, replicates = numbers[0], numbers[1:]
    if not np.isfinite(value):
        return not_estimable(reason or "undefined on these images")
    finite = replicates[np.isfinite(replicates)]
    if n_lesions < 2:
        no_interval = "it rests on one lesion: no interval"
    elif len(finite) < MIN_ESTIMABLE * len(replicates):
        fraction = 1 - len(finite) / len(replicates)
        no_interval = f"it rests on so few lesions that {fraction:.0%} of the replicates lack them: no interval"
    elif np.ptp(finite) < ROUNDING:
        no_interval = ALL_AGREE
    else:
        tail = 100 * (1 - LEVEL) / 2
        low, high = np.percentile(finite, [tail, 100 - tail])
        return {"value": float(value), "low": float(low), "high": float(high)}
    return {"value": float(value), "low": None, "high": None, "reason": no_interval}


def not_estimable(reason: str) -> Estimate:
    """Return an estimate without a value, and the reason for it."""
    return {"value": None, "low": None, "high": None, "reason": reason}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def replicated_auroc(scores: np.ndarray, is_positive: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """Return the AUROC of scores (N,) in the split and each replicate, (1 + R,); NaN without positives or negatives."""
    weights = bootstrap.draws[:, bootstrap.lesion_index]  # (1 + R, N)
    of_positives, of_negatives = weights[:, is_positive], weights[:, ~is_positive]
    # Of each pair: 1 if the positive has the higher score, 0 if both are tied, otherwise -1.
    order = np.sign(scores[is_positive][:, None] - scores[~is_positive]).astype(np.float32)
    # Sums of whole numbers below 2^24 are exact in float32.
    in_order = np.einsum("rn,rn->r", of_positives @ order, of_negatives, dtype=np.float64)
    n_pairs = of_positives.sum(axis=1, dtype=np.float64) * of_negatives.sum(axis=1, dtype=np.float64)
    return (1 + ratio(in_order, n_pairs)) / 2
