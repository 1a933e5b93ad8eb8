"""modeling/training/loaders.py: sizes, augmentation and workers of each split."""

import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from modeling.data.sources import load_images
from modeling.network import build_model
from modeling.training.loaders import RunData, images_of, make_loaders
from modeling.training.options import parse_options
from modeling.training.run_folder import Run


@pytest.fixture
def data(isic_folder):
    return data_of(isic_folder, 32)


def data_of(isic_folder, size_px):
    loaded = load_images("isic2019", data_dir=isic_folder, size_px=size_px)
    chosen = loaded.dataset.select(range(12))
    splits = pd.DataFrame({"image_id": chosen["image_id"][:], "split": ["train"] * 9 + ["val"] * 3})
    return RunData(loaded, chosen, splits, {})


def run_with(tmp_path, *arguments):
    return Run(tmp_path, parse_options(["--pretrained", "false", *arguments]), Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("recipe", "side_px", "train_px"),
    [("default", 96, 80), ("default", 36, 32), ("default", 16, 16), ("original", 96, 96)],
)
def test_only_augmented_images_are_smaller_than_the_input_of_the_model(
    isic_folder, tmp_path, recipe, side_px, train_px
):
    data = data_of(isic_folder, side_px)
    run = run_with(tmp_path, "--recipe", recipe, "--image_size", str(side_px))
    model = build_model("test_efficientnet", num_classes=2, size_px=side_px, pretrained=False)
    for name, side in (("train", train_px), ("val", side_px), ("reprocessed", side_px)):
        assert images_of(run, data, model, name)[0]["pixels"].shape == (side, side, 3)


def test_with_consistency_train_has_two_views_of_which_the_first_is_the_usual_one(data, tmp_path):
    model = build_model("test_efficientnet", num_classes=2, size_px=96, pretrained=False)
    one, two = run_with(tmp_path, "--image_size", "96"), run_with(tmp_path, "--image_size", "96", "--consistency", "2")
    usual, views = (images_of(run, data, model, "train")[0]["pixels"] for run in (one, two))
    assert views.shape == (2, 80, 80, 3)
    assert torch.equal(views[0], usual)
    assert not torch.equal(views[1], usual)
    assert images_of(two, data, model, "val")[0]["pixels"].dim() == 3


def test_reprocessed_images_are_those_of_val_and_the_same_each_time(data, tmp_path):
    model = build_model("test_efficientnet", num_classes=2, size_px=32, pretrained=False)
    run = run_with(tmp_path, "--image_size", "32", "--recipe", "original")
    val, once, again = (images_of(run, data, model, name) for name in ("val", "reprocessed", "reprocessed"))
    assert once.image_ids == val.image_ids
    for index in range(3):
        assert torch.equal(once[index]["pixels"], again[index]["pixels"])
        assert not torch.equal(once[index]["pixels"], val[index]["pixels"])


def test_an_incomplete_last_batch_is_left_out_of_training_only(data, tmp_path):
    model = build_model("test_efficientnet", num_classes=2, size_px=32, pretrained=False)
    for batch_size, n_batches in (("2", 4), ("9", 1), ("32", 1)):
        run = run_with(tmp_path, "--image_size", "32", "--num_workers", "0", "--batch_size", batch_size)
        loaders = make_loaders(run, data, model)
        assert sorted(loaders) == ["reprocessed", "train", "val"]
        assert len(loaders["train"]) == n_batches
        assert len(loaders["val"]) == -(-3 // int(batch_size))


def test_the_processes_of_one_machine_share_its_cores(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)), raising=False)
    model = build_model("test_efficientnet", num_classes=2, size_px=32, pretrained=False)
    loaders = make_loaders(run_with(tmp_path, "--image_size", "32"), data, model)
    assert {loader.num_workers for loader in loaders.values()} == {3}
