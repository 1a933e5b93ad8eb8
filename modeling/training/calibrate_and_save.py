"""From the best weights to a model folder: calibrated on val and written once, config.json last."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from modeling import __version__
from modeling.abstention import AbstentionRule
from modeling.calibration import fit_calibration, softmax
from modeling.data.splits import lesions_of
from modeling.data.splits_file import load_splits
from modeling.files import write_json
from modeling.labels import SYNTHETIC_LICENSE, WEIGHTS_LICENSE
from modeling.model_folder import HASHES_NAME, ONNX_NAME, RUN_NAME, SPLITS_NAME, UNKNOWN_ORIGIN
from modeling.network import fold_calibration, save_model_folder
from modeling.operating_points import fit_operating_points
from modeling.training.onnx_export import export_onnx
from modeling.training.options import TrainOptions, dataset_name
from modeling.training.trainer import Fitted


def write_model_folder(folder: Path, fitted: Fitted, options: TrainOptions, config: dict[str, Any]) -> None:
    """Calibrate the network on val, in place, and write a model folder.

    The folder is replaced if it exists; splits.csv and the image hashes of the run are beside it. The network's raw logits
    estimate about the mix of train and val. `config` is the content of train_config.json.
    """
    codes, model, val = config["codes"], fitted.model, fitted.val
    shutil.rmtree(folder, ignore_errors=True)
    splits = load_splits(folder.parent / SPLITS_NAME)
    lesion_ids = lesions_of(splits, val.image_ids)
    counts = splits.loc[splits["split"].isin(["train", "val"]), "label"].value_counts()
    class_priors = {code: float(counts[code] / counts[codes].sum()) for code in codes}
    calibration = fit_calibration(val.logits, val.labels, lesion_ids, priors=np.array(list(class_priors.values())))
    fold_calibration(model, calibration)
    val = val.calibrated(calibration)
    origin, cfg = config["origin"], model.pretrained_cfg
    base_model = None if origin["base_model"] == UNKNOWN_ORIGIN else origin["base_model"]  # a Hub id
    if origin["kind"] == "pretrained":
        base_model = f"timm/{cfg['architecture']}{'.' + cfg['tag'] if cfg.get('tag') else ''}"
    versions = [val, fitted.reprocessed.calibrated(calibration)]
    lesion = {
        "package_version": __version__,
        "run_id": config["run_id"],
        "dataset": dataset_name(options),
        "synthetic": options.dataset == "demo",
        "protocol": config["options"]["protocol"],
        "base_model": base_model,
        "license": license_of(options, origin),
        "data_fingerprint": config["data_fingerprint"],
        "splits_sha256": config["splits_sha256"],
        "class_priors": class_priors,
        "calibration": calibration,
        "operating_points": fit_operating_points(softmax(val.logits), val.labels, codes),
        "abstention": AbstentionRule.fit(
            np.concatenate([version.logits for version in versions]),
            np.concatenate([version.features for version in versions]),
            np.concatenate([lesion_ids] * len(versions)),
        ),
    }
    export_onnx(model, folder / ONNX_NAME)
    write_json(folder / RUN_NAME, config)
    for name in (SPLITS_NAME, HASHES_NAME):
        shutil.copyfile(folder.parent / name, folder / name)
    save_model_folder(model, folder, codes=codes, lesion=lesion)


def license_of(options: TrainOptions, origin: dict[str, Any]) -> str | None:
    """Return the licence that the training data require; None where only the owners of data or initial weights know."""
    if options.dataset == "isic2019":
        return WEIGHTS_LICENSE
    return SYNTHETIC_LICENSE if options.dataset == "demo" and origin["kind"] == "scratch" else None
