"""Uploads: kept private, and for minutes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import uploads
from errors import QuestionError

from support.space import ROOT


def test_the_janitor_deletes_old_uploads_and_their_folders_and_counts_the_rest(tmp_path):
    root = tmp_path / "lesion-uploads-x"
    old, new = root / "a" / "old.jpg", root / "b" / "new.jpg"
    for file in (old, new):
        file.parent.mkdir(parents=True)
        file.write_bytes(b"12345")
    long_ago = time.time() - uploads.KEEP_UPLOADS_S - 1
    for path in (old, old.parent, root):
        os.utime(path, (long_ago,) * 2)
    janitor = uploads.Janitor(tmp_path)
    janitor.sweep()
    assert not old.exists()
    assert new.exists()
    assert janitor.used_bytes == 5
    os.utime(old.parent, (long_ago,) * 2)  # deleting the file made the folder young again
    janitor.sweep()
    assert not old.parent.exists()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\photos\\mole.jpg", "mole.jpg"),
        ("a\nb\x00.jpg", "a\ufffdb\ufffd.jpg"),
        ("x" * 500, "x" * 120),
        ("", "photo"),
        ("///", "photo"),
    ],
)
def test_a_visitors_file_name_is_shown_without_folders_controls_and_excess(sent, shown):
    assert uploads.shown_name(sent) == shown


@pytest.mark.parametrize("name", ["ä" * 120, "𐀀" * 119 + ".jpg", "..", "."])
def test_any_name_becomes_a_file_in_a_folder_of_its_own(name):
    first, second = uploads.private_file(name), uploads.private_file(name)
    for path in (first, second):
        path.write_bytes(b"x")
        assert path.parent.parent == uploads.FOLDER
        assert len(path.parent.name) == 32
    assert first.parent != second.parent


@pytest.mark.parametrize(
    "path",
    [None, 3, ["x"], "", "/etc/passwd", "../../etc/passwd", "x\0y", "y" * 300, "z" * 10_000, "http://192.0.2.1/x.jpg"],
)
def test_what_is_no_upload_is_refused_without_repeating_it(path):
    with pytest.raises(QuestionError) as error:
        uploads.received(path, "mole.jpg")
    assert len(str(error.value)) < 200
    assert "passwd" not in str(error.value)


def test_a_link_out_of_the_folder_is_refused():
    link = uploads.private_file("link.jpg")
    link.symlink_to("/etc/passwd")
    with pytest.raises(QuestionError, match="There is no photo"):
        uploads.received(str(link), "link.jpg")


def start(parent: Path, code: str) -> subprocess.Popen:
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(parent), "PYTHONPATH": str(ROOT / "space")}
    begin = "import time, uploads; path = uploads.FOLDER; print(oct(path.stat().st_mode), path, flush=True);"
    command = [sys.executable, "-c", begin + code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_upload_folder_is_private_and_gone_when_the_server_ends(tmp_path):
    mode, path = start(tmp_path, "pass").communicate()[0].split()
    assert mode.endswith("700")
    assert not Path(path).exists()


def test_what_a_killed_server_left_long_ago_is_removed_and_what_a_running_one_has_is_not(tmp_path):
    killed, running = (start(tmp_path, "time.sleep(600)") for _ in range(2))
    left, kept = (Path(process.stdout.readline().split()[1]) for process in (killed, running))
    for path in (left, kept):
        (path / "photo.jpg").write_bytes(b"x")
    killed.kill()
    killed.wait()
    assert left.exists()
    long_ago = time.time() - uploads.KEEP_UPLOADS_S - 1
    os.utime(left / "photo.jpg", (long_ago,) * 2)
    uploads.Janitor(tmp_path).sweep()
    assert not (left / "photo.jpg").exists()
    assert (kept / "photo.jpg").exists()
    running.kill()
    running.wait()
