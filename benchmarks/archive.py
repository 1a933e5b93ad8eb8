"""Archives: rate and peak memory of `python -m modeling.predictor`, from 1,000 images up.

    python benchmarks/archive.py --images 100000

Memory is measured on a tiny network (its cost must not hide the archive's) and links to one folder of small JPEGs. Every run
is a new process of the command line.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is loaded, see side_by_side.py

import argparse
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from side_by_side import launched, make_model, write


def make_images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Write 64 images and link them until there are enough: the files differ only in name."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    originals = folder.with_name(f"{folder.name}-originals")
    originals.mkdir()
    for number in range(64):
        blots = Image.fromarray(rng.integers(60, 200, (9, 9, 3), dtype=np.uint8))
        blots.resize(size, Image.Resampling.BICUBIC).save(originals / f"{number}.jpg", quality=90)
    for number in range(count):
        inner = folder / f"{number // 1000:04}"
        inner.mkdir(exist_ok=True)
        os.link(originals / f"{number % 64}.jpg", inner / f"{number:07}.jpg")
    return folder


def classify(model: Path, images: Path, output: Path, *, processes: int, threads: int) -> tuple[float, float]:
    """Run the command line, with threads for each process; return its seconds and the peak memory of a process in MB."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
    command = [*launched(processes), "-m", "modeling.predictor", str(model), str(images), "--output", str(output)]
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{command} ended with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000, help="in the largest folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        tiny = make_model(scratch / "tiny", "test_efficientnet", 64)
        memory = {}
        for count in (1000, options.images):
            images = make_images(scratch / f"images-{count}", count, (72, 72))
            seconds, peak = classify(tiny, images, scratch / f"{count}.parquet", processes=1, threads=1)
            memory[str(count)] = {"seconds": seconds, "images_per_second": count / seconds, "peak_mb": peak}
            print(f"{count} images: {seconds:.1f} s, {count / seconds:.0f} images/s, peak {peak:.0f} MB", flush=True)
            shutil.rmtree(images)
        growth = memory[str(options.images)]["peak_mb"] / memory["1000"]["peak_mb"]

    print(f"\npeak memory grows {growth:.3f} times from 1,000 to {options.images} images")
    write(
        "archive",
        {"memory": memory, "memory_growth": growth},
        {f"peak memory within 5 % from 1,000 to {options.images} images": growth <= 1.05},
    )


if __name__ == "__main__":
    main()
