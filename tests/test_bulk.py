"""modeling/bulk.py: any number of images, one row each, nothing redone."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from filelock import FileLock
from PIL import Image
from pyarrow import parquet

from modeling import bulk
from modeling.bulk import CHUNK_SIZE, Processes, classify_archive
from modeling.classifier import LesionClassifier
from modeling.inputs import ArchiveError, StreamedDataset
from modeling.labels import NOTICE
from modeling.predictor import main
from support.corpus import make_corpus

ROOT = Path(__file__).parents[1]
ALONE = Processes()
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
    assert f"Not read: {len(refused)} (column error; the same command tries them again)" in printed.out
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
        summary = classify_archive(classifier, [str(folder)], tmp_path / name, processes=ALONE)
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
    notes = json.loads(found.schema.metadata[b"lesion"])
    beside = json.loads((tmp_path / "out.parquet.json").read_text())
    assert notes["provenance"] == beside["provenance"] == classifier.provenance
    assert beside["images"] == CHUNK_SIZE + 41
    names = ["in", "out.csv", "out.csv.json", "out.csv.parts", "out.parquet", "out.parquet.json", "out.parquet.parts"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_killed_run_goes_on_without_redoing_or_losing_a_row(classifier, tiny_model_folder, pictures, tmp_path):
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
    summary = classify_archive(classifier, [str(folder)], output, processes=ALONE)
    assert summary["classified_now"] == count - len(finished) * CHUNK_SIZE
    assert (summary["images"], summary["unreadable"]) == (count, 1)
    rows = rows_of(output)
    assert [row["image"] for row in rows] == [str(folder / f"{number:05}.jpg") for number in range(count)]
    expected = [list(one.probabilities.values()) for one in classifier.predict([str(path) for path in pictures])]
    found = probabilities(rows[:-1], classifier.codes)
    np.testing.assert_allclose(found, [expected[number % 13] for number in range(count - 1)], atol=1e-6)
    assert parts.exists()  # the missing file is tried again
    (folder / f"{count - 1:05}.jpg").write_bytes(pictures[0].read_bytes())
    assert classify_archive(classifier, [str(folder)], output, processes=ALONE)["classified_now"] == 1
    assert not parts.exists()


def test_unfinished_work_of_another_model_or_with_other_options_is_refused(classifier, pictures, tmp_path, monkeypatch):
    images, output = unfinished(classifier, pictures, tmp_path, monkeypatch)
    notes = tmp_path / "out.csv.parts" / "run"
    run = json.loads(notes.read_text())["run"]
    with pytest.raises(ArchiveError, match="tta was False and is True"):
        classify_archive(classifier, [str(images)], output, processes=ALONE, tta=True)
    notes.write_text(json.dumps({"run": {**run, "weights_sha256": "0" * 64, "revision": "v1"}}))
    with pytest.raises(ArchiveError, match=r"revision was 'v1' and is None; weights_sha256 was '0000"):
        classify_archive(classifier, [str(images)], output, processes=ALONE)
    assert notes.exists()
    assert not output.exists()


def test_a_run_that_fails_before_its_first_chunk_leaves_nothing(classifier, pictures, tmp_path, monkeypatch):
    folder, output = many(tmp_path / "in", pictures, 3), tmp_path / "out.csv"
    failing = Mock(side_effect=ArchiveError("the dataset cannot be read further"))
    for error in (failing, Mock(side_effect=KeyboardInterrupt)):
        monkeypatch.setattr(bulk, "_classify_chunks", error)
        with pytest.raises((ArchiveError, KeyboardInterrupt)):
            classify_archive(classifier, [str(folder)], output, processes=ALONE)
        assert [path.name for path in tmp_path.iterdir()] == ["in"]
    monkeypatch.undo()
    # A kill leaves the folder, and the corrected command is not refused.
    (tmp_path / "out.csv.parts").mkdir()
    (tmp_path / "out.csv.parts" / "run").write_text('{"run": {"tta": true}}')
    assert classify_archive(classifier, [str(folder)], output, processes=ALONE)["images"] == 3


def test_a_finished_run_is_not_done_again_and_no_other_file_is_replaced(classifier, pictures, tmp_path):
    folder, output = many(tmp_path / "in", pictures, 3), tmp_path / "out.csv"
    classify_archive(classifier, [str(folder)], output, processes=ALONE)
    written = output.stat().st_mtime_ns
    again = classify_archive(classifier, [str(folder)], output, processes=ALONE)
    assert (again["images"], again["classified_now"]) == (3, 0)
    assert output.stat().st_mtime_ns == written
    with pytest.raises(ArchiveError, match="exists, or has unfinished work, of another run"):
        classify_archive(classifier, [str(folder)], output, processes=ALONE, tta=True)
    (tmp_path / "notes.csv").write_text("mine")
    with pytest.raises(ArchiveError, match="exists"):
        classify_archive(classifier, [str(folder)], tmp_path / "notes.csv", processes=ALONE)
    assert (tmp_path / "notes.csv").read_text() == "mine"


def test_two_runs_cannot_write_the_same_output(classifier, pictures, tmp_path):
    (tmp_path / "out.csv.parts").mkdir()
    with FileLock(tmp_path / "out.csv.parts" / "lock"), pytest.raises(ArchiveError, match="another run"):
        classify_archive(classifier, [str(pictures[0])], tmp_path / "out.csv", processes=ALONE)


def launch_two(*arguments):
    """Start the command line on two processes, by accelerate's launcher."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launcher, "--main_process_port", "0", "-m", "modeling.predictor", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=TWO_ON_CPU, capture_output=True, text=True, timeout=200)


