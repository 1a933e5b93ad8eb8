"""Write a model folder's network as ONNX, so that it also runs in onnxruntime and in a browser. Needs the extra `export`.

python -m modeling.publish export RUN/model
"""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from modeling import __version__
from modeling.files import SPLITS_NAME, ModelFolderError
from modeling.images import decode_image
from modeling.labels import NOTICE, REFERENCE_CODES, SYNTHETIC_NOTICE
from modeling.model_folder import load_model_folder
from modeling.network import eval_transform

ONNX_NAME = "model.onnx"
INT8_NAME = "model_int8.onnx"
OPSET = 18  # what torch's exporter writes natively; read by onnxruntime from 1.14 on, its web build included
MAX_LOGIT_DIFFERENCE = 1e-4
N_CALIBRATION_IMAGES = 128
N_TEST_IMAGES = 1000
BATCH_SIZE = 16


class ExportError(ModelFolderError):
    """The model could not be exported; the message says why. A ModelFolderError, so that commands answer both alike."""


@dataclass(frozen=True)
class Int8Loss:
    """What 8-bit weights and activations cost, measured on the same images as the 32-bit model.

    Attributes:
        images: Which images these are, in words.
        n: How many.
        agreement: Share of images with the same diagnosis.
        largest_difference: Of a probability.
        balanced_accuracy, balanced_accuracy_int8: Against the labels, over the diagnoses that occur.
    """

    images: str
    n: int
    agreement: float
    largest_difference: float
    balanced_accuracy: float
    balanced_accuracy_int8: float


@dataclass(frozen=True)
class Exported:
    """The files written and what was checked; as a string, in sentences."""

    path: Path
    logit_difference: float
    int8_path: Path | None = None
    int8_calibration: str = ""
    int8_loss: Int8Loss | None = None

    def __str__(self) -> str:
        text = (
            f"{self.path}: opset {OPSET}, {self.path.stat().st_size / 1e6:.1f} MB; its logits differ from torch's by "
            f"{self.logit_difference:.1e} at most."
        )
        if self.int8_path is None:
            return text
        text += (
            f"\n{self.int8_path}: {self.int8_path.stat().st_size / 1e6:.1f} MB, calibrated on {self.int8_calibration}; "
        )
        if self.int8_loss is None:
            return f"{text}its loss of accuracy was not measured: name the data with --data_dir."
        loss = self.int8_loss
        return (
            f"{text}on {loss.n} images ({loss.images}) it agrees on {loss.agreement:.1%} of the diagnoses, balanced "
            f"accuracy {loss.balanced_accuracy_int8:.3f} instead of {loss.balanced_accuracy:.3f}, probabilities differ "
            f"by {loss.largest_difference:.2f} at most."
        )


