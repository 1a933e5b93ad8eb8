"""Export a network as ONNX, for ONNX Runtime and for a browser, and compare its outputs with torch's."""

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import nn

from modeling.engines import OUTPUT_NAMES
from modeling.files import ModelFolderError, file_sha256
from modeling.network import TimmModel
from modeling.onnx_trial import remember

OPSET = 18  # read by ONNX Runtime from 1.14 on, its web build included
MAX_LOGIT_DIFFERENCE = 1e-4
MAX_MAP_DIFFERENCE = 1e-3  # of a feature, relative to the largest one


def export_onnx(model: TimmModel, path: Path) -> None:
    """Write a network as an ONNX file.

    Input `pixel_values`, float32 (B, 3, S, S), preprocessed as config.json says. Outputs: `logits` (B, C), calibrated if the
    model is; `features` (B, D), used by the abstention rule; `feature_maps` (B, K, h, w); and where the network ends in
    average pooling and one linear layer, `evidence` (B, C, h, w), the signed Grad-CAM in units of the logit: its mean over h
    and w is the logit without the bias. The model is left as it is; the folder of the file is created if missing.

    Raises:
        ModelFolderError: If ONNX Runtime's outputs differ from torch's; then nothing is written.
    """
    size_px = int(model.pretrained_cfg["input_size"][1])
    path.parent.mkdir(parents=True, exist_ok=True)
    pixel_values = np.random.default_rng(0).normal(size=(6, 3, size_px, size_px)).astype(np.float32)
    network = _AllOutputs(copy.deepcopy(model).eval().to("cpu"), torch.from_numpy(pixel_values))
    network.eval()  # the exporter takes the mode of the wrapper
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as scratch:
        new = Path(scratch) / "model.onnx"
        _to_onnx(network, size_px, new)
        _fold_constants(new)
        content = onnx.load(new)
        _pad_in_convolutions(content.graph)
        # ONNX Runtime lists all operator sets that it knows; the network uses the standard one only.
        for unused in [family for family in content.opset_import if family.domain]:
            content.opset_import.remove(unused)
        for node in content.graph.node:
            node.doc_string = ""  # the exporter may write its stack there, with paths of this machine
        onnx.checker.check_model(content)
        onnx.save(content, new)
        check_same_outputs(network, new, pixel_values)
        new.replace(path)
    remember(file_sha256(path))  # it has just run here


class _AllOutputs(nn.Module):
    """The network with all outputs of the ONNX file."""

    @torch.no_grad()
    def __init__(self, model: TimmModel, pixel_values: torch.Tensor) -> None:
        """Leave `evidence` out unless the features are the mean of the feature maps."""
        super().__init__()
        self.model = model
        maps = model.forward_features(pixel_values)
        features, pooled = model.forward_head(maps, pre_logits=True), maps.mean(dim=(2, 3))
        self.has_evidence = features.shape == pooled.shape and torch.allclose(features, pooled, 1e-3, 1e-4)
        self.output_names = [name for name in OUTPUT_NAMES if name != "evidence" or self.has_evidence]

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.model.forward_features(pixel_values)
        features = self.model.forward_head(maps, pre_logits=True)
        classifier = self.model.get_classifier()
        outputs = classifier(features), features, maps
        if not self.has_evidence:
            return outputs
        # Behind average pooling and one linear layer, Grad-CAM is the classifier's weights times the feature maps.
        return *outputs, nn.functional.conv2d(maps, classifier.weight[:, :, None, None])


def _to_onnx(network: _AllOutputs, size_px: int, path: Path) -> None:
    example = torch.zeros(2, 3, size_px, size_px)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about torch; users can do nothing about them
        _fix_padding(network, example)
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=["pixel_values"],
            output_names=network.output_names,
            dynamic_axes={name: {0: "batch"} for name in ("pixel_values", *network.output_names)},
            opset_version=OPSET,
            # The same network from the newer exporter: B0 takes 30 s instead of 2, at the end of every run.
            dynamo=False,
        )


def _fold_constants(path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operations only
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _pad_in_convolutions(graph: Any) -> None:
    """Make padding an attribute of the convolution behind it: a third faster. torch's convolutions pad both sides alike."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        users = [node for node in graph.node if pad.output[0] in node.input]
        if [node.op_type for node in users] != ["Conv"] or pad.input[1] not in tensors:
            continue
        *_, top, left, _, _, bottom, right = numpy_helper.to_array(tensors[pad.input[1]]).tolist()  # of four axes
        (convolution,) = users
        for old in [attribute for attribute in convolution.attribute if attribute.name == "pads"]:
            convolution.attribute.remove(old)
        convolution.attribute.append(helper.make_attribute("pads", [top, left, bottom, right]))
        convolution.input[0] = pad.input[0]
        graph.node.remove(pad)
    used = {name for node in graph.node for name in node.input}
    for unused in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(unused)


def _fix_padding(network: nn.Module, example: torch.Tensor) -> None:
    """Replace timm's dynamic "same" padding with constants; the input size is fixed."""

    def fix(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        padding = pad_same_arg(list(inputs[0].shape[-2:]), module.kernel_size, module.stride, module.dilation)
        module.forward = lambda x: module._conv_forward(nn.functional.pad(x, padding), module.weight, module.bias)

    hooks = [module.register_forward_pre_hook(fix) for module in network.modules() if isinstance(module, Conv2dSame)]
    network(example)
    for hook in hooks:
        hook.remove()


def check_same_outputs(network: _AllOutputs, path: Path, pixel_values: np.ndarray) -> None:
    """Compare an ONNX file with the network, over batches of 1, 5 and all images.

    Raises:
        ModelFolderError: If they differ, or an output is not finite.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in (1, 5, len(pixel_values)):
        batch = pixel_values[:size]
        with torch.inference_mode():
            expected = [output.numpy() for output in network(torch.from_numpy(batch))]
        found = session.run(network.output_names, {"pixel_values": batch})
        for name, one, other in zip(network.output_names, found, expected, strict=True):
            limit = MAX_LOGIT_DIFFERENCE if name == "logits" else MAX_MAP_DIFFERENCE * np.abs(other).max()
            difference = np.abs(one - other).max()
            if not difference <= limit:  # NaN, too
                raise ModelFolderError(
                    f"ONNX and torch differ by {difference:.2g} in the {name} (at most {limit:.2g}); nothing was written. This "
                    f"network may use an operation that torch {torch.__version__} exports wrongly."
                )
