"""modeling/training/run_folder.py: nothing is overwritten that is not ours, and only the same run continues."""

import os

import pytest
from accelerate import Accelerator

from modeling.files import write_json
from modeling.training.options import parse_options
from modeling.training.run_folder import Run, check_output_dir, check_same_run, sole_user


def check(folder, *more):
    return check_output_dir(parse_options(["--dataset", "demo", "--output_dir", str(folder), *more]))


def begun(folder, *names):
    """The folder of a run that has written so far what `names` says."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "train_config.json", {"run_id": "x", "options": {}})
    for name in names:
        (folder / name).mkdir() if name in ("model", "checkpoints") else (folder / name).write_text("")
    return folder


def test_a_new_or_empty_folder_starts_a_run(tmp_path):
    assert not check(tmp_path / "new" / "deeper")
    assert not check(tmp_path)
    (tmp_path / "skipped.csv").write_text("")  # of a start that found bad images
    assert not check(tmp_path, "--resume", "auto")


@pytest.mark.parametrize(
    "content", ["notes.txt", "splits.csv", "predictions.csv", "model/precious.txt", "checkpoints/step-00000001/x"]
)
@pytest.mark.parametrize("more", [[], ["--resume", "auto"]])
def test_a_folder_with_files_of_others_is_refused(tmp_path, content, more):
    (tmp_path / content).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / content).write_text("mine")
    with pytest.raises(ValueError, match=r"neither empty nor the folder of a run .*another --output_dir"):
        check(tmp_path, *more)


def test_a_train_config_of_somebody_else_is_no_run_of_ours(tmp_path):
    write_json(tmp_path / "train_config.json", {"learning_rate": 3})
    with pytest.raises(ValueError, match="neither empty nor"):
        check(tmp_path)


def test_a_run_is_resumed_if_asked_and_never_started_over(tmp_path):
    begun(tmp_path, "checkpoints", "log.jsonl")
    assert check(tmp_path, "--resume", "auto")
    with pytest.raises(ValueError, match="already holds a run"):
        check(tmp_path)


def test_a_start_that_ended_before_training_is_started_again(tmp_path):
    begun(tmp_path, "splits.csv", "image_hashes.csv")
    assert not check(tmp_path)
    assert not check(tmp_path, "--resume", "auto")


@pytest.mark.parametrize("left", ["model", "log.jsonl", "predictions.csv"])
@pytest.mark.parametrize("more", [[], ["--resume", "auto"]])
def test_a_finished_run_without_its_checkpoints_is_kept(tmp_path, left, more):
    begun(tmp_path, left)
    with pytest.raises(ValueError, match=r"already holds a run.*which needs its checkpoints"):
        check(tmp_path, *more)


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        check(tmp_path / "file")


@pytest.mark.parametrize("option", ["--dataset", "--data_dir"])
@pytest.mark.parametrize("place", ["", "runs/x", "MEL/../runs"])
def test_a_run_folder_inside_the_data_is_refused(tmp_path, option, place):
    data = tmp_path / "data"
    (data / "MEL").mkdir(parents=True)
    options = parse_options([option, str(data), "--output_dir", str(data / place)])
    with pytest.raises(ValueError, match=f"is inside {option} "):
        check_output_dir(options)
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(ValueError, match=f"is inside {option} "):
        check_output_dir(parse_options([option, str(tmp_path / "link"), "--output_dir", str(data / place)]))


# ---- one user --------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    options = parse_options(["--dataset", "demo", "--output_dir", str(tmp_path / "run")])
    return Run(tmp_path / "run", options, Accelerator(cpu=True))


def test_what_a_run_wrote_stays_and_the_lock_goes(run):
    with sole_user(run.dir, run.accelerator):
        (run.dir / "log.jsonl").write_text("")
    assert os.listdir(run.dir) == ["log.jsonl"]


# ---- the record of a run that is resumed ---------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"options": 3}', '{"options": NaN}', "[" * 10**5])
def test_a_damaged_record_of_the_run_is_not_resumed(tmp_path, content):
    path = tmp_path / "train_config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"train_config\.json"):
        check_same_run(path, {"options": {"epochs": 3}, "run_id": "x"})


def test_the_library_that_keeps_a_run_from_being_resumed_is_named(tmp_path):
    path = tmp_path / "train_config.json"
    versions = {f"library {number}": "1.0" for number in range(8)}
    write_json(path, {"options": {"seed": 1}, "codes": ["MEL"], "versions": versions})
    now = {"options": {"seed": 1}, "codes": ["NV"], "versions": {**versions, "library 7": "2.0"}}
    with pytest.raises(ValueError, match="cannot be resumed") as caught:
        check_same_run(path, now)
    assert str(caught.value).splitlines()[1:-1] == [
        "  codes: ['MEL'] before, ['NV'] now", "  library 7: '1.0' before, '2.0' now",
    ]  # fmt: skip
