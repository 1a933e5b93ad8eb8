"""How the first answer is made of calibrated probabilities: the diagnosis that a reader sees first."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# What the first answer is to reach on val: of melanomas, as far as the most frequent diagnosis still keeps its own recall.
MELANOMA_RECALL, FREQUENT_RECALL = 0.65, 0.88
TAUS = tuple(round(0.05 * step, 2) for step in range(31))
MELANOMA_WEIGHTS = tuple(round(math.exp(0.1 * step), 3) for step in range(21))


@dataclass(frozen=True)
class Decision:
    """Answer with the diagnosis of the largest weighted probability: p / prior^tau, melanoma's times `melanoma_weight`.

    With tau 0 and weight 1 that is the most probable diagnosis, which in data with many nevi misses most melanomas. Tau 1
    answers as if all diagnoses were equally frequent (Menon et al. 2021, arXiv:2007.07314); the weight says how much worse
    a missed melanoma is than another mistake (Elkan 2001, The foundations of cost-sensitive learning). The probabilities
    themselves stay calibrated, and loaders that know of no decision (transformers, timm) answer with the most probable.
    """

    tau: float  # 0 or above
    melanoma_weight: float  # above 0; without effect on a model that does not know melanoma
    priors: tuple[float, ...]  # how frequent each diagnosis is in val, length C, in the model's order

    @property
    def method(self) -> str:
        return "most probable" if self.tau == 0 and self.melanoma_weight == 1 else "prior-adjusted argmax"

    def choose(self, probs: np.ndarray, codes: Sequence[str]) -> np.ndarray:
        """Return the label of the answer to each row of calibrated probabilities (N, C), shape (N,)."""
        weights = np.array(self.priors) ** -self.tau
        weights[[code == "MEL" for code in codes]] *= self.melanoma_weight
        return (probs * weights).argmax(axis=1)

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.method, **asdict(self), "priors": list(self.priors)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Decision":
        """Read what `to_dict` wrote, as `schema.py` has checked it."""
        return cls(float(values["tau"]), float(values["melanoma_weight"]), tuple(map(float, values["priors"])))


def most_probable(codes: Sequence[str]) -> Decision:
    """Return the decision that answers with the most probable diagnosis."""
    return Decision(0.0, 1.0, (1 / len(codes),) * len(codes))


def fit_decision(probs: np.ndarray, labels: np.ndarray, codes: Sequence[str]) -> Decision:
    """Choose on val, of calibrated probabilities (N, C), how the first answer is made.

    Of all tau and weights that leave the most frequent diagnosis a recall of FREQUENT_RECALL (or what it has as the most
    probable, if that is less), take the best balanced accuracy; each point that the recall of melanoma falls short of
    MELANOMA_RECALL counts as one point of it. Each candidate is judged by the mean over its neighbours on the grid, since
    a peak of one candidate alone is chance.
    """
    from scipy.ndimage import uniform_filter  # fitting is for training only; serving does not install scipy

    counts = np.bincount(labels, minlength=len(codes))
    priors = tuple(((counts + 1) / (counts + 1).sum()).tolist())  # none is 0, even without an image
    frequent, present = int(counts.argmax()), np.flatnonzero(counts)
    knows_melanoma = "MEL" in codes and counts[list(codes).index("MEL")] > 0
    weights = MELANOMA_WEIGHTS if knows_melanoma else (1.0,)

    def recalls(decision: Decision) -> np.ndarray:
        hits = decision.choose(probs, codes) == labels
        return np.bincount(labels, weights=hits, minlength=len(codes)) / np.maximum(counts, 1)

    grid = np.array(
        [[recalls(Decision(tau, weight, priors)) for weight in weights] for tau in TAUS]
    )  # (taus, weights, C)
    worth = grid[..., present].mean(axis=-1)
    if knows_melanoma:
        worth -= np.maximum(MELANOMA_RECALL - grid[..., list(codes).index("MEL")], 0)
    worth = uniform_filter(worth, size=3, mode="nearest")
    allowed = grid[..., frequent] >= min(FREQUENT_RECALL, grid[0, 0, frequent])
    best = np.where(allowed, worth, -np.inf)
    tau, weight = np.unravel_index(int(best.argmax()), best.shape)  # of equals the simplest, which comes first
    return Decision(TAUS[tau], weights[weight], priors)
