"""Fine-tune a timm network on dermoscopic images and write a model folder that others can load.

python train.py --dataset demo          # synthetic images: minutes on a CPU, no network
python train.py                         # ISIC 2019, official download
python train.py --data_dir DIR          # ISIC 2019, a local copy in the official layout
python train.py --dataset user/name     # any image classification dataset on the Hub
accelerate launch train.py …            # on several GPUs or machines

The file reads in the order of a run: options → data → model → train → evaluate → publish.
A research demonstration, not a medical device.
"""

from modeling.runtime import prepare_process

prepare_process()  # before torch is loaded

# isort: split
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from modeling.classifier import LesionClassifier
from modeling.data.duplicates import write_hashes
from modeling.data.sources import load_images, select_diagnoses
from modeling.data.splits import diagnoses_of, split_table, splits_of
from modeling.data.splits_file import leakage, load_splits, write_splits
from modeling.evaluation.context import Context
from modeling.evaluation.evaluate import evaluate_model, summary
from modeling.evaluation.metrics import LesionMetrics
from modeling.files import write_json
from modeling.inference import run_model
from modeling.labels import SYNTHETIC_NOTICE
from modeling.model_folder import HASHES_NAME, RUN_NAME, SPLITS_NAME
from modeling.network import TimmModel, build_model, check_backbone
from modeling.publish.card import write_card
from modeling.publish.examples import write_demo_examples
from modeling.publish.hub import PublishError
from modeling.publish.push import check_can_push, push_model
from modeling.training.accelerator import end_with_launcher, make_accelerator
from modeling.training.calibrate_and_save import write_model_folder
from modeling.training.errors import Interrupted, TrainingError, explained
from modeling.training.init_weights import Start, check_not_seen, find_starts, load_starts, origin_of
from modeling.training.loaders import RunData, make_loaders
from modeling.training.onnx_export import export_onnx
from modeling.training.options import TrainOptions, parse_options
from modeling.training.run_folder import Run, check_output_dir, check_same_run, describe_run, sole_user
from modeling.training.trainer import Fitted, Trainer


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return the exit status."""
    end_with_launcher()
    try:
        train(parse_options(sys.argv[1:] if arguments is None else arguments))
        return 0
    except Interrupted as stopped:
        status, message = 130, f"{stopped} Continue with the same command and --resume auto."
    except Exception as error:
        reason = str(error) if isinstance(error, PublishError) else explained(error)
        if reason is None:
            raise
        status, message = 1, f"error: {reason}"
    print(f"\n{message}", file=sys.stderr)
    return status


def train(options: TrainOptions) -> None:
    """Train, evaluate and publish one model; whatever can be checked without the images is checked first."""
    resuming = check_output_dir(options)
    run = Run(Path(options.output_dir), options, make_accelerator(options), resuming)
    if options.push_to_hub and run.accelerator.is_main_process:
        check_can_push(options.hub_model_id or "", private=options.hub_private)
    check_backbone(options.backbone)
    starts = find_starts(options)
    model = prepare_model(run, starts)  # its weights can be had, and they fit
    if run.accelerator.is_main_process and not resuming:
        check_export(model, options)
    if options.splits:
        load_splits(options.splits)
    with sole_user(run.dir, run.accelerator):
        data = prepare_data(run, starts)
        model = prepare_model(run, starts, data.config["codes"])
        fitted = fit(run, data, model)
        run.accelerator.end_training()
        run.accelerator.free_memory()  # ends the loader processes, which ignore signals and would block Python's exit
        if run.accelerator.is_main_process:
            publish(run, evaluate(run, data, fitted))


def prepare_data(run: Run, starts: list[Start]) -> RunData:
    """Read the images, split them by lesion, and describe the run in train_config.json."""
    options, accelerator = run.options, run.accelerator
    # One process reads first; the others then find its cache.
    with accelerator.local_main_process_first():
        loaded = load_images(
            options.dataset,
            data_dir=options.data_dir,
            skip_bad_images=options.skip_bad_images,
            skipped_csv=run.dir / "skipped.csv",
            size_px=options.image_size,
        )
    chosen = select_diagnoses(loaded.dataset, diagnoses_of(options, loaded.dataset))
    codes: list[str] = chosen.features["label"].names
    if len(codes) < 2:
        raise ValueError(f"need at least two diagnoses, got {codes}; pass --diagnoses A B or --diagnoses all.")

    # The splits are a file, made once, so that they can be audited and used again.
    origin = origin_of(starts)
    if run.accelerator.is_main_process:
        splits = load_splits(run.dir / SPLITS_NAME) if run.resuming else splits_of(options, chosen, codes, loaded)
        hashes = loaded.hashes[loaded.hashes["image_id"].isin(splits["image_id"])]
        # Before a file is written, the first process finds out whether the initial weights have seen images of val or test.
        origin = check_not_seen(starts, splits, hashes)
        if not run.resuming:
            write_splits(splits, run.dir / SPLITS_NAME)
            write_hashes(hashes, run.dir / HASHES_NAME)
    accelerator.wait_for_everyone()
    splits = load_splits(run.dir / SPLITS_NAME)
    config = describe_run(run, codes=codes, data_fingerprint=loaded.fingerprint, splits=splits, origin=origin)
    if run.resuming:
        check_same_run(run.dir / RUN_NAME, config)
    elif run.accelerator.is_main_process:
        write_json(run.dir / RUN_NAME, config)

    accelerator.print(loaded.report)
    accelerator.print(split_table(splits, codes))
    accelerator.print(f"{leakage(splits)['overall']:.1%} of the test images show a lesion that is also in train")
    accelerator.print(
        f"{options.backbone}, {options.image_size} px, {accelerator.num_processes} process(es) on "
        f"{accelerator.device.type}, precision {accelerator.mixed_precision}"
    )
    if options.dataset == "demo":
        accelerator.print(SYNTHETIC_NOTICE)
    return RunData(loaded, chosen, splits, config)


def prepare_model(run: Run, starts: list[Start], codes: list[str] | None = None) -> TimmModel:
    """Build the network with its initial weights; without `codes`, for two diagnoses."""
    options = run.options
    torch.manual_seed(options.seed)
    model = build_model(
        options.backbone,
        num_classes=2 if codes is None else len(codes),
        size_px=options.image_size,
        pretrained=bool(options.pretrained),
        drop_rate=options.drop_rate,
    ).to(memory_format=torch.channels_last)  # 2.4 times faster than the default layout on a CPU
    load_starts(model, starts, codes=None if options.epochs else codes)
    return model


def check_export(model: TimmModel, options: TrainOptions) -> None:
    """Export the untrained network, so that one that cannot be exported costs no hours of training; raise TrainingError."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(model, Path(folder) / "model.onnx")
    except Exception as error:  # of torch or timm: whatever it is, the end of the run would fail too
        raise TrainingError(
            f"the network cannot be exported, so nothing was trained ({type(error).__name__}: {str(error)[:500]}). Does "
            f"--backbone {options.backbone} fit --image_size {options.image_size}?"
        ) from error


