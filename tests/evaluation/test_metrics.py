import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from modeling.calibration import log_softmax, softmax
from modeling.evaluation.bootstrap import ALL_AGREE, bootstrap_lesions
from modeling.evaluation.metrics import (
    LesionMetrics,
    _from_confusion,
    ece_with_range,
    equal_mass_bins,
    if_calibrated,
    replicated_confusion,
    score_balanced,
    score_calibration,
    score_operating_point,
    score_split,
)
from modeling.evaluation.split import Split
from modeling.operating_points import OperatingPoint

CODES = ("BCC", "BKL", "MEL", "NV")
POINT = OperatingPoint("MEL@90", ("MEL",), 0.9, 0.5, 0.9, 0.5, 1, 1)


def random_split(n: int = 400, seed: int = 0, mix: np.ndarray | None = None) -> Split:
    rng = np.random.default_rng(seed)
    lesions = rng.integers(0, n // 2, n)
    labels = lesions % 4
    logits = rng.normal(size=(n, 4)) * 1.5
    logits[np.arange(n), labels] += 1
    return Split(CODES, softmax(logits), labels, lesions, mix)


def certain_split(predicted: list[int], labels: list[int], codes: tuple[str, ...] = CODES) -> Split:
    """Return a split of one image a lesion, each predicted with certainty."""
    return Split(codes, np.eye(len(codes))[predicted], np.array(labels), np.arange(len(labels)))


def test_scores_agree_with_scikit_learn() -> None:
    split = random_split()
    got = score_split(split)
    labels, predicted = split.labels, split.predicted
    report = sklearn_metrics.classification_report(labels, predicted, target_names=CODES, output_dict=True)
    assert got["accuracy"]["value"] == pytest.approx(report["accuracy"])
    balanced = sklearn_metrics.balanced_accuracy_score(labels, predicted)
    assert got["balanced_accuracy"]["value"] == pytest.approx(balanced)
    assert got["macro_f1"]["value"] == pytest.approx(report["macro avg"]["f1-score"])
    for name, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
        for code in CODES:
            assert got["per_class"][code][name]["value"] == pytest.approx(report[code][theirs])
    auroc = sklearn_metrics.roc_auc_score(labels, split.probs, multi_class="ovr")
    assert got["macro_auroc"]["value"] == pytest.approx(auroc)
    assert got["confusion"] == sklearn_metrics.confusion_matrix(labels, predicted).tolist()
    for label, code in enumerate(CODES):
        scores = got["per_class"][code]
        specificity = sklearn_metrics.recall_score(labels != label, predicted != label)
        assert scores["specificity"]["value"] == pytest.approx(specificity)
        theirs = sklearn_metrics.roc_auc_score(labels == label, split.probs[:, label])
        assert scores["auroc"]["value"] == pytest.approx(theirs)


def test_scores_of_a_case_worked_by_hand() -> None:
    got = score_split(certain_split([0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 2, 2], ("A", "B", "C")))
    assert got["accuracy"]["value"] == pytest.approx(4 / 6)
    assert got["balanced_accuracy"]["value"] == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert got["per_class"]["A"]["precision"]["value"] == pytest.approx(2 / 3)
    assert got["per_class"]["A"]["specificity"]["value"] == pytest.approx(2 / 3)
    assert got["per_class"]["B"]["f1"]["value"] == pytest.approx(2 / 3)


def test_accuracy_is_at_the_mix_and_recall_at_equal_priors() -> None:
    """At equal priors the first image is B; where A is nine times as frequent, Bayes' rule makes it A."""
    probs = np.array([[0.4, 0.6], [0.8, 0.2], [0.01, 0.99]])
    split = Split(("A", "B"), probs, np.array([0, 0, 1]), np.arange(3), np.array([0.9, 0.1]))
    assert split.probs_at_mix[0] == pytest.approx(np.array([0.36, 0.06]) / 0.42)
    got = score_split(split)
    assert got["per_class"]["A"]["recall"]["value"] == pytest.approx(1 / 2)
    assert got["balanced_accuracy"]["value"] == pytest.approx(3 / 4)
    assert got["accuracy_at_equal_priors"]["value"] == pytest.approx(2 / 3)
    assert got["accuracy"]["value"] == 1


def test_evaluate_metric_gives_the_same_in_batches_as_at_once() -> None:
    split = random_split(37)
    metric = LesionMetrics(keep_in_memory=True)
    for start in range(0, 37, 8):
        metric.add_batch(predictions=split.probs[start : start + 8], references=split.labels[start : start + 8])
    got, expected = metric.compute(), score_split(split)
    for name in ("balanced_accuracy", "accuracy", "macro_f1"):
        assert got[name] == pytest.approx(expected[name]["value"])


def test_a_missing_diagnosis_is_not_estimable_and_averages_are_over_the_others() -> None:
    whole = random_split()
    split = whole.subset(whole.labels != CODES.index("MEL"))
    scores = score_split(split)
    assert scores["diagnoses"] == ["BCC", "BKL", "NV"]
    present = [0, 1, 3]
    recall = sklearn_metrics.recall_score(split.labels, split.predicted, labels=present, average="macro")
    assert scores["balanced_accuracy"]["value"] == pytest.approx(recall)
    f1 = sklearn_metrics.f1_score(split.labels, split.predicted, labels=present, average="macro")
    assert scores["macro_f1"]["value"] == pytest.approx(f1)
    aurocs = [sklearn_metrics.roc_auc_score(split.labels == label, split.probs[:, label]) for label in present]
    assert scores["macro_auroc"]["value"] == pytest.approx(np.mean(aurocs))
    for name in ("recall", "f1", "auroc"):
        assert scores["per_class"]["MEL"][name]["value"] is None
        assert scores["per_class"]["MEL"][name]["reason"] == "no image of MEL in this split"
    assert scores["per_class"]["MEL"]["specificity"]["value"] is not None
    never = score_split(certain_split([0] * len(split), split.labels.tolist()))
    assert never["per_class"]["NV"]["precision"]["reason"] == "no image was predicted NV"


def test_a_split_of_one_diagnosis_has_no_averages() -> None:
    scores = score_split(certain_split([3, 3, 0], [3, 3, 3]))
    for name in ("balanced_accuracy", "macro_f1", "macro_auroc"):
        assert scores[name] == {"value": None, "low": None, "high": None, "reason": "all images show NV"}
    assert scores["accuracy"]["value"] == pytest.approx(2 / 3)
    assert scores["per_class"]["NV"]["auroc"]["reason"] == "every image shows NV"


def test_each_replicate_s_scores_agree_with_scikit_learn_on_repeated_images() -> None:
    split = random_split(120)
    replicates = _from_confusion(replicated_confusion(split.predicted, split), split.present)
    for index, draws in enumerate(split.bootstrap.draws[:6]):
        images = np.repeat(np.arange(120), draws[split.bootstrap.lesion_index].astype(int))
        labels, predicted = split.labels[images], split.predicted[images]
        balanced = sklearn_metrics.balanced_accuracy_score(labels, predicted)
        assert replicates["balanced_accuracy"][index] == pytest.approx(balanced)
        f1 = sklearn_metrics.f1_score(labels, predicted, average="macro")
        assert replicates["macro_f1"][index] == pytest.approx(f1)


def test_every_number_has_an_interval_around_it() -> None:
    scores = score_split(random_split())
    numbers = [value for value in scores.values() if isinstance(value, dict) and "value" in value]
    assert len(numbers) == 5
    for code in CODES:
        numbers += [value for value in scores["per_class"][code].values() if isinstance(value, dict)]
    for number in numbers:
        assert number["low"] < number["value"] < number["high"]


def test_a_perfect_score_on_few_lesions_claims_no_certainty() -> None:
    labels = np.random.default_rng(0).choice(4, 61, p=[0.1, 0.2, 0.3, 0.4]).tolist()
    scores = score_split(certain_split(labels, labels))
    assert scores["accuracy"]["low"] == pytest.approx(0.025 ** (1 / 61))
    for name in ("balanced_accuracy", "macro_f1"):
        assert scores[name] == {"value": 1, "low": None, "high": None, "reason": ALL_AGREE}


def test_order_of_images_does_not_change_the_numbers() -> None:
    split = random_split()
    first, second = score_split(split), score_split(split.subset(np.random.default_rng(1).permutation(400)))
    assert first["balanced_accuracy"] == pytest.approx(second["balanced_accuracy"])
    assert first["per_class"]["MEL"]["auroc"] == pytest.approx(second["per_class"]["MEL"]["auroc"])


def test_lesion_scores_average_the_probabilities_of_its_photos() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    lesions = Split(("A", "B"), probs, np.array([0, 1, 0]), np.array(["x", "y", "x"])).by_lesion()
    assert lesions.lesion_ids.tolist() == ["x", "y"]
    assert lesions.labels.tolist() == [0, 1]
    assert lesions.probs == pytest.approx(np.array([[0.65, 0.35], [0.2, 0.8]]))


def test_a_near_duplicate_group_with_two_labels_has_a_row_for_each() -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8]])
    lesions = Split(("A", "B"), probs, np.array([0, 1]), np.array(["x", "x"])).by_lesion()
    assert (lesions.labels.tolist(), lesions.lesion_ids.tolist()) == ([0, 1], ["x", "x"])
    assert lesions.probs == pytest.approx(probs)


