"""README.md and docs/: every command is one that the programs accept, every Python block runs, every number is measured."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from modeling.evaluation.reference import PUBLISHED as PUBLISHED_SCORES
from modeling.evaluation.reference import PUBLISHED_CONFUSION, TEST_LEAKAGE, derived_scores

from modeling.evaluation import __main__ as evaluation
from modeling.publish import __main__ as publish
from modeling.training.options import parse_options
from support.hub import HubServer

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What only some need stands in docs/, one page a topic.
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


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
        pytest.skip("needs a running Space; tests/space/ runs the same calls")
    lesion_image.save(tmp_path / "lesion.jpg")
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
    order = ["Try it", "Load it", "The Space", "Train on", "What it reaches", "Limits"]
    places = [README.index(f"\n## {title}") for title in order]
    assert places == sorted(places)
    for page in PAGES:
        assert page.name == "README.md" or f"](docs/{page.name})" in README, f"{page.name} is not linked"


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def of_point(name: str, rate: str) -> Callable[[dict[str, Any]], Any]:
    return lambda metrics: next(point["test"][rate] for point in metrics["operating_points"] if point["name"] == name)


# A row of README's table of results, and where its number stands in metrics.json.
ROWS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "images (lesions)": lambda metrics: f"{metrics['test']['n_images']:,} ({metrics['test']['n_lesions']:,})",
    "leakage rate": lambda metrics: {"value": metrics["data"]["leakage"]["overall"]},
    "balanced accuracy": lambda metrics: metrics["test"]["balanced_accuracy"],
    "… of the baseline without pixels": lambda metrics: metrics["baselines"]["metadata_only"]["balanced_accuracy"],
    "accuracy": lambda metrics: metrics["test"]["accuracy"],
    "macro AUROC": lambda metrics: metrics["test"]["macro_auroc"],
    "first answer: melanoma recall": lambda metrics: metrics["test"]["per_class"]["MEL"]["recall"],
    "MEL@95: sensitivity": of_point("MEL@95", "sensitivity"),
    "MEL@95: specificity": of_point("MEL@95", "specificity"),
    "calibration error (ECE)": lambda metrics: metrics["calibration"]["test"]["after"]["ece"],
    "flip rate, brightness −20 %": lambda metrics: metrics["robustness"]["changes"]["brightness -20 %"]["flip_rate"],
}


def column(run: str | None) -> dict[str, str]:
    """Return each row's text for a run in benchmarks/results; None is the reference system as published."""
    if run is None:
        published = PUBLISHED_SCORES | derived_scores()
        known = {
            "images (lesions)": f"{sum(map(sum, PUBLISHED_CONFUSION)):,}",
            "leakage rate": f"{TEST_LEAKAGE:.3f}",
            "balanced accuracy": f"{published['balanced_accuracy']:.3f}",
            "accuracy": f"{published['accuracy']:.3f}",
            "first answer: melanoma recall": f"{published['MEL/recall']:.3f}",
        }
        return {row: known.get(row, "–") for row in ROWS}
    metrics = json.loads((ROOT / "benchmarks" / "results" / run / "metrics.json").read_text(encoding="utf-8"))
    return {row: in_table(find(metrics)) for row, find in ROWS.items()}


def in_table(number: Any) -> str:
    if isinstance(number, str):
        return number
    if number["value"] is None:
        return "–"
    interval = f" ({number['low']:.3f}–{number['high']:.3f})" if number.get("low") is not None else ""
    return f"{number['value']:.3f}{interval}"


def test_the_table_of_results_is_that_of_the_linked_runs():
    section = README.split("## What it reaches")[1].split("\n## ")[0]
    table = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    runs = [re.search(r"\(benchmarks/results/(.+)/metrics\.json\)", cell) for cell in table[0][1:]]
    columns = [column(run.group(1) if run else None) for run in runs]
    assert len(columns) > 1
    assert table[2:] == [[row, *(one[row] for one in columns)] for row in ROWS]


def test_the_numbers_told_in_words_are_those_of_the_benchmarks():
    """What stands in benchmarks/README.md comes from the files beside it."""

    def result(name):
        return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))

    text = " ".join((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").split())
    later = result("training.json")["ratios"]["ours, later epochs"]
    words = (
        f"| ours, later epochs | 22.3 | {later['bare']:.2f} (bar 0.95: met) | {later['original']:.2f} (bar 3: met) |"
    )
    assert words in text, words
    for run in sorted(path.parent.name for path in (ROOT / "benchmarks" / "results").glob("ham10000_*/metrics.json")):
        one = column(run)
        for row in ("balanced accuracy", "accuracy", "macro AUROC", "first answer: melanoma recall", "leakage rate"):
            assert one[row] in text, f"{run}: {row} {one[row]}"


def test_the_tables_of_the_benchmarks_are_those_of_the_files_beside_them(monkeypatch):
    """A benchmark writes both; who edits one of them by hand is found out."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from side_by_side import table

    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    marks = re.findall(r"^<!-- results/(\w+)\.json -->\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    assert {name for name, _ in marks} == {"prediction", "cold_start"}
    for name, shown in marks:
        content = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert shown.strip() == table(content["rows"])


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
