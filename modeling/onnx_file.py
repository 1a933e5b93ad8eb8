"""Read what an ONNX file says, without the onnx package, and refuse what could do harm before ONNX Runtime sees it.

A stranger may have written the file. What this package exports is a plain network: operations of ONNX itself on weights
that lie in the file. Everything else that the format allows (code of others, files beside it, loops, tensors that are
larger than the file) has no use here and is refused. How much time and memory a network needs is not known before it runs.
"""

import math
from functools import cache
from typing import Any

import numpy as np

from modeling.files import ModelFolderError, shortened

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
        "dims": (1, "*int64"), "data_type": (2, "int32"), "name": (8, "string"),
        "raw_data": (9, "bytes"), "external_data": (13, "*bytes"), "data_location": (14, "int32"),
    },
}  # fmt: skip


# What the exporter writes for timm's convolutional networks, and their like. No operation that makes a large tensor of a few
# bytes at once (ConstantOfShape, Expand, Tile, Pad, Resize), runs others (If, Loop, Scan) or reads strings. A long chain of
# the others still can: a Concat that doubles its input, twenty times over, takes all memory. Nothing here bounds that.
OPERATIONS = {
    "Abs", "Add", "And", "ArgMax", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Clip", "Concat",
    "Constant", "Conv", "Cos", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Flatten", "Floor", "Gather", "Gelu",
    "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GroupNormalization", "HardSigmoid", "HardSwish",
    "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less", "Log", "LogSoftmax", "MatMul",
    "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Selu", "Shape",
    "Sigmoid", "Sign", "Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh",
    "Transpose", "Unsqueeze", "Where"
}  # fmt: skip
FLOAT = 1
ITEM_BYTES = {FLOAT: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8}  # of ONNX's types
MAX_NODES = 20_000
MAX_PADDING = 512  # of a convolution or pooling; more would make a huge tensor of a small one


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
    """Return the parts that MESSAGES names of a model that is a plain network whose weights lie in the file.

    Raises:
        ModelFolderError: If it is no whole ONNX file, or with what it holds that this package never writes.
    """
    from google.protobuf.message import DecodeError

    try:
        model = _model_class().FromString(content)
    except DecodeError as error:
        raise ModelFolderError(f"it is no whole ONNX file ({error}); download it again.") from error
    nodes, tensors = model.graph.node, list(model.graph.initializer)
    if len(nodes) > MAX_NODES:
        raise ModelFolderError(f"it has {len(nodes)} operations, more than {MAX_NODES}; refused.")
    domains = {part.domain for part in (*nodes, *model.opset_import)} - {"", "ai.onnx"}
    if domains:
        raise ModelFolderError(
            f"it uses operations of {shortened(sorted(domains)[0])}, which are none of ONNX; refused."
        )
    foreign = sorted({node.op_type for node in nodes} - OPERATIONS)
    if foreign or model.functions or model.training_info or model.graph.sparse_initializer:
        what = shortened(foreign[0]) if foreign else "functions, training or sparse tensors"
        raise ModelFolderError(f"it holds {what}, which this package never writes; refused.")
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.g or attribute.graphs or attribute.tensors or attribute.sparse_tensor or attribute.sparse_tensors:
            raise ModelFolderError("it holds a graph or tensors inside an operation; refused.")
        if attribute.name == "pads" and any(not 0 <= pad <= MAX_PADDING for pad in attribute.ints):
            raise ModelFolderError(f"it adds more than {MAX_PADDING} pixels around an image; refused.")
        if attribute.HasField("t"):
            tensors.append(attribute.t)
    for tensor in tensors:
        if tensor.external_data or tensor.data_location:
            raise ModelFolderError(f"its tensor {shortened(tensor.name)} lies in another file; refused.")
        claimed = math.prod(tensor.dims) * ITEM_BYTES.get(tensor.data_type, 0)
        if (
            any(side < 0 for side in tensor.dims)
            or claimed != len(tensor.raw_data)
            or tensor.data_type not in ITEM_BYTES
        ):
            raise ModelFolderError(
                f"its tensor {shortened(tensor.name)} claims {claimed} bytes and has {len(tensor.raw_data)}; download it again."
            )
    return model


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
    tensor = tensors.get(name)
    if tensor is None or tensor.data_type != FLOAT or len(tensor.dims) != 2:
        return None
    weight = np.frombuffer(tensor.raw_data, dtype="<f4").reshape(tuple(tensor.dims))
    is_transposed = any(attribute.name == "transB" and attribute.i for attribute in last.attribute)
    return weight if is_transposed else weight.T
