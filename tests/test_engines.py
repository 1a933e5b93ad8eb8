"""modeling/engines.py and preprocessing.py: two engines, one answer; and pixels as timm makes them."""

import itertools
import json
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from PIL import Image, ImageDraw
from timm.data import create_transform

from modeling import onnx_trial
from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError, file_sha256
from modeling.images import decode_image
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import ONNX_NAME
from modeling.network import build_model, class_evidence, save_model_folder
from modeling.operating_points import OperatingPoint
from modeling.preprocessing import Preprocessing
from modeling.training.onnx_export import export_onnx
from support.untrained import random_rule, untrained_folder

MODES = ("L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr", "HSV")


def odd_images(n: int, seed: int = 0) -> list[Image.Image]:
    """Drawings of odd sizes, and in all modes that files come in."""
    rng, images = np.random.default_rng(seed), []
    for number in range(n):
        width, height = (int(side) for side in rng.integers(9, 400, size=2))
        width = min(width, 9 * height)
        height = min(height, 9 * width)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ImageDraw.Draw(image).ellipse((width // 4, height // 4, width // 2, height // 2), fill=(90, 60, 40))
        images.append(image.convert(MODES[number % len(MODES)]) if number % 2 else image)
    return images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model with an ONNX file, an operating point and an abstention rule that splits the odd images."""
    torch.manual_seed(0)
    model = build_model("test_efficientnet", num_classes=4, size_px=96, pretrained=False)
    torch.nn.init.normal_(model.get_classifier().weight, std=5.0)
    torch.nn.init.normal_(model.get_classifier().bias)
    path = tmp_path_factory.mktemp("engines") / "model"
    point = OperatingPoint("MEL@95", ("MEL",), 0.95, 0.25, 0.95, 0.5, 10, 10)
    lesion = {"operating_points": [point], "abstention": random_rule(4)}
    export_onnx(model.eval(), path / ONNX_NAME)
    save_model_folder(model, path, codes=REFERENCE_CODES, lesion=lesion)
    return path


@pytest.fixture(scope="module")
def engines(folder):
    return [LesionClassifier.from_pretrained(folder, device="cpu", engine=engine) for engine in ("torch", "onnx")]


def check_same_answers(torch_engine: LesionClassifier, onnx_engine: LesionClassifier, images: list) -> None:
    """Of both engines: probabilities within 1e-5, operating points, abstention, heat maps within 1e-4."""
    for image, one, other in zip(images, torch_engine.predict(images), onnx_engine.predict(images), strict=True):
        np.testing.assert_allclose(list(one.probabilities.values()), list(other.probabilities.values()), atol=1e-5)
        assert one.operating_points == other.operating_points
        assert (one.diagnosis, one.abstained) == (other.diagnosis, other.abstained)
        maps, others = torch_engine.explain(image), onnx_engine.explain(image)
        for code in torch_engine.codes:
            grid = maps.evidence.shape[1:]
            np.testing.assert_allclose(
                maps.heat_map(code, size=grid), others.heat_map(code, size=grid), rtol=0, atol=1e-4
            )


def test_both_engines_give_the_same_answers(engines):
    images = odd_images(24)
    assert {engine.engine.name for engine in engines} == {"torch", "onnx"}
    check_same_answers(*engines, images)
    answers = engines[1].predict(images)
    assert len({answer.operating_points["MEL@95"] for answer in answers}) == 2


def test_on_a_cpu_the_onnx_file_answers_where_there_is_one(folder, tmp_path, lesion_image):
    assert LesionClassifier.from_pretrained(folder, device="cpu").engine.name == "onnx"
    without = shutil.copytree(folder, tmp_path / "without")
    shutil.rmtree(without / "onnx")
    with pytest.raises(ModelFolderError, match=r"has no onnx/model\.onnx"):
        LesionClassifier.from_pretrained(without, device="cpu")
    assert LesionClassifier.from_pretrained(without, device="cpu", engine="torch").predict(lesion_image).probability > 0
    with pytest.raises(ModelFolderError, match="engine must be auto, onnx or torch, got 'tensorrt'"):
        LesionClassifier.from_pretrained(folder, engine="tensorrt")
    with pytest.raises(ModelFolderError, match="computes on the CPU, not on cuda"):
        LesionClassifier.from_pretrained(folder, engine="onnx", device="cuda")


def test_a_folder_without_an_onnx_file_is_served_by_torch(tmp_path):
    untrained_folder(tmp_path)
    assert LesionClassifier.from_pretrained(tmp_path, device="cpu").engine.name == "torch"
    with pytest.raises(ModelFolderError, match="has no onnx"):
        LesionClassifier.from_pretrained(tmp_path, engine="onnx")


def test_grad_cam_of_the_onnx_engine_is_that_of_pytorch_grad_cam(engines):
    network = engines[0].engine.network
    for image in odd_images(8, seed=1):
        pixel_values = engines[1].preprocess(image)[None]
        found = engines[1].engine.forward(pixel_values, evidence=True).evidence[0]
        assert "_torch" not in vars(engines[1].engine)
        with torch.inference_mode():
            maps = network.forward_features(torch.from_numpy(pixel_values))
        expected = class_evidence(network, maps)
        assert found.shape == expected.shape == (4, 3, 3)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_network_with_another_head_is_explained_by_torch(tmp_path, lesion_image):
    """MobileNetV3 has a convolution and an activation between pooling and classifier."""
    untrained_folder(tmp_path, backbone="mobilenetv3_small_050", spread=5.0, onnx=True)
    by_torch, by_onnx = (LesionClassifier.from_pretrained(tmp_path, device="cpu", engine=e) for e in ("torch", "onnx"))
    assert by_onnx.engine.name == "onnx"
    expected, found = by_torch.explain(lesion_image), by_onnx.explain(lesion_image)
    np.testing.assert_allclose(found.evidence, expected.evidence, rtol=0, atol=1e-4 * np.abs(expected.evidence).max())
    assert "_torch" in vars(by_onnx.engine)
    lesion_image.save(tmp_path / "lesion.png")
    code = """
import sys
import threading
sys.modules["torch"] = None  # as where it is not installed
from modeling import LesionClassifier
classifier = LesionClassifier.from_pretrained(sys.argv[1], device="cpu")
print(classifier.predict(sys.argv[2]).diagnosis)
try:
    classifier.explain(sys.argv[2])
except ValueError as error:
    print(error)
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "lesion.png")],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert said[0] == found.prediction.diagnosis
    assert "needs torch, which is not installed: pip install -e" in said[1]


