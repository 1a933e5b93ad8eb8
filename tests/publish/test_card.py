"""The model card, rendered from a metrics.json that the evaluation itself wrote."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from modeling.data.splits import make_splits
from modeling.evaluation.baselines import metadata_only_predictions
from modeling.evaluation.bootstrap import bootstrap_lesions, estimate_rate
from modeling.evaluation.context import metadata_table
from modeling.evaluation.external import headline_rows, mix_rows
from modeling.formatting import format_estimate, format_number
from modeling.labels import ATTRIBUTION, CODES, NOTICE, REFERENCE_CODES, SYNTHETIC_NOTICE, diagnosis_of
from modeling.model_folder import config_sha256
from modeling.publish import card as card_module
from modeling.publish.__main__ import main as publish_main
from modeling.publish.card import render_card, write_card
from modeling.publish.hub import PublishError
from modeling.publish.push import push_model
from stress import fuzz_config
from support.scored import draw_dataset


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


def both_pages(folder: Path) -> str:
    """The first level and evaluation.md, one after the other, as plain text."""
    return plain("".join(render_card(folder).values()))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def numbers_of(value: Any, path: str = "") -> list[tuple[str, str]]:
    """Return where each number of a metrics.json stands, and how the card must write it."""
    if isinstance(value, dict):
        if "value" in value and ("low" in value or set(value) == {"value"}):
            return [(path, format_estimate(value))]
        return [entry for key, item in value.items() for entry in numbers_of(item, f"{path}/{key}")]
    if isinstance(value, list):
        return [entry for place, item in enumerate(value) for entry in numbers_of(item, f"{path}/{place}")]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    if isinstance(value, int):
        return [(path, f"{value:,}")]
    return [(path, format_number(value, 4 if path.endswith("/threshold") else 3))]


def value_of(number: dict[str, Any]) -> float:
    assert number["low"] is None or number["low"] <= number["value"] <= number["high"]
    return number["value"]


def test_each_score_follows_from_predictions_csv(scored_folder):
    """Computed anew, by other means, from what is published beside the model: no score is of another split or unit."""
    metrics = json.loads((scored_folder / "metrics.json").read_text())
    table, codes = pd.read_csv(scored_folder.parent / "predictions.csv"), list(REFERENCE_CODES)
    fitted = metrics["calibration"]["fitted"]
    for split in ("val", "test"):
        rows = table[table["split"] == split]
        probs, labels = rows[codes].to_numpy(), rows["label"].map(codes.index).to_numpy()
        raw = np.exp((np.log(probs) - fitted["bias"]) / fitted["scale"])
        raw /= raw.sum(axis=1, keepdims=True)
        for name, values in (("before", raw), ("after", probs)):
            nll = -np.log(values[np.arange(len(values)), labels]).mean()
            assert value_of(metrics["calibration"][split][name]["nll"]) == pytest.approx(nll, abs=1e-4)
        auroc = roc_auc_score(labels, probs / probs.sum(axis=1, keepdims=True), multi_class="ovr")
        assert value_of(metrics[split]["macro_auroc"]) == pytest.approx(auroc, abs=1e-5)
        assert metrics[split]["n_lesions"] == rows["lesion_id"].nunique() < len(rows)
        hits = estimate_rate(
            rows["predicted"].map(codes.index).to_numpy() == labels,
            labels >= 0,
            bootstrap_lesions(rows["lesion_id"].to_numpy()),
            reason="",
        )
        assert metrics[split]["accuracy"] == pytest.approx(hits, abs=1e-6)
        for point in metrics["operating_points"]:
            positive = rows["label"].isin(point["codes"])
            reached = rows[point["codes"]].sum(axis=1) >= point["threshold"]
            found = point[split]
            sensitivity, specificity = (
                number if split == "val" else value_of(number)
                for number in (found["sensitivity"], found["specificity"])
            )
            assert sensitivity == pytest.approx(reached[positive].mean(), abs=1e-6)
            assert specificity == pytest.approx((~reached)[~positive].mean(), abs=1e-6)
            missed = sorted(rows["image_id"][positive & ~reached])
            if split == "test":
                assert metrics["failures"]["missed"][point["name"]] == {"n_images": len(missed), "image_ids": missed}
            else:
                assert (found["n_positive"], found["n_negative"]) == (positive.sum(), (~positive).sum())
    # What follows is of test, the last of the two.
    answers = rows["predicted"].map(codes.index).to_numpy()
    confidence, right = probs[np.arange(len(probs)), answers], answers == labels
    for name, values in (("before", raw), ("after", probs)):
        bins = pd.DataFrame(metrics["calibration"]["reliability"][name])
        assert np.average(bins["confidence"], weights=bins["n_images"]) == pytest.approx(
            values.max(axis=1).mean(), abs=1e-5
        )
        assert np.average(bins["correct"], weights=bins["n_images"]) == pytest.approx(
            (values.argmax(axis=1) == labels).mean(), abs=1e-5
        )
    lesions = rows.groupby(["lesion_id", "label"])[codes].mean()  # near-duplicates may have two labels
    lesion_labels = lesions.index.get_level_values("label").map(codes.index)
    auroc = roc_auc_score(lesion_labels, lesions.div(lesions.sum(axis=1), axis=0), multi_class="ovr")
    assert value_of(metrics["test"]["by_lesion"]["macro_auroc"]) == pytest.approx(auroc, abs=1e-5)
    risk = np.cumsum(~right[np.argsort(-confidence, kind="stable")]) / np.arange(1, len(rows) + 1)
    assert metrics["risk_coverage"]["aurc"] == pytest.approx(risk.mean(), abs=1e-5)
    assert metrics["risk_coverage"]["risk_at_coverage"] == pytest.approx(
        {f"{share:.2f}": risk[round(share * len(rows)) - 1] for share in (1.0, 0.9, 0.8, 0.5)}, abs=1e-5
    )
    worst = rows[~right].assign(probability=confidence[~right])
    worst = worst.sort_values(["probability", "image_id"], ascending=[False, True]).head(10)
    assert metrics["failures"]["most_confident"] == worst[["image_id", "label", "predicted", "probability"]].to_dict(
        "records"
    )
    answered, abstention = ~rows["abstained"].to_numpy(), metrics["abstention"]["test"]
    assert 0 < answered.sum() < len(rows)
    assert value_of(abstention["abstained"]) == pytest.approx(1 - answered.mean(), abs=1e-6)
    assert abstention["answered"]["n_images"] == answered.sum()
    assert value_of(abstention["answered"]["accuracy"]) == pytest.approx(right[answered].mean(), abs=1e-6)
    assert value_of(abstention["answered"]["balanced_accuracy"]) == pytest.approx(
        balanced_accuracy_score(labels[answered], answers[answered]), abs=1e-6
    )


def test_data_and_baselines_follow_from_the_dataset_and_its_splits(scored_folder, tmp_path):
    dataset = draw_dataset(tmp_path / "masks")
    metrics, splits = (
        json.loads((scored_folder / "metrics.json").read_text()),
        make_splits(dataset, diagnoses=REFERENCE_CODES),
    )
    table = metadata_table(dataset)
    flow = metrics["data"]["flow"]
    assert flow["skipped"] == 3
    assert flow["other_diagnoses"] == dict.fromkeys(sorted(set(CODES) - set(REFERENCE_CODES)), 8)
    assert metrics["data"]["sources"] == table.loc[splits["image_id"]].groupby("source").size().to_dict()
    assert metrics["data"]["split_unit"] == metrics["data"]["protocol"] == "lesion"
    for split, found in flow["splits"].items():
        part = splits[splits["split"] == split]
        lesions = part["lesion_id"].fillna(part["image_id"])
        assert (found["n_images"], found["n_lesions"]) == (len(part), lesions.nunique())
        assert found["per_class"] == part.groupby("label").size().to_dict()
    train, test = (table.loc[splits["image_id"][splits["split"] == split]] for split in ("train", "test"))
    baselines = metrics["baselines"]
    labels = np.array([REFERENCE_CODES.index(code) for code in test["label"]])
    calls = metadata_only_predictions(train, test, REFERENCE_CODES)
    assert value_of(baselines["metadata_only"]["accuracy"]) == pytest.approx((calls == labels).mean(), abs=1e-6)
    assert baselines["model"]["balanced_accuracy"] == metrics["test"]["balanced_accuracy"]
    masks = metrics["heat_maps"]["masks"]
    assert masks["n_without_mask"] == 0
    assert masks["mean_lesion_fraction"] == pytest.approx(np.pi * 18**2 / 64**2, abs=0.02)
    # Four lesions of two photos each, one of them without its id: those two photos stand for themselves.
    for near in metrics["abstention"]["near"].values():
        assert (near["n_images"], near["n_lesions"]) == (8, 5)
        assert value_of(near["auroc"]) >= 0
    assert all(value_of(far["auroc"]) >= 0 for far in metrics["abstention"]["far"].values())


# Drawn in figures, or settings of the measurement that the text gives in its own words.
NOT_IN_TEXT = (
    "/schema_version",
    "/intervals/level",
    "/training/history",
    "/training/options",
    "/calibration/reliability",
    "/false_alarm_rate",
    "/target_sensitivity",
    "/n_positive",
    "/n_negative",
    "/groups",  # suppressed numbers are left out; tested on its own
)


def test_each_number_of_the_metrics_stands_in_the_evaluation(scored_folder):
    card = plain(render_card(scored_folder)["evaluation.md"])
    metrics = json.loads((scored_folder / "metrics.json").read_text())
    wanted = [(path, text) for path, text in numbers_of(metrics) if not any(part in path for part in NOT_IN_TEXT)]
    missing = [
        f"{path}: {text}" for path, text in wanted if not re.search(rf"(?<![\d.]){re.escape(plain(text))}(?!\d)", card)
    ]
    assert len(wanted) > 300
    assert not missing


@pytest.mark.parametrize(
    "section",
    ["test", "baselines", "abstention", "operating_points", "calibration", "heat_maps", "robustness", "risk_coverage"],
)
def test_a_changed_number_changes_the_card(folder, section):
    before = render_card(folder)
    metrics = json.loads((folder / "metrics.json").read_text())

    def bump(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bump(item) for key, item in value.items()}
        if isinstance(value, list):
            return [bump(item) for item in value]
        # Towards the middle: a rate stays one.
        return value + (0.012345 if value < 0.5 else -0.012345) if isinstance(value, float) else value

    metrics[section] = bump(metrics[section])
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert render_card(folder) != before


def test_groups_stand_in_the_card_and_small_ones_are_suppressed(scored_folder):
    card = plain(render_card(scored_folder)["evaluation.md"])
    groups = json.loads((scored_folder / "metrics.json").read_text())["groups"]
    seen = {"suppressed": 0, "shown": 0}
    for name, values in groups.items():
        if name == "not_measured":
            continue
        for group, scores in values.items():
            row = next(line for line in card.splitlines() if line.startswith(f"| {name} | {group} |"))
            if "suppressed" in scores:
                assert "| suppressed |" in row
                seen["suppressed"] += 1
            else:
                assert plain(format_estimate(scores["balanced_accuracy"])) in row
                seen["shown"] += 1
    assert min(seen.values()) > 0
    assert "**Not measured: skin tone.**" in card


def test_the_front_matter_is_what_the_hub_reads(scored_folder):
    data = ModelCard(render_card(scored_folder)["README.md"]).data
    metrics = json.loads((scored_folder / "metrics.json").read_text())
    assert data.license == "apache-2.0"  # drawings of this package's own
    assert data.library_name == "timm"
    assert data.pipeline_tag == "image-classification"
    assert data.datasets == ["demo"]
    assert {"dermoscopy", "synthetic"} <= set(data.tags)
    assert data.base_model == "timm/efficientnet_b0.ra_in1k"
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert set(data.metrics) == set(results)
    assert results["balanced_accuracy"] == metrics["test"]["balanced_accuracy"]["value"]
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_a_network_trained_from_scratch_names_no_base_model(folder):
    edit_lesion(folder, base_model=None)
    pages = render_card(folder)
    assert ModelCard(pages["README.md"]).data.base_model is None
    for page in pages.values():
        assert "What training started from was not recorded." in page


@pytest.mark.parametrize(
    ("origin", "sentence"),
    [
        ({"kind": "scratch"}, "Training started from random weights."),
        ({"kind": "pretrained", "name": "b0"}, "from the ImageNet weights `timm/efficientnet_b0.ra_in1k`."),
        (
            {
                "kind": "weights",
                "name": "lite0",
                "sha256": "ab" * 32,
                "base_model": "unknown origin",
                "overlap": "unknown",
            },
            "from the weights `lite0` (sha256 `abababababab`; unknown origin). Images of val and test among those that these "
            "weights were trained on: unknown.",
        ),
    ],
)
def test_the_card_says_what_training_started_from_and_never_what_not(folder, origin, sentence):
    edit_metrics(folder, training__origin=origin)
    for page in render_card(folder).values():
        assert sentence in page
        assert "did not start" not in page


@pytest.mark.parametrize("leak", [0.0, 0.25])
@pytest.mark.parametrize(
    ("protocol", "unit"), [("lesion", "**lesion**"), ("given", "dataset's own"), ("original", "**image**")]
)
def test_scores_are_said_to_be_too_good_where_and_only_where_the_split_leaks(folder, protocol, unit, leak):
    edit_metrics(folder, data__protocol=protocol, data__leakage__overall=leak)
    for page in render_card(folder).values():
        assert unit in page
        assert f"also in train): {leak:.3f}." in page
        assert ("too good**" in page) == (leak > 0)


def test_images_in_no_split_have_a_row_in_the_flow(folder):
    flow = json.loads((folder / "metrics.json").read_text())["data"]["flow"]
    left = flow["in_dataset"] - sum(flow["other_diagnoses"].values())
    assert left == sum(part["n_images"] for part in flow["splits"].values())
    assert "in no split" not in render_card(folder)["evaluation.md"]
    edit_metrics(folder, data__flow__in_dataset=flow["in_dataset"] + 7)
    (row,) = [line for line in render_card(folder)["evaluation.md"].splitlines() if "in no split" in line]
    assert row.endswith("| 7 |")


def test_a_card_of_synthetic_data_says_so_before_anything_else(scored_folder):
    body = ModelCard(render_card(scored_folder)["README.md"]).text
    first = body.strip().splitlines()[2]
    assert first.startswith("> **A demonstration on synthetic data.")
    assert SYNTHETIC_NOTICE in first
    assert body.index(NOTICE) < body.index("## ")
    assert ATTRIBUTION not in body


def test_a_card_of_isic_2019_gives_attribution_and_no_word_of_drawings(folder):
    edit_metrics(folder, data__dataset="isic2019", data__synthetic=False)
    edit_lesion(folder, license="cc-by-nc-4.0", synthetic=False)
    card = ModelCard(render_card(folder)["README.md"])
    assert card.data.license == "cc-by-nc-4.0"
    assert ATTRIBUTION in card.text
    assert NOTICE in card.text
    assert SYNTHETIC_NOTICE not in card.text
    assert "synthetic" not in card.data.tags
    assert card.data.datasets == ["isic2019"]


def test_a_card_of_somebody_elses_data_claims_no_licence(folder):
    edit_metrics(folder, data__dataset="someone/lesions", data__synthetic=False)
    edit_lesion(folder, license=None, synthetic=False)
    card = ModelCard(render_card(folder)["README.md"])
    assert card.data.license is None
    assert "no licence is stated" in card.text
    assert ATTRIBUTION not in card.text


def test_what_was_not_measured_is_said_with_its_reason(folder):
    not_estimable = {"value": None, "low": None, "high": None, "reason": "no image was predicted MEL"}
    metrics = json.loads((folder / "metrics.json").read_text())
    points = [{"name": point["name"], "reason": "not fitted: val lacks them"} for point in metrics["operating_points"]]
    groups = copy.deepcopy(metrics["groups"])
    for name in ("source", "sex", "age_years", "site"):
        groups[name] = {group: {"n_images": 1, "n_lesions": 1, "suppressed": "few"} for group in groups[name]}
    edit_metrics(
        folder,
        val={"reason": "the splits have no val images"},
        calibration__val={"reason": "the splits have no val images"},
        operating_points=points,
        abstention={"reason": "this model has no abstention rule"},
        baselines={"reason": "there is no train split"},
        groups=groups,
        heat_maps__masks={"reason": "no lesion masks were given"},
        reference={"reason": "no comparison"},
        test__macro_f1=not_estimable,
        failures={"most_confident": [], "missed": {}},
        training={"options": {}, "history": [], "best_epoch": None, "selection": "balanced accuracy"},
    )
    card = both_pages(folder)
    for reason in (
        "the splits have no val images",
        "not fitted: val lacks them",
        "Not measured: this model has no abstention rule",
        "Not measured: there is no train split",
        "Against lesion masks: not measured, no lesion masks were given",
        "Not compared: no comparison",
        "not estimable: no image was predicted MEL",
        "none on this test split",
        "options of its training were not recorded",
    ):
        assert reason in card, reason
    assert "None" not in card


def test_every_table_has_as_many_cells_in_each_row_as_in_its_head(scored_folder):
    lines = both_pages(scored_folder).splitlines()
    n_tables = 0
    for place, line in enumerate(lines):
        if not re.fullmatch(r"\|(-{3}\|)+", line):
            continue
        n_tables += 1
        n_cells = line.count("|")
        rows = [lines[place - 1]]
        for row in lines[place + 1 :]:
            if not row.startswith("|"):
                break
            rows.append(row)
        for row in rows:
            assert len(re.findall(r"(?<!\\)\|", row)) == n_cells, row
    assert n_tables >= 20


def test_every_figure_of_the_card_is_in_the_folder_and_every_figure_is_shown(scored_folder):
    linked = set(re.findall(r"!\[[^\]]+\]\(figures/([^)]+)\)", both_pages(scored_folder)))
    assert linked == {path.name for path in (scored_folder / "figures").iterdir()}


HEADINGS = {
    "README.md": (
        "## Intended use",
        "### Out-of-scope use",
        "## How to load it",
        "## What it does badly",
        "## Data and split",
        "## Licence and attribution",
        "## Citation",
    ),
    "evaluation.md": (
        "### Source of data and reference standard",
        "### Participants, data flow and exclusions",
        "### Split unit and leakage",
        "### Predictors, missing data and sample size",
        "### Calibration",
        "### Operating points",
        "### When it should not answer",
        "### Fairness: scores by source, sex, age and body site",
        "## Failure cases",
        "## Comparison with the reference system, like for like",
        "## Provenance",
    ),
}


def test_a_reviewer_finds_each_heading(scored_folder):
    for name, page in render_card(scored_folder).items():
        assert not set(HEADINGS[name]) - set(page.splitlines())


def as_real_model_of_eight_diagnoses(folder: Path) -> None:
    """Make the longest card there is: all diagnoses, real data with their attribution, nothing left out."""
    metrics = edit_metrics(folder, data__dataset="isic2019", data__synthetic=False)
    edit_lesion(folder, license="cc-by-nc-4.0", synthetic=False)
    config = json.loads((folder / "config.json").read_text())
    config |= {"label_names": list(CODES), "num_classes": len(CODES)}
    config["label_descriptions"] = {code: diagnosis_of(code).name for code in CODES}
    config["lesion"]["calibration"] |= {"scale": [1.0] * len(CODES), "bias": [0.0] * len(CODES)}
    config["lesion"]["decision"]["priors"] = [1 / len(CODES)] * len(CODES)
    config["lesion"]["config_sha256"] = config_sha256(config)
    (folder / "config.json").write_text(json.dumps(config))
    metrics["model"]["codes"] = list(CODES)
    # Reference 0 stands in for the diagnoses that the scored model does not know; words are counted, not scores.
    for scores in (metrics["test"], metrics["test"]["by_lesion"], metrics["val"]):
        known = scores["per_class"]
        scores["per_class"] = {code: known.get(code, known["NV"]) for code in CODES}
        scores["confusion"] = [[0] * len(CODES)] * len(CODES)
    for split in ("val", "test"):
        for moment in metrics["calibration"][split].values():
            moment["ece_per_class"] = dict.fromkeys(CODES, moment["ece_per_class"]["NV"])
    for part in metrics["data"]["flow"]["splits"].values():
        part["per_class"] = dict.fromkeys(CODES, 1)
    metrics["data"]["leakage"] |= dict.fromkeys(CODES, 0.0)
    for split in ("val", "test"):
        for answers in metrics["decision"][split].values():
            answers["recall"] = dict.fromkeys(CODES, answers["recall"]["NV"])
    for near in metrics["abstention"]["near"].values():
        near["predicted"] = dict.fromkeys(CODES, 0)
    for name, groups in metrics["groups"].items():
        for scores in groups.values() if name != "not_measured" else ():
            if "recall" in scores:
                scores["recall"] = dict.fromkeys(CODES, scores["recall"]["NV"])
    (folder / "metrics.json").write_text(json.dumps(metrics))


def test_the_first_level_has_at_most_1200_words(folder):
    for page in (render_card(folder), as_real_model_of_eight_diagnoses(folder) or render_card(folder)):
        words = [word for word in ModelCard(page["README.md"]).text.split() if re.search(r"\w", word)]
        assert 400 < len(words) <= 1200
        assert len(words) < len(page["evaluation.md"].split()) / 2


def test_each_number_of_the_first_level_is_one_of_the_metrics(scored_folder):
    metrics = json.loads((scored_folder / "metrics.json").read_text())
    text = plain(ModelCard(render_card(scored_folder)["README.md"]).text).split("## Citation")[0]
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    known = {number for _, written in numbers_of(metrics) for number in re.findall(r"[\d.,]+", plain(written))}
    known |= {f"{point['target_sensitivity']:.2f}" for point in metrics["operating_points"]}
    said = re.findall(r"(?<![\w@.-])\d[\d,]*(?:\.\d+)?(?![\w.]*\d)", text)
    assert len(said) > 60
    # Counted, or in the name of something: diagnoses, 95 % intervals, the version of the licence, brightness -20 %.
    named = {
        str(len(metrics["model"]["codes"])),
        "95",
        "2.0",
        *re.findall(r"\d+", " ".join(metrics["robustness"]["changes"])),
    }
    assert not set(said) - known - named


def test_the_first_level_shows_melanomas_that_the_first_answer_misses_beside_the_operating_points(scored_folder):
    metrics = json.loads((scored_folder / "metrics.json").read_text())
    lines = plain(render_card(scored_folder)["README.md"]).splitlines()

    def row(start: str) -> str:
        return next(line for line in lines if line.startswith(f"| {start}"))

    melanoma = metrics["test"]["per_class"]["MEL"]
    for name in ("recall", "specificity"):
        assert plain(format_estimate(melanoma[name])) in row("its first answer is melanoma")
    assert len(metrics["operating_points"]) == 4
    for point in metrics["operating_points"]:
        for name in ("sensitivity", "specificity"):
            assert plain(format_estimate(point["test"][name])) in row(point["name"])
    assert lines.index(row("its first answer")) < lines.index("## Intended use")


def test_what_it_does_badly_follows_the_metrics(folder):
    def section() -> str:
        return plain(render_card(folder)["README.md"]).split("## What it does badly")[1].split("\n## ")[0]

    metrics = json.loads((folder / "metrics.json").read_text())
    worst = min(metrics["test"]["per_class"].items(), key=lambda item: item[1]["recall"]["value"])
    assert (
        f"misses {worst[0]} most often of all diagnoses: sensitivity {plain(format_estimate(worst[1]['recall']))}."
        in section()
    )
    changes = metrics["robustness"]["changes"]
    name = max(changes, key=lambda name: changes[name]["flip_rate"]["value"])
    assert f"({name}) alters {plain(format_estimate(changes[name]['flip_rate']))} of them" in section()
    far = metrics["abstention"]["far"]
    kind = min(far, key=lambda kind: far[kind]["abstained"]["value"])
    assert f'"{kind}" least often: {plain(format_estimate(far[kind]["abstained"]))} of them' in section()
    assert "AK, malignant or pre-malignant, is unknown to it" in section()
    assert "DF" not in section()  # benign
    edit_metrics(
        folder, **{f"test__per_class__{code}__recall": {"value": 1.0} for code in metrics["test"]["per_class"]}
    )
    assert "most often of all diagnoses" not in section()  # it misses none
    inside = {"value": 0.4, "low": 0.35, "high": 0.45}
    edit_metrics(folder, heat_maps__masks__model__heat_inside=inside)
    edit_metrics(folder, heat_maps__masks__centred_blob__heat_inside=inside | {"value": 0.39})
    assert "do not locate lesions" not in section()
    edit_metrics(folder, heat_maps__masks__centred_blob__heat_inside=inside | {"value": 0.41})
    assert "do not locate lesions" in section()


def test_a_misspelt_placeholder_fails_instead_of_vanishing(folder, tmp_path, monkeypatch):
    for name in card_module.TEMPLATES.values():
        template = (card_module.ROOT / name).read_text().replace("test.macro_auroc", "test.macro_aurok")
        (tmp_path / name).write_text(template)
    monkeypatch.setattr(card_module, "ROOT", tmp_path)
    with pytest.raises(PublishError, match="macro_aurok"):
        render_card(folder)


def test_a_missing_template_or_metrics_says_what_to_do(folder, tmp_path, monkeypatch):
    metrics = (folder / "metrics.json").read_text()
    (folder / "metrics.json").unlink()
    with pytest.raises(PublishError, match=r"has no metrics\.json; make it with `python -m modeling\.evaluation"):
        render_card(folder)
    (folder / "metrics.json").write_text(metrics)
    monkeypatch.setattr(card_module, "ROOT", tmp_path)
    with pytest.raises(PublishError, match=r"has no model_card\.md and no evaluation_card\.md: install from a clone"):
        render_card(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 3}', '{"model": NaN}', "[" * 10**5])
def test_damaged_metrics_give_no_card_but_a_sentence(folder, content, capsys):
    (folder / "metrics.json").write_text(content)
    before = (folder / "README.md").read_bytes() if (folder / "README.md").exists() else None
    assert publish_main(["card", str(folder)]) == 1
    assert "metrics.json" in capsys.readouterr().err
    assert before == ((folder / "README.md").read_bytes() if (folder / "README.md").exists() else None)


def test_changed_metrics_give_a_card_or_a_sentence(scored_folder, tmp_path):
    reader = fuzz_config.make_readers(scored_folder, tmp_path)["metrics"]
    for tree in fuzz_config.examples(reader.structure, 15, seed=0):
        reader.read(reader.encode(tree))


def test_the_card_names_revision_weights_data_and_package(folder):
    metrics = edit_metrics(folder)
    card = both_pages(folder)
    for said in (metrics["model"]["weights_sha256"], metrics["data"]["fingerprint"], "skin-lesion-classifier 0.1.0"):
        assert said in card
    # It cannot name the commit that it will be part of; a model of the Hub that is scored again has one.
    assert "| Revision | the commit that holds this card" in card
    edit_metrics(folder, model__revision="c0ffee" * 6)
    assert f"| Revision | `{'c0ffee' * 6}` |" in render_card(folder)["evaluation.md"]


def test_the_card_subcommand_writes_the_card_and_pushing_gives_it_the_repositorys_name(folder, monkeypatch, capsys):
    from support.hub import HubServer

    assert publish_main(["card", str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    for name, content in render_card(folder).items():
        assert (folder / name).read_text() == content
    with HubServer() as hub:
        hub.connect(monkeypatch)
        push_model(folder, "me/lesions")
        pages = hub.repo("me/lesions").files()
        card = pages["README.md"].decode()
        assert 'LesionClassifier.from_pretrained("me/lesions")' in card
        assert "python -m modeling.evaluation me/lesions --verify" in pages["evaluation.md"].decode()
        for name in card_module.TEMPLATES:
            assert card_module.CARD_REPO_ID not in pages[name].decode()
        assert not push_model(folder, "me/lesions").changed


def test_writing_the_card_leaves_no_other_file(folder):
    before = set(folder.iterdir())
    assert write_card(folder) == folder / "README.md"
    assert set(folder.iterdir()) - before == {folder / "README.md", folder / "evaluation.md"}


# ---- External validation ---------------------------------------------------------------------------------------------


@pytest.fixture
def external_json(folder: Path, tmp_path: Path) -> Path:
    """An external evaluation's metrics.json, compared with the model's own by the functions that write it."""
    own = json.loads((folder / "metrics.json").read_text())
    other = copy.deepcopy(own)
    other["data"] |= {"dataset": "clinic/photos", "protocol": "external", "synthetic": False}
    other["test"]["balanced_accuracy"] = {"value": 0.61, "low": 0.55, "high": 0.67}
    number = {"value": 0.123, "low": 0.1, "high": 0.2}
    other["external"] = {
        "compared_by": "image id and perceptual hash",
        "left_out": {"the same image id": 7},
        "headline": headline_rows(own, other),
        "calibration": {code: {"excess_probability": number, "slope": number} for code in own["model"]["codes"]},
        "thresholds": {"MEL@95": {"stored": 0.3217, "needed": {"threshold": 0.2819}}},
        "mix": mix_rows(own, other),
        "image_properties": {
            name: {"internal": own["image_properties"][name], "external": values}
            for name, values in other["image_properties"].items()
        },
        "accuracy_at_internal_mix": number,
        "challenge": {"reason": "not the official test of ISIC 2019"},
    }
    path = tmp_path / "external.json"
    path.write_text(json.dumps(other))
    return path


def test_an_external_validation_is_not_taken_for_the_models_own_scores(folder, external_json):
    shutil.copyfile(external_json, folder / "metrics.json")
    with pytest.raises(PublishError, match=r"metrics\.json is an external validation; give it to"):
        render_card(folder)


def test_external_validation_stands_on_both_levels_and_in_the_model_index(folder, external_json, capsys):
    assert "No external validation" in render_card(folder)["README.md"]
    assert publish_main(["card", str(folder), "--external", str(external_json)]) == 0
    pages = {name: plain((folder / name).read_text()) for name in ("README.md", "evaluation.md")}
    other = json.loads(external_json.read_text())
    headline = other["external"]["headline"]
    for name in ("balanced_accuracy", "macro_auroc", "MEL/recall", "MEL@95/sensitivity", "MEL@95/specificity"):
        cells = [plain(format_estimate(headline[name][side])) for side in ("internal", "external", "difference")]
        for page in pages.values():
            assert any(
                line.startswith("| ") and line.endswith("| " + " | ".join(cells) + " |") for line in page.splitlines()
            )
    assert "No external validation" not in pages["README.md"]
    for said in ("7 (the same image id)", "image id and perceptual hash", "0.3217 | 0.2819", "0.123 (0.100 to 0.200)"):
        assert said in pages["evaluation.md"], said
    results = [
        result for result in ModelCard(pages["README.md"]).data.eval_results if result.dataset_type == "clinic/photos"
    ]
    assert {result.metric_type: result.metric_value for result in results}["balanced_accuracy"] == 0.61
    assert len(results) == 6
    # It is kept, so that the next card has it too.
    assert publish_main(["card", str(folder)]) == 0
    assert plain((folder / "README.md").read_text()) == pages["README.md"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda metrics: metrics.pop("external"), "is no external validation; make one with"),
        (lambda metrics: metrics["model"].update(weights_sha256="0" * 64), "is of other weights than"),
        (
            lambda metrics: metrics["external"].update(headline=[]),
            "'external.headline': Input should be a valid dictionary",
        ),
    ],
)
def test_what_is_no_external_validation_of_this_model_is_refused(folder, external_json, change, sentence, capsys):
    metrics = json.loads(external_json.read_text())
    change(metrics)
    external_json.write_text(json.dumps(metrics))
    assert publish_main(["card", str(folder), "--external", str(external_json)]) == 1
    assert sentence in capsys.readouterr().err
    assert not (folder / "external").exists()


def test_two_external_validations_of_one_name_are_refused_before_one_takes_the_others_place(
    folder, external_json, tmp_path, capsys
):
    other = shutil.copyfile(external_json, tmp_path / "other.json")
    assert publish_main(["card", str(folder), "--external", str(external_json), str(other)]) == 1
    assert "both of a dataset called 'clinic-photos'" in capsys.readouterr().err
    assert not (folder / "external").exists()
