import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold

from modeling.abstention import N_DIRECTIONS, AbstentionRule
from modeling.calibration import (
    CALIBRATIONS,
    Calibration,
    fit_calibration,
    fit_temperature,
    lesion_folds,
    log_softmax,
    softmax,
)
from modeling.network import build_model, fold_calibration
from modeling.operating_points import OperatingPoint, choose_threshold, fit_operating_points

CODES = ("BCC", "BKL", "MEL", "NV")


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are calibrated by construction: labels are drawn from their softmax."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)) * 2
    cumulative = softmax(logits).cumsum(axis=1)
    labels = (rng.random((n, 1)) > cumulative[:, :3]).sum(axis=1)
    return logits, labels


def test_the_fit_recovers_a_known_temperature() -> None:
    logits, labels = drawn(20_000)
    for temperature in (0.4, 1.0, 3.0):
        assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.05)


def test_no_other_temperature_is_better_on_val() -> None:
    logits, labels = drawn(3000)

    def nll(temperature: float) -> float:
        return float(-log_softmax(2.5 * logits / temperature)[np.arange(len(labels)), labels].mean())

    best = min(nll(temperature) for temperature in np.linspace(0.5, 10, 2000))
    assert nll(fit_temperature(2.5 * logits, labels)) < best + 1e-5


def test_the_calibration_of_the_lowest_cross_validated_loss_is_chosen() -> None:
    logits, labels = drawn(4000)
    lesions = np.arange(4000) // 2
    found = {
        "none": fit_calibration(logits, labels, lesions),
        "temperature scaling": fit_calibration(2.5 * logits, labels, lesions),
        # As of a loss with class weights: the logits of two diagnoses are too high.
        "vector scaling": fit_calibration(logits + np.array([1.5, 1.0, 0, 0]), labels, lesions),
    }
    assert {name: calibration.method for name, calibration in found.items()} == {name: name for name in found}
    for calibration in found.values():
        assert list(calibration.nll) == list(found)
        assert calibration.method == min(calibration.nll, key=lambda name, nll=calibration.nll: nll[name])
        assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
    assert np.array(found["temperature scaling"].scale) == pytest.approx(np.full(4, 1 / 2.5), rel=0.05)
    bias = np.array(found["vector scaling"].bias)
    assert bias - bias[3] == pytest.approx(np.array([-1.5, -1.0, 0, 0]), abs=0.3)


def test_cross_validated_likelihoods_agree_with_scikit_learn_s_group_folds() -> None:
    logits, labels = drawn(3000)
    lesions = np.arange(3000) // 3
    found = fit_calibration(3 * logits, labels, lesions).nll
    losses = []
    for seen, held_out in GroupKFold(5).split(logits, labels, lesions):
        temperature = minimize_scalar(
            lambda value, rows=seen: log_loss(labels[rows], softmax(3 * logits[rows] / value)), bounds=(0.1, 10)
        ).x
        losses.append(log_loss(labels[held_out], softmax(3 * logits[held_out] / temperature)))
    assert found["temperature scaling"] == pytest.approx(np.mean(losses), abs=2e-3)
    assert found["none"] == pytest.approx(log_loss(labels, softmax(3 * logits)), abs=1e-9)


def test_folds_keep_the_photos_of_a_lesion_together() -> None:
    lesions = np.repeat([f"L{number}" for number in range(40)], np.arange(40) % 4 + 1)
    fold = lesion_folds(lesions)
    assert all(len(set(fold[lesions == lesion])) == 1 for lesion in lesions)
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]
    assert lesion_folds(["a", "a", "b"]).max() == 1


@pytest.mark.parametrize("n", [5, 50])
def test_images_told_apart_without_a_mistake_are_not_answered_with_certainty(n: int) -> None:
    labels = np.arange(4 * n) % 4
    logits = np.eye(4)[labels] * 8
    expected = pytest.approx((n + 1) / (n + 2), abs=1e-3)  # Laplace's rule of succession
    assert softmax(logits / fit_temperature(logits, labels)).max() == expected
    # Whichever method is chosen, none of them answers with more.
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


def test_a_classifier_that_cannot_take_the_calibration_is_refused() -> None:
    class Headless(torch.nn.Module):
        def get_classifier(self) -> torch.nn.Module:
            return torch.nn.Identity()

    with pytest.raises(ValueError, match="linear layer"):
        fold_calibration(Headless(), Calibration("none", (1.0,), (0.0,), {}))


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.array([[1000.0, 0.0]])) == pytest.approx(np.array([[1.0, 0.0]]))


