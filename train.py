"""Fine-tune a timm network on dermoscopic images and leave a model folder that others can load.

accelerate launch train.py --dataset demo          # embedded drawings: minutes on a CPU, no network
accelerate launch train.py                         # ISIC 2019, official download
accelerate launch train.py --data_dir DIR          # ISIC 2019, a local copy in the official layout
accelerate launch train.py --dataset user/name     # any image classification dataset on the Hub

The file reads in the order of the run: options → data → model → training → evaluation → publishing.
A research demonstration, not a medical device.
"""

from modeling.runtime import prepare_process

prepare_process()  # before torch is loaded

# isort: split
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from datasets import Dataset

from modeling.classifier import LesionClassifier
from modeling.data.duplicates import HASHES_NAME, read_hashes, write_hashes
from modeling.data.sources import fingerprint, load_images, rows_of, select_diagnoses
from modeling.data.splits import (
    check_no_leakage,
    diagnoses_of,
    leakage,
    load_splits,
    split_table,
    splits_of,
    write_splits,
)
from modeling.evaluation.context import Context
from modeling.evaluation.evaluate import evaluate_model, summary
from modeling.evaluation.metrics import epoch_scorer
from modeling.files import write_json
from modeling.inference import Outputs, run_model
from modeling.labels import SYNTHETIC_NOTICE
from modeling.model_folder import RUN_NAME, SPLITS_NAME
from modeling.network import TimmModel, build_model
from modeling.publish.card import write_card
from modeling.publish.examples import write_drawn_examples, write_isic_examples
from modeling.publish.hub import PublishError
from modeling.publish.push import check_can_push, push_model
from modeling.training.accelerator import make_accelerator, warn_of_missing_processes
from modeling.training.calibrate_and_save import check_learned, write_model_folder
from modeling.training.checkpoints import any_process
from modeling.training.dry_run import rehearse
from modeling.training.errors import explained, launched
from modeling.training.init_weights import Start, check_not_seen, find_start, load_start
from modeling.training.loaders import make_loaders, split_datasets
from modeling.training.options import TrainOptions, parse_options
from modeling.training.recipe import make_trainer
from modeling.training.run_folder import check_same_run, describe_run, holds_run, sole_user
from modeling.training.trainer import Interrupted, TrainingError


def main(arguments: list[str] | None = None) -> int:
    """Run it; return the exit status."""
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
        train(options)
    except Interrupted as stopped:
        status, message = 130, f"{stopped} Go on with the same command and --resume auto."
    except PublishError as error:
        status, message = 1, f"error: {error}"
    except Exception as error:
        status, message = 1, f"error: {explained(error)}"
        if explained(error) is None:
            raise
    else:
        return 0
    print(f"\n{message}", file=sys.stderr)
    if launched():
        print("(What follows is the report of accelerate's launcher, which adds nothing to this.)", file=sys.stderr)
    return status


def train(options: TrainOptions) -> None:
    """Train, evaluate and publish one model, stage by stage; its folder is kept to the processes of this run."""
    warn_of_missing_processes()
    accelerator = make_accelerator(options)
    run_dir = Path(options.output_dir)
    with sole_user(run_dir, accelerator):
        resuming = holds_run(run_dir, options, accelerator)
        if options.push_to_hub and accelerator.is_main_process:
            check_can_push(options.hub_model_id, private=options.hub_private)
        start = find_start(options.init_from, backbone=options.backbone, pretrained=options.pretrained)
        data = prepare_data(run_dir, options, accelerator, start, resuming=resuming)
        model = prepare_model(run_dir, options, accelerator, data, start, resuming=resuming)
        if options.dry_run:
            accelerator.print("dry run passed; nothing was trained.")
            return
        fitted = fit(run_dir, options, accelerator, data, model, resuming=resuming)
        accelerator.free_memory()  # ends the loader processes: Python would wait for them for ever, deaf to signals as they are
        if accelerator.is_main_process:
            model_dir = evaluate(run_dir, options, data, fitted)
            publish(model_dir, options)


# ---- data ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunData:
    """What a run learns from."""

    everything: Dataset  # all usable images
    n_skipped: int  # images that cannot be used
    chosen: Dataset  # those of the diagnoses to tell apart; labels count from 0 in the order of `codes`
    codes: list[str]
    splits: pd.DataFrame  # rows of splits.csv
    config: dict[str, Any]  # content of train_config.json


def prepare_data(
    run_dir: Path, options: TrainOptions, accelerator: Accelerator, start: Start, *, resuming: bool
) -> RunData:
    """Read the images, split them by lesion, and write down what this run is."""
    # One process reads first; the others then find its cache.
    with accelerator.local_main_process_first():
        loaded = load_images(
            options.dataset,
            data_dir=options.data_dir,
            skip_bad_images=options.skip_bad_images,
            skipped_csv=run_dir / "skipped.csv",
        )
    everything = loaded.dataset
    chosen = select_diagnoses(everything, diagnoses_of(options, everything))
    codes: list[str] = chosen.features["label"].names
    if len(codes) < 2:
        raise ValueError(f"--diagnoses: there is nothing to tell apart from {codes[0]}; name two or more, or all.")

    # A file, made once, so that the splits can be audited and used again.
    if accelerator.is_main_process and not resuming:
        splits = splits_of(options, chosen, codes, loaded)
        write_splits(splits, run_dir / SPLITS_NAME)
        # So that others can tell which images were trained on.
        write_hashes(loaded.hashes[loaded.hashes["image_id"].isin(splits["image_id"])], run_dir / HASHES_NAME)
    accelerator.wait_for_everyone()
    splits = load_splits(run_dir / SPLITS_NAME)
    if options.protocol == "lesion":
        check_no_leakage(splits)

    # Earlier weights may not have seen what is tested; the first process finds out for all.
    origin = (
        check_not_seen(start, splits, read_hashes(run_dir / HASHES_NAME))
        if accelerator.is_main_process
        else start.origin
    )

    config = describe_run(
        options, accelerator, codes=codes, data_fingerprint=fingerprint(everything), splits=splits, origin=origin
    )
    if resuming:
        check_same_run(run_dir / RUN_NAME, config)
    elif accelerator.is_main_process:
        write_json(run_dir / RUN_NAME, config)
    announce(accelerator, options, splits, codes)
    return RunData(everything, loaded.n_skipped, chosen, codes, splits, config)


