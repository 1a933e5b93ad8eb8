import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from modeling.decision import Decision
from sklearn.metrics import balanced_accuracy_score, precision_recall_curve, roc_auc_score, roc_curve
from torch.utils.data import DataLoader

from modeling.abstention import AbstentionRule
from modeling.calibration import Calibration, fit_calibration, softmax
from modeling.classifier import LesionClassifier
from modeling.data.cache import resized_images
from modeling.data.dataset import LesionDataset
from modeling.data.demo import draw_lesion
from modeling.data.isic2019 import FEATURES
from modeling.data.sources import LoadedImages, fingerprint, rows_of
from modeling.data.splits import lesions_of, make_splits, write_splits
from modeling.evaluation import __main__ as command
from modeling.evaluation import evaluate as evaluation
from modeling.evaluation import figures
from modeling.evaluation.__main__ import EvaluationOptions, check_diagnoses, evaluate_folder, main
from modeling.evaluation.context import Context, classify_images, sample_evenly
from modeling.evaluation.evaluate import evaluate_model, rounded, summary
from modeling.evaluation.robustness import change_images
from modeling.evaluation.sections import data_section, training_section
from modeling.evaluation.verify import golden_prediction, verify
from modeling.files import ModelFolderError
from modeling.inference import Outputs, run_model
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import config_sha256
from modeling.network import build_model, fold_calibration, save_model_folder
from modeling.operating_points import fit_operating_points

CODES = REFERENCE_CODES


@pytest.fixture(scope="module")
def small_data() -> datasets.Dataset:
    """120 drawings of 60 lesions of the four diagnoses, and 8 of two others."""
    rows: dict[str, list] = {column: [] for column in FEATURES}
    plan = [(code, lesion) for code in CODES for lesion in range(15)] + [("AK", 0), ("AK", 1), ("SCC", 0), ("SCC", 1)]
    for code, lesion in plan:
        for photo in range(2):
            rng = np.random.default_rng([lesion, photo, *code.encode()])
            rows["image"].append(draw_lesion(rng, code, width_px=48, height_px=36))
            rows["image_id"].append(f"T_{len(rows['image_id']):04d}")
            rows["label"].append(code)
            rows["lesion_id"].append(f"{code}{lesion}")
            rows["source"].append("synthetic")
            rows["age_approx"].append(float(rng.integers(4, 16) * 5))
            rows["sex"].append(str(rng.choice(["male", "female"])))
            rows["anatom_site_general"].append(None)
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def outputs_of(model, dataset, splits, split: str, batch_size: int = 16) -> Outputs:
    ids = splits.loc[splits["split"] == split, "image_id"].tolist()
    rows = rows_of(dataset, ids)
    names = dataset.features["label"].names
    part = LesionDataset(
        resized_images(rows, fingerprint="", size_px=64, exact=True, cache_gb=0, show_progress=False),
        [CODES.index(names[label]) for label in rows["label"]],
    )
    return run_model(model, DataLoader(part, batch_size=batch_size))