def test_two_processes_write_what_one_writes_and_go_on_from_each_other(
    classifier, tiny_model_folder, pictures, tmp_path
):
    count = 3 * CHUNK_SIZE + 7
    folder = many(tmp_path / "in", pictures, count)
    classify_archive(classifier, [str(folder)], tmp_path / "one.csv", processes=ALONE)
    result = launch_two(tiny_model_folder, folder, "--output", tmp_path / "two.csv")
    assert result.returncode == 0, result.stderr
    assert f"({2 * CHUNK_SIZE} classified now by the first process). Images: {count}." in result.stdout
    one, two = rows_of(tmp_path / "one.csv"), rows_of(tmp_path / "two.csv")
    assert [row["image"] for row in two] == [row["image"] for row in one]
    np.testing.assert_allclose(probabilities(two, classifier.codes), probabilities(one, classifier.codes), atol=1e-6)


def test_all_processes_stop_with_the_reason_of_the_first(tiny_model_folder, tmp_path):
    result = launch_two(tiny_model_folder, tmp_path / "not" / "there" / "x", "--output", tmp_path / "o.csv")
    assert result.returncode != 0
    assert "does not exist" in result.stderr


@pytest.fixture(scope="module")
def parquet_files(pictures, tmp_path_factory) -> Path:
    """A dataset of two Parquet files in the split train: 300 and 9 rows, of which one is damaged and one empty."""
    folder = tmp_path_factory.mktemp("data") / "lesions"
    folder.mkdir()
    number = 0
    for file, count in enumerate((300, 9)):
        images = [{"bytes": pictures[(number + row) % 13].read_bytes(), "path": None} for row in range(count)]
        if file == 1:
            images[2] = {"bytes": images[2]["bytes"][:200], "path": None}
            images[4] = None
        ids = [f"ISIC_{number + row:07}" for row in range(count)]
        table = datasets.Dataset.from_dict(
            {"image": images, "image_id": ids},
            features=datasets.Features({"image": datasets.Image(), "image_id": datasets.Value("string")}),
        )
        table.to_parquet(str(folder / f"train-0000{file}-of-00002.parquet"))
        number += count
    return folder