def announce(accelerator: Accelerator, options: TrainOptions, splits: pd.DataFrame, codes: list[str]) -> None:
    """Say what is about to be trained on what."""
    accelerator.print(split_table(splits, codes))
    accelerator.print(
        f"{options.backbone}, {options.image_size} px, {accelerator.num_processes} process(es) on "
        f"{accelerator.device.type}, precision {accelerator.mixed_precision}; "
        f"{leakage(splits)['overall']:.1%} of the test images show a lesion that is also in train"
    )
    if options.dataset == "demo":
        accelerator.print(SYNTHETIC_NOTICE)


# ---- model ---------------------------------------------------------------------------------------------------------


def prepare_model(
    run_dir: Path, options: TrainOptions, accelerator: Accelerator, data: RunData, start: Start, *, resuming: bool
) -> TimmModel:
    """Build the network, and try on a few images that it can be trained, calibrated, written, read and explained."""
    torch.manual_seed(options.seed)
    model = build_model(
        options.backbone,
        num_classes=len(data.codes),
        size_px=options.image_size,
        pretrained=options.pretrained and start.weights is None,
        drop_rate=options.drop_rate,
    ).to(memory_format=torch.channels_last)  # 2.4 times faster than the default layout on a CPU
    if start.weights is not None:
        load_start(model, start.weights)
    if resuming and not options.dry_run:
        return model
    failure: Exception | None = None
    if accelerator.is_main_process:
        one_each = data.splits[data.splits["split"] == "val"].groupby("label")["image_id"].first()
        try:
            rehearse(
                run_dir,
                rows_of(data.chosen, one_each),
                options=options,
                accelerator=accelerator,
                model=model,
                config=data.config,
            )
        except (TrainingError, torch.OutOfMemoryError) as error:
            failure = error
    if any_process(accelerator, failure is not None):
        raise failure or TrainingError("the dry run of the first process failed.")
    return model


# ---- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """The network with its best weights, what it says about val and test, and the record of each epoch."""

    model: TimmModel
    outputs: dict[str, Outputs]
    history: list[dict[str, Any]]


def fit(
    run_dir: Path, options: TrainOptions, accelerator: Accelerator, data: RunData, model: TimmModel, *, resuming: bool
) -> Fitted:
    """Train, go back to the best epoch on val, and score val and test: test is touched here for the first time."""
    parts = split_datasets(
        options, data.chosen, data.splits, data.config["data_fingerprint"], model.pretrained_cfg, accelerator
    )
    loaders = make_loaders(options, parts, accelerator)
    trainer = make_trainer(options, accelerator, model, loaders, run_dir, epoch_scorer(data.codes))
    if resuming and trainer.resume():
        accelerator.print(f"resuming at epoch {trainer.progress.epoch + 1}, step {trainer.progress.step}")
    accelerator.init_trackers(
        "skin-lesion-classifier", config={name: str(value) for name, value in data.config["options"].items()}
    )
    trainer.run()
    trainer.load_best()
    outputs = {split: run_model(trainer.evaluated_model, loaders[split], accelerator) for split in ("val", "test")}
    accelerator.end_training()
    return Fitted(trainer.evaluated_model, outputs, trainer.progress.history)


# ---- evaluation and publishing -------------------------------------------------------------------------------------


def evaluate(run_dir: Path, options: TrainOptions, data: RunData, fitted: Fitted) -> Path:
    """Calibrate on val, score on test, and put the model folder with its card in its place; return it."""
    unfinished, model_dir = run_dir / ".model.partial", run_dir / "model"
    check_learned(fitted.outputs["val"])
    calibration = write_model_folder(
        unfinished, model=fitted.model, val=fitted.outputs["val"], options=options, config=data.config
    )
    classifier = LesionClassifier.from_pretrained(unfinished)
    if options.dataset == "demo":
        write_drawn_examples(unfinished, classifier)
    elif options.examples:
        write_isic_examples(unfinished, classifier, data.everything, data.splits, options.examples)
    context = Context(
        classifier=classifier,
        dataset=data.everything,
        splits=data.splits,
        protocol="file" if options.splits else options.protocol,
        n_skipped=data.n_skipped,
        run=data.config,
        history=fitted.history,
    )
    metrics = evaluate_model(context, output_dir=unfinished, predictions_csv=run_dir / "predictions.csv")
    write_card(unfinished)
    shutil.rmtree(model_dir, ignore_errors=True)
    unfinished.rename(model_dir)
    print(f"{summary(metrics)}\nmodel folder: {model_dir}")
    return model_dir


def publish(model_dir: Path, options: TrainOptions) -> None:
    """Push the folder if asked to, and say how to look at it."""
    if options.push_to_hub:
        print(f"pushed: {push_model(model_dir, options.hub_model_id, private=options.hub_private)}")
    print(f"open the Space on it: python space/app.py --model {model_dir}")


if __name__ == "__main__":
    sys.exit(main())