def test_threshold_is_worked_out_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.6, 0.4, 0.7, 0.3, 0.1])
    is_positive = np.array([True, True, True, True, False, False, False])
    # 3 of 4 positives are 75 %: the third highest positive is 0.6, the next score below is 0.4.
    assert choose_threshold(scores, is_positive, min_sensitivity=0.75) == pytest.approx(0.5)
    assert choose_threshold(scores, is_positive, min_sensitivity=0.76) == pytest.approx(0.35)


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
        assert OperatingPoint.from_dict(json.loads(json.dumps(point.to_dict()))) == point


def test_a_target_without_images_on_one_side_has_no_operating_point() -> None:
    logits, labels = drawn(100)
    probs = softmax(logits)
    without_melanoma = labels != CODES.index("MEL")
    names = [point.name for point in fit_operating_points(probs[without_melanoma], labels[without_melanoma], CODES)]
    assert names == ["malignant@90", "malignant@95"]
    assert fit_operating_points(probs[:, 2:], np.zeros(100, int), ("cat", "dog")) == []


def unlike(n: int = 900) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Known features in a plane of 30 dimensions, and others far off it."""
    rng = np.random.default_rng(1)
    known = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 30)) + 0.1 * rng.normal(size=(n, 30))
    strange = known[:100] + 3 * rng.normal(size=(100, 30))
    weights = rng.normal(size=(30, 4))
    return known, strange, known @ weights, strange @ weights


def test_abstention_keeps_its_false_alarm_rate_and_sees_what_is_off_the_plane() -> None:
    known, strange, logits, strange_logits = unlike()
    rule = AbstentionRule.fit(logits[:300], known[:300], np.arange(300), false_alarm_rate=0.1)
    assert rule.abstains(logits[300:], known[300:]).mean() == pytest.approx(0.1, abs=0.05)
    assert rule.abstains(strange_logits, strange).mean() > 0.9


def test_abstention_score_agrees_with_the_paper_s_formula() -> None:
    known, strange, logits, strange_logits = unlike()
    rule = AbstentionRule.fit(logits, known, np.arange(len(known)))
    length = np.linalg.norm(known, axis=1).mean()
    inside, outside = (
        np.hstack([features / np.linalg.norm(features, axis=1, keepdims=True), features / length])
        for features in (known, strange)
    )
    centre = inside.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((inside - centre).T, bias=True))
    null_space = vectors[:, np.argsort(values)[: 60 - N_DIRECTIONS]]
    alpha = 2 * logits.max(axis=1).mean() / np.linalg.norm((inside - centre) @ null_space, axis=1).mean()
    expected = alpha * np.linalg.norm((outside - centre) @ null_space, axis=1) - logsumexp(strange_logits, axis=1)
    assert rule.score(strange_logits, strange) == pytest.approx(expected, rel=1e-4)


def test_images_with_weak_and_with_strong_features_do_not_pass() -> None:
    """Weak features lie near the centre unless they are scaled to length 1, and strong ones stand out only as they are."""
    known, strange, logits, strange_logits = unlike()
    rule = AbstentionRule.fit(logits, known + 3, np.arange(len(known)))
    assert rule.abstains(strange_logits, 0.01 * (strange + 3)).mean() > 0.9
    assert rule.abstains(logits, 3 * (known + 3)).mean() > 0.9


def test_abstention_rule_survives_config_json_and_gives_a_reason_in_words() -> None:
    known, strange, logits, strange_logits = unlike()
    rule = AbstentionRule.fit(logits, known, np.arange(len(known)))
    again = AbstentionRule.from_dict(json.loads(json.dumps(rule.to_dict())))
    assert np.array_equal(again.score(strange_logits, strange), rule.score(strange_logits, strange))
    reasons = again.reasons(
        np.vstack([logits[:1] * 0 + logits.max(), strange_logits[:1]]), np.vstack([known.mean(0), strange[0]])
    )
    assert reasons[0] is None
    assert reasons[1] is not None
    assert "unlike those that this model was trained on" in reasons[1]
    assert "95 % of ordinary images" in reasons[1]


def test_a_damaged_abstention_rule_is_refused() -> None:
    known, _, logits, _ = unlike()
    values = AbstentionRule.fit(logits, known, np.arange(len(known))).to_dict()
    for broken in ("", "AAAA", "not base64!"):
        with pytest.raises(ValueError):  # noqa: PT011 (three different messages)
            AbstentionRule.from_dict({**values, "directions": broken})
