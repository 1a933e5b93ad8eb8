"""LesionClassifier: the public interface of a trained model. Image in, answer out; stateless and thread-safe."""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeVar, overload

import numpy as np
from PIL import Image

from modeling import __version__
from modeling.config import Config
from modeling.engines import Engine, ModelOutputs, open_engine
from modeling.explain import Explanation
from modeling.files import ModelFolderError
from modeling.images import ImageError, ImageInput, decode_image
from modeling.labels import NOTICE, SYNTHETIC_NOTICE
from modeling.model_folder import ModelFolder, read_config, released_model, resolve_model_folder
from modeling.prediction import Prediction, headline_points, target_name, verdict
from modeling.preprocessing import Preprocessing
from modeling.priors import PriorsChoice, resolve_priors, reweight
from modeling.runtime import own_cores

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class LesionClassifier:
    """A trained model with its preprocessing, operating points and abstention rule. Make it with `from_pretrained`.

    Attributes:
        codes: Diagnosis codes in the order of the outputs, length C.
        priors: Prior probabilities (C,) that its predictions assume.
        class_priors: Fraction of each diagnosis in the train and val images, by code; None if not recorded.
    """

    def __init__(self, engine: Engine, config: Config, source: ModelFolder) -> None:
        self.engine = engine
        self.architecture: str = config["architecture"]
        self.source = source
        self.model_id = source.model_id
        self.revision = source.revision
        self.codes: tuple[str, ...] = tuple(config["label_names"])
        self.names: dict[str, str] = {code: config["label_descriptions"].get(code, code) for code in self.codes}
        self.lesion = config["lesion"]
        self.transform = Preprocessing(config["pretrained_cfg"])
        self.size_px = self.transform.size_px
        self.operating_points = self.lesion.get("operating_points") or []
        self.abstention = self.lesion.get("abstention")
        self.class_priors = self.lesion.get("class_priors")
        self.priors = resolve_priors("equal", self.codes)
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
        repo_or_folder: str | Path | None = None,
        revision: str | None = None,
        device: str | None = None,
        engine: Literal["auto", "onnx", "torch"] = "auto",
        priors: PriorsChoice = "equal",
    ) -> Self:
        """Load a model folder, or download one from the Hub.

        Args:
            repo_or_folder: Folder `model` of a run, or a Hub repository id such as "me/skin-lesion-b0"; the released
                model of a clone by default.
            revision: Branch, tag or commit on the Hub; its full commit hash is then in `.revision`.
            device: Where to compute, as torch names it; the first GPU if there is one, else the CPU.
            engine: "onnx" (CPU) or "torch"; "auto" takes ONNX Runtime on a CPU if the model has an ONNX file.
            priors: How common the diagnoses are where the photos come from: "equal", "dataset" (the mix of the training
                data), or a weight for each diagnosis, {"NV": 0.7, …}. Operating points do not depend on it.

        Raises:
            ModelFolderError: If it cannot be found, read or trusted, or the engine is not installed; a ValueError.
            ValueError: If `priors` does not fit the model.
        """
        source = resolve_model_folder(released_model() if repo_or_folder is None else repo_or_folder, revision)
        config = read_config(source.path)
        try:
            network = open_engine(source, config, device=None if device is None else str(device), engine=engine)
            classifier = cls(network, config, source)
            # Untrusted weights, preprocessing and thresholds must give an answer together; tried once.
            classifier.predict(Image.new("RGB", (8, 8), (192, 144, 128)))
        except ModelFolderError:
            raise
        except Exception as error:  # of an engine or numpy: whatever it is, this model cannot answer
            raise ModelFolderError(
                f"{source.path}: the network or the entry 'lesion' of config.json cannot be used "
                f"({type(error).__name__}: {str(error)[:300]}); "
                "download the folder again, or update skin-lesion-classifier."
            ) from error
        return classifier.with_priors(priors)

    def with_priors(self, choice: PriorsChoice) -> Self:
        """Return a classifier for other priors, with the same network; see `from_pretrained`."""
        other = copy.copy(self)
        other.priors = resolve_priors(choice, self.codes, self.class_priors)
        return other

    @overload
    def predict(self, images: ImageInput, *, tta: bool = False) -> Prediction: ...
    @overload
    def predict(self, images: list[ImageInput], *, tta: bool = False) -> list[Prediction]: ...
    def predict(self, images: ImageInput | list[ImageInput], *, tta: bool = False) -> Prediction | list[Prediction]:
        """Classify one image, or a list of images in batches.

        Args:
            images: A path, bytes, a PIL image or an HWC uint8 array; or a list of those.
            tta: Average the probabilities over the eight flips and quarter turns (eight network passes, not one).

        Raises:
            ImageError: If an image cannot be read; the message says what was wrong and what to do.
        """
        if not isinstance(images, list):
            return self._answers(self.preprocess(images)[None], tta=tta)[0]
        answers: list[Prediction] = []
        for answer in self.predict_each(images, tta=tta):
            if isinstance(answer, ImageError):
                raise answer
            answers.append(answer)
        return answers

    def predict_each(
        self, images: Iterable[ImageInput | Callable[[], ImageInput]], *, tta: bool = False
    ) -> Iterator[Prediction | ImageError]:
        """Classify any number of images, read a few batches ahead, so that memory stays flat.

        Args:
            images: As for `predict`; or a function that returns one, called in the threads that decode.
            tta: As for `predict`.

        Yields:
            In order, each image's prediction, or the ImageError that says why there is none.
        """
        return self.map_batches(images, lambda pixel_values: self._answers(pixel_values, tta=tta, single_thread=True))

    def map_batches(
        self, images: Iterable[ImageInput | Callable[[], ImageInput]], run: Callable[[np.ndarray], Sequence[_Out]]
    ) -> Iterator[_Out | ImageError]:
        """Preprocess images as for `predict_each`, and yield in order the result of `run` for each of them.

        `run` takes pixel_values (B, 3, S, S) and returns B results; it is called in several threads.
        """
        from concurrent.futures import ThreadPoolExecutor  # imported late: one image needs no threads

        def read(image: ImageInput | Callable[[], ImageInput]) -> np.ndarray | ImageError:
            try:
                return self.preprocess(image() if callable(image) else image)
            except ImageError as error:
                return error

        def run_batch(batch: list[np.ndarray | ImageError]) -> list[_Out | ImageError]:
            arrays = [values for values in batch if isinstance(values, np.ndarray)]
            results = iter(run(np.stack(arrays)) if arrays else ())
            return [next(results) if isinstance(values, np.ndarray) else values for values in batch]

        # Decoding and the engines release the interpreter lock, so the next images are read during computation.
        size, cores = self.engine.batch_size, own_cores()
        with ThreadPoolExecutor(cores) as pool:
            if size == 1:  # each core takes one image at a time, from decoding to the answer
                yield from map_ahead(pool, lambda image: run_batch([read(image)])[0], images, ahead=2 * cores)
                return
            ahead = map_ahead(pool, read, images, ahead=2 * size)
            # In this thread: in a new one torch would start its threads again.
            for batch in iter(lambda: list(islice(ahead, size)), []):
                yield from run_batch(batch)

    def explain(self, image: ImageInput) -> Explanation:
        """Classify one image and show which regions raised each diagnosis' score (Grad-CAM), in one forward pass.

        Raises:
            ImageError: If the image cannot be read.
            ModelFolderError: If the heat maps of this network need torch, and that is not installed.
        """
        upright = decode_image(image)
        outputs = self.engine.forward(self.transform(upright)[None], evidence=True)
        if outputs.evidence is None or outputs.evidence.ndim != 4 or outputs.evidence.shape[1] != len(self.codes):
            raise ModelFolderError(f"{self.source.path}: the heat maps of this network do not fit its diagnoses.")
        prediction = self.predictions(outputs, outputs.probs)[0]
        return Explanation(
            codes=self.codes,
            evidence=outputs.evidence[0],
            size=(upright.height, upright.width),
            prediction=prediction,
            shown_code=self.shown_code(prediction),
        )

    def shown_code(self, prediction: Prediction) -> str:
        """Return the diagnosis whose heat map to show first: the most probable one of what was flagged, or of all."""
        points = headline_points(self.operating_points)
        flagged = {code for point in points if prediction.operating_points[point.name] for code in point.codes}
        return max(flagged or self.codes, key=prediction.probabilities.__getitem__)

    def preprocess(self, image: ImageInput) -> np.ndarray:
        """Decode and preprocess one image exactly as evaluation does: pixel_values, float32 (3, S, S)."""
        return self.transform(decode_image(image))

    def _answers(self, pixel_values: np.ndarray, *, tta: bool, single_thread: bool = False) -> list[Prediction]:
        outputs = self.engine.forward(pixel_values, single_thread=single_thread)
        if not tta:
            return self.predictions(outputs, outputs.probs)
        turned = [np.rot90(pixel_values, turns, axes=(2, 3)) for turns in range(4)]  # a lesion has no upright side
        views = [*turned, *(np.flip(view, 3) for view in turned)]
        probs = [outputs.probs, *(self.engine.forward(view, single_thread=single_thread).probs for view in views[1:])]
        return self.predictions(outputs, np.mean(probs, axis=0))

    def predictions(self, outputs: ModelOutputs, probs: np.ndarray) -> list[Prediction]:
        """Return the predictions for N images.

        Args:
            outputs: Of the upright images; they decide on abstention.
            probs: Their probabilities (N, C) at equal priors, or the mean over the eight views.
        """
        if not all(np.isfinite(values).all() for values in (outputs.logits, outputs.features, probs)):
            raise ModelFolderError(f"{self.source.path}: the network gives numbers that are not finite for this image.")
        reasons = self.abstention.reasons(outputs.logits, outputs.features) if self.abstention else [None] * len(probs)
        return [self.prediction(row, reason) for row, reason in zip(probs, reasons, strict=True)]

    def prediction(self, probs: np.ndarray, reason: str | None) -> Prediction:
        """Return the prediction for one lesion of its probabilities (C,) at equal priors and why it is refused, if so."""
        points, abstained = self.operating_points, reason is not None
        reached = {point.name: bool(point.reached(probs[None], self.codes)[0]) for point in points}
        at_priors = reweight(probs, self.priors)
        diagnosis, probability = self.codes[int(at_priors.argmax())], float(at_priors.max())
        return Prediction(
            diagnosis=diagnosis,
            probability=probability,
            probabilities=dict(zip(self.codes, at_priors.tolist(), strict=True)),
            priors=dict(zip(self.codes, self.priors.tolist(), strict=True)),
            flagged=tuple(target_name(point.codes) for point in headline_points(points) if reached[point.name]),
            abstained=abstained,
            reason=reason,
            operating_points=reached,
            verdict=verdict(points, reached, diagnosis=diagnosis, probability=probability, abstained=abstained),
            provenance=self.provenance,
            notice=self.notice,
        )

    @property
    def notice(self) -> str:
        """The disclaimer shown wherever this model is used."""
        return f"{NOTICE} {SYNTHETIC_NOTICE}" if self.lesion.get("synthetic") else NOTICE


def map_ahead(
    pool: "ThreadPoolExecutor", function: Callable[[_In], _Out], items: Iterable[_In], *, ahead: int
) -> Iterator[_Out]:
    """Yield function(item) for each item in order, like `pool.map`, but take at most `ahead` items in advance.

    So memory stays flat, and an error is raised before later items are read.
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
