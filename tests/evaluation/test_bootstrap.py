import time

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from modeling.evaluation.bootstrap import bootstrap_lesions, estimate, estimate_rate, replicated_ranking
from modeling.evaluation.metrics import score_calibration, score_split


def test_totals_count_each_lesion_as_often_as_it_was_drawn() -> None:
    bootstrap = bootstrap_lesions(np.array(["b", "a", "b", "c"]), n_replicates=50)
    assert bootstrap.n_lesions == 3
    assert (bootstrap.draws.sum(axis=1) == 3).all()
    values = np.array([1.0, 10.0, 100.0, 1000.0])
    a, b, c = bootstrap.draws.T
    assert np.allclose(bootstrap.totals(values), a * 10 + b * 101 + c * 1000)


def test_the_same_lesions_give_the_same_replicates() -> None:
    lesions = np.repeat(np.arange(20), 2)
    assert np.array_equal(bootstrap_lesions(lesions).draws, bootstrap_lesions(lesions).draws)


@pytest.mark.parametrize("decimals", [1, 8])  # with ties and without
def test_ranking_scores_of_each_replicate_agree_with_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(0)
    lesions = rng.integers(0, 60, 150)
    positive = lesions % 3 == 0
    scores = np.round(rng.random(150) + 0.3 * positive, decimals)
    bootstrap = bootstrap_lesions(lesions, n_replicates=20)
    aurocs, precisions = replicated_ranking(scores, positive, bootstrap)
    for draws, auroc, precision in zip(bootstrap.draws, aurocs, precisions, strict=True):
        weights = draws[bootstrap.lesion_index]
        assert auroc == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights), abs=1e-6)
        assert precision == pytest.approx(average_precision_score(positive, scores, sample_weight=weights), abs=1e-6)


def test_intervals_of_clustered_data_cover_the_truth_at_their_nominal_rate() -> None:
    """60 lesions with 1 to 8 photos that are mostly right or wrong together; the truth is the mean over all lesions."""
    rng = np.random.default_rng(0)
    by_lesion, by_image, n_trials = 0, 0, 400
    for _ in range(n_trials):
        photos = rng.integers(1, 9, size=60)
        lesion = np.repeat(np.arange(60), photos)
        hits = rng.random(len(lesion)) < rng.choice([0.95, 0.45], p=[0.5, 0.5], size=60)[lesion]
        for unit, counter in ((lesion, "lesion"), (np.arange(len(lesion)), "image")):
            interval = estimate_rate(hits, hits | True, bootstrap_lesions(unit, n_replicates=400), reason="")
            covered = interval["low"] <= 0.7 <= interval["high"]
            if counter == "lesion":
                by_lesion += covered
            else:
                by_image += covered
    # The rate of the simulation itself is known to ± 2.1 points at 400 trials.
    assert 0.92 <= by_lesion / n_trials <= 0.975
    assert by_image / n_trials < 0.88  # what resampling images would have claimed


def test_a_share_where_all_lesions_agree_has_the_exact_binomial_bound() -> None:
    lesions = np.repeat(np.arange(12), 3)
    share = estimate_rate(np.ones(36, bool), np.ones(36, bool), bootstrap_lesions(lesions), reason="")
    exact = binomtest(12, 12).proportion_ci(0.95, method="exact")
    assert (share["value"], share["low"], share["high"]) == pytest.approx((1.0, exact.low, 1.0))
    share = estimate_rate(np.zeros(36, bool), np.ones(36, bool), bootstrap_lesions(lesions), reason="")
    exact = binomtest(0, 12).proportion_ci(0.95, method="exact")
    assert (share["value"], share["low"], share["high"]) == pytest.approx((0.0, 0.0, exact.high))


def test_what_cannot_be_estimated_says_why() -> None:
    one = bootstrap_lesions(["a", "a"])
    assert estimate(0.5, np.full(2000, 0.5), one.n_lesions)["low"] is None
    assert "one lesion" in estimate(0.5, np.full(2000, 0.5), one.n_lesions)["reason"]
    assert estimate(None, np.full(2000, 0.5), 5, reason="no image of MEL") == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "no image of MEL",
    }
    mostly_missing = np.where(np.arange(2000) < 400, np.nan, 0.5)
    assert "20% of the replicates" in estimate(0.5, mostly_missing, 5)["reason"]
    perfect = estimate(1.0, np.ones(2000), 50)
    assert (perfect["value"], perfect["low"], perfect["high"]) == (1.0, None, None)
    assert "no replicate differs" in perfect["reason"]
    assert estimate_rate(np.ones(2, bool), np.zeros(2, bool), one, reason="nothing was predicted MEL")["value"] is None


def test_2000_replicates_of_4000_images_take_less_than_10_seconds() -> None:
    rng = np.random.default_rng(0)
    lesions = rng.integers(0, 2000, 4000)
    labels, logits = lesions % 8, rng.normal(size=(4000, 8))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    codes = [f"D{index}" for index in range(8)]
    start = time.process_time()
    bootstrap = bootstrap_lesions(lesions)
    score_split(probs, labels, codes, bootstrap)
    score_calibration(logits, labels, codes, bootstrap)
    assert time.process_time() - start < 10
