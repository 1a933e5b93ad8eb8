"""LesionClassifier: the one public face of a trained model. Image in, answer out; stateless and safe under threads."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import numpy as np
from PIL import Image

from modeling import __version__
from modeling.abstention import AbstentionRule
from modeling.decision import Decision, most_probable
from modeling.engines import Engine, ModelOutputs, open_engine
from modeling.explain import BY_TORCH, Explanation
from modeling.files import ModelFolderError
from modeling.images import ImageError, ImageInput, decode_image
from modeling.labels import NOTICE, SYNTHETIC_NOTICE
from modeling.model_folder import ModelFolder, read_config, resolve_model_folder
from modeling.operating_points import OperatingPoint
from modeling.prediction import Prediction, verdict
from modeling.preprocessing import eval_transform
from modeling.runtime import own_cores

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class LesionClassifier:
    """A trained model with its preprocessing, operating points and abstention rule. Make it with `from_pretrained`."""

    def __init__(self, engine: Engine, config: dict[str, Any], source: ModelFolder) -> None:
        self.engine = engine
        self.architecture: str = config["architecture"]
        self.source = source
        self.model_id = source.model_id
        self.revision = source.revision
        self.codes: tuple[str, ...] = tuple(config["label_names"])
        self.names: dict[str, str] = {code: config["label_descriptions"].get(code, code) for code in self.codes}
        self.lesion: dict[str, Any] = config["lesion"]
        self.size_px = int(config["pretrained_cfg"]["input_size"][1])
        self.transform = eval_transform(config["pretrained_cfg"])
        self.interpolation: str = config["pretrained_cfg"]["interpolation"]  # of that transform
        self.operating_points = [OperatingPoint.from_dict(point) for point in self.lesion.get("operating_points") or []]
        decision = self.lesion.get("decision")
        self.decision = Decision.from_dict(decision) if decision else most_probable(self.codes)
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
        cls,
        repo_or_folder: str | Path,
        revision: str | None = None,
        device: str | None = None,
        engine: Literal["auto", "onnx", "torch"] = "auto",
    ) -> Self:
        """Load a model folder, or download one from the Hub.

        Args:
            repo_or_folder: Folder `model` of a run, or a Hub repository id such as "me/skin-lesion-b0".
            revision: Branch, tag or commit on the Hub; its full commit hash is then in `.revision`.
            device: Where to compute, as torch names it; the first GPU if there is one, else the CPU.
            engine: "onnx" (CPU) or "torch"; "auto" takes ONNX Runtime on a CPU if the model has an ONNX file.

        Raises:
            ModelFolderError: If it cannot be found, read or trusted, or the engine is not installed; a ValueError.
        """
        source = resolve_model_folder(repo_or_folder, revision)
        config = read_config(source.path)
        network = open_engine(source, config, device=None if device is None else str(device), engine=engine)
        try:
            classifier = cls(network, config, source)
            # What a stranger published is tried once: weights, preprocessing and thresholds must give an answer together.
            prediction = classifier.predict(Image.new("RGB", (8, 8), (192, 144, 128)))
        except Exception as error:  # of an engine or numpy: whatever it is, this model cannot answer
            raise ModelFolderError(
                f"{source.path}: the network or the entry 'lesion' of config.json cannot be used "
                f"({type(error).__name__}: {str(error)[:300]}); "
                "download the folder again, or update skin-lesion-classifier."
            ) from error
        if not math.isfinite(prediction.probability):
            raise ModelFolderError(f"{source.path}: the weights give no finite probability; download the folder again.")
        return classifier

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
        if not isinstance(images, list):
            return self._answers(self.preprocess(images)[None], tta=tta)[0]
        answers: list[Prediction] = []
        for answer in self.predict_each(images, tta=tta):
            if isinstance(answer, ImageError):
                raise answer
            if answer is not None:
                answers.append(answer)
        return answers

    def predict_each(
        self, images: Iterable[ImageInput | Callable[[], ImageInput] | None], *, tta: bool = False
    ) -> Iterator[Prediction | ImageError | None]:
        """Answer any number of images one by one: taken a few batches ahead, so that memory stays flat.

        Args:
            images: As for `predict`; or what returns one, called in the threads that decode; or None, which fills a
                place in its batch.
            tta: As for `predict`.

        Yields:
            Of each image in order its prediction, or the ImageError that says why there is none; None for None.
        """
        from concurrent.futures import ThreadPoolExecutor  # imported late: one image needs no threads

        def read(image: ImageInput | Callable[[], ImageInput] | None) -> np.ndarray | ImageError | None:
            try:
                return None if image is None else self.preprocess(image() if callable(image) else image)
            except ImageError as error:
                return error

        def answer(batch: list[np.ndarray | ImageError | None]) -> list[Prediction | ImageError | None]:
            arrays = [values for values in batch if isinstance(values, np.ndarray)]
            predictions = iter(self._answers(np.stack(arrays), tta=tta, in_lane=True) if arrays else ())
            return [next(predictions) if isinstance(values, np.ndarray) else values for values in batch]

        size, lanes = self.engine.batch_size, self.engine.lanes
        # Decoding and the engines release the interpreter lock, so what comes next is read while this is computed.
        with ThreadPoolExecutor(own_cores()) as readers, ThreadPoolExecutor(lanes) as runners:
            ahead = map_ahead(readers, read, images, ahead=2 * lanes * size)
            batches = iter(lambda: list(islice(ahead, size)), [])
            # A single lane stays in this thread: in a new one torch would start its threads and fill its memory anew.
            for answers in map(answer, batches) if lanes == 1 else map_ahead(runners, answer, batches, ahead=lanes):
                yield from answers

    def explain(self, image: ImageInput) -> Explanation:
        """Classify one image and show where each diagnosis' score came from (Grad-CAM), in one forward pass.

        Raises:
            ImageError: If the image cannot be read.
            ModelFolderError: If the heat maps of this network need torch, and that is not installed.
        """
        upright = decode_image(image)
        outputs = self.forward(self.transform(upright)[None])
        evidence, explained_by = self.engine.evidence(outputs)
        return Explanation(
            codes=self.codes,
            evidence=evidence,
            size=(upright.height, upright.width),
            prediction=self.predictions(outputs, outputs.probs)[0],
            note=None if explained_by == self.engine.name else BY_TORCH,
        )

    def preprocess(self, image: ImageInput) -> np.ndarray:
        """Decode and preprocess one image exactly as evaluation does: pixel_values, float32 (3, S, S)."""
        return self.transform(decode_image(image))

    def forward(self, pixel_values: np.ndarray) -> ModelOutputs:
        """Run the network once on pixel_values, float32 (B, 3, S, S)."""
        return self.engine.forward(pixel_values)

    def _answers(self, pixel_values: np.ndarray, *, tta: bool, in_lane: bool = False) -> list[Prediction]:
        outputs = self.engine.forward(pixel_values, in_lane=in_lane)
        return self.predictions(outputs, self.tta_probs(pixel_values, in_lane=in_lane) if tta else outputs.probs)

    def predictions(self, outputs: ModelOutputs, probs: np.ndarray) -> list[Prediction]:
        """Turn raw outputs into answers.

        Args:
            outputs: Of the N upright images; they decide on abstention.
            probs: Their probabilities (N, C), or the mean over the eight views.
        """
        reached = {point.name: point.reached(probs, self.codes) for point in self.operating_points}
        reasons: Iterable[str | None] = (
            self.abstention.reasons(outputs.logits, outputs.features) if self.abstention else [None] * len(probs)
        )
        return [
            self.prediction(row, {name: bool(values[index]) for name, values in reached.items()}, reason)
            for index, (row, reason) in enumerate(zip(probs, reasons, strict=True))
        ]

    def prediction(self, probs: np.ndarray, reached: dict[str, bool], reason: str | None) -> Prediction:
        """Make the answer for one lesion of its probabilities (C,), its operating points and why it is refused, if so."""
        probabilities = {code: float(value) for code, value in zip(self.codes, probs, strict=True)}
        diagnosis = self.codes[int(self.decision.choose(probs[None], self.codes)[0])]
        return Prediction(
            diagnosis=diagnosis,
            probability=probabilities[diagnosis],
            probabilities=probabilities,
            abstained=reason is not None,
            reason=reason,
            operating_points=reached,
            provenance=self.provenance,
            verdict=verdict(self.operating_points, reached, probabilities, diagnosis, abstained=reason is not None),
        )

    def tta_probs(self, pixel_values: np.ndarray, *, in_lane: bool = False) -> np.ndarray:
        """Return the mean probabilities over the eight flips and quarter turns, float64 (B, C)."""
        turned = [np.rot90(pixel_values, turns, axes=(2, 3)) for turns in range(4)]  # a lesion has no upright side
        views = [*turned, *(np.flip(view, 3) for view in turned)]
        return np.mean([self.engine.forward(view, in_lane=in_lane).probs for view in views], axis=0)

    @property
    def notice(self) -> str:
        """What every surface says of this model: no medical device, and whether it has only ever seen drawings."""
        return f"{NOTICE} {SYNTHETIC_NOTICE}" if self.lesion.get("synthetic") else NOTICE

    @property
    def origin(self) -> str:
        """The provenance of every answer in one line, for people."""
        return (
            f"{self.model_id}, revision {self.revision or 'local'}, weights sha256 {self.provenance['weights_sha256']}, "
            f"data {self.provenance['data_fingerprint'] or 'not recorded'}, skin-lesion-classifier {__version__}"
        )


def map_ahead(
    pool: "ThreadPoolExecutor", function: Callable[[_In], _Out], items: Iterable[_In], *, ahead: int
) -> Iterator[_Out]:
    """Yield function(item) for each item in order, like `pool.map`, but take from `items` only `ahead` further.

    So memory stays flat, and an error does not wait for all that comes after it.
    """
    futures: deque[Future[_Out]] = deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
