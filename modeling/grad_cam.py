"""Grad-CAM of all diagnoses by pytorch-grad-cam, at little more than the cost of one forward pass.

The network ends in a head, so everything before it runs once, without gradients; pytorch-grad-cam then explains only the
head, whose input is repeated once per diagnosis (Selvaraju et al. 2017, arXiv:1610.02391). The weights are frozen, so
threads share nothing that is written to.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from modeling.network import TimmModel


class _Head(nn.Module):
    """What follows the feature map, with a module that pytorch-grad-cam can tap."""

    def __init__(self, model: TimmModel) -> None:
        super().__init__()
        self.tap = nn.Identity()
        self.model: TimmModel = model

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.model.forward_head(self.tap(features))


def class_evidence(model: TimmModel, features: torch.Tensor | np.ndarray, num_classes: int) -> np.ndarray:
    """Return the signed Grad-CAM of every diagnosis for the feature map (1, K, h, w) of one image.

    Returns:
        float32 (C, h, w), in units of the logit.

    Raises:
        ValueError: If the network's features are no map, as in a vision transformer.
    """
    features = torch.as_tensor(features)
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
