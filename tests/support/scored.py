"""A model folder that is scored with made-up outputs: for the card, the page and the fuzzer."""

import io
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageDraw

from modeling.abstention import AbstentionRule
from modeling.calibration import fit_calibration, softmax
from modeling.classifier import LesionClassifier
from modeling.data.isic2019 import FEATURES
from modeling.data.splits import lesions_of, make_splits
from modeling.evaluation.context import Context
from modeling.evaluation.evaluate import evaluate_model
from modeling.inference import Outputs
from modeling.labels import CODES, REFERENCE_CODES, SYNTHETIC_LICENSE
from modeling.network import build_model, save_model_folder
from modeling.operating_points import fit_operating_points
from modeling.training.onnx_export import export_onnx

LESIONS_PER_DIAGNOSIS = 64


def draw_dataset(masks: Path) -> datasets.Dataset:
    """Two photos of each lesion, a blot whose colour goes with the diagnosis; and the mask of each blot."""
    masks.mkdir()
    rng, rows = np.random.default_rng(0), []
    for label, code in enumerate(CODES):
        for number in range(LESIONS_PER_DIAGNOSIS if code in REFERENCE_CODES else 4):
            for photo in range(2):
                image_id = f"{code}_{number}_{photo}"
                left, top = (int(value) for value in rng.integers(8, 20, size=2))
                box = (left, top, left + 36, top + 36)
                image, mask = Image.new("RGB", (64, 64), (220, 180, 160)), Image.new("L", (64, 64))
                ImageDraw.Draw(image).ellipse(box, fill=tuple(int(value) for value in rng.integers(0, 255, size=3)))
                ImageDraw.Draw(mask).ellipse(box, fill=255)
                mask.save(masks / f"{image_id}_segmentation.png")
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                rows.append(
                    {
                        "image": {"bytes": buffer.getvalue(), "path": None},
                        "image_id": image_id,
                        "label": label,
                        "lesion_id": None if number == 3 else f"{code}_{number}",
                        "source": "HAM" if number % 12 else "BCN",
                        "age_approx": float(rng.integers(4, 17) * 5),
                        "sex": "female" if number % 2 else "male",
                        "anatom_site_general": "head/neck" if number % 3 else None,
                    }
                )
    return datasets.Dataset.from_list(rows, features=FEATURES)


def make_scored_folder(base: Path) -> Path:
    """Write a model folder with the metrics and figures of a real evaluation of a made-up model."""
    folder, codes, rng = base / "model", REFERENCE_CODES, np.random.default_rng(0)
    dataset = draw_dataset(base / "masks")
    label_of = dict(zip(dataset["image_id"], [CODES[label] for label in dataset["label"]], strict=True))
    splits = make_splits(dataset, diagnoses=codes)
    torch.manual_seed(0)
    model = build_model("test_efficientnet", num_classes=4, size_px=64, pretrained=False)
    outputs = {}
    for split in ("val", "test"):
        ids = splits.loc[splits["split"] == split, "image_id"].tolist()
        labels = np.array([codes.index(label_of[image_id]) for image_id in ids])
        logits = (2.5 * np.eye(len(codes))[labels] + rng.normal(0, 1.5, size=(len(ids), len(codes)))).astype(np.float32)
        features = rng.normal(size=(len(ids), model.num_features)).astype(np.float32)
        outputs[split] = Outputs(ids, labels, logits, features)
    val, lesion_ids = outputs["val"], lesions_of(splits, outputs["val"].image_ids)
    calibration = fit_calibration(val.logits, val.labels, lesion_ids, priors=np.full(len(codes), 1 / len(codes)))
    val, test = (outputs[split].calibrated(calibration) for split in ("val", "test"))
    points = fit_operating_points(softmax(val.logits), val.labels, codes)
    rule = AbstentionRule.fit(val.logits, val.features, lesion_ids)
    lesion = {
        "package_version": "0.1.0",
        "run_id": "card-run",
        "dataset": "demo",
        "synthetic": True,
        "license": SYNTHETIC_LICENSE,
        "base_model": "timm/efficientnet_b0.ra_in1k",
        "data_fingerprint": "f" * 64,
        "calibration": calibration,
        "class_priors": dict.fromkeys(codes, 1 / len(codes)),
        "operating_points": points,
        "abstention": rule,
    }
    export_onnx(model.eval(), folder / "onnx/model.onnx", codes=codes, lesion=lesion)
    save_model_folder(model, folder, codes=codes, lesion=lesion)
    record = {"train/loss": 1.2, "val/loss": 1.1, "val/balanced_accuracy": 0.5, "val/accuracy": 0.5}
    context = Context(
        classifier=LesionClassifier.from_pretrained(folder),
        dataset=dataset,
        splits=splits,
        val_outputs=val,
        test_outputs=test,
        n_skipped=3,
        run={"options": {"dataset": "demo", "pretrained": True, "epochs": 2, "diagnoses": list(codes)}},
        history=[{"epoch": epoch, **record} for epoch in (1, 2)],
        masks_dir=base / "masks",
    )
    evaluate_model(context, output_dir=folder, predictions_csv=base / "predictions.csv")
    return folder
