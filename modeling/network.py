"""Build a stock timm network, write it into a model folder, and load it from one: all that needs torch to serve."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from modeling.calibration import Calibration
from modeling.files import CONFIG_NAME, WEIGHTS_NAME, ModelFolderError, file_sha256, shortened, write_json
from modeling.labels import diagnosis_of
from modeling.model_folder import checked_file, config_sha256, fetch, read_config, resolve_model_folder
from modeling.schema import CONFIG_SCHEMA, PRETRAINED_CFG

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}

# An nn.Module with timm's own methods (forward_features, get_classifier, …), which no type describes.
TimmModel = Any


def build_model(
    backbone: str,
    *,
    num_classes: int,
    size_px: int,
    pretrained: bool,
    drop_rate: float = 0.0,
) -> TimmModel:
    """Create a timm network with a new classifier, and set the preprocessing that it will be saved with.

    Args:
        backbone: Name of a timm convolutional network, such as "efficientnet_b0".
        num_classes: Number of diagnoses, at least 2.
        size_px: Side of the square input; images are squashed to it, so that no part of the picture is cut off.
        pretrained: Start from timm's ImageNet weights, downloaded from the Hub.
        drop_rate: Dropout before the classifier, in [0, 1).

    Raises:
        ModelFolderError: If the backbone is unknown, or its weights cannot be had.
    """
    if not timm.is_model(backbone):
        raise ModelFolderError(
            f"timm has no network named {backbone!r}; timm.list_models('*efficientnet*') lists some."
        )
    try:
        model: TimmModel = timm.create_model(
            backbone, num_classes=num_classes, pretrained=pretrained, drop_rate=drop_rate
        )
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ModelFolderError(
            f"the ImageNet weights of {backbone} could not be downloaded ({type(error).__name__}: {error}). "
            "Without the Hub, start from scratch with `--pretrained false`, or from weights at hand with "
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
    """Return what `preprocessing.eval_transform` makes of images that have the network's size already, for a batch on its device.

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
def fold_calibration(model: torch.nn.Module, calibration: Calibration) -> None:
    """Put the calibration into the classifier of a timm model, in place, so that every loader is calibrated.

    Raises:
        ValueError: If the classifier is not one linear layer with a bias.
    """
    classifier = model.get_classifier()  # type: ignore[operator]  # timm's method
    if not isinstance(classifier, torch.nn.Linear) or classifier.bias is None:
        raise ValueError(
            f"the calibration folds into one linear layer with a bias, but the classifier is {classifier}; "
            "choose a backbone whose classifier is such a layer"
        )
    scale, bias = (classifier.weight.new_tensor(values) for values in (calibration.scale, calibration.bias))
    classifier.weight.mul_(scale[:, None])
    classifier.bias.mul_(scale).add_(bias)


def save_model_folder(model: TimmModel, folder: Path, *, codes: Sequence[str], lesion: Mapping[str, Any]) -> None:
    """Write `model.safetensors` and `config.json`, as timm, transformers and `load_model_folder` read them.

    Args:
        model: Network of `build_model`, calibration already folded into its classifier.
        folder: Created if missing; files of the same name are replaced.
        codes: Diagnosis codes in the order of the classifier's outputs.
        lesion: Operating points, abstention rule and provenance; `schema` and the two hashes are added here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    (folder / WEIGHTS_NAME).chmod(0o644)  # safetensors writes it for its owner alone; a server may be another user
    config = {
        "architecture": model.pretrained_cfg["architecture"],
        # `num_classes` stands here only: inside model_args transformers 5 raises a TypeError for it.
        "num_classes": len(codes),
        "num_features": model.num_features,
        "label_names": list(codes),
        "label_descriptions": {code: diagnosis_of(code).name for code in codes},
        "pretrained_cfg": {
            **{
                key: value for key, value in model.pretrained_cfg.items() if key in PRETRAINED_CFG and value is not None
            },
            "custom_load": False,
        },
        "lesion": {"schema": CONFIG_SCHEMA, **lesion, "weights_sha256": file_sha256(folder / WEIGHTS_NAME)},
    }
    config["lesion"]["config_sha256"] = config_sha256(config)
    write_json(folder / CONFIG_NAME, config)


def load_model_folder(folder: Path) -> tuple[TimmModel, dict[str, Any]]:
    """Open a model folder: its network as of `load_network`, and its configuration.

    Raises:
        ModelFolderError: If a file is missing, damaged, does not fit the network, or is not the one that was saved.
    """
    config = read_config(folder)
    return load_network(fetch(resolve_model_folder(folder), WEIGHTS_NAME), config), config


def load_network(weights: Path, config: Mapping[str, Any]) -> TimmModel:
    """Load the weights of a model folder into timm's network, in evaluation mode and frozen.

    Raises:
        ModelFolderError: If timm has no such network, or the weights are damaged, do not fit, or are not those of `config`.
    """
    if not timm.is_model(config["architecture"]):
        raise ModelFolderError(
            f"{weights.parent / CONFIG_NAME}: architecture {shortened(config['architecture'])} is no timm network of this "
            "installation; update timm."
        )
    architecture = {"model_name": config["architecture"], "num_classes": config["num_classes"], "pretrained": False}
    # First without memory: what is allocated after the comparison is no larger than the file that is there.
    with torch.device("meta"):
        _check_weights_fit(weights, timm.create_model(**architecture))
    checked_file(weights, config["lesion"].get("weights_sha256"))
    model: TimmModel = timm.create_model(**architecture)
    model.load_state_dict(load_file(weights))
    model.pretrained_cfg = {**model.pretrained_cfg, **config["pretrained_cfg"], "architecture": config["architecture"]}
    model.requires_grad_(False)
    return model.eval()


def _check_weights_fit(weights: Path, model: TimmModel) -> None:
    """Compare the file's header with the network, before any tensor is read."""
    wanted = {key: (list(value.shape), value.dtype) for key, value in model.state_dict().items()}
    try:
        with safe_open(weights, framework="pt") as file:
            entries = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            found = {key: (entry.get_shape(), DTYPES.get(entry.get_dtype())) for key, entry in entries.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFolderError(
            f"{weights} is no whole safetensors file ({str(error)[:300]}); download it again."
        ) from error
    missing = sorted(wanted.keys() - found.keys())
    extra = [shortened(key) for key in sorted(found.keys() - wanted.keys())[:3]]
    if missing or extra:
        raise ModelFolderError(
            f"{weights} does not fit the network: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(found.keys() - wanted.keys())} unknown [{', '.join(extra)}]."
        )
    different = [key for key in wanted if found[key] != wanted[key]]
    if different:
        first = different[0]
        raise ModelFolderError(
            f"{weights}: {len(different)} tensors have another shape or type, first {first}: {shortened(found[first])} "
            f"instead of {wanted[first]}."
        )
