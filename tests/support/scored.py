"""Model folders with the metrics and figures of a real evaluation of a tiny model: for the card, the page and the fuzzer.

The network has random weights and a classifier that is fitted to its features, so that it reads the colour of a blot.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from sklearn.linear_model import LogisticRegression

from modeling.abstention import AbstentionRule
from modeling.calibration import fit_calibration, softmax
from modeling.classifier import LesionClassifier
from modeling.data.columns import FEATURES
from modeling.data.duplicates import write_hashes
from modeling.data.sources import select_diagnoses
from modeling.data.splits import lesions_of, make_splits
from modeling.data.splits_file import splits_hash, write_splits
from modeling.evaluation.context import Context
from modeling.evaluation.evaluate import evaluate_model
from modeling.inference import Outputs
from modeling.labels import CODES, REFERENCE_CODES, SYNTHETIC_LICENSE
from modeling.model_folder import HASHES_NAME, ONNX_NAME, SPLITS_NAME
from modeling.network import TimmModel, build_model, fold_calibration, save_model_folder
from modeling.operating_points import fit_operating_points
from modeling.preprocessing import Preprocessing
from modeling.training.onnx_export import export_onnx
from support.hashes import hash_images

LESIONS_PER_DIAGNOSIS, LESIONS_LEFT_OUT = 40, 4
RECORD = {"train/loss": 1.2, "val/loss": 1.1, "val/balanced_accuracy": 0.5, "val/accuracy": 0.5}


def blot_dataset(
    names: Sequence[str] = CODES,
    *,
    common: Sequence[str] = REFERENCE_CODES,
    noise: float = 45.0,
    seed: int = 0,
    change: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> datasets.Dataset:
    """Make two photos of each lesion, a blot whose colour goes with the diagnosis.

    Args:
        names: Diagnoses; those that are not `common` have a few lesions.
        common: Diagnoses with many lesions.
        noise: Standard deviation of the colour of a lesion, in grey levels.
        seed: Of lesions and colours.
        change: Applied to each row.
    """
    rng, rows = np.random.default_rng(seed), []
    colours = np.random.default_rng(7).uniform(20, 235, size=(64, 3))
    for label, code in enumerate(names):
        for number in range(LESIONS_PER_DIAGNOSIS if code in common else LESIONS_LEFT_OUT):
            colour = tuple(int(value) for value in rng.normal(colours[label], noise).clip(0, 255))
            for photo in range(2):
                image_id = f"{code}_{number}_{photo}" if seed == 0 else f"{code}_{seed}_{number}_{photo}"
                left, top = (int(value) for value in rng.integers(8, 20, size=2))
                box = (left, top, left + 36, top + 36)
                skin = tuple(int(value) for value in rng.normal((220, 180, 160), 8).clip(0, 255))
                image = Image.new("RGB", (64, 64), skin)
                ImageDraw.Draw(image).ellipse(box, fill=colour)
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                row = {
                    "image": {"bytes": buffer.getvalue(), "path": None},
                    "image_id": image_id,
                    "label": label,
                    "lesion_id": None if number == 3 else f"{code}{seed or ''}_{number}",
                    "source": "HAM" if number % 3 else "BCN",
                    "age_approx": float(rng.integers(4, 17) * 5),
                    "sex": "female" if number % 2 else "male",
                    "anatom_site_general": "head/neck" if number % 3 else None,
                }
                rows.append(change(row))
    features = datasets.Features({**FEATURES, "label": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_list(rows, features=features)


def fitted_model(dataset: datasets.Dataset, splits: pd.DataFrame, codes: Sequence[str]) -> tuple[TimmModel, Outputs]:
    """Return a random network whose classifier is fitted to train, and its outputs for val."""
    torch.manual_seed(0)
    model = build_model("test_efficientnet", num_classes=len(codes), size_px=64, pretrained=False).eval()
    preprocess = Preprocessing(model.pretrained_cfg)
    position = {image_id: place for place, image_id in enumerate(dataset["image_id"])}

    def features_of(split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        rows = splits[splits["split"] == split]
        pixel_values = np.stack([preprocess(dataset[position[image_id]]["image"]) for image_id in rows["image_id"]])
        with torch.inference_mode():
            maps = model.forward_features(torch.from_numpy(pixel_values))
            features = model.forward_head(maps, pre_logits=True).numpy()
        return features, np.array([list(codes).index(code) for code in rows["label"]]), rows["image_id"].tolist()

    features, labels, _ = features_of("train")
    centre, spread = features.mean(axis=0), features.std(axis=0).mean()
    fit = LogisticRegression(C=0.3, max_iter=2000).fit((features - centre) / spread, labels)
    weight, bias = fit.coef_ / spread, fit.intercept_ - fit.coef_ @ centre / spread
    if len(codes) == 2:
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        model.get_classifier().weight.copy_(torch.from_numpy(weight))
        model.get_classifier().bias.copy_(torch.from_numpy(bias))
    features, labels, image_ids = features_of("val")
    logits = (features @ weight.T + bias).astype(np.float32)
    return model, Outputs(image_ids, labels, logits, features)


def save_fitted(
    folder: Path,
    dataset: datasets.Dataset,
    splits: pd.DataFrame,
    codes: Sequence[str],
    *,
    abstention: bool = True,
    onnx: bool = True,
    lesion: Mapping[str, Any] | None = None,
) -> None:
    """Fit a model to a dataset and write its folder as training does."""
    model, val = fitted_model(dataset, splits, codes)
    lesion_ids = lesions_of(splits, val.image_ids)
    counts = splits.loc[splits["split"].isin(["train", "val"]), "label"].value_counts()
    priors = {code: float(counts[code] / counts[list(codes)].sum()) for code in codes}
    calibration = fit_calibration(val.logits, val.labels, lesion_ids, priors=np.array(list(priors.values())))
    fold_calibration(model, calibration)
    val = val.calibrated(calibration)
    content = {
        "package_version": "0.1.0",
        "run_id": "card-run",
        "dataset": "demo",
        "synthetic": True,
        "protocol": "lesion",
        "license": SYNTHETIC_LICENSE,
        "base_model": "timm/efficientnet_b0.ra_in1k",
        "data_fingerprint": "f" * 64,
        "splits_sha256": splits_hash(splits),
        "class_priors": priors,
        "calibration": calibration,
        "operating_points": fit_operating_points(softmax(val.logits), val.labels, codes),
        "abstention": AbstentionRule.fit(val.logits, val.features, lesion_ids) if abstention else None,
        **(lesion or {}),
    }
    if onnx:
        export_onnx(model, folder / ONNX_NAME)
    folder.mkdir(parents=True, exist_ok=True)
    write_splits(splits, folder / SPLITS_NAME)
    hashes = hash_images(dataset)
    write_hashes(hashes[hashes["image_id"].isin(splits["image_id"])], folder / HASHES_NAME)
    save_model_folder(model, folder, codes=codes, lesion=content)


def make_scored_folder(
    base: Path,
    *,
    codes: Sequence[str] = REFERENCE_CODES,
    dataset: datasets.Dataset | None = None,
    splits: pd.DataFrame | None = None,
    abstention: bool = True,
    onnx: bool = True,
    lesion: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    **context: Any,
) -> Path:
    """Write a model folder with the metrics and figures of a real evaluation; by default of the four usual diagnoses."""
    folder = base / "model"
    if dataset is None:
        dataset = blot_dataset(common=codes)
    if splits is None:
        splits = make_splits(select_diagnoses(dataset, codes), diagnoses=codes)
    save_fitted(folder, dataset, splits, codes, abstention=abstention, onnx=onnx, lesion=lesion)
    run = {
        "options": {"dataset": "demo", "epochs": 2, "diagnoses": list(codes), **(options or {})},
        "origin": origin,
        "history": [{"epoch": epoch, **RECORD} for epoch in (1, 2)],
    }
    classifier = LesionClassifier.from_pretrained(folder, device="cpu")
    scored = Context(classifier, dataset, splits, n_skipped=3, run=run, **context)
    evaluate_model(scored, output_dir=folder, predictions_csv=base / "predictions.csv")
    return folder
