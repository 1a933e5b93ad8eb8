"""Cold start: import, load and one prediction in a new process, beside minimal scripts of the engine alone.

python benchmarks/cold_start.py
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is loaded, see side_by_side.py

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from side_by_side import Row, in_turn, make_model, ratio, show, write

OURS = """
import sys
from modeling import LesionClassifier
print(LesionClassifier.from_pretrained(sys.argv[1]).predict(sys.argv[2]).diagnosis)
"""
EXPLAIN = """
import sys
from modeling import LesionClassifier
print(LesionClassifier.from_pretrained(sys.argv[1]).explain(sys.argv[2]).prediction.diagnosis)
"""
ONNX_RUNTIME_ALONE = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image
config = json.load(open(sys.argv[1] + "/config.json"))
session = onnxruntime.InferenceSession(sys.argv[1] + "/onnx/model.onnx", providers=["CPUExecutionProvider"])
cfg = config["pretrained_cfg"]
image = Image.open(sys.argv[2]).convert("RGB").resize(cfg["input_size"][1:], Image.Resampling.BICUBIC)
pixels = (np.asarray(image, dtype=np.float32) / 255 - cfg["mean"]) / cfg["std"]
(logits,) = session.run(["logits"], {"pixel_values": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
print(config["label_names"][int(logits.argmax())])
"""
TIMM_ALONE = """
import sys
import timm, torch
from PIL import Image
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
with torch.inference_mode():
    probs = model(transform(Image.open(sys.argv[2]).convert("RGB"))[None]).softmax(dim=1)
print(model.pretrained_cfg["label_names"][int(probs.argmax())])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cpu_seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model(Path(scratch) / "model", "efficientnet_b0", 224)
        picture = Path(scratch) / "picture.jpg"
        Image.new("RGB", (600, 450), (200, 150, 120)).save(picture)

        def start(name: str, script: str) -> Callable[[], float]:
            def run() -> float:
                before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
                command = [sys.executable, "-c", script, str(folder), str(picture)]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                cpu_seconds.setdefault(name, []).append(spent)
                return time.perf_counter() - begin

            return run

        scripts = {
            "ours": OURS,
            "ours, explain": EXPLAIN,
            "onnxruntime alone": ONNX_RUNTIME_ALONE,
            "timm alone": TIMM_ALONE,
        }
        seconds = in_turn({name: start(name, script) for name, script in scripts.items()}, options.rounds)
    cpu_seconds = {name: values[1:] for name, values in cpu_seconds.items()}  # without the warm-up
    show(seconds, "seconds")
    show(cpu_seconds, "seconds of CPU")
    times = {name: ratio(seconds, "ours", name) for name in scripts if name != "ours"}
    cpu_times = {name: ratio(cpu_seconds, "ours", name) for name in scripts if name != "ours"}
    print(f"\nours / others: {times}; in CPU time: {cpu_times}")
    alone = times["onnxruntime alone"]
    more = statistics.median(seconds["ours, explain"]) - statistics.median(seconds["ours"])
    rows: list[Row] = [
        *((name, f"{statistics.median(each):.2f} s", "", None) for name, each in seconds.items()),
        ("ours by onnxruntime alone", f"{alone:.2f}", "at most 1.5", alone <= 1.5),
        ("… in CPU time", f"{cpu_times['onnxruntime alone']:.2f}", "", None),
        ("`explain` after `predict`", f"{more:.2f} s more", "at most 0.2 s", more <= 0.2),
    ]
    content = {"rounds": options.rounds, "seconds": seconds, "cpu_seconds": cpu_seconds}
    content |= {"ratio": times, "cpu_ratio": cpu_times}
    write("cold_start", content, {f"{what}: {bar}": met for what, _, bar, met in rows if bar}, rows=rows)


if __name__ == "__main__":
    main()
