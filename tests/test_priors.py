"""Re-weighting by Bayes' rule, worked out by hand, and the choices of priors."""

import numpy as np
import pytest

from modeling.priors import resolve_priors, reweight

CODES = ("BCC", "MEL", "NV")


def test_bayes_rule_is_worked_out_by_hand():
    # A test with likelihoods 0.6 : 0.3 : 0.1; in a practice 1 : 2 : 7.  0.6, 0.6, 0.7 of 1.9.
    found = reweight(np.array([[0.6, 0.3, 0.1]]), np.array([0.1, 0.2, 0.7]))
    assert found == pytest.approx(np.array([[6 / 19, 6 / 19, 7 / 19]]))
    assert reweight(np.array([0.6, 0.3, 0.1]), np.full(3, 1 / 3)) == pytest.approx(np.array([0.6, 0.3, 0.1]))


def test_reweighting_there_and_back_gives_the_same_probabilities():
    rng = np.random.default_rng(0)
    probs, priors = rng.dirichlet(np.ones(3), 50), np.array([0.1, 0.2, 0.7])
    there = reweight(probs, priors)
    assert there.sum(axis=1) == pytest.approx(np.ones(50))
    assert reweight(there, 1 / priors) == pytest.approx(probs)


def test_the_choices_resolve_in_the_order_of_the_codes():
    mix = {"NV": 0.7, "BCC": 0.1, "MEL": 0.2}
    assert resolve_priors("equal", CODES, mix) == pytest.approx(np.full(3, 1 / 3))
    assert resolve_priors("dataset", CODES, mix) == pytest.approx(np.array([0.1, 0.2, 0.7]))
    assert resolve_priors({"NV": 6, "MEL": 3, "BCC": 1}, CODES) == pytest.approx(np.array([0.1, 0.3, 0.6]))


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("clinic", "must be 'equal', 'dataset' or a weight for each diagnosis, got 'clinic'"),
        ("dataset", "does not record the mix"),
        ({"NV": 1.0}, "none for BCC, MEL"),
        ({"NV": 1.0, "MEL": 1.0, "BCC": 1.0, "DF": 1.0}, "one for DF"),
        ({"NV": 1.0, "MEL": 0.0, "BCC": 1.0}, "above 0 and within"),
        ({"NV": 1.0, "MEL": -1.0, "BCC": 1.0}, "above 0 and within"),
        ({"NV": -1.0, "MEL": -1.0, "BCC": -1.0}, "above 0 and within"),
        ({"NV": float("inf"), "MEL": 1.0, "BCC": 1.0}, "within a factor of a billion"),
        ({"NV": float("nan"), "MEL": 1.0, "BCC": 1.0}, "within a factor of a billion"),
        ({"NV": 1e308, "MEL": 1e308, "BCC": 1e308}, "within a factor of a billion"),  # their sum is infinite
        ({"NV": 1e-320, "MEL": 1.0, "BCC": 1.0}, "within a factor of a billion"),  # 1 / prior would be
    ],
)
def test_priors_that_do_not_fit_the_model_are_refused_in_words(choice, words):
    with pytest.raises(ValueError, match=words):
        resolve_priors(choice, CODES)
