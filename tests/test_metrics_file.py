import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modeling.files import ModelFolderError
from modeling.metrics_file import read_metrics, read_metrics_of

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def content(scored_folder) -> dict:
    return json.loads((scored_folder / "metrics.json").read_text())


@pytest.fixture
def changed(content, tmp_path):
    """Return a function that writes the metrics with an entry replaced, and reads them."""

    def read(entry: str, value: object) -> dict:
        copy = json.loads(json.dumps(content))
        *parents, last = [int(part) if part.isdigit() else part.replace("~", "/") for part in entry.split("/")]
        place = copy
        for part in parents:
            place = place[part]
        place[last] = value
        (tmp_path / "metrics.json").write_text(json.dumps(copy))
        return read_metrics(tmp_path / "metrics.json")

    return read


def test_the_written_file_is_read_as_it_was_written(scored_folder, content) -> None:
    model = content["model"]
    assert read_metrics_of(scored_folder / "metrics.json", model["codes"], model["weights_sha256"]) == content


def test_what_the_page_shows_is_read_and_what_is_not_declared_is_dropped(changed, content) -> None:
    shown = changed("surprise", {"a": 3})
    assert changed("test/per_class/MEL/surprise", "<script>") == shown
    assert not {"surprise", "training", "groups", "robustness", "val"} & set(shown)
    for *parents, last in (
        ("model", "names"),
        ("test", "balanced_accuracy"),
        ("test", "per_class", "MEL", "recall"),
        ("calibration", "test", "after", "ece"),
        ("baselines", "metadata_only", "sees"),
        ("abstention", "near", "AK", "abstained"),
        ("abstention", "far", "blank", "n_images"),
        ("intervals",),
        ("figures",),
    ):
        ours, written = shown, content
        for part in parents:
            ours, written = ours[part], written[part]
        assert ours[last] == written[last]


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("test/per_class/MEL/recall/value", 1e300),
        ("test/accuracy/value", -0.1),
        ("test/accuracy/value", "0.9"),
        ("test/accuracy/value", True),
        ("test/n_images", 4.5),
        ("test/n_images", -1),
        ("calibration/test/after/nll/value", 1e300),
        ("calibration/test/after/ece/if_calibrated", {"low": 2.0}),
        ("abstention/threshold", 1e300),
        ("abstention/near/AK/abstained/high", 2.0),
        ("groups/sex/male/suppressed", "x" * 501),
        ("groups/sex/male/n_images", 1e300),
        ("operating_points/0/threshold", 1.5),
        ("data/leakage/overall", 7.0),
        ("model/weights_sha256", 3),
        ("model/codes", ["MEL"]),
        ("figures/0/file", "../../etc/passwd.png"),
        ("figures/0/title", "two\nlines"),
        ("training/options/recipe", "x" * 501),
        ("training/options/two\nlines", 3),
        ("training/history/0/train~loss", 1e300),
        ("training", 3),
        ("robustness", json.loads("[" * 100 + "]" * 100)),
        ("", json.loads('{"":' * 100 + "3" + "}" * 100)),
    ],
)
def test_a_value_outside_of_its_meaning_is_refused_and_named(changed, entry, value) -> None:
    with pytest.raises(ModelFolderError, match=r"is damaged, so remove it and make it again with") as error:
        changed(entry, value)
    assert entry.split("/")[0] in str(error.value)
    assert len(str(error.value)) < 800


def test_a_baseline_that_was_not_measured_is_read_as_older_files_have_it(changed) -> None:
    entry = {"reason": "no metadata column varies in train"}
    assert changed("baselines/metadata_only", entry)["baselines"]["metadata_only"] == entry


def test_a_file_about_other_diagnoses_than_its_own_is_refused(changed, content) -> None:
    others = {code.lower(): scores for code, scores in content["test"]["per_class"].items()}
    with pytest.raises(
        ModelFolderError, match=r"make it again with .*: test is not about the diagnoses of model\.codes"
    ):
        changed("test/per_class", others)


def test_a_file_of_another_schema_says_how_to_make_it_again(changed) -> None:
    with pytest.raises(ModelFolderError, match=r"has schema 2 and this version reads 3; remove it and make it again"):
        changed("schema_version", 2)


# ---- docs/metrics.md -------------------------------------------------------------------------------------------------


def tables_of(page: str) -> dict[str, dict[str, str]]:
    """Return the type of each entry, by the name of its table."""
    tables: dict[str, dict[str, str]] = {}
    for name, text in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL):
        tables[name.lower()] = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, flags=re.MULTILINE))
    return tables


def not_described(value: Any, kind: str, tables: dict[str, dict[str, str]], place: str = "") -> Iterator[str]:
    """Yield the places of objects whose keys are in none of the tables that their type names."""
    if isinstance(value, list):
        for item in value:
            yield from not_described(item, kind, tables, place)
    if not isinstance(value, dict):
        return
    table = next((tables[name] for name in re.findall(r"#(\w+)", kind) if set(value) <= set(tables[name])), None)
    if table is None and "by name" not in kind:
        yield place
        return
    for key, item in value.items():
        below = kind.replace("by name", "", 1) if table is None else table[key]
        yield from not_described(item, below, tables, f"{place}.{key}")


def test_the_page_describes_every_entry_of_a_run_and_of_the_released_model(content) -> None:
    tables = tables_of((ROOT / "docs/metrics.md").read_text())
    [released] = ROOT.glob("pretrained/*/metrics.json")
    for metrics in (content, json.loads(released.read_text())):
        assert not list(not_described(metrics, "(#metrics)", tables))
    assert list(not_described({"test": {"surprise": 3}}, "(#metrics)", tables)) == [".test"]
