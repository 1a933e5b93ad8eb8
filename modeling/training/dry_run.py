"""Seconds before hours: whatever the last step will need is tried on a few images before the first.

A copy of the network takes one training batch, is calibrated, written as a model folder, read back and asked to explain
an image. What cannot work (a backbone without feature maps, a size that it refuses) is then known before the training.
"""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from modeling.calibration import softmax
from modeling.classifier import LesionClassifier
from modeling.data.dataset import LesionDataset
from modeling.inference import run_model
from modeling.network import TimmModel, normalise
from modeling.training.calibrate_and_save import write_model_folder
from modeling.training.loaders import lesion_dataset
from modeling.training.options import TrainOptions
from modeling.training.trainer import TrainingError

TOLERANCE = 0.02  # of a probability; a GPU may compute the same in other kernels


def rehearse(
    run_dir: Path,
    rows: Dataset,
    *,
    options: TrainOptions,
    accelerator: Accelerator,
    model: TimmModel,
    config: dict[str, Any],
) -> None:
    """Do everything once on two images or more, on a copy of the network, in a folder that is removed again.

    Raises:
        TrainingError: If a step fails; names the step.
        torch.OutOfMemoryError: If not even a few images fit.
    """
    model = copy.deepcopy(model).to(accelerator.device)
    folder = run_dir / ".dry_run"
    step = "a training step"
    try:
        compiled = options.compile and options.dry_run  # minutes: no second time before the training itself
        take_step(
            torch.compile(model) if compiled else model,
            lesion_dataset(rows, options, model.pretrained_cfg, training=True),
            accelerator,
        )
        step = "the scoring of val"
        images = lesion_dataset(rows, options, model.pretrained_cfg, training=False)
        val = run_model(model, DataLoader(images, len(rows)))
        step = "calibration, the ONNX export or the writing of the model folder"
        calibration = write_model_folder(folder, model=model, val=val, options=options, config=config)
        step = "the reading of the model folder"
        answer = LesionClassifier.from_pretrained(folder).explain(rows[0]["image"])
        written, read = softmax(calibration.apply(val.logits))[0], list(answer.prediction.probabilities.values())
        if not np.allclose(read, written, atol=TOLERANCE):
            raise ValueError(f"the network answered {written.round(3)} before and {np.round(read, 3)} after")
        step = "the heat maps"
        _ = answer.maps
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of torch, timm or ourselves: whatever it is, the training would have been in vain
        raise TrainingError(
            f"nothing was trained, since on {len(rows)} images {step} failed already ({type(error).__name__}: "
            f"{str(error)[:500]}). Does it fit --backbone {options.backbone} and --image_size {options.image_size}?"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def take_step(model: TimmModel, images: LesionDataset, accelerator: Accelerator) -> None:
    """Take one batch through the network, the loss and backwards.

    Raises:
        ValueError: If the loss is not finite.
    """
    batch = next(iter(DataLoader(images, len(images))))
    pixels, labels = batch["pixels"].to(accelerator.device), batch["label"].to(accelerator.device)
    model.train()
    with accelerator.autocast():
        logits = model(normalise(pixels, accelerator.unwrap_model(model, keep_torch_compile=False).pretrained_cfg))
    loss = nn.functional.cross_entropy(logits.float(), labels)
    loss.backward()
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {float(loss)}")
