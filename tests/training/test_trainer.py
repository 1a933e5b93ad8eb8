"""modeling/training/trainer.py: on coloured squares and timm's smallest network, in this process."""

import json
import math
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.distance import jensenshannon
from torch.utils.data import DataLoader, Dataset

from modeling.network import build_model, normalise
from modeling.training.accelerator import make_accelerator
from modeling.training.errors import Interrupted, TrainingError
from modeling.training.options import parse_options
from modeling.training.run_folder import Run
from modeling.training.trainer import BEST_NAME, Trainer, mixed_seed
from support.runs import TINY

COLOURS = torch.tensor([[200, 40, 40], [40, 200, 40], [40, 40, 200], [120, 120, 120]], dtype=torch.uint8)


class Squares(Dataset):
    """Coloured squares of 32 px with a little noise; the colour is the label. Images of `bad` are not finite."""

    def __init__(self, n, *, bad=()):
        rng = torch.Generator().manual_seed(n)
        self.labels = [index % 4 for index in range(n)]
        noise = torch.randint(0, 60, (n, 32, 32, 3), generator=rng, dtype=torch.uint8)
        self.pixels = COLOURS[self.labels][:, None, None, :].expand(-1, 32, 32, -1) // 2 + noise
        self.image_ids = [f"square-{index}" for index in range(n)]
        self.bad, self.epoch = bad, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        pixels = self.pixels[index].float()
        if index in self.bad:
            pixels = pixels * float("nan")
        return {"pixels": pixels, "label": self.labels[index]}


def score(predictions, references):
    accuracy = float((predictions.argmax(axis=1) == references).mean())
    return {"balanced_accuracy": accuracy, "accuracy": accuracy}


def trainer(folder, *more, n_train=32, bad=(), score=score):
    options = parse_options(
        [*TINY, "--dataset", "demo", "--epochs", "3", "--batch_size", "8", "--learning_rate", "0.005", *more]
    )
    folder.mkdir(exist_ok=True)
    run = Run(folder, options, make_accelerator(options))
    torch.manual_seed(options.seed)
    model = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False, drop_rate=0.2)
    train = DataLoader(Squares(n_train, bad=bad), options.batch_size, shuffle=True)
    val = DataLoader(Squares(12), options.batch_size)
    return Trainer(
        run,
        model,
        {"train": run.accelerator.prepare(train), "val": run.accelerator.prepare(val)},
        SimpleNamespace(compute=score),
    )


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(trained):
    return {key: value.clone() for key, value in trained.evaluated_model.state_dict().items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.fixture
def whole(tmp_path):
    """An uninterrupted training, its folder, and its best weights."""
    trained = trainer(tmp_path / "whole")
    trained.train()
    trained.evaluated_model.load_state_dict(trained.best_weights)
    return trained, tmp_path / "whole"


def test_training_learns_and_logs_each_epoch(tmp_path, capsys):
    trainer(tmp_path).train()
    lines = log(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert {"val/balanced_accuracy", "val/loss", "learning_rate", "seconds", "images_per_second"} <= set(lines[0])
    output = capsys.readouterr().out
    assert "epoch   3/3  train loss" in output


def test_the_time_that_is_left_counts_whole_epochs(tmp_path, capsys):
    trained = trainer(tmp_path, "--epochs", "5")
    scores = {"train/loss": 1.0, "val/loss": 1.0, "val/balanced_accuracy": 0.5, "val/accuracy": 0.5, "step": 4}
    trained.progress.history = [{"epoch": epoch, "learning_rate": 0.1, **scores} for epoch in (1, 2, 3)]
    trained.progress.timing = [{"seconds": seconds, "images_per_second": 9.0} for seconds in (90, 100, 20)]  # resumed
    trained._log(is_best=False)
    assert "9 images/s  0:03:20 of training left" in capsys.readouterr().out


def test_two_views_add_how_far_apart_their_answers_are(tmp_path):
    one, two = trainer(tmp_path / "one"), trainer(tmp_path / "two", "--consistency", "3")
    labels, first, second = torch.tensor([0, 3, 1]), *torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    both = torch.cat([first, second])
    cross_entropy = (one.loss(first, labels) + one.loss(second, labels)) / 2
    assert torch.allclose(two.loss(torch.cat([first, first]), labels), one.loss(first, labels))
    p, q = (view.double().softmax(1).numpy() for view in (first, second))
    apart = np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])
    assert two.loss(both, labels).item() == pytest.approx(cross_entropy.item() + 3 * apart, abs=1e-5)


