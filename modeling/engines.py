"""One forward pass, two engines with the same answers: ONNX Runtime on a CPU, torch on a GPU or where it is asked for.

Of the two only the one that computes is imported. ONNX Runtime answers one image four times faster than torch on two
cores and takes a fortieth of the room; torch runs on GPUs, and explains networks that do not end in one linear layer.
Both are safe under threads. Of a list, `batch_size` images go through the network together, and `lanes` batches at once.
"""

import importlib.util
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modeling.calibration import softmax
from modeling.files import CONFIG_NAME, WEIGHTS_NAME, ModelFolderError, shortened
from modeling.model_folder import ONNX_NAME, ModelFolder, checked_file, fetch
from modeling.runtime import memory_is_kept, own_cores

EngineName = Literal["onnx", "torch"]
OUTPUT_NAMES = ("logits", "features", "feature_maps")  # of onnx/model.onnx
BATCH_SIZE = 64
# With torch on a CPU, memory for the feature maps of more images costs more than the larger batch saves (B0 at 224 px on two
# cores: 70 images a second in eights, 56 in 32s), unless the process keeps its memory (72 in eights, 89 in 64s).
CPU_BATCH_SIZE = 8
INSTALL_TORCH = 'pip install "skin-lesion-classifier[torch]" (in a clone: pip install -e ".[torch]")'


class NotInstalledError(ModelFolderError):
    """What is asked of a network needs torch, which is not installed here."""


@dataclass(frozen=True)
class ModelOutputs:
    """What a network says of N images."""

    feature_maps: Any  # (N, K, h, w), before pooling; an array, or with the torch engine a tensor on its device
    features: np.ndarray  # penultimate, float32 (N, D); abstention is decided on them
    logits: np.ndarray  # calibrated, float32 (N, C)

    @property
    def probs(self) -> np.ndarray:
        """Calibrated probabilities, float64 (N, C)."""
        return softmax(self.logits)


def open_engine(
    source: ModelFolder, config: Mapping[str, Any], *, device: str | None, engine: Literal["auto", "onnx", "torch"]
) -> "Engine":
    """Load the network of a model folder; of a Hub repository, download the file that this engine needs.

    Args:
        source: Where the model lies.
        config: Its config.json, checked.
        device: Where to compute, as torch names it; None for the first GPU if there is one, else the CPU.
        engine: "auto" for ONNX Runtime on a CPU and torch on a GPU, or where the model has no ONNX file.

    Raises:
        ModelFolderError: If the file cannot be had or trusted, or the engine is not installed.
    """
    if engine not in ("auto", "onnx", "torch"):
        raise ModelFolderError(f"engine must be auto, onnx or torch, got {engine!r}.")
    has_onnx = config["lesion"].get("onnx_sha256") is not None
    if engine == "onnx" and not has_onnx:
        raise ModelFolderError(
            f"{source.model_id} has no {ONNX_NAME}; make it with `python -m modeling.publish export FOLDER`, "
            "or leave engine='onnx' out."
        )
    if engine == "onnx" and device not in (None, "cpu"):
        raise ModelFolderError(f"the ONNX engine computes on the CPU, not on {device}; leave engine='onnx' out.")
    device = device or ("cuda" if engine != "onnx" and gpu_is_there() else "cpu")
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

    One image alone gets all cores. Of a list, each core takes one image at a time: no core waits for another at the end
    of a layer, and batches gain nothing (CPU time of B0 for an image: 12.1 ms alone, 12.8 in eights, 13.5 in sixteens).
    """

    name: EngineName = "onnx"
    device = "cpu"
    batch_size = 1

    def __init__(self, source: ModelFolder, config: Mapping[str, Any]) -> None:
        from modeling.onnx_file import classifier_weight, read_onnx

        self._source, self._config = source, config
        self._lock = threading.Lock()
        self.lanes = own_cores()
        self.path = fetch(source, ONNX_NAME)
        content = self._read()
        try:
            model = read_onnx(content)
            self.classifier_weight = classifier_weight(model)  # (C, K), or None
            self._session = _open_session(content, own_cores())
        except ModelFolderError as error:
            raise ModelFolderError(f"{self.path}: {error}") from None
        size = config["pretrained_cfg"]["input_size"][1]
        shapes = [(one.name, one.type, one.shape[1:]) for one in self._session.get_inputs()]
        if shapes != [("pixel_values", "tensor(float)", [3, size, size])] or not {*OUTPUT_NAMES} <= {
            one.name for one in self._session.get_outputs()
        }:
            raise ModelFolderError(
                f"{self.path} takes {shortened(shapes)} and is not the network of {CONFIG_NAME}; "
                "download the folder again."
            )

    def _read(self) -> bytes:
        return checked_file(self.path, self._config["lesion"]["onnx_sha256"]).read_bytes()

    @cached_property
    def _lane_session(self) -> Any:
        """The network on one core, for as many threads as there are lanes."""
        with self._lock:
            return self.__dict__.get("_lane_session") or _open_session(self._read(), 1)

    def forward(self, pixel_values: np.ndarray, *, in_lane: bool = False) -> ModelOutputs:
        """Run the network once on pixel_values, float32 (B, 3, S, S); `in_lane` if other lanes have the other cores."""
        session = self._lane_session if in_lane and self.lanes > 1 else self._session
        logits, features, feature_maps = session.run(OUTPUT_NAMES, {"pixel_values": np.ascontiguousarray(pixel_values)})
        return ModelOutputs(feature_maps, features, logits)

    def evidence(self, outputs: ModelOutputs) -> tuple[np.ndarray, EngineName]:
        """Return the signed Grad-CAM of every diagnosis for one image, float32 (C, h, w) in units of the logit, and its engine.

        Behind average pooling and one linear layer, the gradient of a logit is the same at every position of a channel:
        the classifier's weight by the number of positions. So Grad-CAM is the classifier's row times the feature map. For
        other networks torch computes it.

        Raises:
            ModelFolderError: If it needs torch, and that is not installed.
        """
        weight, maps, features = self.classifier_weight, outputs.feature_maps, outputs.features
        pooled = maps.mean(axis=(2, 3)) if maps.ndim == 4 else None
        if (
            weight is None
            or pooled is None
            or pooled.shape != features.shape
            or not np.allclose(features, pooled, 1e-3, 1e-4)
        ):
            return self._torch.evidence(outputs)
        return np.tensordot(weight, maps[0], axes=1), self.name  # (C, K) · (K, h, w)

    @property
    def network(self) -> Any:
        """The network in timm, frozen, for what no engine offers; loaded on first use."""
        return self._torch.network

    @cached_property
    def _torch(self) -> "TorchEngine":
        with self._lock:
            return self.__dict__.get("_torch") or open_torch(self._source, self._config, "cpu")


def _open_session(content: bytes, n_threads: int) -> Any:
    """Give a checked file to ONNX Runtime.

    Raises:
        ModelFolderError: If it refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Named, so that ONNX Runtime keeps to the cores of this process and pins its threads to none of them.
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 4  # what it would print about a stranger's file is in the error
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, which derive from Exception alone
        raise ModelFolderError(
            f"ONNX Runtime cannot read it ({str(error)[:300]}); download the folder again, or update onnxruntime."
        ) from error


