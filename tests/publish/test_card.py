"""The model card and the notebook, rendered from the folder of a real evaluation, and from what other runs would leave."""

import copy
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image, ImageDraw

from modeling.evaluation.external import compare_headlines
from modeling.formatting import format_estimate, format_number
from modeling.labels import ATTRIBUTION, CODES, NOTICE, SYNTHETIC_NOTICE
from modeling.model_folder import UNKNOWN_ORIGIN, config_sha256
from modeling.publish import card as card_module
from modeling.publish.__main__ import main as publish_main
from modeling.publish.card import NOTEBOOK_NAME, THIS_FOLDER, render_card, render_notebook, write_card
from modeling.publish.hub import PublishError
from modeling.publish.push import push_model
from support.hub import HubServer
from support.scored import make_scored_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(scored_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored_folder, tmp_path / "model"))


def edit_metrics(folder: Path, **changes: Any) -> dict[str, Any]:
    """Replace parts of metrics.json by their path, joined by `__`."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = metrics
        for parent in parents:
            place = place[parent]
        place[last] = value
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics


def edit_lesion(folder: Path, **changes: Any) -> None:
    """Replace entries of `lesion` in config.json."""
    config = json.loads((folder / "config.json").read_text())
    config["lesion"] |= changes
    config["lesion"]["config_sha256"] = config_sha256(config)
    (folder / "config.json").write_text(json.dumps(config))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def first_level(folder: Path) -> str:
    return plain(ModelCard(render_card(folder)["README.md"]).text)


def badly(folder: Path) -> str:
    return first_level(folder).split("## What it does badly")[1].split("\n## ")[0]


def number(
    value: float | None, low: float | None = None, high: float | None = None, reason: str = ""
) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "reason": reason}


# ---- Kinds of runs ---------------------------------------------------------------------------------------------------


def real(folder: Path, dataset: str = "isic2019", license_name: str | None = "cc-by-nc-4.0") -> None:
    edit_metrics(folder, data__dataset=dataset, data__synthetic=False, model__license=license_name)
    edit_lesion(folder, dataset=dataset, synthetic=False, license=license_name)


def started(folder: Path, base_model_of_config: str | None, **origin: Any) -> None:
    given = {"name": None, "sha256": None, "base_model": None, "overlap": None, **origin}
    edit_metrics(folder, training__origin=given)
    edit_lesion(folder, base_model=base_model_of_config)


def tested_on_one_source(folder: Path) -> None:
    real(folder)
    edit_metrics(folder, data__test_source="MSK")


def leaking(protocol: str) -> Callable[[Path], None]:
    return lambda folder: [
        real(folder),
        edit_metrics(folder, data__protocol=protocol, data__split_unit="image", data__leakage__overall=0.25),
    ]


def never_abstains(folder: Path) -> None:
    edit_metrics(folder, abstention={"reason": "this model has no abstention rule"})
    edit_lesion(folder, abstention=None)


def renamed(folder: Path, label: str = "<img src=x> | *wart* `x`") -> None:
    """Give a diagnosis a name that a hostile dataset would."""
    for name in ("metrics.json", "config.json"):
        file = folder / name
        file.write_text(file.read_text().replace('"BKL"', json.dumps(label)))
    edit_lesion(folder)


# What is done to a folder, what its card says then, and what it must not say.
KINDS: dict[str, tuple[Callable[[Path], object], list[str], list[str]]] = {
    "demo": (
        lambda folder: None,
        [SYNTHETIC_NOTICE, "Every number below was measured on synthetic images", "It knows nothing of real skin"],
        [ATTRIBUTION, "Skin tone", "artefacts", "Patients", "too good", "drawings too", "may ask for more"],
    ),
    "ISIC 2019": (
        real,
        [ATTRIBUTION, NOTICE, "specialist centres, by source: ", "Skin tone was not measured", "No commercial use"],
        [SYNTHETIC_NOTICE, "synthetic images", "may ask for more", "calibrated probability", "too good"],
    ),
    "a dataset of the Hub": (
        lambda folder: real(folder, "someone/lesions", None),
        ["[someone/lesions](https://huggingface.co/datasets/someone/lesions)", "no licence is stated"],
        [ATTRIBUTION, "this card knows no more"],
    ),
    "a local folder": (
        lambda folder: real(folder, "fold", None),
        ["A local dataset with the name `fold`; this card knows no more about it", "no licence is stated"],
        [ATTRIBUTION, "huggingface.co/datasets", "whose card says"],
    ),
    "random weights": (
        lambda folder: started(folder, None, kind="scratch"),
        ["Training started from random weights."],
        ["ImageNet", "timm/efficientnet"],
    ),
    "ImageNet weights": (
        lambda folder: started(folder, "timm/efficientnet_b0.ra_in1k", kind="pretrained", name="efficientnet_b0"),
        ["Training started from the ImageNet weights `timm/efficientnet_b0.ra_in1k`."],
        ["no record"],
    ),
    "weights of unknown origin": (
        lambda folder: started(
            folder,
            None,
            kind="weights",
            name="w",
            sha256="ab" * 32,
            base_model=UNKNOWN_ORIGIN,
            overlap="could not be checked",
        ),
        [
            "weights `w` (sha256 `abababababab`), whose base model is not recorded.",
            "An overlap with val or test could not be checked.",
        ],
        ["ImageNet", "What training started from", "They were not trained"],
    ),
    "weights of a known model": (
        lambda folder: started(
            folder,
            "timm/efficientnet_b0.ra_in1k",
            kind="weights",
            name="w",
            sha256="ab" * 32,
            base_model="timm/efficientnet_b0.ra_in1k",
            overlap="none, by image, lesion id and near-duplicates",
        ),
        [
            "which are `timm/efficientnet_b0.ra_in1k` or were trained from it.",
            "They were not trained on images of val or test, compared by image, lesion id and near-duplicates.",
        ],
        ["no record", "Whether they"],
    ),
    "an origin that was not recorded": (
        lambda folder: edit_lesion(folder, base_model=None),
        ["What training started from was not recorded."],
        ["ImageNet"],
    ),
    "own splits that leak": (
        leaking("given"),
        ["The splits are the dataset's own.", "also in train: 0.250. **So the scores may be too good.**"],
        ["made by lesion", "scores are too good"],
    ),
    "a random split of images": (leaking("original"), ["split at random", "may be too good"], ["made by lesion"]),
    "a file of splits": (
        leaking("file"),
        ["The splits were given as a file (`--splits`)."],
        ["made by lesion", "at random"],
    ),
    "one source as test": (
        tested_on_one_source,
        [
            "Test is all images of MSK, of which no other split has any",
            "test is of the same dataset, though of a source",
        ],
        ["test comes from the same dataset as train."],
    ),
    "no rule for abstention": (
        never_abstains,
        ["It never abstains (this model has no abstention rule)"],
        ["It abstains on images", "Abstention is for", "Dangerous diagnoses", "OOD score"],
    ),
    "no baseline on metadata": (
        lambda folder: edit_metrics(folder, baselines__metadata_only={"reason": "no metadata column varies in train"}),
        [],
        ["a baseline that sees no pixels"],
    ),
    "a hostile label": (
        renamed,
        ["&lt;img src=x&gt; &#124; &#42;wart&#42; &#96;x&#96;"],
        ["<img", "*wart*", "`x`"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_of_each_kind_of_run_says_what_holds_for_it(folder, kind, monkeypatch):
    change, said, not_said = KINDS[kind]
    change(folder)
    write_card(folder)
    text = first_level(folder)
    assert not [sentence for sentence in said if sentence not in text]
    assert not [sentence for sentence in not_said if sentence in text]
    for page in render_card(folder).values():
        assert not re.search(r"\bNone\b(?! on)", page), re.findall(r".*None.*", page)
        assert_tables_are_rectangular(page)
        assert_links_exist(page, folder)
    with HubServer() as hub:  # its validate-yaml is the offline part of the Hub's
        hub.connect(monkeypatch)
        ModelCard((folder / "README.md").read_text()).validate(repo_type="model")


def assert_tables_are_rectangular(page: str) -> None:
    lines = page.splitlines()
    for place, line in enumerate(lines):
        if not re.fullmatch(r"\|(-{3}\|)+", line):
            continue
        assert place == 1 or not lines[place - 2].strip() or lines[place - 2].startswith("#"), (
            f"no empty line before {lines[place - 1]}"
        )
        for row in [lines[place - 1], *lines[place + 1 :]]:
            if not row.startswith("|"):
                break
            assert row.count("|") == line.count("|"), row


def assert_links_exist(page: str, folder: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page):
        if link.startswith("https://huggingface.co/datasets/"):
            assert link.endswith("someone/lesions")
        elif not link.startswith("https://doi.org/"):
            assert (folder / link.split("#")[0]).is_file(), link


def test_the_longest_first_level_has_at_most_900_words(folder, external_json):
    real(folder)
    for place, name in enumerate(("clinic", "hospital")):
        other = json.loads(external_json.read_text())
        other["data"]["dataset"] = f"{name}/photos"
        (folder / "external").mkdir(exist_ok=True)
        (folder / "external" / f"{name}.json").write_text(json.dumps(other))
        assert place < 2
    with_seeds(folder)
    words = [word for word in first_level(folder).split() if re.search(r"\w", word)]
    assert 600 < len(words) <= 900


def with_seeds(folder: Path) -> None:
    rows = [{"seed": seed, "balanced_accuracy": 0.77, "MEL/recall": 0.8, "recall on MSK": 0.7} for seed in (42, 43, 44)]
    rows.append({"seed": "mean ± SD", "balanced_accuracy": "0.770 ± 0.000", "MEL/recall": "–", "recall on MSK": "–"})
    elsewhere = [{"Trained on": "A", "Tested on": "B, 2,745 images", "MEL/recall": 0.367}]
    (folder / "seeds.json").write_text(json.dumps({"seeds": rows, "elsewhere": elsewhere}))


def test_other_seeds_are_a_table(folder):
    assert "random seeds" not in first_level(folder).lower()
    with_seeds(folder)
    text = first_level(folder)
    assert "| Seed | Balanced accuracy | Melanoma recall | recall on MSK |" in text
    assert "| 43 | 0.770 | 0.800 | 0.700 |" in text
    assert "| mean ± SD | 0.770 ± 0.000 | – | – |" in text
    assert "| Trained on | Tested on | Melanoma recall |\n|---|---|---|\n| A | B, 2,745 images | 0.367 |" in text


# ---- Front matter ----------------------------------------------------------------------------------------------------


def test_the_front_matter_is_what_the_hub_reads(scored_folder):
    data = ModelCard(render_card(scored_folder)["README.md"]).data
    metrics = json.loads((scored_folder / "metrics.json").read_text())
    assert data.license == "apache-2.0"  # synthetic images of this package's own
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-classification"
    assert data.datasets is None  # "demo" is no dataset of the Hub
    assert {"dermoscopy", "synthetic"} <= set(data.tags)
    assert (data.base_model, data.base_model_relation) == ("timm/efficientnet_b0.ra_in1k", "finetune")
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert set(data.metrics) == set(results)
    assert results["balanced_accuracy"] == metrics["test"]["balanced_accuracy"]["value"]
    assert {result.dataset_name for result in data.eval_results} == {"synthetic images, split by lesion"}


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        (lambda folder: real(folder), "datasets", None),
        (lambda folder: real(folder, "fold"), "datasets", None),
        (lambda folder: real(folder, "someone/lesions"), "datasets", ["someone/lesions"]),
        (lambda folder: edit_lesion(folder, base_model=UNKNOWN_ORIGIN), "base_model", None),
        (lambda folder: edit_lesion(folder, base_model=None), "base_model", None),
        (lambda folder: real(folder, "fold", None), "license", None),
    ],
)
def test_the_front_matter_names_nothing_that_does_not_exist(folder, change, field, value):
    change(folder)
    assert getattr(ModelCard(render_card(folder)["README.md"]).data, field, None) == value


@pytest.mark.parametrize(
    ("change", "name"),
    [(leaking("given"), "split by image"), (tested_on_one_source, "test of source MSK")],
)
def test_the_model_index_says_how_the_test_was_split(folder, change, name):
    change(folder)
    results = ModelCard(render_card(folder)["README.md"]).data.eval_results
    assert all(result.dataset_name.endswith(name) for result in results)


def test_examples_are_a_gallery_with_licence_and_attribution(folder):
    assert "<Gallery" not in first_level(folder)
    (folder / "examples").mkdir()
    entries = [{"file": "1_MEL.jpg", "diagnosis": "MEL"}, {"file": "2_no_lesion.jpg", "diagnosis": None}]
    listed = {"examples": entries, "license": "cc-by-nc-4.0", "attribution": "(c) <ViDIR>"}
    (folder / "examples" / "examples.json").write_text(json.dumps(listed))
    card = ModelCard(render_card(folder)["README.md"])
    assert "<Gallery />" in card.text
    assert "Example images: cc-by-nc-4.0. (c) &lt;ViDIR&gt;" in card.text
    assert card.data.to_dict()["widget"] == [
        {"text": "melanoma", "output": {"url": "examples/1_MEL.jpg"}},
        {"text": "no lesion", "output": {"url": "examples/2_no_lesion.jpg"}},
    ]


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def numbers_of(value: Any) -> list[str]:
    """Return how the card writes each number of a metrics.json."""
    if isinstance(value, dict):
        if "value" in value:
            return [format_estimate(value)]
        return [text for item in value.values() for text in numbers_of(item)]
    if isinstance(value, list):
        return [text for item in value for text in numbers_of(item)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    return [f"{value:,}" if isinstance(value, int) else format_number(value)]


def test_each_number_of_the_first_level_is_one_of_the_metrics(scored_folder):
    metrics = json.loads((scored_folder / "metrics.json").read_text())
    text = first_level(scored_folder).split("## Citation")[0]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    known = {number for written in numbers_of(metrics) for number in re.findall(r"[\d.,]+", plain(written))}
    known |= {f"{point['target_sensitivity']:.2f}" for point in metrics["operating_points"]}
    said = re.findall(r"(?<![\w@.-])\d[\d,]*(?:\.\d+)?(?![\w.]*\d)", text)
    assert len(said) > 60
    changes = metrics["robustness"]["changes"]
    # Counted, or in the name of something: diagnoses, changes, 95 % intervals, the version of the licence, brightness -20 %.
    named = {
        str(len(metrics["model"]["codes"])),
        str(len(changes)),
        "95",
        "2.0",
        *re.findall(r"\d+", " ".join(changes)),
    }
    assert not set(said) - known - named


def test_sensitivity_and_specificity_of_each_operating_point_come_before_the_intended_use(scored_folder):
    metrics = json.loads((scored_folder / "metrics.json").read_text())
    lines = first_level(scored_folder).splitlines()
    shown = [point for point in metrics["operating_points"] if point["target_sensitivity"] == 0.95]
    assert [point["name"] for point in shown] == ["MEL@95", "malignant@95"]
    for point in shown:
        row = next(line for line in lines if line.startswith(f"| {point['name']} |"))
        assert all(plain(format_estimate(point["test"][name])) in row for name in ("sensitivity", "specificity"))
        assert lines.index(row) < lines.index("## Intended use")


def recalls(**values: float | None) -> dict[str, Any]:
    return {f"test__per_class__{code}__recall": number(value) for code, value in values.items()}


def flips(folder: Path, **values: float) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, change in metrics["robustness"]["changes"].items():
        change["flip_rate"] = number(values.get(name, 0.0))
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_the_lowest_recall_is_named_with_its_ties_and_only_if_one_is_lower(folder):
    edit_metrics(folder, **recalls(BCC=0.5, BKL=0.25, MEL=0.75, NV=1.0))
    assert "Lowest recall: BKL, 0.250 (no interval)." in badly(folder)
    edit_metrics(folder, **recalls(BCC=0.0, BKL=0.0, MEL=0.0, NV=1.0))
    assert "Lowest recall: BCC and BKL and MEL, 0.000 each." in badly(folder)
    edit_metrics(folder, **recalls(BCC=0.5, BKL=0.5, MEL=0.5, NV=0.5))
    assert "Its recall is 0.500 for every diagnosis." in badly(folder)
    edit_metrics(folder, **recalls(BCC=1.0, BKL=1.0, MEL=1.0, NV=1.0))
    assert "recall" not in badly(folder).lower()


def test_a_diagnosis_that_test_lacks_is_named(folder):
    edit_metrics(folder, **recalls(BKL=None), test__diagnoses=["BCC", "MEL", "NV"])
    assert "Test has no image of BKL: nothing is known about its recall." in badly(folder)
    assert "mean recall over BCC, MEL, NV |" in first_level(folder)


def test_worse_than_the_baseline_and_miscalibrated_are_named_where_they_hold(folder):
    baseline = "baselines__metadata_only__model_minus_baseline"
    edit_metrics(folder, **{baseline: number(0.3, 0.2, 0.4)})
    edit_metrics(
        folder, calibration__test__after__ece={"value": 0.1, "if_calibrated": {"low": 0.0, "high": 0.2}, "reason": ""}
    )
    assert "baseline" not in badly(folder)
    assert "miscalibrated" not in badly(folder)
    edit_metrics(folder, **{baseline: number(-0.1, -0.2, 0.05)})
    assert "It is worse than the baseline that sees no pixels: difference in balanced accuracy -0.100" in badly(folder)
    edit_metrics(folder, **{baseline: number(0.1, -0.1, 0.3)})
    assert "It is not shown to be better than the baseline that sees no pixels" in badly(folder)
    edit_metrics(
        folder, calibration__test__after__ece={"value": 0.3, "if_calibrated": {"low": 0.0, "high": 0.2}, "reason": ""}
    )
    assert "It is miscalibrated on test: ECE 0.300 (0.000 to 0.200 if perfectly calibrated)." in badly(folder)


def test_nothing_is_called_worst_where_nothing_is_bad(folder):
    flips(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["abstention"]["far"] = {
        kind: {**found, "abstained": number(1.0)} for kind, found in metrics["abstention"]["far"].items()
    }
    metrics["abstention"]["test"]["abstained"] = number(0.0)
    for point in metrics["operating_points"]:
        point["test"]["sensitivity"] = number(1.0)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for word in ("image changes tried", "Lowest abstention rate", "Abstention is for", "below the target"):
        assert word not in badly(folder)
    names = list(metrics["robustness"]["changes"])
    flips(folder, **{names[0]: 0.2, names[2]: 0.2})
    tried = f"Of {len(names)} image changes tried on {metrics['robustness']['n_images']} test images"
    assert f"{tried}, {names[0]} and {names[2]} alter the most predictions: 0.200 each." in badly(folder)
    flips(folder, **{names[1]: 0.2})
    assert f"{tried}, {names[1]} alters the most predictions: 0.200 (no interval)." in badly(folder)


@pytest.mark.parametrize(("auroc", "named"), [(0.4, True), (0.5, False), (None, False)])
def test_dangerous_diagnoses_that_look_more_familiar_than_test_are_named(folder, auroc, named):
    metrics = json.loads((folder / "metrics.json").read_text())
    for kind in metrics["abstention"]["near"].values():
        kind["auroc"] = number(auroc)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert "Dangerous diagnoses that it does not know: actinic keratosis, 8 images: abstention rate " in badly(folder)
    sentence = (
        "as more familiar than the test images: actinic keratosis, AUROC 0.400; squamous cell carcinoma, AUROC 0.400."
    )
    assert (sentence in badly(folder)) == ("familiar than" in badly(folder)) == named


def test_a_missed_target_sensitivity_is_named(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["operating_points"][1]["test"]["sensitivity"] = number(0.5, 0.25, 0.75)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    point = metrics["operating_points"][1]
    assert f"Sensitivity below the target of 0.95 on test: {point['name']} 0.500 (0.250 to 0.750)." in badly(folder)


# ---- External validation ---------------------------------------------------------------------------------------------


@pytest.fixture
def external_json(scored_folder: Path, tmp_path: Path) -> Path:
    """An external evaluation's metrics.json, compared with the model's own by the functions that write it."""
    own = json.loads((scored_folder / "metrics.json").read_text())
    other = copy.deepcopy(own)
    other["data"] |= {"dataset": "clinic/photos", "protocol": "external", "synthetic": False}
    other["test"]["balanced_accuracy"] = number(0.61, 0.55, 0.67)
    slope = {"excess_probability": number(0.1), "slope": number(1.1)}
    other["external"] = {
        "compared_by": "image id and perceptual hash",
        "left_out": {"the same image id": 7},
        "headline": compare_headlines(own, other),
        "calibration": dict.fromkeys(own["model"]["codes"], slope),
        "challenge": {"reason": "not the official test of ISIC 2019"},
    }
    path = tmp_path / "external.json"
    path.write_text(json.dumps(other))
    return path


def test_an_external_validation_is_a_table_and_in_the_model_index(folder, external_json):
    assert "No external validation" in first_level(folder)
    (folder / "external").mkdir()
    shutil.copyfile(external_json, folder / "external" / "clinic.json")
    headline = json.loads(external_json.read_text())["external"]["headline"]
    text = first_level(folder)
    for name in ("balanced_accuracy", "macro_auroc", "MEL/recall", "MEL@95/sensitivity", "MEL@95/specificity"):
        cells = [plain(format_estimate(headline[name][side])) for side in ("internal", "external")]
        assert f"| {card_module.TITLES[name]} | {' | '.join(cells)} |" in text
    assert "No external validation" not in text
    results = ModelCard(render_card(folder)["README.md"]).data.eval_results
    found = {result.metric_type: result.metric_value for result in results if result.dataset_type == "clinic/photos"}
    assert found["balanced_accuracy"] == 0.61
    assert len(found) == 4


def test_what_is_no_external_validation_of_this_model_is_refused(folder, external_json):
    (folder / "external").mkdir()
    kept = folder / "external" / "clinic.json"
    shutil.copyfile(folder / "metrics.json", kept)
    with pytest.raises(PublishError, match="external has scores that are no external validation"):
        render_card(folder)
    other = json.loads(external_json.read_text())
    other["model"]["weights_sha256"] = "0" * 64
    kept.write_text(json.dumps(other))
    with pytest.raises(PublishError, match=r"clinic\.json is of another model"):
        render_card(folder)
    kept.unlink()
    shutil.copyfile(external_json, folder / "metrics.json")
    with pytest.raises(PublishError, match=r"metrics\.json is an external validation, not the model's own scores"):
        render_card(folder)


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_the_released_card_is_what_its_templates_give():
    [released] = [path.parent for path in ROOT.glob("pretrained/*/metrics.json")]
    for name, content in {**render_card(released), NOTEBOOK_NAME: render_notebook(released)}.items():
        assert (released / name).read_text(encoding="utf-8") == content, f"python -m modeling.publish card {released}"


def test_a_misspelt_placeholder_fails_instead_of_vanishing(folder, tmp_path, monkeypatch):
    for name in (*card_module.TEMPLATES.values(), card_module.SENTENCES):
        template = (card_module.ROOT / name).read_text().replace("test.macro_auroc", "test.macro_aurok")
        (tmp_path / name).write_text(template)
    monkeypatch.setattr(card_module, "ROOT", tmp_path)
    with pytest.raises(PublishError, match="macro_aurok"):
        render_card(folder)


def test_missing_metrics_say_what_to_do(folder):
    (folder / "metrics.json").unlink()
    with pytest.raises(PublishError, match=r"has no metrics\.json; make it with `python -m modeling\.evaluation"):
        render_card(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 3}', '{"model": NaN}', "[" * 10**5])
def test_damaged_metrics_give_no_card_but_a_sentence(folder, content, capsys):
    (folder / "metrics.json").write_text(content)
    assert publish_main(["card", str(folder)]) == 1
    assert "metrics.json" in capsys.readouterr().err
    assert not (folder / "README.md").exists()


def test_scores_of_other_labels_or_weights_give_no_card(folder):
    edit_metrics(folder, model__codes=["BCC", "BKL", "NV", "MEL"])
    with pytest.raises(
        PublishError, match=r"metrics\.json is of another model: its weights_sha256 or diagnoses differ"
    ):
        render_card(folder)


def test_an_unpublished_card_names_the_folder_and_a_push_the_repository(folder, monkeypatch, capsys):
    before = {path.name for path in folder.iterdir()}
    assert publish_main(["card", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    assert {path.name for path in folder.iterdir()} - before == {"README.md", "evaluation.md", NOTEBOOK_NAME}
    card = (folder / "README.md").read_text()
    assert f'LesionClassifier.from_pretrained("{THIS_FOLDER}")' in card
    assert f'timm.create_model("local-dir:{THIS_FOLDER}"' in card
    assert "me/" not in card
    with HubServer() as hub:
        hub.connect(monkeypatch)
        push_model(folder, "me/lesions")
        pages = hub.repo("me/lesions").files()
        card = pages["README.md"].decode()
        assert 'LesionClassifier.from_pretrained("me/lesions")' in card
        assert 'timm.create_model("hf-hub:me/lesions"' in card
        assert "url     = {https://huggingface.co/me/lesions}" in card
        assert 'MODEL = \\"me/lesions\\"' in pages[NOTEBOOK_NAME].decode()
        assert not any(THIS_FOLDER.encode() in content for content in pages.values())
        assert not push_model(folder, "me/lesions").changed


def test_the_notebook_runs_from_top_to_bottom_and_agrees_with_the_classifier(folder, tmp_path, monkeypatch, capsys):
    photo = Image.new("RGB", (90, 64), (224, 176, 150))
    ImageDraw.Draw(photo).ellipse((20, 12, 60, 50), fill=(96, 58, 40))
    (folder / "examples").mkdir()
    photo.save(folder / "examples" / "1_NV.jpg")
    listed = {"examples": [{"file": "1_NV.jpg", "diagnosis": "NV"}], "license": "apache-2.0", "attribution": "ours"}
    (folder / "examples" / "examples.json").write_text(json.dumps(listed))
    (folder / NOTEBOOK_NAME).write_text(render_notebook(folder))
    spec = importlib.util.spec_from_file_location("run_notebook", ROOT / ".ci" / "notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["notebook.py", str(folder)])
    assert module.main() == 0
    assert "all cells ran" in capsys.readouterr().out


@pytest.mark.slow
def test_eight_diagnoses_and_diagnoses_without_melanoma_have_true_cards(tmp_path):
    for name in ("eight", "benign"):
        (tmp_path / name).mkdir()
    eight = make_scored_folder(tmp_path / "eight", codes=CODES)
    text = first_level(eight)
    assert all(f"| {code} | " in text for code in CODES)
    assert "top_k=8" in text
    assert len([word for word in text.split() if re.search(r"\w", word)]) <= 900
    benign = first_level(make_scored_folder(tmp_path / "benign", codes=("BKL", "DF", "NV"), abstention=False))
    assert "Operating" not in benign
    assert "MEL" not in benign.split("## What it does badly")[0]
