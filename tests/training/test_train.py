"""train.py: run as its users run it, on a small dataset in the official layout; killed, resumed, refused."""

import csv
import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

import train
from modeling.classifier import LesionClassifier
from modeling.data.dataset import LesionDataset
from modeling.data.isic2019 import load_isic2019
from modeling.labels import CODES
from modeling.network import build_model
from modeling.training.accelerator import make_accelerator
from modeling.training.checkpoints import problem_with
from modeling.training.loaders import lesion_dataset, make_loaders
from modeling.training.options import is_allowed
from modeling.training.recipe import make_trainer
from modeling.training.trainer import BEST_NAME, EpochLog, Trainer, mixed_seed
from support.corpus import make_corpus
from support.runs import ROOT, TINY, start


def arguments(isic_folder, run_dir, *more):
    return [
        *TINY, "--data_dir", str(isic_folder), "--output_dir", str(run_dir), "--epochs", "3", "--num_workers", "0",
        "--learning_rate", "0.005", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Image caches go to a folder of the test session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(isic_folder, tmp_path_factory):
    """The folder of an uninterrupted run."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    run = start(arguments(isic_folder, run_dir, "--checkpoint_every", "1steps"), run_dir.with_suffix(".log"))
    assert run.wait() == 0, run.output
    return run_dir


def results(run_dir):
    return {
        name: (run_dir / name).read_bytes()
        for name in ("predictions.csv", "model/metrics.json", "model/model.safetensors")
    }


def test_a_run_leaves_what_the_design_promises(finished):
    assert {path.name for path in finished.iterdir()} == {
        "train_config.json", "splits.csv", "image_hashes.csv", "log.jsonl", "checkpoints", "predictions.csv", "model",
    }  # fmt: skip
    model = finished / "model"
    assert {
        "model.safetensors",
        "config.json",
        "README.md",
        "metrics.json",
        "train_config.json",
        "splits.csv",
        "image_hashes.csv",
        "figures",
    } <= {path.name for path in model.iterdir()}
    assert list((model / "figures").glob("*.png"))
    assert not [path for path in model.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]
    assert str(finished) not in (model / "train_config.json").read_text()


def test_the_folder_opens_in_other_libraries(finished):
    model = AutoModelForImageClassification.from_pretrained(finished / "model").eval()
    assert model.config.id2label == {0: "BCC", 1: "BKL", 2: "MEL", 3: "NV"}
    same = timm.create_model(f"local-dir:{finished / 'model'}", pretrained=True).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(pixel_values).logits, same(pixel_values), rtol=0, atol=1e-5)


def test_val_and_test_are_predicted_exactly_once_by_the_model_that_is_kept(finished, isic_folder):
    with (finished / "splits.csv").open() as file:
        wanted = {row["image_id"]: row for row in csv.DictReader(file) if row["split"] != "train"}
    with (finished / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["image_id"] for row in rows) == sorted(wanted)
    classifier = LesionClassifier.from_pretrained(finished / "model", device="cpu")
    paths = [isic_folder / "ISIC_2019_Training_Input" / f"{row['image_id']}.jpg" for row in rows]
    for row, prediction in zip(rows, classifier.predict(paths), strict=True):
        assert (row["label"], row["split"]) == (wanted[row["image_id"]]["label"], wanted[row["image_id"]]["split"])
        for code, probability in prediction.probabilities.items():
            assert float(row[code]) == pytest.approx(probability, abs=1e-5)
        assert row["abstained"] == str(prediction.abstained)


def test_the_log_has_one_object_per_epoch_and_the_loss_falls(finished):
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert {"val/balanced_accuracy", "val/loss", "learning_rate", "images_per_second"} <= set(lines[0])


def test_the_best_weights_of_a_resumed_run_are_in_memory_and_not_in_a_checkpoint_that_will_be_deleted(finished):
    folder = max((finished / "checkpoints").iterdir())
    accelerator = SimpleNamespace(load_state=lambda _: None, process_index=0, is_main_process=False)
    trainer = SimpleNamespace(checkpoints=SimpleNamespace(latest=lambda: folder), accelerator=accelerator)
    assert Trainer.resume(trainer)
    assert str(folder / BEST_NAME) not in Path("/proc/self/maps").read_text()
    assert trainer.best_weights.keys() == load_file(folder / BEST_NAME).keys()


def test_the_weights_that_are_kept_are_those_of_the_best_epoch(finished):
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["val/balanced_accuracy"])  # the first of equals
    assert best is not lines[-1]  # otherwise this proves nothing
    metrics = json.loads((finished / "model" / "metrics.json").read_text())
    assert metrics["training"]["best_epoch"] == best["epoch"]
    assert metrics["val"]["balanced_accuracy"]["value"] == pytest.approx(best["val/balanced_accuracy"])
    before = metrics["calibration"]["val"]["before"]["nll"]
    before = before["value"] if isinstance(before, dict) else before
    assert before == pytest.approx(best["val/loss"], abs=1e-5)
    assert before != pytest.approx(lines[-1]["val/loss"], abs=1e-4)


def test_the_command_that_opens_the_space_is_printed(finished):
    assert f"python space/app.py --model {finished / 'model'}" in finished.with_suffix(".log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step-00000001", "step-00000007"])  # the best epoch is the first of three
def test_killed_and_resumed_is_never_killed(finished, isic_folder, tmp_path, moment):
    run_dir = tmp_path / "killed"
    command = arguments(isic_folder, run_dir, "--checkpoint_every", "1steps", "--resume", "auto")
    run = start(command, tmp_path / "log")
    run.wait_for(run_dir / "checkpoints" / moment)
    run.kill()
    assert not (run_dir / "model").exists()
    run = start(command, tmp_path / "log")
    assert run.wait() == 0, run.output
    assert "resuming at epoch" in run.output
    assert results(run_dir) == results(finished)
    assert len((run_dir / "log.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_says_how_to_go_on(finished, isic_folder, tmp_path):
    run_dir = tmp_path / "preempted"
    # With loader processes: a cluster's signal reaches them too.
    command = [*arguments(isic_folder, run_dir, "--resume", "auto"), "--num_workers", "1"]
    run = start(command, tmp_path / "log")
    run.wait_for(run_dir / "checkpoints" / "step-00000000")
    run.signal_group(signal.SIGTERM)
    assert run.wait() == 130, run.output
    assert "SIGTERM" in run.output
    assert "--resume auto" in run.output
    run = start(command, tmp_path / "log")
    assert run.wait() == 0, run.output
    # Checkpoints at other moments, the same result.
    assert results(run_dir)["model/model.safetensors"] == results(finished)["model/model.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(("to_all", "number"), [(False, signal.SIGTERM), (True, signal.SIGTERM), (True, signal.SIGINT)])
def test_a_launcher_that_is_stopped_leaves_a_checkpoint_and_no_orphan(isic_folder, tmp_path, to_all, number):
    """`kill` and container stops reach the launcher alone, clusters and Ctrl-C the whole group; it dies of it at once."""
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "train.py"]
    # Images so large that a step lasts longer than the launcher: its end must not cut the step short.
    command += arguments(isic_folder, run_dir, "--image_size", "512", "--epochs", "500", "--patience", "500")
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (run_dir / "checkpoints" / "step-00000000").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    (child,) = psutil.Process(process.pid).children()
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait()
    child.wait(timeout=60)
    written = max((run_dir / "checkpoints").glob("step-*"))
    assert written.name != "step-00000000"
    assert problem_with(written) is None


@pytest.fixture(scope="module")
def finished_by_two(isic_folder, tmp_path_factory):
    """The folder of an uninterrupted run of two processes."""
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    run = start(arguments(isic_folder, run_dir), run_dir.with_suffix(".log"), processes=2)
    assert run.wait() == 0, run.output
    return run_dir


@pytest.mark.slow
def test_two_processes_killed_one_or_both_and_resumed_are_never_killed(finished_by_two, isic_folder, tmp_path):
    run_dir = tmp_path / "killed"
    command = arguments(isic_folder, run_dir, "--checkpoint_every", "1steps", "--resume", "auto")
    run = start(command, tmp_path / "log", processes=2)
    run.wait_for(run_dir / "checkpoints" / "step-00000001")
    run.kill_rank(1)
    assert run.wait(60) != 0
    assert run.exit_codes == [1, -signal.SIGKILL]
    assert "another process of this run failed or was killed" in run.output
    run = start(command, tmp_path / "log", processes=2)
    run.wait_for(run_dir / "checkpoints" / "step-00000003")
    run.kill()
    run = start(command, tmp_path / "log", processes=2)
    assert run.wait() == 0, run.output
    assert run.output.count("resuming at epoch") == 2
    assert results(run_dir) == results(finished_by_two)


@pytest.mark.slow
def test_a_process_that_cannot_read_its_images_stops_the_others(isic_folder, tmp_path):
    run_dir = tmp_path / "run"
    run = start(arguments(isic_folder, run_dir), tmp_path / "log", processes=2, failing_rank=1)
    run.wait_for(run_dir / "log.jsonl")  # it fails in the second epoch
    assert run.wait(60) == 1
    assert run.exit_codes == [1, 1]
    assert "error: the disk of this process is gone" in run.output
    assert "another process of this run failed or was killed" in run.output
    assert "Traceback" not in run.output
    assert list((run_dir / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_a_second_run_is_kept_out_of_the_folder_on_all_its_processes(isic_folder, tmp_path):
    run_dir = tmp_path / "run"
    command = arguments(isic_folder, run_dir, "--epochs", "500", "--patience", "500", "--resume", "auto")
    first = start(command, tmp_path / "first")
    first.wait_for(run_dir / "checkpoints" / "step-00000000")
    second = start(command, tmp_path / "second", processes=2)
    assert second.wait(60) == 1
    assert second.exit_codes == [1, 1]
    assert second.output.count(f"another run is writing to {run_dir}") == 2
    assert first.alive
    first.kill()


def full_disk(run, size=50_000):
    """Let no file of a run grow over a size; None: as before."""
    hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing(finished, isic_folder, tmp_path):
    run_dir = tmp_path / "run"
    run = start(arguments(isic_folder, run_dir, "--checkpoint_every", "1steps"), tmp_path / "log")
    run.wait_for(run_dir / "checkpoints" / "step-00000001")
    full_disk(run)
    while len((run_dir / "log.jsonl").read_text().splitlines() if (run_dir / "log.jsonl").exists() else "") < 2:
        assert run.alive, run.output
        time.sleep(0.01)
    full_disk(run, None)  # the best weights of the first two epochs could not be written when they were new
    assert run.wait() == 0, run.output
    assert "training goes on and tries again later" in run.output
    assert results(run_dir) == results(finished)


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_in_words_with_what_is_old_intact(isic_folder, tmp_path):
    run_dir = tmp_path / "run"
    run = start(arguments(isic_folder, run_dir, "--checkpoint_every", "1steps"), tmp_path / "log")
    run.wait_for(run_dir / "checkpoints" / "step-00000001")
    full_disk(run)
    assert run.wait() == 1, run.output
    assert "Make room on the disk and go on with the same command and --resume auto" in run.output
    assert "Traceback" not in run.output
    assert not (run_dir / "model").exists()
    kept = [problem_with(folder) for folder in (run_dir / "checkpoints").glob("step-*")]
    assert kept
    assert set(kept) == {None}


def test_the_log_brings_later_what_could_not_be_written(tmp_path):
    Accelerator(cpu=True)  # its logger wants it
    log = EpochLog(tmp_path / "log.jsonl")
    log.add({"epoch": 1, "loss": 2.0, "seconds": 3.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        log.add({"epoch": 2, "loss": 1.0, "seconds": 3.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    log.add({"epoch": 3, "loss": 0.5, "seconds": 3.0})
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_resumed_log_has_the_epochs_of_the_checkpoint(tmp_path):
    Accelerator(cpu=True)  # its logger wants it
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 1, "loss": 2.0, "seconds": 3.0}\n{"epoch": 3, "loss": 0.5}\n{"epo')
    EpochLog(path).go_back_to([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}])
    assert path.read_text() == '{"epoch": 1, "loss": 2.0, "seconds": 3.0}\n{"epoch": 2, "loss": 1.0}\n'


def test_resuming_with_other_options_names_the_differences(finished, isic_folder):
    run = start(arguments(isic_folder, finished, "--resume", "auto", "--seed", "7"), finished.with_suffix(".refused"))
    assert run.wait() == 1
    assert "seed: 42 before, 7 now" in run.output
    assert "backbone" not in run.output


def test_a_finished_run_is_not_written_over(finished, isic_folder):
    before = results(finished)
    run = start(arguments(isic_folder, finished), finished.with_suffix(".again"))
    assert run.wait() == 1
    assert "already holds a run" in run.output
    assert results(finished) == before


@pytest.mark.slow
def test_tensorboard_gets_the_numbers_of_the_log(isic_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tmp_path / "tracked"
    run = start(arguments(isic_folder, run_dir, "--epochs", "1", "--report_to", "tensorboard"), tmp_path / "log")
    assert run.wait() == 0, run.output
    (events,) = (run_dir / "skin-lesion-classifier").glob("events.out.tfevents*")
    tracked = EventAccumulator(str(events)).Reload()
    logged = json.loads((run_dir / "log.jsonl").read_text())
    assert tracked.Scalars("val/balanced_accuracy")[0].value == pytest.approx(logged["val/balanced_accuracy"])
    assert tracked.Scalars("train/loss")[0].step == logged["step"]


def test_splits_that_leak_are_refused(finished, isic_folder, tmp_path):
    lines = (finished / "splits.csv").read_text().splitlines()
    in_train = next(number for number, line in enumerate(lines) if line.endswith(",train"))
    lines[in_train] = lines[in_train].removesuffix("train") + "test"  # its lesion's other photo stays in train
    (tmp_path / "leaking.csv").write_text("\n".join(lines) + "\n")
    run = start(arguments(isic_folder, tmp_path / "run", "--splits", str(tmp_path / "leaking.csv")), tmp_path / "log")
    assert run.wait() == 1
    assert "lesions are in more than one split" in run.output
    assert not (tmp_path / "run" / "model").exists()


def test_a_loss_that_explodes_gives_up_in_words_and_keeps_what_there_is(isic_folder, tmp_path):
    run_dir = tmp_path / "exploded"
    run = start(arguments(isic_folder, run_dir, "--learning_rate", "1e38", "--max_bad_steps", "3"), tmp_path / "log")
    assert run.wait() == 1
    assert "Lower --learning_rate" in run.output
    assert run.output.count("is not finite (loss") == 3
    kept = list((run_dir / "checkpoints").glob("step-*"))
    assert kept
    assert all(problem_with(folder) is None for folder in kept)
    assert (run_dir / "splits.csv").exists()


@pytest.mark.slow
def test_images_that_cannot_be_used_stop_the_run_or_are_listed(isic_folder, tmp_path):
    broken = tmp_path / "data"
    subprocess.run(["cp", "-r", str(isic_folder), str(broken)], check=True)
    (broken / "ISIC_2019_Training_Input" / "ISIC_0000003.jpg").write_bytes(b"")
    (broken / "ISIC_2019_Training_Input" / "ISIC_0000004.jpg").unlink()
    run = start(arguments(broken, tmp_path / "run"), tmp_path / "log")
    assert run.wait() == 1
    assert "ISIC_0000003" in run.output
    assert "--skip_bad_images" in run.output
    run = start(arguments(broken, tmp_path / "run2", "--skip_bad_images", "--epochs", "1"), tmp_path / "log2")
    assert run.wait() == 0, run.output
    assert {"ISIC_0000003", "ISIC_0000004"} <= set(
        (tmp_path / "run2" / "skipped.csv").read_text().replace(",", "\n").split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", ["1", "2"])
def test_a_bad_image_is_skipped_and_training_goes_on(isic_folder, tmp_path, accumulation):
    """Pixels that are not finite, in one batch: the network's running statistics are spoilt and must go back."""
    run_dir = tmp_path / "run"
    run = start(
        arguments(isic_folder, run_dir, "--gradient_accumulation_steps", accumulation), tmp_path / "log", spoil_index=5
    )
    assert run.wait() == 0, run.output
    assert "is not finite (loss nan)" in run.output
    assert "going back to step-" in run.output
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert all(np.isfinite(line["train/loss"]) for line in lines)


@pytest.mark.slow
def test_a_loader_process_that_dies_ends_the_run_with_advice(isic_folder, tmp_path):
    run_dir = tmp_path / "run"
    command = [*arguments(isic_folder, run_dir, "--epochs", "200", "--patience", "200"), "--num_workers", "1"]
    run = start(command, tmp_path / "log")
    run.wait_for(run_dir / "log.jsonl")
    deadline = time.monotonic() + 60
    while run.process.exitcode is None and time.monotonic() < deadline:
        for child in psutil.Process(run.process.pid).children():
            child.kill()
        time.sleep(0.2)
    assert run.wait() == 1
    assert "--num_workers 0" in run.output
    assert list((run_dir / "checkpoints").glob("step-*"))


@pytest.mark.slow
def test_every_file_of_the_hostile_corpus_is_trained_on_or_listed(isic_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(isic_folder, data)
    hostile = {}
    with (
        (data / "ISIC_2019_Training_GroundTruth.csv").open("a", newline="") as labels,
        (data / "ISIC_2019_Training_Metadata.csv").open("a", newline="") as metadata,
    ):
        for number, file in enumerate(make_corpus(tmp_path / "corpus")):
            if file.path.is_file():
                name = f"ISIC_{9000000 + number}"
                hostile[name] = file
                shutil.copyfile(file.path, data / "ISIC_2019_Training_Input" / f"{name}.jpg")
                csv.writer(labels).writerow([name, *(float(code == "NV") for code in CODES), 0.0])
                csv.writer(metadata).writerow([name, 50, "", f"HAM_X{number}", "male"])
    run_dir = tmp_path / "run"
    run = start(arguments(data, run_dir, "--skip_bad_images", "--epochs", "1"), tmp_path / "log")
    assert run.wait() == 0, run.output
    with (run_dir / "skipped.csv").open() as file:
        skipped = {row["image_id"]: row["reason"] for row in csv.DictReader(file)}
    with (run_dir / "splits.csv").open() as file:
        trained_on = {row["image_id"] for row in csv.DictReader(file)}
    assert {name for name, file in hostile.items() if file.expected == "refused"} == set(skipped)
    assert all(skipped.values())
    flow = json.loads((run_dir / "model" / "metrics.json").read_text())["data"]["flow"]
    assert flow["skipped"] == len(skipped)
    assert {name for name, file in hostile.items() if file.expected == "reads"} <= trained_on


def launch(processes, *command):
    """Start train.py by accelerate's launcher; `--cpu` would need MPI for more than one process."""
    several = ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else ["--num_processes", "1"]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *several, "train.py", *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_as_one_and_predict_each_image_once(isic_folder, tmp_path):
    """Half the batch on each of two processes: the same data, the same loss. The network has no batch statistics."""
    logs = {}
    for processes in (1, 2):
        run_dir = tmp_path / str(processes)
        result = launch(
            processes, "--data_dir", str(isic_folder), "--output_dir", str(run_dir), "--backbone", "test_convnext",
            "--pretrained", "false", "--image_size", "32", "--epochs", "2", "--num_workers", "0", "--drop_rate", "0",
            "--batch_size", str(16 // processes), "--learning_rate", "0.001",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"{processes} process(es) on cpu" in result.stdout
        logs[processes] = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    for one, two in zip(logs[1], logs[2], strict=True):
        for key in ("train/loss", "val/loss", "val/balanced_accuracy"):
            assert two[key] == pytest.approx(one[key], rel=1e-3)
    tables = {}
    for processes in (1, 2):
        with (tmp_path / str(processes) / "predictions.csv").open() as file:
            tables[processes] = list(csv.DictReader(file))
    assert [row["image_id"] for row in tables[1]] == [row["image_id"] for row in tables[2]]
    # The same weights, scored in one process, give the same numbers.
    classifier = LesionClassifier.from_pretrained(tmp_path / "2" / "model", device="cpu")
    rows = tables[2]
    paths = [isic_folder / "ISIC_2019_Training_Input" / f"{row['image_id']}.jpg" for row in rows]
    alone = np.array([list(prediction.probabilities.values()) for prediction in classifier.predict(paths)])
    together = np.array([[float(row[code]) for code in classifier.codes] for row in rows])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_processes_that_accelerate_did_not_start_are_missed(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    train.warn_of_missing_processes()
    assert "accelerate launch --multi_gpu --num_processes" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    train.warn_of_missing_processes()
    assert capsys.readouterr().err == ""


class NoAccelerator(SimpleNamespace):
    """What an accelerator would be made of, on a machine of a cluster with 16 cores, 16 processes in all and 4 here."""

    device = torch.device("cuda")
    num_processes = 16

    gradient_accumulation_steps = 1

    @staticmethod
    def prepare(*objects):
        return objects if len(objects) > 1 else objects[0]

    def register_for_checkpointing(self, thing):
        pass


@pytest.mark.parametrize(("emulates", "precision"), [(True, None), (False, "bf16")])
def test_bf16_is_chosen_where_the_gpu_computes_it_and_not_where_it_is_emulated(monkeypatch, emulates, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or not emulates
    )
    monkeypatch.setattr("modeling.training.accelerator.Accelerator", NoAccelerator)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert make_accelerator(train.parse_options([])).mixed_precision == precision


def test_shared_batch_statistics_leave_the_network_what_it_was(tmp_path, monkeypatch):
    """timm's layers for batch normalisation contain the activation."""
    monkeypatch.setattr(NoAccelerator, "device", torch.device("cpu"))
    model = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False).eval()
    pixel_values = torch.randn(2, 3, 32, 32)
    before = model(pixel_values).detach()
    options = train.parse_options(["--dataset", "demo", "--sync_batchnorm"])
    loaders = {"train": [0] * 4, "val": [0]}
    trainer = make_trainer(options, NoAccelerator(), model, loaders, tmp_path, lambda probs, labels: {})
    trainer.stop_request.restore()
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in trainer.model.modules())
    torch.testing.assert_close(trainer.model(pixel_values), before)


def test_batch_statistics_that_a_cpu_cannot_share_are_refused_before_the_data_are_read(monkeypatch, capsys):
    monkeypatch.setattr(NoAccelerator, "device", torch.device("cpu"))
    monkeypatch.setattr("modeling.training.accelerator.Accelerator", NoAccelerator)
    assert train.main(["--dataset", "demo", "--sync_batchnorm"]) == 1
    assert "--sync_batchnorm needs GPUs" in capsys.readouterr().err


def test_the_processes_of_one_machine_share_its_cores(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr("modeling.runtime.available_cores", lambda: 16)
    parts = {split: LesionDataset([None] * 40, [0] * 40) for split in ("train", "val", "test")}
    loaders = make_loaders(train.parse_options([]), parts, NoAccelerator())
    assert {loader.num_workers for loader in loaders.values()} == {3}
    monkeypatch.setattr(NoAccelerator, "device", torch.device("cpu"))
    monkeypatch.setattr("modeling.training.accelerator.Accelerator", NoAccelerator)
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    make_accelerator(train.parse_options([]))
    assert threads == [4]


def test_help_explains_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit):
        train.parse_options(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name in train.TrainOptions.__dataclass_fields__:
        assert f"--{name} " in text
        assert train.TrainOptions.__dataclass_fields__[name].metadata["help"].split(".")[0] in text


def test_options_can_come_from_a_file_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset: demo\nepochs: 3\ndiagnoses: [MEL, NV]\n")
    options = train.parse_options(["--config", str(path), "--epochs", "4"])
    assert (options.dataset, options.epochs, options.diagnoses) == ("demo", 4, ["MEL", "NV"])


def test_the_originals_recipe_is_the_originals():
    options = train.parse_options(["--recipe", "original"])
    assert (options.learning_rate, options.batch_size, options.epochs) == (1e-4, 32, 15)
    assert (options.ema_decay, options.image_size) == (0, 224)


@pytest.mark.parametrize(
    ("recipe", "side_px", "train_px"),
    [("default", 96, 80), ("default", 36, 32), ("default", 16, 16), ("original", 96, 96)],
)
def test_only_augmented_images_are_smaller_than_the_input_of_the_model(isic_folder, recipe, side_px, train_px):
    options = train.parse_options(["--recipe", recipe, "--image_size", str(side_px)])
    rows = load_isic2019(isic_folder)[0].select(range(3))
    for training, side in ((True, train_px), (False, side_px)):
        images = lesion_dataset(rows, options, {"mean": (0.5, 0.5, 0.5)}, training=training)
        assert images[0]["pixels"].shape == (side, side, 3)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("image_size", "1040", "[16, 1024]"),
        ("image_size", "7", "[16, 1024]"),
        ("image_size", "0", "[16, 1024]"),
        ("gradient_accumulation_steps", "0", "[1, 1024]"),
        ("batch_size", "1", "[2, 4096]"),
        ("drop_rate", "1", "[0, 1)"),
        ("ema_decay", "2", "[0, 1)"),
        ("max_grad_norm", "0", "(0, inf)"),
        ("learning_rate", "0", "(0, inf)"),
        ("warmup_epochs", "1e6", "[0, 100]"),
        ("num_workers", "5000", "[0, 64]"),
        ("seed", "12345678901234567890", "[0, 4294967295]"),
        ("epochs", "0", "[1, 10000]"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name_with_the_range(name, value, allowed, capsys):
    assert train.main([f"--{name}", value]) == 1
    assert f"--{name} must be a number in {allowed}, got " in capsys.readouterr().err


def test_every_number_has_a_range_and_every_default_lies_in_it():
    for entry in dataclasses.fields(train.TrainOptions):
        if entry.type in (int, float, "int | None") and entry.name != "dry_run":
            assert "metavar" in entry.metadata, entry.name
    for given in ([], ["--recipe", "original"], ["--dataset", "demo"]):
        train.parse_options(given)


@pytest.mark.parametrize(
    ("value", "allowed", "expected"),
    [(0, "[0, 1)", True), (1, "[0, 1)", False), (0, "(0, inf)", False), (1e300, "(0, inf)", True), ("b", "a | b", True),
     ("c", "a | b", False), (float("nan"), "[0, 1]", False), (float("inf"), "(0, inf)", False)],
)  # fmt: skip
def test_an_interval_is_read_as_it_is_written(value, allowed, expected):
    assert is_allowed(value, allowed) is expected


def test_a_tracker_that_is_not_installed_is_refused(capsys):
    assert train.main(["--report_to", "nothing_of_the_kind"]) == 1
    assert "--report_to 'nothing_of_the_kind' is not installed here; there is tensorboard" in capsys.readouterr().err


def test_what_follows_an_error_is_said_to_be_the_launchers(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert train.main(["--epochs", "0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("(What follows is the report of accelerate's launcher")


def test_a_dry_run_tries_everything_and_trains_nothing(isic_folder, tmp_path):
    run = start(arguments(isic_folder, tmp_path / "run", "--dry_run"), tmp_path / "log")
    assert run.wait() == 0, run.output
    assert "dry run passed" in run.output
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {
        "train_config.json", "splits.csv", "image_hashes.csv", "skipped.csv",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--backbone", "test_vit", "--image_size", "160"], "Does it fit --backbone test_vit and --image_size 160?"),
        (["--diagnoses", "MEL"], "nothing to tell apart"),
        (["--init_from", str(ROOT / "README.md")], "README.md is no .safetensors file, or it is damaged"),
    ],
)
def test_what_cannot_work_is_known_before_the_first_step(isic_folder, tmp_path, given, words):
    run_dir = tmp_path / "run"
    run = start(arguments(isic_folder, run_dir, *given), tmp_path / "log")
    assert run.wait() == 1
    assert words in run.output
    assert "Traceback" not in run.output
    assert not (run_dir / "checkpoints").exists()
    assert not (run_dir / ".dry_run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--recipe", "mine"], "--recipe must be"),
        (["--protocol", "none"], "--protocol must be"),
        (["--push_to_hub"], "needs --hub_model_id"),
        (["--dataset", "me/lesions", "--examples", "2"], "--examples takes images of ISIC 2019"),
        (["--resume", "yes"], "--resume must be auto"),
        (["--checkpoint_every", "10 parsecs"], "--checkpoint_every must be like"),
    ],
)
def test_contradictory_options_are_refused_with_the_way_out(given, words, capsys):
    assert train.main(given) == 1
    assert words in capsys.readouterr().err


def test_nothing_of_the_run_folder_leaks_a_path_into_the_model(finished):
    for path in (finished / "model").rglob("*"):
        if path.suffix in (".json", ".md", ".csv"):
            assert str(Path.home()) not in path.read_text()


def test_seeds_of_neighbours_differ():
    seeds = {mixed_seed(0, epoch, index) for epoch in range(20) for index in range(50)}
    assert len(seeds) == 1000


def test_a_start_that_has_seen_the_test_lesions_is_refused_and_its_splits_are_the_way_out(
    finished, isic_folder, tmp_path
):
    other = ["--init_from", str(finished / "model"), "--seed", "7", "--dry_run"]
    run = start(arguments(isic_folder, tmp_path / "run", *other), tmp_path / "log")
    assert run.wait() == 1
    way_out = ["--splits", str(finished / "model" / "splits.csv")]
    assert " ".join(way_out) in run.output
    run = start(arguments(isic_folder, tmp_path / "run", *other, *way_out), tmp_path / "log2")
    assert run.wait() == 0, run.output
    origin = json.loads((tmp_path / "run" / "train_config.json").read_text())["origin"]
    assert origin["name"] == finished.name
    assert origin["overlap"].startswith("none, by lesion id and near-duplicates")


def test_a_learning_rate_that_breaks_every_other_step_ends_in_words(isic_folder, tmp_path):
    run = start(arguments(isic_folder, tmp_path / "run", "--learning_rate", "1e30"), tmp_path / "log")
    assert run.wait() == 1, run.output
    assert "Lower --learning_rate" in run.output or "with a lower learning rate" in run.output
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_the_last_window_of_accumulation_has_the_gradient_of_its_own_batches(isic_folder, tmp_path):
    """Three batches an epoch: four to a step are no more than three, so both runs take the same one step an epoch."""
    weights = []
    for accumulation in ("3", "4"):
        run_dir = tmp_path / accumulation
        more = ["--gradient_accumulation_steps", accumulation, "--epochs", "2", "--ema_decay", "0"]
        run = start(arguments(isic_folder, run_dir, *more, "--max_grad_norm", "1000"), run_dir.with_suffix(".log"))
        assert run.wait() == 0, run.output
        assert json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])["step"] == 2
        weights.append((run_dir / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