def open_torch(source: ModelFolder, config: Mapping[str, Any], device: str) -> "TorchEngine":
    """Load `model.safetensors` into timm's network.

    Raises:
        ModelFolderError: If torch is not installed, or the weights cannot be had or trusted.
    """
    with _installed():
        from modeling.network import load_network
    return TorchEngine(load_network(fetch(source, WEIGHTS_NAME), config), device)


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise NotInstalledError(
            f"this network or what is asked of it needs {error.name}, which is not installed: {INSTALL_TORCH}"
        ) from error


class TorchEngine:
    """A timm network, in evaluation mode and frozen."""

    name: EngineName = "torch"
    lanes = 1

    def __init__(self, network: Any, device: str) -> None:
        import torch

        self._torch = torch
        self.device = device
        self.batch_size = CPU_BATCH_SIZE if device == "cpu" and not memory_is_kept() else BATCH_SIZE
        # The layout that convolutions are fastest in (B0 on CPU: 1.7 times in batches of 32, nothing alone).
        self.network = network.to(device, memory_format=torch.channels_last)

    def forward(self, pixel_values: np.ndarray, *, in_lane: bool = False) -> ModelOutputs:
        with self._torch.inference_mode():
            values = self._torch.from_numpy(np.ascontiguousarray(pixel_values)).to(self.device)
            feature_maps = self.network.forward_features(values)  # (B, K, h, w)
            features = self.network.forward_head(feature_maps, pre_logits=True)  # (B, D)
            logits = self.network.get_classifier()(features)  # (B, C)
            return ModelOutputs(feature_maps, features.float().cpu().numpy(), logits.float().cpu().numpy())

    def evidence(self, outputs: ModelOutputs) -> tuple[np.ndarray, EngineName]:
        from modeling.grad_cam import class_evidence

        with _installed():
            return class_evidence(self.network, outputs.feature_maps, outputs.logits.shape[1]), self.name


Engine = OnnxEngine | TorchEngine
