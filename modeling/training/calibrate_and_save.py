"""From the best weights to a model folder: calibrated on val, checked, and written once."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from modeling import __version__
from modeling.abstention import AbstentionRule
from modeling.calibration import Calibration, fit_calibration, softmax
from modeling.classifier import LesionClassifier
from modeling.data.demo import draw_lesion
from modeling.data.duplicates import HASHES_NAME
from modeling.data.splits import lesions_of, load_splits
from modeling.decision import fit_decision
from modeling.files import RUN_NAME, SPLITS_NAME, UNKNOWN_ORIGIN, write_json
from modeling.inference import Outputs
from modeling.labels import CODES, SYNTHETIC_LICENSE, WEIGHTS_LICENSE
from modeling.network import TimmModel, fold_calibration, save_model_folder
from modeling.operating_points import fit_operating_points
from modeling.training.options import TrainOptions
from modeling.training.run_folder import dataset_name
from modeling.training.trainer import TrainingError

GOLDEN_SIDE_PX = 96
GOLDEN_SEED = 0
SAME_PROBABILITY = 1e-4


def write_model_folder(
    folder: Path, *, model: TimmModel, val: Outputs, options: TrainOptions, config: dict[str, Any]
) -> Calibration:
    """Calibrate the network on val, in place, and write it with all that is fitted there; return the calibration."""
    codes = config["codes"]
    shutil.rmtree(folder, ignore_errors=True)
    lesion_ids = lesions_of(load_splits(folder.parent / SPLITS_NAME), val.image_ids)
    calibration = fit_calibration(val.logits, val.labels, lesion_ids)
    fold_calibration(model, calibration)
    val = val.calibrated(calibration)
    lesion = {
        "package_version": __version__,
        "run_id": config["run_id"],
        "dataset": dataset_name(options),
        "synthetic": options.dataset == "demo",
        "protocol": options.protocol,
        "base_model": base_model_of(config["origin"], model),
        "license": license_of(options, config["origin"]),
        "data_fingerprint": config["data_fingerprint"],
        "splits_sha256": config["splits_sha256"],
        "calibration": calibration.to_dict(),
        "decision": fit_decision(softmax(val.logits), val.labels, codes).to_dict(),
        "operating_points": [point.to_dict() for point in fit_operating_points(softmax(val.logits), val.labels, codes)],
        "abstention": AbstentionRule.fit(val.logits, val.features, lesion_ids).to_dict(),
    }
    save_model_folder(model, folder, codes=codes, lesion=lesion)
    lesion["golden"] = golden_prediction(LesionClassifier.from_pretrained(folder))
    save_model_folder(model, folder, codes=codes, lesion=lesion)
    write_json(folder / RUN_NAME, config)
    for name in (SPLITS_NAME, HASHES_NAME):
        shutil.copyfile(folder.parent / name, folder / name)
    return calibration


def check_learned(val: Outputs) -> None:
    """Refuse to publish a network that tells nothing apart.

    Raises:
        TrainingError: If it gives every image of val the same probabilities, or none that is finite.
    """
    probs = softmax(val.logits)
    if not np.isfinite(probs).all() or np.ptp(probs, axis=0).max() < SAME_PROBABILITY:
        raise TrainingError(
            f"the network has learned nothing: it gives all {len(probs)} images of val the same answer. Lower --learning_rate, "
            "or start anew from other weights (--pretrained, --init_from). The log and the checkpoints are kept."
        )


def golden_prediction(classifier: LesionClassifier) -> dict[str, Any]:
    """Return the answer for a drawn picture, to be stored in config.json as `lesion.golden` and compared by --verify."""
    code = classifier.codes[0] if classifier.codes[0] in CODES else CODES[0]
    image = draw_lesion(np.random.default_rng(GOLDEN_SEED), code, width_px=GOLDEN_SIDE_PX, height_px=GOLDEN_SIDE_PX)
    prediction = classifier.predict(image)
    return {
        "image": f"draw_lesion(seed {GOLDEN_SEED}, {code}, {GOLDEN_SIDE_PX} px)",
        "mean_rgb": [round(float(value), 3) for value in np.asarray(image).mean(axis=(0, 1))],
        "diagnosis": prediction.diagnosis,
        "probabilities": {name: round(value, 6) for name, value in prediction.probabilities.items()},
        "abstained": prediction.abstained,
    }


def license_of(options: TrainOptions, origin: dict[str, Any]) -> str | None:
    """Return the licence that the data ask for; of other data, and of what else the demo started from, only their owners know."""
    if options.dataset == "isic2019":
        return WEIGHTS_LICENSE
    return SYNTHETIC_LICENSE if options.dataset == "demo" and origin["kind"] == "scratch" else None


def base_model_of(origin: dict[str, Any], model: TimmModel) -> str | None:
    """Return the Hub id of the weights that training started from, if they have one."""
    if origin["kind"] == "pretrained":
        tag = model.pretrained_cfg.get("tag")
        return f"timm/{model.pretrained_cfg['architecture']}{'.' + tag if tag else ''}"
    return None if origin["base_model"] == UNKNOWN_ORIGIN else origin["base_model"]
