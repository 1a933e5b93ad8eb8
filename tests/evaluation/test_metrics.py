import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from modeling.calibration import log_softmax, softmax
from modeling.evaluation.bootstrap import ALL_AGREE, bootstrap_lesions
from modeling.evaluation.metrics import (
    HEADLINE,
    PER_CLASS,
    LesionMetrics,
    _balanced_accuracy,
    _from_confusion,
    by_lesion,
    calibrated_labels,
    equal_mass_bins,
    expected_calibration_error,
    no_image_of,
    point_metrics,
    replicated_confusion,
    risk_coverage,
    score_balanced,
    score_calibration,
    score_detection,
    score_operating_point,
    score_split,
)
from modeling.operating_points import OperatingPoint

CODES = ("BCC", "BKL", "MEL", "NV")


def drawn(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    lesions = rng.integers(0, n // 2, n)
    labels = lesions % 4
    logits = rng.normal(size=(n, 4)) * 1.5
    logits[np.arange(n), labels] += 1
    return logits, labels, lesions


def test_point_metrics_agree_with_scikit_learn() -> None:
    logits, labels, _ = drawn()
    probs = softmax(logits)
    predicted = probs.argmax(axis=1)
    got = point_metrics(probs, labels, CODES)
    report = sklearn_metrics.classification_report(labels, predicted, target_names=CODES, output_dict=True)
    assert got["accuracy"] == pytest.approx(report["accuracy"])
    assert got["balanced_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(labels, predicted))
    assert got["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    for name, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        assert got[f"weighted_{name}"] == pytest.approx(report["weighted avg"][theirs])
        for code in CODES:
            assert got[f"{code}/{name}"] == pytest.approx(report[code][theirs])
    assert got["macro_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(labels, probs, multi_class="ovr"))
    for index, code in enumerate(CODES):
        specificity = sklearn_metrics.recall_score(labels != index, predicted != index)
        assert got[f"{code}/specificity"] == pytest.approx(specificity)


def test_point_metrics_of_a_case_worked_by_hand() -> None:
    probs = np.eye(3)[[0, 0, 1, 1, 2, 0]]
    got = point_metrics(probs, np.array([0, 0, 0, 1, 2, 2]), ("A", "B", "C"))
    assert got["accuracy"] == pytest.approx(4 / 6)
    assert got["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert got["A/precision"] == pytest.approx(2 / 3)
    assert got["A/specificity"] == pytest.approx(2 / 3)
    assert got["B/f1"] == pytest.approx(2 / 3)


def test_evaluate_metric_gives_the_same_in_batches_as_at_once() -> None:
    logits, labels, _ = drawn(37)
    probs = softmax(logits)
    metric = LesionMetrics(CODES, keep_in_memory=True)
    for start in range(0, 37, 8):
        metric.add_batch(predictions=probs[start : start + 8], references=labels[start : start + 8])
    assert metric.compute() == point_metrics(probs, labels, CODES)


def test_a_diagnosis_that_is_missing_is_not_estimable_and_never_zero() -> None:
    logits, labels, lesions = drawn()
    keep = labels != CODES.index("MEL")
    probs = softmax(logits)[keep]
    got = point_metrics(probs, labels[keep], CODES)
    for name in ("balanced_accuracy", "macro_f1", "macro_auroc", "MEL/recall", "MEL/f1", "MEL/auroc"):
        assert got[name] is None, name
    scores = score_split(probs, labels[keep], CODES, bootstrap_lesions(lesions[keep]))
    assert scores["balanced_accuracy"] == {
        "value": None,
        "low": None,
        "high": None,
        "reason": "no image of MEL in this split",
    }
    assert scores["per_class"]["MEL"]["recall"]["value"] is None
    assert scores["accuracy"]["value"] is not None
    never_predicted = np.eye(4)[np.zeros(len(probs), int)]
    assert point_metrics(never_predicted, labels[keep], CODES)["NV/precision"] is None
    precision = score_split(never_predicted, labels[keep], CODES, bootstrap_lesions(lesions[keep]))["per_class"]["NV"][
        "precision"
    ]
    assert precision["reason"] == "no image was predicted NV"


def test_each_replicate_s_metrics_agree_with_scikit_learn_on_repeated_images() -> None:
    logits, labels, lesions = drawn(120)
    predicted = logits.argmax(axis=1)
    bootstrap = bootstrap_lesions(lesions, n_replicates=6)
    replicates = _from_confusion(replicated_confusion(predicted, labels, 4, bootstrap), CODES)
    _, balanced = _balanced_accuracy(predicted, labels, CODES, bootstrap)
    for index, draws in enumerate(bootstrap.draws):
        images = np.repeat(np.arange(120), draws[bootstrap.lesion_index].astype(int))
        expected = point_metrics(softmax(logits[images]), labels[images], CODES)
        for name in replicates:
            assert replicates[name][index] == pytest.approx(expected[name]), name
        assert balanced[index] == pytest.approx(expected["balanced_accuracy"])


def test_every_headline_and_per_class_number_has_an_interval_around_it() -> None:
    logits, labels, lesions = drawn()
    scores = score_split(softmax(logits), labels, CODES, bootstrap_lesions(lesions))
    numbers = [scores[name] for name in HEADLINE] + [
        scores["per_class"][code][name] for code in CODES for name in PER_CLASS
    ]
    for number in numbers:
        assert number["low"] < number["value"] < number["high"]
    assert np.array(scores["confusion"]).sum() == 400


def test_a_perfect_score_on_few_lesions_claims_no_certainty() -> None:
    """Weights such as 18/61 do not add up to 1 to the last digit, so that replicates of 1 differ by rounding."""
    labels = np.random.default_rng(0).choice(4, 61, p=[0.1, 0.2, 0.3, 0.4])
    scores = score_split(np.eye(4)[labels], labels, CODES, bootstrap_lesions(np.arange(61)))
    assert scores["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 61))
    assert scores["weighted_recall"] == scores["accuracy"]
    for name in ("weighted_precision", "weighted_f1"):
        assert scores[name] == {"value": 1, "low": None, "high": None, "reason": ALL_AGREE}


def test_order_of_images_does_not_change_the_numbers() -> None:
    logits, labels, lesions = drawn()
    order = np.random.default_rng(1).permutation(400)
    first = score_split(softmax(logits), labels, CODES, bootstrap_lesions(lesions))
    second = score_split(softmax(logits)[order], labels[order], CODES, bootstrap_lesions(lesions[order]))
    assert first["balanced_accuracy"] == pytest.approx(second["balanced_accuracy"])
    assert first["per_class"]["MEL"]["auroc"] == pytest.approx(second["per_class"]["MEL"]["auroc"])


def test_lesion_scores_average_the_probabilities_of_its_photos() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    lesion_probs, labels, ids = by_lesion(probs, np.array([0, 1, 0]), ["x", "y", "x"])
    assert ids.tolist() == ["x", "y"]
    assert labels.tolist() == [0, 1]
    assert lesion_probs == pytest.approx(np.array([[0.65, 0.35], [0.2, 0.8]]))


def test_a_near_duplicate_group_with_two_labels_counts_as_two_lesions() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8]])
    lesion_probs, labels, ids = by_lesion(probs, np.array([0, 1]), ["x", "x"])
    assert (labels.tolist(), ids.tolist()) == ([0, 1], ["x", "x"])
    assert lesion_probs == pytest.approx(probs)


def test_calibration_scores_agree_with_scikit_learn() -> None:
    logits, labels, lesions = drawn(600)
    got = score_calibration(logits, labels, CODES, bootstrap_lesions(lesions))
    probs = softmax(logits)
    assert got["nll"]["value"] == pytest.approx(sklearn_metrics.log_loss(labels, probs))
    brier = sum(sklearn_metrics.brier_score_loss(labels == index, probs[:, index]) for index in range(4))
    assert got["brier"]["value"] == pytest.approx(brier)
    correct, confidence = calibration_curve(
        probs.argmax(axis=1) == labels, probs.max(axis=1), n_bins=15, strategy="quantile"
    )
    # 600 images are 15 bins of 40, so that every bin weighs the same.
    assert got["ece"]["value"] == pytest.approx(np.abs(correct - confidence).mean(), abs=1e-9)
    correct, confidence = calibration_curve(labels == 2, probs[:, 2], n_bins=15, strategy="quantile")
    assert got["ece_per_class"]["MEL"]["value"] == pytest.approx(np.abs(correct - confidence).mean(), abs=1e-9)


def test_labels_of_a_calibrated_model_follow_its_probabilities_and_its_lesions() -> None:
    probs = softmax(drawn(60)[0])
    probs[1] = probs[0]
    labels = calibrated_labels(probs, bootstrap_lesions(np.repeat(np.arange(30), 2), n_replicates=4000))
    for index in range(4):
        assert (labels == index).mean(axis=0) == pytest.approx(probs[:, index], abs=0.04)
    assert np.array_equal(labels[:, 0], labels[:, 1])  # photos of one lesion with the same probabilities
    assert not np.array_equal(labels[:, 0], labels[:, 2])


def test_of_many_diagnoses_the_last_is_drawn_too_and_a_reason_names_only_the_first() -> None:
    probs = np.zeros((4, 200))
    probs[:, 190] = 1
    assert (calibrated_labels(probs, bootstrap_lesions(np.arange(4), n_replicates=3)) == 190).all()
    assert no_image_of(["A", "B"]) == "no image of A, B"
    assert no_image_of(list("ABCDEFGH")) == "no image of A, B, C, D, E and 3 more"


def test_the_band_beside_an_ece_is_that_of_the_scikit_learn_errors_of_drawn_labels() -> None:
    logits, labels, _ = drawn(600)
    probs, rng = softmax(logits), np.random.default_rng(5)
    got = score_calibration(logits, labels, CODES, bootstrap_lesions(np.arange(600)))["ece_per_class"]["MEL"]
    errors = []
    for _ in range(600):
        shown = rng.random(600) < probs[:, 2]
        correct, confidence = calibration_curve(shown, probs[:, 2], n_bins=15, strategy="quantile")
        errors.append(np.abs(correct - confidence).mean())
    assert got["if_calibrated"]["low"] == pytest.approx(np.percentile(errors, 2.5), abs=0.003)
    assert got["if_calibrated"]["high"] == pytest.approx(np.percentile(errors, 97.5), abs=0.004)


def test_ece_of_a_case_worked_by_hand() -> None:
    confidence = np.repeat([0.6, 0.9], 20)
    correct = np.concatenate([np.arange(20) < 10, np.arange(20) < 19])
    assert expected_calibration_error(confidence, correct) == pytest.approx((abs(0.6 - 0.5) + abs(0.9 - 0.95)) / 2)


def test_equal_confidences_share_a_bin() -> None:
    confidence = np.concatenate([np.full(50, 1.0), np.linspace(0.3, 0.9, 50)])
    bins = equal_mass_bins(confidence)
    assert len(set(bins[:50])) == 1
    assert set(np.unique(bins)) == set(range(bins.max() + 1))


def test_operating_point_scores_are_worked_out_by_hand() -> None:
    point = OperatingPoint("MEL@90", ("MEL",), 0.9, 0.5, 0.9, 0.5, 1, 1)
    melanoma = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1])
    probs = np.zeros((10, 4))
    probs[:, 2], probs[:, 3] = melanoma, 1 - melanoma
    labels = np.array([2, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    got = score_operating_point(point, probs, labels, CODES, bootstrap_lesions(np.arange(10)))
    assert got["sensitivity"]["value"] == pytest.approx(3 / 4)
    assert got["specificity"]["value"] == pytest.approx(5 / 6)
    here, assumed = got["at_prevalence"]
    assert (here["prevalence"], here["ppv"]["value"], here["npv"]["value"]) == pytest.approx((0.4, 3 / 4, 5 / 6))
    ppv = 0.75 * 0.02 / (0.75 * 0.02 + (1 / 6) * 0.98)
    npv = (5 / 6) * 0.98 / ((5 / 6) * 0.98 + 0.25 * 0.02)
    assert (assumed["ppv"]["value"], assumed["npv"]["value"]) == pytest.approx((ppv, npv))


def test_a_perfect_score_on_few_lesions_is_no_certain_predictive_value() -> None:
    point = OperatingPoint("MEL@90", ("MEL",), 0.9, 0.5, 0.9, 0.5, 1, 1)
    labels = np.array([2] * 10 + [3] * 10)
    got = score_operating_point(point, np.eye(4)[labels], labels, CODES, bootstrap_lesions(np.arange(20)))
    ppv, low = got["at_prevalence"][1]["ppv"], got["specificity"]["low"]
    assert ppv["value"] == 1
    sensitivity = got["sensitivity"]["low"]
    assert ppv["low"] == pytest.approx(sensitivity * 0.02 / (sensitivity * 0.02 + (1 - low) * 0.98))
    assert ppv["low"] < 0.1


def test_operating_point_without_positives_is_not_estimable() -> None:
    point = OperatingPoint("MEL@90", ("MEL",), 0.9, 0.5, 0.9, 0.5, 1, 1)
    got = score_operating_point(point, np.full((4, 4), 0.25), np.full(4, 3), CODES, bootstrap_lesions(np.arange(4)))
    assert got["sensitivity"]["value"] is None
    assert "MEL" in got["sensitivity"]["reason"]
    assert got["at_prevalence"][1]["ppv"]["value"] is None


def test_detection_scores_are_worked_out_by_hand() -> None:
    inside, outside = np.arange(100.0), np.array([98.5, 50.5, 200.0, 10.5])
    got = score_detection(inside, outside)
    assert got["auroc"] == pytest.approx((99 + 51 + 100 + 11) / 400)
    # 95 % of the inside images lie at or below 95; two of the four outside ones do as well.
    assert got["fpr_at_95_tpr"] == pytest.approx(2 / 4)


def test_risk_coverage_of_a_case_worked_by_hand() -> None:
    coverage, risk = risk_coverage(np.array([0.4, 0.1, 0.3, 0.2]), np.array([True, False, True, False]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx(np.array([0, 0, 1 / 3, 1 / 2]))


def test_balanced_accuracy_of_a_group_is_over_the_diagnoses_that_occur() -> None:
    predicted, labels = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 1])
    number = score_balanced(predicted, labels, CODES, bootstrap_lesions(np.arange(4)))
    assert number["value"] == pytest.approx((1 + 1 / 3) / 2)
    number = score_balanced(predicted[1:], labels[1:], CODES, bootstrap_lesions(np.arange(3)))
    assert (number["value"], number["reason"]) == (None, "all images show BKL")


def test_log_softmax_agrees_with_scipy() -> None:
    from scipy.special import log_softmax as reference

    logits, _, _ = drawn(50)
    assert log_softmax(logits) == pytest.approx(reference(logits, axis=1))
