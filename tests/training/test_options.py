"""modeling/training/options.py: every option explained, checked, and the same in a file as on the command line."""

import dataclasses
import re
import sys

import pytest

from modeling.training.options import TrainOptions, checkpoint_interval, parse_options


def error_of(*arguments: str) -> str:
    with pytest.raises(ValueError, match="--") as caught:
        parse_options(list(arguments))
    return str(caught.value)


def test_help_explains_every_option_with_one_default(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    found = [re.search(rf" --{entry.name} [\[{{A-Z]", text) for entry in dataclasses.fields(TrainOptions)]
    starts = [match.start() for match in found if match] + [len(text)]
    assert starts == sorted(starts)
    for entry, start, end in zip(dataclasses.fields(TrainOptions), starts, starts[1:], strict=False):
        assert text[start:end].count("Default: ") == 1, entry.name
        assert "(default" not in text[start:end]
        assert entry.metadata["help"].split(".")[0] in text
    for words in ("--config FILE.yaml", "accelerate launch train.py", "trackio"):
        assert words in text


def test_the_defaults_that_depend_on_others_are_what_the_help_says():
    plain, demo, original = (
        parse_options([]),
        parse_options(["--dataset", "demo"]),
        parse_options(["--recipe", "original"]),
    )
    assert (plain.backbone, plain.pretrained, plain.image_size, plain.epochs) == ("efficientnet_b0", True, 224, 30)
    assert (demo.backbone, demo.pretrained, demo.image_size, demo.epochs) == ("test_efficientnet", False, 160, 16)
    assert (plain.learning_rate, demo.learning_rate, original.learning_rate) == (5e-4, 2e-3, 1e-4)
    assert (plain.weight_decay, plain.warmup_epochs, plain.patience) == (0.05, 1, 10)
    assert (plain.ema_decay, original.ema_decay, original.epochs, original.batch_size) == (0.999, 0, 15, 32)


def test_options_that_the_recipe_does_not_use_are_none_and_refused():
    options = parse_options(["--recipe", "original"])
    for name in ("weight_decay", "warmup_epochs", "consistency", "patience"):
        assert getattr(options, name) is None
        assert error_of("--recipe", "original", f"--{name}", "1") == (
            f"--{name} is not used by --recipe original; leave it out."
        )


def test_without_training_there_must_be_trained_weights():
    assert "it needs the weights of a trained model: --init_from" in error_of("--epochs", "0")
    assert parse_options(["--epochs", "0", "--init_from", "a", "b"]).init_from == ["a", "b"]


def test_weights_of_init_from_are_not_recorded_as_pretrained():
    options = parse_options(["--init_from", "weights"])
    assert options.pretrained is None
    assert options.learning_rate == 5e-4
    assert "exclude each other" in error_of("--init_from", "weights", "--pretrained", "true")


@pytest.mark.parametrize(
    ("name", "value", "bound"),
    [
        ("image_size", "1040", "less than or equal to 1024"),
        ("image_size", "7", "greater than or equal to 16"),
        ("gradient_accumulation_steps", "0", "greater than or equal to 1"),
        ("batch_size", "1", "greater than or equal to 2"),
        ("drop_rate", "1", "less than 1"),
        ("drop_rate", "nan", "less than 1"),
        ("ema_decay", "2", "less than 1"),
        ("learning_rate", "0", "greater than or equal to 0.0000001"),
        ("learning_rate", "1e-300", "greater than or equal to 0.0000001"),
        ("learning_rate", "inf", "a finite number"),
        ("warmup_epochs", "1e6", "less than or equal to 100"),
        ("num_workers", "5000", "less than or equal to 64"),
        ("seed", "12345678901234567890", "less than 4294967296"),
        ("epochs", "-1", "greater than or equal to 0"),
        ("consistency", "0", "greater than 0"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name_with_the_bound(name, value, bound):
    assert re.fullmatch(rf"--{name}: input should be {bound}, got .+\.", error_of(f"--{name}", value))


def test_every_number_has_a_range():
    from typing import get_type_hints

    for name, kind in get_type_hints(TrainOptions, include_extras=True).items():
        if ("int" in str(kind) or "float" in str(kind)) and kind is not bool:
            assert "Annotated" in str(kind), name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--push_to_hub"], "--push_to_hub and --hub_model_id, such as me/skin-lesion-b0, need each other"),
        (["--hub_model_id", "me/x"], "need each other"),
        (["--hub_private"], "--hub_private needs both"),
        (["--checkpoint_every", "10 parsecs"], "--checkpoint_every: string should match pattern"),
        (["--checkpoint_every", "3epochs"], "(min|steps?)"),
        (["--checkpoint_every", "0min"], "got '0min'"),
        (["--output_dir", ""], "--output_dir: string should have at least 1 character, got ''."),
        (["--splits", ""], "--splits: string should have at least 1 character"),
        (["--test_source", "BCN", ""], "--test_source: string should have at least 1 character"),
        (["--report_to", "nothing_of_the_kind"], "'nothing_of_the_kind' is not installed here; there is tensorboard"),
        (["--learning-speed", "3"], "unknown option '--learning-speed 3'; --help lists them."),
        (["--epoch", "3"], "unknown option '--epoch 3'"),
    ],
)
def test_contradictory_or_empty_options_are_refused_with_the_way_out(given, words):
    assert words in error_of(*given)


@pytest.mark.parametrize(
    "given", [["--recipe", "mine"], ["--protocol", "none"], ["--resume", "yes"], ["--epochs", "x"]]
)
def test_a_word_that_is_no_choice_is_refused_by_argparse(given, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse_options(given)
    assert f"argument {given[0]}: invalid" in capsys.readouterr().err


def test_a_checkpoint_interval_is_a_time_or_a_number_of_steps():
    assert checkpoint_interval("10min") == (600, float("inf"))
    assert checkpoint_interval("1step") == (float("inf"), 1)
    assert checkpoint_interval("500steps") == (float("inf"), 500)


def test_several_sources_can_be_left_out():
    assert parse_options(["--test_source", "BCN", "MSK"]).test_source == ["BCN", "MSK"]
    assert parse_options([]).test_source == []


def test_the_run_folder_is_named_after_the_dataset_however_its_path_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos" / "deeper")
    for path in ("..", "../", str(tmp_path / "photos"), f"{tmp_path}/photos/"):
        assert parse_options(["--dataset", path]).output_dir == "runs/photos"
    assert parse_options(["--dataset", "me/lesions"]).output_dir == "runs/me--lesions"


# ---- files of options ----------------------------------------------------------------------------------------------


def test_options_can_come_from_a_file_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset: demo\nepochs: 3\nbatch-size: 8\ndiagnoses: [MEL, NV]\n")
    for given in (["--config", str(path)], [f"--config={path}"]):
        options = parse_options([*given, "--epochs", "4"])
        assert (options.dataset, options.epochs, options.batch_size) == ("demo", 4, 8)
        assert options.diagnoses == ["MEL", "NV"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- epochs\n- 3\n", "must hold lines such as"),
        ("just a word", "must hold lines such as"),
        ("epochs: [3\n", "must hold lines such as"),
        (b"\xff\xfe\x00", "must hold lines such as"),
        ("1: 2\n", "unknown option '--1=2'"),
        ("epoch: 2\n", "unknown option '--epoch=2'"),
        ("config: other.yaml\n", "unknown option '--config=other.yaml'"),
        ("dataset: [[demo]]\n", "'dataset' must be a value or a list of values, not a structure."),
        ("epochs: {a: 1}\n", "'epochs' must be a value or a list of values, not a structure."),
        ("dataset: [demo, demo]\n", "unknown option 'demo'"),
        ("learning_rate: inf\n", "--learning_rate: input should be a finite number"),
        ("learning_rate: nan\n", "--learning_rate: input should be"),
        ("batch_size: -4\n", "--batch_size: input should be greater than or equal to 2"),
        ("seed: " + "9" * 4000, "--seed: input should be less than 4294967296, got 999"),
    ],
)
def test_a_file_of_options_that_cannot_be_used_is_refused_with_the_reason(tmp_path, content, words):
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in error_of("--config", str(path))


@pytest.mark.parametrize("path", ["/nowhere/none.yaml", "/"])
def test_what_is_no_file_of_options_is_refused(path):
    assert f"--config {path} must hold lines such as" in error_of("--config", path)


@pytest.mark.parametrize("value", ["many", "0x10", ".inf"])
def test_a_value_of_the_wrong_type_ends_as_on_the_command_line(tmp_path, capsys, value):
    path = tmp_path / "run.yaml"
    path.write_text(f"epochs: {value}\nrecipe: mine\n")
    with pytest.raises(SystemExit, match="2"):
        parse_options(["--config", str(path)])
    assert "argument --epochs: invalid int value: " in capsys.readouterr().err


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
        ("hub_model_id:", "hub_model_id", None),
        ("resume: null", "resume", None),
        ("report_to: []", "report_to", []),
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


def test_config_without_a_name_is_said(capsys):
    with pytest.raises(SystemExit):
        parse_options(["--dataset", "demo", "--config"])
    assert "expected one argument" in capsys.readouterr().err