def test_the_images_of_a_list_get_the_answers_that_they_get_alone(engines):
    """On ONNX Runtime to the last bit, so that no answer depends on its neighbours or on where a run was resumed."""
    onnx_engine, images = engines[1], odd_images(9, seed=4)
    for tta in (False, True):
        alone = [onnx_engine.predict([image], tta=tta)[0] for image in images]
        assert onnx_engine.predict(images, tta=tta) == alone


def test_a_list_by_torch_is_computed_by_the_caller(engines, monkeypatch):
    """In a thread of its own torch would set up its threads and its memory for every list: twice the time."""
    torch_engine, used = engines[0], []
    forward = torch_engine.engine.forward
    monkeypatch.setattr(
        torch_engine.engine,
        "forward",
        lambda *args, **more: used.append(threading.get_ident()) or forward(*args, **more),
    )
    torch_engine.predict(odd_images(3, seed=5))
    assert set(used) == {threading.get_ident()}


def test_eight_threads_get_the_answers_of_one(engines):
    onnx_engine, images = engines[1], odd_images(24, seed=2)
    alone = [onnx_engine.explain(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(onnx_engine.explain, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.evidence, other.evidence)
        assert one.prediction == other.prediction


def signed(folder, nodes):
    """Put another ONNX network into a model folder, with its hash, as its publisher would."""
    size = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 96, 96])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "features")]
    graph = helper.make_graph(nodes, "g", [size], outputs)
    return resigned(folder, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def resigned(folder, model):
    onnx.save(model, folder / ONNX_NAME)
    config = json.loads((folder / "config.json").read_text())
    config["lesion"] |= {"onnx_sha256": file_sha256(folder / ONNX_NAME), "config_sha256": None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def doubling() -> list:
    """20 operations, 3 GB after 15 of them."""
    names = ["pixel_values", *(f"x{number}" for number in range(20))]
    nodes = [helper.make_node("Concat", [one, one], [two], axis=0) for one, two in itertools.pairwise(names)]
    return [*nodes, *(helper.make_node("ReduceMean", [names[-1]], [name]) for name in ("logits", "features"))]


def multiplying() -> list:
    """2,000 products of large matrices: minutes."""
    nodes = [
        helper.make_node("Concat", ["pixel_values"] * 12, ["tall"], axis=2),
        helper.make_node("Concat", ["tall"] * 12, ["m0"], axis=3),
        *(helper.make_node("MatMul", [f"m{number}", "m0"], [f"m{number + 1}"]) for number in range(2000)),
    ]
    return [*nodes, *(helper.make_node("ReduceMean", ["m2000"], [name]) for name in ("logits", "features"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nodes", "words"),
    [(doubling, "Failed to allocate memory|4 GiB of memory"), (multiplying, "stopped after 3 s of computing")],
)
def test_a_network_that_takes_all_memory_or_time_is_refused_in_a_sentence(folder, tmp_path, monkeypatch, nodes, words):
    monkeypatch.setattr(onnx_trial, "MAX_CPU_S", 3)
    hostile = signed(shutil.copytree(folder, tmp_path / "model"), nodes())
    with pytest.raises(ModelFolderError, match=words):
        LesionClassifier.from_pretrained(hostile, device="cpu")


def test_a_network_that_onnx_runtime_cannot_run_is_refused_in_a_sentence(folder, tmp_path):
    for change in (
        lambda model: model.graph.node.pop(),
        lambda model: setattr(model.graph.input[0], "name", "pixels"),
        lambda model: setattr(model.graph.node[0], "op_type", "Conv3"),
        lambda model: model.graph.output.pop(0),
    ):
        hostile, model = shutil.copytree(folder, tmp_path / "model", dirs_exist_ok=True), onnx.load(folder / ONNX_NAME)
        change(model)
        with pytest.raises(ModelFolderError, match=r"model\.onnx: ONNX Runtime cannot|cannot be used"):
            LesionClassifier.from_pretrained(resigned(hostile, model), device="cpu")


def test_heat_maps_that_do_not_fit_the_diagnoses_are_refused_in_a_sentence(folder, tmp_path, lesion_image):
    model = onnx.load(folder / ONNX_NAME)
    model.graph.output.pop()
    next(node for node in model.graph.node if "evidence" in node.output).output[0] = "hidden"
    model.graph.node.append(helper.make_node("Flatten", ["hidden"], ["evidence"]))
    model.graph.output.append(helper.make_tensor_value_info("evidence", TensorProto.FLOAT, None))
    hostile = shutil.copytree(folder, tmp_path / "model")
    classifier = LesionClassifier.from_pretrained(resigned(hostile, model), device="cpu")
    with pytest.raises(ModelFolderError, match="heat maps of this network do not fit its diagnoses"):
        classifier.explain(lesion_image)


def test_a_network_is_tried_once_and_then_remembered(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tries = []
    monkeypatch.setattr(onnx_trial.subprocess, "run", lambda *args, **more: tries.append(args) or RUN(*args, **more))
    for _ in range(3):
        assert LesionClassifier.from_pretrained(folder, device="cpu").engine.name == "onnx"
    assert len(tries) == 1


RUN = onnx_trial.subprocess.run


def timms_transform(cfg: dict):
    return create_transform(**{key: cfg[key] for key in cfg if key != "custom_load"}, is_training=False)


@pytest.mark.parametrize(("interpolation", "size"), [("bicubic", 96), ("bilinear", 33), ("bicubic", 224)])
def test_preprocessing_is_bit_by_bit_that_of_timm(interpolation, size):
    cfg = {"input_size": (3, size, size), "interpolation": interpolation, "crop_pct": 1.0, "crop_mode": "squash"}
    cfg |= {"mean": timm.data.IMAGENET_DEFAULT_MEAN, "std": timm.data.IMAGENET_DEFAULT_STD}
    ours, theirs = Preprocessing(cfg), timms_transform(cfg)
    for image in (*odd_images(60, seed=3), Image.new("RGB", (size, size), (1, 2, 3)), Image.new("L", (size, 40))):
        upright = decode_image(image)
        found = ours(upright)
        assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)
        np.testing.assert_array_equal(found, theirs(upright).numpy())


def test_preprocessing_of_real_photos_is_bit_by_bit_that_of_timm(real_data, folder):
    paths = sorted((real_data / "isic2019").rglob("*.jpg"))[::100][:120]
    paths += sorted((real_data / "originals").rglob("*.jpg"))[:10]
    assert len(paths) >= 100
    cfg = {"input_size": (3, 224, 224), "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"}
    cfg |= {"mean": (0.5, 0.5, 0.5), "std": (0.229, 0.5, 0.225)}
    ours, theirs = Preprocessing(cfg), timms_transform(cfg)
    for number, path in enumerate(paths):
        image = Image.open(path)
        if number % 2:
            image = image.resize((101 + number, 77 + 3 * number)).convert(MODES[number % len(MODES)])
        upright = decode_image(image)
        np.testing.assert_array_equal(ours(upright), theirs(upright).numpy())


def test_both_engines_give_the_same_answers_on_real_photos(real_data, engines):
    paths = (
        sorted((real_data / "isic2019").rglob("*.jpg"))[::400][:24]
        + sorted((real_data / "originals").rglob("*.jpg"))[:3]
    )
    check_same_answers(*engines, [path.read_bytes() for path in paths])
