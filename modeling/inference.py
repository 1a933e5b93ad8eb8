"""Network outputs for many images: `run_images` for all evaluation, `run_model` for validation during training."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from modeling.images import ImageError, ImageInput

if TYPE_CHECKING:
    from accelerate import Accelerator

    from modeling.calibration import Calibration
    from modeling.classifier import LesionClassifier
    from modeling.network import TimmModel


@dataclass(frozen=True, eq=False)
class Outputs:
    """Network outputs for N images of C diagnoses."""

    image_ids: list[str]
    labels: np.ndarray  # (N,); -1 for a diagnosis that the model does not have
    logits: np.ndarray  # float32 (N, C); calibrated if they come from a model folder
    features: np.ndarray  # float32 (N, D), the input of the classifier layer

    def __post_init__(self) -> None:
        broken = int((~np.isfinite(self.logits).all(axis=1)).sum())
        if broken:
            raise ValueError(
                f"{broken} of {len(self.labels)} images have logits that are not finite: the weights are broken; train again "
                "with a lower learning rate, or in full precision"
            )

    def calibrated(self, calibration: "Calibration") -> "Outputs":
        """Return the outputs that the network gives once the calibration is folded into it."""
        return replace(self, logits=calibration.apply(self.logits))


def run_images(
    classifier: "LesionClassifier",
    images: Iterable[ImageInput | Callable[[], ImageInput]],
    *,
    image_ids: Sequence[str],
    labels: Sequence[int] | np.ndarray,
) -> Outputs:
    """Run a model folder's engine over N images, or functions that return one, preprocessed as for prediction.

    Raises:
        ImageError: If an image cannot be read, with its id.
        ValueError: If a logit is not finite.
    """

    def run(pixel_values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        found = classifier.engine.forward(pixel_values, single_thread=True)
        return list(zip(found.logits, found.features, strict=True))

    logits, features = [], []
    for image_id, result in zip(image_ids, classifier.map_batches(images, run), strict=True):
        if not isinstance(result, tuple):
            raise ImageError(f"{image_id}: {result}")
        logits.append(result[0])
        features.append(result[1])
    return Outputs(list(image_ids), np.asarray(labels, dtype=np.int64), np.stack(logits), np.stack(features))


def run_model(model: "TimmModel", loader: Any, accelerator: "Accelerator") -> Outputs:
    """Run a timm model over a loader and gather its outputs from all processes, each image once; leave it in eval mode.

    The loader is of a `LesionDataset`, in order, prepared by the accelerator.

    Raises:
        ValueError: If a logit is not finite.
    """
    import torch  # imported late: evaluation with ONNX Runtime needs no torch

    from modeling.network import normalise

    model.eval()
    parts: dict[str, list[torch.Tensor]] = {"labels": [], "logits": [], "features": []}
    with torch.inference_mode():
        for batch in loader:
            pixel_values = normalise(batch["pixels"], model.pretrained_cfg)
            features = model.forward_head(model.forward_features(pixel_values), pre_logits=True)
            values = {
                "labels": batch["label"],
                "logits": model.get_classifier()(features).float(),
                "features": features.float(),
            }
            for name, value in accelerator.gather_for_metrics(values).items():
                parts[name].append(value.cpu())
    gathered = {name: torch.cat(tensors).numpy() for name, tensors in parts.items()}
    return Outputs(image_ids=list(loader.dataset.image_ids), **gathered)
