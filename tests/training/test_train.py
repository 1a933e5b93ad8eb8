"""train.py: run as its users run it, on a small dataset in the official layout; killed, resumed, refused at its end.

What can be tested in this process is in the other files of this folder.
"""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import timm
import torch
from accelerate import Accelerator
from transformers import AutoModelForImageClassification

from modeling.calibration import log_softmax
from modeling.classifier import LesionClassifier
from modeling.inference import run_images
from modeling.labels import CODES, REFERENCE_CODES
from modeling.training.run_folder import Checkpoints
from support.corpus import make_corpus
from support.runs import ROOT, TINY, start

pytestmark = pytest.mark.slow


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


def test_the_weights_that_are_kept_are_those_of_the_best_epoch(finished, isic_folder):
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["val/balanced_accuracy"])  # the first of equals
    assert best is not lines[-1]  # otherwise this proves nothing
    metrics = json.loads((finished / "model" / "metrics.json").read_text())
    assert metrics["training"]["best_epoch"] == best["epoch"]
    assert metrics["val"]["balanced_accuracy"]["value"] == pytest.approx(best["val/balanced_accuracy"])
    classifier = LesionClassifier.from_pretrained(finished / "model", device="cpu")
    with (finished / "splits.csv").open() as file:
        label_of = {row["image_id"]: row["label"] for row in csv.DictReader(file) if row["split"] == "val"}
    paths = [isic_folder / "ISIC_2019_Training_Input" / f"{image_id}.jpg" for image_id in label_of]
    labels = [classifier.codes.index(label) for label in label_of.values()]
    outputs = run_images(classifier, paths, image_ids=list(label_of), labels=labels)
    before = log_softmax(classifier.lesion["calibration"].undo(outputs.logits))[np.arange(len(labels)), labels]
    assert -before.mean() == pytest.approx(best["val/loss"], abs=1e-5)
    assert -before.mean() != pytest.approx(lines[-1]["val/loss"], abs=1e-4)


def test_the_last_lines_are_scores_and_the_next_commands(finished):
    output = finished.with_suffix(".log").read_text()
    lines = output.splitlines()
    assert lines[-3:] == [
        f"model folder: {finished / 'model'}",
        f"classify files: python -m modeling.predictor {finished / 'model'} IMAGES…",
        f"open it in the browser: python space/app.py --model {finished / 'model'}",
    ]


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


def launch(run_dir, *command):
    """Start train.py by accelerate's launcher; return it and, once `run_dir` has the lock of the run, its child."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "train.py", *command]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(run_dir / ".lock")
    (child,) = psutil.Process(process.pid).children()
    return process, child


def wait_for(path, timeout_s=240):
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


@pytest.mark.parametrize(("to_all", "number"), [(False, signal.SIGTERM), (True, signal.SIGTERM), (True, signal.SIGINT)])
def test_a_launcher_that_is_stopped_leaves_a_checkpoint_and_no_orphan(isic_folder, tmp_path, to_all, number):
    """`kill` and container stops reach the launcher alone, clusters and Ctrl-C the whole group; it dies of it at once."""
    run_dir = tmp_path / "run"
    # Images so large that a step lasts longer than the launcher: its end must not cut the step short.
    more = ["--image_size", "512", "--epochs", "500", "--patience", "500"]
    process, child = launch(run_dir, *arguments(isic_folder, run_dir, *more))
    wait_for(run_dir / "checkpoints" / "step-00000000")
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.wait()
    child.wait(timeout=60)
    assert max((run_dir / "checkpoints").glob("step-*")).name != "step-00000000"


def test_a_launcher_that_is_killed_before_training_leaves_no_orphan_that_holds_the_folder(isic_folder, tmp_path):
    run_dir = tmp_path / "run"
    process, child = launch(run_dir, *arguments(isic_folder, run_dir))
    process.kill()
    process.wait()
    child.wait(timeout=30)
    assert not (run_dir / "checkpoints").exists()
    run = start(arguments(isic_folder, run_dir, "--resume", "auto", "--epochs", "1"), tmp_path / "log")
    run.wait_for(run_dir / "checkpoints" / "step-00000000")
    run.kill()


@pytest.fixture(scope="module")
def finished_by_two(isic_folder, tmp_path_factory):
    """The folder of an uninterrupted run of two processes."""
    run_dir = tmp_path_factory.mktemp("runs") / "two"
    run = start(arguments(isic_folder, run_dir), run_dir.with_suffix(".log"), processes=2)
    assert run.wait() == 0, run.output
    return run_dir


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


def test_a_second_run_is_kept_out_of_the_folder_and_all_its_processes_end(isic_folder, tmp_path):
    run_dir = tmp_path / "run"
    command = arguments(isic_folder, run_dir, "--epochs", "500", "--patience", "500", "--resume", "auto")
    first = start(command, tmp_path / "first")
    first.wait_for(run_dir / "checkpoints" / "step-00000000")
    second = start(command, tmp_path / "second", processes=2)
    assert second.wait(60) == 1
    assert second.exit_codes == [1, 1]
    assert f"another run is writing to {run_dir}" in second.output
    assert first.alive
    first.kill()


def test_a_full_disk_ends_the_run_in_words_with_what_is_old_intact(isic_folder, tmp_path):
    run_dir = tmp_path / "run"
    run = start(arguments(isic_folder, run_dir, "--checkpoint_every", "1steps"), tmp_path / "log")
    run.wait_for(run_dir / "checkpoints" / "step-00000001")
    hard = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (50_000, hard))  # no file may grow over it
    assert run.wait() == 1, run.output
    assert "make room on it and continue with the same command and --resume auto" in run.output
    assert "Traceback" not in run.output
    assert not (run_dir / "model").exists()
    assert Checkpoints(run_dir / "checkpoints", Accelerator(cpu=True)).latest()
    assert not list((run_dir / "checkpoints").glob(".step-*"))


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


def launch_and_wait(processes, *command):
    """Run train.py by accelerate's launcher; `--cpu` would need MPI for more than one process."""
    several = ["--multi_gpu", "--num_processes", str(processes)] if processes > 1 else ["--num_processes", "1"]
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *several, "train.py", *command],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip


