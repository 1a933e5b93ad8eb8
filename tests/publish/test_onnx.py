"""modeling/publish/onnx.py: the same logits in onnxruntime, in a file that explains itself."""

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import timm
import torch

from modeling.classifier import LesionClassifier
from modeling.data.demo import draw_lesion
from modeling.labels import NOTICE, SYNTHETIC_NOTICE
from modeling.model_folder import load_model_folder, save_model_folder
from modeling.network import build_model
from modeling.publish import onnx as export
from modeling.publish.onnx import ExportError, export_onnx

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def _few_calibrate():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "N_CALIBRATION_IMAGES", 12)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> Path:
    """Thirty small drawings as an image folder, fifteen of a diagnosis."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for code in ("MEL", "NV"):
        (folder / code).mkdir()
        for number in range(15):
            draw_lesion(rng, code, width_px=80, height_px=60).save(folder / code / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, data_dir):
    """A tiny model with logits of trained size, exported with its 8-bit version."""
    torch.manual_seed(0)
    model = build_model("test_efficientnet", num_classes=2, size_px=64, pretrained=False)
    torch.nn.init.normal_(model.get_classifier().weight, std=20.0)
    folder = tmp_path_factory.mktemp("export") / "model"
    lesion = {"dataset": "imagefolder", "synthetic": True, "operating_points": [], "license": "cc-by-nc-4.0"}
    save_model_folder(model, folder, codes=("MEL", "NV"), lesion=lesion)
    return export_onnx(folder, int8=True, data_dir=data_dir)


def test_onnxruntime_gives_timms_logits_at_any_batch_size(exported):
    model = timm.create_model(f"local-dir:{exported.path.parent}", pretrained=True).eval()
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("pixel_values", ["batch", 3, 64, 64])]
    assert [one.name for one in session.get_outputs()] == ["logits"]
    for size in (1, 2, 5, 9):
        pixel_values = torch.randn(size, 3, 64, 64)
        with torch.inference_mode():
            expected = model(pixel_values).numpy()
        assert np.ptp(expected) > 1
        np.testing.assert_allclose(session.run(None, {"pixel_values": pixel_values.numpy()})[0], expected, atol=1e-4)
    assert exported.logit_difference <= 1e-4
    assert onnx.load(exported.path).opset_import[0].version == export.OPSET


def test_the_file_says_how_to_use_it_and_nothing_of_the_machine_that_wrote_it(exported, lesion_image):
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["label_names"]) == ["MEL", "NV"]
    assert NOTICE in notes["notice"]
    assert SYNTHETIC_NOTICE in notes["notice"]
    weights = (exported.path.parent / "model.safetensors").read_bytes()
    assert (notes["weights_sha256"], notes["license"]) == (hashlib.sha256(weights).hexdigest(), "cc-by-nc-4.0")
    # Follow the words of `preprocessing`, by other means than the package.
    assert notes["preprocessing"].startswith("upright RGB, squashed")
    size = json.loads(notes["input_size"])[1:]
    pixels = np.asarray(lesion_image.resize(size[::-1], 3), dtype=np.float32) / 255
    pixels = (pixels - np.array(json.loads(notes["mean"]))) / np.array(json.loads(notes["std"]))
    (logits,) = session.run(None, {"pixel_values": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    probs = np.exp(logits[0] - logits[0].max())
    expected = LesionClassifier.from_pretrained(exported.path.parent, device="cpu").predict(lesion_image).probabilities
    np.testing.assert_allclose(probs / probs.sum(), list(expected.values()), atol=1e-4)
    content = exported.path.read_bytes() + exported.int8_path.read_bytes()
    for word in (str(ROOT), sys.prefix, "site-packages", "stack_trace"):
        assert word.encode() not in content


def test_eight_bits_are_smaller_and_their_loss_is_measured_on_images_not_trained_on(exported):
    int8 = onnx.load(exported.int8_path)
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in int8.graph.node}
    assert exported.int8_path.stat().st_size < 0.6 * exported.path.stat().st_size
    loss = exported.int8_loss
    notes = {entry.key: entry.value for entry in int8.metadata_props}
    assert json.loads(notes["int8_loss"])["agreement"] == loss.agreement
    assert json.loads(notes["label_names"]) == ["MEL", "NV"]
    assert "may have been trained on them" in loss.images  # the folder has no splits.csv
    assert exported.int8_calibration.startswith(f"{export.N_CALIBRATION_IMAGES} images")
    assert loss.n == 30 - export.N_CALIBRATION_IMAGES
    assert 0.5 < loss.agreement <= 1
    assert f"{loss.agreement:.1%}" in str(exported)


def test_the_splits_of_the_folder_decide_what_calibrates_and_what_measures(exported, data_dir):
    folder = exported.path.parent
    table = pd.DataFrame({"image_id": [f"train-{number:06}" for number in range(30)], "split": ["val"] * 30})
    table.loc[:4, "split"], table.loc[20:22, "split"] = "train", "test"
    table.to_csv(folder / "splits.csv", index=False)
    config = json.loads((folder / "config.json").read_text())
    data = export._data_of(config, folder, data_dir)
    (folder / "splits.csv").unlink()
    assert {Path(path).parent.name for path in data.calibration} == {"MEL"}
    assert (len(data.calibration), len(data.test)) == (5, 3)
    assert data.test_labels.tolist() == [1, 1, 1]
    assert data.test_words == "its test split"


def test_without_data_drawings_calibrate_and_no_loss_is_claimed(exported, tmp_path):
    folder = shutil.copytree(exported.path.parent, tmp_path / "model")
    again = export_onnx(folder, int8=True)
    assert again.int8_loss is None
    assert "drawings; its loss of accuracy was not measured" in str(again)


def test_the_loss_is_that_of_the_second_file_compared_with_the_first(exported, data_dir, tmp_path):
    content = onnx.load(exported.path)  # its opposite: with two diagnoses, the other answer to every image
    last = next(node for node in content.graph.node if "logits" in node.output)
    last.output[list(last.output).index("logits")] = "opposite"
    content.graph.node.append(onnx.helper.make_node("Neg", ["opposite"], ["logits"]))
    onnx.save(content, tmp_path / "opposite.onnx")
    config = json.loads((exported.path.parent / "config.json").read_text())
    data = export._data_of(config, exported.path.parent, data_dir)
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    logits = [session.run(None, {"pixel_values": batch})[0] for batch in export._batches(config, data.test)]
    data = dataclasses.replace(data, test_labels=np.concatenate(logits).argmax(axis=1))
    loss = export._int8_loss(exported.path, tmp_path / "opposite.onnx", config, data)
    assert (loss.balanced_accuracy, loss.balanced_accuracy_int8, loss.agreement) == (1, 0, 0)


def test_balanced_accuracy_is_the_mean_recall():
    answers, labels = np.array([0, 0, 1, 1, 2]), np.array([0, 0, 0, 1, 3])
    assert export._balanced_accuracy(answers, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_an_export_with_other_logits_is_refused_and_leaves_no_file(tiny_model_folder, monkeypatch):
    model, config = load_model_folder(tiny_model_folder)
    content = export._to_onnx(model, config["pretrained_cfg"]["input_size"][1])
    weight = next(one for one in content.graph.initializer if list(one.dims) == [4, 256])
    before = sorted(path.name for path in tiny_model_folder.iterdir())
    for harm, words in ((0.01, r"0\.\d+"), (float("nan"), "nan")):
        moved = onnx.numpy_helper.to_array(weight) + np.float32(harm)
        weight.CopyFrom(onnx.numpy_helper.from_array(moved, weight.name))
        monkeypatch.setattr(export, "_to_onnx", lambda *_: onnx.ModelProto.FromString(content.SerializeToString()))
        with pytest.raises(ExportError, match=f"logits of ONNX and torch differ by {words}"):
            export_onnx(tiny_model_folder)
        assert sorted(path.name for path in tiny_model_folder.iterdir()) == before


def test_a_missing_library_is_named_with_its_extra(tiny_model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    says = r'needs onnxscript, which is not installed: pip install "skin-lesion-classifier\[export\]"'
    with pytest.raises(ExportError, match=says):
        export_onnx(tiny_model_folder)
