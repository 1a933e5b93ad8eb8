"""modeling/bulk.py: any number of images, one row each, nothing redone."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from modeling import bulk
from modeling.bulk import CHUNK_SIZE, ArchiveError, classify_archive, list_files
from modeling.classifier import LesionClassifier
from modeling.labels import NOTICE
from modeling.predictor import main
from support.corpus import make_corpus

ROOT = Path(__file__).parents[1]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
# `--cpu` would need MPI for more than one process.
TWO_ON_CPU = {**ONE_THREAD, "ACCELERATE_USE_CPU": "true"}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost a tiny network more than they give, above all on a machine with other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def classifier(tiny_model_folder):
    return LesionClassifier.from_pretrained(tiny_model_folder, device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """Thirteen different small JPEGs."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = []
    for number in range(13):
        paths.append(folder / f"{number:02}.jpg")
        Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((72, 72)).save(paths[-1], quality=90)
    return paths


def many(folder: Path, pictures: list[Path], count: int) -> Path:
    """Make a folder of `count` files, which are links to the pictures in turn."""
    folder.mkdir()
    for number in range(count):
        os.link(pictures[number % len(pictures)], folder / f"{number:05}.jpg")
    return folder


def rows_of(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def probabilities(rows: list[dict], codes) -> np.ndarray:
    return np.array([[float(row[code]) for code in codes] for row in rows])


@pytest.mark.slow
def test_every_file_of_the_corpus_gives_one_row_and_the_answer_of_predict(
    tiny_model_folder, classifier, tmp_path, capsys
):
    files = make_corpus(tmp_path / "in")
    output = tmp_path / "out.csv"
    assert main([str(tiny_model_folder), *(str(file.path) for file in files), "--output", str(output)]) == 0
    rows = rows_of(output)
    assert sorted(row["image"] for row in rows) == sorted(str(file.path) for file in files)
    refused = {str(file.path): file for file in files if file.expected == "refused"}
    for row in rows:
        assert bool(row["error"]) == (row["image"] in refused), row
        if row["error"]:
            assert refused[row["image"]].says in row["error"]
            assert row["diagnosis"] == row["MEL"] == ""
    printed = capsys.readouterr()
    assert f"Images: {len(files)}." in printed.out
    assert f"Not read: {len(refused)} (column error)" in printed.out
    assert NOTICE in printed.err
    for row in [row for row in rows if not row["error"]][::9]:
        prediction = classifier.predict(row["image"])
        assert row["diagnosis"] == prediction.diagnosis
        np.testing.assert_allclose(
            probabilities([row], classifier.codes)[0], list(prediction.probabilities.values()), atol=1e-6
        )


def test_rows_come_in_the_order_of_names_and_parquet_says_the_same_as_csv(classifier, pictures, tmp_path):
    folder = many(tmp_path / "in", pictures, CHUNK_SIZE + 40)
    (folder / "05000 sub").mkdir()
    (folder / "05000 sub" / "z.jpg").write_bytes(b"no picture")
    for name in ("out.csv", "out.parquet"):
        summary = classify_archive(classifier, [str(folder)], tmp_path / name)
        assert (summary["images"], summary["unreadable"]) == (CHUNK_SIZE + 41, 1)
    rows = rows_of(tmp_path / "out.csv")
    assert [row["image"] for row in rows] == sorted(row["image"] for row in rows)
    expected = [list(one.probabilities.values()) for one in classifier.predict([str(path) for path in pictures])]
    for number, found in enumerate(probabilities(rows[:-1], classifier.codes)):
        np.testing.assert_allclose(found, expected[number % len(pictures)], atol=1e-6)

    found = parquet.read_table(tmp_path / "out.parquet")
    assert found["image"].to_pylist() == [row["image"] for row in rows]
    assert found["MEL"].to_pylist()[:-1] == [float(row["MEL"]) for row in rows[:-1]]
    assert found["abstained"].to_pylist()[-2:] == [False, None]
    assert "not an image" in found["error"].to_pylist()[-1]
    beside = json.loads((tmp_path / "out.parquet.json").read_text())
    assert beside["run"].items() >= classifier.provenance.items()
    assert (beside["images"], beside["notice"]) == (CHUNK_SIZE + 41, classifier.notice)
    names = ["in", "out.csv", "out.csv.json", "out.parquet", "out.parquet.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def counted(classifier, monkeypatch) -> list:
    """Return a list that gets the images which are classified from here on."""
    images, predict_each = [], classifier.predict_each
    monkeypatch.setattr(
        classifier,
        "predict_each",
        lambda given, **more: predict_each((images.append(one) or one for one in given), **more),
    )
    return images


@pytest.mark.slow
def test_a_killed_run_goes_on_without_redoing_or_losing_a_row(
    classifier, tiny_model_folder, pictures, tmp_path, monkeypatch
):
    count = 8 * CHUNK_SIZE + 5
    folder, output = many(tmp_path / "in", pictures, count), tmp_path / "out.csv"
    command = [sys.executable, "-m", "modeling.predictor", str(tiny_model_folder), str(folder), "--output", str(output)]
    process = subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.DEVNULL)
    parts = tmp_path / "out.csv.parts"
    while len(finished := list(parts.glob("0*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    finished = list(parts.glob("0*.json"))
    # A file that came later is not of this run, and one that went is a row that says so.
    (folder / "00000-new.jpg").write_bytes(pictures[0].read_bytes())
    (folder / f"{count - 1:05}.jpg").unlink()
    classified = counted(classifier, monkeypatch)
    summary = classify_archive(classifier, [str(folder)], output)
    assert len(classified) == count - len(finished) * CHUNK_SIZE
    assert (summary["images"], summary["unreadable"]) == (count, 1)
    rows = rows_of(output)
    assert [row["image"] for row in rows] == [str(folder / f"{number:05}.jpg") for number in range(count)]
    expected = [list(one.probabilities.values()) for one in classifier.predict([str(path) for path in pictures])]
    found = probabilities(rows[:-1], classifier.codes)
    np.testing.assert_allclose(found, [expected[number % 13] for number in range(count - 1)], atol=1e-6)
    assert not parts.exists()


def test_unfinished_work_of_another_model_or_with_other_options_is_refused(classifier, pictures, tmp_path, monkeypatch):
    images, output = unfinished(classifier, pictures, tmp_path, monkeypatch)
    notes = tmp_path / "out.csv.parts" / "run"
    run = json.loads(notes.read_text())["run"]
    with pytest.raises(ArchiveError, match="tta was False and is True"):
        classify_archive(classifier, [str(images)], output, tta=True)
    notes.write_text(json.dumps({"run": {**run, "weights_sha256": "0" * 64, "revision": "v1"}}))
    with pytest.raises(ArchiveError, match=r"revision was 'v1' and is None; weights_sha256 was '0000"):
        classify_archive(classifier, [str(images)], output)
    assert notes.exists()
    assert not output.exists()


def test_a_finished_run_is_not_done_again_and_no_other_file_is_replaced(classifier, pictures, tmp_path, monkeypatch):
    folder, output = many(tmp_path / "in", pictures, 3), tmp_path / "out.csv"
    classify_archive(classifier, [str(folder)], output)
    written = output.stat().st_mtime_ns
    classified = counted(classifier, monkeypatch)
    assert classify_archive(classifier, [str(folder)], output)["images"] == 3
    assert not classified
    assert output.stat().st_mtime_ns == written
    with pytest.raises(ArchiveError, match="exists, or has unfinished work, of another run"):
        classify_archive(classifier, [str(folder)], output, tta=True)
    (tmp_path / "notes.csv").write_text("mine")
    with pytest.raises(ArchiveError, match="exists"):
        classify_archive(classifier, [str(folder)], tmp_path / "notes.csv")
    assert (tmp_path / "notes.csv").read_text() == "mine"


def launch_two(*arguments):
    """Start the command line on two processes, by accelerate's launcher."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--main_process_port", "0", "-m", "modeling.predictor", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=TWO_ON_CPU, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_two_processes_write_what_one_writes_and_go_on_from_each_other(
    classifier, tiny_model_folder, pictures, tmp_path
):
    count = 3 * CHUNK_SIZE + 7
    folder = many(tmp_path / "in", pictures, count)
    classify_archive(classifier, [str(folder)], tmp_path / "one.csv")
    result = launch_two(tiny_model_folder, folder, "--output", tmp_path / "two.csv")
    assert result.returncode == 0, result.stderr
    assert f"one row for each image. Images: {count}." in result.stdout
    one, two = rows_of(tmp_path / "one.csv"), rows_of(tmp_path / "two.csv")
    assert [row["image"] for row in two] == [row["image"] for row in one]
    np.testing.assert_allclose(probabilities(two, classifier.codes), probabilities(one, classifier.codes), atol=1e-6)


@pytest.mark.slow
def test_all_processes_stop_with_the_reason_of_the_first(tiny_model_folder, tmp_path):
    result = launch_two(tiny_model_folder, tmp_path / "not" / "there" / "x", "--output", tmp_path / "o.csv")
    assert result.returncode != 0
    assert "does not exist" in result.stderr


@pytest.mark.parametrize("count", [2, 3])
def test_the_process_that_ends_last_merges(classifier, pictures, tmp_path, count, monkeypatch):
    images, output = many(tmp_path / "in", pictures, 2 * CHUNK_SIZE + 9), tmp_path / "out.csv"
    monkeypatch.setenv("WORLD_SIZE", str(count))
    for rank in reversed(range(count)):  # each in its turn, here
        monkeypatch.setenv("RANK", str(rank))
        assert not output.exists()
        summary = classify_archive(classifier, [str(images)], output)
        assert bool(summary) == (rank == 0)
    assert summary["images"] == 2 * CHUNK_SIZE + 9
    assert [row["image"] for row in rows_of(output)] == list_files([str(images)])
    assert not (tmp_path / "out.csv.parts").exists()


def test_two_equal_commands_at_once_give_one_whole_output(classifier, pictures, tmp_path, monkeypatch):
    images, output = many(tmp_path / "in", pictures, 2 * CHUNK_SIZE + 9), tmp_path / "out.csv"
    predict_each, summaries = classifier.predict_each, []

    def overtaken(given, **more):
        """Answer after the first chunk when an equal command, which starts here, has finished."""
        monkeypatch.setattr(classifier, "predict_each", predict_each)
        for number, answer in enumerate(predict_each(given, **more)):
            if number == CHUNK_SIZE:
                other = threading.Thread(
                    target=lambda: summaries.append(classify_archive(classifier, [str(images)], output))
                )
                other.start()
                other.join()
                assert not (tmp_path / "out.csv.parts").exists()
            yield answer

    monkeypatch.setattr(classifier, "predict_each", overtaken)
    summary = classify_archive(classifier, [str(images)], output)
    assert summaries == [summary]
    assert [row["image"] for row in rows_of(output)] == list_files([str(images)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.csv", "out.csv.json"]


def test_a_process_that_begins_waits_for_one_that_merges(classifier, pictures, tmp_path, monkeypatch):
    images, output = many(tmp_path / "in", pictures, 5), tmp_path / "out.csv"
    merge, summaries = bulk._merge, []
    other = threading.Thread(target=lambda: summaries.append(classify_archive(classifier, [str(images)], output)))

    def slow(*arguments):
        other.start()
        other.join(0.5)
        assert other.is_alive()
        return merge(*arguments)

    monkeypatch.setattr(bulk, "_merge", slow)
    classified = counted(classifier, monkeypatch)
    summary = classify_archive(classifier, [str(images)], output)
    other.join()
    assert summaries == [summary]
    assert len(classified) == 5


# ---- which files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with four images, a table, a hidden folder and a linked one."""
    for name in ("b.JPG", "a.heic", "labels.csv", "notes", "sub/c.tif", ".cache/x.jpg", "z/d.webp"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "sub")
    return tmp_path / "in"


def test_a_folder_gives_its_image_files_by_name(folder):
    names = ["a.heic", "b.JPG", "sub/c.tif", "z/d.webp"]
    assert list_files([str(folder)]) == [str(folder / name) for name in names]


def test_a_file_that_is_named_counts_whatever_its_ending_and_once(folder):
    notes, image = str(folder / "notes"), str(folder / "b.JPG")
    assert list_files([notes, image, notes, str(folder)])[:3] == [notes, image, str(folder / "a.heic")]
    assert len(list_files([notes, image, notes, str(folder)])) == 5


def test_a_path_that_is_missing_or_holds_no_image_is_said(folder):
    with pytest.raises(ArchiveError, match="'photos' does not exist"):
        list_files(["photos"])
    (folder / "empty").mkdir()
    with pytest.raises(ArchiveError, match=r"there is no image in '.*empty'"):
        list_files([str(folder / "empty")])


def test_a_folder_is_searched_without_following_loops_and_without_its_own_output(classifier, pictures, tmp_path):
    folder = many(tmp_path / "in", pictures, 2)
    (folder / "loop").symlink_to(folder)
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.jpg").write_bytes(b"")
    (folder / ".hidden.jpg").write_bytes(pictures[0].read_bytes())
    for name in ("out.csv", "next.csv"):
        classify_archive(classifier, [str(folder)], folder / name)
    for name in ("out.csv", "next.csv"):
        rows = rows_of(folder / name)
        assert [Path(row["image"]).name for row in rows] == [".hidden.jpg", "00000.jpg", "00001.jpg", "self.jpg"]
        assert rows[3]["error"]


def test_names_that_are_no_text_are_kept_readable(classifier, pictures, tmp_path):
    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)
    with open(folder + b"/\xff\r.jpg", "wb") as file:
        file.write(pictures[0].read_bytes())
    for name in ("out.csv", "out.parquet"):
        classify_archive(classifier, [str(tmp_path / "in")], tmp_path / name)
    (row,) = rows_of(tmp_path / "out.csv")
    assert row["image"] == f"{tmp_path}/in/\\xff\r.jpg"
    assert not row["error"]
    assert parquet.read_table(tmp_path / "out.parquet")["image"].to_pylist() == [row["image"]]


def test_csv_from_files_needs_no_training_library_and_parquet_says_which(tiny_model_folder, pictures, tmp_path):
    code = (
        "import sys\n"
        "for name in ('datasets', 'accelerate', 'pyarrow', 'pandas', 'sklearn', 'scipy', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from modeling.predictor import main\n"
        "for name in ('o.csv', 'o.parquet'):\n"
        "    print(main([*sys.argv[1:], '--output', name]))"
    )
    command = [sys.executable, "-c", code, str(tiny_model_folder), str(pictures[0].parent)]
    environment = {**ONE_THREAD, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1:] == ["0", "1"]
    assert 'Parquet needs pyarrow: pip install -e ".[train]" in a clone' in result.stderr
    assert len(rows_of(tmp_path / "o.csv")) == 13


# ---- damage and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"", b"image,verdict\r\nmine,\r\n"])
def test_a_finished_output_that_was_changed_is_not_called_complete(classifier, pictures, tmp_path, damage):
    folder, output = many(tmp_path / "in", pictures, 3), tmp_path / "out.csv"
    classify_archive(classifier, [str(folder)], output)
    output.write_bytes(damage)
    with pytest.raises(ArchiveError, match=r"was changed or damaged after its run\. Choose another --output"):
        classify_archive(classifier, [str(folder)], output)
    assert output.read_bytes() == damage


def test_names_that_a_spreadsheet_would_run_are_made_harmless(classifier, pictures, tmp_path, monkeypatch):
    names = ["+1.jpg", "-rf.jpg", "=1+1.jpg", "@x.jpg", "\tx.jpg", "a.jpg"]
    monkeypatch.chdir(tmp_path)
    for name in names:
        (tmp_path / name).write_bytes(pictures[0].read_bytes())
    (tmp_path / "=cmd.jpg").write_bytes(b"no image")
    for output in ("out.csv", "out.parquet"):
        classify_archive(classifier, [*names, "=cmd.jpg"], Path(output))
    shown = [f"'{name}" for name in names[:-1]] + ["a.jpg", "'=cmd.jpg"]
    assert [row["image"] for row in rows_of(tmp_path / "out.csv")] == shown
    assert not any(
        cell.startswith(("=", "+", "-", "@", "\t")) for row in rows_of(tmp_path / "out.csv") for cell in row.values()
    )
    assert parquet.read_table("out.parquet")["image"].to_pylist() == [*names, "=cmd.jpg"]  # a type, not a formula


def test_a_pipe_a_device_and_a_file_of_the_kernel_are_rows_that_say_so(classifier, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zeros.jpg").symlink_to("/dev/zero")
    (tmp_path / "log.jpg").symlink_to("/proc/kmsg")
    classify_archive(classifier, [str(tmp_path)], tmp_path / "out.csv")
    errors = {Path(row["image"]).name: row["error"] for row in rows_of(tmp_path / "out.csv")}
    assert "is not a file" in errors["pipe.jpg"]
    assert "is not a file" in errors["zeros.jpg"]
    assert "0 bytes" in errors["log.jpg"] or "cannot be opened" in errors["log.jpg"]


def unfinished(classifier, pictures, folder: Path, monkeypatch) -> tuple[Path, Path]:
    """Classify three chunks, as far as the merging; return the images and the output."""
    images, output = many(folder / "in", pictures, 2 * CHUNK_SIZE + 3), folder / "out.csv"
    stop = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(bulk, "_merge", stop)
    with pytest.raises(KeyboardInterrupt):
        classify_archive(classifier, [str(images)], output)
    monkeypatch.undo()
    return images, output


def test_half_a_chunk_is_classified_again_and_the_others_are_kept(classifier, pictures, tmp_path, monkeypatch):
    images, output = unfinished(classifier, pictures, tmp_path, monkeypatch)
    classify_archive(classifier, [str(images)], tmp_path / "x.csv")
    for path in sorted((tmp_path / "out.csv.parts").glob("0*.json"))[1:]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    classified = counted(classifier, monkeypatch)
    classify_archive(classifier, [str(images)], output)
    assert len(classified) == CHUNK_SIZE + 3
    assert output.read_bytes() == (tmp_path / "x.csv").read_bytes()


def test_another_process_leaves_a_damaged_chunk_to_the_one_whose_share_it_is(
    classifier, pictures, tmp_path, monkeypatch
):
    images, output = unfinished(classifier, pictures, tmp_path, monkeypatch)
    (tmp_path / "out.csv.parts" / f"{CHUNK_SIZE:09}.json").write_bytes(b"")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        summary = classify_archive(classifier, [str(images)], output)
        assert bool(summary) == (rank == 1)
    assert len(rows_of(output)) == 2 * CHUNK_SIZE + 3


@pytest.mark.parametrize("note", ["run", "files"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"run": 5}', "\0" * 100])
def test_damaged_notes_of_a_run_are_named_and_its_work_is_kept(
    classifier, pictures, tmp_path, monkeypatch, content, note
):
    images, output = unfinished(classifier, pictures, tmp_path, monkeypatch)
    parts = tmp_path / "out.csv.parts"
    notes = (parts / note).read_text()
    (parts / note).write_text(content)
    with pytest.raises(ArchiveError, match=rf"(parts/{note}\b|unfinished work).*delete .* to start over"):
        classify_archive(classifier, [str(images)], output)
    assert len(list(parts.glob("0*.json"))) == 3
    (parts / note).write_text(notes)
    classified = counted(classifier, monkeypatch)
    assert classify_archive(classifier, [str(images)], output)["images"] == 2 * CHUNK_SIZE + 3
    assert not classified
    (tmp_path / "out.csv.json").write_text(content)
    with pytest.raises(ArchiveError, match="Choose another --output, or move"):
        classify_archive(classifier, [str(images)], output)
    assert output.exists()


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("/proc/o.csv", "cannot be written"),
        ("/sys/o.csv", "cannot be written"),
        ("x" * 250 + ".csv", "name too long"),
        ("file/o.csv", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_said_at_once(classifier, pictures, tmp_path, monkeypatch, output, says):
    monkeypatch.chdir(tmp_path)
    Path("file").write_bytes(b"")
    with pytest.raises(ArchiveError, match=f"(?i){says}.*choose another --output"):
        classify_archive(classifier, [str(pictures[0])], Path(output))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_costs_nothing_that_is_finished(tiny_model_folder, pictures, tmp_path):
    """A limit on the size of files in place of a full disk: both fail in the same call."""
    folder, output = many(tmp_path / "in", pictures, 3 * CHUNK_SIZE), tmp_path / "out.csv"
    code = (
        "import resource, sys; from modeling.predictor import main\n"
        "import modeling.bulk as bulk\n"
        "merge = bulk._merge\n"
        "def full(*arguments):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "    return merge(*arguments)\n"
        "bulk._merge = full\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [str(tiny_model_folder), str(folder), "--output", str(output)]
    environment = {**ONE_THREAD, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code, *command], env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Make room, or choose another --output" in result.stderr
    assert "Traceback" not in result.stderr
    assert not output.exists()
    assert main(command) == 0
    assert json.loads((tmp_path / "out.csv.json").read_text())["images"] == 3 * CHUNK_SIZE


def test_a_long_name_is_not_said_in_full(tmp_path, classifier, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments in (["x" * 1_000_000], ["x/" * 100_000, "y"]):
        with pytest.raises(ArchiveError) as error:
            classify_archive(classifier, arguments, tmp_path / "o.csv")
        assert len(str(error.value)) < 1500
