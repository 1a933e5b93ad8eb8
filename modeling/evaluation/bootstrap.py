"""95 % intervals from a bootstrap of lesions, not of images.

Photos of one lesion are alike. Resampling images would count the same evidence several times and give intervals that are
too narrow (Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x). The replicates are one matrix of weights; every metric
is a function of weighted sums. Its first row is the split itself, so each metric is computed by one piece of code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

N_REPLICATES = 1000
LEVEL = 0.95
SEED = 0
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
        columns = values.reshape(len(values), -1)
        by_lesion = np.stack(
            [np.bincount(self.lesion_index, weights=column, minlength=self.n_lesions) for column in columns.T], axis=1
        )
        return (self.draws.astype(np.float64) @ by_lesion).reshape((len(self.draws), *values.shape[1:]))

    def count(self, images: np.ndarray) -> int:
        """Return how many lesions some images show, boolean (N,)."""
        return len(np.unique(self.lesion_index[images]))


def bootstrap_lesions(lesion_ids: Sequence[Any] | np.ndarray, *, n_replicates: int = N_REPLICATES) -> Bootstrap:
    """Resample lesions with replacement, as many as there are, with a fixed seed.

    Args:
        lesion_ids: Lesion of each image, shape (N,).
        n_replicates: Number of replicates, R.
    """
    lesions, lesion_index = np.unique(np.asarray(lesion_ids), return_inverse=True)
    n = len(lesions)
    draws = np.random.default_rng(SEED).multinomial(n, np.full(n, 1 / n), size=n_replicates)
    return Bootstrap(lesion_index, np.vstack([np.ones(n), draws]).astype(np.float32))


def estimate(numbers: np.ndarray, n_lesions: int, *, reason: str = "") -> Estimate:
    """Return a value with its percentile interval.

    Args:
        numbers: The number for the split itself, then for every replicate, shape (1 + R,); NaN where it is undefined.
        n_lesions: Lesions that the number rests on.
        reason: Why the value is undefined, in words.
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


class Resampled(Protocol):
    """A split as these functions need it: the bootstrap of its lesions."""

    @property
    def bootstrap(self) -> Bootstrap: ...


def estimate_mean(values: np.ndarray, split: Resampled, *, reason: str = "") -> Estimate:
    """Return the mean over the defined (not NaN) values (N,) with its interval; `reason` says why there are none."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    totals = split.bootstrap.totals(np.stack([np.where(known, values, 0), known], axis=1))
    return estimate(ratio(totals[:, 0], totals[:, 1]), split.bootstrap.count(known), reason=reason)


def estimate_rate(
    hits: np.ndarray, split: Resampled, *, among: np.ndarray | None = None, reason: str = "no image"
) -> Estimate:
    """Return the rate of hits, boolean (N,), with its interval: among all images of a split, or some, boolean (N,).

    Where every lesion agrees (0 % or 100 %) no replicate can differ, and the bootstrap would claim certainty. The open
    end is then the exact binomial bound for that many lesions (Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404).
    """
    counted = np.ones(len(hits), dtype=bool) if among is None else among
    rate = estimate_mean(np.where(counted, hits, np.nan), split, reason=reason)
    return with_exact_bound(rate, split.bootstrap.count(counted))


def with_exact_bound(rate: Estimate, n_lesions: int) -> Estimate:
    """Give a rate of exactly 0 or 1, where all lesions agree, the exact binomial bound for `n_lesions`."""
    if rate.get("reason") != ALL_AGREE or rate["value"] not in (0.0, 1.0):
        return rate
    bound = ((1 - LEVEL) / 2) ** (1 / n_lesions)
    low, high = (bound, 1.0) if rate["value"] == 1.0 else (0.0, 1 - bound)
    return {"value": rate["value"], "low": low, "high": high}


def not_estimable(reason: str) -> Estimate:
    """Return an estimate without a value, and the reason for it."""
    return {"value": None, "low": None, "high": None, "reason": reason}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide, with NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator != 0, numerator / denominator, np.nan)


def replicated_auroc(scores: np.ndarray, is_positive: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """Return the AUROC of scores (N,) in the split and each replicate, (1 + R,); NaN without positives or negatives."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf) != 0)  # where a group of tied scores begins
    lesions, positive = bootstrap.lesion_index[order], is_positive[order].astype(np.float32)
    aurocs = []
    for draws in np.array_split(bootstrap.draws, max(1, len(bootstrap.draws) * len(scores) // 2_000_000)):
        weights = draws[:, lesions]  # (r, N), best score first
        true_positives = weights * positive
        false_positives = weights - true_positives
        if len(starts) < len(scores):
            true_positives = np.add.reduceat(true_positives, starts, axis=1)
            false_positives = np.add.reduceat(false_positives, starts, axis=1)
        # Sums of whole numbers below 2^24 are exact in float32.
        hits = np.cumsum(true_positives, axis=1)
        # Each negative ranks below all positives above it, and counts half for those tied with it.
        ranked = np.einsum("rg,rg->r", false_positives, hits - true_positives / 2, dtype=np.float64)
        n_negative = false_positives.sum(axis=1, dtype=np.float64)
        aurocs.append(ratio(ranked, hits[:, -1] * n_negative))
    return np.concatenate(aurocs)
