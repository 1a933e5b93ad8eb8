"""From the photos of one lesion to the JSON that page and programs show; one forward pass a photo."""

import contextlib
import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import images_out
import numpy as np
from errors import QuestionError
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.engines import NotInstalledError
from modeling.explain import Explanation
from modeling.files import shortened
from modeling.images import ImageError, decode_image
from modeling.labels import DIAGNOSES, diagnosis_of
from modeling.operating_points import target_probability
from modeling.prediction import Prediction, rounded, target_name
from modeling.priors import reweight
from modeling.rows import malignant_probability

MAX_PHOTOS = 8
PREVIEW_SIDE_PX = 1024
EXPIRED = "is no longer here: uploads are deleted after five minutes. Send it again."

Turn = Callable[[], contextlib.AbstractContextManager[None]]  # waited for before each photo


@dataclass(frozen=True)
class Photo:
    """One image: the path of an upload or its bytes, and the visitor's name for it."""

    source: str | bytes
    name: str

    def data(self) -> bytes:
        """Return the content of the file; an ImageError says that it was deleted."""
        try:
            return self.source if isinstance(self.source, bytes) else Path(self.source).read_bytes()
        except OSError:
            raise ImageError(f"{self.name} {EXPIRED}") from None

    def decode(self) -> Image.Image:
        """Return the upright RGB image; an ImageError has the visitor's file name."""
        data = self.data()
        try:
            return decode_image(data)
        except ImageError as error:
            raise ImageError(str(error).replace("The image", self.name)) from error

    @property
    def browsers_show_it(self) -> bool:
        """False for TIFF and HEIC."""
        head = self.data()[:12]
        return not (head.startswith((b"II", b"MM")) or head[4:8] == b"ftyp")


def with_priors(classifier: LesionClassifier, choice: object) -> LesionClassifier:
    """Return the classifier at the priors that a visitor chose: "equal", "dataset" or weights."""
    try:
        return classifier.with_priors(choice or "equal")  # type: ignore[arg-type]  # which checks it
    except (ValueError, TypeError, OverflowError) as error:
        raise QuestionError(
            f"priors must be 'equal', 'dataset' or a weight per diagnosis code: {error}"[:300]
        ) from None


def explain_photo(classifier: LesionClassifier, photo: Photo, diagnosis: object) -> tuple[dict[str, Any], Image.Image]:
    """Return the answer for one photo with all evidence, and the photo with the heat map of a diagnosis over it.

    Without a diagnosis code the heat map is that of what was flagged.
    """
    asked = str(diagnosis or "").strip().upper()
    code = next((code for code in classifier.codes if code.upper() == asked), None)
    if asked and code is None:
        raise QuestionError(f"This model has no diagnosis {shortened(asked)}; it has {', '.join(classifier.codes)}.")
    image = photo.decode()
    explanation = classifier.explain(image)
    shown = code or explanation.shown_code
    fields = {"size": list(explanation.size), "shown": shown, **evidence_fields(explanation)}
    return answer_fields(classifier, explanation.prediction) | fields, images_out.overlay(image, explanation, shown)


def answer_lesion(
    classifier: LesionClassifier,
    photos: Sequence[Photo],
    *,
    priors: object = "equal",
    turn: Turn = contextlib.nullcontext,
) -> dict[str, Any]:
    """Return what the page shows for the photos of one lesion.

    A photo that cannot be read, or that the model abstains on, is named and left out; the others are averaged. If the
    model abstains on all of them, so does the answer.
    """
    if len(photos) > MAX_PHOTOS:
        raise ImageError(
            f"There are {len(photos)} photos; at most {MAX_PHOTOS} of one lesion are averaged. Choose fewer."
        )
    priors = priors or "equal"
    chosen, equal = with_priors(classifier, priors), classifier.with_priors("equal")
    shown: list[dict[str, Any]] = []
    read: list[Prediction] = []
    for photo in photos:
        with turn():
            try:
                image = photo.decode()
            except ImageError as error:
                shown.append({"name": photo.name, "used": False, "error": str(error)})
                continue
            prediction, evidence = with_evidence(equal, image)
            preview = {} if photo.browsers_show_it else {"preview": images_out.jpeg_uri(image, PREVIEW_SIDE_PX)}
        read.append(prediction)
        own = chosen.prediction(probs_of(prediction), prediction.reason).to_dict()
        shown.append(
            {
                "name": photo.name,
                "used": not prediction.abstained,
                "error": None,
                **{key: own[key] for key in ("abstained", "reason", "verdict", "probabilities")},
                "size": [image.height, image.width],
                **evidence,
                **preview,
            }
        )
    if not read:
        raise ImageError(" ".join(str(photo["error"]) for photo in shown) or "No photo was received.")
    lesion = lesion_prediction(chosen, read)
    if lesion.abstained:  # on all: none is left out
        shown = [{**photo, "used": not photo["error"]} for photo in shown]
    return {
        **answer_fields(chosen, lesion),
        "priors_choice": priors if priors in ("equal", "dataset") else "custom",
        "n_used": sum(photo["used"] for photo in shown),
        "shown": chosen.shown_code(lesion),
        "photos": shown,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "license": classifier.lesion.get("license"),
        "model_id": classifier.model_id,
        "revision": classifier.revision,
    }


