"""Run the notebook of a model folder from top to bottom, without Jupyter, and compare it with LesionClassifier.

python .ci/notebook.py MODEL_FOLDER
"""

import json
import os
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from matplotlib import pyplot

from modeling import LesionClassifier
from modeling.publish.card import NOTEBOOK_NAME, THIS_FOLDER


def main() -> int:
    """Return 0 if every cell runs, shows a heat map and gives the probabilities of LesionClassifier."""
    folder = Path(sys.argv[1]).resolve()
    notebook = json.loads((folder / NOTEBOOK_NAME).read_text(encoding="utf-8").replace(THIS_FOLDER, str(folder)))
    names: dict[str, object] = {}
    for number, cell in enumerate(notebook["cells"], start=1):
        lines = [line for line in cell["source"] if not line.startswith("%")]  # this environment has the packages
        if cell["cell_type"] == "code":
            exec(compile("".join(lines), f"cell {number} of {NOTEBOOK_NAME}", "exec"), names)
    expected = LesionClassifier.from_pretrained(folder, device="cpu").predict(str(names["PHOTO"])).probabilities
    found = dict(zip(names["codes"], np.asarray(names["probs"]).tolist(), strict=True))
    difference = max(abs(found[code] - expected[code]) for code in expected)
    n_images = len(pyplot.gcf().axes[1].images)
    if difference > 1e-5 or n_images != 2:
        raise RuntimeError(f"probabilities differ by {difference:.2g}, and {n_images - 1} heat maps are shown")
    print(f"{NOTEBOOK_NAME}: all cells ran, probabilities within {difference:.1g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
