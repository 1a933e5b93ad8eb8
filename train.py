"""Fine-tune a timm network on dermoscopic images and leave a model folder that others can load.

accelerate launch train.py --dataset demo          # embedded drawings: minutes on a CPU, no network
accelerate launch train.py                         # ISIC 2019, official download
accelerate launch train.py --data_dir DIR          # ISIC 2019, a local copy in the official layout
accelerate launch train.py --dataset user/name     # any image classification data set on the Hub

The file reads in the order of the run: options → data → splits → model → training → evaluation → publishing.
A research demonstration, not a medical device.
"""

from modeling.machine import available_cores, default_num_workers, prepare_process

prepare_process()  # before torch is loaded

# isort: split
import argparse
import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import datasets
import numpy as np
import pandas as pd
import timm.optim
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from datasets import Dataset
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, get_constant_schedule, get_cosine_schedule_with_warmup

from modeling import __version__
from modeling.augmentation import Augmentation
from modeling.calibration import AbstentionRule, fit_operating_points, fit_temperature, fold_temperature, softmax
from modeling.checkpoints import CheckpointError, Checkpoints, any_process
from modeling.data import fingerprint, load_data, select_diagnoses
from modeling.evaluation import evaluate_model, summary
from modeling.labels import ORIGINAL_CODES, SYNTHETIC_NOTICE, WEIGHTS_LICENSE
from modeling.loading import TRAIN_MARGIN, CacheError, LesionDataset, leave_signals_to_the_trainer, resized_images
from modeling.metrics import LesionMetrics
from modeling.model import (
    RUN_NAME,
    SPLITS_NAME,
    WEIGHTS_NAME,
    TimmModel,
    build_model,
    file_sha256,
    read_json,
    save_model_folder,
    shortened,
    write_json,
)
from modeling.outputs import Outputs, run_model
from modeling.predictor import LesionClassifier
from modeling.publish import PublishError, check_can_push, push_model, write_card
from modeling.splits import (
    check_no_leakage,
    leakage,
    leave_one_source_out,
    load_splits,
    make_splits,
    read_splits,
    splits_hash,
    write_splits,
)
from modeling.training import (
    LOADER_ERRORS,
    CheckpointInterval,
    EpochLog,
    Interrupted,
    Trainer,
    TrainingError,
    loader_died,
    process_lost,
)
from modeling.verification import golden_prediction

MAX_CONFIG_BYTES = 100_000  # all options with their values are 2 kB
# Loader processes of a killed run end within 5 s; with an older filelock they hold its lock until then.
LOCK_WAIT_S = 6


# ---- options -------------------------------------------------------------------------------------------------------


