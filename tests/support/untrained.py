"""Model folders of untrained networks, and a rule for abstention that fits nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling.abstention import AbstentionRule
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import ONNX_NAME
from modeling.network import build_model, save_model_folder
from modeling.training.onnx_export import export_onnx


def untrained_folder(
    folder: Path,
    *,
    backbone: str = "test_efficientnet",
    codes: Sequence[str] = REFERENCE_CODES,
    size_px: int = 64,
    spread: float | None = None,
    onnx: bool = False,
    seed: int = 0,
    **lesion: Any,
) -> Path:
    """Write a model folder of random weights.

    Args:
        folder: Where to.
        backbone: Of timm; the default takes milliseconds, and has 256 features.
        codes: Its diagnoses.
        size_px: Side of its input.
        spread: Standard deviation of the classifier's weights; as new, every image gets the same answer.
        onnx: Write the ONNX file too.
        seed: Of the weights.
        **lesion: Entries of `lesion` in config.json.
    """
    torch.manual_seed(seed)
    model = build_model(backbone, num_classes=len(codes), size_px=size_px, pretrained=False)
    if spread is not None:
        torch.nn.init.normal_(model.get_classifier().weight, std=spread)
    if onnx:
        export_onnx(model.eval(), folder / ONNX_NAME)
    save_model_folder(model, folder, codes=codes, lesion=lesion)
    return folder


def random_rule(n_classes: int) -> AbstentionRule:
    """Fit a rule to noise instead of 256 features."""
    rng = np.random.default_rng(0)
    return AbstentionRule.fit(
        rng.normal(size=(40, n_classes)), rng.normal(size=(40, 256)), rng.integers(0, n_classes, 40)
    )
