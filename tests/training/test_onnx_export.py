"""modeling/training/onnx_export.py: the same outputs in ONNX Runtime."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import ONNX_NAME, read_config
from modeling.network import build_model, save_model_folder
from modeling.training import onnx_export as export
from modeling.training.onnx_export import export_onnx

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny model with logits of trained size."""
    torch.manual_seed(0)
    model = build_model("test_efficientnet", num_classes=2, size_px=64, pretrained=False)
    torch.nn.init.normal_(model.get_classifier().weight, std=20.0)
    folder = tmp_path_factory.mktemp("export") / "model"
    lesion = {"dataset": "imagefolder", "synthetic": True, "operating_points": [], "license": "cc-by-nc-4.0"}
    export_onnx(model.eval(), folder / ONNX_NAME)
    save_model_folder(model, folder, codes=("MEL", "NV"), lesion=lesion)
    return folder


@pytest.fixture(scope="module")
def session(exported):
    return onnxruntime.InferenceSession(exported / ONNX_NAME, providers=["CPUExecutionProvider"])


def test_onnx_runtime_gives_timms_logits_features_maps_and_evidence_at_any_batch_size(exported, session):
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("pixel_values", ["batch", 3, 64, 64])]
    assert [one.name for one in session.get_outputs()] == ["logits", "features", "feature_maps", "evidence"]
    torch.manual_seed(1)
    for size in (9, 1, 2, 5):
        pixel_values = torch.randn(size, 3, 64, 64)
        with torch.inference_mode():
            maps = model.forward_features(pixel_values)
            expected = [model(pixel_values), model.forward_head(maps, pre_logits=True), maps]
            expected.append(torch.einsum("ck,bkhw->bchw", model.get_classifier().weight, maps))
        assert size < 9 or np.ptp(expected[0]) > 1
        for found, wanted in zip(session.run(None, {"pixel_values": pixel_values.numpy()}), expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
    assert onnx.load(exported / ONNX_NAME).opset_import[0].version == export.OPSET


def test_the_configuration_names_the_file_and_stays_whole(exported):
    content = (exported / "onnx" / "model.onnx").read_bytes()
    assert read_config(exported)["lesion"]["onnx_sha256"] == hashlib.sha256(content).hexdigest()


def test_the_file_is_used_by_numpy_with_config_json_alone(exported, session, lesion_image):
    cfg = json.loads((exported / "config.json").read_text())["pretrained_cfg"]
    pixels = np.asarray(lesion_image.resize(cfg["input_size"][:0:-1], 3), dtype=np.float32) / 255
    pixels = (pixels - np.array(cfg["mean"])) / np.array(cfg["std"])
    (logits,) = session.run(["logits"], {"pixel_values": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    probs = np.exp(logits[0] - logits[0].max())
    expected = LesionClassifier.from_pretrained(exported, device="cpu", engine="torch").predict(lesion_image)
    np.testing.assert_allclose(probs / probs.sum(), list(expected.probabilities.values()), atol=1e-4)


def test_the_file_says_nothing_of_the_machine_that_wrote_it(exported):
    content = (exported / ONNX_NAME).read_bytes()
    for word in (str(ROOT), sys.prefix, "site-packages", "stack_trace"):
        assert word.encode() not in content


@pytest.mark.parametrize("harm", [0.01, float("nan")])
def test_an_export_with_other_outputs_is_refused_and_writes_no_file(tmp_path, monkeypatch, harm):
    torch.manual_seed(0)
    model = build_model("test_efficientnet", num_classes=2, size_px=64, pretrained=False)
    to_onnx = export._to_onnx

    def harmed(network, size_px, path):
        to_onnx(network, size_px, path)
        content = onnx.load(path)
        weight = next(one for one in content.graph.initializer if list(one.dims) == [2, 256])
        moved = onnx.numpy_helper.to_array(weight) + np.float32(harm)
        weight.CopyFrom(onnx.numpy_helper.from_array(moved, weight.name))
        onnx.save(content, path)

    monkeypatch.setattr(export, "_to_onnx", harmed)
    with pytest.raises(ModelFolderError, match=r"differ by (0\.\d+|nan) in the logits"):
        export_onnx(model.eval(), tmp_path / ONNX_NAME)
    assert not list((tmp_path / "onnx").iterdir())


@pytest.mark.parametrize("backbone", ["efficientvit_b0", "hgnetv2_b0"])
def test_a_network_that_pads_before_other_operations_is_exported(tmp_path, backbone):
    model = build_model(backbone, num_classes=2, size_px=64, pretrained=False).eval()
    export_onnx(model, tmp_path / ONNX_NAME)  # which compares the outputs
    assert (tmp_path / ONNX_NAME).is_file()


def test_a_network_with_another_head_is_exported_without_evidence(tmp_path):
    """MobileNetV3 has a convolution and an activation between pooling and classifier."""
    model = build_model("mobilenetv3_small_050", num_classes=2, size_px=64, pretrained=False).eval()
    export_onnx(model, tmp_path / ONNX_NAME)
    session = onnxruntime.InferenceSession(tmp_path / ONNX_NAME, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["logits", "features", "feature_maps"]


def test_a_network_with_tensorflows_padding_is_exported_and_opened(tmp_path):
    """Its padding depends on the input's size, which the exporter would compute by operations of its own."""
    model = build_model("tf_efficientnet_lite0", num_classes=4, size_px=97, pretrained=False)
    lesion = {"run_id": "tf", "dataset": "demo", "synthetic": True, "operating_points": []}
    export_onnx(model.train(), tmp_path / ONNX_NAME)
    assert model.training
    assert model(torch.zeros(2, 3, 64, 64)).shape == (
        2,
        4,
    )  # the padding of the network itself still depends on the size
    save_model_folder(model, tmp_path, codes=REFERENCE_CODES, lesion=lesion)
    assert LesionClassifier.from_pretrained(tmp_path, device="cpu").engine.name == "onnx"
