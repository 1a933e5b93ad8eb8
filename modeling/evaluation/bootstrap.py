"""95 % intervals by a bootstrap of lesions, not of images.

Photos of one lesion are alike, so drawing images would count the same evidence several times and give intervals
that are too narrow (Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x). All replicates are drawn at once as a
matrix of how often each lesion was drawn; every metric is then a function of weighted sums.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

N_REPLICATES = 2000
LEVEL = 0.95
SEED = 0
# A replicate may lack a diagnosis altogether; an interval from the few that have it would be too narrow.
MIN_ESTIMABLE = 0.95
ALL_AGREE = "no replicate differs: no interval"
ROUNDING = 1e-12  # weights that add up to 1 do so within this; what differs by less is the same

# A number of metrics.json: {"value", "low", "high"}, and "reason" where one of them is None.
Estimate = dict[str, Any]


@dataclass(frozen=True)
class Bootstrap:
    """How often each of L lesions was drawn in each of R replicates."""

    lesion_index: np.ndarray  # which lesion each image shows, (N,), in 0 … L-1
    draws: np.ndarray  # float32 (R, L)

    @property
    def n_lesions(self) -> int:
        return self.draws.shape[1]

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sum values (N,) or (N, K) of the images over each replicate: (R,) or (R, K)."""
        values = np.asarray(values, dtype=np.float64)
        columns = values.reshape(len(values), -1)
        by_lesion = np.stack(
            [np.bincount(self.lesion_index, weights=column, minlength=self.n_lesions) for column in columns.T], axis=1
        )
        return (self.draws.astype(np.float64) @ by_lesion).reshape((len(self.draws), *values.shape[1:]))

    def count(self, images: np.ndarray) -> int:
        """Return how many lesions some images show, boolean (N,)."""
        return len(np.unique(self.lesion_index[images]))

    def of(self, chosen: np.ndarray) -> "Bootstrap":
        """Return a bootstrap of the lesions that some images show (boolean (N,)), drawn afresh among themselves."""
        return bootstrap_lesions(self.lesion_index[chosen], n_replicates=len(self.draws))


def bootstrap_lesions(lesion_ids: Sequence[Any] | np.ndarray, *, n_replicates: int = N_REPLICATES) -> Bootstrap:
    """Draw lesions with replacement, as many as there are, with a fixed seed.

    Args:
        lesion_ids: Lesion of each image, shape (N,).
        n_replicates: How many times.
    """
    lesions, lesion_index = np.unique(np.asarray(lesion_ids), return_inverse=True)
    n_lesions = len(lesions)
    draws = np.random.default_rng(SEED).multinomial(n_lesions, np.full(n_lesions, 1 / n_lesions), size=n_replicates)
    return Bootstrap(lesion_index=lesion_index, draws=draws.astype(np.float32))


def estimate(value: float | None, replicates: np.ndarray, n_lesions: int, *, reason: str = "") -> Estimate:
    """Return a value with the percentile interval of its replicates.

    Args:
        value: Of the whole split; None or NaN where it is undefined.
        replicates: The same number of every replicate, shape (R,), NaN where it is undefined.
        n_lesions: Lesions that the number rests on.
        reason: Why the value is undefined, in words.
    """
    if value is None or not np.isfinite(value):
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


def estimate_mean(values: np.ndarray, bootstrap: Bootstrap, *, reason: str = "") -> Estimate:
    """Return the mean of those of the values (N,) that are defined, with its interval; `reason` is why none is."""
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    totals = bootstrap.totals(np.stack([np.where(known, values, 0), known], axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = totals[:, 0] / totals[:, 1]
    return estimate(values[known].mean() if known.any() else None, replicates, bootstrap.count(known), reason=reason)


def estimate_rate(hits: np.ndarray, counted: np.ndarray, bootstrap: Bootstrap, *, reason: str) -> Estimate:
    """Return the rate of hits (boolean (N,)) among the images that count (boolean (N,)), with its interval.

    Where every lesion agrees (0 % or 100 %) no replicate can differ, and the bootstrap would claim certainty; then the
    open end is the exact binomial bound for that many lesions (Clopper & Pearson 1934, doi:10.1093/biomet/26.4.404).
    """
    rate = estimate_mean(np.where(counted, hits, np.nan), bootstrap, reason=reason)
    return with_exact_bound(rate, bootstrap.count(counted))


def with_exact_bound(rate: Estimate, n_lesions: int) -> Estimate:
    """Give a rate of exactly 0 or 1, where all lesions agree, the exact binomial bound for `n_lesions`."""
    if rate.get("reason") != ALL_AGREE or rate["value"] not in (0.0, 1.0):
        return rate
    bound = ((1 - LEVEL) / 2) ** (1 / n_lesions)
    low, high = (bound, 1.0) if rate["value"] == 1.0 else (0.0, 1 - bound)
    return {"value": rate["value"], "low": low, "high": high}


def not_estimable(reason: str) -> Estimate:
    """Say that a number is undefined, and why."""
    return {"value": None, "low": None, "high": None, "reason": reason}


def replicated_ranking(
    scores: np.ndarray, is_positive: np.ndarray, bootstrap: Bootstrap
) -> tuple[np.ndarray, np.ndarray]:
    """Return AUROC and average precision of scores (N,) in each replicate, each (R,); NaN where a side is missing."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf) != 0)  # where a group of tied scores begins
    tied = len(starts) < len(scores)
    lesions, positive = bootstrap.lesion_index[order], is_positive[order].astype(np.float32)
    aurocs, average_precisions = [], []
    for draws in np.array_split(bootstrap.draws, max(1, len(bootstrap.draws) * len(scores) // 2_000_000)):
        weights = draws[:, lesions]  # (r, N), best score first
        true_positives = weights * positive
        false_positives = weights - true_positives
        if tied:
            true_positives = np.add.reduceat(true_positives, starts, axis=1)
            false_positives = np.add.reduceat(false_positives, starts, axis=1)
        # Sums of whole numbers below 2^24 are exact in float32.
        hits = np.cumsum(true_positives, axis=1)
        alarms = np.cumsum(false_positives, axis=1)
        n_positive, n_negative = hits[:, -1].astype(np.float64), alarms[:, -1].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            # A negative is beaten by all positives above it, and by half of those tied with it.
            beaten = np.einsum("rg,rg->r", false_positives, hits - true_positives / 2, dtype=np.float64)
            aurocs.append(beaten / (n_positive * n_negative))
            precision = np.divide(hits, hits + alarms, out=np.zeros_like(hits), where=hits > 0)
            ap = np.einsum("rg,rg->r", true_positives, precision, dtype=np.float64) / n_positive
            average_precisions.append(np.where(n_negative > 0, ap, np.nan))
    return np.concatenate(aurocs), np.concatenate(average_precisions)
