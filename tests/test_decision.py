import json

import numpy as np
import pytest
from sklearn.metrics import recall_score

from modeling.calibration import softmax
from modeling.decision import FREQUENT_RECALL, MELANOMA_RECALL, Decision, fit_decision, most_probable

CODES = ("BCC", "BKL", "MEL", "NV")


def drawn(n: int, seed: int, separation: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of unevenly frequent diagnoses: normal features, posteriors by Bayes' rule."""
    rng = np.random.default_rng(seed)
    priors, means = np.array([0.06, 0.11, 0.12, 0.71]), separation * np.eye(4)
    labels = rng.choice(4, n, p=priors)
    features = means[labels] + rng.normal(size=(n, 4))
    return softmax(np.log(priors) - ((features[:, None] - means) ** 2).sum(axis=2) / 2), labels


def test_the_answer_is_worked_out_by_hand() -> None:
    probs = np.array([[0.1, 0.1, 0.2, 0.6], [0.0, 0.0, 0.0, 1.0]])
    priors = (0.1, 0.1, 0.1, 0.7)
    assert most_probable(CODES).choose(probs, CODES).tolist() == [3, 3]
    # 0.2 / 0.1 = 2 for MEL, 0.6 / 0.7 for NV.
    assert Decision(1.0, 1.0, priors).choose(probs, CODES).tolist() == [2, 3]
    # 0.2 / sqrt(0.1) = 0.632, 0.6 / sqrt(0.7) = 0.717: a weight of 1.2 turns it.
    assert Decision(0.5, 1.1, priors).choose(probs, CODES).tolist() == [3, 3]
    assert Decision(0.5, 1.2, priors).choose(probs, CODES).tolist() == [2, 3]
    assert Decision(0.0, 100.0, (0.5, 0.5)).choose(np.array([[0.4, 0.6]]), ("NV", "BCC")).tolist() == [1]


def test_on_calibrated_probabilities_tau_one_has_the_best_balanced_accuracy() -> None:
    probs, labels = drawn(60_000, 0)
    scores = {
        tau: recall_score(labels, Decision(tau, 1.0, (0.06, 0.11, 0.12, 0.71)).choose(probs, CODES), average="macro")
        for tau in (0.0, 0.5, 0.9, 1.0, 1.1, 1.5)
    }
    assert scores[1.0] == pytest.approx(max(scores.values()), abs=0.002)
    assert scores[1.0] - scores[0.0] > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_melanomas_are_found_as_far_as_nevi_allow_and_that_holds_on_other_images(seed: int) -> None:
    decision = fit_decision(*drawn(3000, seed), CODES)
    probs, labels = drawn(20_000, 100 + seed)
    plain, chosen = (
        recall_score(labels, answer.choose(probs, CODES), average=None) for answer in (most_probable(CODES), decision)
    )
    assert plain[2] < 0.56
    assert chosen[2] > MELANOMA_RECALL - 0.05
    assert chosen[3] > FREQUENT_RECALL - 0.03
    assert chosen.mean() > plain.mean() + 0.04


def test_nothing_is_weighted_where_nothing_is_won() -> None:
    labels = np.arange(200) % 4
    assert fit_decision(np.eye(4)[labels] * 0.8 + 0.05, labels, CODES).method == "most probable"
    assert fit_decision(np.array([[0.3, 0.7], [0.6, 0.4]]), np.array([1, 0]), ("NV", "BCC")).melanoma_weight == 1


def test_a_diagnosis_without_an_image_in_val_divides_by_no_zero() -> None:
    probs, labels = drawn(500, 0)
    keep = labels != 2
    decision = fit_decision(probs[keep], labels[keep], CODES)
    assert min(decision.priors) > 0
    assert decision.melanoma_weight == 1


def test_a_decision_survives_config_json() -> None:
    decision = fit_decision(*drawn(1000, 0), CODES)
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision
