"""Everything that a run can be told: one dataclass, whose help texts are the manual."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import yaml
from accelerate.tracking import get_available_trackers
from transformers import HfArgumentParser

from modeling.files import shortened
from modeling.labels import REFERENCE_CODES
from modeling.training.trainer import CheckpointInterval

MAX_CONFIG_BYTES = 100_000  # all options with their values are 2 kB


# ---- options -------------------------------------------------------------------------------------------------------


def option(default: Any, text: str, allowed: str | None = None) -> Any:
    """Describe an option.

    Args:
        default: None if it depends on other options; `resolve` then fills it in.
        text: What it does, and why the default is what it is.
        allowed: An interval for a number, such as "[0, 1)", or words, such as "a | b"; shown by --help, checked at the start.
    """
    metadata = {"help": text} if allowed is None else {"help": text, "metavar": allowed}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainOptions:
    """Everything that a run can be told, resolved: `parse_options` leaves no None but in what may be absent."""

    # data
    dataset: str = option(
        "isic2019",
        "isic2019, demo (embedded drawings), the id of any image classification dataset on the Hub, or a folder of one "
        "folder per diagnosis.",
    )
    data_dir: str | None = option(
        None, "Local copy of ISIC 2019 in the official layout. Default: download it (9.1 GB)."
    )
    diagnoses: list[str] = option(
        list(REFERENCE_CODES),
        "Codes to tell apart, or: all. Default: the reference system's four, so that scores compare; a dataset "
        "of other labels uses all.",
    )
    protocol: str = option(
        "lesion",
        "lesion: no lesion is in two splits, so scores can be trusted. original: the reference system's split of images, "
        "which leaks; for comparison only. given: the train, validation and test of the dataset itself, as they are; how "
        "far they leak is reported.",
        "lesion | original | given",
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
        30.0,
        "Bound on the cache of resized images on disk; decoding is most of an epoch's cost. 0: no cache.",
        "[0, 1e6]",
    )
    num_workers: int | None = option(
        None, "Loader processes for each training process. Default: its share of the cores less one.", "[0, 64]"
    )
    # model
    backbone: str = option(
        None,
        "Any convolutional network of timm with one linear classifier. Default: efficientnet_b0, which is small enough for "
        "a free Space; test_efficientnet, timm's smallest, for the demo.",
    )
    pretrained: bool = option(
        None,
        "Start from ImageNet weights, which need the Hub. Default: yes, but not for the demo, which needs no network.",
    )
    init_from: str | None = option(
        None,
        "Start from these weights instead: a model folder, a .safetensors file, or a Hub repository as REPO or REPO@REVISION, of "
        "this package or of timm. Use it where the Hub cannot be reached.",
    )
    image_size: int = option(
        None,
        "Side of the model's square input in pixels; it is trained on augmented images of 1/1.2 of it. Default: 224, the size "
        "of B0's ImageNet weights; 160 for the demo, the width of its drawings.",
        "[16, 1024]",
    )
    drop_rate: float = option(0.2, "Dropout before the classifier, B0's usual value.", "[0, 1)")
    # training
    recipe: str = option(
        "default",
        "default: this project's. original: no augmentation, Adam at a constant 1e-4, batch 32, 15 epochs, no average of the "
        "weights, best by accuracy; --weight_decay, --warmup_epochs, --max_grad_norm and --patience are not used.",
        "default | original",
    )
    epochs: int = option(
        None, "Maximum number. Default: 30 (demo 16, original 15); early stopping may end before.", "[1, 10000]"
    )
    batch_size: int = option(None, "Images per process and batch. Default: 32.", "[2, 4096]")
    gradient_accumulation_steps: int = option(
        1, "Batches per optimiser step; raise it when a larger batch does not fit.", "[1, 1024]"
    )
    learning_rate: float = option(
        None,
        "Peak rate. Default: 5e-4 from trained weights, 2e-3 from scratch, 1e-4 in the reference system's recipe.",
        "(0, inf)",
    )
    weight_decay: float = option(0.05, "Of AdamW; not applied to biases and normalisation.", "[0, 1]")
    warmup_epochs: float = option(
        1.0, "Linear warm-up before the cosine: a new classifier's first gradients are large.", "[0, 100]"
    )
    ema_decay: float = option(
        None,
        "Moving average of the weights, which is what is scored and kept. The average reaches back further as the run goes "
        "on, 1 - (1 + step)^(-2/3), up to this decay: a run of 2,000 steps ends at 0.994. Default: 0.999; original: none (0).",
        "[0, 1)",
    )
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm, against rare spikes.", "(0, inf)")
    patience: int = option(10, "Stop after so many epochs without a better score on val.", "[1, 10000]")
    mixed_precision: str = option(
        "auto",
        "auto: bf16 on a GPU that has it, else no (or what accelerate is configured to). Also: no, bf16, fp16.",
        "auto | no | bf16 | fp16",
    )
    compile: bool = option(
        False, "torch.compile the network: meant for long runs on a recent GPU, costs minutes at the start."
    )
    deterministic: bool = option(
        False, "Only deterministic kernels on the GPU: the same bits again, slower. On a CPU runs repeat anyway."
    )
    sync_batchnorm: bool = option(False, "Share batch statistics between processes: for small batches per process.")
    max_bad_steps: int = option(
        20, "Give up after so many steps whose gradient is not finite; each is skipped and reported.", "[1, 1000000]"
    )
    seed: int = option(
        42, "Of splits, weights, order and augmentation; 42 is the reference system's.", "[0, 4294967295]"
    )
    # run
    output_dir: str = option(None, "Run folder. Default: runs/<dataset>.")
    resume: str | None = option(
        None, "auto: go on from the newest whole checkpoint of the run folder, or start if there is none.", "auto"
    )
    dry_run: bool = option(
        False, "Try everything on a few images and stop before training; every new run begins with this, in seconds."
    )
    checkpoint_every: str = option(
        "10min", "Such as 10min, 500steps or 1epoch; each epoch ends with a checkpoint anyway."
    )
    report_to: list[str] = option(
        [], "Trackers: tensorboard, wandb, trackio, all. Default: none, log.jsonl has everything."
    )
    # publishing
    examples: int = option(
        0,
        "Put so many test images of ISIC 2019 into the model folder, with licence and attribution, for whoever opens its "
        "page without a photo. For no other dataset; the demo brings drawings.",
        "[0, 8]",
    )
    push_to_hub: bool = option(
        False, "Push the model folder at the end; the right to do so is checked before training starts."
    )
    hub_model_id: str = option("", "Repository to push to, such as me/skin-lesion-b0.")
    hub_private: bool = option(False, "Make it a private repository.")


# What may differ when a run is resumed, since it cannot change the result.
FREE_TO_CHANGE = {
    "data_dir", "splits", "init_from", "image_cache_gb", "num_workers", "output_dir", "resume", "dry_run", "report_to",
    "checkpoint_every", "examples", "push_to_hub", "hub_model_id", "hub_private",
}  # fmt: skip


def parse_options(arguments: list[str]) -> TrainOptions:
    """Read the command line, after the file named by --config if there is one, and resolve it.

    Raises:
        ValueError: If the file cannot be used, or an option cannot.
    """
    config_parser = argparse.ArgumentParser(prog="accelerate launch train.py", add_help=False, allow_abbrev=False)
    config_parser.add_argument("--config", metavar="FILE")
    given, arguments = config_parser.parse_known_args(arguments)
    parser = HfArgumentParser(
        TrainOptions,  # type: ignore[arg-type]
        usage="accelerate launch train.py [--config FILE.yaml] [--OPTION VALUE …]",
        description="Train, evaluate and publish a dermoscopy classifier.",
    )
    if given.config is not None:
        parser.set_defaults(
            **read_config(Path(given.config))
        )  # argparse reads words as it does those of the command line
    options, unknown = parser.parse_args_into_dataclasses(
        arguments,
        return_remaining_strings=True,
        look_for_args_file=False,  # it would read a train.args beside train.py without a word
    )
    if unknown:
        raise ValueError(f"{shortened(' '.join(unknown))} is no option; --help lists them.")
    return resolve(options)


def read_config(path: Path) -> dict[str, str | list[str]]:
    """Return the options of a YAML file in the words that it has for them; null is the default, as in train_config.json.

    Raises:
        ValueError: If it is not a short file of `option: value` lines.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES // 1000} kB")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader) or {}
    except (
        Exception
    ) as error:  # PyYAML also answers damage with KeyError, IndexError, AttributeError, RecursionError, …
        raise ValueError(f"--config {path} cannot be read ({type(error).__name__}: {str(error)[:300]}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold lines such as `epochs: 30`, got {shortened(content)}.")
    kinds = get_type_hints(TrainOptions)
    options: dict[str, str | list[str]] = {}
    for name, value in content.items():
        if name not in kinds:
            raise ValueError(f"--config {path}: there is no option {shortened(name)}; --help lists them.")
        takes_list = get_origin(kinds[name]) is list
        if isinstance(value, list) and not takes_list:
            raise ValueError(f"--config {path}: {name} takes one value, got the list {shortened(value)}.")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in values):
            raise ValueError(f"--config {path}: {name} must be a value or a list of values, got {shortened(value)}.")
        if value not in ("", "~", "null"):
            options[name] = values if takes_list else value
    return options


class PlainLoader(yaml.BaseLoader):
    """YAML of words alone, since it would read 042 as 34 and no as False, and without references, which can grow to any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has references (*name); write the values out")
        return super().compose_node(parent, index)


def resolve(options: TrainOptions) -> TrainOptions:
    """Fill in what depends on other options, so that train_config.json shows what was used, and check it all.

    Raises:
        ValueError: If a value cannot be, or options contradict each other.
    """
    demo, original = options.dataset == "demo", options.recipe == "original"
    pretrained = not demo if options.pretrained is None else options.pretrained
    warm_start = pretrained or options.init_from is not None
    defaults: dict[str, Any] = {
        "pretrained": pretrained,
        "backbone": "test_efficientnet" if demo else "efficientnet_b0",
        "image_size": 160 if demo else 224,
        "epochs": 15 if original else 16 if demo else 30,
        "batch_size": 32,
        "learning_rate": 1e-4 if original else 5e-4 if warm_start else 2e-3,
        "ema_decay": 0.0 if original else 0.999,
        "output_dir": f"runs/{options.dataset.replace('/', '--')}",
    }
    missing = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    options = dataclasses.replace(options, **missing)
    for entry in dataclasses.fields(options):
        allowed, value = entry.metadata.get("metavar"), getattr(options, entry.name)
        if allowed is not None and value is not None and not is_allowed(value, allowed):
            wanted = f"a number in {allowed}" if isinstance(value, int | float) else allowed.replace(" | ", " or ")
            raise ValueError(f"--{entry.name} must be {wanted}, got {shortened(value)}.")
    CheckpointInterval.parse(options.checkpoint_every)
    if options.examples and options.dataset != "isic2019":
        raise ValueError(
            "--examples takes images of ISIC 2019 with its licence and attribution; leave it out for other data."
        )
    if options.push_to_hub and not options.hub_model_id:
        raise ValueError("--push_to_hub needs --hub_model_id, such as me/skin-lesion-b0.")
    if options.warmup_epochs > options.epochs:
        raise ValueError(
            f"--warmup_epochs {options.warmup_epochs:g} is longer than --epochs {options.epochs}: the learning rate would "
            "never reach its peak."
        )
    installed = [str(tracker) for tracker in get_available_trackers()]
    missing_trackers = [name for name in options.report_to if name not in [*installed, "all"]]
    if missing_trackers:
        raise ValueError(
            f"--report_to {shortened(missing_trackers[0])} is not installed here; there is "
            f"{', '.join(installed) or 'none'}. Install it with pip, or leave it out: log.jsonl has everything."
        )
    return options


def is_allowed(value: float | str, allowed: str) -> bool:
    """True if a number lies in an interval such as "[0, 1)", or a word is one of "a | b"."""
    if isinstance(value, str):
        return value in allowed.split(" | ")
    low, high = (float(bound) for bound in allowed[1:-1].split(","))
    return (low < value or (low == value and allowed[0] == "[")) and (
        value < high or (value == high and allowed[-1] == "]")
    )