def test_a_data_set_is_streamed_and_its_damaged_images_are_rows(classifier, parquet_files, pictures, tmp_path):
    output = tmp_path / "out.csv"
    summary = classify_archive(classifier, [str(parquet_files)], output, processes=ALONE, split="train")
    assert (summary["images"], summary["unreadable"]) == (309, 2)
    rows = rows_of(output)
    assert [row["image"] for row in rows] == [f"ISIC_{number:07}" for number in range(309)]
    assert "incomplete" in rows[302]["error"]
    assert "no image in this row" in rows[304]["error"]
    expected = [list(one.probabilities.values()) for one in classifier.predict([str(path) for path in pictures])]
    for number, row in enumerate(rows):
        if not row["error"]:
            np.testing.assert_allclose(probabilities([row], classifier.codes)[0], expected[number % 13], atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_a_data_set_is_shared_out_by_chunks(classifier, parquet_files, tmp_path, count, monkeypatch):
    # Each process in its turn, here; the waiting is left out.
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    output, parts = tmp_path / "out.csv", tmp_path / "out.csv.parts"
    parts.mkdir()
    source = StreamedDataset(str(parquet_files), "train")
    shares = []
    for rank in range(count):
        shares.append(bulk._classify_chunks(classifier, source, output, Processes(rank, count), tta=False))
    assert sum(shares) == 309
    assert sum(share > 0 for share in shares) == min(count, 3)
    (parts / "run").write_text("{}")
    bulk._merge(output, dict.fromkeys(["image", "error"], str), {})
    assert [row["image"] for row in rows_of(output)] == [f"ISIC_{number:07}" for number in range(309)]


def test_a_parquet_file_and_an_image_folder_are_data_sets_too(tiny_model_folder, parquet_files, pictures, tmp_path):
    output = tmp_path / "out.csv"
    file = str(next(parquet_files.glob("*1-of*")))
    assert main([str(tiny_model_folder), file, "--output", str(output)]) == 0
    assert len(rows_of(output)) == 9
    for split, numbers in (("train", (0, 1)), ("test", (2, 3, 4))):
        for number in numbers:
            target = tmp_path / "tree" / split / "NV" / f"{number}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(pictures[number].read_bytes())
    output = tmp_path / "tree.csv"
    assert main([str(tiny_model_folder), str(tmp_path / "tree"), "--split", "test", "--output", str(output)]) == 0
    assert sorted(Path(row["image"]).name for row in rows_of(output)) == ["2.jpg", "3.jpg", "4.jpg"]


def test_a_split_that_is_not_there_is_answered_with_those_that_are(classifier, parquet_files, tmp_path):
    with pytest.raises(ArchiveError, match="no split 'val'; choose one of train"):
        classify_archive(classifier, [str(parquet_files)], tmp_path / "o.csv", processes=ALONE, split="val")
    assert not list(tmp_path.iterdir())  # so the corrected command is not refused
    classify_archive(classifier, [str(parquet_files)], tmp_path / "o.csv", processes=ALONE, split="train")


def test_a_folder_is_searched_without_following_loops_and_without_its_own_output(classifier, pictures, tmp_path):
    folder = many(tmp_path / "in", pictures, 2)
    (folder / "loop").symlink_to(folder)
    (folder / "self.jpg").symlink_to(folder / "self.jpg")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.jpg").write_bytes(b"")
    (folder / ".hidden.jpg").write_bytes(pictures[0].read_bytes())
    for name in ("out.csv", "next.csv"):
        said = classify_archive(classifier, [str(folder)], folder / name, processes=ALONE)["left_out"]
        assert f"hidden or linked folder '{folder}/.git' (1)" in said
        assert f"hidden or linked folder '{folder}/loop' (1)" in said
        assert ("'.csv' files (1)" in said) == (name == "next.csv")
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
        classify_archive(classifier, [str(tmp_path / "in")], tmp_path / name, processes=ALONE)
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
    assert 'Parquet needs pyarrow, which is not installed: run `pip install -e ".[train]"` in a clone' in result.stderr
    assert len(rows_of(tmp_path / "o.csv")) == 13


# ---- damage and errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_with_an_error_are_tried_again_by_the_same_command(classifier, pictures, tmp_path, ending):
    folder, output = many(tmp_path / "in", pictures, CHUNK_SIZE + 9), tmp_path / f"out.{ending}"
    good = (folder / "00003.jpg").read_bytes()
    for name in ("00003.jpg", f"{CHUNK_SIZE + 2:05}.jpg"):
        (folder / name).unlink()
        (folder / name).write_bytes(b"incomplete copy")
    first = classify_archive(classifier, [str(folder)], output, processes=ALONE)
    assert (first["images"], first["unreadable"]) == (CHUNK_SIZE + 9, 2)
    before = output.read_bytes()
    again = classify_archive(classifier, [str(folder)], output, processes=ALONE)
    assert (again["classified_now"], again["unreadable"]) == (2, 2)
    assert output.read_bytes() == before

    (folder / "00003.jpg").write_bytes(good)
    again = classify_archive(classifier, [str(folder)], output, processes=ALONE)
    assert (again["classified_now"], again["unreadable"]) == (2, 1)
    (folder / f"{CHUNK_SIZE + 2:05}.jpg").write_bytes(good)
    again = classify_archive(classifier, [str(folder)], output, processes=ALONE)
    assert (again["classified_now"], again["unreadable"]) == (1, 0)
    assert not (tmp_path / f"out.{ending}.parts").exists()
    classify_archive(classifier, [str(folder)], tmp_path / f"fresh.{ending}", processes=ALONE)
    assert output.read_bytes() == (tmp_path / f"fresh.{ending}").read_bytes()


def test_a_retry_that_is_killed_resumes(classifier, pictures, tmp_path, monkeypatch):
    folder, output = many(tmp_path / "in", pictures, 5), tmp_path / "out.csv"
    (folder / "00002.jpg").unlink()
    (folder / "00002.jpg").write_bytes(b"")
    classify_archive(classifier, [str(folder)], output, processes=ALONE)
    (folder / "00002.jpg").write_bytes(pictures[2].read_bytes())
    for step in ("unlink", "replace"):
        # The output is the only file that is unlinked before it is replaced.
        original = getattr(Path, step)

        def stop(path, *arguments, original=original, **keywords):
            if path.suffix == ".csv":
                raise KeyboardInterrupt
            return original(path, *arguments, **keywords)

        monkeypatch.setattr(Path, step, stop)
        with pytest.raises(KeyboardInterrupt):
            classify_archive(classifier, [str(folder)], output, processes=ALONE)
        monkeypatch.undo()
    assert classify_archive(classifier, [str(folder)], output, processes=ALONE)["unreadable"] == 0
    assert not any(row["error"] for row in rows_of(output))
    assert len(rows_of(output)) == 5


@pytest.mark.parametrize("damage", [b"", b"image,verdict\r\nmine,\r\n"])
def test_a_finished_output_that_was_changed_is_not_called_complete(classifier, pictures, tmp_path, damage):
    folder, output = many(tmp_path / "in", pictures, 3), tmp_path / "out.csv"
    classify_archive(classifier, [str(folder)], output, processes=ALONE)
    output.write_bytes(damage)
    with pytest.raises(ArchiveError, match=r"was changed or damaged after its run\. Choose another --output"):
        classify_archive(classifier, [str(folder)], output, processes=ALONE)
    assert output.read_bytes() == damage


def test_a_dataset_without_rows_is_said_to_hold_no_image(classifier, tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": []}, features=features).to_parquet(str(tmp_path / "none.parquet"))
    for output in ("o.csv", "o.parquet"):
        with pytest.raises(ArchiveError, match="no image in"):
            classify_archive(classifier, [str(tmp_path / "none.parquet")], tmp_path / output, processes=ALONE)
    assert [path.name for path in tmp_path.iterdir()] == ["none.parquet"]


@pytest.fixture
def web(pictures):
    """Address of a server of the pictures on this machine."""
    handler = partial(QuietHandler, directory=str(pictures[0].parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_an_address_in_a_dataset_is_fetched_only_if_asked_for_and_a_dead_one_is_a_row(
    classifier, pictures, tmp_path, web
):
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("string")})
    addresses = [str(pictures[0]), f"{web}/{pictures[1].name}", f"{web}/missing.jpg", "http://127.0.0.1:1/a.jpg"]
    rows = [{"image": {"path": path, "bytes": None}, "id": path[-5:]} for path in addresses]
    parquet.write_table(pa.Table.from_pylist(rows, features.arrow_schema), tmp_path / "urls.parquet")
    source, output = str(tmp_path / "urls.parquet"), tmp_path / "out.csv"
    classify_archive(classifier, [source], output, processes=ALONE)
    first, *others = [row["error"] for row in rows_of(output)]
    assert not first
    assert all("is a web address; the images of such rows are fetched with --fetch_urls" in error for error in others)
    again = classify_archive(classifier, [source], output, processes=ALONE, fetch_urls=True)
    assert (again["classified_now"], again["unreadable"]) == (3, 2)
    errors = [row["error"] for row in rows_of(output)]
    assert errors[:2] == ["", ""]
    assert all("could not be fetched" in error for error in errors[2:])


def test_a_local_dataset_that_changed_is_not_taken_for_the_one_that_was_classified(classifier, parquet_files, tmp_path):
    folder, output = tmp_path / "lesions", tmp_path / "out.csv"
    shutil.copytree(parquet_files, folder)
    classify_archive(classifier, [str(folder)], output, processes=ALONE, split="train")
    next(folder.glob("*1-of*")).unlink()
    with pytest.raises(ArchiveError, match=r"data_revision was '.*' and is '"):
        classify_archive(classifier, [str(folder)], output, processes=ALONE, split="train")


def test_names_that_a_spreadsheet_would_run_are_made_harmless(classifier, pictures, tmp_path, monkeypatch):
    names = ["+1.jpg", "-rf.jpg", "=1+1.jpg", "@x.jpg", "\tx.jpg", "a.jpg"]
    monkeypatch.chdir(tmp_path)
    for name in names:
        (tmp_path / name).write_bytes(pictures[0].read_bytes())
    (tmp_path / "=cmd.jpg").write_bytes(b"no image")
    for output in ("out.csv", "out.parquet"):
        classify_archive(classifier, [*names, "=cmd.jpg"], Path(output), processes=ALONE)
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
    classify_archive(classifier, [str(tmp_path)], tmp_path / "out.csv", processes=ALONE)
    errors = {Path(row["image"]).name: row["error"] for row in rows_of(tmp_path / "out.csv")}
    assert "is not a file" in errors["pipe.jpg"]
    assert "is not a file" in errors["zeros.jpg"]
    assert "0 bytes" in errors["log.jpg"] or "cannot be opened" in errors["log.jpg"]
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(ArchiveError, match="neither a file nor a folder"):
        classify_archive(classifier, [str(tmp_path / "pipe.parquet")], tmp_path / "o.csv", processes=ALONE)


def unfinished(classifier, pictures, folder: Path, monkeypatch) -> tuple[Path, Path]:
    """Classify three chunks, as far as the merging; return the images and the output."""
    images, output = many(folder / "in", pictures, 2 * CHUNK_SIZE + 3), folder / "out.csv"
    stop = Mock(side_effect=KeyboardInterrupt)
    monkeypatch.setattr(bulk, "_merge", stop)
    with pytest.raises(KeyboardInterrupt):
        classify_archive(classifier, [str(images)], output, processes=ALONE)
    monkeypatch.undo()
    return images, output


def test_half_a_chunk_is_classified_again_and_the_others_are_kept(classifier, pictures, tmp_path, monkeypatch):
    images, output = unfinished(classifier, pictures, tmp_path, monkeypatch)
    for chunk in ("0000001.json", "0000002.json"):
        path = tmp_path / "out.csv.parts" / chunk
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ArchiveError, match="was damaged; run the same command to"):
            classify_archive(classifier, [str(images)], output, processes=ALONE)
        again = classify_archive(classifier, [str(images)], tmp_path / "x.csv", processes=ALONE)
    again = classify_archive(classifier, [str(images)], output, processes=ALONE)
    assert again["classified_now"] <= CHUNK_SIZE + 3
    assert output.read_bytes() == (tmp_path / "x.csv").read_bytes()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"run": 5}', "\0" * 100])
def test_damaged_notes_of_a_run_are_named_and_its_work_is_kept(classifier, pictures, tmp_path, monkeypatch, content):
    images, output = unfinished(classifier, pictures, tmp_path, monkeypatch)
    parts = tmp_path / "out.csv.parts"
    notes = (parts / "run").read_text()
    (parts / "run").write_text(content)
    with pytest.raises(ArchiveError, match=r"(parts/run\b|unfinished work).*delete .* to start over"):
        classify_archive(classifier, [str(images)], output, processes=ALONE)
    assert len(list(parts.glob("0*.json"))) == 3
    (parts / "run").write_text(notes)
    assert classify_archive(classifier, [str(images)], output, processes=ALONE)["classified_now"] == 0
    (tmp_path / "out.csv.json").write_text(content)
    with pytest.raises(ArchiveError, match="Choose another --output, or move"):
        classify_archive(classifier, [str(images)], output, processes=ALONE)
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
        classify_archive(classifier, [str(pictures[0])], Path(output), processes=ALONE)
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
        "    merge(*arguments)\n"
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
            classify_archive(classifier, arguments, tmp_path / "o.csv", processes=ALONE)
        assert len(str(error.value)) < 1500
