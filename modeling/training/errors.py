"""What ends a run, in a sentence that says what to do next."""

import errno
import os

import torch
from safetensors import SafetensorError

from modeling.data.cache import CacheError
from modeling.training.checkpoints import CheckpointError
from modeling.training.trainer import LOADER_ERRORS, TrainingError, loader_died, process_lost

RESUME = "with the same command and --resume auto."


def explained(error: Exception) -> str | None:
    """Return what to tell the user about an error that ended a run; None for one that nobody foresaw."""
    if isinstance(error, ValueError | TrainingError | CheckpointError | CacheError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU's memory is full ({error}). Halve --batch_size and double --gradient_accumulation_steps: "
            "the result stays about the same."
        )
    if isinstance(error, LOADER_ERRORS):
        if process_lost(error):
            return f"another process of this run failed or was killed, so this one stops too ({error}). Go on {RESUME}"
        if loader_died(error):
            return (
                f"a process that loads images died ({type(error).__name__}: {error}). If the machine ran out of memory, "
                f"lower --num_workers; with --num_workers 0 the training process loads them itself. Go on {RESUME}"
            )
        return None
    if isinstance(error, OSError | SafetensorError):
        return f"{error}." + (f" Make room on the disk and go on {RESUME}" if no_room(error) else "")
    return None


def no_room(error: OSError | SafetensorError) -> bool:
    """True if an error says that the disk, the quota or the longest file is full; safetensors has the number in its text."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in numbers or any(f"(os error {number})" in str(error) for number in numbers)


def launched() -> bool:
    """True if accelerate's launcher started this process: it prints a traceback of its own when we exit with an error."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ
