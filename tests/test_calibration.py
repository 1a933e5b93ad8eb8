import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold
from sklearn.utils.class_weight import compute_sample_weight

from modeling import abstention
from modeling.abstention import AbstentionRule
from modeling.calibration import (
    CALIBRATIONS,
    Calibration,
    fit_calibration,
    lesion_folds,
    softmax,
)
from modeling.files import ModelFolderError
from modeling.network import build_model, fold_calibration
from modeling.operating_points import OperatingPoint, choose_threshold, fit_operating_points
from modeling.priors import reweight
from modeling.schema import checked, plain

CODES = ("BCC", "BKL", "MEL", "NV")


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are calibrated by construction: labels are drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)) * 2
    cumulative = softmax(logits).cumsum(axis=1)
    labels = (rng.random((n, 1)) > cumulative[:, :3]).sum(axis=1)
    return logits, labels


EQUAL = np.full(4, 0.25)


def drawn_at(priors: np.ndarray, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are calibrated at these priors: Gaussian evidence, and the log of the priors."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=priors)
    evidence = np.eye(4)[labels] * 2 + rng.normal(size=(n, 4))  # log-likelihood ratios are 2 times the evidence
    return 2 * evidence + np.log(priors), labels


def test_a_known_temperature_is_recovered() -> None:
    logits, labels = drawn(20_000)
    for temperature in (0.4, 1.0, 3.0):
        scale, _ = CALIBRATIONS["temperature scaling"](temperature * logits, labels)
        assert scale == pytest.approx(np.full(4, 1 / temperature), rel=0.05)


@pytest.mark.parametrize("method", ["temperature scaling", "vector scaling"])
def test_the_fit_minimises_scikit_learn_s_class_weighted_log_loss(method: str) -> None:
    """No neighbour is better, of the loss in which each diagnosis weighs the same."""
    logits, labels = drawn_at(np.array([0.05, 0.1, 0.15, 0.7]), 6000)
    logits = 2.5 * logits + np.array([1.0, 0, 0, 0])
    weights = compute_sample_weight("balanced", labels)

    def loss(scale: np.ndarray, bias: np.ndarray) -> float:
        return log_loss(labels, softmax(logits * scale + bias), sample_weight=weights)

    scale, bias = CALIBRATIONS[method](logits, labels)
    found = loss(scale, bias)
    for factor in (0.9, 1.1):
        assert loss(scale * factor, bias) > found
    if method == "vector scaling":
        for index in range(4):
            for step in (-0.1, 0.1):
                assert loss(scale, bias + step * np.eye(4)[index]) > found


def test_calibrated_probabilities_assume_equal_priors() -> None:
    """Logits calibrated at the dataset's mix become those of Bayes' rule at equal priors, and priors put the mix back."""
    priors = np.array([0.05, 0.1, 0.15, 0.7])
    logits, labels = drawn_at(priors, 20_000)
    calibration = fit_calibration(logits, labels, np.arange(len(labels)), priors=priors)
    equal = softmax(calibration.apply(logits))
    by_bayes = softmax(logits) / priors
    assert equal == pytest.approx(by_bayes / by_bayes.sum(axis=1, keepdims=True), abs=0.03)
    assert reweight(equal, priors) == pytest.approx(softmax(logits), abs=0.03)
    weights = compute_sample_weight("balanced", labels)
    assert np.average(equal, axis=0, weights=weights) == pytest.approx(EQUAL, abs=0.01)


def test_the_method_with_the_lowest_cross_validated_loss_is_chosen() -> None:
    logits, labels = drawn_at(EQUAL, 4000)
    lesions = np.arange(4000) // 2
    found = {
        "none": fit_calibration(logits, labels, lesions, priors=EQUAL),
        "temperature scaling": fit_calibration(2.5 * logits, labels, lesions, priors=EQUAL),
        # As after a loss with class weights: the logits of two diagnoses are too high.
        "vector scaling": fit_calibration(logits + np.array([1.5, 1.0, 0, 0]), labels, lesions, priors=EQUAL),
    }
    assert {name: calibration.method for name, calibration in found.items()} == {name: name for name in found}
    for calibration in found.values():
        assert list(calibration.nll) == list(found)
        assert calibration.method == min(calibration.nll, key=lambda name, nll=calibration.nll: nll[name])
        assert checked(Calibration, json.loads(json.dumps(plain(calibration))), "here") == calibration
    assert np.array(found["temperature scaling"].scale) == pytest.approx(np.full(4, 1 / 2.5), rel=0.05)
    bias = np.array(found["vector scaling"].bias)
    assert bias - bias[3] == pytest.approx(np.array([-1.5, -1.0, 0, 0]), abs=0.3)


def test_cross_validated_likelihoods_agree_with_scikit_learn_s_group_folds() -> None:
    priors = np.array([0.1, 0.2, 0.3, 0.4])
    logits, labels = drawn_at(priors, 3000)
    lesions = np.arange(3000) // 3
    found = fit_calibration(3 * logits, labels, lesions, priors=priors).nll
    equal, losses = 3 * logits - np.log(priors), np.empty(len(labels))
    weights = compute_sample_weight("balanced", labels)
    for seen, held_out in GroupKFold(5).split(equal, labels, lesions):
        temperature = minimize_scalar(
            lambda value, rows=seen: log_loss(
                labels[rows],
                softmax(equal[rows] / value),
                sample_weight=compute_sample_weight("balanced", labels[rows]),
            ),
            bounds=(0.1, 10),
        ).x
        probs = softmax(equal[held_out] / temperature)
        losses[held_out] = -np.log(probs[np.arange(len(held_out)), labels[held_out]])
    assert found["temperature scaling"] == pytest.approx(np.average(losses, weights=weights), abs=3e-3)
    assert found["none"] == pytest.approx(log_loss(labels, softmax(equal), sample_weight=weights), abs=1e-9)


def test_folds_keep_the_photos_of_a_lesion_together() -> None:
    lesions = np.repeat([f"L{number}" for number in range(40)], np.arange(40) % 4 + 1)
    fold = lesion_folds(lesions)
    assert all(len(set(fold[lesions == lesion])) == 1 for lesion in lesions)
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]
    assert lesion_folds(["a", "a", "b"]).max() == 1


