"""modeling/onnx_file.py: a hostile ONNX file is refused with a reason, before ONNX Runtime sees it where that is possible."""

import json
import os
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from modeling.classifier import LesionClassifier
from modeling.files import ModelFolderError, file_sha256
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import config_sha256
from modeling.onnx_file import OPERATIONS, classifier_weight, read_onnx
from support.untrained import untrained_folder

INPUT = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 64, 64])


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return untrained_folder(tmp_path_factory.mktemp("hostile"), onnx=True)


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def sign(folder):
    """Let config.json name the file that is there now, as who publishes it would."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["lesion"]["onnx_sha256"] = file_sha256(folder / "onnx" / "model.onnx")
    config["lesion"]["config_sha256"] = config_sha256(config)
    path.write_text(json.dumps(config))


def model_of(nodes, initializers=(), **settings):
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("logits", "features", "feature_maps")
    ]
    graph = helper.make_graph(nodes, "g", [INPUT], outputs, list(initializers))
    return helper.make_model(graph, opset_imports=settings.pop("opsets", [helper.make_opsetid("", 18)]), **settings)


def three(node):
    """The graph of one node whose output is all that is asked for."""
    return [
        node,
        *(helper.make_node("Identity", [node.output[0]], [name]) for name in ("logits", "features", "feature_maps")),
    ]


def external() -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return model_of(three(helper.make_node("Add", ["pixel_values", "w"], ["x"])), [tensor])


def external_in_an_attribute() -> onnx.ModelProto:
    tensor = external().graph.initializer[0]
    return model_of(three(helper.make_node("Constant", [], ["x"], value=tensor)))


def custom() -> onnx.ModelProto:
    node = helper.make_node("Evil", ["pixel_values"], ["x"], domain="com.evil")
    return model_of(three(node), opsets=[helper.make_opsetid("", 18), helper.make_opsetid("com.evil", 1)])


def ten_gigabytes_of_two_numbers() -> onnx.ModelProto:
    shape = helper.make_tensor(
        "s", TensorProto.INT64, [2], np.array([50_000, 50_000], dtype=np.int64).tobytes(), raw=True
    )
    return model_of(three(helper.make_node("ConstantOfShape", ["s"], ["x"])), [shape])


def claimed() -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[50_000, 50_000], raw_data=b"\0" * 4)
    return model_of(three(helper.make_node("Add", ["pixel_values", "w"], ["x"])), [tensor])


def loop() -> onnx.ModelProto:
    body = helper.make_graph([], "b", [], [])
    return model_of(three(helper.make_node("If", ["pixel_values"], ["x"], then_branch=body, else_branch=body)))


def padded() -> onnx.ModelProto:
    node = helper.make_node("MaxPool", ["pixel_values"], ["x"], kernel_shape=[1, 1], pads=[0, 0, 90_000, 90_000])
    return model_of(three(node))


def of_half_precision() -> onnx.ModelProto:
    """Nothing that is refused, but the weight of its classifier is not what heat maps are made of."""
    weight = onnx.numpy_helper.from_array(np.zeros((4, 256), np.float16), "w")
    return model_of([helper.make_node("Gemm", ["x", "w"], ["logits"], transB=1)], [weight])


def with_functions() -> onnx.ModelProto:
    model = model_of(three(helper.make_node("Relu", ["pixel_values"], ["x"])))
    model.functions.add(name="f", domain="")
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (external, "lies in another file"),
        (external_in_an_attribute, "lies in another file"),
        (custom, "operations of 'com.evil', which are none of ONNX"),
        (ten_gigabytes_of_two_numbers, "ConstantOfShape"),
        (claimed, "claims 10000000000 bytes and has 4"),
        (loop, "If"),
        (padded, "more than 512 pixels"),
        (with_functions, "functions"),
    ],
)
def test_what_this_package_never_writes_is_refused_before_onnx_runtime_sees_it(folder, monkeypatch, make, words):
    (folder / "onnx" / "model.onnx").write_bytes(make().SerializeToString())
    sign(folder)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("ONNX Runtime saw the file"))
    with pytest.raises(ModelFolderError, match=words) as caught:
        LesionClassifier.from_pretrained(folder, device="cpu")
    assert str(folder / "onnx" / "model.onnx") in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: data[:1000],
        lambda data: data[: len(data) // 2],
        lambda data: b"no network",
        lambda data: b"\xff" * 1000,
        lambda data: data[:200] + b"\x08\x96\x01" * 50 + data[350:],
    ],
)
def test_a_damaged_file_is_refused(folder, harm):
    path = folder / "onnx" / "model.onnx"
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(ModelFolderError, match="is not the file that config"):
        LesionClassifier.from_pretrained(folder, device="cpu")
    sign(folder)
    with pytest.raises(ModelFolderError, match=r"model\.onnx"):
        LesionClassifier.from_pretrained(folder, device="cpu")


def test_a_file_of_ten_gigabytes_is_not_read(folder):
    os.truncate(folder / "onnx" / "model.onnx", 10 * 1024**3)  # of zeros, which take no place on the disk
    with pytest.raises(ModelFolderError, match="larger than 2 GiB"):
        LesionClassifier.from_pretrained(folder, device="cpu")


def test_another_network_is_refused(folder, tmp_path):
    for size_px, codes in ((96, REFERENCE_CODES), (64, REFERENCE_CODES[:2])):
        other = untrained_folder(tmp_path / f"{size_px}-{len(codes)}", codes=codes, size_px=size_px, onnx=True)
        shutil.copyfile(other / "onnx" / "model.onnx", folder / "onnx" / "model.onnx")
        with pytest.raises(ModelFolderError, match="is not the file that config"):
            LesionClassifier.from_pretrained(folder, device="cpu")
        sign(folder)
        with pytest.raises(ModelFolderError, match=r"not the network of|cannot be used"):
            LesionClassifier.from_pretrained(folder, device="cpu")


def test_the_classifiers_weight_is_read_without_the_onnx_package(original):
    content = (original / "onnx" / "model.onnx").read_bytes()
    model = onnx.load_from_string(content)
    (expected,) = [onnx.numpy_helper.to_array(one) for one in model.graph.initializer if list(one.dims) == [4, 256]]
    np.testing.assert_array_equal(classifier_weight(read_onnx(content)), expected)


def test_a_weight_of_another_type_is_none_that_heat_maps_are_made_of():
    assert classifier_weight(read_onnx(of_half_precision().SerializeToString())) is None


def test_every_operation_that_is_let_through_is_one_of_onnx():
    assert {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""} >= OPERATIONS
