"""Atomic checkpoints.

A checkpoint is written under a temporary name, flushed to the disk, and then renamed. The last two are kept, each with the
best weights up to its own step, so a run that continues from either of them has the best weights of its own past.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from modeling.files import flush

KEPT = 2


class Checkpoints:
    """The checkpoints of one run, one folder `step-NNNNNNNN` each."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder = folder
        self.accelerator = accelerator

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write the checkpoint of an optimiser step and delete all but the last two. All processes call this.

        If it cannot be written, earlier ones are untouched.

        Args:
            step: Number of optimiser steps so far.
            write: Fills a folder; it runs on every process with the same folder.
        """
        folder = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{folder.name}.partial"
        try:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            write(temporary)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self._put_in_place(temporary, folder)
        finally:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _put_in_place(self, temporary: Path, folder: Path) -> None:
        for path in [*temporary.rglob("*"), temporary]:
            flush(path)
        if folder.exists():  # this step was taken twice; after a kill here, the checkpoint before it is used
            shutil.rmtree(folder)
        temporary.rename(folder)
        flush(self.folder)
        for path in [*self._all()[:-KEPT], *self.folder.glob(".step-*.partial")]:
            # On a shared disk another process may have one of its files open; the next save tries again.
            shutil.rmtree(path, ignore_errors=True)

    def latest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return max(self._all(), default=None)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def any_process(accelerator: Accelerator, here: bool) -> bool:
    """Return on all processes whether it is true on one of them; all of them must call this."""
    if accelerator.num_processes == 1:
        return here
    return bool(accelerator.gather(torch.tensor([here], device=accelerator.device)).any())
