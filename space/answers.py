"""From the photos of one lesion to the answer that page, report and programs show: one forward pass a photo, no more."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import render
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.explain import Explanation
from modeling.files import shortened
from modeling.formatting import percent
from modeling.images import ImageError, decode_image
from modeling.labels import DIAGNOSES, diagnosis_of
from modeling.operating_points import OperatingPoint, target_probability
from modeling.prediction import Prediction, rounded, target_name

MAX_PHOTOS = 8
EXPIRED = (
    "is no longer here: uploads are deleted after five minutes. Send it again, fewer files at once if there are many."
)


class QuestionError(ValueError):
    """A request that cannot be answered as it was put; the message says why, and what to send."""


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
        if not isinstance(self.source, bytes) and not os.path.isfile(self.source):
            raise ImageError(f"{self.name} {EXPIRED}")
        try:
            return decode_image(self.source)
        except ImageError as error:
            told_as = "The image" if isinstance(self.source, bytes) else repr(self.source)
            raise ImageError(str(error).replace(told_as, self.name)) from error


@dataclass(frozen=True)
class Looked:
    """A photo of a lesion: what the model made of it, or why it could not be read."""

    photo: Photo
    picture: Image.Image | None = None
    model_input: Image.Image | None = None  # the square of which the network got the pixels
    explanation: Explanation | None = None
    error: str | None = None


def classify_photo(classifier: LesionClassifier, photo: Photo) -> dict[str, Any]:
    """Return the answer for one photo."""
    return answer_fields(classifier, classifier.predict(photo.decode()))


def explain_photo(classifier: LesionClassifier, photo: Photo, diagnosis: str) -> tuple[dict[str, Any], Image.Image]:
    """Return the answer for one photo with the evidence of all diagnoses, and the photo with one heat map over it.

    Args:
        classifier: The loaded model.
        photo: What was sent.
        diagnosis: Code whose heat map is drawn; that of the answer if empty.

    Raises:
        ImageError: If the photo cannot be read.
        QuestionError: If the model has no such diagnosis.
    """
    asked = diagnosis.strip().upper()
    code = next((code for code in classifier.codes if code.upper() == asked), None)
    if asked and code is None:
        raise QuestionError(f"This model has no diagnosis {shortened(asked)}; it has {', '.join(classifier.codes)}.")
    picture = photo.decode()
    explanation = classifier.explain(picture)
    shown = code or explanation.prediction.diagnosis
    answer = {
        **answer_fields(classifier, explanation.prediction),
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

    A photo that cannot be read, or that the model abstains on, is named and left out; the others are averaged. If it
    abstains on all, so does the answer.

    Raises:
        ImageError: If no photo can be read, or there are too many.
    """
    if len(photos) > MAX_PHOTOS:
        raise ImageError(f"{len(photos)} photos came; at most {MAX_PHOTOS} of one lesion are averaged. Remove some.")
    looked = [look_at(classifier, photo) for photo in photos]
    read = [look.explanation.prediction for look in looked if look.explanation]
    if not read:
        raise ImageError(" ".join(str(look.error) for look in looked))
    lesion = lesion_prediction(classifier, read)
    answer = answer_fields(classifier, lesion)
    rivals = [row["code"] for row in answer["differential"] if row["code"] != lesion.diagnosis]
    contrast = (lesion.diagnosis, rivals[0])
    shown = [photo_fields(classifier, look, contrast, abstained=lesion.abstained) for look in looked]
    return {
        **answer,
        "n_used": sum(photo["used"] for photo in shown),
        "contrast": contrast,
        "photos": shown,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "license": classifier.lesion.get("license"),
    }


def look_at(classifier: LesionClassifier, photo: Photo) -> Looked:
    """Read a photo and let the model explain it, or say why it cannot be read."""
    try:
        picture = photo.decode()
    except ImageError as error:
        return Looked(photo, error=str(error))
    explanation = classifier.explain(picture)
    return Looked(photo, picture, Image.fromarray(explanation.model_input), explanation)


