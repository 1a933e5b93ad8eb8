"""modeling/evaluation/external.py: each number against an independent computation, the interval of a difference by simulation."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from modeling.classifier import LesionClassifier
from modeling.data.duplicates import HASHES_NAME, hash_images, write_hashes
from modeling.data.isic2019 import FEATURES
from modeling.data.splits import write_splits
from modeling.evaluation import __main__ as command
from modeling.evaluation.__main__ import main
from modeling.evaluation.bootstrap import bootstrap_lesions, estimate, estimate_rate
from modeling.evaluation.external import (
    _challenge_answers,
    accuracy_at_mix,
    calibration_in_the_large,
    challenge_score,
    compare_estimates,
    image_properties,
    jpeg_quality,
    logistic_slopes,
    needed_threshold,
)
from modeling.labels import CODES as CODES_8
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import SPLITS_NAME
from modeling.operating_points import OperatingPoint
from support.scored import make_scored_folder

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


@pytest.mark.parametrize(("spread", "slope"), [(1, 0.7), (4, 0.1), (8, 0.3)])  # probabilities may be much too extreme
def test_slopes_agree_with_scikit_learn_and_weights_with_repeated_images(spread, slope):
    rng = np.random.default_rng(2)
    x = spread * rng.normal(size=300)
    y = rng.random(300) < 1 / (1 + np.exp(-(0.3 + slope * x)))
    weights = rng.integers(0, 4, size=(2, 300))
    slopes = logistic_slopes(x, y, np.vstack([np.ones(300), weights]))
    for row, found in zip([np.ones(300, int), *weights], slopes, strict=True):
        repeated = np.repeat(np.arange(300), row)
        model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x[repeated, None], y[repeated])
        assert found == pytest.approx(model.coef_[0, 0], rel=1e-4, abs=1e-5)


def test_what_is_told_apart_without_fault_has_no_slope():
    x = np.concatenate([np.linspace(-9, -6, 50), np.linspace(6, 9, 50)])
    assert np.isnan(logistic_slopes(x, x > 0, np.ones((1, 100)))).all()


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
    assert jpeg_quality(b"\0\0\0\x18ftypheic") is None  # Pillow alone cannot open it
    grey = io.BytesIO()
    noise.convert("L").save(grey, "JPEG")
    other_table = grey.getvalue().replace(b"\xff\xdb\0C\0", b"\xff\xdb\0C\1").replace(b"\1\x11\0\xff", b"\1\x11\1\xff")
    assert jpeg_quality(other_table) is None  # its only table is not the first


def test_image_properties_tell_blurred_dark_and_small_images():
    noise = Image.fromarray(np.random.default_rng(6).integers(100, 256, size=(300, 400, 3), dtype=np.uint8))
    dark = Image.fromarray(np.asarray(noise.resize((200, 150))) // 4).filter(ImageFilter.GaussianBlur(3))
    clear, poor = (image_properties([jpeg(image, 80)] * 3, [image] * 3) for image in (noise, dark))
    assert clear["long_side_px"]["median"] == 400
    assert poor["long_side_px"]["median"] == 200
    assert poor["sharpness"]["median"] < clear["sharpness"]["median"] / 4
    assert poor["brightness"]["median"] == pytest.approx(clear["brightness"]["median"] / 4, rel=0.05)
    assert clear["jpeg_quality"]["median"] == pytest.approx(80, abs=2)


# ---- the command -----------------------------------------------------------------------------------------------------

N_EXTERNAL, N_PLANTED = 160, 10


def cloudy(rng: np.random.Generator) -> Image.Image:
    """Coloured clouds, no two alike by their perceptual hash, which sees 16 frequencies each way."""
    grain = rng.integers(0, 256, size=(20, 20, 3), dtype=np.uint8)
    return Image.fromarray(grain).resize((96, 80), Image.Resampling.BICUBIC)


def seen_images() -> list[Image.Image]:
    """Photographs that the model was trained on."""
    rng = np.random.default_rng(8)
    return [cloudy(rng) for _ in range(N_PLANTED)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A scored model folder that says which images it has seen."""
    folder = make_scored_folder(tmp_path_factory.mktemp("scored"))
    rows = [
        {"image": image, "image_id": f"seen_{number}", "lesion_id": f"{number}"}
        for number, image in enumerate(seen_images())
    ]
    features = datasets.Features({name: FEATURES[name] for name in ("image", "image_id", "lesion_id")})
    write_hashes(hash_images(datasets.Dataset.from_list(rows, features=features)), folder / HASHES_NAME)
    splits = [{**row, "label": "NV", "source": "HAM", "split": "train"} for row in rows]
    write_splits(pd.DataFrame(splits), folder / SPLITS_NAME)
    return folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A folder of labelled photographs, two a lesion, some copied from the model's training data and some saved again."""
    folder, rng = tmp_path_factory.mktemp("elsewhere"), np.random.default_rng(7)
    rows = []
    for number in range(N_EXTERNAL):
        cloudy(rng).save(folder / f"photo_{number:03d}.jpg", quality=90)
        label = (*REFERENCE_CODES, "DF")[number // 2 % 5]
        rows.append((f"photo_{number:03d}.jpg", label, f"photo_{number:03d}", f"lesion_{number // 2}"))
    for number, image in enumerate(seen_images()):
        name = f"planted_{number:03d}"
        image.resize((48, 40) if number % 2 else image.size).save(
            folder / f"{name}.jpg", quality=98 if number % 2 else 40
        )
        rows.append((f"{name}.jpg", "NV", name, ""))
    lines = ["file_name,label,image_id,lesion_id", *(",".join(row) for row in rows)]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def external_metrics(scored, elsewhere, tmp_path_factory) -> tuple[dict, pd.DataFrame, str]:
    """Content of metrics.json, predictions.csv and what the command printed."""
    output = tmp_path_factory.mktemp("output")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([str(scored), "--dataset", str(elsewhere), "--external", "--output", str(output)]) == 0
    metrics = json.loads((output / "metrics.json").read_text())
    return metrics, pd.read_csv(output / "predictions.csv"), printed.getvalue()


def test_planted_images_are_left_out_and_all_others_are_test(external_metrics):
    metrics, predictions, printed = external_metrics
    assert sum(metrics["external"]["left_out"].values()) == N_PLANTED
    assert f"{N_PLANTED} left out" in printed
    assert set(predictions["split"]) == {"test"}
    assert not predictions["image_id"].str.startswith("planted").any()
    assert len(predictions) == sum(number // 2 % 5 < 4 for number in range(N_EXTERNAL))
    assert metrics["abstention"]["near"]["DF"]["n_images"] == sum(number // 2 % 5 == 4 for number in range(N_EXTERNAL))
    assert metrics["data"]["protocol"] == "external"
    assert "reason" in metrics["val"]


def test_external_answers_are_those_of_the_predictor(external_metrics, scored, elsewhere):
    _, predictions, _ = external_metrics
    classifier = LesionClassifier.from_pretrained(scored)
    answers = classifier.predict([elsewhere / f"{image_id}.jpg" for image_id in predictions["image_id"]])
    for answer, (_, row) in zip(answers, predictions.iterrows(), strict=True):
        for code in REFERENCE_CODES:
            assert answer.probabilities[code] == pytest.approx(row[code], abs=2e-5)


def test_internal_stands_beside_external_with_the_difference(external_metrics, scored):
    metrics, predictions, printed = external_metrics
    own = json.loads((scored / "metrics.json").read_text())
    rows = metrics["external"]["headline"]
    for name in ("balanced_accuracy", "accuracy", "macro_auroc"):
        assert rows[name]["internal"] == own["test"][name]
        assert rows[name]["external"] == metrics["test"][name]
        difference = rows[name]["difference"]
        assert difference["value"] == pytest.approx(
            metrics["test"][name]["value"] - own["test"][name]["value"], abs=2e-6
        )
        if name == "accuracy" or "reason" not in difference:
            assert difference["low"] < difference["value"] < difference["high"]
    assert f"balanced_accuracy: {own['test']['balanced_accuracy']['value']:.3f}" in printed
    # Independently, from predictions.csv.
    probs = predictions[list(REFERENCE_CODES)].to_numpy()
    auroc = roc_auc_score(predictions["label"], probs, multi_class="ovr", labels=list(REFERENCE_CODES))
    assert rows["macro_auroc"]["external"]["value"] == pytest.approx(auroc, abs=1e-3)  # six digits make ties
    mel = predictions["label"] == "MEL"
    excess = metrics["external"]["calibration"]["MEL"]["excess_probability"]["value"]
    assert excess == pytest.approx((predictions["MEL"] - mel).mean(), abs=1e-5)
    mix = metrics["external"]["mix"]["diagnosis"]
    assert mix["MEL"]["external"] == pytest.approx(mel.mean(), abs=1e-6)
    assert sum(row["internal"] for row in mix.values()) == pytest.approx(1, abs=1e-5)
    assert metrics["external"]["image_properties"]["long_side_px"]["external"]["median"] == 96
    assert "external.png" in metrics["figures"]


def test_data_that_are_not_the_models_own_need_the_option(scored, elsewhere, tmp_path, capsys):
    assert main([str(scored), "--dataset", str(elsewhere), "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "is not what the model was trained on" in error
    assert "--external" in error


def test_data_without_any_diagnosis_of_the_model_are_refused_with_what_they_have(scored, elsewhere, tmp_path, capsys):
    folder = tmp_path / "others"
    shutil.copytree(elsewhere, folder)
    table = pd.read_csv(folder / "metadata.csv").assign(label=["wart", "mole"] * ((N_EXTERNAL + N_PLANTED) // 2))
    table.to_csv(folder / "metadata.csv", index=False)
    assert main([str(scored), "--dataset", str(folder), "--external", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "has none of these, but mole, wart" in error


def test_data_that_the_model_has_seen_are_not_external(scored, elsewhere, tmp_path, capsys):
    folder = tmp_path / "seen"
    shutil.copytree(elsewhere, folder)
    for file in folder.glob("photo_*.jpg"):
        file.unlink()
    table = pd.read_csv(folder / "metadata.csv")
    table[table["image_id"].str.startswith("planted")].to_csv(folder / "metadata.csv", index=False)
    assert main([str(scored), "--dataset", str(folder), "--external", "--output", str(tmp_path / "out")]) == 1
    assert f"all {N_PLANTED} images of seen are among those" in capsys.readouterr().err


def test_unusable_images_stop_the_evaluation_or_are_left_out_and_listed(
    scored, elsewhere, tmp_path, monkeypatch, capsys
):
    folder, output = tmp_path / "broken", tmp_path / "out"
    shutil.copytree(elsewhere, folder)
    (folder / "photo_000.jpg").write_bytes((folder / "photo_000.jpg").read_bytes()[:500])
    arguments = [str(scored), "--dataset", str(folder), "--external", "--output", str(output)]
    assert main(arguments) == 1
    assert "pass --skip_bad_images to leave these out" in capsys.readouterr().err
    monkeypatch.setattr(command, "evaluate_model", lambda context, **_: context)
    monkeypatch.setattr(command, "summary", lambda context: f"{context.n_skipped} skipped")
    assert main([*arguments, "--skip_bad_images"]) == 0
    assert "1 skipped" in capsys.readouterr().out
    assert "photo_000" in (output / "skipped.csv").read_text()


def test_scores_on_other_data_do_not_replace_the_models_own(scored, elsewhere, capsys):
    assert main([str(scored), "--dataset", str(elsewhere), "--external", "--output", str(scored)]) == 1
    assert "would be replaced; name another folder" in capsys.readouterr().err


def test_a_missing_diagnosis_is_not_estimable_and_nothing_is_dropped(scored, elsewhere, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(elsewhere, folder)
    table = pd.read_csv(folder / "metadata.csv")
    table["label"] = table["label"].replace({"BCC": "NV"})
    table.to_csv(folder / "metadata.csv", index=False)
    assert main([str(scored), "--dataset", str(folder), "--external", "--output", str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["test"]["per_class"]["BCC"]["recall"]["value"] is None
    assert "not estimable" in metrics["external"]["headline"]["BCC/recall"]["difference"]["reason"]
    assert "no image here" in metrics["external"]["accuracy_at_internal_mix"]["reason"]
    assert metrics["test"]["n_images"] == sum(number // 2 % 5 < 4 for number in range(N_EXTERNAL))


# ---- the challenge ---------------------------------------------------------------------------------------------------


def test_the_challenge_is_the_mean_recall_of_nine_classes_by_hand():
    truths = np.array([*CODES_8, "UNK"] * 4)
    answers = truths.copy()
    answers[:9] = "NV"  # of each class one of four is answered NV: recall 3/4 but for NV, 1
    answers[9 + 8] = "MEL"  # and one more of UNK: 2/4
    found = challenge_score(answers, truths, np.arange(36), CODES_8)
    assert found["mean_recall"]["value"] == pytest.approx((7 * 0.75 + 1 + 0.5) / 9)
    assert found["recall"]["UNK"]["value"] == pytest.approx(0.5)
    assert "at most" not in found["note"]
    four = challenge_score(answers, truths, np.arange(36), REFERENCE_CODES)
    assert "4 of the 8 diagnoses apart, so it can reach 0.556 at most" in four["note"]
    mole = SimpleNamespace(
        codes=("NV", "mole"), decide=lambda probs: probs.argmax(axis=1), classifier=SimpleNamespace(abstention=None)
    )
    assert _challenge_answers(mole, np.eye(2), np.eye(2)).tolist() == ["NV", "UNK"]
    absent = challenge_score(answers[truths != "DF"], truths[truths != "DF"], np.arange(32), CODES_8)
    assert absent["mean_recall"]["reason"] == "no image of DF"
