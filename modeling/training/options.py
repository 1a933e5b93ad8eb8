"""All options of a training run: one dataclass, whose help texts are the manual."""

import argparse
import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from accelerate.tracking import get_available_trackers
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from transformers import HfArgumentParser

from modeling.files import shortened
from modeling.labels import REFERENCE_CODES


def option(default: Any, text: str) -> Any:
    """Describe an option.

    Args:
        default: None if it depends on other options; `resolve` then fills it in, and `text` says what it is.
        text: What it does, and why the default is what it is.
    """
    if default is not None and "Default: " not in text:
        shown = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        text = f"{text} Default: {shown.lower() if isinstance(default, bool) else shown}."
    given: Any = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return field(**given, metadata={"help": text})


@dataclass(frozen=True)
class TrainOptions:
    """All options of a training run. After `parse_options`, None means that an option is not used in this run."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(str_min_length=1)  # an unset variable is empty

    # data
    dataset: str = option(
        "isic2019",
        "isic2019, demo (synthetic images, no network), an image classification dataset on the Hub, or a folder: one "
        "subfolder per diagnosis, or images with a metadata.csv.",
    )
    data_dir: str | None = option(
        None,
        "Local copy of ISIC 2019 in the official layout; for another dataset, a subfolder of it. Default: download it (9.1 GB).",
    )
    diagnoses: list[str] = option(
        list(REFERENCE_CODES),
        "Codes of the diagnoses to distinguish, or: all. Default: BCC BKL MEL NV, as in the reference system, so that scores "
        "are comparable; all for a dataset that lacks one of them.",
    )
    protocol: Literal["lesion", "original", "given"] = option(
        "lesion",
        "lesion: no lesion is in two splits. original: the reference system's split of images, "
        "which leaks; for comparison only. given: the train, validation and test of the dataset itself; how far they leak is "
        "reported.",
    )
    splits: str | None = option(None, "Reuse this splits.csv. Default: make new splits from --seed.")
    test_source: list[str] = option(
        [], "Test on all images of these sources (ISIC 2019 has BCN, HAM, MSK), train on the others. Default: none."
    )
    skip_bad_images: bool = option(
        False, "Leave unusable images out and list them in skipped.csv; otherwise the run stops and names them."
    )
    num_workers: Annotated[int, Field(ge=0, le=64)] | None = option(
        None, "Loader processes per training process. Default: one per core but one; at least 1, at most 16."
    )
    # model
    backbone: str = option(
        None,
        "A convolutional network of timm that ends in one linear layer, such as an EfficientNet, MobileNet or ConvNeXt. Default: "
        "efficientnet_b0, which is small enough for a free Space; test_efficientnet, timm's smallest, for the demo.",
    )
    pretrained: bool | None = option(
        None, "Start from ImageNet weights of the Hub. Default: true; false for the demo, which is offline."
    )
    init_from: list[str] = option(
        [],
        "Start from these weights instead: a model folder, a .safetensors file, or a Hub repository as REPO or "
        "REPO@REVISION, of this package or of timm. Several, as in --init_from A B: their mean. A folder or file needs no "
        "network. Default: none.",
    )
    image_size: Annotated[int, Field(ge=16, le=1024)] = option(
        None,
        "Side of the model's square input in pixels; augmented training images have 1/1.2 of it (at least 32). Default: 224, "
        "the size of B0's ImageNet weights; 160 for the demo, the width of its images.",
    )
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = option(0.2, "Dropout before the classifier; B0's usual value.")
    # training
    recipe: Literal["default", "original"] = option(
        "default",
        "default: this project's. original: the reference system's, with Adam at a constant rate, no augmentation and the best "
        "epoch chosen by accuracy.",
    )
    epochs: Annotated[int, Field(ge=0, le=10_000)] = option(
        None,
        "Maximum number of epochs; --patience may end training earlier. 0: calibrate and evaluate the weights of --init_from as "
        "they are. Default: 30; demo 16; recipe original 15.",
    )
    batch_size: Annotated[int, Field(ge=2, le=4096)] = option(32, "Images per process and batch.")
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=1024)] = option(
        1, "Batches per optimiser step; where a batch does not fit, halve --batch_size and double this."
    )
    learning_rate: Annotated[float, Field(ge=1e-7, le=100, allow_inf_nan=False)] = option(
        None, "Peak rate. Default: 5e-4 from trained weights, 2e-3 from scratch; recipe original 1e-4."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = option(
        None, "Decay by AdamW of all but biases and normalisation. Default: 0.05; not used by recipe original."
    )
    warmup_epochs: Annotated[float, Field(ge=0, le=100)] | None = option(
        None, "Linear warm-up; a new classifier's first gradients are large. Default: 1; not used by recipe original."
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = option(
        None,
        "Moving average of the weights, which is what is scored and kept. The average reaches back further as the run goes "
        "on, 1 - (1 + step)^(-2/3), up to this decay: a run of 2,000 steps ends at 0.994. 0: no average. Default: 0.999; "
        "recipe original 0.",
    )
    consistency: Annotated[float, Field(gt=0, le=100)] | None = option(
        None,
        "Weight of a penalty on different predictions for two augmented views of an image, so that fewer predictions change "
        "under rotation, scaling and JPEG. A batch takes twice the time and memory. Default: one view, no penalty.",
    )
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = option(
        None, "Stop after this many epochs without a better val score. Default: 10; not used by recipe original."
    )
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = option(
        "auto", "auto: bf16 on a GPU that supports it, else what accelerate is configured to, which is no by default."
    )
    compile: bool = option(
        False, "torch.compile the network; it takes a minute or more at the start, so it is for long runs."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = option(
        42, "Seed of splits, weights, order and augmentation; the default is the reference system's."
    )
    # run
    output_dir: str = option(
        None, "Run folder: new, empty, or that of a run to resume. Default: runs/ and the name of the dataset."
    )
    resume: Literal["auto"] | None = option(
        None,
        "auto: continue from the newest checkpoint, or start if there is none. Default: refuse a folder with a run.",
    )
    checkpoint_every: Annotated[str, Field(pattern=r"^[1-9][0-9]*(min|steps?)$")] = option(
        "10min", "Time or steps between checkpoints, such as 10min or 500steps; each epoch ends with one too."
    )
    report_to: list[str] = option(
        [], "Trackers: tensorboard, trackio (local, pip install trackio), wandb, all. Default: none; see log.jsonl."
    )
    # publishing
    push_to_hub: bool = option(
        False, "Push the model folder at the end; the repository is created before training starts."
    )
    hub_model_id: str | None = option(
        None, "Repository to push to, such as me/skin-lesion-b0. Default: none; needed by --push_to_hub."
    )
    hub_private: bool = option(False, "Create it as a private repository, which only you or your organisation can see.")


# Built before HfArgumentParser sees the class, because that removes the bounds from its fields.
CHECKS: TypeAdapter[TrainOptions] = TypeAdapter(TrainOptions)
# May differ when a run is resumed, since it cannot change the result.
FREE_TO_CHANGE = {
    "data_dir", "splits", "init_from", "num_workers", "output_dir", "resume", "report_to", "checkpoint_every",
    "push_to_hub", "hub_model_id", "hub_private",
}  # fmt: skip


def parse_options(arguments: list[str]) -> TrainOptions:
    """Read the command line, after the file named by --config if there is one, and resolve it.

    Raises:
        ValueError: If the file or an option cannot be used.
    """
    config_parser = argparse.ArgumentParser(prog="train.py", add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", metavar="FILE")
    given, arguments = config_parser.parse_known_args(arguments)
    parser = HfArgumentParser(
        TrainOptions,  # type: ignore[arg-type]
        prog="train.py",
        usage="python train.py [--config FILE.yaml] [--OPTION VALUE …]",
        description="Train, evaluate and publish a dermoscopy classifier.",
        epilog="--config FILE.yaml holds lines such as `epochs: 30`; options on the command line override it. "
        "For several GPUs or machines: accelerate launch train.py …, see docs/cluster.md.",
        formatter_class=argparse.HelpFormatter,  # the texts name the defaults
        allow_abbrev=False,
    )
    if given.config is not None:
        arguments = [*read_config(Path(given.config)), *arguments]
    options, unknown = parser.parse_args_into_dataclasses(
        arguments,
        return_remaining_strings=True,
        look_for_args_file=False,  # it would silently read a train.args beside train.py
    )
    if unknown:
        raise ValueError(f"unknown option {shortened(' '.join(unknown))}; --help lists them.")
    return resolve(options)


def read_config(path: Path) -> list[str]:
    """Return the options of a YAML file as arguments; null is the default. Raises ValueError, as `parse_options` does."""
    try:
        # This loader leaves words as they are; plain YAML reads 042 as 34 and `no` as False.
        content = dict(yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {})
    except Exception as error:  # of PyYAML also KeyError, IndexError, AttributeError, RecursionError, …
        raise ValueError(
            f"--config {path} must hold lines such as `epochs: 30` ({type(error).__name__}: {str(error)[:300]})."
        ) from error
    arguments: list[str] = []
    for name, value in content.items():
        if not all(isinstance(one, str) for one in (value if isinstance(value, list) else [value])):
            raise ValueError(
                f"--config {path}: {shortened(name)} must be a value or a list of values, not a structure."
            )
        if isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)] if value else []
        elif value not in ("", "~", "null"):
            arguments.append(f"--{name}={value}")
    return arguments


def resolve(options: TrainOptions) -> TrainOptions:
    """Fill in what depends on other options, so that train_config.json shows what was used, and check all options.

    Raises:
        ValueError: If a value is out of its range, or options contradict each other.
    """
    demo, original = options.dataset == "demo", options.recipe == "original"
    if options.init_from and options.pretrained:
        raise ValueError(
            "--init_from and --pretrained true exclude each other: choose one kind of weights to start from."
        )
    if options.epochs == 0 and not options.init_from:
        raise ValueError("--epochs 0 trains nothing, so it needs the weights of a trained model: --init_from.")
    for name in ("weight_decay", "warmup_epochs", "consistency", "patience"):
        if original and getattr(options, name) is not None:
            raise ValueError(f"--{name} is not used by --recipe original; leave it out.")
    # Without --pretrained, `init_from` or the demo decide; None in train_config.json says that the option was not used.
    pretrained = None if options.init_from else not demo if options.pretrained is None else options.pretrained
    warm_start = bool(pretrained or options.init_from)
    defaults: dict[str, Any] = {
        "pretrained": pretrained,
        "backbone": "test_efficientnet" if demo else "efficientnet_b0",
        "image_size": 160 if demo else 224,
        "epochs": 15 if original else 16 if demo else 30,
        "learning_rate": 1e-4 if original else 5e-4 if warm_start else 2e-3,
        "weight_decay": None if original else 0.05,
        "warmup_epochs": None if original else 1.0,
        "ema_decay": 0.0 if original else 0.999,
        "patience": None if original else 10,
        "output_dir": f"runs/{dataset_name(options).replace('/', '--')}",
    }
    missing = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    options = dataclasses.replace(options, **missing | {"pretrained": pretrained})
    try:
        CHECKS.validate_python(dataclasses.asdict(options))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"--{first['loc'][0]}: {first['msg'].lower()}, got {shortened(first['input'])}.") from error
    if options.push_to_hub != bool(options.hub_model_id) or (options.hub_private and not options.push_to_hub):
        raise ValueError(
            "--push_to_hub and --hub_model_id, such as me/skin-lesion-b0, need each other, and --hub_private needs both."
        )
    installed = [str(tracker) for tracker in get_available_trackers()]
    absent = [name for name in options.report_to if name not in [*installed, "all"]]
    if absent:
        raise ValueError(
            f"--report_to {shortened(absent[0])} is not installed here; there is {', '.join(installed) or 'none'}. Install it "
            "with pip, or leave it out: log.jsonl has the same numbers."
        )
    return options


def dataset_name(options: TrainOptions) -> str:
    """Return the name of the dataset in files that others see; of a folder without its path."""
    return Path(options.dataset).resolve().name if os.path.isdir(options.dataset) else options.dataset


def checkpoint_interval(text: str) -> tuple[float, float]:
    """Read "10min" or "500steps": return seconds and steps between checkpoints, one of them infinite."""
    number = int(re.sub(r"\D", "", text))
    return (60 * number, float("inf")) if text.endswith("min") else (float("inf"), number)