def lesion_prediction(classifier: LesionClassifier, predictions: Sequence[Prediction]) -> Prediction:
    """Average the predictions for several photos of one lesion, and apply the thresholds to the mean.

    Photos that the model abstains on are left out of the average, unless it abstains on all of them.
    """
    if len(predictions) == 1:
        return predictions[0]
    used = [prediction for prediction in predictions if not prediction.abstained] or list(predictions)
    mean = np.mean([[prediction.probabilities[code] for code in classifier.codes] for prediction in used], axis=0)
    return classifier.prediction(mean, used[0].reason)


def photo_fields(
    classifier: LesionClassifier, look: Looked, contrast: tuple[str, str], *, abstained: bool
) -> dict[str, Any]:
    """Return the pictures and numbers of one photo for the page; of one that was left out, a thumbnail and the reason."""
    if look.picture is None or look.explanation is None or look.model_input is None:
        return {"name": look.photo.name, "used": False, "thumbnail": None, "reason": look.error}
    prediction = look.explanation.prediction
    used = abstained or not prediction.abstained
    shown = render.fit_within(look.picture, render.DISPLAY_SIDE_PX)
    fields = {
        "name": look.photo.name,
        "used": used,
        "thumbnail": render.thumbnail(shown),
        "reason": prediction.reason,
        "width": look.picture.width,
        "height": look.picture.height,
        "probabilities": prediction.to_dict()["probabilities"],
    }
    if not used:
        return fields
    maps, map_size = render.grey_maps(look.explanation, contrast)
    return {
        **fields,
        "picture": render.data_uri(shown, "JPEG", quality=85),
        "model_input": render.data_uri(look.model_input, "PNG", compress_level=1),
        "model_input_px": classifier.size_px,
        "maps": maps,
        "has_maps": True,
        "map_note": None,
        "map_size": map_size,
        "codes": list(look.explanation.codes),
        "strength": {code: strength(look.explanation, code) for code in look.explanation.codes},
    }


def strength(explanation: Explanation, code: str) -> float:
    """Return the strongest evidence for a diagnosis as a fraction of the strongest for any, in [0, 1]."""
    peak = float(explanation.evidence[explanation.codes.index(code)].max())
    return max(peak, 0.0) / explanation.scale if explanation.scale > 0 else 0.0


def answer_fields(classifier: LesionClassifier, prediction: Prediction) -> dict[str, Any]:
    """Return `Prediction.to_dict` with names, what each threshold is for, and the diagnoses that the model lacks."""
    return {
        **prediction.to_dict(),
        "differential": differential(prediction.probabilities),
        "thresholds": {
            point.name: threshold_fields(point, classifier, prediction) for point in classifier.operating_points
        },
        "not_known": [
            {"name": diagnosis.name, "malignant": diagnosis.malignant}
            for diagnosis in DIAGNOSES
            if diagnosis.code not in classifier.codes
        ],
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
            "probability": rounded(probabilities[code]),
        }
        for code in ranking
    ]


def threshold_fields(point: OperatingPoint, classifier: LesionClassifier, prediction: Prediction) -> dict[str, Any]:
    """Say of one operating point what it is for, where it lies, what this answer has, and what it did in validation."""
    probs = np.array([[prediction.probabilities[code] for code in classifier.codes]])
    value = rounded(float(target_probability(probs, classifier.codes, point.codes)[0]))
    value_text, cutoff_text = shown_pair(value, point.threshold)
    return {
        "catches": target_name(point.codes),
        "target_sensitivity": point.target_sensitivity,
        "cutoff": point.threshold,
        "value": value,
        "in_words": {"value": value_text, "cutoff": cutoff_text, "target": percent(point.target_sensitivity)},
        "above": prediction.operating_points[point.name],
        "caught": round(point.sensitivity * point.n_positive),
        "n_positive": point.n_positive,
        "false_alarms": round((1 - point.specificity) * point.n_negative),
        "n_negative": point.n_negative,
    }


def shown_pair(value: float, cutoff: float) -> tuple[str, str]:
    """Write a probability and its cut-off with as many digits as it takes to tell them apart."""
    for digits in range(5):
        texts = f"{100 * value:.{digits}f}", f"{100 * cutoff:.{digits}f}"
        if texts[0] != texts[1] and not any(float(text) in (0, 100) for text in texts):
            break
    return f"{texts[0]} %", f"{texts[1]} %"
