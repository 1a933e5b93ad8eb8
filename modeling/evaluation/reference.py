"""What the reference system published, to be set beside this one like for like.

Source: https://github.com/AshaSharm/skin_infection_classification, its README and notebook.
"""

from typing import Any

import numpy as np

from modeling.labels import REFERENCE_CODES

# Rows are the true diagnosis, columns what it was predicted, both in the order of REFERENCE_CODES; n = 3,503.
PUBLISHED_CONFUSION = ((449, 8, 11, 17), (41, 269, 42, 53), (17, 38, 490, 138), (27, 39, 67, 1797))
PUBLISHED = {
    "accuracy": 0.8578,
    "weighted_precision": 0.8547,
    "weighted_recall": 0.8578,
    "weighted_f1": 0.8550,
}
# Computed from the official CSV: how many of its test images show a lesion that is also in its train split.
TEST_LEAKAGE = 0.560


def derived_scores() -> dict[str, float]:
    """Return what follows from the published confusion matrix without having been published."""
    confusion = np.array(PUBLISHED_CONFUSION)
    true_positives = confusion.diagonal()
    recall = true_positives / confusion.sum(axis=1)
    f1 = 2 * true_positives / (confusion.sum(axis=1) + confusion.sum(axis=0))
    return {
        "balanced_accuracy": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "MEL/recall": float(recall[REFERENCE_CODES.index("MEL")]),
    }


def compare(
    test: dict[str, Any], *, protocol: str, dataset: str, codes: tuple[str, ...], leakage_rate: float
) -> list[dict[str, Any]]:
    """Return the rows of the comparison: the reference system as published, and this model under both protocols.

    A row that this run did not measure says so instead of giving a number.
    """
    rows: list[dict[str, Any]] = [
        {
            "system": "reference system, as published",
            "protocol": "original",
            "measured_on": f"ISIC 2019, {int(np.sum(PUBLISHED_CONFUSION)):,} test images, random split of images",
            "leakage_rate": TEST_LEAKAGE,
            "scores": {name: {"value": value} for name, value in {**PUBLISHED, **derived_scores()}.items()},
        }
    ]
    scores = [*PUBLISHED, "balanced_accuracy", "macro_f1"]
    for name, split in (("original", "random split of images"), ("lesion", "split of lesions")):
        row: dict[str, Any] = {"system": "this model", "protocol": name}
        if protocol != name:
            row["reason"] = f"not measured in this run, whose protocol is {protocol}"
        elif set(codes) != set(REFERENCE_CODES):
            row["reason"] = (
                f"not comparable: this model tells {', '.join(codes)} apart, not {', '.join(REFERENCE_CODES)}"
            )
        elif dataset != "isic2019":
            row["reason"] = f"not comparable: measured on {dataset}, not on ISIC 2019"
        else:
            row |= {
                "measured_on": f"the ISIC 2019 images given, {test['n_images']:,} test images, {split}",
                "leakage_rate": leakage_rate,
                "scores": {score: test[score] for score in scores} | {"MEL/recall": test["per_class"]["MEL"]["recall"]},
            }
        rows.append(row)
    return rows