def with_evidence(classifier: LesionClassifier, image: Image.Image) -> tuple[Prediction, dict[str, Any]]:
    """Classify a photo; also return its evidence, or why there is none."""
    try:
        explanation = classifier.explain(image)
    except NotInstalledError:
        note = "The heat maps of this network need torch, which is not installed here."
        return classifier.predict(image), {"evidence": None, "scale": 0.0, "strength": {}, "note": note}
    return explanation.prediction, evidence_fields(explanation)


def evidence_fields(explanation: Explanation) -> dict[str, Any]:
    """Return the evidence by code on the network's grid, and its strength as a fraction of the strongest, in [0, 1]."""
    scale = explanation.scale
    grids = dict(zip(explanation.codes, explanation.evidence.astype(float), strict=True))
    return {
        "evidence": {code: np.round(grid, 4).tolist() for code, grid in grids.items()},
        "scale": scale,
        "strength": {code: max(float(grid.max()), 0.0) / max(scale, 1e-12) for code, grid in grids.items()},
        "note": None,
    }


def lesion_prediction(classifier: LesionClassifier, predictions: Sequence[Prediction]) -> Prediction:
    """Average the predictions (at equal priors) for several photos of one lesion, and apply the thresholds to the mean.

    Photos that the model abstains on are left out of the average, unless it abstains on all of them.
    """
    used = [prediction for prediction in predictions if not prediction.abstained] or list(predictions)
    return classifier.prediction(np.mean([probs_of(prediction) for prediction in used], axis=0), used[0].reason)


def probs_of(prediction: Prediction) -> np.ndarray:
    """Return probabilities (C,) in the model's order."""
    return np.array(list(prediction.probabilities.values()))


def answer_fields(classifier: LesionClassifier, prediction: Prediction) -> dict[str, Any]:
    """Return `Prediction.to_dict` with names, what each threshold is for, and the diagnoses that the model lacks."""
    probabilities = prediction.probabilities
    at_equal = reweight(probs_of(prediction), 1 / classifier.priors)[None]
    known = {name.casefold() for code in classifier.codes for name in (code, diagnosis_of(code).name)}
    return {
        **prediction.to_dict(),
        "differential": [
            {**asdict(one), "malignant": one.malignant, "probability": rounded(probabilities[one.code])}
            for one in sorted(map(diagnosis_of, probabilities), key=lambda one: -probabilities[one.code])
        ],
        **malignant_probability(probabilities),
        "thresholds": {
            point.name: {
                "catches": target_name(point.codes),
                "target_sensitivity": point.target_sensitivity,
                "cutoff": point.threshold,
                "value": rounded(float(target_probability(at_equal, classifier.codes, point.codes)[0])),
                "above": prediction.operating_points[point.name],
                "caught": round(point.sensitivity * point.n_positive),
                "n_positive": point.n_positive,
                "false_alarms": round((1 - point.specificity) * point.n_negative),
                "n_negative": point.n_negative,
            }
            for point in classifier.operating_points
        },
        "not_known": [
            {"name": diagnosis.name, "malignant": diagnosis.malignant}
            for diagnosis in DIAGNOSES
            if known.isdisjoint((diagnosis.code.casefold(), diagnosis.name.casefold()))
        ],
    }
