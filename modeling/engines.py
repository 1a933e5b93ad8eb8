"""One forward pass, two engines with the same answers: ONNX Runtime on a CPU, torch on a GPU or on request.

Only the engine that computes is imported. ONNX Runtime classifies one image four times faster than torch on two cores and
needs 1/40 of the disk space; torch runs on GPUs, and explains networks that do not end in one linear layer. Both are
thread-safe. Of a list, `batch_size` images go through the network together.
"""

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modeling.calibration import softmax
from modeling.config import Config
from modeling.files import ModelFolderError
from modeling.model_folder import ONNX_NAME, WEIGHTS_NAME, ModelFolder, checked_file, fetch
from modeling.onnx_trial import open_session, run_in_child
from modeling.runtime import own_cores

# Of onnx/model.onnx. Only networks that end in average pooling and one linear layer have the last one.
OUTPUT_NAMES = ("logits", "features", "feature_maps", "evidence")
BATCH_SIZE = 64
# With torch on a CPU, the feature maps of more images need much memory; batches of 32 are 13 % faster (B0 at 224 px).
CPU_BATCH_SIZE = 8


class NotInstalledError(ModelFolderError):
    """torch is required for this operation but is not installed."""


@dataclass(frozen=True)
class ModelOutputs:
    """Network outputs for N images."""

    logits: np.ndarray  # calibrated, float32 (N, C)
    features: np.ndarray  # penultimate, float32 (N, D); abstention is decided on them
    evidence: np.ndarray | None = None  # signed Grad-CAM of every diagnosis in units of the logit, float32 (N, C, h, w)

    @property
    def probs(self) -> np.ndarray:
        """Calibrated probabilities, float64 (N, C)."""
        return softmax(self.logits)


def open_engine(
    source: ModelFolder, config: Config, *, device: str | None, engine: Literal["auto", "onnx", "torch"]
) -> "Engine":
    """Load the network of a model folder, downloading only the file that this engine needs from a Hub repository.

    The device is as torch names it, None for the first GPU if there is one, else the CPU. The engine "auto" is ONNX Runtime
    on a CPU, and torch on a GPU or where the model has no ONNX file.

    Raises:
        ModelFolderError: If the file is missing or not the one that config.json describes, or the engine is not installed.
    """
    if engine not in ("auto", "onnx", "torch"):
        raise ModelFolderError(f"engine must be auto, onnx or torch, got {engine!r}.")
    has_onnx = config["lesion"].get("onnx_sha256") is not None
    if engine == "onnx" and not has_onnx:
        raise ModelFolderError(f"{source.model_id} has no {ONNX_NAME}; leave engine='onnx' out.")
    if engine == "onnx" and device not in (None, "cpu"):
        raise ModelFolderError(f"the ONNX engine computes on the CPU, not on {device}; leave engine='onnx' out.")
    if device is None:  # of several processes on this machine, each takes its own GPU
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if engine != "onnx" and gpu_is_there() else "cpu"
    if has_onnx and (engine == "onnx" or (engine == "auto" and device == "cpu")):
        return OnnxEngine(source, config)
    return open_torch(source, config, device)


def gpu_is_there() -> bool:
    """True if torch is installed and finds a GPU; torch is not imported where the machine shows no driver."""
    if "torch" not in sys.modules and not (
        importlib.util.find_spec("torch") and (shutil.which("nvidia-smi") or Path("/dev/kfd").exists())
    ):
        return False
    import torch

    return torch.cuda.is_available()


class OnnxEngine:
    """`onnx/model.onnx` in ONNX Runtime.

    A single image is computed on all cores. Of a list, each core takes one image at a time: no core waits for another at
    the end of a layer, and batches gain nothing (CPU time of B0 for an image: 12.1 ms alone, 12.8 in eights, 13.5 in
    sixteens).
    """

    name = "onnx"
    batch_size = 1

    def __init__(self, source: ModelFolder, config: Config) -> None:
        self._source, self._config = source, config
        sha256, size_px = config["lesion"]["onnx_sha256"], config["pretrained_cfg"]["input_size"][1]
        self.path = checked_file(fetch(source, ONNX_NAME), sha256)
        if failure := run_in_child(self.path, sha256 or "", size_px):
            raise ModelFolderError(
                f"{self.path}: ONNX Runtime cannot load and run this network within bounds of time and memory "
                f"({failure}); download the folder again, or update onnxruntime."
            )
        self._session = open_session(self.path, own_cores())
        self._has_evidence = "evidence" in {one.name for one in self._session.get_outputs()}

    def forward(self, pixel_values: np.ndarray, *, single_thread: bool = False, evidence: bool = False) -> ModelOutputs:
        """Run the network once on pixel_values, float32 (B, 3, S, S), for the heat maps too if `evidence` is requested.

        `single_thread` uses one core, because other threads compute at the same time.

        Raises:
            NotInstalledError: If the heat maps of this network need torch, and that is not installed.
        """
        session = self._single_thread_session if single_thread else self._session
        names = ["logits", "features", *(["evidence"] if evidence and self._has_evidence else [])]
        try:
            outputs = ModelOutputs(*session.run(names, {"pixel_values": np.ascontiguousarray(pixel_values)}))
        except Exception as error:  # ONNX Runtime's own classes, which derive from Exception alone
            raise ModelFolderError(f"{self.path}: ONNX Runtime cannot run it ({str(error)[:300]}).") from error
        if evidence and not self._has_evidence:
            return replace(outputs, evidence=self._torch.forward(pixel_values, evidence=True).evidence)
        return outputs

    # Two threads may both compute one of these at first; then one result is kept.
    @cached_property
    def _single_thread_session(self) -> Any:
        return open_session(self.path, 1)

    @cached_property
    def _torch(self) -> "TorchEngine":
        return open_torch(self._source, self._config, "cpu")


def open_torch(source: ModelFolder, config: Config, device: str) -> "TorchEngine":
    """Load `model.safetensors` into timm's network.

    Raises:
        ModelFolderError: If torch is not installed, or the weights are missing, damaged or not those of `config`.
    """
    try:
        from modeling.network import load_network
    except ImportError as error:
        raise NotInstalledError(
            f'this operation needs {error.name}, which is not installed: pip install -e ".[torch]" in a clone.'
        ) from error
    return TorchEngine(load_network(fetch(source, WEIGHTS_NAME), config), device)


class TorchEngine:
    """A timm network, in evaluation mode and frozen."""

    name = "torch"

    def __init__(self, network: Any, device: str) -> None:
        import torch

        self._torch = torch
        self.device = device
        self.batch_size = CPU_BATCH_SIZE if device == "cpu" else BATCH_SIZE
        # The layout that convolutions are fastest in (B0 on CPU: 1.7 times in batches of 32, nothing alone).
        self.network = network.to(device, memory_format=torch.channels_last)

    def forward(self, pixel_values: np.ndarray, *, single_thread: bool = False, evidence: bool = False) -> ModelOutputs:
        """Run the network once; see `OnnxEngine.forward`. `single_thread` has no effect."""
        from modeling.network import class_evidence

        with self._torch.inference_mode():
            values = self._torch.from_numpy(np.ascontiguousarray(pixel_values)).to(self.device)
            maps = self.network.forward_features(values)  # (B, K, h, w)
            features = self.network.forward_head(maps, pre_logits=True)  # (B, D)
            logits = self.network.get_classifier()(features)  # (B, C)
        heat = np.stack([class_evidence(self.network, one[None]) for one in maps]) if evidence else None
        return ModelOutputs(logits.float().cpu().numpy(), features.float().cpu().numpy(), heat)


Engine = OnnxEngine | TorchEngine
