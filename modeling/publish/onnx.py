"""Write a model folder's network as ONNX, for ONNX Runtime and for a browser, and prove it equal to torch's first.

python -m modeling.publish export RUN/model
"""

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from timm.layers import Conv2dSame
from timm.layers.padding import pad_same_arg
from torch import nn

from modeling.engines import OUTPUT_NAMES
from modeling.files import CONFIG_NAME, ModelFolderError, file_sha256, write_json
from modeling.labels import NOTICE, SYNTHETIC_NOTICE
from modeling.model_folder import ONNX_NAME, config_sha256
from modeling.network import TimmModel, load_model_folder

OPSET = 18  # read by ONNX Runtime from 1.14 on, its web build included
MAX_LOGIT_DIFFERENCE = 1e-4
MAX_MAP_DIFFERENCE = 1e-3  # of a feature, by the largest one


class ExportError(ModelFolderError):
    """The model could not be exported; the message says why. A ModelFolderError, so that commands answer both alike."""


def export_onnx(folder: Path) -> str:
    """Write `onnx/model.onnx` into a model folder, and its SHA-256 into config.json.

    Input `pixel_values`, float32 (B, 3, S, S), preprocessed as the file's metadata say (keys `label_names`, `input_size`,
    `mean`, `std`, …). Outputs: `logits`, float32 (B, C), calibrated as in the folder; `features` (B, D), on which abstention
    is decided; `feature_maps` (B, K, h, w), of which heat maps are made.

    Returns:
        What was written and by how much its outputs differ from torch's, in a sentence.

    Raises:
        ExportError: If ONNX Runtime does not give torch's outputs; then nothing is written.
        ModelFolderError: If the folder cannot be opened.
    """
    folder = Path(folder)
    model, config = load_model_folder(folder)
    size_px = int(config["pretrained_cfg"]["input_size"][1])
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
        new = Path(scratch) / "model.onnx"
        _to_onnx(model, size_px, new)
        _fold_constants(new)
        content = onnx.load(new)
        _pad_in_convolutions(content.graph)
        _describe(content, config)
        onnx.checker.check_model(content)
        onnx.save(content, new)
        pixel_values = np.random.default_rng(0).normal(size=(6, 3, size_px, size_px)).astype(np.float32)
        logit_difference, map_difference = largest_differences(model, new, pixel_values)
        if not (logit_difference <= MAX_LOGIT_DIFFERENCE and map_difference <= MAX_MAP_DIFFERENCE):
            raise ExportError(
                f"ONNX and torch differ by {logit_difference:.2g} in the logits (at most {MAX_LOGIT_DIFFERENCE:g}) and by "
                f"{map_difference:.2g} in the feature maps (at most {MAX_MAP_DIFFERENCE:g}); nothing was written. This network "
                f"may use an operation that torch {torch.__version__} exports wrongly."
            )
        path = folder / ONNX_NAME
        path.parent.mkdir(exist_ok=True)
        new.replace(path)
    config["lesion"]["onnx_sha256"] = file_sha256(path)
    config["lesion"]["config_sha256"] = config_sha256(config)
    write_json(folder / CONFIG_NAME, config)
    return (
        f"{path}: opset {OPSET}, {path.stat().st_size / 1e6:.1f} MB; its logits differ from torch's by "
        f"{logit_difference:.1e} at most, its feature maps by {map_difference:.1e} of their largest value."
    )


class _AllOutputs(nn.Module):
    """The network with all that an engine gives."""

    def __init__(self, model: TimmModel) -> None:
        super().__init__()
        self.model: TimmModel = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        feature_maps = self.model.forward_features(pixel_values)
        features = self.model.forward_head(feature_maps, pre_logits=True)
        return self.model.get_classifier()(features), features, feature_maps


def _to_onnx(model: TimmModel, size_px: int, path: Path) -> None:
    network = _AllOutputs(model).eval()  # the exporter leaves all inside in the wrapper's own mode
    example = torch.zeros(2, 3, size_px, size_px)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about torch, nothing that a user could act on
        _fix_padding(network, example)
        torch.onnx.export(
            network,
            (example,),
            path,
            input_names=["pixel_values"],
            output_names=list(OUTPUT_NAMES),
            dynamic_axes={name: {0: "batch"} for name in ("pixel_values", *OUTPUT_NAMES)},
            opset_version=OPSET,
            # The same network from the newer exporter: B0 takes 30 s instead of 2, at the end of every run.
            dynamo=False,
        )


