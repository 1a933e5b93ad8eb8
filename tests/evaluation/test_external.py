"""modeling/evaluation/external.py: each number against an independent computation, the interval of a difference by simulation."""

import contextlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

from modeling.classifier import LesionClassifier
from modeling.data.columns import FEATURES
from modeling.data.duplicates import write_hashes
from modeling.data.splits_file import splits_hash, write_splits
from modeling.evaluation import __main__ as command
from modeling.evaluation import external
from modeling.evaluation.__main__ import main
from modeling.evaluation.bootstrap import estimate
from modeling.evaluation.external import (
    _challenge_answers,
    calibration_in_the_large,
    calibration_slope,
    challenge_score,
    compare_estimates,
)
from modeling.evaluation.split import Split, estimate_rate
from modeling.inference import Outputs
from modeling.labels import CODES as CODES_8
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import HASHES_NAME, SPLITS_NAME, config_sha256
from support.hashes import hash_images
from support.scored import make_scored_folder

pytestmark = pytest.mark.slow
CODES = ("BKL", "MEL", "NV")


def split_of(lesions: np.ndarray) -> Split:
    """Return a split of these lesions; nothing else of it matters here."""
    return Split(CODES, np.eye(3)[np.zeros(len(lesions), int)], np.zeros(len(lesions), int), lesions)


def test_a_difference_has_the_interval_of_two_independent_bootstraps():
    rng = np.random.default_rng(0)
    hits = [rng.random(400) < rate for rate in (0.8, 0.7)]
    lesions = [np.repeat(np.arange(200), 2) + offset for offset in (0, 1000)]
    inside, outside = (estimate_rate(hit, split_of(ids)) for hit, ids in zip(hits, lesions, strict=True))
    found = compare_estimates(inside, outside)
    # Independently: the difference of replicates of different seeds.
    replicates = []
    for hit in hits:
        picked = rng.integers(0, 200, size=(4000, 200))
        replicates.append(hit.reshape(200, 2).mean(axis=1)[picked].mean(axis=1))
    low, high = np.percentile(replicates[1] - replicates[0], [2.5, 97.5])
    assert found["value"] == pytest.approx(hits[1].mean() - hits[0].mean())
    assert found["low"] == pytest.approx(low, abs=0.01)
    assert found["high"] == pytest.approx(high, abs=0.01)


def test_the_interval_of_a_difference_covers_the_truth_95_times_in_100():
    rng, covered, n_trials = np.random.default_rng(1), 0, 400
    truth = 0.62 - 0.75
    for _ in range(n_trials):
        estimates = []
        for rate, n_lesions in ((0.75, 250), (0.62, 120)):
            # Photos of one lesion are alike: a lesion's own rate varies around the true one.
            own = rng.beta(6 * rate, 6 * (1 - rate), size=n_lesions)
            hits = rng.random((n_lesions, 3)) < own[:, None]
            estimates.append(estimate_rate(hits.ravel(), split_of(np.repeat(np.arange(n_lesions), 3))))
        difference = compare_estimates(*estimates)
        covered += difference["low"] <= truth <= difference["high"]
    assert 0.92 <= covered / n_trials <= 0.98


def test_a_difference_with_what_is_not_estimable_says_so():
    known = estimate(np.concatenate([[0.5], np.linspace(0.4, 0.6, 100)]), 10)
    missing = {"value": None, "low": None, "high": None, "reason": "no image"}
    assert compare_estimates(missing, known)["reason"] == "the internal value is not estimable"
    assert compare_estimates(known, {**known, "low": None, "high": None})["low"] is None


@pytest.mark.parametrize(("spread", "slope"), [(1, 0.7), (4, 0.1), (8, 0.3)])  # probabilities may be much too extreme
def test_the_slope_maximises_the_likelihood(spread, slope):
    rng = np.random.default_rng(2)
    log_odds = (spread * rng.normal(size=300)).clip(-13, 13)
    shown = rng.random(300) < 1 / (1 + np.exp(-(0.3 + slope * log_odds)))
    found = calibration_slope(1 / (1 + np.exp(-log_odds)), shown, split_of(np.arange(300)))

    def loss(parameters):
        z = parameters[0] + parameters[1] * log_odds
        return np.logaddexp(0, z).sum() - z[shown].sum()

    expected = minimize(loss, [0.0, 0.5]).x[1]
    assert found["value"] == pytest.approx(expected, abs=1e-3)
    assert found["low"] < found["value"] < found["high"]


