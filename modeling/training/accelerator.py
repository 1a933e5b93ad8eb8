"""Devices, processes and precision of a run."""

import ctypes
import os
import signal
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

from modeling.runtime import own_cores
from modeling.training.options import TrainOptions


def end_with_launcher() -> None:
    """Turn the end of accelerate's launcher, which passes no signal on, into a SIGTERM to this process.

    Otherwise a killed launcher would leave this process behind, holding the lock of the run folder.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":  # the launcher started this process
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def make_accelerator(options: TrainOptions) -> Accelerator:
    """Set up devices, processes, precision and trackers."""
    precision: str | None = options.mixed_precision
    if precision == "auto":
        # None leaves the choice to `accelerate config` and `accelerate launch --mixed_precision`.
        # Older GPUs only emulate bf16, which is slower than full precision.
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else None
    # Every batch has the same shape: the GPU's library tries its kernels once and keeps the fastest.
    torch.backends.cudnn.benchmark = True
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with=options.report_to or None,
        project_dir=options.output_dir,
        # Without the seedable sampler a resumed epoch would see other batches.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=options.seed, non_blocking=True),
    )
    if accelerator.device.type == "cpu":
        # accelerate's launcher gives each process a single thread by default.
        torch.set_num_threads(own_cores())
    return accelerator
