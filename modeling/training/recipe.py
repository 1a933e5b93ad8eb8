"""Optimiser, schedule, weight average and loss of each recipe, put together as a Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm.optim
import torch
from accelerate import Accelerator
from timm.layers import convert_sync_batchnorm
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
    run_dir: Path,
    score: Callable[[np.ndarray, np.ndarray], dict[str, float]],
) -> Trainer:
    """Put optimiser, schedule, weight average and loss together, by the recipe."""
    original = options.recipe == "original"
    if options.sync_batchnorm and accelerator.num_processes > 1:
        # timm's own: its batch normalisation contains the activation, which torch's conversion would throw away.
        model = convert_sync_batchnorm(model)
    model = model.to(accelerator.device)
    if original:
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    else:
        optimizer = timm.optim.create_optimizer_v2(
            model, opt="adamw", lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
    ema = ModelEmaV3(model, decay=options.ema_decay, use_warmup=True) if options.ema_decay else None
    steps_per_epoch = -(-len(loaders["train"]) // options.gradient_accumulation_steps)
    if original:
        scheduler = get_constant_schedule(optimizer)
    else:
        scheduler = get_cosine_schedule_with_warmup(
            optimizer,
            num_warmup_steps=round(options.warmup_epochs * steps_per_epoch),
            num_training_steps=options.epochs * steps_per_epoch,
        )
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
        score=score,
        selection="accuracy" if original else "balanced_accuracy",
        epochs=options.epochs,
        patience=options.epochs if original else options.patience,
        max_grad_norm=float("inf") if original else options.max_grad_norm,
        max_bad_steps=options.max_bad_steps,
        checkpoint_every=CheckpointInterval.parse(options.checkpoint_every),
        seed=options.seed,
        checkpoints=Checkpoints(run_dir / "checkpoints", accelerator),
        log=EpochLog(run_dir / "log.jsonl"),
    )
