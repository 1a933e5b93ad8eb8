"""User-facing messages for errors that end a run."""

import torch
from safetensors import SafetensorError

RESUME = "with the same command and --resume auto."


class TrainingError(RuntimeError):
    """Training cannot go on; what it reached so far is kept. The message says why and what to do."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C); a checkpoint has been written, unless a loader process died first."""


def explained(error: Exception) -> str | None:
    """Return the message for an error that ended a run; None for an unexpected error, which needs its traceback."""
    if isinstance(error, ValueError | TrainingError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return (
            f"the GPU's memory is full ({error}). Halve --batch_size and double --gradient_accumulation_steps: "
            "the result stays about the same."
        )
    if isinstance(error, torch.distributed.DistError) or "gloo/transport" in str(error):
        return f"another process of this run failed or was killed, so this one stops too ({error}). Continue {RESUME}"
    if loader_died(error):
        return (
            f"a process that loads images died ({type(error).__name__}: {error}). If the machine ran out of memory, lower "
            f"--num_workers; with --num_workers 0 the training process loads them itself. Continue {RESUME}"
        )
    # torch reports a file that it could not write as a RuntimeError.
    if isinstance(error, OSError | SafetensorError) or "PytorchStreamWriter" in str(error):
        return f"{error}. If the disk is full, make room on it and continue {RESUME}"
    return None


def loader_died(error: Exception) -> bool:
    """True if a process that loads images died: a broken pipe, or torch's own RuntimeError."""
    if isinstance(error, RuntimeError):
        return "DataLoader worker" in str(error)
    return isinstance(error, BrokenPipeError | ConnectionResetError | EOFError)
