"""evaluation.md of real evaluations of tiny models: what it claims holds for the run that it is about."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modeling.classifier import LesionClassifier
from modeling.data.sources import LoadedImages, select_diagnoses
from modeling.data.splits import make_splits
from modeling.evaluation import context as context_module
from modeling.evaluation import evaluate as evaluation
from modeling.evaluation.context import Context
from modeling.evaluation.evaluate import evaluate_model
from modeling.evaluation.external import open_external
from modeling.labels import CODES, REFERENCE_CODES
from modeling.publish.card import render_card
from support.hashes import hash_images
from support.scored import blot_dataset, make_scored_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # the first test waits for seven evaluations
BENIGN, OWN_LABELS = ("BKL", "DF", "NV"), ("mole", "scar", "wart")


def no_metadata(row: dict) -> dict:
    return {**row, "age_approx": None, "sex": None, "anatom_site_general": None, "source": "unknown"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of each kind of run. Figures are left out, and few OOD images are generated."""

    def make(kind: str, **options: object) -> Path:
        return make_scored_folder(tmp_path_factory.mktemp(kind), onnx=False, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "draw_figures", lambda *_: [])
        patch.setattr(context_module, "N_FAR", 4)
        made = {"eight": make("eight", codes=CODES, dataset=blot_dataset(common=CODES))}
        made["own labels"] = make(
            "own",
            codes=OWN_LABELS,
            dataset=blot_dataset(OWN_LABELS, common=OWN_LABELS, change=no_metadata),
            lesion={"dataset": "fold", "synthetic": False, "base_model": None},
            origin={"kind": "scratch", "name": None, "sha256": None, "base_model": None, "overlap": None},
        )
        made["no melanoma"] = make("benign", codes=BENIGN, dataset=blot_dataset(BENIGN, common=BENIGN))
        made["perfect"] = make("perfect", dataset=blot_dataset(REFERENCE_CODES, noise=0.0), abstention=False)
        isic = {"dataset": "isic2019", "synthetic": False}
        made["by image"] = make(
            "image",
            dataset=blot_dataset(REFERENCE_CODES),
            splits=image_splits(),
            protocol="given",
            lesion=isic,
            options={"recipe": "original", "weight_decay": None, "patience": None},
        )
        made["test source"] = make("source", **one_source(), lesion=isic, options={"test_source": ["BCN"]})
        made["external"] = make("external", dataset=blot_dataset(REFERENCE_CODES))
        add_external(made["external"])
    return made


def image_splits() -> pd.DataFrame:
    """Splits that divide the photos of a lesion."""
    dataset = blot_dataset(REFERENCE_CODES)
    splits = make_splits(dataset, diagnoses=REFERENCE_CODES)
    return splits.assign(split=np.random.default_rng(0).permutation(splits["split"].to_numpy()))


def one_source() -> dict:
    """Test is BCN, which has no melanoma; train and val are without BCN."""
    dataset = blot_dataset(REFERENCE_CODES)
    splits = make_splits(select_diagnoses(dataset, REFERENCE_CODES), diagnoses=REFERENCE_CODES)
    of_bcn = splits["source"] == "BCN"
    splits = splits[~(of_bcn & (splits["label"] == "MEL")) & (of_bcn | (splits["split"] != "test"))]
    return {"dataset": dataset, "splits": splits.assign(split=splits["split"].mask(splits["source"] == "BCN", "test"))}


def add_external(folder: Path) -> None:
    """Score the model on other lesions, without BKL, and put the result on its card."""
    dataset = blot_dataset(("BCC", "MEL", "NV"), seed=1)
    classifier = LesionClassifier.from_pretrained(folder, device="cpu")
    loaded = LoadedImages(dataset, hash_images(dataset))
    own = read(folder / "metrics.json")
    context = open_external(classifier, loaded, name="clinic", challenge=False, internal=own)
    output = folder / "external"
    output.mkdir()
    evaluate_model(context, output_dir=output, predictions_csv=folder.parent / "external.csv")
    (output / "metrics.json").rename(output / "clinic.json")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def cards(folders, scored_folder) -> dict[str, str]:
    """evaluation.md by kind, as plain text."""
    all_folders = {"demo": scored_folder, **folders}
    return {kind: render_card(folder)["evaluation.md"].replace("\u00a0", " ") for kind, folder in all_folders.items()}


def test_every_card_is_short_and_its_tables_are_whole(cards) -> None:
    for kind, text in cards.items():
        words = [word for word in re.split(r"[\s|]+", text) if re.search("[A-Za-z]", word)]
        assert len(words) <= 1500, kind
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if re.fullmatch(r"(\|---)+\|", line):
                rows = [lines[number - 1]]
                for row in lines[number + 1 :]:
                    if not row.startswith("|"):
                        break
                    rows.append(row)
                assert len(rows) > 1, f"{kind}: no row below {lines[number - 1]}"
                assert {row.count("|") for row in rows} == {line.count("|")}, f"{kind}: {lines[number - 1]}"


def test_no_card_claims_what_was_not_measured(cards) -> None:
    for kind, text in cards.items():
        assert "Skin tone was not evaluated." in text, kind
        for claim in ("No column", "no measure of", "no better", "chose the score", "as many images"):
            assert claim not in text, (kind, claim)
        assert "its test images included, and on these kinds" in text or "## Abstention\nNot measured" in text, kind
        assert "An *ECE* has no interval" in text


