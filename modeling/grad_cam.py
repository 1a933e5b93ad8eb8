"""Grad-CAM of all diagnoses by torch, at little more than the cost of one forward pass (arXiv:1610.02391)."""

import numpy as np
import torch

from modeling.network import TimmModel


def class_evidence(model: TimmModel, feature_maps: torch.Tensor) -> np.ndarray:
    """Return the signed Grad-CAM of every diagnosis for the feature maps (1, K, h, w) of one image.

    The network ends in a head, so only the head is differentiated. Its parameters are frozen, so threads share nothing
    that is written to.

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
