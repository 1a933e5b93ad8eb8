"""Prior probabilities of the diagnoses: how common each is where the photos come from."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

PriorsChoice = Literal["equal", "dataset"] | Mapping[str, float]


def reweight(probs: np.ndarray, priors: np.ndarray) -> np.ndarray:
    """Return probabilities (N, C) at `priors` (C,) of probabilities at equal priors, by Bayes' rule.

    Source: Saerens et al. (2002), Adjusting the outputs of a classifier to new a priori probabilities,
    doi:10.1162/089976602753284446.
    """
    weighted = np.asarray(probs) * priors
    return weighted / weighted.sum(axis=-1, keepdims=True)


def resolve_priors(
    choice: PriorsChoice, codes: Sequence[str], class_priors: Mapping[str, float] | None = None
) -> np.ndarray:
    """Return the priors (C,) that a choice names, in the order of `codes`; they sum to 1.

    The choice is "equal", "dataset" (`class_priors`, the fraction of each diagnosis in the model's train and val images, if
    known), or a positive weight for each of `codes`; the largest at most a billion times the smallest.

    Raises:
        ValueError: If the choice cannot be resolved; the message says why.
    """
    if isinstance(choice, str):
        if choice not in ("equal", "dataset"):
            raise ValueError(f"priors must be 'equal', 'dataset' or a weight for each diagnosis, got {choice!r:.80}.")
        if choice == "dataset" and not class_priors:
            raise ValueError("priors='dataset': this model does not record the mix of its dataset; give weights.")
        choice = class_priors if choice == "dataset" and class_priors else dict.fromkeys(codes, 1.0)
    missing, unknown = set(codes) - set(choice), set(choice) - set(codes)
    if missing or unknown:
        what = f"none for {', '.join(sorted(missing))}" if missing else f"one for {', '.join(sorted(unknown))}"
        raise ValueError(f"priors need a weight for each of {', '.join(codes)}; there is {what:.200}.")
    weights = np.array([float(choice[code]) for code in codes])
    if not (math.isfinite(sum(weights.tolist())) and weights.min() >= 1e-9 * weights.max() > 0):
        given = dict(zip(codes, weights.tolist(), strict=True))
        raise ValueError(f"priors must be finite, above 0 and within a factor of a billion, got {given}.")
    return weights / weights.sum()
