"""From the photos of one lesion to the answer that page, report and programs show: one forward pass a photo, no more."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import render
from PIL import Image

from modeling.calibration import OperatingPoint
from modeling.classifier import LesionClassifier
from modeling.explain import Explanation
from modeling.images import ImageError, decode_image
from modeling.labels import diagnosis_of
from modeling.prediction import Prediction

MAX_PHOTOS = 8
DIGITS = 6  # of a probability: beyond them two machines differ


class QuestionError(ValueError):
    """A request that asks for something this model does not have; the message says what it has."""


@dataclass(frozen=True)
class Photo:
    """One uploaded picture: its path on this machine or its bytes, and the name that the visitor gave it."""

    source: str | bytes
    name: str

    def decode(self) -> Image.Image:
        """Return the upright RGB picture.

        Raises:
            ImageError: With the visitor's file name in place of this machine's path.
        """
        try:
            return decode_image(self.source)
        except ImageError as error:
            told_as = "The image" if isinstance(self.source, bytes) else repr(self.source)
            raise ImageError(str(error).replace(told_as, self.name)) from error


def classify_photo(classifier: LesionClassifier, photo: Photo) -> dict[str, Any]:
    """Return the prediction for one photo, with every diagnosis' name and the operating points in words."""
    return prediction_fields(classifier, classifier.predict(photo.decode()))


def explain_photo(
    classifier: LesionClassifier, photo: Photo, diagnosis: str | None
) -> tuple[dict[str, Any], Image.Image]:
    """Return the prediction for one photo with the evidence of all diagnoses, and the photo with one heat map over it.

    Args:
        classifier: The loaded model.
        photo: What was sent.
        diagnosis: Code whose heat map is drawn; the most probable one if None.

    Raises:
        ImageError: If the photo cannot be read.
        QuestionError: If the model has no such diagnosis.
    """
    if diagnosis is not None and diagnosis not in classifier.codes:
        raise QuestionError(f"this model has no diagnosis {diagnosis!r}; it has {', '.join(classifier.codes)}.")
    picture = photo.decode()
    explanation = classifier.explain(picture)
    shown = diagnosis or explanation.prediction.diagnosis
    answer = {
        **prediction_fields(classifier, explanation.prediction),
        "image_size_px": {"width": picture.width, "height": picture.height},
        "heat_map_of": shown,
        "has_evidence": {code: explanation.has_evidence(code) for code in classifier.codes},
        "evidence": {
            code: np.round(grid, 4).tolist()
            for code, grid in zip(classifier.codes, explanation.evidence.astype(float), strict=True)
        },
        "evidence_note": "Signed evidence in units of the logit on the network's grid, stretched over the whole photo: "
        "where the score came from, not why.",
    }
    return answer, render.overlay(picture, explanation, shown)


def answer_lesion(classifier: LesionClassifier, photos: Sequence[Photo]) -> dict[str, Any]:
    """Return everything that the page shows for the photos of one lesion.

    Raises:
        ImageError: If a photo cannot be read, or there are too many.
    """
    if len(photos) > MAX_PHOTOS:
        raise ImageError(f"{len(photos)} photos came; at most {MAX_PHOTOS} of one lesion are averaged. Remove some.")
    pictures = [photo.decode() for photo in photos]
    explanations = [classifier.explain(picture) for picture in pictures]
    predictions = [explanation.prediction for explanation in explanations]
    lesion = lesion_fields(classifier, predictions)
    contrast = (lesion["differential"][0]["code"], lesion["differential"][1]["code"])
    return {
        **lesion,
        "contrast": contrast,
        "photos": [
            photo_fields(classifier, *parts, contrast) for parts in zip(photos, pictures, explanations, strict=True)
        ],
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "license": classifier.lesion.get("license"),
        "provenance": classifier.provenance,
        "notice": classifier.notice,
    }


