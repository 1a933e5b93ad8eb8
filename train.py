"""Fine-tune a timm network on dermoscopic images and leave a model folder that others can load.

accelerate launch train.py --dataset demo          # embedded drawings: minutes on a CPU, no network
accelerate launch train.py                         # ISIC 2019, official download
accelerate launch train.py --data_dir DIR          # ISIC 2019, a local copy in the official layout
accelerate launch train.py --dataset user/name     # any image classification dataset on the Hub

The file reads in the order of the run: options → data → splits → model → training → evaluation → publishing.
A research demonstration, not a medical device.
"""

from modeling.process import prepare_process

prepare_process()  # before torch is loaded

# isort: split
import errno
import shutil
import sys
from pathlib import Path

import pandas as pd
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors import SafetensorError

from modeling.classifier import LesionClassifier
from modeling.data.cache import CacheError
from modeling.data.sources import fingerprint, load_data, select_diagnoses
from modeling.data.splits import (
    check_no_leakage,
    leakage,
    leave_one_source_out,
    load_splits,
    make_splits,
    read_splits,
    write_splits,
)
from modeling.evaluation.evaluate import evaluate_model, summary
from modeling.evaluation.metrics import epoch_scorer
from modeling.files import RUN_NAME, SPLITS_NAME, write_json
from modeling.labels import REFERENCE_CODES, SYNTHETIC_NOTICE
from modeling.network import build_model
from modeling.publish.card import write_card
from modeling.publish.hub import PublishError
from modeling.publish.push import check_can_push, push_model
from modeling.training.checkpoints import CheckpointError
from modeling.training.finalize import write_model_folder
from modeling.training.loaders import make_loaders, split_datasets
from modeling.training.options import TrainOptions, parse_options
from modeling.training.outputs import run_model
from modeling.training.processes import make_accelerator, warn_of_missing_processes
from modeling.training.recipe import make_trainer
from modeling.training.run_folder import check_same_run, describe_run, holds_run, number_of_skipped, sole_user
from modeling.training.trainer import LOADER_ERRORS, Interrupted, TrainingError, loader_died, process_lost


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
    trainer = make_trainer(options, accelerator, model, loaders, codes, run_dir, epoch_scorer(codes))

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
    if not accelerator.is_main_process:
        return
    unfinished, model_dir = run_dir / ".model.partial", run_dir / "model"
    temperature = write_model_folder(
        unfinished, model=trainer.evaluated_model, val=outputs["val"], options=options, config=config, codes=codes
    )
    metrics = evaluate_model(
        classifier=LesionClassifier.from_pretrained(unfinished),
        dataset=everything,
        splits=splits,
        val=outputs["val"],
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
    print(f"{summary(metrics)}\nmodel folder: {model_dir}")

    # Publishing.
    if options.push_to_hub:
        print(f"pushed: {push_model(model_dir, str(options.hub_model_id), private=options.hub_private)}")
    print(f"open the Space on it: python space/app.py --model {model_dir}")


def diagnoses_of(options: TrainOptions, dataset: Dataset) -> list[str]:
    """Return the codes to tell apart: a Hub dataset without the default four is used whole."""
    names = dataset.features["label"].names
    if options.diagnoses == list(REFERENCE_CODES) and not set(REFERENCE_CODES) <= set(names):
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


if __name__ == "__main__":
    sys.exit(main())
