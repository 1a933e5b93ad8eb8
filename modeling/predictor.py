"""LesionClassifier: the one public face of a trained model. Image in, answer out; stateless and safe under threads.

python -m modeling.predictor MODEL IMAGES… --output out.csv
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch

from modeling import __version__
from modeling.calibration import AbstentionRule, OperatingPoint, softmax
from modeling.explain import Explanation, class_evidence
from modeling.images import ImageInput, decode_image
from modeling.labels import NOTICE, SYNTHETIC_NOTICE
from modeling.model import ModelFolder, TimmModel, eval_transform, load_model_folder, resolve_model_folder

BATCH_SIZE = 32
# The eight symmetries of a square: a lesion has no upright side.
DIHEDRAL_VIEWS = tuple((turns, flip) for turns in range(4) for flip in (False, True))


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        diagnosis: Code of the most probable diagnosis, also when abstained.
        probability: Its calibrated probability.
        probabilities: Calibrated probability of every diagnosis by code, in the model's order; they sum to 1.
        abstained: True if the image is unlike the training data, so that the answer should not be used.
        reason: Why it abstained, in words; None otherwise.
        operating_points: By name ("MEL@95"), whether the image lies above the threshold fitted for that sensitivity.
        provenance: model_id, revision, weights_sha256, data_fingerprint, package_version.
    """

    diagnosis: str
    probability: float
    probabilities: dict[str, float]
    abstained: bool
    reason: str | None
    operating_points: dict[str, bool]
    provenance: dict[str, str | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction with the notice, ready for JSON."""
        return {**asdict(self), "notice": NOTICE}


@dataclass(frozen=True)
class ModelOutputs:
    """Raw outputs for N images: feature maps (N, K, h, w), pooled features (N, D) and logits (N, C)."""

    feature_maps: torch.Tensor
    features: np.ndarray
    logits: np.ndarray

    @property
    def probs(self) -> np.ndarray:
        """Calibrated probabilities, float64 (N, C)."""
        return softmax(self.logits)


class LesionClassifier:
    """A trained model with its preprocessing, operating points and abstention rule. Make it with `from_pretrained`."""

    def __init__(self, model: TimmModel, config: dict[str, Any], source: ModelFolder, device: torch.device) -> None:
        self.model: TimmModel = model.to(device)
        self.device = device
        self.source = source
        self.model_id = source.model_id
        self.revision = source.revision
        self.codes: tuple[str, ...] = tuple(config["label_names"])
        self.names: dict[str, str] = {code: config["label_descriptions"].get(code, code) for code in self.codes}
        self.lesion: dict[str, Any] = config["lesion"]
        self.size_px = int(config["pretrained_cfg"]["input_size"][1])
        self.transform = eval_transform(config["pretrained_cfg"])
        self.operating_points = [OperatingPoint.from_dict(point) for point in self.lesion.get("operating_points", [])]
        abstention = self.lesion.get("abstention")
        self.abstention = AbstentionRule.from_dict(abstention) if abstention else None
        self.provenance: dict[str, str | None] = {
            "model_id": self.model_id,
            "revision": self.revision,
            "weights_sha256": self.lesion["weights_sha256"],
            "data_fingerprint": self.lesion.get("data_fingerprint"),
            "package_version": __version__,
        }

    @classmethod
    def from_pretrained(
        cls, repo_or_folder: str | Path, revision: str | None = None, device: str | torch.device | None = None
    ) -> Self:
        """Load a model folder, or download one from the Hub.

        Args:
            repo_or_folder: Folder `model` of a run, or a Hub repository id such as "me/skin-lesion-b0".
            revision: Branch, tag or commit on the Hub; its full commit hash is then in `.revision`.
            device: Where to compute; the first GPU if there is one, else the CPU.

        Raises:
            ModelFolderError: If it cannot be found, read or trusted; a ValueError.
        """
        source = resolve_model_folder(repo_or_folder, revision)
        model, config = load_model_folder(source.path)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model, config, source, torch.device(device or default))

    @overload
    def predict(self, images: ImageInput, *, tta: bool = False) -> Prediction: ...
    @overload
    def predict(self, images: list[ImageInput], *, tta: bool = False) -> list[Prediction]: ...
    def predict(self, images: ImageInput | list[ImageInput], *, tta: bool = False) -> Prediction | list[Prediction]:
        """Classify one image, or a list of images in batches.

        Args:
            images: A path, bytes, a PIL image or an HWC uint8 array; or a list of those.
            tta: Average the probabilities over the eight flips and quarter turns (eight times the cost).

        Raises:
            ImageError: If an image cannot be read; the message says what was wrong and what to do.
        """
        single = not isinstance(images, list)
        items = images if isinstance(images, list) else [images]
        predictions: list[Prediction] = []
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            # Decoding releases the interpreter lock, so the next batch is read while this one is computed.
            tensors = pool.map(self.preprocess, items)
            for start in range(0, len(items), BATCH_SIZE):
                batch = torch.stack([next(tensors) for _ in items[start : start + BATCH_SIZE]])  # (B, 3, S, S)
                predictions.extend(self.predictions(self.forward(batch), batch if tta else None))
        return predictions[0] if single else predictions

    def explain(self, image: ImageInput) -> Explanation:
        """Classify one image and show where each diagnosis' score came from (Grad-CAM), in one forward pass.

        Raises:
            ImageError: If the image cannot be read.
        """
        picture = decode_image(image)
        outputs = self.forward(self.transform(picture)[None])
        evidence = class_evidence(self.model, outputs.feature_maps, len(self.codes))
        return Explanation(
            codes=self.codes,
            evidence=evidence,
            size=(picture.height, picture.width),
            prediction=self.predictions(outputs)[0],
        )

    def preprocess(self, image: ImageInput) -> torch.Tensor:
        """Decode and preprocess one image exactly as evaluation does: pixel_values, float32 (3, S, S)."""
        return self.transform(decode_image(image))

    @torch.inference_mode()
    def forward(self, pixel_values: torch.Tensor) -> ModelOutputs:
        """Run the network once on pixel_values (B, 3, S, S)."""
        feature_maps = self.model.forward_features(pixel_values.to(self.device))  # (B, K, h, w)
        features = self.model.forward_head(feature_maps, pre_logits=True)  # (B, D)
        logits = self.model.get_classifier()(features)  # (B, C)
        return ModelOutputs(feature_maps, features.float().cpu().numpy(), logits.float().cpu().numpy())

    def predictions(self, outputs: ModelOutputs, tta_pixel_values: torch.Tensor | None = None) -> list[Prediction]:
        """Turn raw outputs into answers.

        Args:
            outputs: Of the N upright images; they decide on abstention.
            tta_pixel_values: The same images (N, 3, S, S) if the eight views are to be averaged.
        """
        probs = outputs.probs if tta_pixel_values is None else self.tta_probs(tta_pixel_values)  # (N, C)
        reached = {point.name: point.reached(probs, self.codes) for point in self.operating_points}
        reasons: Iterable[str | None] = (
            self.abstention.reasons(outputs.logits, outputs.features) if self.abstention else [None] * len(probs)
        )
        return [
            Prediction(
                diagnosis=self.codes[int(row.argmax())],
                probability=float(row.max()),
                probabilities={code: float(value) for code, value in zip(self.codes, row, strict=True)},
                abstained=reason is not None,
                reason=reason,
                operating_points={name: bool(values[index]) for name, values in reached.items()},
                provenance=self.provenance,
            )
            for index, (row, reason) in enumerate(zip(probs, reasons, strict=True))
        ]

    def tta_probs(self, pixel_values: torch.Tensor) -> np.ndarray:
        """Return the mean probabilities over the eight flips and quarter turns, float64 (B, C)."""
        views = [dihedral_view(pixel_values, turns, flip) for turns, flip in DIHEDRAL_VIEWS]
        return np.mean([self.forward(view).probs for view in views], axis=0)

    @property
    def notice(self) -> str:
        """What every surface says of this model: no medical device, and whether it has only ever seen drawings."""
        return f"{NOTICE} {SYNTHETIC_NOTICE}" if self.lesion.get("synthetic") else NOTICE


def dihedral_view(pixel_values: torch.Tensor, turns: int, flip: bool) -> torch.Tensor:
    """Turn (B, 3, S, S) by `turns` quarter turns, then mirror it."""
    turned = torch.rot90(pixel_values, turns, dims=(2, 3))
    return turned.flip(3) if flip else turned