def export_onnx(folder: Path, *, int8: bool = False, data_dir: Path | None = None) -> Exported:
    """Write `model.onnx` beside the weights, and on request `model_int8.onnx`.

    Input `pixel_values`, float32 (B, 3, S, S), preprocessed as the file's metadata say (keys `label_names`, `input_size`,
    `mean`, `std`, …); output `logits`, float32 (B, C), calibrated as in the folder. Abstention is not part of the file.

    Args:
        folder: A model folder.
        int8: Also write a version with 8-bit weights and activations in its convolutions and classifier.
        data_dir: A local copy of the dataset that the folder's config.json names: calibrates the 8-bit version on
            training images and measures its loss on test images. Without it, drawings calibrate.

    Returns:
        The files, and what was measured.

    Raises:
        ExportError: If a library is missing, or onnxruntime does not give torch's logits; then nothing is written.
        ModelFolderError: If the folder cannot be opened.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(
            f'exporting needs {error.name}, which is not installed: pip install "skin-lesion-classifier[export]"'
        ) from error

    folder = Path(folder)
    model, config = load_model_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
        new = Path(scratch) / ONNX_NAME
        content = _to_onnx(model, int(config["pretrained_cfg"]["input_size"][1]))
        _describe(content, config)
        onnx.checker.check_model(content)
        onnx.save(content, new)
        difference = largest_difference(model, new, _blots(config, 6))
        if not difference <= MAX_LOGIT_DIFFERENCE:
            raise ExportError(
                f"the logits of ONNX and torch differ by {difference:.2g}, more than {MAX_LOGIT_DIFFERENCE:g}; nothing was "
                f"written. This network may use an operation that torch {torch.__version__} exports wrongly."
            )
        exported = Exported(folder / ONNX_NAME, difference)
        if int8:
            new_int8 = Path(scratch) / INT8_NAME
            calibration, loss = _to_int8(new, new_int8, config, folder, data_dir)
            exported = Exported(folder / ONNX_NAME, difference, folder / INT8_NAME, calibration, loss)
            os.replace(new_int8, folder / INT8_NAME)
        os.replace(new, folder / ONNX_NAME)
    return exported


def _to_onnx(model: nn.Module, size_px: int) -> Any:
    """Return the network as an `onnx.ModelProto`."""
    example = torch.zeros(2, 3, size_px, size_px)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about torch, nothing that a user could act on
        path = Path(scratch) / ONNX_NAME
        torch.onnx.export(
            model,
            (example,),
            path,
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        import onnx

        content = onnx.load(path)
    # The exporter notes down its stack, with the paths of this machine, at every node.
    graph = content.graph
    for part in (
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
        *content.functions,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    return content


def _describe(content: Any, config: dict[str, Any]) -> None:
    """Write into the file what a program needs to use it without this package."""
    lesion, cfg = config["lesion"], config["pretrained_cfg"]
    notice = f"{NOTICE} {SYNTHETIC_NOTICE}" if lesion.get("synthetic") else NOTICE
    notes = {
        "label_names": config["label_names"],
        "label_descriptions": config["label_descriptions"],
        **{key: cfg[key] for key in ("input_size", "mean", "std", "interpolation", "crop_mode", "crop_pct")},
        "preprocessing": "upright RGB, squashed to input_size, divided by 255, minus mean, divided by std",
        "operating_points": lesion.get("operating_points", []),
        "weights_sha256": lesion["weights_sha256"],
        "data_fingerprint": lesion.get("data_fingerprint") or "",
        "run_id": lesion.get("run_id") or "",
        "license": lesion.get("license") or "",
        "package_version": __version__,
        "notice": notice,
    }
    for key, value in notes.items():
        content.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))


def largest_difference(model: nn.Module, path: Path, pixel_values: np.ndarray) -> float:
    """Return how far the logits of an ONNX file are from the network's, at most, alone and in batches of five and all."""
    session = _session(path)
    worst = 0.0
    for size in (1, 5, len(pixel_values)):
        batch = pixel_values[:size]
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch)).numpy()
        (found,) = session.run(["logits"], {"pixel_values": batch})
        worst = max(worst, float(np.abs(found - expected).max())) if np.isfinite(found).all() else float("nan")
    return worst


def _session(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


# ---- 8 bits --------------------------------------------------------------------------------------------------------


def _to_int8(
    path: Path, target: Path, config: dict[str, Any], folder: Path, data_dir: Path | None
) -> tuple[str, Int8Loss | None]:
    """Quantise to 8 bits; return in words what it was calibrated on, and what it costs if there are data to tell."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    data = _data_of(config, folder, data_dir)
    if data is None:
        words, images = f"{N_CALIBRATION_IMAGES} drawings", _drawings(config, N_CALIBRATION_IMAGES)
    else:
        words, images = f"{len(data.calibration)} images ({data.calibration_words})", data.calibration

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = _batches(config, images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixel_values": batch}

    # Shapes only: torch's exporter has folded the normalisation into the convolutions already.
    prepared = target.with_name("prepared.onnx")
    quant_pre_process(path, prepared, skip_optimization=True, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        # The cost of a depthwise convolution's filters differs a hundredfold: each channel has its own scale.
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    loss = None if data is None else _int8_loss(path, target, config, data)
    import onnx

    content = onnx.load(target)
    content.metadata_props.add(key="int8_calibration", value=words)
    content.metadata_props.add(key="int8_loss", value=json.dumps(asdict(loss) if loss else None))
    onnx.save(content, target)
    return words, loss


@dataclass(frozen=True)
class _Data:
    """Images that calibrate, and labelled images that measure; as files' paths or contents."""

    calibration: list[Any]
    calibration_words: str
    test: list[Any]
    test_labels: np.ndarray
    test_words: str


def _data_of(config: dict[str, Any], folder: Path, data_dir: Path | None) -> _Data | None:
    """Find images of the dataset that the model was trained on; None if they are not on this machine."""
    name = config["lesion"].get("dataset", "isic2019")
    if data_dir is None and name != "demo":
        return None
    import datasets

    from modeling.data.sources import load_data, select_diagnoses

    data = select_diagnoses(load_data(name, data_dir=data_dir), config["label_names"])
    data = data.cast_column("image", datasets.Image(decode=False))
    order = np.random.default_rng(0).permutation(len(data))
    split_of = _splits(folder)
    splits = np.array([split_of.get(image_id, "") for image_id in data["image_id"]])[order]
    train, test = order[splits == "train"], order[splits == "test"]
    words = "its training split", "its test split"
    if not len(train) or not len(test):
        train, test = order[:N_CALIBRATION_IMAGES], order[N_CALIBRATION_IMAGES:]
        words = name, f"{name}; the folder has no splits.csv of them, so the model may have been trained on them"
    train, test = train[:N_CALIBRATION_IMAGES], test[:N_TEST_IMAGES]

    def images(indices: np.ndarray) -> list[Any]:
        return [image["bytes"] or image["path"] for image in data.select(indices)["image"]]

    labels = np.asarray(data.select(test)["label"][:])
    return _Data(images(train), words[0], images(test), labels, words[1])


def _splits(folder: Path) -> dict[str, str]:
    """Return the split of every image that splits.csv names; empty without that file."""
    import csv

    path = folder / SPLITS_NAME
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["image_id"]: row["split"] for row in csv.DictReader(file)}


