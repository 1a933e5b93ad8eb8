"""train.py: whatever can be known without the images is refused before one is read, in a sentence."""

import errno

import pytest

import train
from support.runs import ROOT, TINY


@pytest.fixture
def refusal(tmp_path, monkeypatch, capsys):
    """Return what train.py prints when it refuses its arguments; it fails if the images are read."""
    monkeypatch.setattr(train, "load_images", lambda *_, **__: pytest.fail("the images were read"))
    monkeypatch.chdir(tmp_path)

    def message(*arguments):
        assert train.main(list(arguments)) == 1
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert not (tmp_path / "runs").exists()
        return error

    return message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--epochs", "-1"], "--epochs: input should be"),
        (["--output_dir", ".."], "neither empty nor the folder of a run"),
        (["--dataset", "demo", "--backbone", "foo"], "no network named 'foo'"),
        (["--dataset", "demo", "--init_from", str(ROOT / "README.md")], "README.md is not a .safetensors file"),
        (["--dataset", "demo", "--init_from", "/nowhere"], "--init_from: "),
        (["--dataset", "demo", "--splits", "/nowhere.csv"], "/nowhere.csv cannot be read"),
    ],
)
def test_what_cannot_work_is_refused_before_the_images_are_read(refusal, given, words):
    assert words in refusal(*given)


def test_garbage_given_as_splits_is_refused_before_the_images_are_read(refusal, tmp_path):
    (tmp_path / "splits.csv").write_text("a,b\n1,2\n")
    assert "lacks 5 columns" in refusal("--dataset", "demo", "--splits", "splits.csv", "--output_dir", "runs/x")


def test_weights_of_another_network_are_refused_before_the_images_are_read(refusal, tiny_model_folder):
    words = refusal("--dataset", "demo", "--backbone", "test_convnext", "--init_from", str(tiny_model_folder))
    assert "another network than --backbone test_convnext" in words


def test_a_full_disk_is_a_sentence(monkeypatch, tmp_path, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(train, "load_images", full)
    assert train.main([*TINY, "--dataset", "demo", "--output_dir", str(tmp_path / "run")]) == 1
    assert "make room on it and continue" in capsys.readouterr().err


def test_an_unexpected_error_keeps_its_traceback(monkeypatch, tmp_path):
    def unexpected(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr(train, "load_images", unexpected)
    with pytest.raises(KeyError):
        train.main([*TINY, "--dataset", "demo", "--output_dir", str(tmp_path / "run")])