@pytest.fixture(scope="module")
def evaluated(small_data, tmp_path_factory) -> dict:
    """A model folder, evaluated as train.py does it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("evaluated")
    model = build_model("test_efficientnet", num_classes=4, size_px=64, pretrained=False).eval()
    torch.nn.init.normal_(model.get_classifier().weight, std=0.5)  # untrained, it would predict every image the same
    splits = make_splits(small_data, diagnoses=CODES)
    val, test = (outputs_of(model, small_data, splits, split) for split in ("val", "test"))
    lesion_ids = lesions_of(splits, val.image_ids)
    calibration = fit_calibration(val.logits, val.labels, lesion_ids)
    fold_calibration(model, calibration)
    val, test = val.calibrated(calibration), test.calibrated(calibration)
    lesion = {
        "dataset": "demo",
        "synthetic": True,
        "package_version": "0",
        "run_id": "x",
        "calibration": calibration.to_dict(),
        # Far from the plain argmax, and between answers: what this network says differs little from image to image.
        "decision": Decision(1.0, 1.02, tuple(map(float, softmax(val.logits).mean(axis=0)))).to_dict(),
        "operating_points": [point.to_dict() for point in fit_operating_points(softmax(val.logits), val.labels, CODES)],
        "abstention": AbstentionRule.fit(val.logits, val.features, lesion_ids).to_dict(),
    }
    save_model_folder(model, folder / "model", codes=CODES, lesion=lesion)
    lesion["golden"] = golden_prediction(LesionClassifier.from_pretrained(folder / "model", device="cpu"))
    save_model_folder(model, folder / "model", codes=CODES, lesion=lesion)
    write_splits(splits, folder / "model" / "splits.csv")
    context = Context(
        classifier=LesionClassifier.from_pretrained(folder / "model", device="cpu"),
        dataset=small_data,
        splits=splits,
        val_outputs=val,
        test_outputs=test,
        run={"options": {"epochs": 1, "output_dir": "/a/path", "config": "a.yaml"}},
        history=[{"epoch": 1, "train/loss": 1.0, "val/loss": 1.0, "val/balanced_accuracy": 0.3, "val/accuracy": 0.3}],
    )
    metrics = evaluate_model(context, output_dir=folder / "model", predictions_csv=folder / "predictions.csv")
    return {"folder": folder, "context": context, "metrics": metrics}


def read(folder) -> dict:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_metrics_json_is_strict_json_and_what_was_returned(evaluated) -> None:
    assert read(evaluated["folder"] / "model") == evaluated["metrics"]


def test_every_missing_number_gives_its_reason(evaluated) -> None:
    def walk(value, path: str) -> None:
        if isinstance(value, dict):
            if "value" in value and {"low", "high"} <= value.keys() and None in (value["value"], value["low"]):
                assert value["reason"], path
            for key, item in value.items():
                walk(item, f"{path}/{key}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{path}/{index}")

    walk(evaluated["metrics"], "")


def test_documented_keys_are_those_that_are_written(evaluated) -> None:
    lines = re.findall(r"^([a-z_]+(?:, [a-z_]+)*) {2,}\S", evaluation.__doc__, flags=re.MULTILINE)
    documented = {name for line in lines for name in line.split(", ")}
    assert documented == {*evaluated["metrics"], "external"}  # which only an external evaluation writes


def test_repeating_the_evaluation_gives_the_same_bytes(evaluated, tmp_path) -> None:
    evaluate_model(replace(evaluated["context"]), output_dir=tmp_path, predictions_csv=tmp_path / "predictions.csv")
    for ours, theirs in (("metrics.json", "model/metrics.json"), ("predictions.csv", "predictions.csv")):
        assert (tmp_path / ours).read_bytes() == (evaluated["folder"] / theirs).read_bytes()
    for name in evaluated["metrics"]["figures"]:
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")


def test_predictions_csv_gives_the_reported_scores(evaluated) -> None:
    table = pd.read_csv(evaluated["folder"] / "predictions.csv")
    assert list(table.columns) == ["image_id", "lesion_id", "split", "label", *CODES, "predicted", "abstained"]
    for split in ("val", "test"):
        rows = table[table["split"] == split]
        with np.errstate(all="ignore"):
            score = balanced_accuracy_score(rows["label"], rows["predicted"])
        decision = evaluated["context"].classifier.lesion["decision"]
        melanoma = [decision["melanoma_weight"] if code == "MEL" else 1 for code in CODES]
        weighted = (rows[list(CODES)] / np.array(decision["priors"]) * melanoma).to_numpy()
        margin = np.diff(np.sort(weighted, axis=1)[:, -2:], axis=1)[:, 0]
        clear = margin > 1e-5  # predictions.csv has six digits
        assert clear.mean() > 0.5
        assert (np.array(CODES)[weighted.argmax(axis=1)] == rows["predicted"])[clear].all()
        plain = evaluated["metrics"]["decision"][split]["most_probable"]["recall"]
        for code in CODES:
            is_code = rows["label"] == code
            assert plain[code]["value"] == pytest.approx(
                (rows[list(CODES)].idxmax(axis=1)[is_code] == code).mean(), abs=1e-6
            )
        assert evaluated["metrics"][split]["balanced_accuracy"]["value"] == pytest.approx(score, abs=1e-6)
        assert evaluated["metrics"][split]["n_images"] == len(rows)
    test_rows = table[table["split"] == "test"]
    assert evaluated["metrics"]["abstention"]["test"]["abstained"]["value"] == pytest.approx(
        test_rows["abstained"].mean(), abs=1e-6
    )


def test_predict_gives_the_probabilities_that_were_evaluated(evaluated, small_data) -> None:
    table = pd.read_csv(evaluated["folder"] / "predictions.csv").head(6)
    position = {name: place for place, name in enumerate(small_data["image_id"])}
    images = [small_data[position[name]]["image"] for name in table["image_id"]]
    predictions = evaluated["context"].classifier.predict(images)
    for prediction, row in zip(predictions, table.itertuples(), strict=True):
        assert prediction.abstained == row.abstained
        assert prediction.diagnosis == row.predicted
        assert prediction.probability == prediction.probabilities[row.predicted]
        for code in CODES:
            assert prediction.probabilities[code] == pytest.approx(getattr(row, code), abs=1e-5)


def test_left_out_diagnoses_are_named_with_what_they_are_predicted(evaluated) -> None:
    near = evaluated["metrics"]["abstention"]["near"]
    assert set(near) == {"AK", "SCC"}
    assert near["SCC"]["malignant"] is True
    assert sum(near["SCC"]["predicted"].values()) == near["SCC"]["n_images"] == 4


def test_scores_on_left_out_diagnoses_are_those_of_their_images(evaluated, small_data) -> None:
    classifier, test = evaluated["context"].classifier, evaluated["context"].test_outputs
    rule, inside = classifier.abstention, (test.logits, test.features)
    for code, near in evaluated["metrics"]["abstention"]["near"].items():
        places = np.flatnonzero(np.array(small_data["label"]) == small_data.features["label"].str2int(code))
        outside = classify_images(classifier, [small_data[int(place)]["image"] for place in places])
        probs = softmax(outside[0])
        assert near["predicted"] == {
            name: int((classifier.decision.choose(probs, CODES) == label).sum()) for label, name in enumerate(CODES)
        }
        scores = np.concatenate([rule.score(*inside), rule.score(*outside)])
        is_outside = np.arange(len(scores)) >= len(test.labels)
        assert near["auroc"]["value"] == pytest.approx(roc_auc_score(is_outside, scores), abs=1e-6)
        assert near["abstained"]["value"] == pytest.approx(rule.abstains(*outside).mean(), abs=1e-6)
        for point in classifier.operating_points:
            assert near["above"][point.name]["value"] == pytest.approx(point.reached(probs, CODES).mean(), abs=1e-6)


def test_changes_and_test_time_augmentation_are_scored_on_the_answers_to_them(evaluated, small_data) -> None:
    """The sample of so small a test split is all of it, so each number can be had from the predictor."""
    classifier, metrics = evaluated["context"].classifier, evaluated["metrics"]
    test = evaluated["context"].test_outputs
    position = {name: place for place, name in enumerate(small_data["image_id"])}
    images = [small_data[position[name]]["image"] for name in test.image_ids]

    def check(found: dict, predicted: list[int]) -> None:
        score = balanced_accuracy_score(test.labels, predicted)
        assert found["balanced_accuracy"]["value"] == pytest.approx(score, abs=1e-6)
        assert found["balanced_accuracy_gain"]["value"] == pytest.approx(score - plain_score, abs=1e-6)
        assert found["flip_rate"]["value"] == pytest.approx(np.mean(np.array(predicted) != plain), abs=1e-6)

    plain, augmented = (
        [CODES.index(answer.diagnosis) for answer in classifier.predict(images, tta=tta)] for tta in (False, True)
    )
    plain_score = balanced_accuracy_score(test.labels, plain)
    assert metrics["robustness"]["balanced_accuracy"]["value"] == pytest.approx(plain_score, abs=1e-6)
    assert plain != augmented
    check(metrics["test_time_augmentation"], augmented)
    for name, found in metrics["robustness"]["changes"].items():
        probs = softmax(classify_images(classifier, change_images(name, images))[0])
        check(found, classifier.decision.choose(probs, CODES))


def test_training_is_reported_with_the_epoch_that_was_chosen() -> None:
    scores = [(0.5, 0.6), (0.7, 0.6), (0.4, 0.9)]
    history = [
        {"epoch": epoch, "val/balanced_accuracy": balanced, "val/accuracy": plain}
        for epoch, (balanced, plain) in enumerate(scores, start=1)
    ]
    found = training_section({"options": {"epochs": 3}}, history)
    assert (found["options"], found["best_epoch"], found["selection"]) == ({"epochs": 3}, 2, "balanced accuracy")
    found = training_section({"options": {"recipe": "original"}}, history)
    assert (found["best_epoch"], found["selection"]) == (3, "accuracy")


def test_command_line_gives_the_numbers_of_training(evaluated, small_data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "load_images", lambda name, **_: LoadedImages(small_data, None))
    output, folder = tmp_path / "out", Path(shutil.copytree(evaluated["folder"] / "model", tmp_path / "model"))
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(text.replace('"protocol": "lesion"', '"protocol": "original"'))
    assert main([str(folder), "--output", str(output), "--batch_size", "7", "--tta"]) == 0
    assert "balanced accuracy" in capsys.readouterr().out
    ours, theirs = read(output), evaluated["metrics"]
    assert ours["data"]["protocol"] == "original"
    assert ours["data"]["split_unit"] == "image"
    assert ours["test_time_augmentation"]["sample"] == "all of test"
    for key in (
        *("test", "val", "calibration", "operating_points", "risk_coverage", "robustness", "groups", "baselines"),
        *("abstention", "failures", "training"),
    ):
        assert json.loads(json.dumps(ours[key]), parse_float=lambda text: round(float(text), 4)) == json.loads(
            json.dumps(theirs[key]), parse_float=lambda text: round(float(text), 4)
        ), key


def test_batch_size_does_not_change_the_outputs(evaluated, small_data) -> None:
    model, splits = evaluated["context"].classifier.engine.network, evaluated["context"].splits
    one, many = (outputs_of(model, small_data, splits, "val", batch_size=size) for size in (1, 50))
    assert one.image_ids == many.image_ids
    assert one.logits == pytest.approx(many.logits, abs=1e-5)


class Shuffled(torch.utils.data.Dataset):
    """Images whose position is given out by hand."""

    def __init__(self, order: list[int], size: int) -> None:
        self.order, self.size, self.image_ids = order, size, list("abcde")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: int) -> dict:
        index = self.order[place]
        pixels = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        return {"pixels": pixels, "label": index % 4, "index": index}


def loader_of(order: list[int], size: int) -> DataLoader:
    return DataLoader(Shuffled(order, size), batch_size=2, sampler=range(len(order)))


def test_outputs_come_in_the_order_of_the_dataset(tiny_model_folder) -> None:
    model = LesionClassifier.from_pretrained(tiny_model_folder, device="cpu").engine.network.train()
    straight, shuffled = (run_model(model, loader_of(order, 5)) for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]))
    assert shuffled.image_ids == list("abcde")
    assert shuffled.labels.tolist() == [0, 1, 2, 3, 0]
    assert shuffled.logits == pytest.approx(straight.logits, abs=1e-5)
    assert shuffled.features == pytest.approx(straight.features, abs=1e-4)
    assert model.training


@pytest.mark.parametrize("order", [[0, 1, 1, 2], [0, 1, 2]])
def test_an_image_that_comes_twice_or_never_is_an_error(tiny_model_folder, order) -> None:
    model = LesionClassifier.from_pretrained(tiny_model_folder, device="cpu").engine.network
    with pytest.raises(ValueError, match="wanted each of 4 images once"):
        run_model(model, loader_of(order, 4))


def test_broken_weights_are_an_error_and_not_a_score(tiny_model_folder) -> None:
    model = LesionClassifier.from_pretrained(tiny_model_folder, device="cpu").engine.network
    with torch.no_grad():
        model.get_classifier().bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="2 of 2 images have logits that are not finite"):
        run_model(model, loader_of([0, 1], 2))


def test_a_model_with_other_diagnoses_than_the_data_is_refused(evaluated, small_data) -> None:
    renamed = small_data.cast_column(
        "label", datasets.ClassLabel(names=["cat", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"])
    )
    with pytest.raises(ValueError, match="MEL is missing"):
        check_diagnoses(evaluated["context"].classifier, renamed)


def test_all_images_abstained_and_no_val_are_said_and_not_scored(evaluated, tmp_path) -> None:
    classifier = LesionClassifier.from_pretrained(evaluated["folder"] / "model", device="cpu")
    classifier.abstention = replace(classifier.abstention, threshold=-1e9)
    splits = evaluated["context"].splits
    context = replace(
        evaluated["context"], classifier=classifier, splits=splits[splits["split"] != "val"], val_outputs=None
    )
    metrics = evaluate_model(context, output_dir=tmp_path, predictions_csv=tmp_path / "predictions.csv")
    answered = metrics["abstention"]["test"]["answered"]
    assert answered["n_images"] == 0
    for name in ("accuracy", "balanced_accuracy"):
        assert answered[name]["value"] is None
        assert answered[name]["reason"] == "the model abstained on every image"
    assert metrics["val"] == {"reason": "the splits have no val images"}


def test_golden_prediction_verifies_the_model_and_finds_changed_weights(evaluated, tmp_path, capsys) -> None:
    folder = evaluated["folder"] / "model"
    assert main([str(folder), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "verified: weights sha256" in said
    assert "every entry of config.json, metrics.json, splits.csv, golden prediction" in said
    assert "Not covered: the numbers of metrics.json" in said
    without_hash = Path(shutil.copytree(folder, tmp_path / "model"))
    config = json.loads((without_hash / "config.json").read_text())
    del config["lesion"]["config_sha256"]
    (without_hash / "config.json").write_text(json.dumps(config))
    assert main([str(without_hash), "--verify"]) == 0
    assert "config.json" not in capsys.readouterr().out
    classifier = LesionClassifier.from_pretrained(folder, device="cpu")
    calibration = Calibration("temperature scaling", (5.0,) * 4, (0.0,) * 4, {})
    fold_calibration(classifier.engine.network, calibration)
    with pytest.raises(ModelFolderError, match="differs by"):
        verify(classifier)


def swap(items, first: int, second: int) -> None:
    items[first], items[second] = items[second], items[first]


def seal(config) -> None:
    """Give a changed configuration its new hash, as somebody would who knows of it."""
    config["lesion"]["config_sha256"] = config_sha256(config)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("config.json", lambda c: swap(c["label_names"], 0, 1), "config.json is not as it was saved"),
        ("config.json", lambda c: c["label_descriptions"].update(MEL="freckle"), "config.json is not as it was saved"),
        ("config.json", lambda c: c["pretrained_cfg"].update(mean=[0.5, 0.5, 0.5]), "is not as it was saved"),
        ("config.json", lambda c: c["pretrained_cfg"].update(interpolation="bilinear"), "is not as it was saved"),
        (
            "config.json",
            lambda c: c["lesion"]["calibration"].update(bias=[9.0] * 4),
            "config.json is not as it was saved",
        ),
        ("config.json", lambda c: c["lesion"]["operating_points"][0].update(threshold=0.9), "is not as it was saved"),
        ("config.json", lambda c: (swap(c["label_names"], 0, 1), seal(c)), "the stored answer is of|other diagnoses"),
        ("config.json", lambda c: (c["lesion"]["golden"].pop("mean_rgb"), seal(c)), "cannot be compared"),
        (
            "config.json",
            lambda c: (c["lesion"]["golden"].update(probabilities=[1]), seal(c)),
            "the stored answer is of",
        ),
        (
            "config.json",
            lambda c: (c["lesion"].update(splits_sha256="0" * 64), seal(c)),
            "is not of this model: its splits_sha256",
        ),
        ("metrics.json", lambda m: m["model"].update(weights_sha256="0" * 64), "metrics.json is not of this model"),
        ("metrics.json", lambda m: swap(m["model"]["codes"], 0, 1), "metrics.json has other diagnoses"),
        ("metrics.json", lambda m: m.pop("model"), "cannot be compared"),
        ("train_config.json", lambda c: c.update(run_id="other"), "train_config.json is not of this model"),
    ],
)
def test_a_changed_file_does_not_verify(evaluated, tmp_path, name, change, words, capsys) -> None:
    folder = Path(shutil.copytree(evaluated["folder"] / "model", tmp_path / "model"))
    run = {"run_id": "x", "data_fingerprint": None, "splits_sha256": None}
    (folder / "train_config.json").write_text(json.dumps(run))
    assert main([str(folder), "--verify"]) == 0
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    assert main([str(folder), "--verify"]) == 1
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(("key", "name"), [("splits_sha256", "splits.csv"), ("data_fingerprint", "metrics.json")])
def test_data_of_another_model_beside_the_weights_do_not_verify(evaluated, tmp_path, key, name, capsys) -> None:
    folder = Path(shutil.copytree(evaluated["folder"] / "model", tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["lesion"][key] = "0" * 64
    seal(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert main([str(folder), "--verify"]) == 1
    assert f"{name} is not of this model: its {key}" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", "{"])
def test_a_damaged_metrics_json_beside_the_model_is_named(evaluated, tmp_path, content, capsys) -> None:
    folder = Path(shutil.copytree(evaluated["folder"] / "model", tmp_path / "model"))
    (folder / "metrics.json").write_text(content)
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "metrics.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(training=3), "is damaged: 'training'"),
        (lambda m: m["training"].update(history=[{"epoch": 1}]), "is damaged: 'training.history.0"),
        (lambda m: m["groups"].pop("sex"), "is damaged: 'groups.sex'"),
        (lambda m: m["test"]["confusion"].pop(), "is damaged: test is not about the diagnoses"),
        (
            lambda m: m.update(schema_version=1),
            "is of schema 1 and this version reads 2; remove it and make it anew with",
        ),
        (lambda m: m["model"].update(weights_sha256="0" * 64), "is of another model: its weights_sha256"),
    ],
)
def test_a_metrics_json_that_is_not_of_this_model_and_version_is_refused(
    evaluated, tmp_path, change, words, capsys
) -> None:
    folder = Path(shutil.copytree(evaluated["folder"] / "model", tmp_path / "model"))
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err


def test_a_model_without_splits_or_dataset_says_what_to_give(evaluated, tmp_path, tiny_model_folder, capsys) -> None:
    assert main([str(tiny_model_folder), "--output", str(tmp_path / "out")]) == 1
    assert "has no splits.csv: give --splits" in capsys.readouterr().err


def test_the_report_names_model_data_and_package(evaluated) -> None:
    model = evaluated["metrics"]["model"]
    assert model["revision"] is None
    said = summary(evaluated["metrics"])
    assert "0.0% of the test images show a lesion that is also in train" in said
    assert f"model of run x, revision local, weights sha256 {model['weights_sha256']}" in said
    error = evaluated["metrics"]["calibration"]["test"]["after"]["ece"]["value"]
    assert f"calibration error (ECE): {error:.3f} (" in said


def test_a_model_without_a_golden_prediction_cannot_be_verified(tiny_model_folder, capsys) -> None:
    assert main([str(tiny_model_folder), "--verify"]) == 1
    assert "golden" in capsys.readouterr().err


def test_sample_is_even_over_the_diagnoses_and_the_same_each_time() -> None:
    labels = np.repeat([0, 1, 2, 3], [400, 30, 10, 5])
    sample = sample_evenly(labels)
    assert np.array_equal(sample, sample_evenly(labels))
    assert len(set(sample)) == len(sample) == 148
    assert np.bincount(labels[sample]).tolist() == [103, 30, 10, 5]


def test_rounding_leaves_plain_values() -> None:
    assert rounded({"a": np.float64(1 / 3), "b": (np.int64(2), -1e-9)}) == {"a": 0.333333, "b": [2, 0.0]}


def test_evaluation_of_splits_without_test_is_refused(evaluated, small_data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(command, "load_images", lambda name, **_: LoadedImages(small_data, None))
    splits = evaluated["context"].splits.replace({"split": {"test": "train"}})
    write_splits(splits, tmp_path / "splits.csv")
    options = EvaluationOptions(splits=str(tmp_path / "splits.csv"))
    with pytest.raises(ValueError, match="nothing to report"):
        evaluate_folder(str(evaluated["folder"] / "model"), options)
    write_splits(splits.replace({"label": {"NV": "DF"}}), tmp_path / "splits.csv")
    with pytest.raises(ValueError, match="has images of DF, but the model answers BCC, BKL, MEL, NV"):
        evaluate_folder(str(evaluated["folder"] / "model"), options)


def test_what_is_scored_goes_by_its_own_name_and_the_protocol_that_was_recorded(
    evaluated, small_data, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(command, "load_images", lambda name, **_: LoadedImages(small_data, None))
    monkeypatch.setattr(command, "evaluate_model", lambda context, **_: context)
    folder = Path(shutil.copytree(evaluated["folder"] / "model", tmp_path / "model"))
    (folder / "metrics.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["lesion"]["protocol"] = "original"
    seal(config)
    (folder / "config.json").write_text(json.dumps(config))
    own = evaluate_folder(str(folder), EvaluationOptions(output=str(tmp_path / "out")))
    assert own.protocol == "original"
    assert data_section(own)["dataset"] == "demo"
    options = EvaluationOptions(dataset="clinic", splits=str(folder / "splits.csv"), output=str(tmp_path / "out"))
    data = data_section(evaluate_folder(str(folder), options))
    assert (data["dataset"], data["fingerprint"]) == ("clinic", fingerprint(small_data))


def test_a_diagnosis_without_a_test_image_has_no_leakage_rate(evaluated) -> None:
    splits = evaluated["context"].splits
    elsewhere = splits.assign(split=splits["split"].mask(splits["label"] == "BKL", "train"))
    rates = data_section(replace(evaluated["context"], splits=elsewhere))["leakage"]
    assert rates == {"overall": 0, "BCC": 0, "BKL": None, "MEL": 0, "NV": 0}


def test_figures_show_each_number_in_its_place() -> None:
    confusion = figures._confusion(np.array([[3, 1], [6, 0]]), ("MEL", "NV")).axes[0]
    assert {text.get_position(): text.get_text() for text in confusion.texts} == {
        (0, 0): "3\n75%", (1, 0): "1\n25%", (0, 1): "6\n100%", (1, 1): "0\n0%"
    }  # fmt: skip
    labels, probs = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.1, 0.9]])
    for kind, curve in (("roc", roc_curve), ("precision_recall", precision_recall_curve)):
        line = next(line for line in figures._curves(kind, probs, labels, ("MEL", "NV")).axes[0].lines)
        first, second, _ = curve(labels == 0, probs[:, 0])
        across, up = (first, second) if kind == "roc" else (second, first)
        assert line.get_label() == "MEL"
        assert np.array_equal(line.get_xydata(), np.stack([across, up], axis=1))
    rates = {name: {"value": value, "low": None, "high": None} for name, value in (("blur", 0.1), ("noise", 0.4))}
    bars = figures._robustness({name: {"flip_rate": rate} for name, rate in rates.items()}).axes[0]
    names = [text.get_text() for text in bars.get_yticklabels()]
    assert {name: bar.get_width() for name, bar in zip(names, bars.patches, strict=True)} == {"blur": 0.1, "noise": 0.4}
    boxes = figures._ood({"test": np.array([1.0, 1.0]), "far": np.array([5.0, 5.0])}, 2.0).axes[0]
    assert [text.get_text() for text in boxes.get_xticklabels()] == ["test", "far"]
    assert [line.get_ydata()[0] for line in boxes.lines if line.get_color() == "C1"] == [1.0, 5.0]