def _int8_loss(path: Path, int8_path: Path, config: dict[str, Any], data: _Data) -> Int8Loss:
    from modeling.calibration import softmax

    probs = []
    for each in (path, int8_path):
        session = _session(each)
        batches = _batches(config, data.test)
        probs.append(softmax(np.concatenate([session.run(None, {"pixel_values": batch})[0] for batch in batches])))
    answers = [prob.argmax(axis=1) for prob in probs]
    scores = [_balanced_accuracy(answer, data.test_labels) for answer in answers]
    return Int8Loss(
        images=data.test_words,
        n=len(data.test),
        agreement=float((answers[0] == answers[1]).mean()),
        largest_difference=float(np.abs(probs[0] - probs[1]).max()),
        balanced_accuracy=scores[0],
        balanced_accuracy_int8=scores[1],
    )


def _balanced_accuracy(answers: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([(answers[labels == label] == label).mean() for label in np.unique(labels)]))


def _batches(config: dict[str, Any], images: Sequence[Any]) -> Iterator[np.ndarray]:
    """Yield pixel_values (B, 3, S, S) of images, or of what is preprocessed already."""
    transform = eval_transform(config["pretrained_cfg"])
    for start in range(0, len(images), BATCH_SIZE):
        few = images[start : start + BATCH_SIZE]
        yield np.stack(
            [
                image if isinstance(image, np.ndarray) and image.ndim == 3 else transform(decode_image(image)).numpy()
                for image in few
            ]
        )


def _blots(config: dict[str, Any], count: int) -> np.ndarray:
    """Return pixel_values (N, 3, S, S) of smooth random colours, from calm to glaring: input to compare logits on."""
    rng = np.random.default_rng(0)
    transform = eval_transform(config["pretrained_cfg"])
    contrast = np.linspace(16, 127, count)
    colours = [rng.uniform(128 - span, 128 + span, (8, 8, 3)).astype(np.uint8) for span in contrast]
    return np.stack([transform(Image.fromarray(each)).numpy() for each in colours])


def _drawings(config: dict[str, Any], count: int) -> list[np.ndarray]:
    """Return pixel_values (3, S, S) of lesions drawn as in the demo data."""
    try:
        from modeling.data.demo import draw_lesion
    except ImportError as error:
        raise ExportError(
            f'drawings to calibrate on need {error.name}, which is not installed: pip install "skin-lesion-classifier[train]"'
        ) from error

    rng = np.random.default_rng(0)
    transform = eval_transform(config["pretrained_cfg"])
    pictures = [
        draw_lesion(rng, REFERENCE_CODES[number % len(REFERENCE_CODES)], width_px=160, height_px=120)
        for number in range(count)
    ]
    return [transform(picture).numpy() for picture in pictures]
