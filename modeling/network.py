"""Build a stock timm network, with the preprocessing that it is saved with."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform
from torch import nn

from modeling.files import WEIGHTS_NAME, ModelFolderError

# An nn.Module with timm's own methods (forward_features, get_classifier, …), which no type describes.
TimmModel = Any


def build_model(
    backbone: str,
    *,
    num_classes: int,
    size_px: int,
    pretrained: bool,
    init_from: str | Path | None = None,
    drop_rate: float = 0.0,
) -> TimmModel:
    """Create a timm network with a new classifier, and set the preprocessing that it will be saved with.

    Args:
        backbone: Name of a timm convolutional network, such as "efficientnet_b0".
        num_classes: Number of diagnoses, at least 2.
        size_px: Side of the square input; images are squashed to it, so that no part of the picture is cut off.
        pretrained: Start from timm's ImageNet weights, downloaded from the Hub.
        init_from: A model folder to start from instead; a classifier for the same number of diagnoses is kept too.
        drop_rate: Dropout before the classifier, in [0, 1).

    Raises:
        ModelFolderError: If the backbone is unknown, its weights cannot be had, or `init_from` does not fit.
    """
    if not timm.is_model(backbone):
        raise ModelFolderError(
            f"timm has no network named {backbone!r}; timm.list_models('*efficientnet*') lists some."
        )
    try:
        model: TimmModel = timm.create_model(
            backbone, num_classes=num_classes, pretrained=pretrained and init_from is None, drop_rate=drop_rate
        )
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ModelFolderError(
            f"the ImageNet weights of {backbone} could not be downloaded ({type(error).__name__}: {error}). "
            "Without the Hub, start from scratch with `--pretrained false` or from an earlier model with `--init_from FOLDER`."
        ) from error
    # timm starts this layer for 1,000 classes; with a handful its first logits are of size 6 and the first epochs are lost.
    nn.init.normal_(model.get_classifier().weight, std=0.01)
    nn.init.zeros_(model.get_classifier().bias)
    if init_from is not None:
        _load_all_but_classifier(model, Path(init_from) / WEIGHTS_NAME)
    model.pretrained_cfg = {
        **model.pretrained_cfg,
        "input_size": (3, size_px, size_px),
        "interpolation": "bicubic",
        # timm's own evaluation crop discards at least 23 % of the picture; a lesion may reach the edge.
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    return model


def _load_all_but_classifier(model: TimmModel, weights: Path) -> None:
    """Load every tensor whose shape fits; only the classifier may be left out."""
    if not weights.is_file():
        raise ModelFolderError(f"--init_from: no {WEIGHTS_NAME} in {weights.parent}; give a model folder.")
    tensors, wanted = load_file(weights), model.state_dict()
    fitting = {key: value for key, value in tensors.items() if key in wanted and wanted[key].shape == value.shape}
    classifier = str(model.pretrained_cfg["classifier"])
    left_out = [key for key in wanted if key not in fitting and not key.startswith(f"{classifier}.")]
    unknown = [key for key in tensors if key not in wanted]
    if left_out or unknown:
        raise ModelFolderError(
            f"--init_from: the weights in {weights.parent} are of another network: {len(left_out)} tensors missing or of "
            f"another shape, {len(unknown)} unknown, for instance {(left_out + unknown)[:3]}; name its --backbone."
        )
    model.load_state_dict(fitting, strict=False)


def eval_transform(pretrained_cfg: Mapping[str, Any]) -> Callable[[Image.Image], torch.Tensor]:
    """Return the preprocessing of evaluation and prediction: RGB image → pixel_values (3, S, S), as timm builds it."""
    return create_transform(
        input_size=tuple(pretrained_cfg["input_size"]),
        interpolation=pretrained_cfg["interpolation"],
        mean=tuple(pretrained_cfg["mean"]),
        std=tuple(pretrained_cfg["std"]),
        crop_pct=pretrained_cfg["crop_pct"],
        crop_mode=pretrained_cfg["crop_mode"],
        is_training=False,
    )


def normalise(pixels: torch.Tensor, pretrained_cfg: Mapping[str, Any]) -> torch.Tensor:
    """Return what `eval_transform` makes of images that have the network's size already, for a batch on its device.

    Args:
        pixels: uint8 RGB (B, S, S, 3), a quarter of the bytes for loader processes and the bus to carry.
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
def fold_temperature(model: torch.nn.Module, temperature: float) -> None:
    """Divide the classifier of a timm model by the temperature, in place, so that every loader is calibrated.

    Raises:
        ValueError: If the classifier is not one linear layer with a bias.
    """
    classifier = model.get_classifier()  # type: ignore[operator]  # timm's method
    if not isinstance(classifier, torch.nn.Linear) or classifier.bias is None:
        raise ValueError(
            f"the temperature folds into one linear layer with a bias, but the classifier is {classifier}; "
            "choose a backbone whose classifier is such a layer"
        )
    classifier.weight.div_(temperature)
    classifier.bias.div_(temperature)