def test_two_views_of_a_batch_are_one_step(tmp_path):
    trained = trainer(tmp_path, "--consistency", "3")
    squares = trained.train_loader.dataset.pixels
    seen = []
    trained.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    trained.train_batch({"pixels": torch.stack([squares[:8], squares[8:16]], 1).float(), "label": torch.arange(8) % 4})
    expected = normalise(squares[:16].float(), trained.network.pretrained_cfg)  # first views, then second ones
    assert torch.equal(seen[0], expected)
    assert trained.progress.step == 1
    assert trained.progress.images_seen == 8


def test_without_an_epoch_the_weights_stay_as_they_are(tmp_path):
    trained = trainer(tmp_path, "--epochs", "0", "--init_from", "a model")
    before = weights(trained)
    trained.train()
    assert_same(trained.best_weights, before)
    assert trained.progress.history == []


def test_the_best_epoch_is_kept_and_of_equal_scores_the_first(tmp_path):
    scores = iter([0.5, 0.9, 0.9])

    def given(predictions, references):
        return {"balanced_accuracy": next(scores), "accuracy": 0.0}

    trained = trainer(tmp_path, score=given)
    kept = []
    finish = trained.finish_epoch

    def remember(*arguments):
        finish(*arguments)
        kept.append(weights(trained))

    trained.finish_epoch = remember
    trained.train()
    trained.evaluated_model.load_state_dict(trained.best_weights)
    assert trained.progress.best_epoch == 1
    assert_same(weights(trained), kept[1])
    assert not torch.equal(kept[1]["conv_stem.weight"], kept[2]["conv_stem.weight"])
    assert_same(load_file(trained.checkpoints.latest() / BEST_NAME), kept[1])


def test_patience_ends_training_and_the_original_recipe_has_none(tmp_path):
    def falling():
        values = iter(np.linspace(0.9, 0.1, 9))

        def score(predictions, references):
            value = float(next(values))
            return {"balanced_accuracy": value, "accuracy": 1 - value}  # rises

        return score

    patient = trainer(tmp_path / "a", "--epochs", "8", "--patience", "2", score=falling())
    patient.train()
    assert patient.progress.epoch == 3
    original = trainer(tmp_path / "b", "--recipe", "original", "--epochs", "4", score=falling())
    original.train()
    assert original.progress.epoch == 4
    assert isinstance(original.optimizer.optimizer, torch.optim.Adam)
    assert original.ema is None
    assert original.max_grad_norm == math.inf
    assert original.progress.best_epoch == 3
    assert {line["learning_rate"] for line in log(tmp_path / "b")} == {0.005}


@pytest.mark.parametrize("after_steps", [3, 4, 9])  # within an epoch, at its end, within the last
def test_stopped_and_resumed_gives_the_same_weights_and_log(whole, tmp_path, after_steps):
    first = trainer(tmp_path / "stopped")
    train_batch = first.train_batch

    def train_batch_and_stop(batch):
        train_batch(batch)
        if first.progress.step == after_steps:
            os.kill(os.getpid(), signal.SIGTERM)

    first.train_batch = train_batch_and_stop
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        first.train()
    second = trainer(tmp_path / "stopped")
    assert second.resume()
    assert second.progress.step == after_steps
    second.train()
    second.evaluated_model.load_state_dict(second.best_weights)
    assert_same(weights(second), weights(whole[0]))
    without_timing = [
        [
            {key: value for key, value in line.items() if key not in ("seconds", "images_per_second")}
            for line in log(folder)
        ]
        for folder in (tmp_path / "stopped", whole[1])
    ]
    assert without_timing[0] == without_timing[1]


def test_resuming_without_a_checkpoint_starts(tmp_path):
    assert not trainer(tmp_path).resume()


def test_epochs_after_the_checkpoint_leave_the_log(whole):
    trained, folder = whole
    newest = trained.checkpoints.latest()
    (newest / "progress-0.json").rename(folder / "progress")
    newest.rename(folder / "gone")  # the checkpoint of the last epoch
    again = trainer(folder)
    again.resume()
    assert [line["epoch"] for line in log(folder)] == [1, 2]


