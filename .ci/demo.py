"""Run README's demo command in a folder of its own and check its bars: time, memory, accuracy, heat maps, last words."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

from modeling.classifier import LesionClassifier
from modeling.data.demo import demo_masks, load_demo
from modeling.evaluation.saliency import centred_blob, score_map

MAX_SECONDS, MAX_GB, MIN_BALANCED_ACCURACY = 240, 4.0, 0.90
MIN_CELLS, MIN_HEAT_RATIO = 4, 1.2


def main() -> int:
    """Return 0 if every bar is met."""
    output_dir = Path(sys.argv[1])
    command = ["accelerate", "launch", "train.py", "--dataset", "demo", "--output_dir", str(output_dir)]
    started = time.monotonic()
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - started
    print(result.stdout)
    if result.returncode != 0:
        return result.returncode
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # the largest process, in kB on Linux
    metrics = json.loads((output_dir / "model" / "metrics.json").read_text(encoding="utf-8"))
    balanced_accuracy = metrics["test"]["balanced_accuracy"]["value"]
    print(f"demo: {seconds:.0f} s, {gigabytes:.2f} GB, balanced accuracy {balanced_accuracy:.3f}")
    cells, heat, blob, equal_blob = heat_maps(output_dir)
    print(
        f"heat maps of {cells} x {cells} cells: {heat:.3f} of the heat on the lesion, {blob:.3f} of a centred blob's, "
        f"{equal_blob:.3f} of one as concentrated as each map"
    )
    met = {
        f"at most {MAX_SECONDS} s": seconds <= MAX_SECONDS,
        f"at most {MAX_GB} GB": gigabytes <= MAX_GB,
        f"balanced accuracy at least {MIN_BALANCED_ACCURACY}": balanced_accuracy >= MIN_BALANCED_ACCURACY,
        f"heat maps of at least {MIN_CELLS} x {MIN_CELLS} cells": cells >= MIN_CELLS,
        f"at least {MIN_HEAT_RATIO} times as much heat on the lesion as a centred blob has": heat
        >= MIN_HEAT_RATIO * blob,
        "ends with the command that opens the Space": f"python space/app.py --model {output_dir / 'model'}"
        in result.stdout.splitlines()[-1],
    }
    for bar, ok in met.items():
        print(f"{'met' if ok else 'MISSED'}: {bar}")
    return 0 if all(met.values()) else 1


def heat_maps(run_dir: Path) -> tuple[int, float, float, float]:
    """Return cells a side, and the mean fraction of heat on the synthetic lesion over the test images.

    The model's; that of a blob in the middle, a quarter of each side wide; and that of one as concentrated as each map.
    """
    splits = pd.read_csv(run_dir / "splits.csv")
    test, masks, images = set(splits["image_id"][splits["split"] == "test"]), demo_masks(), load_demo()
    classifier = LesionClassifier.from_pretrained(run_dir / "model")
    heat, blob, equal_blob, cells = [], [], [], 0
    for row in images.select([index for index, name in enumerate(images["image_id"]) if name in test]):
        explanation, inside = classifier.explain(row["image"]), masks[row["image_id"]]
        cells = min(explanation.evidence.shape[1:])
        predicted = explanation.heat_map(explanation.prediction.diagnosis)
        # A map without any heat has none on the lesion.
        heat.append(np.nan_to_num(score_map(predicted, inside)["heat_inside"]))
        y, x = (np.linspace(-1, 1, side) for side in inside.shape)
        blob.append(score_map(np.exp(-2 * (y[:, None] ** 2 + x[None, :] ** 2)), inside)["heat_inside"])
        equal_blob.append(score_map(centred_blob(predicted), inside)["heat_inside"])
    return cells, float(np.mean(heat)), float(np.mean(blob)), float(np.mean(equal_blob))


if __name__ == "__main__":
    sys.exit(main())
