"""From 1 to 2 processes: images a second of train.py and of `python -m modeling.predictor`, EfficientNet-B0 at 224 px.

    python benchmarks/scaling.py

Every measurement starts the command as a user would. On a CPU one process already uses all cores, so two cannot be twice as
fast: this shows the cost of sharing the work. Training takes the demo data, 32 images a step in all, and the rate is
that of the second epoch, val included; prediction classifies JPEGs of 600 x 450, the start of the processes left out.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is loaded, see side_by_side.py

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
from archive import classify, make_images
from side_by_side import in_turn, launched, make_model, ratio, show, write

ROOT = Path(__file__).resolve().parent.parent
STEP_IMAGES = 32


def training_rate(processes: int) -> float:
    """Train two epochs and return the images a second of the second."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--dataset", "demo", "--image_size", "224", "--epochs", "3", "--output_dir", folder]
        options += ["--batch_size", str(STEP_IMAGES // processes)]
        command = [*launched(processes), str(ROOT / "train.py"), *options]
        run = psutil.Popen(
            command,
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        log = Path(folder) / "log.jsonl"
        try:
            while not log.exists() or len(log.read_text().splitlines()) < 2:
                if run.poll() is not None:
                    raise RuntimeError(f"{command} ended with status {run.returncode}")
                time.sleep(0.5)
        finally:
            # Trainers are in sessions of their own, where the launcher's end would only ask them to write a checkpoint.
            everyone = [*run.children(recursive=True), run] if run.poll() is None else []
            for process in everyone:
                with contextlib.suppress(psutil.NoSuchProcess):  # loader processes end with their trainer
                    process.kill()
            psutil.wait_procs(everyone)
        return json.loads(log.read_text().splitlines()[1])["images_per_second"]


def prediction_rate(processes: int, model: Path, few: Path, images: Path, n_images: int, n_few: int) -> float:
    """Classify two folders and return the images a second of the difference between them."""
    spent = []
    for folder in (few, images):
        output = model.with_name("out.csv")
        threads = max(1, (os.cpu_count() or 1) // processes)
        spent.append(classify(model, folder, output, processes=processes, threads=threads)[0])
        for ending in ("", ".json"):
            output.with_name(f"out.csv{ending}").unlink()
    return (n_images - n_few) / (spent[1] - spent[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="to classify")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    n_few = 8
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        model = make_model(scratch / "b0", "efficientnet_b0", 224)
        few = make_images(scratch / "few", n_few, (600, 450))
        images = make_images(scratch / "images", options.images, (600, 450))
        predict = partial(prediction_rate, model=model, few=few, images=images, n_images=options.images, n_few=n_few)
        rates = in_turn(
            {
                "training, 1 process": partial(training_rate, 1),
                "training, 2 processes": partial(training_rate, 2),
                "prediction, 1 process": partial(predict, 1),
                "prediction, 2 processes": partial(predict, 2),
            },
            options.rounds,
            warm_up=False,
        )
    show(rates, "images/s")
    scaling = {what: ratio(rates, f"{what}, 2 processes", f"{what}, 1 process") for what in ("training", "prediction")}
    for what, times in scaling.items():
        print(f"{what}: 2 processes are {times:.2f} times as fast as 1, which uses all {os.cpu_count()} cores too")
    write("scaling", {"images_per_second": rates, "2_processes_against_1": scaling}, {})


if __name__ == "__main__":
    main()