def test_calibration_scores_agree_with_scikit_learn() -> None:
    split = random_split(600)
    got, probs, labels = score_calibration(split.probs, split), split.probs, split.labels
    assert got["nll"]["value"] == pytest.approx(sklearn_metrics.log_loss(labels, probs))
    brier = sum(sklearn_metrics.brier_score_loss(labels == label, probs[:, label]) for label in range(4))
    assert got["brier"]["value"] == pytest.approx(brier)
    correct, confidence = calibration_curve(
        probs.argmax(axis=1) == labels, probs.max(axis=1), n_bins=15, strategy="quantile"
    )
    # 600 images are 15 bins of 40, so that every bin weighs the same.
    assert got["ece"]["value"] == pytest.approx(np.abs(correct - confidence).mean(), abs=1e-9)


def test_simulated_events_follow_the_probabilities_and_the_lesions() -> None:
    confidence = np.random.default_rng(0).uniform(size=60)
    confidence[1] = confidence[0]
    occurs = if_calibrated(confidence, bootstrap_lesions(np.repeat(np.arange(30), 2), n_replicates=4000))
    assert occurs.mean(axis=0) == pytest.approx(confidence, abs=0.04)
    assert np.array_equal(occurs[:, 0], occurs[:, 1])  # photos of one lesion with the same probability
    assert not np.array_equal(occurs[:, 0], occurs[:, 2])


