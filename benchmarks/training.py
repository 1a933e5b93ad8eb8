"""Training throughput from full-size JPEGs, side by side in one process and interleaved in rounds.

    python benchmarks/training.py --images_dir DIR --images 256 --rounds 3

DIR holds JPEGs and `labels.csv` (columns image, label), repeated to the number of images asked for. The pipelines:
  bare       forward, backward and optimiser step on tensors that are in memory: the limit
  ours, first epoch     decoding into the cache included
  ours, later epochs    from the cache, augmented
  original   the original system's: ImageFolder, squash to 224 px, default memory layout, Adam, no augmentation
  Trainer    transformers.Trainer with a `datasets` transform that decodes and augments
"""

import argparse
import csv
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # before torch is loaded: see side_by_side.py

# isort: split
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

from modeling.loading import TRAIN_MARGIN, LesionDataset, augmentation, default_num_workers, resized_images

BACKBONE, SIZE_PX, BATCH_SIZE, N_CLASSES = "efficientnet_b0", 224, 32, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def new_model(*, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(BACKBONE, num_classes=N_CLASSES, pretrained=False)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, pixel_values: torch.Tensor, labels: torch.Tensor
) -> None:
    nn.functional.cross_entropy(model(pixel_values), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def bare(n_images: int) -> Callable[[], int]:
    model = new_model(channels_last=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    pixel_values = torch.randn(BATCH_SIZE, 3, SIZE_PX, SIZE_PX).to(memory_format=torch.channels_last)
    labels = torch.randint(0, N_CLASSES, (BATCH_SIZE,))

    def epoch() -> int:
        for _ in range(n_images // BATCH_SIZE):
            train_step(model, optimizer, pixel_values, labels)
        return n_images // BATCH_SIZE * BATCH_SIZE

    return epoch


def ours(paths: list[Path], labels: list[int], cache_dir: Path, *, cold: bool) -> Callable[[], int]:
    model = new_model(channels_last=True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    data = datasets.Dataset.from_dict(
        {"image": [str(path) for path in paths], "image_id": [path.name for path in paths]}
    )
    data = data.cast_column("image", datasets.Image())

    def load() -> LesionDataset:
        if cold:
            shutil.rmtree(cache_dir, ignore_errors=True)
        images = resized_images(
            data, fingerprint="benchmark", size_px=round(SIZE_PX * TRAIN_MARGIN), exact=False, cache_gb=20,
            cache_dir=cache_dir, show_progress=False,
        )  # fmt: skip
        return LesionDataset(images, labels, transform=augmentation(SIZE_PX, MEAN, STD), seed=0)

    if not cold:
        load()  # the cache is there before the clock starts

    def epoch() -> int:
        loader = DataLoader(
            load(), batch_size=BATCH_SIZE, shuffle=True, drop_last=True, num_workers=default_num_workers(1)
        )
        seen = 0
        for batch in loader:
            pixel_values = batch["pixel_values"].to(memory_format=torch.channels_last)
            train_step(model, optimizer, pixel_values, batch["label"])
            seen += len(pixel_values)
        return seen

    return epoch


def original(folder: Path) -> Callable[[], int]:
    model = new_model(channels_last=False).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    transform = transforms.Compose(
        [transforms.Resize((SIZE_PX, SIZE_PX)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    loader = DataLoader(
        ImageFolder(folder, transform), batch_size=BATCH_SIZE, shuffle=True, drop_last=True, num_workers=2
    )

    def epoch() -> int:
        seen = 0
        for pixel_values, labels in loader:
            train_step(model, optimizer, pixel_values, labels)
            seen += len(pixel_values)
        return seen

    return epoch


class LogitsModel(nn.Module):
    """A timm model with the outputs that transformers.Trainer expects."""

    def __init__(self) -> None:
        super().__init__()
        self.model = new_model(channels_last=False)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def hf_trainer(paths: list[Path], labels: list[int], output_dir: Path) -> Callable[[], int]:
    augment = v2.Compose([v2.ToImage(), augmentation(SIZE_PX, MEAN, STD)])

    def transform(rows: dict[str, list]) -> dict[str, list]:
        return {
            "pixel_values": [augment(image.convert("RGB").resize((SIZE_PX, SIZE_PX))) for image in rows["image"]],
            "labels": rows["labels"],
        }

    data = datasets.Dataset.from_dict({"image": [str(path) for path in paths], "labels": labels})
    data = data.cast_column("image", datasets.Image()).with_transform(transform)
    settings = TrainingArguments(
        output_dir=str(output_dir), per_device_train_batch_size=BATCH_SIZE, num_train_epochs=1, dataloader_num_workers=2,
        dataloader_drop_last=True, remove_unused_columns=False, report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="no", use_cpu=True,
    )  # fmt: skip
    model = LogitsModel()

    def epoch() -> int:
        Trainer(model=model, args=settings, train_dataset=data).train()
        return len(paths) // BATCH_SIZE * BATCH_SIZE

    return epoch


def repeat_images(source: Path, folder: Path, n_images: int) -> tuple[list[Path], list[int]]:
    """Link the images into an ImageFolder layout until there are enough of them."""
    with (source / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    codes = sorted({row["label"] for row in rows})
    paths, labels = [], []
    for number in range(n_images):
        row = rows[number % len(rows)]
        path = folder / row["label"] / f"{number:06d}_{row['image']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.symlink((source / f"{row['image']}.jpg").resolve(), path)
        paths.append(path)
        labels.append(codes.index(row["label"]))
    return paths, labels


def main() -> None:
    """Measure in interleaved rounds, print medians with spread and ratios, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images_dir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        paths, labels = repeat_images(options.images_dir, root / "images", options.images)
        epochs = {
            "bare": bare(options.images),
            "ours, first epoch": ours(paths, labels, root / "cold", cold=True),
            "ours, later epochs": ours(paths, labels, root / "warm", cold=False),
            "original": original(root / "images"),
            "Trainer": hf_trainer(paths, labels, root / "trainer"),
        }
        rates = in_turn({name: partial(images_per_second, epoch) for name, epoch in epochs.items()}, options.rounds)
    show(rates, "images/s")
    ratios = {name: {other: ratio(rates, name, other) for other in rates} for name in rates}
    for name in rates:
        print(f"{name:20} {ratios[name]['bare']:6.2f} of bare {ratios[name]['original']:6.2f} times the original")
    write(
        "training",
        {
            "settings": {
                "backbone": BACKBONE,
                "size_px": SIZE_PX,
                "batch_size": BATCH_SIZE,
                **vars(options),
                "images_dir": "originals",
            },
            "images_per_second": rates,
            "ratios": ratios,
        },
        {
            "later epochs at least 95 % of the bare limit": ratios["ours, later epochs"]["bare"] >= 0.95,
            "later epochs at least 3 times the original": ratios["ours, later epochs"]["original"] >= 3,
            "first epoch no slower than the original's": ratios["ours, first epoch"]["original"] >= 1,
        },
    )


def images_per_second(epoch: Callable[[], int]) -> float:
    """Run one epoch and return its rate."""
    started = time.perf_counter()
    return epoch() / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