@pytest.mark.parametrize("damage", ["model.safetensors", "optimizer.bin", "progress-0.json", BEST_NAME])
def test_a_damaged_checkpoint_is_named_with_the_way_out(whole, damage):
    trained, folder = whole
    (trained.checkpoints.latest() / damage).write_bytes(b"\x00")
    with pytest.raises(
        TrainingError, match=r"(?s)step-00000012 cannot be read .*Delete it to continue from the one before"
    ):
        trainer(folder).resume()


def test_the_best_weights_of_a_resumed_run_are_not_mapped_from_a_checkpoint_that_will_be_deleted(whole):
    again = trainer(whole[1])
    assert again.resume()
    assert BEST_NAME not in Path("/proc/self/maps").read_text()
    assert again.best_weights


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path, caplog):
    trained = trainer(tmp_path)
    trained.save()
    before = {key: value.clone() for key, value in trained.network.named_parameters()}
    images = next(iter(trained.train_loader))
    trained.train_batch({**images, "pixels": images["pixels"] * float("nan")})
    assert (trained.progress.step, trained.progress.bad_steps, trained.progress.images_seen) == (0, 1, 0)
    assert all(torch.equal(value, before[key]) for key, value in trained.network.named_parameters())
    assert "is not finite (loss nan); the step is skipped." in caplog.text
    for buffer in trained.network.buffers():  # the forward pass has spoilt the running statistics
        buffer.zero_()
    trained.train_batch(images)
    assert (trained.progress.step, trained.progress.bad_steps, trained.progress.images_seen) == (1, 0, 8)
    assert np.isfinite(trained.progress.loss_sum)


def test_too_many_bad_steps_end_training_with_advice_and_keep_the_checkpoint(tmp_path):
    trained = trainer(tmp_path, "--epochs", "9", bad=range(32))
    with pytest.raises(TrainingError, match="20 steps in a row had no finite gradient, so training gives up"):
        trained.train()
    assert trained.checkpoints.latest().name == "step-00000000"


def test_the_last_window_of_accumulation_has_the_gradient_of_its_own_batches(tmp_path):
    """Three batches an epoch: four to a step are no more than three, so both take the same one step an epoch."""
    results = []
    for accumulation in ("3", "4"):
        more = [
            "--gradient_accumulation_steps",
            accumulation,
            "--epochs",
            "2",
            "--ema_decay",
            "0",
        ]
        trained = trainer(tmp_path / accumulation, *more, n_train=24)
        trained.max_grad_norm = 1000.0  # clipping would hide a wrong scale
        trained.train()
        assert trained.progress.step == 2
        results.append(weights(trained))
    assert_same(*results)


def test_checkpoints_are_written_after_so_many_steps_and_each_epoch(tmp_path):
    trained, saved = trainer(tmp_path, "--checkpoint_every", "3steps", "--epochs", "1"), []
    save = trained.checkpoints.save
    trained.checkpoints.save = lambda step, write: saved.append(step) or save(step, write)
    trained.train()
    assert saved == [0, 3, 4]


def test_several_signals_are_one_request(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    trained = trainer(tmp_path)
    request = trained.stop_request
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)  # of the same request
    os.kill(os.getpid(), signal.SIGINT)
    assert request.signal == "SIGINT"
    request.restore()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated."), ConnectionResetError(), EOFError()],
)
def test_a_loader_process_that_dies_of_the_same_signal_leaves_a_checkpoint(whole, tmp_path, error):
    trained = trainer(tmp_path / "run")
    train_batch = trained.train_batch

    def stopped(batch):
        if trained.progress.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            raise error
        train_batch(batch)

    trained.train_batch = stopped
    with pytest.raises(Interrupted, match="SIGTERM"):
        trained.train()
    assert trained.checkpoints.latest().name == "step-00000006"
    trained.stop_request.restore()
    again = trainer(tmp_path / "run")
    assert again.resume()
    again.train()
    again.evaluated_model.load_state_dict(again.best_weights)
    assert_same(weights(again), weights(whole[0]))


def test_seeds_of_neighbours_differ():
    seeds = {mixed_seed(0, epoch, index) for epoch in range(20) for index in range(50)}
    assert len(seeds) == 1000


@pytest.fixture(autouse=True)
def handlers():
    """Trainers take over signal handlers; a failed test must not leave them behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