def fit(run: Run, data: RunData, model: TimmModel) -> Fitted:
    """Train the model and go back to its best epoch on val."""
    options, accelerator = run.options, run.accelerator
    loaders = make_loaders(run, data, model)
    trainer = Trainer(run, model, loaders, LesionMetrics(keep_in_memory=True))
    if run.resuming and trainer.resume():
        accelerator.print(f"resuming at epoch {trainer.progress.epoch + 1}, step {trainer.progress.step}")
    if options.report_to:
        config = {name: str(value) for name, value in data.config["options"].items()}
        accelerator.init_trackers("skin-lesion-classifier", config=config)
    trainer.train()
    best = trainer.evaluated_model
    best.load_state_dict(trainer.best_weights)
    val, reprocessed = (run_model(best, loaders[name], accelerator) for name in ("val", "reprocessed"))
    return Fitted(best, val, reprocessed, trainer.progress.history)


def evaluate(run: Run, data: RunData, fitted: Fitted) -> Path:
    """Calibrate on val, score on test, and put the model folder with its card in its place; return it."""
    options = run.options
    unfinished, model_dir = run.dir / ".model.partial", run.dir / "model"
    write_model_folder(unfinished, fitted, options, data.config)
    classifier = LesionClassifier.from_pretrained(unfinished)
    if options.dataset == "demo":
        write_demo_examples(unfinished, classifier)
    context = Context(
        classifier=classifier,
        dataset=data.loaded.dataset,
        splits=data.splits,
        protocol=data.config["options"]["protocol"],
        n_skipped=data.loaded.n_skipped,
        run={**data.config, "history": fitted.history},
    )
    metrics = evaluate_model(context, output_dir=unfinished, predictions_csv=run.dir / "predictions.csv")
    write_card(unfinished)
    shutil.rmtree(model_dir, ignore_errors=True)
    unfinished.rename(model_dir)
    print(f"{summary(metrics)}\nmodel folder: {model_dir}")
    return model_dir


def publish(run: Run, model_dir: Path) -> None:
    """Push the folder if requested, and print the next commands."""
    if run.options.push_to_hub:
        pushed = push_model(model_dir, run.options.hub_model_id or "", private=run.options.hub_private)
        print(f"pushed: {pushed.url}")
    print(f"classify files: python -m modeling.predictor {model_dir} IMAGES…")
    print(f"open it in the browser: python space/app.py --model {model_dir}")


if __name__ == "__main__":
    sys.exit(main())
