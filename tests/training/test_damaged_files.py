"""Every reader of a configuration, given damaged and hostile files: what cannot be read is refused in a sentence.

The short form of fuzz_config.py. That of metrics.json is in test_card.py, which has one.
"""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from modeling.files import write_json
from modeling.training.options import parse_options
from modeling.training.run_folder import check_same_run
from stress import fuzz_config
from stress.fuzz_images import mutated

SHORT = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> dict[str, fuzz_config.Reader]:
    folder = tmp_path_factory.mktemp("config")
    return fuzz_config.make_readers(fuzz_config.make_model_folder(folder / "original"), folder)


NAMES = ["config", "manifest", "options", "run", "splits", "weights"]


@pytest.mark.parametrize("name", NAMES)
def test_every_reader_reads_a_valid_file(readers, name):
    assert readers[name].read(readers[name].seed)


@pytest.mark.parametrize("name", NAMES)
def test_every_changed_structure_is_read_or_refused_in_a_sentence(readers, name):
    reader = readers[name]

    @SHORT
    @given(st.deferred(lambda: fuzz_config.changed(reader.structure)))
    def read(tree):
        reader.read(reader.encode(tree))

    read()


@pytest.mark.parametrize("name", NAMES)
def test_changed_bytes_are_read_or_refused_in_a_sentence(readers, name):
    reader, rng = readers[name], random.Random(0)
    for content in [*reader.extra, *(mutated(rng, [reader.seed]) for _ in range(20))]:
        reader.read(content)


def test_the_harness_runs_by_one_command(tmp_path):
    script = Path(fuzz_config.__file__)
    text = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert "--seconds" in text


def options_error(tmp_path: Path, content: str | bytes, capsys) -> str:
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert train.main(["--config", str(path)]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- epochs\n- 3\n", "must hold lines such as"),
        ("just a word", "must hold lines such as"),
        ("epochs: {a: 1}\n", "epochs must be a value or a list of values"),
        ("diagnoses: [[MEL]]\n", "diagnoses must be a value or a list of values"),
        ("1: 2\n", "there is no option '1'"),
        ("epoch: 2\n", "there is no option 'epoch'"),
        ("dataset: [demo, demo]\n", "dataset takes one value, got the list"),
        (f"seed: {[0] * 900}\n", "seed takes one value, got the list ['0', '0',"),
        ("epochs: [3\n", "cannot be read"),
        ("epochs: !!python/object/apply:os.system ['true']\n", "epochs takes one value, got the list ['true']"),
        (b"\xff\xfe\x00", "cannot be read"),
        ("# x\n" * 50_000, "larger than 100 kB"),
        ("a: &a [x]\ndiagnoses: *a\n", "it has references"),
        ("learning_rate: inf\n", "--learning_rate must be a number in (0, inf)"),
        ("learning_rate: nan\n", "--learning_rate must be a number in (0, inf)"),
        ("batch_size: -4\n", "--batch_size must be a number in [2, 4096]"),
        ("seed: " + "9" * 4000, "--seed must be a number in [0, 4294967295], got 999"),
    ],
)
def test_a_file_of_options_that_cannot_be_used_is_refused_with_the_reason(tmp_path, content, words, capsys):
    assert words in options_error(tmp_path, content, capsys)


@pytest.mark.parametrize("value", ["many", "0x10", ".inf"])
def test_a_value_of_the_wrong_type_ends_as_on_the_command_line(tmp_path, capsys, value):
    path = tmp_path / "run.yaml"
    path.write_text(f"epochs: {value}\n")
    with pytest.raises(SystemExit, match="2"):
        train.main(["--config", str(path)])
    assert f"argument --epochs: invalid int value: '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "name", "expected"),
    [
        ("seed: 042", "seed", 42),
        ("output_dir: 2026_11_27", "output_dir", "2026_11_27"),
        ("output_dir: 2026-11-27", "output_dir", "2026-11-27"),
        ("output_dir: 010", "output_dir", "010"),
        ("output_dir: 1:30", "output_dir", "1:30"),
        ("diagnoses: [yes, no]", "diagnoses", ["yes", "no"]),
        ("mixed_precision: no", "mixed_precision", "no"),
        ("pretrained: no", "pretrained", False),
        ("learning_rate: 5e-4", "learning_rate", 5e-4),
        ("output_dir: --push_to_hub", "output_dir", "--push_to_hub"),
        ("diagnoses: [MEL, --push_to_hub]", "diagnoses", ["MEL", "--push_to_hub"]),
    ],
)
def test_a_value_means_in_a_file_what_it_means_on_the_command_line(tmp_path, line, name, expected):
    path = tmp_path / "run.yaml"
    path.write_text(line)
    options = parse_options(["--config", str(path)])
    assert getattr(options, name) == expected
    assert not options.push_to_hub


def test_no_file_of_options_is_read_that_nobody_named(tmp_path, monkeypatch):
    (tmp_path / "train.args").write_text("--epochs 1")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "train.py")])
    assert parse_options([]).epochs == 30


def test_what_is_no_option_is_named(capsys):
    assert train.main(["--dataset", "demo", "--learning-speed", "3"]) == 1
    assert "'--learning-speed 3' is no option; --help lists them." in capsys.readouterr().err


def test_a_missing_file_of_options_or_name_is_said(tmp_path, capsys):
    for given_path in (tmp_path / "none.yaml", tmp_path):
        assert train.main(["--config", str(given_path)]) == 1
        assert f"--config {given_path} cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["--dataset", "demo", "--config"])
    assert "expected one argument" in capsys.readouterr().err


def test_both_ways_to_name_the_file_of_options_are_understood(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset: demo\npush_to_hub: false\nreport_to: []\nhub_model_id:\ndiagnoses: all\nresume: null\n")
    for given_arguments in (["--config", str(path)], [f"--config={path}"]):
        options = parse_options([*given_arguments, "--epochs", "4"])
        assert (options.dataset, options.diagnoses, options.push_to_hub, options.epochs) == ("demo", ["all"], False, 4)
        assert options.report_to == []


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
