"""modeling/training/calibrate_and_save.py: what is fitted on val is in the folder, and every loader applies it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from modeling.abstention import AbstentionRule
from modeling.calibration import softmax
from modeling.classifier import LesionClassifier
from modeling.inference import Outputs
from modeling.model_folder import RUN_NAME, SPLITS_NAME, read_config
from modeling.network import build_model, normalise
from modeling.training.calibrate_and_save import write_model_folder
from modeling.training.trainer import Fitted

CODES = ["MEL", "NV"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A network scored on 60 random images as val, 45 of them nevi; train holds 100 nevi and 20 melanomas."""
    run = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = build_model("test_efficientnet", num_classes=2, size_px=64, pretrained=False).eval()
    torch.nn.init.normal_(model.get_classifier().weight, std=3.0)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    labels = np.repeat([0, 1], [15, 45])
    pixels[labels == 0] //= 2

    def run_on(images: np.ndarray) -> Outputs:
        with torch.inference_mode():
            maps = model.forward_features(normalise(torch.from_numpy(images), model.pretrained_cfg))
            features = model.forward_head(maps, pre_logits=True)
            logits = model.get_classifier()(features)
        return Outputs([f"val{n}" for n in range(60)], labels, logits.numpy(), features.numpy())

    val, reprocessed = run_on(pixels), run_on(np.clip(pixels * 1.2, 0, 255).astype(np.uint8))
    rows = [(f"val{n}", f"l{n}", CODES[label], "HAM", "val") for n, label in enumerate(labels)]
    rows += [(f"train{n}", f"t{n}", CODES[n >= 20], "HAM", "train") for n in range(120)]
    rows += [(f"test{n}", f"u{n}", "MEL", "HAM", "test") for n in range(50)]
    columns = ["image_id", "lesion_id", "label", "source", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(run / SPLITS_NAME, index=False)
    (run / "image_hashes.csv").write_text("image_id,lesion_id,hash\n")
    config = {"codes": CODES, "run_id": "r", "data_fingerprint": "f", "splits_sha256": "s"}
    config |= {"origin": {"kind": "scratch", "base_model": None}, "options": {"protocol": "lesion"}}
    options = SimpleNamespace(dataset="demo")
    folder = run / "model"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "old.txt").write_text("of an earlier try")
    write_model_folder(folder, Fitted(model, val, reprocessed, []), options, config)
    calibration = read_config(folder)["lesion"]["calibration"]
    return folder, val, reprocessed, pixels, calibration


def test_class_priors_are_the_mix_of_train_and_val_by_image(saved):
    config = read_config(saved[0])
    assert config["lesion"]["class_priors"] == {"MEL": pytest.approx(35 / 180), "NV": pytest.approx(145 / 180)}


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_the_saved_network_gives_the_calibrated_probabilities_of_val(saved, engine):
    folder, val, _, pixels, calibration = saved
    classifier = LesionClassifier.from_pretrained(folder, device="cpu", engine=engine)
    expected = softmax(calibration.apply(val.logits))
    found = [list(answer.probabilities.values()) for answer in classifier.predict(list(pixels[:20]))]
    np.testing.assert_allclose(found, expected[:20], atol=1e-4)


def test_the_abstention_rule_is_fitted_on_both_versions_of_val(saved):
    folder, val, reprocessed, _, calibration = saved
    lesions = [f"l{number}" for number in range(60)]
    expected = AbstentionRule.fit(
        np.concatenate([calibration.apply(version.logits) for version in (val, reprocessed)]),
        np.concatenate([val.features, reprocessed.features]),
        lesions + lesions,
    )
    assert read_config(folder)["lesion"]["abstention"].threshold == pytest.approx(expected.threshold)


def test_the_folder_holds_what_it_should_and_nothing_of_an_earlier_try(saved):
    files = {str(path.relative_to(saved[0])) for path in saved[0].rglob("*") if path.is_file()}
    assert files == {
        *("config.json", "model.safetensors", "onnx/model.onnx", RUN_NAME, SPLITS_NAME, "image_hashes.csv"),
    }
