"""README.md: every command is one that the programs accept, every Python block runs, every file it names is there."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modeling.evaluation import __main__ as evaluation
from modeling.publish import __main__ as publish
from modeling.training.options import parse_options
from support.hub import HubServer

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [
    shlex.split(part, comments=True)
    for block in blocks("bash")
    for line in block.replace("\\\n", " ").splitlines()
    for part in line.split(" && ")
    if shlex.split(line, comments=True)
]


def commands_of(*start):
    found = [command[len(start) :] for command in COMMANDS if command[: len(start)] == list(start)]
    assert found, f"README shows no command that starts with {' '.join(start)}"
    return found


def test_the_two_main_commands_are_what_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text() + (ROOT / ".ci" / "demo.py").read_text()
    demo, tests = (
        'pip install -e ".[train,space]" && accelerate launch train.py --dataset demo',
        'pip install -e ".[train,space,test]" && pytest',
    )
    assert demo in README
    assert tests in README
    assert 'pip install -q -e ".[train,space]"' in ci
    assert '"accelerate", "launch", "train.py", "--dataset", "demo"' in ci
    assert 'pip install -q -e ".[train,space,test]"' in ci
    assert re.search(r"^pytest$", ci, flags=re.MULTILINE)


@pytest.mark.parametrize("arguments", commands_of("accelerate", "launch", "train.py"), ids=" ".join)
def test_training_commands_are_accepted(arguments, tmp_path, monkeypatch):
    (tmp_path / "run.yaml").write_text("dataset: demo\nepochs: 2\n")
    monkeypatch.chdir(tmp_path)
    if arguments == ["--help"]:
        with pytest.raises(SystemExit) as stopped:
            parse_options(arguments)
        assert stopped.value.code == 0
    else:
        parse_options(arguments)


@pytest.mark.parametrize("arguments", commands_of("python", "-m", "modeling.publish"), ids=" ".join)
def test_publishing_commands_are_accepted(arguments):
    publish._parser().parse_args(arguments)


@pytest.mark.parametrize("arguments", commands_of("python", "-m", "modeling.evaluation"), ids=" ".join)
def test_evaluation_commands_are_accepted(arguments, capsys):
    """The model is not there, which is said; an option that does not exist would end with status 2."""
    assert evaluation.main(["no/model/here/at/all", *arguments[1:]]) == 1
    assert "neither a folder here nor a Hub repository" in capsys.readouterr().err


@pytest.mark.parametrize("start", [("python", "-m", "modeling.predictor"), ("python", "space/app.py")], ids=" ".join)
def test_the_options_of_other_commands_are_in_their_help(start):
    text = subprocess.run(
        [sys.executable, *start[1:], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for arguments in commands_of(*start):
        for option in (word for word in arguments if word.startswith("--")):
            assert option in text


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run_against_a_hub(number, tiny_model_folder, lesion_image, tmp_path):
    code = blocks("python")[number]
    if "gradio_client" in code:
        pytest.skip("needs a running Space; tests/test_space.py runs the same calls")
    lesion_image.save(tmp_path / "lesion.jpg")
    with HubServer() as hub:
        files = {path.name: path.read_bytes() for path in tiny_model_folder.iterdir() if path.is_file()}
        repo = hub.add_repo("me/skin-lesion-b0", files)
        repo.tags["v1.0"] = repo.head.oid
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=hub.env(home=tmp_path / "home"), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


def test_every_file_of_the_map_is_there_and_none_is_left_out():
    table = README.split("## Files")[1].split("## Develop")[0]
    named = set(re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE))
    assert all((ROOT / name).exists() for name in named)
    here = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "modeling").rglob("*.py") if path.name != "__init__.py"
    }
    assert here <= named


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_speed_and_accuracy_are_those_of_the_benchmarks():
    def result(name):
        return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))

    speed = README.split("## Speed")[1].split("## Files")[0]
    later = result("training.json")["ratios"]["ours, later epochs"]
    prediction = result("prediction.json")
    times, shares = prediction["times_one_bare_forward"], prediction["share_of_bare_throughput"]
    for words in (
        f"{later['original']:.2f} times as fast as the original's",
        f"{100 * later['bare']:.0f} % of the bare limit",
        f"{times['explain, 8 diagnoses']:.2f} times one bare forward pass",
        f"{times['grad-cam, 8 diagnoses']:.0f} times",
        f"({result('cold_start.json')['ratio']['timm alone']:.2f} times)",
        f"{100 * shares['predict, JPEG files of 224 px']:.0f} % of the bare",
        f"{100 * shares['predict, JPEG files of 1024 px']:.0f} % on 1024 px",
    ):
        assert words in " ".join(speed.split()), words

    test = result("ham10000_96px/metrics.json")["test"]
    reached = README.split("## What it reaches")[1].split("What it does badly")[0]
    for name in ("balanced_accuracy", "accuracy", "macro_auroc"):
        assert f"{test[name]['value']:.3f} ({test[name]['low']:.3f}–{test[name]['high']:.3f})" in reached, name


def test_no_placeholder_is_left():
    assert not re.search(r"@[A-Z_]+@", README)


def test_the_hub_command_line_is_installed():
    assert shutil.which("hf")
