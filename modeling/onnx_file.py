"""Read what an ONNX file says, without the onnx package, and refuse what could do harm before ONNX Runtime sees it.

A stranger may have written the file. What this package exports is a plain network: operations of ONNX itself on weights
that lie in the file. Everything else that the format allows (code of others, files beside it, loops, tensors that are
larger than the file) has no use here and is refused.
"""

from functools import cache
from typing import Any

import numpy as np

from modeling.files import ModelFolderError

# The part of the format that is read (github.com/onnx/onnx, onnx.proto): message → field → (number, type).
MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Model": {"graph": (7, "Graph"), "opset_import": (8, "*Opset"), "training_info": (20, "*bytes"), "functions": (25, "*bytes")},
    "Opset": {"domain": (1, "string"), "version": (2, "int64")},
    "Graph": {"node": (1, "*Node"), "initializer": (5, "*Tensor"), "sparse_initializer": (15, "*bytes")},
    "Node": {
        "input": (1, "*string"), "output": (2, "*string"), "op_type": (4, "string"),
        "attribute": (5, "*Attribute"), "domain": (7, "string"),
    },
    "Attribute": {
        "name": (1, "string"), "i": (3, "int64"), "t": (5, "Tensor"), "g": (6, "bytes"), "ints": (8, "*int64"),
        "tensors": (10, "*bytes"), "graphs": (11, "*bytes"), "sparse_tensor": (22, "bytes"), "sparse_tensors": (23, "*bytes"),
    },
    "Tensor": {
        "dims": (1, "*int64"), "data_type": (2, "int32"), "float_data": (4, "*float"), "name": (8, "string"),
        "raw_data": (9, "bytes"), "external_data": (13, "*bytes"), "data_location": (14, "int32"),
    },
}  # fmt: skip


@cache
def _model_class() -> Any:
    """Make the class that reads a model; protobuf comes with ONNX Runtime."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    package = "modeling.onnx"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            scalar = getattr(field_type, f"TYPE_{kind.lstrip('*').upper()}", None)
            message.field.add(
                name=field,
                number=number,
                label=field_type.LABEL_REPEATED if kind.startswith("*") else field_type.LABEL_OPTIONAL,
                type=field_type.TYPE_MESSAGE if scalar is None else scalar,
                type_name=f".{package}.{kind.lstrip('*')}" if scalar is None else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.Model"))


def read_onnx(content: bytes) -> Any:
    """Return the parts of an ONNX model that MESSAGES names.

    Raises:
        ModelFolderError: If it is no whole ONNX file.
    """
    from google.protobuf.message import DecodeError

    try:
        return _model_class().FromString(content)
    except DecodeError as error:
        raise ModelFolderError(f"it is no whole ONNX file ({error}); download it again.") from error


def classifier_weight(model: Any) -> np.ndarray | None:
    """Return the weights (C, K) of the linear layer that gives the logits, float32; None if the network ends otherwise."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    last = made_by.get("logits")
    if last is None or last.op_type != "Gemm" or len(last.input) < 2:
        return None
    name = last.input[1]
    for _ in range(10):  # the exporter writes equal tensors once, and copies for the others
        if name in made_by and made_by[name].op_type == "Identity":
            name = made_by[name].input[0]
    if name not in tensors or len(tensors[name].dims) != 2:
        return None
    weight = np.frombuffer(tensors[name].raw_data, dtype="<f4").reshape(tuple(tensors[name].dims))
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in last.attribute)
    return weight if is_transposed else weight.T
