"""Optimiser, schedule, weight average and loss of each recipe, put together as a Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm.optim
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn
from transformers import get_constant_schedule, get_cosine_schedule_with_warmup

from modeling.training.checkpoints import Checkpoints
from modeling.training.options import TrainOptions
from modeling.training.trainer import CheckpointInterval, EpochLog, Trainer


def make_trainer(
    options: TrainOptions,
    accelerator: Accelerator,
    model: nn.Module,
    loaders: dict[str, Any],
    codes: list[str],
    run_dir: Path,
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]],
) -> Trainer:
    """Put optimiser, schedule, weight average and loss together, by the recipe."""
    original = options.recipe == "original"
    if options.sync_batchnorm and accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(accelerator.device)
    learning_rate = float(options.learning_rate or 0)
    if original:
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=learning_rate)
    else:
        optimizer = timm.optim.create_optimizer_v2(
            model, opt="adamw", lr=learning_rate, weight_decay=options.weight_decay, fused=True
        )
    ema = ModelEmaV3(model, decay=float(options.ema_decay), use_warmup=True) if options.ema_decay else None
    steps_per_epoch = -(-len(loaders["train"]) // options.gradient_accumulation_steps)
    if original:
        scheduler = get_constant_schedule(optimizer)
    else:
        scheduler = get_cosine_schedule_with_warmup(
            optimizer,
            num_warmup_steps=round(options.warmup_epochs * steps_per_epoch),
            num_training_steps=int(options.epochs or 0) * steps_per_epoch,
        )
    labels = np.asarray(loaders["train"].dataset.labels)
    if options.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    return Trainer(
        accelerator=accelerator,
        model=prepared_model,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        ema=ema,
        train_loader=loaders["train"],
        val_loader=loaders["val"],
        class_weights=class_weights(labels, len(codes), float(options.class_weight_power or 0)),
        score=score,
        selection="accuracy" if original else "balanced_accuracy",
        epochs=int(options.epochs or 0),
        patience=int(options.epochs or 0) if original else options.patience,
        max_grad_norm=float("inf") if original else options.max_grad_norm,
        max_bad_steps=options.max_bad_steps,
        checkpoint_every=CheckpointInterval.parse(options.checkpoint_every),
        seed=options.seed,
        checkpoints=Checkpoints(run_dir / "checkpoints", accelerator),
        log=EpochLog(run_dir / "log.jsonl"),
    )


def class_weights(labels: np.ndarray, num_classes: int, power: float) -> torch.Tensor:
    """Return weights (C,) that fall with a diagnosis' frequency to the power, with mean 1 over the images (N,)."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = counts.astype(float) ** -power
    return torch.tensor(weights / (weights * counts).sum() * counts.sum(), dtype=torch.float32)
