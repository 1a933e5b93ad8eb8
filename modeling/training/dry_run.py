"""Run every stage on a few images first, so that a late failure shows up within seconds.

A copy of the network is trained for one step by the functions of the real run, in a folder of its own, then written as a
model folder, opened, and asked to explain an image.
"""

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from modeling.calibration import softmax
from modeling.classifier import LesionClassifier
from modeling.data.sources import rows_of
from modeling.model_folder import HASHES_NAME, SPLITS_NAME
from modeling.network import TimmModel
from modeling.training.accelerator import make_accelerator
from modeling.training.calibrate_and_save import write_model_folder
from modeling.training.checkpoints import any_process
from modeling.training.errors import Interrupted, TrainingError
from modeling.training.loaders import RunData
from modeling.training.run_folder import Run, trial_folder
from modeling.training.trainer import Fitted

IMAGES_EACH = 2  # of each diagnosis, in train and in val
TOLERANCE = 0.02  # of a probability; a GPU may compute the same in other kernels


def dry_run(run: Run, data: RunData, model: TimmModel, fit: Callable[[Run, RunData, TimmModel], Fitted]) -> None:
    """Train a copy of the model for one step on a few images, and write, open and use its model folder.

    Raises:
        TrainingError: If a stage fails.
        torch.OutOfMemoryError: If not even a few images fit.
    """
    options = dataclasses.replace(
        run.options,
        epochs=1,
        num_workers=0,
        report_to=[],
        compile=run.options.compile and run.options.dry_run,  # minutes; before a real run they would be spent twice
    )
    splits = data.splits[data.splits["split"] != "test"].groupby(["split", "label"]).head(IMAGES_EACH)
    failure: Exception | None = None
    with trial_folder(run) as folder:
        if run.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            for name in (SPLITS_NAME, HASHES_NAME):
                shutil.copyfile(run.dir / name, folder / name)
        run.accelerator.wait_for_everyone()
        try:
            # With an accelerator of its own, which nothing of the real run is registered with.
            trial = Run(folder, options, make_accelerator(options), quiet=True)
            fitted = fit(trial, dataclasses.replace(data, splits=splits), copy.deepcopy(model))
        except (TrainingError, Interrupted, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of torch or timm: whatever it is, the training would fail too
            raise _failed(run, error) from error
        if run.is_main:
            try:
                _write_and_open(folder / "model", trial, data, fitted)
            except Exception as error:
                failure = _failed(run, error)
        if any_process(run.accelerator, failure is not None):
            raise failure or TrainingError("the dry run of the first process failed.")


def _write_and_open(folder: Path, trial: Run, data: RunData, fitted: Fitted) -> None:
    val = fitted.val
    calibration = write_model_folder(
        folder,
        model=fitted.model,
        val=val,
        reprocessed=fitted.reprocessed,
        options=trial.options,
        config=data.config,
    )
    image = rows_of(data.chosen, val.image_ids[:1])[0]["image"]
    explanation = LesionClassifier.from_pretrained(folder).explain(image)
    written = softmax(calibration.apply(val.logits))[0]
    read = np.array(list(explanation.prediction.probabilities.values()))
    if not np.allclose(read, written, atol=TOLERANCE):
        raise ValueError(f"the network gave {written.round(3)} before it was saved, and {read.round(3)} after")
    _ = explanation.maps


def _failed(run: Run, error: Exception) -> TrainingError:
    return TrainingError(
        f"the dry run on a few images failed, so nothing was trained ({type(error).__name__}: {str(error)[:500]}). Does "
        f"--backbone {run.options.backbone} fit --image_size {run.options.image_size}?"
    )
