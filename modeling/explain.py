"""Grad-CAM of all diagnoses at little more than the cost of one forward pass.

The network ends in pooling and one linear layer, so everything before it runs once, without gradients;
pytorch-grad-cam then explains only the head, whose input is repeated once per diagnosis (Selvaraju et al. 2017,
arXiv:1610.02391). The weights are frozen, so threads share nothing that is written to.

A heat map shows where a score came from, not why: it is no outline of the lesion and no proof of a correct answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from modeling.network import TimmModel
from modeling.prediction import Prediction


@dataclass(frozen=True)
class Explanation:
    """Evidence for every diagnosis, and where in the picture it lies.

    Attributes:
        codes: Diagnosis codes, length C.
        evidence: Signed Grad-CAM before clipping, float32 (C, h, w), in units of the logit: for a network that ends in
            average pooling and a linear layer, a map's mean is the logit without its bias.
        size: (height, width) of the upright image in pixels.
        prediction: The answer for the same image, from the same forward pass.
    """

    codes: tuple[str, ...]
    evidence: np.ndarray
    size: tuple[int, int]
    prediction: Prediction

    @property
    def maps(self) -> np.ndarray:
        """Heat maps of all diagnoses in the image's own geometry, float32 (C, H, W), in [0, 1] on one shared scale."""
        return np.stack([self.heat_map(code) for code in self.codes])

    def heat_map(self, code: str, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return one diagnosis' map, float32 (H, W) in [0, 1]; 1 is the strongest positive evidence for any diagnosis.

        Args:
            code: One of `codes`.
            size: (height, width) of the result; that of the image by default.
        """
        positive = np.maximum(self.evidence[self._index(code)], 0) / max(self.scale, 1e-12)
        return _resize(positive, size or self.size).clip(0, 1)

    def contrast(self, code: str, other: str, *, size: tuple[int, int] | None = None) -> np.ndarray:
        """Return where the score speaks for `code` (up to 1) rather than for `other` (down to -1), float32 (H, W)."""
        difference = self.evidence[self._index(code)] - self.evidence[self._index(other)]
        return _resize(difference / max(float(np.abs(difference).max()), 1e-12), size or self.size).clip(-1, 1)

    def has_evidence(self, code: str) -> bool:
        """True if some part of the image speaks for this diagnosis."""
        return bool((self.evidence[self._index(code)] > 0).any())

    @property
    def scale(self) -> float:
        """The strongest positive evidence for any diagnosis: what all maps are divided by."""
        return max(float(self.evidence.max()), 0.0)

    def _index(self, code: str) -> int:
        if code not in self.codes:
            raise ValueError(f"this model has no diagnosis {code!r}; it has {', '.join(self.codes)}.")
        return self.codes.index(code)


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (h, w) to (H, W) bicubically. The picture was squashed, so this is also the way back to its geometry."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC), dtype=np.float32)


class _Head(nn.Module):
    """What follows the feature map, with a module that pytorch-grad-cam can tap."""

    def __init__(self, model: TimmModel) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.model: TimmModel = model

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.forward_head(self.tap(features))


def class_evidence(model: TimmModel, features: torch.Tensor, num_classes: int) -> np.ndarray:
    """Return the signed Grad-CAM of every diagnosis for one image.

    Args:
        model: timm network with frozen weights, in evaluation mode.
        features: Its `forward_features` of one image, (1, K, h, w).
        num_classes: Number of diagnoses C.

    Returns:
        float32 (C, h, w), in units of the logit.

    Raises:
        ValueError: If the network's features are no map, as in a vision transformer.
    """
    if features.ndim != 4 or features.shape[1] != model.num_features:
        raise ValueError(f"Grad-CAM needs a feature map (1, {model.num_features}, h, w), got {tuple(features.shape)}.")
    # Imported late: it pulls in OpenCV, matplotlib and scikit-learn, which a mere prediction does not need.
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class EvidenceCAM(GradCAM):
        """Grad-CAM without the library's last steps, which clip each map and scale it to its own maximum."""

        def compute_cam_per_layer(
            self, input_tensor: torch.Tensor, targets: Sequence[ClassifierOutputTarget], eigen_smooth: bool
        ) -> list[np.ndarray]:
            return [
                self.get_cam_image(input_tensor, layer, targets, activations.numpy(), gradients.numpy(), eigen_smooth)
                for layer, activations, gradients in zip(
                    self.target_layers,
                    self.activations_and_grads.activations,
                    self.activations_and_grads.gradients,
                    strict=True,
                )
            ]

        def aggregate_multi_layers(self, cam_per_target_layer: list[np.ndarray]) -> np.ndarray:
            return cam_per_target_layer[0]

    # Outside inference mode and as a copy: an inference tensor cannot take part in a backward pass.
    repeated = features.detach().float().clone().repeat(num_classes, 1, 1, 1).requires_grad_(True)  # (C, K, h, w)
    head = _Head(model)
    with torch.enable_grad(), EvidenceCAM(model=head, target_layers=[head.tap]) as cam:
        maps = cam(input_tensor=repeated, targets=[ClassifierOutputTarget(index) for index in range(num_classes)])
    # Grad-CAM weighs by the mean gradient; times the number of positions, a map's mean is its share of the logit.
    return (maps * features.shape[2] * features.shape[3]).astype(np.float32)