def test_two_processes_train_as_one_and_predict_each_image_once(isic_folder, tmp_path):
    """Half the batch on each of two processes: the same data, the same loss. The network has no batch statistics."""
    logs = {}
    for processes in (1, 2):
        run_dir = tmp_path / str(processes)
        result = launch_and_wait(
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


def test_a_network_that_cannot_be_used_is_known_before_the_first_step(isic_folder, tmp_path):
    command = [*arguments(isic_folder, tmp_path / "run", "--backbone", "test_vit"), "--image_size", "160"]
    run = start(command, tmp_path / "log")
    assert run.wait() == 1
    assert "test_vit" in run.output
    assert "Traceback" not in run.output
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_test_without_a_diagnosis_is_a_normal_case(finished, isic_folder, tmp_path):
    rows = (finished / "splits.csv").read_text().splitlines()
    moved = [row.removesuffix("test") + "train" if ",MEL," in row and row.endswith(",test") else row for row in rows]
    assert moved != rows
    (tmp_path / "splits.csv").write_text("\n".join(moved) + "\n")
    command = arguments(isic_folder, tmp_path / "run", "--splits", str(tmp_path / "splits.csv"), "--epochs", "1")
    run = start(command, tmp_path / "log")
    assert run.wait() == 0, run.output
    test = json.loads((tmp_path / "run" / "model" / "metrics.json").read_text())["test"]
    assert test["diagnoses"] == ["BCC", "BKL", "NV"]
    assert (tmp_path / "run" / "model" / "README.md").exists()


def test_nothing_of_the_run_folder_leaks_a_path_into_the_model(finished, isic_folder):
    for path in (finished / "model").rglob("*"):
        if path.suffix in (".json", ".md", ".csv"):
            text = path.read_text()
            assert str(finished.parent) not in text, path
            assert str(isic_folder) not in text, path


def test_a_start_that_has_seen_the_test_lesions_is_refused_and_its_splits_are_the_way_out(
    finished, isic_folder, tmp_path
):
    other = ["--init_from", str(finished / "model"), "--seed", "7", "--epochs", "0"]
    run = start(arguments(isic_folder, tmp_path / "run", *other), tmp_path / "log")
    assert run.wait() == 1
    way_out = ["--splits", str(finished / "model" / "splits.csv")]
    assert " ".join(way_out) in run.output
    run = start(arguments(isic_folder, tmp_path / "run", *other, *way_out), tmp_path / "log2")
    assert run.wait() == 0, run.output
    # Not trained on, they are the same model again.
    before, now = (
        pd.read_csv(folder / "predictions.csv")[list(REFERENCE_CODES)] for folder in (finished, tmp_path / "run")
    )
    np.testing.assert_allclose(now, before, atol=1e-4)
    assert (
        "Nothing was trained in this run: its weights are those of `whole`"
        in (tmp_path / "run" / "model" / "evaluation.md").read_text()
    )
