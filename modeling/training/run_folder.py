"""The run folder: whose it is, one run at a time, and only the same run continues in it."""

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator
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
from modeling.files import read_json, shortened
from modeling.model_folder import RUN_NAME
from modeling.training.init_weights import Origin
from modeling.training.options import FREE_TO_CHANGE, TrainOptions, dataset_name

# Loader processes of a killed run end within 5 s; with an older filelock they hold its lock until then.
LOCK_WAIT_S = 6
LOCK_NAME = ".lock"
CHECKPOINTS = "checkpoints"
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
    fixed = {
        # No path of this machine: a dataset in a folder is known by its name, files by their hashes.
        "options": {**options, "dataset": dataset_name(run.options)},
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
    before, now = _settings(read_json(path)), _settings(config)
    changed = [key for key, value in now.items() if before.get(key) != value]
    differences = [f"{key[1]}: {shortened(before.get(key))} before, {now[key]!r} now" for key in changed]
    if differences:
        raise ValueError(
            f"the run of {path} cannot be resumed with other settings, since the result would change:\n  "
            + "\n  ".join(differences)
            + "\nGive the same settings, or start again with another --output_dir."
        )


def _settings(config: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Return what decides the result, by the part of the file and the name in it."""
    parts = {part: value for part, value in config.items() if part not in ("run_id", "origin", "device")}
    entries = {part: value if isinstance(value, dict) else {part: value} for part, value in parts.items()}
    return {(part, name): value for part, values in entries.items() for name, value in values.items()}