@pytest.mark.parametrize("n", [5, 50])
def test_perfectly_separated_images_do_not_get_certain_answers(n: int) -> None:
    labels = np.arange(4 * n) % 4
    logits = np.eye(4)[labels] * 8
    expected = pytest.approx((n + 1) / (n + 2), abs=1e-3)  # Laplace's rule of succession
    scale, _ = CALIBRATIONS["temperature scaling"](logits, labels)
    assert softmax(logits * scale).max() == expected
    # No method gives more.
    for fit in CALIBRATIONS.values():
        scale, bias = fit(logits / 40, labels)
        assert softmax(logits / 40 * scale + bias).max() <= (n + 1) / (n + 2) + 1e-3


def test_folding_gives_the_calibrated_logits() -> None:
    torch.manual_seed(0)
    model = build_model("test_efficientnet", num_classes=4, size_px=64, pretrained=False).eval()
    torch.nn.init.normal_(model.get_classifier().bias)  # zero in a new network
    pixel_values = torch.rand(3, 3, 64, 64)
    with torch.inference_mode():
        before = model(pixel_values).numpy()
    calibration = Calibration("vector scaling", (0.5, 1.0, 2.0, 0.7), (0.1, -0.2, 0.0, 1.0), {})
    fold_calibration(model, calibration)
    with torch.inference_mode():
        after = model(pixel_values).numpy()
    assert after == pytest.approx(before * [0.5, 1.0, 2.0, 0.7] + [0.1, -0.2, 0.0, 1.0], abs=1e-5)
    assert calibration.apply(before) == pytest.approx(after, abs=1e-5)
    assert calibration.undo(after) == pytest.approx(before, abs=1e-5)


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.array([[1000.0, 0.0]])) == pytest.approx(np.array([[1.0, 0.0]]))


def test_threshold_is_worked_out_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.6, 0.4, 0.7, 0.3, 0.1])
    is_positive = np.array([True, True, True, True, False, False, False])
    # 3 of 4 positives are 75 %: the third highest positive is 0.6, the next score below is 0.4.
    assert choose_threshold(scores, is_positive, min_sensitivity=0.75) == pytest.approx(0.5)
    assert choose_threshold(scores, is_positive, min_sensitivity=0.76) == pytest.approx(0.35)
    assert choose_threshold(np.zeros(4), np.array([True, True, False, False]), min_sensitivity=0.5) > 0


@pytest.mark.parametrize("seed", range(5))
def test_operating_points_reach_the_target_sensitivity_and_not_one_image_more(seed: int) -> None:
    logits, labels = drawn(300, seed)
    probs = softmax(logits)
    points = {point.name: point for point in fit_operating_points(probs, labels, CODES)}
    assert list(points) == ["MEL@90", "MEL@95", "malignant@90", "malignant@95"]
    assert points["malignant@90"].codes == ("BCC", "MEL")
    for point in points.values():
        positive = np.isin(labels, [CODES.index(code) for code in point.codes])
        reached = point.reached(probs, CODES)
        caught = int((reached & positive).sum())
        assert caught == math.ceil(point.target_sensitivity * positive.sum() - 1e-9)
        assert point.sensitivity == pytest.approx(caught / positive.sum())
        assert point.specificity == pytest.approx((~reached & ~positive).sum() / (~positive).sum())
        assert checked(OperatingPoint, json.loads(json.dumps(plain(point))), "here") == point


def test_a_target_without_images_on_one_side_has_no_operating_point() -> None:
    logits, labels = drawn(100)
    probs = softmax(logits)
    without_melanoma = labels != CODES.index("MEL")
    names = [point.name for point in fit_operating_points(probs[without_melanoma], labels[without_melanoma], CODES)]
    assert names == ["malignant@90", "malignant@95"]
    assert fit_operating_points(probs[:, 2:], np.zeros(100, int), ("cat", "dog")) == []


@pytest.fixture
def _few_directions(monkeypatch) -> None:
    """For features of 30 dimensions."""
    monkeypatch.setattr(abstention, "MAX_DIRECTIONS", 16)


