"""Export a network as ONNX, for ONNX Runtime and for a browser, and compare its outputs with torch's."""

import copy
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from timm.layers.conv2d_same import Conv2dSame, Conv2dSameExport
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
        content = onnx.load(new)
        # ONNX Runtime lists all operator sets that it knows; the network uses the standard one only.
        for unused in [family for family in content.opset_import if family.domain]:
            content.opset_import.remove(unused)
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
        # It pads by the size of its input, its export form by that of its first input.
        for module in model.modules():
            if isinstance(module, Conv2dSame):
                module.__class__, module.pad = Conv2dSameExport, None  # type: ignore[assignment]
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
    options = onnxruntime.SessionOptions()
    # Standard operations only; it makes constant padding an attribute of the convolution behind it, which is a third faster.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


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