def test_a_perfectly_separated_or_absent_diagnosis_has_no_slope():
    probs = np.concatenate([np.linspace(0.01, 0.2, 50), np.linspace(0.8, 0.99, 50)])
    split = split_of(np.arange(100))
    assert "perfectly" in calibration_slope(probs, probs > 0.5, split)["reason"]
    assert "always the same" in calibration_slope(np.full(100, 0.3), probs > 0.5, split)["reason"]
    assert "no image" in calibration_slope(probs, np.zeros(100, bool), split)["reason"]


def test_replicates_that_separate_a_diagnosis_do_not_widen_the_interval_without_bound():
    shown = np.arange(60) < 8
    log_odds = np.where(shown, 2.0, -2.0) + np.linspace(0, 0.5, 60)
    log_odds[-1] = 2.2  # the only negative above a positive: most replicates without it are separated
    slope = calibration_slope(1 / (1 + np.exp(-log_odds)), shown, split_of(np.arange(60)))
    assert slope["high"] is None or slope["high"] < 50


def test_overconfident_probabilities_have_a_slope_below_one_and_calibrated_ones_about_one(monkeypatch):
    monkeypatch.setattr(external, "N_SLOPE_REPLICATES", 20)
    rng = np.random.default_rng(3)
    probs = rng.dirichlet([1, 1, 1], size=2000)
    labels = np.array([rng.choice(3, p=row) for row in probs])
    shifted = np.column_stack([probs[:, 0] + 0.1, probs[:, 1] - 0.1, probs[:, 2]]).clip(0, 1)
    calibrated, extreme, moved = (
        calibration_in_the_large(Split(CODES, values, labels, np.arange(2000)))
        for values in (probs, probs**2 / (probs**2).sum(axis=1, keepdims=True), shifted)
    )
    for code in CODES:
        assert calibrated[code]["slope"]["value"] == pytest.approx(1, abs=0.1)
        assert calibrated[code]["slope"]["low"] < calibrated[code]["slope"]["value"] < calibrated[code]["slope"]["high"]
        assert extreme[code]["slope"]["high"] < 0.75
        assert calibrated[code]["excess_probability"]["low"] < 0 < calibrated[code]["excess_probability"]["high"]
    assert moved["BKL"]["excess_probability"]["low"] > 0.05


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
    config = json.loads((folder / "config.json").read_text())
    config["lesion"]["splits_sha256"] = splits_hash(pd.DataFrame(splits))
    config["lesion"]["config_sha256"] = config_sha256(config)
    (folder / "config.json").write_text(json.dumps(config))
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
    assert f"image content): {N_PLANTED} images" in printed
    assert set(predictions["split"]) == {"test"}
    assert not predictions["image_id"].str.startswith("planted").any()
    assert len(predictions) == sum(number // 2 % 5 < 4 for number in range(N_EXTERNAL))
    assert metrics["data"]["flow"]["other_diagnoses"] == {
        "DF": sum(number // 2 % 5 == 4 for number in range(N_EXTERNAL))
    }
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
    probs /= probs.sum(axis=1, keepdims=True)
    auroc = roc_auc_score(predictions["label"], probs, multi_class="ovr", labels=list(REFERENCE_CODES))
    assert rows["macro_auroc"]["external"]["value"] == pytest.approx(auroc, abs=1e-3)  # six digits make ties
    at_mix = probs * [own["model"]["class_priors"][code] for code in REFERENCE_CODES]
    at_mix /= at_mix.sum(axis=1, keepdims=True)
    mel = REFERENCE_CODES.index("MEL")
    excess = metrics["external"]["calibration"]["MEL"]["excess_probability"]["value"]
    assert excess == pytest.approx((at_mix[:, mel] - (predictions["label"] == "MEL")).mean(), abs=1e-5)
    accuracy = (np.array(REFERENCE_CODES)[at_mix.argmax(axis=1)] == predictions["label"]).mean()
    assert metrics["test"]["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-6)


def test_data_that_are_not_the_models_own_need_the_option(scored, elsewhere, tmp_path, capsys):
    assert main([str(scored), "--dataset", str(elsewhere), "--output", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "is not the data that the model was trained on" in error
    assert "--external" in error


def test_data_without_any_diagnosis_of_the_model_are_refused_with_what_they_have(scored, elsewhere, tmp_path, capsys):
    folder = tmp_path / "others"
    shutil.copytree(elsewhere, folder)
    table = pd.read_csv(folder / "metadata.csv").assign(label=["wart", "mole"] * ((N_EXTERNAL + N_PLANTED) // 2))
    table.to_csv(folder / "metadata.csv", index=False)
    assert main([str(scored), "--dataset", str(folder), "--external", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "others has 0 images of the model's diagnoses" in error
    assert "The labels of others: mole, wart." in error


def test_data_that_the_model_has_seen_are_not_external(scored, elsewhere, tmp_path, capsys):
    folder = tmp_path / "seen"
    shutil.copytree(elsewhere, folder)
    for file in folder.glob("photo_*.jpg"):
        file.unlink()
    table = pd.read_csv(folder / "metadata.csv")
    table[table["image_id"].str.startswith("planted")].to_csv(folder / "metadata.csv", index=False)
    assert main([str(scored), "--dataset", str(folder), "--external", "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"seen has {N_PLANTED} images of the model's diagnoses" in error
    assert f"and the model has seen {N_PLANTED} of them: nothing external is left" in error


def test_a_foreign_folder_with_the_ids_of_the_model_s_images_is_refused(scored, elsewhere, tmp_path, capsys):
    """The ids agree, the pixels do not; the splits of the model name ids alone."""
    folder, foreign = Path(shutil.copytree(scored, tmp_path / "model")), tmp_path / "foreign"
    foreign.mkdir()
    rng, lines = np.random.default_rng(9), ["file_name,label,image_id"]
    for number in range(N_PLANTED):
        cloudy(rng).save(foreign / f"seen_{number}.jpg")
        lines.append(f"seen_{number}.jpg,{REFERENCE_CODES[number % 4]},seen_{number}")
    (foreign / "metadata.csv").write_text("\n".join(lines) + "\n")
    assert main([str(folder), "--dataset", str(foreign), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"{N_PLANTED} images" in error
    assert "--external" in error


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--masks", "/nope"], "--masks /nope has no file <image_id>_segmentation.png"),
        (["--official_test", "--dataset", "demo"], "--official_test is of isic2019 alone"),
    ],
)
def test_options_that_cannot_work_fail_before_images_are_read(scored, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.setattr(command, "load_images", lambda *_, **__: pytest.fail("images were read"))
    assert main([str(scored), "--output", str(tmp_path / "out"), *options]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
    assert metrics["test"]["diagnoses"] == ["BKL", "MEL", "NV"]
    assert metrics["test"]["balanced_accuracy"]["value"] is not None
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
    assert "has 4 of the 8 diagnoses, so it can reach at most 0.556" in four["note"]
    mole = Split(("NV", "mole"), np.eye(2), np.array([0, -1]), np.arange(2))
    no_rule = SimpleNamespace(classifier=SimpleNamespace(abstention=None))
    assert _challenge_answers(no_rule, mole).tolist() == ["NV", "UNK"]
    rule = SimpleNamespace(abstains=lambda logits, features: np.array([True, False]))
    outputs = Outputs(["a", "b"], np.array([0, -1]), np.eye(2), np.eye(2))
    abstaining = replace(mole, outputs=outputs)
    assert _challenge_answers(SimpleNamespace(classifier=SimpleNamespace(abstention=rule)), abstaining).tolist() == [
        "UNK",
        "UNK",
    ]
    absent = challenge_score(answers[truths != "DF"], truths[truths != "DF"], np.arange(32), CODES_8)
    assert absent["mean_recall"]["reason"] == "no image of DF"
