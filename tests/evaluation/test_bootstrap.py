import time

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from modeling.calibration import softmax
from modeling.evaluation.bootstrap import bootstrap_lesions, estimate, replicated_auroc
from modeling.evaluation.metrics import score_calibration, score_split
from modeling.evaluation.split import Split, estimate_mean, estimate_rate


def split_of(lesions: np.ndarray) -> Split:
    """Return a split of these lesions; nothing else of it matters here."""
    return Split(("A", "B"), np.tile([0.4, 0.6], (len(lesions), 1)), np.zeros(len(lesions), int), np.asarray(lesions))


def test_totals_count_each_lesion_as_often_as_its_replicate_has_it() -> None:
    bootstrap = bootstrap_lesions(np.array(["b", "a", "b", "c"]), n_replicates=50)
    assert bootstrap.n_lesions == 3
    assert (bootstrap.draws.sum(axis=1) == 3).all()
    assert bootstrap.draws[0].tolist() == [1, 1, 1]  # the split itself
    values = np.array([1.0, 10.0, 100.0, 1000.0])
    a, b, c = bootstrap.draws.T
    assert np.allclose(bootstrap.totals(values), a * 10 + b * 101 + c * 1000)


def test_the_same_lesions_give_the_same_replicates() -> None:
    lesions = np.repeat(np.arange(20), 2)
    assert np.array_equal(bootstrap_lesions(lesions).draws, bootstrap_lesions(lesions).draws)


@pytest.mark.parametrize("decimals", [1, 8])  # with ties and without
def test_the_auroc_of_each_replicate_agrees_with_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(0)
    lesions = rng.integers(0, 60, 150)
    positive = lesions % 3 == 0
    scores = np.round(rng.random(150) + 0.3 * positive, decimals)
    bootstrap = bootstrap_lesions(lesions, n_replicates=20)
    aurocs = replicated_auroc(scores, positive, bootstrap)
    for draws, auroc in zip(bootstrap.draws, aurocs, strict=True):
        weights = draws[bootstrap.lesion_index]
        assert auroc == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights), abs=1e-6)


@pytest.mark.slow
def test_intervals_of_clustered_data_cover_the_truth_at_their_nominal_rate() -> None:
    """60 lesions with 1 to 8 photos that are mostly right or wrong together; the truth is the mean over all lesions."""
    rng = np.random.default_rng(0)
    by_lesion, by_image, n_trials = 0, 0, 300
    for _ in range(n_trials):
        photos = rng.integers(1, 9, size=60)
        lesion = np.repeat(np.arange(60), photos)
        hits = rng.random(len(lesion)) < rng.choice([0.95, 0.45], p=[0.5, 0.5], size=60)[lesion]
        for unit, counter in ((lesion, "lesion"), (np.arange(len(lesion)), "image")):
            interval = estimate_rate(hits, split_of(unit))
            covered = interval["low"] <= 0.7 <= interval["high"]
            if counter == "lesion":
                by_lesion += covered
            else:
                by_image += covered
    # The rate of the simulation itself is known to ± 2.5 points at 300 trials.
    assert 0.915 <= by_lesion / n_trials <= 0.975
    assert by_image / n_trials < 0.88  # what resampling images would have claimed


def test_a_rate_where_all_lesions_agree_has_the_exact_binomial_bound() -> None:
    split = split_of(np.repeat(np.arange(12), 3))
    rate = estimate_rate(np.ones(36, bool), split)
    exact = binomtest(12, 12).proportion_ci(0.95, method="exact")
    assert (rate["value"], rate["low"], rate["high"]) == pytest.approx((1.0, exact.low, 1.0))
    rate = estimate_rate(np.zeros(36, bool), split)
    exact = binomtest(0, 12).proportion_ci(0.95, method="exact")
    assert (rate["value"], rate["low"], rate["high"]) == pytest.approx((0.0, 0.0, exact.high))
    some = np.arange(36) < 9
    exact = binomtest(3, 3).proportion_ci(0.95, method="exact")
    assert estimate_rate(some, split, among=some)["low"] == pytest.approx(exact.low)


def test_what_cannot_be_estimated_says_why() -> None:
    same = np.full(1001, 0.5)
    assert estimate(same, 1)["low"] is None
    assert "one lesion" in estimate(same, 1)["reason"]
    missing = {"value": None, "low": None, "high": None, "reason": "no image of MEL"}
    assert estimate(np.full(1001, np.nan), 5, reason="no image of MEL") == missing
    mostly_missing = np.where(np.arange(1001) % 5 == 1, np.nan, np.linspace(0, 1, 1001))
    assert "20% of the replicates" in estimate(mostly_missing, 5)["reason"]
    perfect = estimate(np.ones(1001), 50)
    assert (perfect["value"], perfect["low"], perfect["high"]) == (1.0, None, None)
    assert "no replicate differs" in perfect["reason"]
    nobody = estimate_rate(np.ones(2, bool), split_of(["a", "b"]), among=np.zeros(2, bool), reason="none predicted MEL")
    assert (nobody["value"], nobody["reason"]) == (None, "none predicted MEL")


def test_undefined_values_count_neither_in_the_mean_nor_in_its_interval() -> None:
    found = estimate_mean(np.array([0.2, np.nan, 0.4, 0.6, np.nan, np.nan]), split_of([*"abcdef"]))
    assert found["value"] == pytest.approx(0.4)
    assert found["high"] == pytest.approx(0.6)
    assert "one lesion" in estimate_mean(np.array([0.2, np.nan, np.nan]), split_of([*"abc"]))["reason"]


def test_1000_replicates_of_4000_images_take_less_than_5_seconds() -> None:
    rng = np.random.default_rng(0)
    lesions = rng.integers(0, 2000, 4000)
    codes = tuple(f"D{index}" for index in range(8))
    split = Split(codes, softmax(rng.normal(size=(4000, 8))), lesions % 8, lesions)
    start = time.process_time()
    score_split(split)
    score_calibration(split.probs, split)
    assert time.process_time() - start < 5