def _fold_constants(path: Path) -> None:
    """Let ONNX Runtime compute what depends on no image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operations only
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def _pad_in_convolutions(graph: Any) -> None:
    """Make padding an attribute of the convolution behind it; torch's own convolutions pad both sides alike only."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for pad in [node for node in graph.node if node.op_type == "Pad"]:
        *_, top, left, _, _, bottom, right = numpy_helper.to_array(tensors[pad.input[1]]).tolist()  # of four axes
        (convolution,) = (node for node in graph.node if pad.output[0] in node.input)
        for old in [attribute for attribute in convolution.attribute if attribute.name == "pads"]:
            convolution.attribute.remove(old)
        convolution.attribute.append(helper.make_attribute("pads", [top, left, bottom, right]))
        convolution.input[0] = pad.input[0]
        graph.node.remove(pad)
    used = {name for node in graph.node for name in node.input}
    for unused in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(unused)


def _fix_padding(network: nn.Module, example: torch.Tensor) -> None:
    """Make numbers of the padding that timm computes anew of each input of TensorFlow's networks; the size is known here."""

    def fix(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        padding = pad_same_arg(list(inputs[0].shape[-2:]), module.kernel_size, module.stride, module.dilation)
        module.forward = lambda x: module._conv_forward(nn.functional.pad(x, padding), module.weight, module.bias)

    hooks = [module.register_forward_pre_hook(fix) for module in network.modules() if isinstance(module, Conv2dSame)]
    network(example)
    for hook in hooks:
        hook.remove()


def _describe(content: Any, config: Mapping[str, Any]) -> None:
    """Write into the file what a program needs to use it without this package."""
    lesion, cfg = config["lesion"], config["pretrained_cfg"]
    notice = f"{NOTICE} {SYNTHETIC_NOTICE}" if lesion.get("synthetic") else NOTICE
    notes = {
        "label_names": config["label_names"],
        "label_descriptions": config["label_descriptions"],
        **{key: cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_mode", "crop_pct")},
        "preprocessing": "upright RGB, squashed to input_size, divided by 255, minus mean, divided by std",
        "operating_points": lesion.get("operating_points", []),
        "weights_sha256": lesion["weights_sha256"],
        "data_fingerprint": lesion.get("data_fingerprint") or "",
        "run_id": lesion.get("run_id") or "",
        "license": lesion.get("license") or "",
        "package_version": lesion.get("package_version") or "",
        "notice": notice,
    }
    # ONNX Runtime names every family of operations that it knows; the network uses the standard one alone.
    for unused in [family for family in content.opset_import if family.domain]:
        content.opset_import.remove(unused)
    for node in content.graph.node:
        node.doc_string = ""  # the exporter may note down its stack, with the paths of this machine
    for key, value in notes.items():
        content.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))


def largest_differences(model: TimmModel, path: Path, pixel_values: np.ndarray) -> tuple[float, float]:
    """Return how far an ONNX file is from the network at most, over batches of one, of five and of all.

    Returns:
        Of the logits; and of features and feature maps, by the largest value of each. NaN if an output is not finite.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = np.zeros(2)
    for size in (1, 5, len(pixel_values)):
        batch = pixel_values[:size]
        with torch.inference_mode():
            expected = [output.numpy() for output in _AllOutputs(model)(torch.from_numpy(batch))]
        found = session.run(OUTPUT_NAMES, {"pixel_values": batch})
        logits, *others = [np.abs(one - other).max() for one, other in zip(found, expected, strict=True)]
        relative = [value / max(np.abs(one).max(), 1e-12) for value, one in zip(others, expected[1:], strict=True)]
        worst = np.maximum(worst, [logits, max(relative)])  # keeps NaN
        if not all(np.isfinite(one).all() for one in found):
            worst[:] = np.nan
    return float(worst[0]), float(worst[1])
