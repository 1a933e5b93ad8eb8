"""Prediction and explanation beside the bare network and stock pytorch-grad-cam: EfficientNet-B0, 224 px, 8 diagnoses.

  python benchmarks/prediction.py

bare forward     the same network on tensors in memory, in batches of several sizes and both memory layouts: the limit
predict, …       LesionClassifier.predict on a list: pictures in memory, JPEG files of 224 px and of 1024 px
decode, …        what predict does with these files before the network, on one core
explain          LesionClassifier.explain of one picture: answer and heat maps of all 8 diagnoses
grad-cam, …      pytorch-grad-cam on the whole network, as its README shows it
"""

from modeling.process import prepare_process

prepare_process()  # before torch is loaded, as the command line and the Space do; see side_by_side.py

# isort: split
import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from side_by_side import in_turn, ratio, show, write

from modeling.classifier import LesionClassifier
from modeling.labels import CODES
from modeling.network import build_model, load_model_folder, save_model_folder

BATCH_SIZES = (1, 4, 8, 16, 32, 64)
SIZE_PX = 224


def timed(run: Callable[[], object], n_images: int) -> Callable[[], float]:
    """Return a function that measures milliseconds an image."""

    def measure() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / n_images * 1000

    return measure


def in_batches(model: torch.nn.Module, pixel_values: torch.Tensor, size: int) -> Callable[[], None]:
    @torch.inference_mode()
    def run() -> None:
        for batch in pixel_values.split(size):
            model(batch)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="in a list")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    n, rng = options.images, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        torch.manual_seed(0)
        model = build_model("efficientnet_b0", num_classes=len(CODES), size_px=SIZE_PX, pretrained=False)
        save_model_folder(model, folder, codes=CODES, lesion={"operating_points": []})
        classifier = LesionClassifier.from_pretrained(folder, device="cpu")
        default_layout, _ = load_model_folder(folder)

        # Blots of colour with fine noise: a JPEG of 1024 px takes about 300 kB, as ISIC's photographs do.
        files: dict[int, list[Path]] = {SIZE_PX: [], 1024: []}
        pictures = []
        for number in range(n):
            blots = Image.fromarray(rng.integers(60, 200, (9, 9, 3), dtype=np.uint8))
            for size, paths in files.items():
                pixels = np.asarray(blots.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
                noisy = Image.fromarray((pixels + rng.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8))
                paths.append(Path(scratch) / f"{number}-{size}.jpg")
                noisy.save(paths[-1], quality=90)
                if size == SIZE_PX:
                    pictures.append(noisy)

        pixel_values = torch.stack([classifier.preprocess(picture) for picture in pictures])
        runs = {}
        for size in BATCH_SIZES:
            runs[f"bare forward, batches of {size}"] = timed(in_batches(classifier.model, pixel_values, size), n)
        for size in (1, 32):
            name = f"bare forward, batches of {size}, default layout"
            runs[name] = timed(in_batches(default_layout, pixel_values, size), n)
        runs["predict, pictures in memory"] = timed(lambda: classifier.predict(pictures), n)
        for size, paths in files.items():
            runs[f"predict, JPEG files of {size} px"] = timed(lambda paths=paths: classifier.predict(paths), n)
            runs[f"decode, JPEG files of {size} px"] = timed(
                lambda paths=paths: [classifier.preprocess(path) for path in paths], n
            )
        some = pictures[: max(4, n // 8)]
        runs["predict, one picture"] = timed(lambda: [classifier.predict(picture) for picture in some], len(some))
        runs["explain, 8 diagnoses"] = timed(lambda: [classifier.explain(picture) for picture in some], len(some))
        runs["explain, 8 diagnoses, and maps in the picture's size"] = timed(
            lambda: [classifier.explain(picture).maps for picture in some], len(some)
        )
        trainable, _ = load_model_folder(folder)
        trainable.requires_grad_(True)
        one = pixel_values[:1]

        def stock(n_classes: int) -> None:
            with GradCAM(model=trainable, target_layers=[trainable.bn2]) as cam:
                for index in range(n_classes):
                    cam(input_tensor=one, targets=[ClassifierOutputTarget(index)])

        for n_classes in (1, len(CODES)):
            runs[f"grad-cam, {n_classes} diagnos{'i' if n_classes == 1 else 'e'}s"] = timed(
                lambda n_classes=n_classes: stock(n_classes), 1
            )
        values = in_turn(runs, options.rounds)

    show(values, "milliseconds an image")
    best = min(BATCH_SIZES, key=lambda size: float(np.median(values[f"bare forward, batches of {size}"])))
    limit, single = f"bare forward, batches of {best}", "bare forward, batches of 1"
    shares = {name: 1 / ratio(values, name, limit) for name in values if name.startswith("predict,")}
    times = {name: ratio(values, name, single) for name in values if name.startswith(("explain", "grad-cam"))}
    print(f"\nShare of the bare throughput at its best batch size, {best}:")
    print("\n".join(f"  {name}: {share:.2f}" for name, share in shares.items()))
    print("\nTimes one bare forward of one image:")
    print("\n".join(f"  {name}: {times_:.2f}" for name, times_ in times.items()))
    if max(shares.values()) > 1.1:
        raise RuntimeError(f"predict cannot beat the network that it runs: the limit was measured wrongly; {shares}")
    bars = {
        "predict on a list of pictures at least 90 % of the bare throughput": shares["predict, pictures in memory"]
        >= 0.9,
        "predict on JPEG files of 224 px at least 90 %": shares["predict, JPEG files of 224 px"] >= 0.9,
        "predict on JPEG files of 1024 px at least 90 %": shares["predict, JPEG files of 1024 px"] >= 0.9,
        "explain of all 8 diagnoses at most 1.3 times one bare forward": times["explain, 8 diagnoses"] <= 1.3,
    }
    settings = {"backbone": "efficientnet_b0", "size_px": SIZE_PX, "images": n, "rounds": options.rounds}
    content = {
        "settings": settings,
        "milliseconds_per_image": values,
        "best_batch_size": best,
        "share_of_bare_throughput": shares,
        "times_one_bare_forward": times,
    }
    write("prediction", content, bars)


if __name__ == "__main__":
    main()
