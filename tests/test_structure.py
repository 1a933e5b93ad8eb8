"""Imports point one way and without a circle, every subpackage is installed, and texts use the field's words."""

import ast
import re
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each subpackage may use those before it; the root of the package comes first and has an order of its own, without a circle.
LAYERS = ("", "data", "training", "evaluation", "publish")


def modules() -> dict[str, Path]:
    files = [path for path in sorted((ROOT / "modeling").rglob("*.py")) if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or inside a function."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "modeling":
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found |= {name for name in names if name in known}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
    return found


def layer_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else ""


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way_through_the_layers(module):
    upward = [
        name for name in imports_of(modules()[module]) if LAYERS.index(layer_of(name)) > LAYERS.index(layer_of(module))
    ]
    assert not upward, f"{module} imports what is built on it: {upward}"


def test_no_module_imports_itself_by_a_circle():
    TopologicalSorter({name: imports_of(path) for name, path in modules().items()}).prepare()


def test_the_package_does_not_know_the_scripts_on_top_of_it():
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert "import train" not in text, name
        assert "from space" not in text, name


def test_every_subpackage_is_installed():
    import tomllib

    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    assert set(packages) == {
        ".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("modeling/**/__init__.py")
    }


# Words of an earlier private language; the log keeps them, since it is a record.
AVOIDED = re.compile(
    r"\b(anew|for ever|whoever|wherein|first answers?|tells? apart|told apart|drawn lesions?|golden|rehears\w+|leaking share"
    r"|changed answers|data sets?|resamples|outliers|unlike|stranger's|(is|are) told|obeys?|obeyed|witness|drawers?|looked at"
    r"|no all-clear)\b",
    re.IGNORECASE,
)
TEXTS = {".py", ".md", ".js", ".mjs", ".html", ".yml", ".yaml", ".toml", ".ipynb"}
KEPT = {ROOT / "benchmarks" / "LOG.md", ROOT / "CHANGELOG.md", Path(__file__)}


def test_no_text_uses_an_avoided_word():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if Path(name).suffix in TEXTS] + [
        ROOT / "modeling" / "texts.json"
    ]
    assert len(files) > 150
    found = [
        f"{path.relative_to(ROOT)}:{number}: {word[0]}"
        for path in files
        if path not in KEPT
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for word in AVOIDED.finditer(line)
    ]
    assert not found, found