def lesion_fields(classifier: LesionClassifier, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Average the predictions for several photos of one lesion.

    Photos that the model abstains on are left out of the average, unless it abstains on all of them.
    """
    used = [prediction for prediction in predictions if not prediction.abstained] or list(predictions)
    mean = np.mean([[prediction.probabilities[code] for code in classifier.codes] for prediction in used], axis=0)
    abstained = all(prediction.abstained for prediction in predictions)
    return {
        "differential": differential(dict(zip(classifier.codes, mean.tolist(), strict=True))),
        "abstained": abstained,
        "reason": predictions[0].reason if abstained else None,
        "n_photos": len(predictions),
        "left_out": [number for number, p in enumerate(predictions, 1) if p.abstained and not abstained],
        "operating_points": [
            operating_fields(point, bool(point.reached(mean[None], classifier.codes)[0]))
            for point in classifier.operating_points
        ],
    }


def photo_fields(
    classifier: LesionClassifier,
    photo: Photo,
    picture: Image.Image,
    explanation: Explanation,
    contrast: tuple[str, str],
) -> dict[str, Any]:
    """Return the pictures and numbers of one photo for the page."""
    shown, squashed = render.display_photo(picture, classifier.size_px)
    maps, map_size = render.grey_maps(explanation, contrast)
    prediction = explanation.prediction
    return {
        "name": photo.name,
        "width": picture.width,
        "height": picture.height,
        "picture": shown,
        "model_input": squashed,
        "model_input_px": classifier.size_px,
        "maps": maps,
        "map_size": map_size,
        "codes": list(explanation.codes),
        "strength": {code: strength(explanation, code) for code in explanation.codes},
        "probabilities": {code: round(value, DIGITS) for code, value in prediction.probabilities.items()},
        "abstained": prediction.abstained,
        "reason": prediction.reason,
    }


def strength(explanation: Explanation, code: str) -> float:
    """Return the strongest evidence for a diagnosis as a share of the strongest for any, in [0, 1]."""
    peak = float(explanation.evidence[explanation.codes.index(code)].max())
    return max(peak, 0.0) / explanation.scale if explanation.scale > 0 else 0.0


def prediction_fields(classifier: LesionClassifier, prediction: Prediction) -> dict[str, Any]:
    """Return a prediction for programs: `Prediction.to_dict`, rounded, with names and words added."""
    return {
        **prediction.to_dict(),
        "probability": round(prediction.probability, DIGITS),
        "probabilities": {code: round(value, DIGITS) for code, value in prediction.probabilities.items()},
        "differential": differential(prediction.probabilities),
        "operating_points_in_words": {
            point.name: operating_sentence(point, prediction.operating_points[point.name])
            for point in classifier.operating_points
        },
        "notice": classifier.notice,
    }


def differential(probabilities: dict[str, float]) -> list[dict[str, Any]]:
    """Return all diagnoses with full names, most probable first."""
    ranking = sorted(probabilities, key=lambda code: -probabilities[code])
    return [
        {
            "code": code,
            "name": diagnosis_of(code).name,
            "behaviour": diagnosis_of(code).behaviour,
            "malignant": diagnosis_of(code).malignant,
            "probability": round(probabilities[code], DIGITS),
        }
        for code in ranking
    ]


def operating_fields(point: OperatingPoint, reached: bool) -> dict[str, Any]:
    """Return one operating point with its answer, as a flag and in words."""
    return {"name": point.name, "reached": reached, "sentence": operating_sentence(point, reached)}


def operating_sentence(point: OperatingPoint, reached: bool) -> str:
    """Say what lying above or below an operating point means, with the counts of the validation split."""
    behaviours = {diagnosis_of(code).behaviour for code in point.codes}
    malignant = "malignant and pre-malignant lesions" if "pre-malignant" in behaviours else "malignant lesions"
    target = "melanomas" if point.codes == ("MEL",) else malignant
    caught = round(point.sensitivity * point.n_positive)
    threshold = f"the threshold that caught {percent(point.sensitivity)} of {target} in validation"
    if reached:
        others = percent(1 - point.specificity)
        return (
            f"Above {threshold} ({caught} of {point.n_positive} images). "
            f"{others} of the {point.n_negative} other images there were above it too."
        )
    missed = point.n_positive - caught
    return f"Below {threshold} ({caught} of {point.n_positive} images). It missed {missed}: this is no all-clear."


def probability_percent(probability: float) -> str:
    """Write a probability, which is never 0 or 1 but may be rounded to it: `percent`, but < 0.1 % in place of 0 %."""
    rounding = 10**-DIGITS
    return percent(min(max(probability, rounding), 1 - rounding))


def percent(share: float) -> str:
    """Write a share as people read it: 95 %, 4.2 %, 99.6 %, and never as certain when it is not."""
    value = 100 * share
    if 0 < value < 0.1:
        return "< 0.1 %"
    if 99.9 < value < 100:
        return "> 99.9 %"
    digits = 0 if value in (0, 100) or 10 <= value <= 99 else 1
    return f"{value:.{digits}f} %"
