"""Training throughput from full-size JPEGs, side by side in interleaved rounds.

    python benchmarks/training.py --images_dir DIR --images 512 --rounds 3

DIR holds JPEGs and `labels.csv` (columns image, label), repeated to the number of images asked for. Each measurement is a
process of its own, which first takes two batches to warm up, but for our first epoch. The pipelines:
  bare       forward, backward and optimiser step on tensors that are in memory: the limit
  ours, first epoch     decoding into the cache included
  ours, later epochs    from the cache, augmented
  original   the reference system's: ImageFolder, squash to 224 px, default memory layout, Adam, no augmentation
  Trainer    transformers.Trainer with a `datasets` transform that decodes and augments
The first three run in a process as train.py prepares it (`modeling.runtime`), the others in one as their users have it, but
for OpenMP's waiting threads, which sleep in all of them. Where there is a GPU, all train on it; ours, the bare limit and the
Trainer in bf16 where the GPU has it, the reference system in fp32.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is loaded: see side_by_side.py

# isort: split
import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import datasets
import timm
import torch
from side_by_side import in_turn, ratio, show, write
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from transformers import Trainer, TrainingArguments

from modeling.data.augmentation import TRAIN_FRACTION, Augmentation
from modeling.data.decoding import decode_images
from modeling.data.folders import images_of_paths
from modeling.network import normalise
from modeling.runtime import default_num_workers, prepare_process
from modeling.training.loaders import LesionDataset

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
BF16 = GPU and torch.cuda.is_bf16_supported()
BACKBONE, SIZE_PX, BATCH_SIZE, N_CLASSES = "efficientnet_b0", 224, 256 if GPU else 32, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Images:
    """Image files in a folder of one folder per label, and where to keep caches of them."""

    folder: Path
    cache_dir: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]


Epoch = Callable[[Images], None]


def new_model(*, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(BACKBONE, num_classes=N_CLASSES, pretrained=False).to(DEVICE)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    pixel_values: torch.Tensor,
    labels: torch.Tensor,
    *,
    bf16: bool = BF16,
) -> None:
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=bf16):
        logits = model(pixel_values)
    nn.functional.cross_entropy(logits.float(), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def bare() -> Epoch:
    model = new_model(channels_last=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    pixel_values = torch.randn(BATCH_SIZE, 3, SIZE_PX, SIZE_PX).to(DEVICE, memory_format=torch.channels_last)
    labels = torch.randint(0, N_CLASSES, (BATCH_SIZE,), device=DEVICE)

    def epoch(images: Images) -> None:
        for _ in range(len(images.paths) // BATCH_SIZE):
            train_step(model, optimizer, pixel_values, labels)

    return epoch


@cache
def cached(images: Images) -> LesionDataset:
    """Return the images augmented and from the cache, which is made at the first call, as at the start of a run."""
    data = images_of_paths([str(path) for path in images.paths])
    pixels = decode_images(data, size_px=round(SIZE_PX / TRAIN_FRACTION))
    pixels = pixels.add_column("image_id", [path.name for path in images.paths])
    return LesionDataset(pixels, images.labels, augmentation=Augmentation(SIZE_PX, fill=(124, 116, 104)))


def ours() -> Epoch:
    model = new_model(channels_last=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loader_of = cache(
        lambda images: DataLoader(
            cached(images),
            batch_size=BATCH_SIZE,
            shuffle=True,
            drop_last=True,
            num_workers=default_num_workers(),
            persistent_workers=True,
            pin_memory=GPU,
        )
    )

    def epoch(images: Images) -> None:
        for batch in loader_of(images):
            pixels, labels = (batch[name].to(DEVICE, non_blocking=True) for name in ("pixels", "label"))
            train_step(model, optimizer, normalise(pixels, {"mean": MEAN, "std": STD}), labels)

    return epoch


def original() -> Epoch:
    model = new_model(channels_last=False).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    transform = transforms.Compose(
        [transforms.Resize((SIZE_PX, SIZE_PX)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )

    def epoch(images: Images) -> None:
        data = ImageFolder(images.folder, transform)
        for pixel_values, labels in DataLoader(
            data, batch_size=BATCH_SIZE, shuffle=True, drop_last=True, num_workers=2
        ):
            train_step(model, optimizer, pixel_values.to(DEVICE), labels.to(DEVICE), bf16=False)

    return epoch


class LogitsModel(nn.Module):
    """A timm model with the outputs that transformers.Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.model = new_model(channels_last=False)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def hf_trainer() -> Epoch:
    augment = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(SIZE_PX, scale=(0.6, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    model = LogitsModel()

    def transform(rows: dict[str, list]) -> dict[str, list]:
        return {
            "pixel_values": [augment(image.convert("RGB")) for image in rows["image"]],
            "labels": rows["labels"],
        }

    def epoch(images: Images) -> None:
        data = datasets.Dataset.from_dict(
            {"image": [str(path) for path in images.paths], "labels": list(images.labels)}
        )
        settings = TrainingArguments(
            output_dir=str(images.cache_dir), per_device_train_batch_size=BATCH_SIZE, num_train_epochs=1,
            dataloader_num_workers=2, dataloader_drop_last=True, remove_unused_columns=False, report_to=[],
            save_strategy="no", disable_tqdm=True, logging_strategy="no", use_cpu=not GPU, bf16=BF16,
        )  # fmt: skip
        train_dataset = data.cast_column("image", datasets.Image()).with_transform(transform)
        Trainer(model=model, args=settings, train_dataset=train_dataset).train()

    return epoch


PIPELINES: dict[str, Callable[[], Epoch]] = {
    "bare": bare,
    "ours, first epoch": ours,
    "ours, later epochs": ours,
    "original": original,
    "Trainer": hf_trainer,
}


def repeat_images(source: Path, folder: Path, n_images: int) -> Images:
    """Link the images into an ImageFolder layout until there are enough of them."""
    with (source / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    codes = sorted({row["label"] for row in rows})
    paths, labels = [], []
    for number in range(n_images):
        row = rows[number % len(rows)]
        path = folder / "images" / row["label"] / f"{number:06d}_{row['image']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink((source / f"{row['image']}.jpg").resolve(), path)
        paths.append(path)
        labels.append(codes.index(row["label"]))
    return Images(folder / "images", folder / "cache", tuple(paths), tuple(labels))


def measure(name: str, source: Path, n_images: int) -> float:
    """Run one epoch of a pipeline and return its images per second."""
    if name == "bare" or name.startswith("ours"):
        prepare_process()  # its memory settings are not inherited
        torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        few = repeat_images(source, Path(folder) / "few", 2 * BATCH_SIZE)
        images = repeat_images(source, Path(folder) / "all", n_images)
        epoch = PIPELINES[name]()
        if name != "ours, first epoch":  # that is the start of a run, loader processes and all
            epoch(few)
        if name == "ours, later epochs":
            epoch(images)
        wait_for_gpu()
        started = time.perf_counter()
        epoch(images)
        wait_for_gpu()
        return n_images // BATCH_SIZE * BATCH_SIZE / (time.perf_counter() - started)


def wait_for_gpu() -> None:
    if GPU:
        torch.cuda.synchronize()


def in_new_process(name: str, source: Path, n_images: int) -> float:
    command = [sys.executable, __file__, "--images_dir", str(source), "--images", str(n_images), "--only", name]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    """Measure in interleaved rounds, print medians with spread and ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images_dir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=(40 if GPU else 16) * BATCH_SIZE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only", choices=PIPELINES, help="measure one pipeline once, here, and print its images a second"
    )
    options = parser.parse_args()
    if options.only:
        print(measure(options.only, options.images_dir, options.images))
        return
    runs = {name: partial(in_new_process, name, options.images_dir, options.images) for name in PIPELINES}
    rates = in_turn(runs, options.rounds, warm_up=False)
    show(rates, "images/s")
    ratios = {name: {other: ratio(rates, name, other) for other in rates} for name in rates}
    for name in rates:
        print(
            f"{name:20} {ratios[name]['bare']:6.2f} of bare {ratios[name]['original']:6.2f} times the reference system"
        )
    settings = {
        "backbone": BACKBONE,
        "size_px": SIZE_PX,
        "batch_size": BATCH_SIZE,
        "images": options.images,
        "device": torch.cuda.get_device_name() if GPU else "cpu",
        "bf16": BF16,
    }
    later = ratios["ours, later epochs"]
    write(
        "training_on_gpu" if GPU else "training",
        {"settings": {**settings, "rounds": options.rounds}, "images_per_second": rates, "ratios": ratios},
        {
            "on a CPU, later epochs at least 95 % of the bare limit": None if GPU else later["bare"] >= 0.95,
            "on a CPU, later epochs at least 3 times the reference system": None if GPU else later["original"] >= 3,
            "on a GPU in bf16, later epochs at least 90 % of the bare limit": later["bare"] >= 0.9 if BF16 else None,
            "first epoch no slower than the reference system's": ratios["ours, first epoch"]["original"] >= 1,
        },
    )


if __name__ == "__main__":
    main()
