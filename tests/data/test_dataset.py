"""Training sees the pixels that prediction makes, decoded once; augmentation repeats itself."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling.data.augmentation import Augmentation
from modeling.data.decoding import decode_images
from modeling.images import decode_image
from modeling.training.loaders import LesionDataset


@pytest.fixture
def photographs(tmp_path: Path) -> list[str]:
    """Twelve JPEGs of 400x300, each of its own colours."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(12):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        paths.append(str(tmp_path / f"{number:02d}.jpg"))
        coarse.resize((400, 300), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def load(paths: list[str], size_px: int = 32) -> datasets.Dataset:
    images = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    return decode_images(images, size_px=size_px).add_column("image_id", paths)


def test_pixels_are_those_of_a_full_decode_squashed(photographs: list[str]) -> None:
    dataset = LesionDataset(load(photographs).select([7, 3, 11]), [0] * 3)
    assert dataset.image_ids == [photographs[index] for index in (7, 3, 11)]
    for image, path in zip(dataset, dataset.image_ids, strict=False):
        expected = np.asarray(decode_image(path).resize((32, 32), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(image["pixels"].numpy(), expected)


def test_an_image_that_cannot_be_read_is_named_with_the_reason(photographs: list[str], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not an image at all")
    (tmp_path / "empty.jpg").write_bytes(b"")
    rows = load([str(tmp_path / "broken.jpg"), photographs[0], str(tmp_path / "empty.jpg"), str(tmp_path / "none.jpg")])
    assert [bool(problem) for problem in rows["problem"]] == [True, False, True, True]
    assert [len(pixels) for pixels in rows["pixels"]] == [0, 32 * 32 * 3, 0, 0]


@pytest.fixture
def augmented(photographs):
    augmentation = Augmentation(24, fill=(128, 128, 128))
    return LesionDataset(load(photographs), [0] * 12, augmentation=augmentation, seed=1)


def test_augmentation_depends_on_seed_epoch_and_image_alone(augmented):
    first = augmented[3]["pixels"]
    state = torch.get_rng_state()
    assert torch.equal(augmented[3]["pixels"], first)
    assert torch.equal(torch.get_rng_state(), state)
    augmented.set_epoch(1)
    assert not torch.equal(augmented[3]["pixels"], first)
    augmented.set_epoch(0)
    augmented.seed = 2
    assert not torch.equal(augmented[3]["pixels"], first)


def test_each_seed_epoch_and_place_has_its_own_augmentation(photographs):
    images = load(photographs[:1] * 3)
    seen = set()
    for seed in range(3):
        dataset = LesionDataset(images, [0] * 3, augmentation=Augmentation(24, fill=(0, 0, 0)), seed=seed)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            seen |= {dataset[index]["pixels"].numpy().tobytes() for index in range(3)}
    assert len(seen) == 27


def test_a_row_carries_the_label_of_its_image(photographs):
    dataset = LesionDataset(load(photographs), range(100, 112))
    (batch,) = DataLoader(dataset, batch_size=12)
    assert batch["label"].tolist() == list(range(100, 112))
    assert (batch["pixels"].numpy() == np.stack([dataset.image(index) for index in range(12)])).all()


def test_augmentation_is_the_same_in_worker_processes(augmented):
    batches = [
        torch.cat([batch["pixels"] for batch in DataLoader(augmented, 4, num_workers=workers)]) for workers in (0, 2)
    ]
    assert torch.equal(*batches)


def test_loader_processes_that_live_on_see_each_epoch(photographs):
    images = load(photographs, size_px=40)
    dataset = LesionDataset(images, [0] * len(images), augmentation=Augmentation(32, fill=(0, 0, 0)))
    loader = DataLoader(dataset, batch_size=len(images), num_workers=1, persistent_workers=True)
    seen = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        (batch,) = loader
        seen.append(batch["pixels"])
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_what_a_loader_hands_out_can_be_changed_without_changing_the_cache(photographs):
    plain = LesionDataset(load(photographs), [0] * 12)
    before = plain[0]["pixels"].clone()
    plain[0]["pixels"].zero_()
    assert torch.equal(plain[0]["pixels"], before)
