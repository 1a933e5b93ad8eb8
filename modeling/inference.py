"""What a network says about every image of a split, gathered from all processes exactly once."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from modeling.calibration import Calibration
from modeling.network import normalise

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Outputs:
    """What a model said about each image of a split, sorted by the image's position in the dataset."""

    image_ids: list[str]
    labels: np.ndarray  # (N,)
    logits: np.ndarray  # (N, C) float32, as the network gives them: calibrated once the calibration is folded in
    features: np.ndarray  # (N, D) float32, penultimate: what the classifier layer sees
    raw_logits: np.ndarray | None = None  # (N, C) float32 before the calibration, where `logits` are calibrated

    def calibrated(self, calibration: Calibration) -> "Outputs":
        """Return what the network says once the calibration is folded into it."""
        return replace(self, logits=calibration.apply(self.logits), raw_logits=self.logits)


@torch.inference_mode()
def run_model(model: torch.nn.Module, loader: Any, accelerator: "Accelerator | None" = None) -> Outputs:
    """Run a timm model over a loader and gather its outputs from all processes, exactly once per image.

    Args:
        model: A timm model, bare or wrapped by accelerate.
        loader: Of a `LesionDataset`.
        accelerator: Given under several processes; the loader must then be prepared by it.

    Raises:
        ValueError: If an image came twice or is missing, or a logit is not finite.
    """
    bare: Any = accelerator.unwrap_model(model) if accelerator else model  # timm's methods are unknown to mypy
    device = accelerator.device if accelerator else next(bare.parameters()).device
    was_training = bare.training
    bare.eval()
    parts: dict[str, list[torch.Tensor]] = {"index": [], "labels": [], "logits": [], "features": []}
    for batch in loader:
        pixel_values = normalise(batch["pixels"].to(device), bare.pretrained_cfg)
        features = bare.forward_head(bare.forward_features(pixel_values), pre_logits=True)
        values = {
            "index": batch["index"].to(device),
            "labels": batch["label"].to(device),
            "logits": bare.get_classifier()(features).float(),
            "features": features.float(),
        }
        if accelerator:
            values = accelerator.gather_for_metrics(values)
        for name, value in values.items():
            parts[name].append(value.cpu())
    bare.train(was_training)
    gathered = {name: torch.cat(values).numpy() for name, values in parts.items()}
    order = np.argsort(gathered["index"], kind="stable")
    index = gathered["index"][order]
    n_images = len(loader.dataset)
    if len(np.unique(index)) != len(index) or len(index) != n_images:
        raise ValueError(
            f"wanted each of {n_images} images once, got {len(index)} predictions of {len(np.unique(index))} images"
        )
    broken = ~np.isfinite(gathered["logits"]).all(axis=1)
    if broken.any():
        raise ValueError(
            f"{broken.sum()} of {n_images} images have logits that are not finite: the weights are broken; train again with a "
            "lower learning rate, or in full precision"
        )
    image_ids = loader.dataset.image_ids
    return Outputs(
        image_ids=[image_ids[position] for position in index],
        labels=gathered["labels"][order],
        logits=gathered["logits"][order],
        features=gathered["features"][order],
    )
