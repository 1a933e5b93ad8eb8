import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from modeling.calibration import softmax
from modeling.classifier import LesionClassifier
from modeling.data.sources import LoadedImages
from modeling.data.splits_file import load_splits
from modeling.evaluation import __main__ as command
from modeling.evaluation import context as context_module
from modeling.evaluation.__main__ import main
from modeling.evaluation.context import Context, sample_evenly
from modeling.evaluation.evaluate import evaluate_model, rounded, summary, write_predictions
from modeling.evaluation.robustness import CHANGES, change_image, robustness_section
from modeling.evaluation.sections import abstention_section, data_section, training_section
from modeling.inference import run_images
from modeling.labels import CODES, REFERENCE_CODES
from modeling.model_folder import config_sha256
from support.hashes import hash_images
from support.scored import blot_dataset

N_OTHER = len(CODES) - len(REFERENCE_CODES)


@pytest.fixture(scope="module")
def dataset():
    return blot_dataset(common=REFERENCE_CODES)


@pytest.fixture(scope="module")
def metrics(scored_folder) -> dict:
    return read(scored_folder)


@pytest.fixture(scope="module")
def context(scored_folder, dataset) -> Context:
    """The context of the scored folder."""
    classifier = LesionClassifier.from_pretrained(scored_folder, device="cpu")
    return Context(classifier, dataset, load_splits(scored_folder / "splits.csv"), n_skipped=3)


@pytest.fixture(scope="module")
def predictions(scored_folder) -> pd.DataFrame:
    return pd.read_csv(scored_folder.parent / "predictions.csv")


def read(folder: Path) -> dict:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)


def seal(config: dict) -> None:
    """Give a changed configuration its new hash."""
    config["lesion"]["config_sha256"] = config_sha256(config)


# ---- What is measured ------------------------------------------------------------------------------------------------


