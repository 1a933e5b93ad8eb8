"""External validation: the model's own test beside images from elsewhere, on which nothing was fitted.

Both tests have intervals from a bootstrap of their own lesions. The interval of a difference follows from the two (MOVER,
Zou & Donner 2008, doi:10.1002/sim.3095), so the model's published metrics.json is all that is needed of its own test.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from modeling.classifier import LesionClassifier
from modeling.data.duplicates import find_known, read_hashes
from modeling.data.isic2019 import UNKNOWN_CLASS
from modeling.data.sources import LoadedImages
from modeling.data.splits import group_lesions
from modeling.data.splits_file import COLUMNS, to_table
from modeling.evaluation.bootstrap import Estimate, estimate, not_estimable
from modeling.evaluation.context import Context, External
from modeling.evaluation.metrics import score_balanced
from modeling.evaluation.split import Split, estimate_mean, estimate_rate
from modeling.formatting import format_estimate
from modeling.labels import CODES
from modeling.model_folder import HASHES_NAME, file_beside

CHALLENGE_CLASSES = (*CODES, UNKNOWN_CLASS)
N_SLOPE_REPLICATES = 100  # each is a fit


def open_external(
    classifier: LesionClassifier,
    loaded: LoadedImages,
    *,
    name: str,
    challenge: bool,
    internal: Mapping[str, Any] | None,
) -> Context:
    """Leave out the images that the model has seen; every other image of its diagnoses is test.

    Lesions are those of the data, or groups of near-duplicates.

    Raises:
        ValueError: If no image of the model's diagnoses is left, with the reason.
    """
    hashes = file_beside(classifier.source, HASHES_NAME)
    if hashes is None:
        left_out = pd.DataFrame(columns=["image_id", "reason"])
        compared_by = f"nothing: the model has no {HASHES_NAME}, so it may have seen some of these images"
    else:
        left_out = find_known(loaded.hashes, read_hashes(hashes))
        compared_by = "image id, lesion id and image content"
    table, _ = group_lesions(to_table(loaded.dataset), loaded.hashes)
    known_diagnosis = table["label"].isin(classifier.codes).to_numpy()
    seen = table["image_id"].isin(left_out["image_id"]).to_numpy()
    if not (known_diagnosis & ~seen).any():
        raise ValueError(
            f"{name} has {known_diagnosis.sum()} images of the model's diagnoses ({', '.join(classifier.codes)}), and the model "
            f"has seen {(known_diagnosis & seen).sum()} of them: nothing external is left. The labels of {name}: "
            f"{', '.join(sorted(set(table['label'])))}."
        )
    splits = table[known_diagnosis & ~seen].assign(split="test")[list(COLUMNS)]
    return Context(
        classifier=classifier,
        dataset=loaded.dataset.select(np.flatnonzero(~seen)),
        splits=splits.sort_values("image_id", ignore_index=True),
        protocol="external",
        n_skipped=loaded.n_skipped,
        external=External(
            name, loaded.fingerprint, internal, dict(Counter(left_out["reason"])), compared_by, challenge
        ),
    )


def external_section(context: Context, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Compare the other sections of an external evaluation with the model's own metrics.json."""
    external = context.external
    assert external is not None
    own = external.internal
    missing = {"reason": "the model was published without a metrics.json to compare with"}
    return {
        "compared_by": external.compared_by,
        "left_out": external.left_out,
        "headline": compare_headlines(own, metrics) if own else missing,
        "calibration": calibration_in_the_large(context.test),
        "challenge": score_challenge(context)
        if external.challenge
        else {"reason": "not the official test of ISIC 2019"},
    }


