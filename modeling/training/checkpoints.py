"""Checkpoints that are whole or not there.

A checkpoint is written beside its final name, flushed to the disk, sealed with a manifest of sizes and hashes, and only
then renamed. One that does not agree with its manifest is passed over with a warning. The last two are kept, each with the
best weights up to its step inside: so whichever of them a run goes on from, its best weights are those of its own past.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger

from modeling.files import file_sha256, flush, write_json

logger = get_logger(__name__)

MANIFEST = "manifest.json"
KEPT = 2


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; what was there before is untouched."""


def write_whole(folder: Path, write: Callable[[Path], None], accelerator: Accelerator) -> None:
    """Let `write` fill a folder under a temporary name, then put it in its place in one step.

    All processes call this; `write` runs on every one of them with the same temporary folder.

    Raises:
        CheckpointError: On all processes, if one of them could not write.
    """
    temporary = folder.with_name(f".{folder.name}.partial")

    def put_in_place() -> None:
        seal(temporary)
        if folder.exists():  # a step that was taken again; a kill from here on leaves the checkpoint before it
            shutil.rmtree(folder)
        temporary.rename(folder)
        flush(folder.parent)

    def start() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)

    try:
        _together(accelerator, start, folder, main_only=True)
        _together(accelerator, lambda: write(temporary), folder)
        _together(accelerator, put_in_place, folder, main_only=True)
    except CheckpointError:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _together(accelerator: Accelerator, action: Callable[[], None], folder: Path, *, main_only: bool = False) -> None:
    """Do something on all processes (or the first) and fail on all of them if it failed on one: none is left waiting."""
    error: Exception | None = None
    if accelerator.is_main_process or not main_only:
        try:
            action()
        except Exception as caught:  # whatever it is, the others wait for the vote below, which raises it on all
            error = caught
    if any_process(accelerator, error is not None):
        raise CheckpointError(f"{folder} could not be written: {error or 'another process failed'}") from error


def any_process(accelerator: Accelerator, here: bool) -> bool:
    """True on all processes if it is true on one of them; all of them must ask."""
    if accelerator.num_processes == 1:
        return here
    return bool(accelerator.gather(torch.tensor([here], device=accelerator.device)).any())


def seal(folder: Path) -> None:
    """Write the manifest of a finished folder and flush every file of it to the disk."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    write_json(
        folder / MANIFEST,
        {file.relative_to(folder).as_posix(): [file.stat().st_size, file_sha256(file)] for file in files},
    )
    for path in [*files, folder / MANIFEST, folder]:
        flush(path)


def problem_with(folder: Path) -> str | None:
    """Return why a checkpoint cannot be trusted, in words, or None if it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, (size, sha256) in manifest.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size or file_sha256(file) != sha256:
                return f"{name} is damaged"
    except FileNotFoundError:
        return "it was never finished"
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        return f"its manifest cannot be read ({error})"
    return None


class Checkpoints:
    """The checkpoints of one run, `step-NNNNNNNN` each."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        self.accelerator = accelerator

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write the checkpoint of an optimiser step; delete those before the last two, and what kills left behind."""
        folder = self.folder / f"step-{step:08d}"
        write_whole(folder, write, self.accelerator)
        if self.accelerator.is_main_process:
            # One of a later step is damaged: the run went on from before it.
            kept = [path for path in self._all() if path.name <= folder.name][-KEPT:]
            for path in [*self._all(), *self.folder.glob(".step-*.partial")]:
                if path not in kept:
                    # On a shared disk somebody may have a file of it open; the next time tries again.
                    shutil.rmtree(path, ignore_errors=True)
        return folder

    def latest(self) -> Path | None:
        """Return the newest whole checkpoint; warn about each newer one that is passed over."""
        for folder in reversed(self._all()):
            problem = problem_with(folder)
            if problem is None:
                return folder
            logger.warning(f"passing over checkpoint {folder.name}: {problem}.")
        return None

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))