def option(default: Any, text: str) -> Any:
    """Describe an option: its default and, in its help, what it does and why the default is what it is."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class TrainOptions:
    """Everything that a run can be told; `--config file.yaml` reads the same names from a file."""

    # data
    dataset: str = option(
        "isic2019",
        "isic2019, demo (embedded drawings), the id of any image classification data set on the Hub, or a folder of one "
        "folder per diagnosis.",
    )
    data_dir: str | None = option(
        None, "Local copy of ISIC 2019 in the official layout. Default: download it (9.1 GB)."
    )
    diagnoses: list[str] = option(
        list(ORIGINAL_CODES),
        "Codes to tell apart, or: all. Default: the original system's four, so that scores compare; a Hub data "
        "set of other labels uses all.",
    )
    protocol: str = option(
        "lesion",
        "lesion: no lesion is in two splits, so scores can be trusted. original: the original's image split, "
        "which leaks; for comparison only.",
    )
    splits: str | None = option(None, "Reuse this splits.csv. Default: make new ones from --seed.")
    test_source: str | None = option(
        None, "Leave one source out: test on all images of this source (BCN, HAM, MSK) and train on the others."
    )
    skip_bad_images: bool = option(
        False,
        "Leave unusable images out and list them in skipped.csv. Default: stop and name them, so that none is "
        "dropped silently.",
    )
    image_cache_gb: float = option(
        30.0, "Bound on the cache of resized images on disk; decoding is most of an epoch's cost. 0: no cache."
    )
    num_workers: int | None = option(
        None, "Loader processes for each training process. Default: its share of the cores less one."
    )
    # model
    backbone: str = option(
        "efficientnet_b0",
        "Any convolutional network of timm with one linear classifier; B0 is small enough for a free Space.",
    )
    pretrained: bool | None = option(
        None,
        "Start from ImageNet weights, which need the Hub. Default: yes, but not for the demo, which needs no network.",
    )
    init_from: str | None = option(
        None, "Start from the weights of this model folder instead; the way on without the Hub."
    )
    image_size: int | None = option(
        None,
        "Side of the square input in pixels. Default: 224, the size of B0's ImageNet weights; 64 for the demo, "
        "for speed.",
    )
    drop_rate: float = option(0.2, "Dropout before the classifier, B0's usual value.")
    # training
    recipe: str = option(
        "default",
        "default: this project's. original: no augmentation, Adam 1e-4, batch 32, 15 epochs, plain loss, best by "
        "accuracy.",
    )
    epochs: int | None = option(
        None, "At most so many. Default: 30 (demo 16, original 15); early stopping may end before."
    )
    batch_size: int | None = option(
        None, "Images per process and batch. Default: 32, which fits 4 GB of GPU memory at 224 px."
    )
    gradient_accumulation_steps: int = option(
        1, "Batches per optimiser step; raise it when a larger batch does not fit."
    )
    learning_rate: float | None = option(
        None, "Peak rate. Default: 5e-4 from trained weights, 2e-3 from scratch, 1e-4 in the original's recipe."
    )
    weight_decay: float = option(0.05, "Of AdamW; not applied to biases and normalisation.")
    warmup_epochs: float = option(
        1.0, "Linear warm-up before the cosine: a new classifier's first gradients are large."
    )
    class_weight_power: float | None = option(
        None,
        "Loss weight of a diagnosis is its frequency to the minus this. Default: 0.5, between ignoring rare "
        "diagnoses (0) and drowning in them (1); original: 0.",
    )
    ema_decay: float | None = option(
        None,
        "Moving average of the weights, which is what is scored and kept. Default: 0.999 with warm-up; original: "
        "none (0).",
    )
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm, against rare spikes.")
    patience: int = option(10, "Stop after so many epochs without a better score on val.")
    mixed_precision: str = option(
        "auto", "auto: bf16 on a GPU that has it, else no (or what accelerate is configured to). Also: no, bf16, fp16."
    )
    compile: bool = option(
        False, "torch.compile the network; pays in long runs on a recent GPU, costs minutes at the start."
    )
    deterministic: bool = option(
        False, "Only deterministic kernels on the GPU: the same bits again, slower. On a CPU runs repeat anyway."
    )
    sync_batchnorm: bool = option(False, "Share batch statistics between processes: for small batches per process.")
    max_bad_steps: int = option(
        20, "Give up after so many steps whose gradient is not finite; each is skipped and reported."
    )
    seed: int = option(42, "Of splits, weights, order and augmentation; 42 is the original's.")
    # run
    output_dir: str | None = option(None, "Run folder. Default: runs/<dataset>.")
    resume: str | None = option(
        None, "auto: go on from the newest whole checkpoint of the run folder, or start if there is none."
    )
    checkpoint_every: str = option(
        "10min", "Such as 10min, 500steps or 1epoch; each epoch ends with a checkpoint anyway."
    )
    report_to: list[str] = option(
        [], "Trackers: tensorboard, wandb, trackio, all. Default: none, log.jsonl has everything."
    )
    # publishing
    push_to_hub: bool = option(
        False, "Push the model folder at the end; the right to do so is checked before training starts."
    )
    hub_model_id: str | None = option(None, "Repository to push to, such as me/skin-lesion-b0.")
    hub_private: bool = option(False, "Make it a private repository.")


# What may differ when a run is resumed, since it cannot change the result.
FREE_TO_CHANGE = {
    "data_dir", "splits", "init_from", "image_cache_gb", "num_workers", "output_dir", "resume", "checkpoint_every", "report_to",
    "push_to_hub", "hub_model_id", "hub_private",
}  # fmt: skip


def parse_options(arguments: list[str]) -> TrainOptions:
    """Read the command line, after the file named by --config if there is one, and fill in what depends on the rest.

    Raises:
        ValueError: If the file cannot be used, or options contradict each other.
    """
    config_parser = argparse.ArgumentParser(prog="accelerate launch train.py", add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", metavar="FILE")
    given, arguments = config_parser.parse_known_args(arguments)
    if given.config is not None:
        arguments = arguments_of_file(Path(given.config)) + arguments
    parser = HfArgumentParser(TrainOptions, prog="accelerate launch train.py", description=__doc__)  # type: ignore[arg-type]
    options, unknown = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{shortened(' '.join(unknown))} is no option; --help lists them.")
    return fill_defaults(options)


def arguments_of_file(path: Path) -> list[str]:
    """Return the options of a YAML file as the command line has them.

    Raises:
        ValueError: If it is not a short file of `option: value` lines.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES // 1000} kB")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader)
    except (
        Exception
    ) as error:  # PyYAML also answers damage with KeyError, IndexError, AttributeError, RecursionError, …
        raise ValueError(f"--config {path} cannot be read ({type(error).__name__}: {str(error)[:300]}).") from error
    if not isinstance(content or {}, dict):
        raise ValueError(f"--config {path} must hold lines such as `epochs: 30`, got {shortened(content)}.")
    arguments: list[str] = []
    for name, value in (content or {}).items():
        if name not in TrainOptions.__dataclass_fields__:
            raise ValueError(f"--config {path}: there is no option {shortened(name)}; --help lists them.")
        if isinstance(value, list) and get_origin(get_type_hints(TrainOptions)[name]) is not list:
            raise ValueError(f"--config {path}: {name} takes one value, got the list {shortened(value)}.")
        values = value if isinstance(value, list) else [] if value is None else [value]
        for item in values:
            if isinstance(item, int) and item.bit_length() > 64:
                raise ValueError(f"--config {path}: the number of {name} is too large.")
            if not isinstance(item, str | int | float) or str(item).startswith("--"):
                raise ValueError(
                    f"--config {path}: {name} must be a value or a list of values, got {shortened(value)}."
                )
        if values:  # none, as in train_config.json: the default
            arguments += [f"--{name}", *map(str, values)] if isinstance(value, list) else [f"--{name}={value}"]
    return arguments