def headline(metrics: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the headline numbers of a metrics.json by name, such as "MEL/recall"."""
    test, abstention = metrics["test"], metrics["abstention"]
    rows = {name: test[name] for name in ("balanced_accuracy", "accuracy", "macro_auroc", "macro_f1")}
    for code, scores in test["per_class"].items():
        rows |= {f"{code}/{name}": scores[name] for name in ("recall", "auroc")}
    rows |= {name: metrics["calibration"]["test"]["after"][name] for name in ("ece", "brier", "nll")}
    for point in metrics["operating_points"]:
        rows |= {f"{point['name']}/{name}": point["test"][name] for name in ("sensitivity", "specificity")}
    return rows | ({"abstained": abstention["test"]["abstained"]} if "test" in abstention else {})


def compare_headlines(internal: Mapping[str, Any], external: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
    """Return internal, external and difference of each headline number of two contents of metrics.json."""
    inside, outside = headline(internal), headline(external)
    return {
        name: {"internal": one, "external": outside[name], "difference": compare_estimates(one, outside[name])}
        for name, one in inside.items()
        if name in outside
    }


def compare_estimates(internal: Estimate, external: Estimate) -> Estimate:
    """Return external minus internal with a 95 % interval from their two intervals; the lesions are independent."""
    for side, one in (("internal", internal), ("external", external)):
        if one["value"] is None:
            return not_estimable(f"the {side} value is not estimable")
    value = external["value"] - internal["value"]
    if any(one.get(bound) is None for one in (internal, external) for bound in ("low", "high")):
        return {"value": value, "low": None, "high": None, "reason": "one of the two values has no interval"}
    low = value - np.hypot(external["value"] - external["low"], internal["high"] - internal["value"])
    high = value + np.hypot(external["high"] - external["value"], internal["value"] - internal["low"])
    return {"value": value, "low": float(low), "high": float(high)}


def calibration_in_the_large(split: Split) -> dict[str, dict[str, Estimate]]:
    """Return for each diagnosis the mean probability minus its frequency, and the calibration slope.

    Both use the probabilities at the mix of the model's own dataset. A calibrated model has 0 and 1; a slope below 1 means
    that probabilities are too extreme (Van Calster et al. 2019, doi:10.1186/s12916-019-1466-7).
    """
    probs = split.probs_at_mix
    return {
        code: {
            "excess_probability": estimate_mean(probs[:, label] - (split.labels == label), split),
            "slope": calibration_slope(probs[:, label], split.labels == label, split),
        }
        for code, label in split.label_of.items()
    }


def calibration_slope(probs: np.ndarray, shown: np.ndarray, split: Split) -> Estimate:
    """Return the slope of a logistic regression of a diagnosis, boolean (N,), on the log odds of its probability (N,)."""
    clipped = probs.clip(1e-6, 1 - 1e-6)
    log_odds = np.log(clipped / (1 - clipped))
    lowest, highest = log_odds[shown].min(initial=np.inf), log_odds[~shown].max(initial=-np.inf)
    if not np.isfinite(lowest - highest):
        return not_estimable("the diagnosis has no image, or all of them")
    if lowest >= highest or np.ptp(log_odds) == 0:
        return not_estimable("no slope fits: the probability separates the diagnosis perfectly, or is always the same")

    def fit(weights: np.ndarray) -> float:
        used, among = weights > 0, {"initial": np.inf}
        if log_odds[used & shown].min(**among) >= log_odds[used & ~shown].max(initial=-np.inf):
            return np.nan  # one diagnosis alone, or separated perfectly
        model = LogisticRegression(C=np.inf, tol=1e-6).fit(log_odds[used, None], shown[used], weights[used])
        return float(model.coef_[0, 0])

    draws = split.bootstrap.draws[: 1 + N_SLOPE_REPLICATES, split.bootstrap.lesion_index]
    return estimate(np.array([fit(weights) for weights in draws]), split.n_lesions)


def score_challenge(context: Context) -> dict[str, Any]:
    """Score the official test as the ISIC 2019 challenge did: mean recall over its nine classes, including UNK.

    The answer is UNK where the model abstains. Source: Combalia et al. (2022), doi:10.1016/S2589-7500(22)00021-8.
    """
    table, test = context.table, context.test
    others = table[table["label"].isin(CHALLENGE_CLASSES) & ~table["label"].isin(test.codes)]
    parts = [test] if others.empty else [test, context.score_rows(others, "other diagnoses")]
    answers = np.concatenate([_challenge_answers(context, part) for part in parts])
    truths = np.concatenate([part.table["label"].to_numpy() for part in parts if part.table is not None])
    lesions = np.concatenate([part.lesion_ids for part in parts])
    return challenge_score(answers, truths, lesions, test.codes)


def _challenge_answers(context: Context, split: Split) -> np.ndarray:
    """Return the class that is answered to each image, (N,) of str."""
    answers: np.ndarray = np.array(split.codes, dtype=object)[split.predicted]
    answers[~np.isin(answers, CODES)] = UNKNOWN_CLASS  # a diagnosis that the challenge has no class for
    rule = context.classifier.abstention
    if rule is not None and split.outputs is not None:
        answers[rule.abstains(split.outputs.logits, split.outputs.features)] = UNKNOWN_CLASS
    return answers


def challenge_score(
    answers: np.ndarray, truths: np.ndarray, lesions: np.ndarray, codes: tuple[str, ...]
) -> dict[str, Any]:
    """Return the mean recall of answers (N,) of str over the challenge's classes, and the recall of each class."""
    label_of = {name: label for label, name in enumerate(CHALLENGE_CLASSES)}
    predicted, labels = (np.array([label_of[name] for name in names]) for names in (answers, truths))
    split = Split(CHALLENGE_CLASSES, np.eye(len(label_of))[predicted], labels, lesions)
    recall = {
        name: estimate_rate(predicted == label, split, among=labels == label, reason=f"no image of {name}")
        for name, label in label_of.items()
    }
    known = len(set(codes) & set(CODES))
    note = f"{UNKNOWN_CLASS} is answered where the model abstains"
    if known < len(CODES):
        note += (
            f"; the model has {known} of the {len(CODES)} diagnoses, so it can reach at most "
            f"{(known + 1) / len(label_of):.3f} and does not compare with the challenge's entries"
        )
    complete = len(split.present) == len(label_of)
    absent = ", ".join(name for name, label in label_of.items() if label not in split.present)
    return {
        "n_images": len(labels),
        "mean_recall": score_balanced(predicted, split) if complete else not_estimable(f"no image of {absent}"),
        "recall": recall,
        "note": note,
    }


def summary_lines(external: Mapping[str, Any]) -> list[str]:
    """Return the comparison in a few lines for the console."""
    n_left_out = sum(external["left_out"].values())
    lines = [f"left out since the model has seen them (compared by {external['compared_by']}): {n_left_out} images"]
    if "reason" in external["headline"]:
        lines.append(f"not compared: {external['headline']['reason']}")
    else:
        lines.append("own test → this dataset, difference:")
        lines += [
            f"  {name}: {format_estimate(row['internal'])} → {format_estimate(row['external'])}, "
            f"{format_estimate(row['difference'])}"
            for name, row in external["headline"].items()
        ]
    challenge = external["challenge"]
    if "mean_recall" in challenge:
        lines.append(
            f"ISIC 2019 challenge, mean recall: {format_estimate(challenge['mean_recall'])} ({challenge['note']})"
        )
    return lines
