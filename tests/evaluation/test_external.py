"""modeling/evaluation/external.py: each number against an independent computation, the interval of a difference by simulation."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.linear_model import LogisticRegression

from modeling.calibration import OperatingPoint
from modeling.evaluation.bootstrap import bootstrap_lesions, estimate, estimate_rate
from modeling.evaluation.external import (
    accuracy_at_mix,
    calibration_in_the_large,
    compare_estimates,
    image_properties,
    jpeg_quality,
    logistic_slopes,
    needed_threshold,
)

CODES = ("BKL", "MEL", "NV")


def test_a_difference_has_the_interval_of_two_independent_bootstraps():
    rng = np.random.default_rng(0)
    hits = [rng.random(400) < rate for rate in (0.8, 0.7)]
    lesions = [np.repeat(np.arange(200), 2) + offset for offset in (0, 1000)]
    draws = [bootstrap_lesions(ids) for ids in lesions]
    inside, outside = (
        estimate_rate(hit, np.ones(400, bool), draw, reason="none") for hit, draw in zip(hits, draws, strict=True)
    )
    found = compare_estimates(inside, outside)
    # Independently: the difference of replicates that were drawn with different seeds.
    replicates = []
    for hit in hits:
        picked = rng.integers(0, 200, size=(4000, 200))
        replicates.append(hit.reshape(200, 2).mean(axis=1)[picked].mean(axis=1))
    low, high = np.percentile(replicates[1] - replicates[0], [2.5, 97.5])
    assert found["value"] == pytest.approx(hits[1].mean() - hits[0].mean())
    assert found["low"] == pytest.approx(low, abs=0.01)
    assert found["high"] == pytest.approx(high, abs=0.01)


@pytest.mark.slow
def test_the_interval_of_a_difference_covers_the_truth_95_times_in_100():
    rng, covered, n_trials = np.random.default_rng(1), 0, 400
    truth = 0.62 - 0.75
    for _ in range(n_trials):
        estimates = []
        for rate, n_lesions in ((0.75, 250), (0.62, 120)):
            # Photos of one lesion are alike: a lesion's own rate varies around the true one.
            own = rng.beta(6 * rate, 6 * (1 - rate), size=n_lesions)
            hits = rng.random((n_lesions, 3)) < own[:, None]
            draw = bootstrap_lesions(np.repeat(np.arange(n_lesions), 3), n_replicates=400)
            estimates.append(estimate_rate(hits.ravel(), np.ones(hits.size, bool), draw, reason="none"))
        difference = compare_estimates(*estimates)
        covered += difference["low"] <= truth <= difference["high"]
    assert 0.92 <= covered / n_trials <= 0.98


def test_a_difference_with_what_is_not_estimable_says_so():
    known = estimate(0.5, np.linspace(0.4, 0.6, 100), 10)
    missing = {"value": None, "low": None, "high": None, "reason": "no image"}
    assert compare_estimates(missing, known)["reason"] == "the internal value is not estimable"
    assert compare_estimates(known, {**known, "low": None, "high": None})["low"] is None


def test_slopes_agree_with_scikit_learn_and_weights_with_repeated_images():
    rng = np.random.default_rng(2)
    x = rng.normal(size=300)
    y = rng.random(300) < 1 / (1 + np.exp(-(0.3 + 0.7 * x)))
    weights = rng.integers(0, 4, size=(2, 300))
    slopes = logistic_slopes(x, y, np.vstack([np.ones(300), weights]))
    for row, slope in zip([np.ones(300, int), *weights], slopes, strict=True):
        repeated = np.repeat(np.arange(300), row)
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[repeated, None], y[repeated])
        assert slope == pytest.approx(model.coef_[0, 0], rel=1e-4)


def test_overconfident_probabilities_have_a_slope_below_one_and_calibrated_ones_about_one():
    rng = np.random.default_rng(3)
    probs = rng.dirichlet([1, 1, 1], size=3000)
    labels = np.array([rng.choice(3, p=row) for row in probs])
    bootstrap = bootstrap_lesions(np.arange(3000), n_replicates=200)
    calibrated = calibration_in_the_large(probs, labels, CODES, bootstrap)
    sharpened = probs**2 / (probs**2).sum(axis=1, keepdims=True)
    extreme = calibration_in_the_large(sharpened, labels, CODES, bootstrap)
    for code in CODES:
        assert calibrated[code]["slope"]["low"] < 1 < calibrated[code]["slope"]["high"]
        assert extreme[code]["slope"]["high"] < 0.75
        assert calibrated[code]["excess_probability"]["low"] < 0 < calibrated[code]["excess_probability"]["high"]
    shifted = np.column_stack([probs[:, 0] + 0.1, probs[:, 1] - 0.1, probs[:, 2]])
    moved = calibration_in_the_large(shifted.clip(0, 1), labels, CODES, bootstrap)
    assert moved["BKL"]["excess_probability"]["low"] > 0.05


def test_accuracy_at_another_mix_is_that_of_images_drawn_in_that_mix():
    labels = np.array([0] * 10 + [1] * 30 + [2] * 60)
    predicted = labels.copy()
    predicted[:5], predicted[10:20] = 2, 0  # recalls 0.5, 2/3, 1
    bootstrap = bootstrap_lesions(np.arange(100))
    found = accuracy_at_mix(predicted, labels, np.array([50, 25, 25]), bootstrap)
    assert found["value"] == pytest.approx(0.5 * 0.5 + 0.25 * 2 / 3 + 0.25)
    assert found["low"] < found["value"] < found["high"]
    assert accuracy_at_mix(predicted, labels, np.bincount(labels), bootstrap)["value"] == pytest.approx(
        (predicted == labels).mean()
    )
    assert (
        "no image here"
        in accuracy_at_mix(predicted[:40], labels[:40], np.array([1, 1, 1]), bootstrap_lesions(range(40)))["reason"]
    )


def test_the_threshold_that_would_be_needed_reaches_the_target_on_these_images():
    rng = np.random.default_rng(4)
    probs = rng.dirichlet([1, 1, 1], size=200)
    labels = rng.integers(0, 3, size=200)
    point = OperatingPoint("MEL@95", ("MEL",), 0.95, 0.5, 0.95, 0.5, 10, 10)
    threshold = needed_threshold(point, probs, labels, CODES)["threshold"]
    mel = probs[labels == 1, 1]
    assert (mel >= threshold).mean() >= 0.95
    assert ((mel >= threshold).sum() - 1) / len(mel) < 0.95  # one more melanoma missed would be too many
    assert needed_threshold(point, probs, np.zeros(200, int), CODES)["threshold"] is None


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [15, 30, 50, 75, 90, 97])
def test_jpeg_quality_is_read_from_the_file(quality):
    noise = Image.fromarray(np.random.default_rng(5).integers(0, 256, size=(64, 64, 3), dtype=np.uint8))
    assert jpeg_quality(jpeg(noise, quality)) == pytest.approx(quality, abs=2)
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    assert jpeg_quality(buffer.getvalue()) is None


def test_image_properties_tell_blurred_dark_and_small_images():
    noise = Image.fromarray(np.random.default_rng(6).integers(100, 256, size=(300, 400, 3), dtype=np.uint8))
    dark = Image.fromarray(np.asarray(noise.resize((200, 150))) // 4).filter(ImageFilter.GaussianBlur(3))
    clear, poor = (image_properties([jpeg(image, 80)] * 3, [image] * 3) for image in (noise, dark))
    assert clear["long_side_px"]["median"] == 400
    assert poor["long_side_px"]["median"] == 200
    assert poor["sharpness"]["median"] < clear["sharpness"]["median"] / 4
    assert poor["brightness"]["median"] == pytest.approx(clear["brightness"]["median"] / 4, rel=0.05)
    assert clear["jpeg_quality"]["median"] == pytest.approx(80, abs=2)
