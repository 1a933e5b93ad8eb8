import json
from pathlib import Path

import pytest

from modeling.files import ModelFolderError
from modeling.metrics_file import read_metrics
from support.metrics_page import metrics_page

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
    assert read_metrics(scored_folder / "metrics.json") == content


def test_entries_that_are_not_declared_are_dropped(changed, content) -> None:
    assert changed("surprise", {"a": 1e300}) == content
    assert changed("test/per_class/MEL/surprise", "<script>") == content


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
        ("calibration/test/after/ece/if_calibrated", {"low": 0.1}),
        ("abstention/threshold", 1e300),
        ("abstention/near/AK/auroc/high", 2.0),
        ("groups/sex/male/suppressed", 7),
        ("groups/sex/male", {"n_images": 1, "n_lesions": 1}),
        ("operating_points/0/threshold", 1.5),
        ("data/leakage/overall", 7.0),
        ("data/protocol", "best"),
        ("model/weights_sha256", "x"),
        ("model/codes", ["MEL"]),
        ("model/engine", "magic"),
        ("figures/0/file", "../../etc/passwd.png"),
        ("figures/0/title", "two\nlines"),
        ("training/options/seed", {"a": 1}),
        ("training/options/recipe", "x" * 501),
        ("training/history/0/train~loss", 1e300),
        ("training", 3),
    ],
)
def test_a_value_outside_of_its_meaning_is_refused_and_named(changed, entry, value) -> None:
    with pytest.raises(ModelFolderError, match=r"is damaged: .*make it again with") as error:
        changed(entry, value)
    assert entry.split("/")[0] in str(error.value)
    assert len(str(error.value)) < 800


def test_a_file_about_other_diagnoses_than_its_own_is_refused(changed, content) -> None:
    with pytest.raises(ModelFolderError, match=r"test is not about the diagnoses of model\.codes"):
        changed("test/confusion", content["test"]["confusion"][:-1])
    others = {code.lower(): scores for code, scores in content["val"]["per_class"].items()}
    with pytest.raises(ModelFolderError, match="val is not about the diagnoses"):
        changed("val/per_class", others)


def test_a_file_of_another_schema_says_how_to_make_it_again(changed) -> None:
    with pytest.raises(ModelFolderError, match=r"has schema 2 and this version reads 3; remove it and make it again"):
        changed("schema_version", 2)


def test_the_reference_page_is_that_of_the_schema() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    assert page == metrics_page(), "run `python tests/support/metrics_page.py > docs/metrics.md`"
