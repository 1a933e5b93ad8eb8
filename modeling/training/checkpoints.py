"""Atomic checkpoints.

A checkpoint is written under a temporary name, flushed to the disk, and then renamed. The last two are kept, each with the
best weights up to its own step, so a run that continues from either of them has the best weights of its own past.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from modeling.files import flush

KEPT = 2


@dataclass
class Checkpoints:
    """The checkpoints of one run, one folder `step-NNNNNNNN` each."""

    folder: Path
    accelerator: Accelerator

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Write the checkpoint of an optimiser step and delete all but the last two. All processes call this.

        If it cannot be written, earlier ones are untouched. `write` fills a folder, the same on every process.
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
                for path in [*temporary.rglob("*"), temporary]:
                    flush(path)
                if folder.exists():  # this step was taken twice; after a kill here, the checkpoint before it is used
                    shutil.rmtree(folder)
                temporary.rename(folder)
                flush(self.folder)
                for path in [*self._all()[:-KEPT], *self.folder.glob(".step-*.partial")]:
                    # On a shared disk another process may have one of its files open; the next save tries again.
                    shutil.rmtree(path, ignore_errors=True)
        finally:
            if self.accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def latest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return max(self._all(), default=None)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))
