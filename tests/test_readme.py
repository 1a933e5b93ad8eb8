"""README.md and docs/: every command is one that the programs accept, every Python block runs, every number is measured."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from modeling.evaluation import __main__ as evaluation
from modeling.publish import __main__ as publish
from modeling.training.options import parse_options
from support.hub import HubServer

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OTHERS = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "pretrained/README.md")]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *OTHERS)
}


def blocks(language):
    pattern = rf"^```{language}\n(.*?)^```"
    return [block for text in PAGES.values() for block in re.findall(pattern, text, flags=re.MULTILINE | re.DOTALL)]


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


def test_the_first_commands_are_what_ci_runs():
    ci = "".join((ROOT / ".ci" / name).read_text() for name in ("run", "demo.py", "first_minute.py"))
    assert 'pip install -e ".[space]" && python space/app.py' in README
    assert '"install", "-q", "-e", ".[space]"' in ci
    assert '"space/app.py"' in ci
    assert 'pip install -e ".[train,space]" && accelerate launch train.py --dataset demo' in README
    assert '"accelerate", "launch", "train.py", "--dataset", "demo"' in ci
    assert 'pip install -e ".[train,space,test]"' in (ROOT / "CONTRIBUTING.md").read_text()
    assert 'install venv -e ".[train,space,test]"' in ci
    assert re.search(r"^pytest ", ci, flags=re.MULTILINE)


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
    assert "there is no such folder here" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("start", [("python", "-m", "modeling.predictor"), ("python", "space/app.py")], ids=" ".join)
def test_the_options_of_other_commands_are_in_their_help(start):
    text = subprocess.run(
        [sys.executable, *start[1:], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for arguments in commands_of(*start):
        for option in (word for word in arguments if word.startswith("--")):
            assert option in text


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_blocks_run_against_a_hub(number, tiny_model_folder, lesion_image, tmp_path):
    code = blocks("python")[number]
    if "gradio_client" in code:
        pytest.skip("needs a running Space; tests/space/ runs the same calls")
    lesion_image.save(tmp_path / "lesion.jpg")
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")  # as in a clone
    with HubServer() as hub:
        inside = [path for path in tiny_model_folder.rglob("*") if path.is_file()]
        files = {path.relative_to(tiny_model_folder).as_posix(): path.read_bytes() for path in inside}
        repo = hub.add_repo("me/skin-lesion-b0", files)
        repo.tags["v1.0"] = repo.head.oid
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=hub.env(home=tmp_path / "home"), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


def test_every_link_leads_to_a_file():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.encode()) <= 11_000
    assert len(README.splitlines()) <= 120
    order = ["Try it", "Load it", "Train", "Publish", "Results", "Documentation", "Limits", "Cite"]
    places = [README.index(f"\n## {title}") for title in order]
    assert places == sorted(places)
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README, f"{page.name} is not linked"


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_measured_files():
    """An edit by hand, and a new metrics.json without a new table, are found."""
    command = [sys.executable, ROOT / "benchmarks" / "results_page.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_tables_of_the_benchmarks_are_those_of_the_files_beside_them(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from side_by_side import table

    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    marks = re.findall(r"^<!-- benchmarks/results/(\w+)\.json -->\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    assert {name for name, _ in marks} == {"prediction", "cold_start", "browser", "browser_efficientnet_b0"}
    for name, shown in marks:
        content = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert shown.strip() == table(content["rows"])


def test_the_pictures_show_the_page_of_today():
    """`python tests/stress/screenshots.py --demo runs/demo/model` makes them again."""
    from stress.screenshots import PICTURES, page_hash

    assert json.loads(PICTURES.read_text(encoding="utf-8"))["page"] == page_hash()


def test_no_placeholder_is_left():
    for text in PAGES.values():
        assert not re.search(r"@[A-Z_]+@", text)


def test_every_extra_that_is_to_be_installed_exists():
    named = {
        extra
        for command in COMMANDS
        if command[:2] == ["pip", "install"]
        for extra in re.findall(r"\[(.+)\]", command[-1])
    }
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {name for names in named for name in names.split(",")} <= set(extras)
    assert len(named) > 1


def test_the_hub_command_line_is_installed():
    assert shutil.which("hf")
