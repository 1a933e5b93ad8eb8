"""The run folder: one run at a time, and only the same run goes on in it."""

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from filelock import FileLock, Timeout

from modeling import __version__
from modeling.data.splits import splits_hash
from modeling.files import read_json, shortened
from modeling.training.checkpoints import any_process
from modeling.training.init_weights import Origin
from modeling.training.options import FREE_TO_CHANGE, TrainOptions

# Loader processes of a killed run end within 5 s; with an older filelock they hold its lock until then.
LOCK_WAIT_S = 6


@contextlib.contextmanager
def sole_user(run_dir: Path, accelerator: Accelerator) -> Iterator[None]:
    """Make the run folder and keep other runs out of it. The lock ends with the process, also when it is killed.

    Raises:
        ValueError: On all processes, if another run is writing there.
    """
    lock = FileLock(run_dir / ".lock")
    taken = False
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=LOCK_WAIT_S)
        except Timeout:
            taken = True
    if any_process(accelerator, taken):
        raise ValueError(f"another run is writing to {run_dir}; wait for its end, or give another --output_dir.")
    try:
        yield
    finally:
        if accelerator.is_main_process:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def holds_run(run_dir: Path, options: TrainOptions, accelerator: Accelerator) -> bool:
    """Return whether there is a run to resume; refuse to write over it without --resume."""
    # Without a checkpoint nothing is lost: an earlier try ended before training began.
    started = (run_dir / "checkpoints").exists()
    accelerator.wait_for_everyone()
    if started and options.resume is None:
        raise ValueError(
            f"{run_dir} already holds a run. Continue it with --resume auto, give another --output_dir, or delete the folder."
        )
    return started


def dataset_name(options: TrainOptions) -> str:
    """Return what the dataset is called in files that others see."""
    return Path(options.dataset).resolve().name if Path(options.dataset).is_dir() else options.dataset


def describe_run(
    options: TrainOptions,
    accelerator: Accelerator,
    *,
    codes: list[str],
    data_fingerprint: str,
    splits: pd.DataFrame,
    origin: Origin,
) -> dict[str, Any]:
    """Return the content of train_config.json: all that is needed to do the run again, without dates and paths."""
    fixed = {
        # No path of this machine: a dataset in a folder is known by its name, files by their hashes.
        "options": {
            **{name: value for name, value in dataclasses.asdict(options).items() if name not in FREE_TO_CHANGE},
            "dataset": dataset_name(options),
        },
        "init_from_sha256": origin.sha256,
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "codes": codes,
        "data_fingerprint": data_fingerprint,
        "splits_sha256": splits_hash(splits),
        "package_version": __version__,
    }
    return {
        "run_id": hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12],
        **fixed,
        "origin": dataclasses.asdict(origin),
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "pillow")
            },
        },
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def check_same_run(path: Path, config: dict[str, Any]) -> None:
    """Compare with the run that is to be resumed.

    Raises:
        ValueError: If something that changes the result differs, with the list of differences.
    """
    before = read_json(path)
    if not isinstance(before.get("options"), dict):
        raise ValueError(f"{path} is damaged: it holds no options. Start anew with another --output_dir.")
    differences = []
    for part, now in config.items():
        if part in ("run_id", "origin", "device"):
            continue
        then = before.get(part)
        if not isinstance(now, dict):
            now, then = {part: now}, {part: then}
        elif not isinstance(then, dict):
            then = {}
        differences += [
            f"{name}: {shortened(then.get(name))} before, {value!r} now"
            for name, value in now.items()
            if then.get(name) != value
        ]
    if differences:
        raise ValueError(
            f"{path.parent} cannot be resumed with other settings, since the result would change:\n  "
            + "\n  ".join(differences)
            + "\nGive the same settings, or start anew with another --output_dir."
        )