def familiar_and_strange(n: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Known features in a plane of 30 dimensions, and others far off it."""
    rng = np.random.default_rng(1)
    known = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 30)) + 0.1 * rng.normal(size=(n, 30))
    strange = known[:100] + 3 * rng.normal(size=(100, 30))
    weights = rng.normal(size=(30, 4))
    return known, strange, known @ weights, strange @ weights


@pytest.mark.usefixtures("_few_directions")
def test_photographs_of_another_processing_chain_are_refused_at_the_nominal_rate() -> None:
    """If the rule saw val images passed through such chains."""
    known, strange, logits, strange_logits = familiar_and_strange(1200)
    rng = np.random.default_rng(2)
    traces = rng.normal(size=(3, 30))  # of compression, say, off the plane of val
    chained = known + rng.normal(size=(len(known), 3)) @ traces
    one, other = np.arange(1200) < 600, np.arange(1200) >= 600
    on_val = AbstentionRule.fit(logits[one], known[one], np.flatnonzero(one), false_alarm_rate=0.1)
    rule = AbstentionRule.fit(
        np.concatenate([logits[one]] * 2),
        np.concatenate([known[one], chained[one]]),
        np.concatenate([np.flatnonzero(one)] * 2),
        false_alarm_rate=0.1,
    )
    assert on_val.abstains(logits[other], chained[other]).mean() > 0.5
    assert rule.abstains(logits[other], chained[other]).mean() <= 0.15
    assert rule.abstains(strange_logits, strange).mean() > 0.9


@pytest.mark.usefixtures("_few_directions")
def test_abstention_keeps_its_false_alarm_rate_and_sees_what_is_off_the_plane() -> None:
    known, strange, logits, strange_logits = familiar_and_strange()
    rule = AbstentionRule.fit(logits[:300], known[:300], np.arange(300), false_alarm_rate=0.1)
    assert rule.abstains(logits[300:], known[300:]).mean() == pytest.approx(0.1, abs=0.05)
    assert rule.abstains(strange_logits, strange).mean() > 0.9


@pytest.mark.usefixtures("_few_directions")
def test_abstention_score_agrees_with_the_paper_s_formula() -> None:
    known, strange, logits, strange_logits = familiar_and_strange()
    rule = AbstentionRule.fit(logits, known, np.arange(len(known)))
    length = np.linalg.norm(known, axis=1).mean()
    inside, outside = (
        np.hstack([features / np.linalg.norm(features, axis=1, keepdims=True), features / length])
        for features in (known, strange)
    )
    centre = inside.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((inside - centre).T, bias=True))
    null_space = vectors[:, np.argsort(values)[: 60 - 16]]
    alpha = 4 * logits.max(axis=1).mean() / np.linalg.norm((inside - centre) @ null_space, axis=1).mean()
    expected = alpha * np.linalg.norm((outside - centre) @ null_space, axis=1) - logsumexp(strange_logits, axis=1)
    assert rule.score(strange_logits, strange) == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("_few_directions")
def test_images_with_weak_and_with_strong_features_do_not_pass() -> None:
    """Weak features are near the centre unless they are scaled to length 1, and strong ones stand out only unscaled."""
    known, strange, logits, strange_logits = familiar_and_strange()
    rule = AbstentionRule.fit(logits, known + 3, np.arange(len(known)))
    assert rule.abstains(strange_logits, 0.01 * (strange + 3)).mean() > 0.9
    assert rule.abstains(logits, 3 * (known + 3)).mean() > 0.9


def test_abstention_rule_survives_config_json_and_gives_a_reason_in_words() -> None:
    known, strange, logits, strange_logits = familiar_and_strange()
    rule = AbstentionRule.fit(logits, known, np.arange(len(known)))
    again = checked(AbstentionRule, json.loads(json.dumps(plain(rule))), "here")
    assert np.array_equal(again.score(strange_logits, strange), rule.score(strange_logits, strange))
    reasons = again.reasons(
        np.vstack([logits[:1] * 0 + logits.max(), strange_logits[:1]]), np.vstack([known.mean(0), strange[0]])
    )
    assert reasons[0] is None
    assert reasons[1] is not None
    assert (
        reasons[1]
        == "It differs too much from the training images: about 95 % of the validation images are closer to them."
    )


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_a_rule_of_few_images_can_be_saved_and_read(n: int) -> None:
    """The smallest val has one image of each diagnosis."""
    rng = np.random.default_rng(0)
    rule = AbstentionRule.fit(5 * rng.normal(size=(n, 2)), rng.normal(size=(n, 256)), np.arange(n))
    assert checked(AbstentionRule, plain(rule), "here").threshold == rule.threshold


def test_a_damaged_abstention_rule_is_refused() -> None:
    known, _, logits, _ = familiar_and_strange()
    values = plain(AbstentionRule.fit(logits, known, np.arange(len(known))))
    for broken in ("", "AAAA", "not base64!"):
        with pytest.raises(ModelFolderError, match="here: "):
            checked(AbstentionRule, {**values, "directions": broken}, "here: ")
