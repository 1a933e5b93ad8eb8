"""External validation: the model's own test beside images from elsewhere, on which nothing was fitted.

Each number of the two tests has an interval by a bootstrap of its own lesions; the interval of their difference follows from
the two (MOVER, Zou & Donner 2008, doi:10.1002/sim.3095), so a model's published metrics.json is all that is needed of the
first. A change of quality is told from a change of mix by re-weighting the external images to the internal mix.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import datasets
import numpy as np
import pandas as pd
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.data.duplicates import HASHES_NAME, find_known, read_hashes
from modeling.data.isic2019 import UNKNOWN_CLASS
from modeling.data.sources import LoadedImages
from modeling.data.splits import COLUMNS, group_lesions, to_table
from modeling.engines import BATCH_SIZE
from modeling.evaluation.bootstrap import (
    Bootstrap,
    Estimate,
    bootstrap_lesions,
    estimate,
    estimate_mean,
    estimate_rate,
    not_estimable,
)
from modeling.evaluation.context import Context, External, classify_images
from modeling.evaluation.metrics import no_image_of, replicated_confusion, score_balanced
from modeling.formatting import format_estimate
from modeling.labels import CODES
from modeling.model_folder import file_beside
from modeling.operating_points import OperatingPoint, choose_threshold, shows_target, target_probability

CHALLENGE_CLASSES = (*CODES, UNKNOWN_CLASS)
HEADLINE = ("balanced_accuracy", "accuracy", "macro_auroc", "macro_f1")
SHARPNESS_SIDE_PX = 224
N_NEWTON_STEPS = 25
MAX_WEIGHTS = 1_000_000  # of images times replicates held at once: 8 MB an array
# Luminance quantisation of libjpeg at quality 50 (ITU-T T.81, table K.1), of which other qualities are multiples.
_JPEG_QUALITY_50 = np.array([
    16, 11, 10, 16, 24, 40, 51, 61,
    12, 12, 14, 19, 26, 58, 60, 55,
    14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77,
    24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
])  # fmt: skip


def compare_estimates(internal: Estimate, external: Estimate) -> Estimate:
    """Return external minus internal with a 95 % interval from the two intervals, which are of independent lesions."""
    if internal["value"] is None or external["value"] is None:
        side = "internal" if internal["value"] is None else "external"
        return not_estimable(f"the {side} value is not estimable")
    value = external["value"] - internal["value"]
    if any(one.get(bound) is None for one in (internal, external) for bound in ("low", "high")):
        return {"value": value, "low": None, "high": None, "reason": "one of the two values has no interval"}
    low = value - np.hypot(external["value"] - external["low"], internal["high"] - internal["value"])
    high = value + np.hypot(external["high"] - external["value"], internal["value"] - internal["low"])
    return {"value": value, "low": float(low), "high": float(high)}


def calibration_in_the_large(probs: np.ndarray, labels: np.ndarray, codes: Sequence[str], bootstrap: Bootstrap) -> dict:
    """Return for each diagnosis the mean probability minus its frequency, and the slope of its log odds.

    Both are 0 and 1 where the model is calibrated; a slope below 1 means that probabilities are too extreme
    (Van Calster et al. 2019, doi:10.1186/s12916-019-1466-7).
    """
    return {
        code: {
            "excess_probability": estimate_mean(probs[:, index] - (labels == index), bootstrap),
            "slope": _slope(probs[:, index], labels == index, bootstrap),
        }
        for index, code in enumerate(codes)
    }


def _slope(probs: np.ndarray, shows: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Slope of a logistic regression of what an image shows (N,) on the log odds of its probability (N,)."""
    if shows.all() or not shows.any():
        return not_estimable("the diagnosis has no image, or all of them")
    clipped = probs.clip(1e-6, 1 - 1e-6)
    log_odds = np.log(clipped / (1 - clipped))
    whole = logistic_slopes(log_odds, shows, np.ones((1, len(shows))))[0]
    parts = np.array_split(bootstrap.draws, max(1, len(bootstrap.draws) * len(shows) // MAX_WEIGHTS))
    replicates = np.concatenate([logistic_slopes(log_odds, shows, part[:, bootstrap.lesion_index]) for part in parts])
    reason = "no slope fits: the diagnosis is told apart without fault, or its probability is always the same"
    return estimate(float(whole), replicates, bootstrap.n_lesions, reason=reason)


def logistic_slopes(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fit y ~ sigmoid(a + b x) once for each row of weights (R, N) by Newton's method; return b (R,), NaN where none fits."""
    # From 0: from 1, where p is saturated, the first step leads astray if the probabilities are much too extreme.
    a, b = np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for _ in range(N_NEWTON_STEPS):
            p = 1 / (1 + np.exp(-(a + b * x)))  # (R, N)
            residual, curvature = weights * (y - p), weights * p * (1 - p)
            g0, g1 = residual.sum(axis=1), residual @ x
            h0, h1, h2 = curvature.sum(axis=1), curvature @ x, curvature @ x**2
            determinant = h0 * h2 - h1**2
            step_a, step_b = (h2 * g0 - h1 * g1) / determinant, (h0 * g1 - h1 * g0) / determinant
            a, b = a + step_a[:, None], b + step_b[:, None]
            if np.nanmax(np.abs([step_a, step_b]), initial=0) < 1e-8:
                break
    return np.where(np.abs(step_b) < 1e-6, b[:, 0], np.nan)  # where nothing is told apart wrongly, b grows for ever


def accuracy_at_mix(predicted: np.ndarray, labels: np.ndarray, mix: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Return what the accuracy would be if diagnoses were as frequent as in a set of `mix` (C,) images of each."""
    weights = mix / mix.sum()
    missing = [index for index in np.flatnonzero(weights) if not (labels == index).any()]
    if missing:
        return not_estimable("a diagnosis of the internal test has no image here")
    recall = np.array(
        [(predicted[labels == index] == index).mean() if weights[index] else 0.0 for index in range(len(mix))]
    )
    confusion = replicated_confusion(predicted, labels, len(mix), bootstrap)  # (R, C, C)
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = np.where(weights > 0, np.diagonal(confusion, axis1=1, axis2=2) / confusion.sum(axis=2), 0)
    return estimate(float(weights @ recall), recalls @ weights, bootstrap.n_lesions)


def needed_threshold(
    point: OperatingPoint, probs: np.ndarray, labels: np.ndarray, codes: Sequence[str]
) -> dict[str, Any]:
    """Return the threshold that would reach the point's target sensitivity on these images. It is reported, never used."""
    is_positive = shows_target(labels, codes, point.codes)
    if not is_positive.any():
        return {"threshold": None, "reason": f"no image of {', '.join(point.codes)}"}
    scores = target_probability(probs, codes, point.codes)
    return {"threshold": choose_threshold(scores, is_positive, min_sensitivity=point.target_sensitivity)}


# ---- what the images are like ----------------------------------------------------------------------------------------


def image_properties(files: Sequence[bytes], images: Sequence[Image.Image]) -> dict[str, dict[str, float | None]]:
    """Return median and quartiles of the size, sharpness, compression and brightness of images.

    Args:
        files: Their files, N of them.
        images: The same images, decoded upright RGB.

    Returns:
        `long_side_px`; `sharpness`, the standard deviation of the Laplacian at 224 px, in grey levels; `jpeg_quality` of
        those that are JPEGs, estimated from the quantisation table, 1 to 100; `brightness`, mean luma in [0, 1].
    """
    grey = [np.asarray(image.convert("L").resize((SHARPNESS_SIDE_PX, SHARPNESS_SIDE_PX))) for image in images]
    values = {
        "long_side_px": [max(image.size) for image in images],
        "sharpness": [float(cv2.Laplacian(pixels, cv2.CV_32F).std()) for pixels in grey],
        "jpeg_quality": [quality for file in files if (quality := jpeg_quality(file)) is not None],
        "brightness": [float(pixels.mean()) / 255 for pixels in grey],
    }
    return {name: _quartiles(np.array(numbers, dtype=float)) for name, numbers in values.items()}


def jpeg_quality(file: bytes) -> float | None:
    """Estimate libjpeg's quality setting of a JPEG from its luminance quantisation; None for other formats."""
    if not file.startswith(b"\xff\xd8"):
        return None
    with Image.open(io.BytesIO(file)) as image:
        table = getattr(image, "quantization", {}).get(0)
    if table is None:
        return None
    scale = float(np.median(100 * np.array(table) / _JPEG_QUALITY_50))  # per cent of the table of quality 50
    return float(np.clip(5000 / scale if scale > 100 else 100 - scale / 2, 1, 100))


def _quartiles(values: np.ndarray) -> dict[str, float | None]:
    names = ("lower_quartile", "median", "upper_quartile")
    if len(values) == 0:
        return dict.fromkeys(names)
    return dict(zip(names, np.quantile(values, [0.25, 0.5, 0.75]).tolist(), strict=True))


# ---- the section -----------------------------------------------------------------------------------------------------


def headline_rows(internal: Mapping[str, Any], external: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Return internal, external and difference of each headline number of two contents of metrics.json."""
    rows = {name: (internal["test"][name], external["test"][name]) for name in HEADLINE}
    rows |= {
        f"{code}/recall": (scores["recall"], external["test"]["per_class"][code]["recall"])
        for code, scores in internal["test"]["per_class"].items()
    }
    inside, outside = (metrics["calibration"]["test"]["after"] for metrics in (internal, external))
    rows |= {name: (inside[name], outside[name]) for name in ("ece", "brier", "nll")}
    points = {point["name"]: point for point in internal["operating_points"] if "test" in point}
    for point in external["operating_points"]:
        if "test" in point and point["name"] in points:
            for name in ("sensitivity", "specificity"):
                rows[f"{point['name']}/{name}"] = (points[point["name"]]["test"][name], point["test"][name])
    if "test" in internal["abstention"] and "test" in external["abstention"]:
        rows["abstained"] = (internal["abstention"]["test"]["abstained"], external["abstention"]["test"]["abstained"])
    return {
        name: {"internal": one, "external": other, "difference": compare_estimates(one, other)}
        for name, (one, other) in rows.items()
    }


def mix_rows(internal: Mapping[str, Any], external: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the fraction of test images of each diagnosis, age band, sex, site and source, internal beside external."""
    result = {}
    for name in ("diagnosis", "age_years", "sex", "site", "source"):
        counts = []
        for metrics in (internal, external):
            rows = metrics["test"]["per_class"] if name == "diagnosis" else metrics["groups"][name]
            counts.append({group: row["n_images"] for group, row in rows.items()})
        total = [sum(of.values()) for of in counts]
        result[name] = {
            group: {
                side: of.get(group, 0) / n if n else None
                for side, of, n in zip(("internal", "external"), counts, total, strict=True)
            }
            for group in sorted({*counts[0], *counts[1]})
        }
    return result


# ---- opening an external dataset -------------------------------------------------------------------------------------


def open_external(
    classifier: LesionClassifier,
    loaded: LoadedImages,
    *,
    name: str,
    challenge: bool,
    internal: Mapping[str, Any] | None,
) -> tuple[datasets.Dataset, pd.DataFrame, External]:
    """Leave out what the model has seen and make every other image of a known diagnosis test.

    Returns:
        The dataset without the images that the model has seen; splits that say test for those of its diagnoses, with lesions
        from the data or from near-duplicates; and what was left out.

    Raises:
        ValueError: If no image of the model's diagnoses is left, with what was there instead.
    """
    hashes = file_beside(classifier.source, HASHES_NAME)
    if hashes is None:
        left_out = pd.DataFrame(columns=["image_id", "reason"])
        compared_by = (
            f"nothing: the model was published without {HASHES_NAME}, so images that it has seen may be among these"
        )
    else:
        left_out = find_known(loaded.hashes, read_hashes(hashes))
        compared_by = "image id, lesion id and perceptual hash"
    seen = np.isin(loaded.dataset["image_id"], left_out["image_id"])
    if seen.all():
        raise ValueError(
            f"all {len(seen)} images of {name} are among those that the model was trained, chosen or tested on: nothing "
            "external is left. Leave --external out to score the model on its own test split."
        )
    dataset = loaded.dataset.select(np.flatnonzero(~seen))
    table, _ = group_lesions(to_table(dataset), loaded.hashes)
    splits = table[table["label"].isin(classifier.codes)].assign(split="test")[list(COLUMNS)]
    if splits.empty:
        found = ", ".join(sorted(set(table["label"])))
        raise ValueError(
            f"the model answers {', '.join(classifier.codes)}, and {name} has none of these, but {found}. Rename its labels to "
            "the codes or full names of the diagnoses."
        )
    return (
        dataset,
        splits.sort_values("image_id", ignore_index=True),
        External(internal, dict(Counter(left_out["reason"])), compared_by, challenge),
    )


def image_properties_section(context: Context) -> dict[str, Any]:
    files = context.images.files(context.sample.rows["image_id"])
    return image_properties(
        [file if isinstance(file, bytes) else Path(file).read_bytes() for file in files], context.sample.images
    )


def external_section(context: Context, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the other sections of an external evaluation with the model's own metrics.json."""
    external, test, codes = context.external, context.test, context.codes
    assert external is not None
    own = external.internal
    missing = {"reason": "the model was published without a metrics.json to compare with"}
    points = context.classifier.operating_points
    return {
        "compared_by": external.compared_by,
        "left_out": external.left_out,
        "headline": headline_rows(own, metrics) if own else missing,
        "calibration": calibration_in_the_large(test.probs, test.labels, codes, test.bootstrap),
        "thresholds": {
            point.name: {"stored": point.threshold, "needed": needed_threshold(point, test.probs, test.labels, codes)}
            for point in points
        },
        "mix": mix_rows(own, metrics) if own else missing,
        "image_properties": {
            name: {"internal": own["image_properties"][name], "external": values}
            for name, values in metrics["image_properties"].items()
        }
        if own
        else missing,
        "accuracy_at_internal_mix": accuracy_at_mix(
            test.predicted,
            test.labels,
            np.array([own["test"]["per_class"][code]["n_images"] for code in codes]),
            test.bootstrap,
        )
        if own
        else not_estimable(missing["reason"]),
        "challenge": score_challenge(context)
        if external.challenge
        else {"reason": "not the official test of ISIC 2019"},
    }


def score_challenge(context: Context) -> dict[str, Any]:
    """Score the official test as the ISIC 2019 challenge did: mean recall over its nine classes, UNK among them.

    The answer to an image is UNK where the model abstains. Source: Combalia et al. (2022), doi:10.1016/S2589-7500(22)00021-8.
    """
    test, table = context.test, context.table
    answers = [_challenge_answers(context, test.outputs.logits, test.outputs.features)]
    truths, lesions = [test.rows["label"].to_numpy()], [test.rows["lesion_id"].to_numpy()]
    others = table[table["label"].isin(CHALLENGE_CLASSES) & ~table["label"].isin(context.codes)]
    for start in range(0, len(others), BATCH_SIZE):
        rows = others.iloc[start : start + BATCH_SIZE]
        answers.append(
            _challenge_answers(context, *classify_images(context.classifier, context.images.load(rows["image_id"])))
        )
        truths.append(rows["label"].to_numpy())
        lesions.append(rows["lesion_id"].where(rows["lesion_id"].notna(), rows["image_id"]).to_numpy())
    return challenge_score(np.concatenate(answers), np.concatenate(truths), np.concatenate(lesions), context.codes)


def _challenge_answers(context: Context, logits: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Return the class that is answered to each image, (N,) of str."""
    answers = np.array(context.codes, dtype=object)[logits.argmax(axis=1)]
    answers[~np.isin(answers, CODES)] = UNKNOWN_CLASS  # a diagnosis that the challenge has no class for
    if context.classifier.abstention is not None:
        answers[context.classifier.abstention.abstains(logits, features)] = UNKNOWN_CLASS
    return answers


def challenge_score(
    answers: np.ndarray, truths: np.ndarray, lesions: np.ndarray, codes: Sequence[str]
) -> dict[str, Any]:
    """Return the mean recall of answers (N,) of str over the nine classes of the challenge, and each of them."""
    place = {name: index for index, name in enumerate(CHALLENGE_CLASSES)}
    predicted, labels = (np.array([place[name] for name in names]) for names in (answers, truths))
    bootstrap = bootstrap_lesions(lesions)
    recall = {
        name: estimate_rate(predicted == index, labels == index, bootstrap, reason=f"no image of {name}")
        for name, index in place.items()
    }
    absent = [name for name, value in recall.items() if value["value"] is None]
    mean = (
        not_estimable(no_image_of(absent))
        if absent
        else score_balanced(predicted, labels, CHALLENGE_CLASSES, bootstrap)
    )
    known = [name for name in place if name in codes]
    note = f"{UNKNOWN_CLASS} is answered where the model abstains"
    if not set(codes) <= set(CODES):
        note += " or answers a diagnosis that is no class of the challenge"
    if len(known) < len(CODES):
        note += (
            f"; the model tells {len(known)} of the {len(CODES)} diagnoses apart, so it can reach "
            f"{(len(known) + 1) / len(place):.3f} at most and does not compare with the challenge's entries"
        )
    return {"n_images": len(labels), "mean_recall": mean, "recall": recall, "note": note}


def summary_lines(external: Mapping[str, Any]) -> list[str]:
    """Return the comparison in a few lines for the console."""
    n_left_out = sum(external["left_out"].values())
    lines = [f"images that the model has seen were looked for by {external['compared_by']}: {n_left_out} left out"]
    if "reason" in external["headline"]:
        lines.append(f"not compared: {external['headline']['reason']}")
    else:
        lines.append("internal test → this dataset, difference:")
        lines += [
            f"  {name}: {format_estimate(row['internal'])} → {format_estimate(row['external'])}, "
            f"{format_estimate(row['difference'])}"
            for name, row in external["headline"].items()
        ]
        lines.append(
            f"  accuracy at the internal mix of diagnoses: {format_estimate(external['accuracy_at_internal_mix'])}"
        )
    if "mean_recall" in external["challenge"]:
        challenge = external["challenge"]
        lines.append(
            f"ISIC 2019 challenge, mean recall: {format_estimate(challenge['mean_recall'])} ({challenge['note']})"
        )
    return lines