class PlainLoader(yaml.SafeLoader):
    """YAML without references: by them a few lines can grow to any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has references (*name); write the values out")
        return super().compose_node(parent, index)


def fill_defaults(options: TrainOptions) -> TrainOptions:
    """Replace every None that stands for "it depends", so that train_config.json shows what was used."""
    demo, original = options.dataset == "demo", options.recipe == "original"
    if options.recipe not in ("default", "original"):
        raise ValueError(f"--recipe must be default or original, got {options.recipe!r}.")
    if options.protocol not in ("lesion", "original"):
        raise ValueError(f"--protocol must be lesion or original, got {options.protocol!r}.")
    if options.push_to_hub and not options.hub_model_id:
        raise ValueError("--push_to_hub needs --hub_model_id, such as me/skin-lesion-b0.")
    if options.resume not in (None, "auto"):
        raise ValueError(f"--resume must be auto, got {options.resume!r}; it finds the newest checkpoint by itself.")
    CheckpointInterval.parse(options.checkpoint_every)
    for name, value in vars(options).items():
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"--{name} must be a number from 0 on, got {value}.")
    pretrained = not demo if options.pretrained is None else options.pretrained
    warm_start = pretrained or options.init_from is not None
    defaults: dict[str, Any] = {
        "pretrained": pretrained,
        "image_size": 64 if demo else 224,
        "epochs": 15 if original else 16 if demo else 30,
        "batch_size": 32,
        "learning_rate": 1e-4 if original else 5e-4 if warm_start else 2e-3,
        "class_weight_power": 0.0 if original else 0.5,
        "ema_decay": 0.0 if original else 0.999,
        "output_dir": f"runs/{options.dataset.replace('/', '--')}",
    }
    return dataclasses.replace(
        options, **{name: value for name, value in defaults.items() if getattr(options, name) is None}
    )


# ---- the run -------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Run it; return the exit status."""
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        train(options)
    except Interrupted as stopped:
        print(f"\n{stopped} Go on with the same command and --resume auto.", file=sys.stderr)
        return 130
    except (ValueError, TrainingError, CheckpointError, CacheError, PublishError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        print(
            f"\nerror: the GPU's memory is full ({error}). Halve --batch_size and double --gradient_accumulation_steps: "
            "the result stays about the same.",
            file=sys.stderr,
        )
        return 1
    except LOADER_ERRORS as error:
        if process_lost(error):
            print(
                f"\nerror: another process of this run failed or was killed, so this one stops too ({error}). Go on with the "
                "same command and --resume auto.",
                file=sys.stderr,
            )
            return 1
        if not loader_died(error):
            raise
        print(
            f"\nerror: a process that loads images died ({type(error).__name__}: {error}). If the machine ran out of memory, "
            "lower --num_workers; with --num_workers 0 the training process loads them itself. Go on with the same command "
            "and --resume auto.",
            file=sys.stderr,
        )
        return 1
    except (OSError, SafetensorError) as error:
        advice = " Make room on the disk and go on with the same command and --resume auto." if no_room(error) else ""
        print(f"\nerror: {error}.{advice}", file=sys.stderr)
        return 1
    return 0


def no_room(error: OSError | SafetensorError) -> bool:
    """True if an error says that the disk, the quota or the longest file is full; safetensors has the number in its text."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in numbers or any(f"(os error {number})" in str(error) for number in numbers)


def train(options: TrainOptions) -> None:
    """Set up the processes of the run, and keep its folder to them."""
    warn_of_missing_processes()
    accelerator = make_accelerator(options)
    run_dir = Path(str(options.output_dir))
    with sole_user(run_dir, accelerator):
        train_in(run_dir, options, accelerator)


def train_in(run_dir: Path, options: TrainOptions, accelerator: Accelerator) -> None:
    """Train, evaluate and publish one model."""
    resuming = holds_run(run_dir, options, accelerator)
    if options.push_to_hub and accelerator.is_main_process:
        check_can_push(str(options.hub_model_id))

    # Data. One process reads first; the others then find its cache.
    with accelerator.local_main_process_first():
        everything = load_data(
            options.dataset,
            data_dir=options.data_dir,
            skip_bad_images=options.skip_bad_images,
            skipped_csv=run_dir / "skipped.csv",
        )
    chosen = select_diagnoses(everything, diagnoses_of(options, everything))
    codes: list[str] = chosen.features["label"].names
    data_fingerprint = fingerprint(everything)

    # Splits: a file, made once, so that they can be audited and used again.
    if accelerator.is_main_process and not resuming:
        write_splits(splits_of(options, chosen, codes), run_dir / SPLITS_NAME)
    accelerator.wait_for_everyone()
    splits = load_splits(run_dir / SPLITS_NAME)
    if options.protocol == "lesion":
        check_no_leakage(splits)
    config = describe_run(options, accelerator, codes, data_fingerprint, splits)
    if resuming:
        check_same_run(run_dir / RUN_NAME, config)
    elif accelerator.is_main_process:
        write_json(run_dir / RUN_NAME, config)
    announce(accelerator, options, splits, codes)

    # Model, batches, optimiser.
    torch.manual_seed(options.seed)
    model = build_model(
        options.backbone,
        num_classes=len(codes),
        size_px=int(options.image_size or 0),
        pretrained=bool(options.pretrained),
        init_from=options.init_from,
        drop_rate=options.drop_rate,
    ).to(memory_format=torch.channels_last)  # 2.4 times faster than the default layout on a CPU
    parts = split_datasets(options, chosen, splits, data_fingerprint, model.pretrained_cfg, accelerator)
    loaders = make_loaders(options, parts, accelerator)
    trainer = make_trainer(options, accelerator, model, loaders, codes, run_dir)

    # Training.
    if resuming and trainer.resume():
        accelerator.print(f"resuming at epoch {trainer.progress.epoch + 1}, step {trainer.progress.step}")
    accelerator.init_trackers("skin-lesion-classifier", config={k: str(v) for k, v in config["options"].items()})
    trainer.run()
    trainer.load_best()

    # Evaluation: val chooses thresholds, test is touched here for the first time.
    outputs = {
        split: run_model(trainer.evaluated_model, loaders[split], accelerator, image_ids=parts[split].image_ids)
        for split in ("val", "test")
    }
    accelerator.end_training()
    if accelerator.is_main_process:
        finish(options, run_dir, config, trainer, outputs, everything, splits, codes)


def warn_of_missing_processes() -> None:
    """Say so where accelerate 1.15 was asked for several processes on the CPU and, without MPI, started only one."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in os.environ
    started = any(name in os.environ for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    if asked and not started:
        print(
            "warning: `accelerate launch --cpu` starts one process only unless MPI is installed. For several, use "
            "`ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N train.py …`.",
            file=sys.stderr,
        )


def make_accelerator(options: TrainOptions) -> Accelerator:
    """Set up devices, processes, precision and trackers."""
    precision: str | None = options.mixed_precision
    if precision == "auto":
        # None leaves the choice to `accelerate config` and `accelerate launch --mixed_precision`.
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else None
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without it
        torch.use_deterministic_algorithms(True)
    # Every batch has the same shape: the GPU's library tries its kernels once and keeps the fastest.
    torch.backends.cudnn.benchmark = not options.deterministic
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        log_with=options.report_to or None,
        project_dir=options.output_dir,
        # Without the seedable sampler a resumed epoch would see other batches.
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=options.seed, non_blocking=True),
    )
    if accelerator.device.type == "cpu":
        # accelerate's launcher leaves each process a single thread unless it was told otherwise.
        torch.set_num_threads(max(available_cores() // accelerator.num_processes, 1))
    return accelerator


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


def diagnoses_of(options: TrainOptions, dataset: Dataset) -> list[str]:
    """Return the codes to tell apart: a Hub data set without the default four is used whole."""
    names = dataset.features["label"].names
    if options.diagnoses == list(ORIGINAL_CODES) and not set(ORIGINAL_CODES) <= set(names):
        return ["all"]
    return options.diagnoses


def splits_of(options: TrainOptions, dataset: Dataset, codes: list[str]) -> pd.DataFrame:
    """Make the splits, or read those that --splits names; each diagnosis must be in each of them."""
    if options.splits:
        splits = read_splits(options.splits, dataset, test_source=options.test_source)
    else:
        splits = make_splits(dataset, protocol=options.protocol, diagnoses=codes, seed=options.seed)  # type: ignore[arg-type]
    if options.test_source:
        splits = leave_one_source_out(splits, options.test_source)
    counts = pd.crosstab(splits["label"], splits["split"]).reindex(
        index=codes, columns=["train", "val", "test"], fill_value=0
    )
    empty = [f"{code} in {split}" for code in codes for split in ("train", "val") if counts.loc[code, split] == 0]
    if empty:
        raise ValueError(
            f"no image of {', '.join(empty)}: the model could not be trained or chosen. Add images, or leave the diagnosis out "
            "with --diagnoses."
        )
    return splits


def dataset_name(options: TrainOptions) -> str:
    """Return what the data set is called in files that others see."""
    return Path(options.dataset).resolve().name if Path(options.dataset).is_dir() else options.dataset


def describe_run(
    options: TrainOptions, accelerator: Accelerator, codes: list[str], data_fingerprint: str, splits: pd.DataFrame
) -> dict[str, Any]:
    """Return the content of train_config.json: all that is needed to do the run again, without dates and paths."""
    fixed = {
        # No path of this machine: a data set in a folder is known by its name, files by their hashes.
        "options": {
            **{name: value for name, value in dataclasses.asdict(options).items() if name not in FREE_TO_CHANGE},
            "dataset": dataset_name(options),
        },
        "init_from_sha256": file_sha256(Path(options.init_from) / WEIGHTS_NAME) if options.init_from else None,
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
    differences = [
        f"{name}: {shortened(before['options'].get(name))} before, {value!r} now"
        for name, value in config["options"].items()
        if before["options"].get(name) != value
    ] + [
        f"{name}: {shortened(before.get(name))} before, {value!r} now"
        for name, value in config.items()
        if name not in ("options", "run_id", "device") and before.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{path.parent} cannot be resumed with other settings, since the result would change:\n  "
            + "\n  ".join(differences)
            + "\nGive the same settings, or start anew with another --output_dir."
        )


def announce(accelerator: Accelerator, options: TrainOptions, splits: pd.DataFrame, codes: list[str]) -> None:
    """Say what is about to be trained on what."""
    counts = pd.crosstab(splits["label"], splits["split"], margins=True, margins_name="all")
    accelerator.print(
        counts.reindex(index=[*codes, "all"], columns=["train", "val", "test", "all"], fill_value=0).to_string()
    )
    share = leakage(splits)["overall"]
    accelerator.print(
        f"{options.backbone}, {options.image_size} px, {accelerator.num_processes} process(es) on "
        f"{accelerator.device.type}, precision {accelerator.mixed_precision}; "
        f"{100 * share:.1f} % of the test images show a lesion that is also in train"
    )
    if options.dataset == "demo":
        accelerator.print(SYNTHETIC_NOTICE)


@dataclass(frozen=True)
class SplitData:
    """One split, ready for a DataLoader, with the ids of its images by position."""

    images: LesionDataset
    image_ids: list[str]


def split_datasets(
    options: TrainOptions,
    dataset: Dataset,
    splits: pd.DataFrame,
    data_fingerprint: str,
    pretrained_cfg: dict[str, Any],
    accelerator: Accelerator,
) -> dict[str, SplitData]:
    """Decode and resize the images of each split; train is augmented unless the recipe is the original's."""
    position = {image_id: index for index, image_id in enumerate(dataset["image_id"])}
    size_px = int(options.image_size or 0)
    augmented = options.recipe != "original"
    red, green, blue = (round(255 * value) for value in pretrained_cfg["mean"])
    parts = {}
    for split in ("train", "val", "test"):
        image_ids = splits.loc[splits["split"] == split, "image_id"].tolist()
        rows = dataset.select([position[image_id] for image_id in image_ids])
        augment = split == "train" and augmented
        images = resized_images(
            rows,
            fingerprint=data_fingerprint,
            size_px=round(size_px * TRAIN_MARGIN) if augment else size_px,
            exact=not augment,
            cache_gb=options.image_cache_gb,
            show_progress=accelerator.is_main_process,
        )
        augmentation = Augmentation(size_px, fill=(red, green, blue)) if augment else None
        parts[split] = SplitData(
            LesionDataset(images, rows["label"], augmentation=augmentation, seed=options.seed), image_ids
        )
    return parts


def make_loaders(options: TrainOptions, parts: dict[str, SplitData], accelerator: Accelerator) -> dict[str, Any]:
    """Make the prepared loaders: train shuffled, without its incomplete last batch; val and test in order."""
    workers = default_num_workers(accelerator.num_processes) if options.num_workers is None else options.num_workers
    batch_size = int(options.batch_size or 0)
    loaders = {}
    for split, part in parts.items():
        training = split == "train"
        loaders[split] = DataLoader(
            part.images,
            batch_size=batch_size,
            shuffle=training,
            # A last batch of one or two images would spoil the statistics of batch normalisation.
            drop_last=training and len(part.images) >= batch_size * accelerator.num_processes,
            num_workers=workers,
            # To start them anew copies, page by page, the memory that this process has come to hold: seconds an epoch.
            persistent_workers=workers > 0 and split != "test",
            worker_init_fn=leave_signals_to_the_trainer,
            pin_memory=accelerator.device.type == "cuda",
        )
    return {split: accelerator.prepare(loader) for split, loader in loaders.items()}


def make_trainer(
    options: TrainOptions,
    accelerator: Accelerator,
    model: nn.Module,
    loaders: dict[str, Any],
    codes: list[str],
    run_dir: Path,
) -> Trainer:
    """Put optimiser, schedule, weight average and loss together, by the recipe."""
    original = options.recipe == "original"
    if options.sync_batchnorm and accelerator.num_processes > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(accelerator.device)
    learning_rate = float(options.learning_rate or 0)
    if original:
        optimizer: Any = torch.optim.Adam(model.parameters(), lr=learning_rate)
    else:
        optimizer = timm.optim.create_optimizer_v2(
            model, opt="adamw", lr=learning_rate, weight_decay=options.weight_decay, fused=True
        )
    ema = ModelEmaV3(model, decay=float(options.ema_decay), use_warmup=True) if options.ema_decay else None
    steps_per_epoch = -(-len(loaders["train"]) // options.gradient_accumulation_steps)
    if original:
        scheduler = get_constant_schedule(optimizer)
    else:
        scheduler = get_cosine_schedule_with_warmup(
            optimizer,
            num_warmup_steps=round(options.warmup_epochs * steps_per_epoch),
            num_training_steps=int(options.epochs or 0) * steps_per_epoch,
        )
    metric = LesionMetrics(codes, keep_in_memory=True)

    def score(probs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        values = metric.compute(predictions=probs, references=labels)
        return {name: values[name] for name in ("balanced_accuracy", "accuracy", "macro_f1")}

    labels = np.asarray(loaders["train"].dataset.labels)
    if options.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    return Trainer(
        accelerator=accelerator,
        model=prepared_model,
        optimizer=prepared_optimizer,
        scheduler=scheduler,
        ema=ema,
        train_loader=loaders["train"],
        val_loader=loaders["val"],
        class_weights=class_weights(labels, len(codes), float(options.class_weight_power or 0)),
        score=score,
        selection="accuracy" if original else "balanced_accuracy",
        epochs=int(options.epochs or 0),
        patience=int(options.epochs or 0) if original else options.patience,
        max_grad_norm=float("inf") if original else options.max_grad_norm,
        max_bad_steps=options.max_bad_steps,
        checkpoint_every=CheckpointInterval.parse(options.checkpoint_every),
        seed=options.seed,
        checkpoints=Checkpoints(run_dir / "checkpoints", accelerator),
        log=EpochLog(run_dir / "log.jsonl"),
    )


def class_weights(labels: np.ndarray, num_classes: int, power: float) -> torch.Tensor:
    """Return weights (C,) that fall with a diagnosis' frequency to the power, with mean 1 over the images (N,)."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = counts.astype(float) ** -power
    return torch.tensor(weights / (weights * counts).sum() * counts.sum(), dtype=torch.float32)


def finish(
    options: TrainOptions,
    run_dir: Path,
    config: dict[str, Any],
    trainer: Trainer,
    outputs: dict[str, Outputs],
    everything: datasets.Dataset,
    splits: pd.DataFrame,
    codes: list[str],
) -> None:
    """Calibrate, write the model folder, score it, render its card and, if asked to, push it."""
    unfinished, model_dir = run_dir / ".model.partial", run_dir / "model"
    shutil.rmtree(unfinished, ignore_errors=True)

    # Everything is fitted on val. The temperature goes into the classifier, so that every loader is calibrated.
    val = outputs["val"]
    temperature = fit_temperature(val.logits, val.labels)
    model: TimmModel = trainer.evaluated_model
    fold_temperature(model, temperature)
    logits = val.logits / temperature
    lesion = {
        "package_version": __version__,
        "run_id": config["run_id"],
        "dataset": dataset_name(options),
        "synthetic": options.dataset == "demo",
        "protocol": options.protocol,
        "base_model": base_model_of(model) if options.pretrained and not options.init_from else None,
        "license": WEIGHTS_LICENSE if options.dataset == "isic2019" else None,
        "data_fingerprint": config["data_fingerprint"],
        "splits_sha256": config["splits_sha256"],
        "temperature": temperature,
        "operating_points": [point.to_dict() for point in fit_operating_points(softmax(logits), val.labels, codes)],
        "abstention": AbstentionRule.fit(logits, val.features, val.labels).to_dict(),
    }
    save_model_folder(model, unfinished, codes=codes, lesion=lesion)
    lesion["golden"] = golden_prediction(LesionClassifier.from_pretrained(unfinished))
    save_model_folder(model, unfinished, codes=codes, lesion=lesion)
    write_json(unfinished / RUN_NAME, config)
    shutil.copyfile(run_dir / SPLITS_NAME, unfinished / SPLITS_NAME)

    metrics = evaluate_model(
        classifier=LesionClassifier.from_pretrained(unfinished),
        dataset=everything,
        splits=splits,
        val=val,
        test=outputs["test"],
        temperature=temperature,
        output_dir=unfinished,
        predictions_csv=run_dir / "predictions.csv",
        protocol=options.protocol,
        n_skipped=number_of_skipped(run_dir / "skipped.csv"),
        run=config,
        history=trainer.progress.history,
    )
    write_card(unfinished)
    shutil.rmtree(model_dir, ignore_errors=True)
    unfinished.rename(model_dir)

    print(summary(metrics))
    print(f"model folder: {model_dir}")
    if options.push_to_hub:
        print(f"pushed: {push_model(model_dir, str(options.hub_model_id), private=options.hub_private)}")
    print(f"open the Space on it: python space/app.py --model {model_dir}")


def base_model_of(model: TimmModel) -> str:
    """Return the Hub id of the ImageNet weights that training started from."""
    tag = model.pretrained_cfg.get("tag")
    return f"timm/{model.pretrained_cfg['architecture']}{'.' + tag if tag else ''}"


def number_of_skipped(path: Path) -> int:
    """Return how many images `skipped.csv` lists; 0 if none had to be left out."""
    return len(pd.read_csv(path)) if path.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
