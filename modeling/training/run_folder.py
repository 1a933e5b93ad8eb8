"""The run folder: whose it is, one run at a time, and only the same run continues in it."""

import contextlib
import dataclasses
import hashlib
import json
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from modeling import __version__
from modeling.data.splits_file import splits_hash
from modeling.files import flush, read_json, shortened
from modeling.model_folder import RUN_NAME
from modeling.training.init_weights import Origin
from modeling.training.options import FREE_TO_CHANGE, TrainOptions, dataset_name

# Loader processes of a killed run end within 5 s; with an older filelock they hold its lock until then.
LOCK_WAIT_S = 6
LOCK_NAME = ".lock"
CHECKPOINTS = "checkpoints"
KEPT = 2  # of them
BEFORE_TRAINING = (LOCK_NAME, "skipped.csv")  # written before train_config.json
AFTER_TRAINING = ("log.jsonl", "predictions.csv", "model")


@dataclass(frozen=True)
class Run:
    """One run of train.py."""

    dir: Path
    options: TrainOptions
    accelerator: Accelerator
    resuming: bool = False  # from a checkpoint in `dir`


def check_output_dir(options: TrainOptions) -> bool:
    """Return whether `--output_dir` holds a run to resume; refuse a folder whose content would be lost.

    Raises:
        ValueError: If it is neither new, nor empty, nor the folder of a run that may be continued or started again.
    """
    folder = Path(options.output_dir)
    for option in ("dataset", "data_dir"):
        data = Path(getattr(options, option) or folder / "none")
        if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
            raise ValueError(f"--output_dir {folder} is inside --{option} {data}: its files would be read as images.")
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if not names.difference(BEFORE_TRAINING):
        return False
    if RUN_NAME not in names or "run_id" not in read_json(folder / RUN_NAME):
        raise ValueError(
            f"--output_dir {folder} is neither empty nor the folder of a run of train.py. Give another --output_dir."
        )
    if CHECKPOINTS not in names and not names.intersection(AFTER_TRAINING):
        return False  # it ended before training, so nothing is lost
    if CHECKPOINTS not in names or options.resume is None:
        raise ValueError(
            f"{folder} already holds a run. Continue it with --resume auto, which needs its checkpoints; delete it, or give "
            "another --output_dir."
        )
    return True


@contextlib.contextmanager
def sole_user(run_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Make the run folder and keep other runs out of it. The lock ends with the process, also when it is killed.

    Raises:
        ValueError: In the first process, if another run is writing there.
    """
    if not accelerator.is_main_process:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / LOCK_NAME)
    try:
        lock.acquire(timeout=LOCK_WAIT_S)
    except Timeout:
        raise ValueError(
            f"another run is writing to {run_dir}; wait until it ends, or give another --output_dir."
        ) from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def describe_run(
    run: Run, *, codes: list[str], data_fingerprint: str, splits: pd.DataFrame, origin: Origin
) -> dict[str, Any]:
    """Return the content of train_config.json: all that is needed to do the run again, without dates and paths."""
    accelerator = run.accelerator
    options = {name: value for name, value in dataclasses.asdict(run.options).items() if name not in FREE_TO_CHANGE}
    options |= {
        "dataset": dataset_name(run.options),
        "protocol": "file" if run.options.splits else run.options.protocol,
    }
    fixed = {
        # No path of this machine: a dataset in a folder is known by its name, files by their hashes.
        "options": options,
        "init_from_sha256": origin.sha256,
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "codes": codes,
        "data_fingerprint": data_fingerprint,
        "splits_sha256": splits_hash(splits),
        "package_version": __version__,
    }
    libraries = ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "pillow")
    return {
        "run_id": hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12],
        **fixed,
        "origin": dataclasses.asdict(origin),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def check_same_run(path: Path, config: dict[str, Any]) -> None:
    """Compare with the run that is to be resumed.

    Raises:
        ValueError: If something that changes the result differs, with the list of differences.
    """
    before, differences = read_json(path), []
    for part in (part for part in config if part not in ("run_id", "origin", "device")):
        old, new = before.get(part), config[part]
        if not (isinstance(old, dict) and isinstance(new, dict)):
            old, new = {part: old}, {part: new}
        changed = [name for name, value in new.items() if old.get(name) != value]
        differences += [f"{name}: {shortened(old.get(name))} before, {new[name]!r} now" for name in changed]
    if differences:
        raise ValueError(
            f"the run of {path} cannot be resumed with other settings, since the result would change:\n  "
            + "\n  ".join(differences)
            + "\nGive the same settings, or start again with another --output_dir."
        )


@dataclass
class Checkpoints:
    """The checkpoints of one run, one folder `step-NNNNNNNN` each: the last two.

    A checkpoint is written under a temporary name, flushed to the disk, and then renamed. Each has the best weights up to its
    own step, so a run that continues from either of them has the best weights of its own past.
    """

    folder: Path
    accelerator: Accelerator

    def save(self, step: int, write: Callable[[Path], None]) -> None:
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

    def latest(self) -> Path | None:
        """Return the newest checkpoint, or None."""
        return max(self._all(), default=None)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))
