"""Serve a model folder in the light environment: a file from the command line, and a repository of the Hub stand-in."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.hub import HubServer

LOAD = """
import sys
from modeling import LesionClassifier
classifier = LesionClassifier.from_pretrained(sys.argv[1])
explanation = classifier.explain(sys.argv[2])
heavy = {"torch", "torchvision", "timm", "transformers", "pytorch_grad_cam", "datasets", "pandas"} & set(sys.modules)
assert not heavy, heavy
print(classifier.engine.name, explanation.prediction.diagnosis, explanation.maps.shape)
"""


def main() -> int:
    """Return 0 if all of it answers."""
    python, folder = sys.argv[1], Path(sys.argv[2])
    image = str(next((folder / "examples").glob("*.jpg")).resolve())
    subprocess.run([python, "-m", "modeling.predictor", str(folder), image], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as home, HubServer() as hub:
        hub.add_repo("me/lesions", folder)
        environment = {**os.environ, **hub.env(home=Path(home))}
        subprocess.run([python, "-c", LOAD, "me/lesions", image], cwd=ROOT, check=True, env=environment)
        fetched = {request.path for request in hub.requests("resolve")}
    if any(path.endswith(".safetensors") for path in fetched):
        raise RuntimeError("the weights were downloaded too, which ONNX Runtime does not need")
    return 0


if __name__ == "__main__":
    sys.exit(main())
