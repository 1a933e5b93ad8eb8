"""Build a stock timm network, write it into a model folder, and load it from one: the torch-only part of serving."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from modeling.calibration import Calibration
from modeling.config import CONFIG_SCHEMA, Config, PretrainedCfg
from modeling.files import ModelFolderError, file_sha256, shortened, write_json
from modeling.labels import diagnosis_of
from modeling.model_folder import CONFIG_NAME, ONNX_NAME, WEIGHTS_NAME, checked_file, config_sha256
from modeling.schema import plain


class TimmModel(Protocol):
    """What this package uses of timm's networks, which are nn.Modules."""

    pretrained_cfg: dict[str, Any]
    num_features: int
    training: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...
    def forward_features(self, x: torch.Tensor) -> torch.Tensor: ...  # → (B, K, h, w)
    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor: ...  # → (B, C), or (B, D)
    def get_classifier(self) -> nn.Linear: ...
    def state_dict(self) -> dict[str, torch.Tensor]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def buffers(self) -> Iterator[torch.Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
    def train(self, mode: bool = True) -> Self: ...
    def eval(self) -> Self: ...
    def to(self, *args: Any, **kwargs: Any) -> Self: ...


def _create(name: str, **options: Any) -> TimmModel:
    return cast(TimmModel, timm.create_model(name, **options))


def check_backbone(backbone: str) -> None:
    """Check, without allocating weights, that a timm network can be calibrated, explained and exported.

    Raises:
        ModelFolderError: Unless it gives one feature map and ends in one linear classifier with a bias.
    """
    if not timm.is_model(backbone):
        raise ModelFolderError(
            f"timm has no network named {backbone!r:.80}; timm.list_models('*efficientnet*') lists some."
        )
    try:
        with torch.device("meta"), torch.inference_mode():
            model = _create(backbone, num_classes=2).eval()
            maps = model.forward_features(torch.zeros(1, *model.pretrained_cfg["input_size"]))
            classifier = model.get_classifier()
            fits = maps.ndim == 4 and maps.shape[1] == model.num_features and isinstance(classifier, nn.Linear)
            fits = fits and classifier.bias is not None and model.forward_head(maps, pre_logits=True).ndim == 2
    except Exception:  # timm's 1,000 networks fail in as many ways; each means the same here
        fits = False
    if not fits:
        raise ModelFolderError(
            f"{backbone} cannot be used: a network must give one feature map and end in one linear classifier with a bias, as "
            "EfficientNet, MobileNet, ResNet, RegNet and ConvNeXt do."
        )


def build_model(
    backbone: str, *, num_classes: int, size_px: int, pretrained: bool, drop_rate: float = 0.0
) -> TimmModel:
    """Create a timm network with a new classifier, and set the preprocessing that it will be saved with.

    Args:
        backbone: Name of a timm convolutional network, such as "efficientnet_b0".
        num_classes: Number of diagnoses, at least 2.
        size_px: Side of the square input; images are squashed to it, so that no part of the picture is cut off.
        pretrained: Start from timm's ImageNet weights, downloaded from the Hub.
        drop_rate: Dropout before the classifier, in [0, 1).

    Raises:
        ModelFolderError: If its weights cannot be downloaded.
    """
    try:
        model = _create(backbone, num_classes=num_classes, pretrained=pretrained, drop_rate=drop_rate)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ModelFolderError(
            f"the ImageNet weights of {backbone} could not be downloaded ({type(error).__name__}: {error}). "
            "Without the Hub, start from scratch with `--pretrained false`, or from local weights with "
            "`--init_from FILE.safetensors`: timm's of this network, or an earlier model's."
        ) from error
    # timm starts this layer for 1,000 classes; with a handful its first logits are of size 6 and the first epochs are lost.
    nn.init.normal_(model.get_classifier().weight, std=0.01)
    nn.init.zeros_(model.get_classifier().bias)
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (3, size_px, size_px),
        "interpolation": "bicubic",
        # timm's own evaluation crop discards at least 23 % of the picture; a lesion may reach the edge.
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    return model


def normalise(pixels: torch.Tensor, pretrained_cfg: Mapping[str, Any]) -> torch.Tensor:
    """Normalise a batch on its device, as `Preprocessing` does.

    Args:
        pixels: uint8 RGB (B, S, S, 3), a quarter of the bytes to transfer.
        pretrained_cfg: Of the network.

    Returns:
        pixel_values (B, 3, S, S), channels last.
    """
    mean, std = (_channels(tuple(pretrained_cfg[name]), pixels.device) for name in ("mean", "std"))
    return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return a number for each channel, kept on the device: each copy to a GPU would wait for its work to end."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


@torch.no_grad()
def fold_calibration(model: TimmModel, calibration: Calibration) -> None:
    """Fold the calibration into the classifier of a timm model, in place, so that every loader is calibrated."""
    classifier = model.get_classifier()
    scale, bias = (classifier.weight.new_tensor(values) for values in (calibration.scale, calibration.bias))
    classifier.weight.mul_(scale[:, None])
    classifier.bias.mul_(scale).add_(bias)


def save_model_folder(model: TimmModel, folder: Path, *, codes: Sequence[str], lesion: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json`, as timm, transformers and `load_network` read them.

    Args:
        model: Network of `build_model`, calibration already folded into its classifier.
        folder: Created if missing; files of the same name are replaced. If it has an ONNX file, its hash is recorded.
        codes: Diagnosis codes in the order of the classifier's outputs.
        lesion: The other entries of `modeling.config.Lesion`; `schema` and the hashes are added here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors writes it for its owner alone; a server may be another user
    names, cfg = PretrainedCfg.__annotations__, model.pretrained_cfg
    config = {
        "architecture": cfg["architecture"],
        # Only here: inside model_args transformers 5 raises a TypeError for it.
        "num_classes": len(codes),
        "num_features": model.num_features,
        "label_names": list(codes),
        "label_descriptions": {code: diagnosis_of(code).name for code in codes},
        "pretrained_cfg": {
            **{key: value for key, value in cfg.items() if key in names and value is not None},
            "custom_load": False,
        },
        "lesion": {
            "schema": CONFIG_SCHEMA,
            **plain(dict(lesion)),
            "weights_sha256": file_sha256(folder / WEIGHTS_NAME),
            "onnx_sha256": file_sha256(folder / ONNX_NAME) if (folder / ONNX_NAME).exists() else None,
        },
    }
    config["lesion"]["config_sha256"] = config_sha256(config)
    write_json(folder / CONFIG_NAME, config)


def load_network(weights: Path, config: Config) -> TimmModel:
    """Load the weights of a model folder into timm's network, in evaluation mode and frozen.

    Raises:
        ModelFolderError: If timm has no such network, or the weights are damaged, do not fit, or are not those of `config`.
    """
    if not timm.is_model(config["architecture"]):
        raise ModelFolderError(
            f"{weights.parent / CONFIG_NAME}: architecture {shortened(config['architecture'])} is not a timm network of this "
            "installation; update timm."
        )
    try:
        tensors = load_file(checked_file(weights, config["lesion"]["weights_sha256"]))
        with torch.device("meta"):  # first without memory, so that no more is allocated than the file holds
            _create(config["architecture"], num_classes=config["num_classes"]).load_state_dict(tensors, assign=True)
        model = _create(config["architecture"], num_classes=config["num_classes"])
        model.load_state_dict(tensors)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelFolderError(
            f"{weights} is damaged or does not fit the network ({str(error)[:300]}); download it again."
        ) from error
    model.pretrained_cfg = {**model.pretrained_cfg, **config["pretrained_cfg"], "architecture": config["architecture"]}
    model.requires_grad_(False)
    return model.eval()


def class_evidence(model: TimmModel, feature_maps: torch.Tensor) -> np.ndarray:
    """Return the signed Grad-CAM (arXiv:1610.02391) of every diagnosis for the feature maps (1, K, h, w) of one image.

    Only the head is differentiated, and its parameters are frozen, so threads share nothing that is written to.

    Returns:
        float32 (C, h, w), in units of the logit.
    """
    # Outside inference mode and as a copy: an inference tensor cannot take part in a backward pass.
    maps = feature_maps.detach().float().clone().requires_grad_(True)
    with torch.enable_grad():
        logits = model.forward_head(maps)[0]  # (C,)
        gradients = [torch.autograd.grad(logit, maps, retain_graph=True)[0][0] for logit in logits]
    # Grad-CAM weighs by the mean gradient; times the number of positions, a map's mean is its share of the logit.
    weights = torch.stack(gradients).sum(dim=(2, 3))  # (C, K)
    return torch.einsum("ck,khw->chw", weights, maps[0].detach()).cpu().numpy()