def test_every_missing_number_gives_its_reason(metrics) -> None:
    def walk(value, path: str) -> None:
        if isinstance(value, dict):
            if "value" in value and {"low", "high"} <= value.keys() and None in (value["value"], value["low"]):
                assert value["reason"], path
            for key, item in value.items():
                walk(item, f"{path}/{key}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                walk(item, f"{path}/{index}")

    walk(metrics, "")


def test_scores_follow_from_predictions_csv(metrics, predictions) -> None:
    """By other means, from what is published beside the model."""
    codes = list(REFERENCE_CODES)
    mix = np.array([metrics["model"]["class_priors"][code] for code in codes])
    for split in ("val", "test"):
        rows, found = predictions[predictions["split"] == split], metrics[split]
        probs, labels = rows[codes].to_numpy(), rows["label"].map(codes.index).to_numpy()
        assert found["n_lesions"] == rows["lesion_id"].nunique() < len(rows) == found["n_images"]
        assert (np.array(codes)[probs.argmax(axis=1)] == rows["predicted"]).all()
        balanced = balanced_accuracy_score(rows["label"], rows["predicted"])
        assert found["balanced_accuracy"]["value"] == pytest.approx(balanced, abs=1e-6)
        at_mix = probs * mix / (probs * mix).sum(axis=1, keepdims=True)
        accuracy = accuracy_score(labels, at_mix.argmax(axis=1))
        assert found["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-6)
        auroc = roc_auc_score(labels, probs / probs.sum(axis=1, keepdims=True), multi_class="ovr")
        assert found["macro_auroc"]["value"] == pytest.approx(auroc, abs=1e-3)
    # What follows is of test, the last of the two.
    nll = -np.log(at_mix[np.arange(len(labels)), labels]).mean()
    assert metrics["calibration"]["test"]["after"]["nll"]["value"] == pytest.approx(nll, abs=1e-3)
    for point in metrics["operating_points"]:
        positive = rows["label"].isin(point["codes"])
        reached = rows[point["codes"]].sum(axis=1) >= point["threshold"]
        assert point["test"]["sensitivity"]["value"] == pytest.approx(reached[positive].mean(), abs=1e-6)
        assert point["test"]["specificity"]["value"] == pytest.approx((~reached)[~positive].mean(), abs=1e-6)
        assert point["test"]["missed"] == sorted(rows["image_id"][positive & ~reached])
    abstained = metrics["abstention"]["test"]["abstained"]["value"]
    assert abstained == pytest.approx(rows["abstained"].mean(), abs=1e-6)


def test_the_scores_before_calibration_are_those_of_the_raw_logits(metrics, context) -> None:
    fitted, test = metrics["calibration"]["fitted"], context.test
    raw = softmax((test.outputs.logits - np.array(fitted["bias"])) / np.array(fitted["scale"]))
    nll = -np.log(raw[np.arange(len(test)), test.labels]).mean()
    assert metrics["calibration"]["test"]["before"]["nll"]["value"] == pytest.approx(nll, abs=1e-4)


def test_predict_gives_the_probabilities_that_were_evaluated(context, predictions, dataset) -> None:
    position = {name: place for place, name in enumerate(dataset["image_id"])}
    answers = context.classifier.predict([dataset[position[name]]["image"] for name in predictions["image_id"]])
    for answer, row in zip(answers, predictions.itertuples(), strict=True):
        assert answer.abstained == row.abstained
        assert answer.diagnosis == row.predicted
        for code in REFERENCE_CODES:
            assert answer.probabilities[code] == pytest.approx(getattr(row, code), abs=1e-5)


def test_data_flow_follows_from_the_dataset_and_its_splits(metrics, context) -> None:
    data, splits = metrics["data"], context.splits
    assert data["flow"]["skipped"] == 3
    assert data["flow"]["other_diagnoses"] == dict.fromkeys(sorted(set(CODES) - set(REFERENCE_CODES)), 8)
    assert data["flow"]["in_dataset"] == len(splits) + 8 * N_OTHER
    assert data["split_unit"] == data["protocol"] == "lesion"
    for split, found in data["flow"]["splits"].items():
        part = splits[splits["split"] == split]
        assert (found["n_images"], found["n_lesions"]) == (len(part), part["lesion_id"].nunique())
        assert found["per_class"] == part.groupby("label").size().to_dict()


def test_the_model_section_names_the_engine(metrics) -> None:
    assert metrics["model"]["engine"] == "onnx"


def test_other_diagnoses_are_scored_on_their_images(context, metrics, dataset) -> None:
    classifier, test = context.classifier, context.test
    near = metrics["abstention"]["near"]
    assert set(near) == set(CODES) - set(REFERENCE_CODES)
    rows = [row for row in dataset if CODES[row["label"]] == "SCC"]
    outside = run_images(
        classifier, [row["image"] for row in rows], image_ids=[row["image_id"] for row in rows], labels=[-1] * 8
    )
    rule = classifier.abstention
    scores = [rule.score(outputs.logits, outputs.features) for outputs in (test.outputs, outside)]
    auroc = roc_auc_score(np.repeat([0, 1], [len(test), 8]), np.concatenate(scores))
    assert near["SCC"]["malignant"] is True
    assert near["SCC"]["auroc"]["value"] == pytest.approx(auroc, abs=1e-5)
    assert near["SCC"]["abstained"]["value"] == pytest.approx((scores[1] > rule.threshold).mean(), abs=1e-6)
    assert near["SCC"]["n_images"] == 8
    # Four lesions of two photos each; the photos of the one without an id count as two.
    assert near["SCC"]["n_lesions"] == 5


def test_robustness_is_measured_on_the_predictions_for_changed_images(context, metrics) -> None:
    found, test, classifier = metrics["robustness"], context.test, context.classifier
    images = [context.load(image_id) for image_id in test.image_ids]
    assert found["n_images"] == len(test) <= 200  # the sample of so small a test is all of it
    for name in ("rotation 90°", "synthetic ink"):
        changed = [change_image(name, image, number) for number, image in enumerate(images)]
        answers = [REFERENCE_CODES.index(answer.diagnosis) for answer in classifier.predict(changed)]
        flips = np.mean(answers != test.predicted)
        assert found["changes"][name]["flip_rate"]["value"] == pytest.approx(flips, abs=1e-6)
        gain = balanced_accuracy_score(test.labels, answers) - found["balanced_accuracy"]["value"]
        assert found["changes"][name]["balanced_accuracy_gain"]["value"] == pytest.approx(gain, abs=1e-5)


def test_an_image_is_decoded_once_for_all_its_changes(context, monkeypatch) -> None:
    loaded: list[str] = []
    small = replace(context)
    small.__dict__["sample"] = context.test.subset(np.arange(3))
    load = Context.load

    def counted(self: Context, image_id: str) -> Image.Image:
        loaded.append(image_id)
        return load(self, image_id)

    monkeypatch.setattr(Context, "load", counted)
    assert len(robustness_section(small)["changes"]) == len(CHANGES)
    assert len(loaded) == 3


def test_all_images_abstained_and_no_val_are_said_and_not_scored(context, monkeypatch) -> None:
    monkeypatch.setattr(context_module, "N_FAR", 2)
    classifier = context.classifier.with_priors("equal")
    classifier.abstention = replace(classifier.abstention, threshold=-1e6)
    splits = context.splits[context.splits["split"] != "val"]
    other = replace(context, classifier=classifier, splits=splits)
    answered = abstention_section(other)["test"]["answered"]
    assert answered["n_images"] == 0
    for name in ("accuracy", "balanced_accuracy"):
        assert answered[name]["reason"] == "the model abstained on every image"
    assert other.val is None


def test_a_diagnosis_without_a_test_image_has_no_leakage_rate(context) -> None:
    splits = context.splits
    elsewhere = splits.assign(split=splits["split"].mask(splits["label"] == "BKL", "train"))
    rates = data_section(replace(context, splits=elsewhere))["leakage"]
    assert rates == {"overall": 0, "BCC": 0, "BKL": None, "MEL": 0, "NV": 0}


def test_training_is_reported_with_the_epoch_that_was_chosen_and_options_that_had_an_effect() -> None:
    scores = [(0.5, 0.6), (0.7, 0.6), (0.4, 0.9)]
    history = [
        {"epoch": epoch, "val/balanced_accuracy": balanced, "val/accuracy": plain}
        for epoch, (balanced, plain) in enumerate(scores, start=1)
    ]

    def section(options: dict) -> dict:
        return training_section(SimpleNamespace(run={"options": options, "history": history}))

    found = section({"epochs": 3, "pretrained": None})
    assert (found["options"], found["best_epoch"], found["selection"]) == ({"epochs": 3}, 2, "balanced accuracy")
    found = section({"recipe": "original"})
    assert (found["best_epoch"], found["selection"]) == (3, "accuracy")


def test_sample_is_even_over_the_diagnoses_and_the_same_each_time() -> None:
    labels = np.repeat([0, 1, 2, 3], [400, 30, 10, 5])
    sample = sample_evenly(labels, 148)
    assert np.array_equal(sample, sample_evenly(labels, 148))
    assert len(set(sample)) == len(sample) == 148
    assert np.bincount(labels[sample]).tolist() == [103, 30, 10, 5]


# ---- What is written -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_repeating_the_evaluation_gives_the_same_bytes(scored_folder, context, metrics, tmp_path) -> None:
    again = replace(context, run=metrics["training"])
    evaluate_model(again, output_dir=tmp_path, predictions_csv=tmp_path / "predictions.csv")
    assert (tmp_path / "metrics.json").read_bytes() == (scored_folder / "metrics.json").read_bytes()
    ours, theirs = tmp_path / "predictions.csv", scored_folder.parent / "predictions.csv"
    assert ours.read_bytes() == theirs.read_bytes()


def test_figures_are_described_transparent_and_readable_on_a_phone(scored_folder, metrics) -> None:
    files = [figure["file"] for figure in metrics["figures"]]
    assert files == ["roc.png", "reliability.png", "confusion.png"]
    for figure in metrics["figures"]:
        with Image.open(scored_folder / "figures" / figure["file"]) as image:
            assert image.width == 2 * 390
            assert image.mode == "RGBA"
            assert image.getpixel((2, 2))[3] == 0
    titles = {figure["file"]: figure["title"] for figure in metrics["figures"]}
    auroc = metrics["test"]["per_class"]["MEL"]["auroc"]["value"]
    assert titles["roc.png"] == f"Melanoma AUROC {auroc:.2f}"
    assert titles["confusion.png"] == f"Balanced accuracy {metrics['test']['balanced_accuracy']['value']:.2f}"
    assert all(figure["caption"].endswith(".") and figure["alt"] for figure in metrics["figures"])


def test_the_grey_of_figures_is_readable_on_light_and_dark_pages() -> None:
    from modeling.evaluation.figures import GREY

    def luminance(colour: str) -> float:
        values = np.array(matplotlib.colors.to_rgb(colour))
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    for page in ("#ffffff", "#0b0f19"):
        light, dark = sorted([luminance(GREY), luminance(page)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.2


def test_a_label_that_looks_like_a_formula_is_written_harmlessly(context, tmp_path) -> None:
    table = context.test.table.assign(label="=cmd|calc")
    other = SimpleNamespace(classifier=context.classifier, val=None, test=replace(context.test, table=table))
    write_predictions(tmp_path / "predictions.csv", other)
    assert ",'=cmd" in (tmp_path / "predictions.csv").read_text().splitlines()[1]


def test_rounding_leaves_plain_values() -> None:
    assert rounded({"a": np.float64(1 / 3), "b": (np.int64(2), -1e-9)}) == {"a": 0.333333, "b": [2, 0.0]}


def test_the_summary_says_which_priors_and_which_diagnoses(metrics) -> None:
    said = summary(metrics)
    assert "accuracy, ECE, Brier score and NLL at the mix of train and val; all other scores at equal priors" in said
    assert "averages over BCC, BKL, MEL, NV;" in said
    assert f"MEL@95/sensitivity: {metrics['operating_points'][1]['test']['sensitivity']['value']:.3f}" in said
    assert "0.0% of the test images show a lesion that is also in train" in said
    assert f"weights sha256 {metrics['model']['weights_sha256'][:12]}" in said
    partial = {**metrics, "test": {**metrics["test"], "diagnoses": ["BCC", "MEL"]}}
    assert "averages over BCC, MEL;" in summary(partial)


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_gives_the_numbers_of_training_and_scores_heat_maps_where_there_are_masks(
    scored_folder, dataset, metrics, predictions, tmp_path, monkeypatch, capsys
):
    hashes = hash_images(dataset)
    monkeypatch.setattr(command, "load_images", lambda name, **_: LoadedImages(dataset, hashes, n_skipped=3))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    for image_id in predictions["image_id"][predictions["split"] == "test"].head(2):
        mask.save(tmp_path / f"{image_id}_segmentation.png")
    assert main([str(scored_folder), "--output", str(tmp_path), "--masks", str(tmp_path)]) == 0
    assert "balanced_accuracy" in capsys.readouterr().out
    found = read(tmp_path)
    assert found["heat_maps"]["n_images"] == 2
    assert found == {**metrics, "heat_maps": found["heat_maps"]}


def test_a_model_without_splits_says_what_to_give(tmp_path, tiny_model_folder, capsys) -> None:
    assert main([str(tiny_model_folder), "--output", str(tmp_path / "out")]) == 1
    assert "has no splits.csv: give --external" in capsys.readouterr().err


def test_splits_of_another_model_are_refused(scored_folder, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "load_images", lambda name, **_: pytest.fail("images were read"))
    folder = Path(shutil.copytree(scored_folder, tmp_path / "model"))
    splits = folder / "splits.csv"
    splits.write_bytes(splits.read_bytes().replace(b"train", b"val"))
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 1
    assert "splits.csv does not belong to this model" in capsys.readouterr().err


def test_the_protocol_is_the_one_that_was_recorded(scored_folder, dataset, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(command, "load_images", lambda name, **_: LoadedImages(dataset, hash_images(dataset)))
    contexts = []
    monkeypatch.setattr(command, "evaluate_model", lambda context, **_: contexts.append(context))
    monkeypatch.setattr(command, "summary", str)
    folder = Path(shutil.copytree(scored_folder, tmp_path / "model"))
    (folder / "metrics.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["lesion"]["protocol"] = "original"
    seal(config)
    (folder / "config.json").write_text(json.dumps(config))
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 0
    [own] = contexts
    assert own.protocol == "original"
    assert data_section(own)["dataset"] == "demo"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(training=3), "training: Input should be a valid dictionary"),
        (lambda m: m.update(schema_version=1), "has schema 1 and this version reads 3; remove it and make it again"),
        (lambda m: m["model"].update(weights_sha256="0" * 64), "is of another model: its weights_sha256"),
    ],
)
def test_a_metrics_json_that_is_not_of_this_model_and_version_is_refused(
    scored_folder, tmp_path, change, words, capsys
) -> None:
    folder = Path(shutil.copytree(scored_folder, tmp_path / "model"))
    content = read(folder)
    change(content)
    (folder / "metrics.json").write_text(json.dumps(content))
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 1
    assert words in capsys.readouterr().err