def test_the_range_beside_an_ece_is_that_of_the_scikit_learn_errors_of_simulated_labels() -> None:
    split, rng = random_split(600), np.random.default_rng(5)
    split = Split(CODES, split.probs, split.labels, np.arange(600))
    got, given = score_calibration(split.probs, split)["ece"], split.probs.max(axis=1)
    errors = []
    for _ in range(600):
        correct, confidence = calibration_curve(rng.random(600) < given, given, n_bins=15, strategy="quantile")
        errors.append(np.abs(correct - confidence).mean())
    assert got["if_calibrated"]["low"] == pytest.approx(np.percentile(errors, 2.5), abs=0.003)
    assert got["if_calibrated"]["high"] == pytest.approx(np.percentile(errors, 97.5), abs=0.004)


def test_ece_of_a_case_worked_by_hand() -> None:
    confidence = np.repeat([0.6, 0.9], 20)
    correct = np.concatenate([np.arange(20) < 10, np.arange(20) < 19])
    got = ece_with_range(confidence, correct, bootstrap_lesions(np.arange(40)))
    assert got["value"] == pytest.approx((abs(0.6 - 0.5) + abs(0.9 - 0.95)) / 2)


def test_equal_confidences_share_a_bin() -> None:
    confidence = np.concatenate([np.full(50, 1.0), np.linspace(0.3, 0.9, 50)])
    bins = equal_mass_bins(confidence)
    assert len(set(bins[:50])) == 1
    assert set(np.unique(bins)) == set(range(bins.max() + 1))


def melanoma_split(melanoma: list[float], labels: list[int]) -> Split:
    probs = np.zeros((len(labels), 4))
    probs[:, 2], probs[:, 3] = melanoma, 1 - np.array(melanoma)
    ids = [f"image_{number}" for number in range(len(labels))]
    return Split(CODES, probs, np.array(labels), np.arange(len(labels)), table=pd.DataFrame({"image_id": ids}))


def test_operating_point_scores_are_worked_out_by_hand() -> None:
    split = melanoma_split([0.9, 0.8, 0.7, 0.2, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1], [2, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    got = score_operating_point(POINT, split)
    assert got["sensitivity"]["value"] == pytest.approx(3 / 4)
    assert got["specificity"]["value"] == pytest.approx(5 / 6)
    assert got["missed"] == ["image_3"]
    ppv = 0.75 * 0.02 / (0.75 * 0.02 + (1 / 6) * 0.98)
    npv = (5 / 6) * 0.98 / ((5 / 6) * 0.98 + 0.25 * 0.02)
    assert (got["prevalence"], got["ppv"]["value"], got["npv"]["value"]) == pytest.approx((0.02, ppv, npv))


def test_a_perfect_score_has_no_certain_predictive_value() -> None:
    got = score_operating_point(POINT, melanoma_split([1.0] * 10 + [0.0] * 10, [2] * 10 + [3] * 10))
    assert got["ppv"] == {"value": 1, "low": None, "high": None, "reason": ALL_AGREE}


def test_operating_point_without_positives_is_not_estimable() -> None:
    got = score_operating_point(POINT, melanoma_split([0.25] * 4, [3] * 4))
    assert got["sensitivity"]["value"] is None
    assert "MEL" in got["sensitivity"]["reason"]
    assert got["ppv"]["value"] is None


def test_balanced_accuracy_of_a_group_is_over_the_diagnoses_that_occur() -> None:
    split = certain_split([0, 0, 1, 3], [0, 1, 1, 1])
    assert score_balanced(split.predicted, split)["value"] == pytest.approx((1 + 1 / 3) / 2)
    gain = score_balanced(split.labels, split, minus=split.predicted)
    assert gain["value"] == pytest.approx(1 - (1 + 1 / 3) / 2)
    number = score_balanced(split.predicted[1:], split.subset(np.array([1, 2, 3])))
    assert (number["value"], number["reason"]) == (None, "all images show BKL")


def test_log_softmax_agrees_with_scipy() -> None:
    from scipy.special import log_softmax as reference

    logits = np.random.default_rng(0).normal(size=(50, 4))
    assert log_softmax(logits) == pytest.approx(reference(logits, axis=1))
