"""modeling/training/errors.py: an error that a user can do something about is a sentence."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from modeling.training.errors import TrainingError, explained


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("--epochs"), "--epochs"),
        (TrainingError("Lower --learning_rate"), "Lower --learning_rate"),
        (torch.OutOfMemoryError("2 GB"), "Halve --batch_size and double --gradient_accumulation_steps"),
        (RuntimeError("DataLoader worker (pid 7) is killed"), "with --num_workers 0 the training process"),
        (BrokenPipeError("pipe"), "--resume auto"),
        (RuntimeError("gloo/transport/tcp: Connection closed by peer"), "another process of this run failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "make room on it and continue with the same command"),
        (SafetensorError("Error: No space left (os error 28)"), "make room on it"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "make room on it"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied."),
    ],
)
def test_an_expected_error_is_explained(error, words):
    assert words in explained(error)


@pytest.mark.parametrize("error", [RuntimeError("shape"), KeyError("x"), TypeError("y")])
def test_an_unexpected_error_keeps_its_traceback(error):
    assert explained(error) is None