def test_histopathology_is_told_of_images_and_lesions_where_ham10000_is_used(cards) -> None:
    assert "53.3 % of the images (41.3 % of the lesions)" in cards["by image"]
    for kind in ("demo", "own labels", "test source"):
        assert ("histopathology" in cards[kind]) == ("source HAM " in cards[kind] and "ISIC 2019" in cards[kind])


def test_a_model_without_melanoma_or_malignancy_has_no_operating_points(cards) -> None:
    for kind in ("no melanoma", "own labels"):
        assert "## Operating points" not in cards[kind]
        assert "MEL" not in cards[kind]
        assert "malignant" not in cards[kind]
    assert "## Operating points" in cards["demo"]


def test_a_local_folder_is_not_said_to_have_a_card(cards) -> None:
    assert "The dataset `fold`; how it was collected and labelled is not known here." in cards["own labels"]
    assert "its own card" not in cards["own labels"]
    assert "random weights" in cards["own labels"]


def test_data_without_metadata_have_no_metadata_baseline(cards) -> None:
    assert "| only " not in cards["own labels"]
    assert "| nothing: always " in cards["own labels"]
    assert "| only age, sex, body site, source |" in cards["demo"]


def test_a_split_that_divides_lesions_is_not_called_a_split_by_lesion(folders, cards) -> None:
    data = read(folders["by image"] / "metrics.json")["data"]
    assert (data["protocol"], data["split_unit"]) == ("given", "image")
    assert data["leakage"]["overall"] > 0
    assert "made by lesion" not in cards["by image"]
    assert "by lesion" not in render_card(folders["by image"])["README.md"].split("---")[1]


def test_options_without_effect_are_left_out(folders) -> None:
    training = read(folders["by image"] / "metrics.json")["training"]
    assert not {"weight_decay", "patience"} & set(training["options"])
    assert training["selection"] == "accuracy"


def test_a_test_without_a_diagnosis_is_scored_over_the_others(folders, cards) -> None:
    metrics = read(folders["test source"] / "metrics.json")
    assert metrics["test"]["diagnoses"] == ["BCC", "BKL", "NV"]
    for name in ("balanced_accuracy", "macro_auroc", "macro_f1"):
        assert metrics["test"][name]["value"] is not None
    assert metrics["data"]["test_source"] == "BCN"
    text = cards["test source"]
    assert "means over BCC, BKL, NV, the diagnoses in test" in text
    assert "not estimable: no image of MEL in this split" in text
    assert "Test is all images of BCN" in text
    assert "## What it does badly" in render_card(folders["test source"])["README.md"]


def test_a_perfect_model_without_a_rule_claims_neither_certainty_nor_abstention(folders, cards) -> None:
    metrics = read(folders["perfect"] / "metrics.json")
    balanced = metrics["test"]["balanced_accuracy"]
    assert (balanced["value"], balanced["low"], balanced["high"]) == (1.0, None, None)
    assert "| Balanced accuracy | 1.000 (no interval) |" in cards["perfect"]
    assert metrics["test"]["accuracy"]["low"] < 1
    assert "Not measured: this model has no abstention rule." in cards["perfect"]


def test_an_external_validation_compares_and_repeats_nothing_of_the_model_alone(folders, cards) -> None:
    metrics = read(folders["external"] / "external" / "clinic.json")
    # Blots look alike to the perceptual hash, so some lesions are left out as known.
    assert set(metrics["test"]["diagnoses"]) <= {"BCC", "MEL", "NV"}
    assert sum(metrics["external"]["left_out"].values()) > 0
    assert metrics["abstention"]["far"] == metrics["abstention"]["near"] == {}
    said = "an external evaluation does not repeat what belongs to the model alone"
    assert metrics["robustness"] == {"reason": said}
    text = cards["external"]
    assert "### clinic: " in text
    assert "| BKL/recall | " in text
    assert "not estimable: the external value is not estimable" in text
    assert "None on this card." not in text
    assert "None on this card." in cards["demo"]


def test_no_abstention_on_test_is_a_rate_with_its_bound(scored_folder, folders, monkeypatch) -> None:
    classifier = LesionClassifier.from_pretrained(scored_folder, device="cpu")
    classifier.abstention = replace(classifier.abstention, threshold=1e6)
    monkeypatch.setattr(context_module, "N_FAR", 4)
    dataset = blot_dataset(REFERENCE_CODES)
    context = Context(classifier, dataset, make_splits(dataset, diagnoses=REFERENCE_CODES))
    found = evaluation.sections.abstention_section(context)["test"]
    assert found["abstained"]["value"] == 0
    assert found["abstained"]["high"] > 0
    assert found["answered"]["n_images"] == len(context.test)


def test_metrics_without_the_optional_entries_have_a_card(scored_folder, tmp_path) -> None:
    folder = Path(shutil.copytree(scored_folder, tmp_path / "model"))
    metrics = json.loads((folder / "metrics.json").read_text())
    for entry in ("test_without_lesion_id", "patients_apart"):
        del metrics["data"][entry]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for text in render_card(folder).values():
        assert "Leakage rate" in text
