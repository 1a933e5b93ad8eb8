"""modeling/training/run_folder.py: checkpoints are atomic."""

import errno
import os
import resource

import pytest
from accelerate import Accelerator

from modeling.training.run_folder import Checkpoints


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


def writer(content="weights"):
    def write(folder):
        (folder / "model.bin").write_text(content)
        (folder / "deeper").mkdir()
        (folder / "deeper" / "state.json").write_text("{}")

    return write


def test_a_written_checkpoint_is_found_and_whole(tmp_path, accelerator):
    checkpoints = Checkpoints(tmp_path, accelerator)
    assert checkpoints.latest() is None
    checkpoints.save(7, writer())
    folder = checkpoints.latest()
    assert checkpoints.latest() == folder
    assert (folder / "deeper" / "state.json").read_text() == "{}"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_last_two_are_kept(tmp_path, accelerator):
    checkpoints = Checkpoints(tmp_path, accelerator)
    for step in (1, 2, 3, 10):
        checkpoints.save(step, writer())
    assert names(tmp_path) == ["step-00000003", "step-00000010"]


def test_an_old_checkpoint_that_cannot_be_deleted_is_left_until_it_can(tmp_path, accelerator, monkeypatch):
    """As on a shared disk, where a folder stays while somebody has a file of it open."""
    checkpoints, rmdir = Checkpoints(tmp_path, accelerator), os.rmdir

    def busy(path, **options):
        if "step-00000001" in str(path):
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        rmdir(path, **options)

    checkpoints.save(1, writer())
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        for step in (2, 3):
            checkpoints.save(step, writer())
    assert names(tmp_path) == ["step-00000001", "step-00000002", "step-00000003"]
    checkpoints.save(4, writer())
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_what_others_put_there_is_left_alone(tmp_path, accelerator):
    checkpoints = Checkpoints(tmp_path, accelerator)
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "step-00000001-keep").mkdir()
    for step in (1, 2, 3):
        checkpoints.save(step, writer())
    assert names(tmp_path) == [".DS_Store", "step-00000001-keep", "step-00000002", "step-00000003"]


def test_a_step_taken_again_replaces_its_checkpoint(tmp_path, accelerator):
    checkpoints = Checkpoints(tmp_path, accelerator)
    for content in ("first", "second"):
        checkpoints.save(4, writer(content))
        folder = checkpoints.latest()
        assert (folder / "model.bin").read_text() == content
        assert names(tmp_path) == ["step-00000004"]


def test_what_a_kill_left_behind_is_deleted(tmp_path, accelerator):
    checkpoints = Checkpoints(tmp_path, accelerator)
    checkpoints.save(1, writer())
    (tmp_path / ".step-00000012.partial").mkdir()
    assert checkpoints.latest() == tmp_path / "step-00000001"
    checkpoints.save(5, writer())
    assert names(tmp_path) == ["step-00000001", "step-00000005"]


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, accelerator):
    checkpoints = Checkpoints(tmp_path, accelerator)
    checkpoints.save(1, writer())
    whole = checkpoints.latest()

    def killed(folder):
        writer()(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(2, killed)
    assert checkpoints.latest() == whole
    checkpoints.save(2, writer())  # what the kill left behind is no obstacle
    again = checkpoints.latest()
    assert checkpoints.latest() == again


def test_a_write_that_fails_is_reported_and_harms_nothing(tmp_path, accelerator):
    checkpoints = Checkpoints(tmp_path, accelerator)
    checkpoints.save(1, writer())
    whole = checkpoints.latest()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a file that cannot grow, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(2, writer("w" * 5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
