"""Any dataset comes out in the same columns; what is no usable dataset is refused in words."""

import io
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from PIL import Image

from modeling.data.columns import COLUMNS, FEATURES
from modeling.data.problems import DataError
from modeling.data.sources import LoadedImages, load_images, select_diagnoses
from support.hashes import hash_images

CONTRACT = ["image", "image_id", "label", "lesion_id", "source", "age_approx", "sex", "anatom_site_general"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (value, value // 2, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"bytes": png(start + index), "path": None} for index in range(n)]


def save(folder: Path, columns: dict[str, list[Any]], features: dict[str, Any], split: str = "train") -> str:
    """Write one split as the Hub keeps it, in parquet, and return the folder."""
    folder.mkdir(exist_ok=True)
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def labelled(tmp_path: Path, names: list[str], labels: list[int], **more: Any) -> str:
    columns = {"img": pictures(len(labels)), "labels": labels, **more}
    features = {"img": datasets.Image(), "labels": datasets.ClassLabel(names=names)}
    features.update({name: datasets.Value("string") for name in more})
    return save(tmp_path / "data", columns, features)


def diagnoses(dataset: datasets.Dataset) -> list[str]:
    names = dataset.features["label"].names
    return [names[label] for label in dataset["label"]]


def test_a_hub_data_set_with_other_column_names_comes_out_in_the_columns_of_the_contract(tmp_path: Path) -> None:
    dataset = load_images(labelled(tmp_path, ["cat", "dog"], [1, 0, 1])).dataset
    assert list(COLUMNS) == CONTRACT == dataset.column_names
    assert dataset.features["label"].names == ["cat", "dog"]
    assert dataset["label"][:] == [1, 0, 1]
    assert dataset["image_id"][:] == ["train-000000", "train-000001", "train-000002"]
    assert dataset["lesion_id"][:] == [None] * 3
    assert dataset["source"][:] == ["unknown"] * 3
    assert dataset["image"][2].getpixel((0, 0)) == (2, 1, 60)


def test_a_missing_lesion_id_is_missing_however_it_is_written(tmp_path: Path) -> None:
    written = ["nan", "NaN", "unknown", "None", " ", "lesion 1", "7"]
    dataset = load_images(labelled(tmp_path, ["cat", "unknown"], [0, 1, 1, 1, 0, 1, 0], lesion_id=written)).dataset
    assert dataset["lesion_id"][:] == [None] * 5 + ["lesion 1", "7"]
    assert dataset.features["label"].names == ["cat", "unknown"]  # a diagnosis may have that name


def test_images_beside_tables_are_not_the_dataset(tmp_path: Path) -> None:
    folder = labelled(tmp_path, ["a", "b"], [0, 1])
    (tmp_path / "data" / "assets").mkdir()
    (tmp_path / "data" / "assets" / "preview.png").write_bytes(png(3))
    assert load_images(folder).dataset["image_id"][:] == ["train-000000", "train-000001"]


def test_all_splits_of_a_hub_data_set_are_taken(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    folder = save(tmp_path / "data", {"image": pictures(2), "label": [0, 1]}, features)
    save(tmp_path / "data", {"image": pictures(3, 50), "label": [1, 1, 0]}, features, split="test")
    loaded = load_images(folder)
    assert loaded.given_splits == {
        "train-000000": "train", "train-000001": "train", "test-000000": "test", "test-000001": "test", "test-000002": "test",
    }  # fmt: skip
    dataset = loaded.dataset
    found = dict(zip(dataset["image_id"], dataset["label"], strict=True))
    assert found == {"train-000000": 0, "train-000001": 1, "test-000000": 1, "test-000001": 1, "test-000002": 0}


def test_ham10000_as_the_hub_has_it_gets_isic_codes_and_its_metadata(tmp_path: Path) -> None:
    columns = {
        "image": pictures(4),
        "image_id": ["ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4"],
        "lesion_id": ["HAM_1", "HAM_1", "HAM_2", None],
        "dx": ["melanocytic_Nevi", "melanocytic_Nevi", "actinic_keratoses", "benign_keratosis-like_lesions"],
        "age": [45.0, None, 80.0, 5.0],
        "sex": ["male", "", "female", "male"],
        "localization": ["back", "back", "face", None],
    }
    features = {name: datasets.Value("string") for name in columns} | {
        "image": datasets.Image(), "age": datasets.Value("float64"),
    }  # fmt: skip
    dataset = load_images(save(tmp_path / "data", columns, features)).dataset
    assert diagnoses(dataset) == ["NV", "NV", "AK", "BKL"]
    assert dataset.features["label"].names == ["NV", "AK", "BKL"]  # those that occur, in ISIC's order
    assert dataset["image_id"][:] == columns["image_id"]
    assert dataset["lesion_id"][:] == columns["lesion_id"]
    assert dataset["age_approx"][:] == columns["age"]
    assert dataset["sex"][:] == ["male", None, "female", "male"]
    assert dataset["anatom_site_general"][:] == columns["localization"]


def test_dx_codes_of_ham10000_become_isic_codes(tmp_path: Path) -> None:
    names = ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    dataset = load_images(labelled(tmp_path, names, list(range(7)))).dataset
    assert diagnoses(dataset) == ["AK", "BCC", "BKL", "DF", "MEL", "NV", "VASC"]


def test_splits_with_other_string_labels_are_joined_by_name(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "label": datasets.Value("string")}
    folder = save(tmp_path / "data", {"image": pictures(2), "label": ["wart", "mole"]}, features)
    save(tmp_path / "data", {"image": pictures(1, 40), "label": ["wart"]}, features, split="test")
    dataset = load_images(folder).dataset
    names = dataset.features["label"].names
    found = {row["image_id"]: names[row["label"]] for row in dataset.remove_columns("image")}
    assert found == {"train-000000": "wart", "train-000001": "mole", "test-000000": "wart"}


@pytest.mark.parametrize("dtype", ["string", "bool", "int8", "uint16", "int64"])
def test_labels_may_be_words_or_whole_numbers_of_any_width(tmp_path: Path, dtype: str) -> None:
    labels = ["1", "0"] if dtype == "string" else [1, 0]
    features = {"image": datasets.Image(), "target": datasets.Value(dtype)}
    dataset = load_images(save(tmp_path / "data", {"image": pictures(2), "target": labels}, features)).dataset
    assert dataset.features["label"].names == (["False", "True"] if dtype == "bool" else ["0", "1"])
    assert dataset["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("label", "feature"),
    [
        (["a"], datasets.List(datasets.Value("string"))),
        ({"of": "a"}, {"of": datasets.Value("string")}),
    ],
)
def test_a_column_that_cannot_be_a_label_is_refused_in_words(tmp_path: Path, label: Any, feature: Any) -> None:
    features = {"image": datasets.Image(), "label": feature}
    folder = save(tmp_path / "data", {"image": pictures(1), "label": [label]}, features)
    with pytest.raises(DataError, match=r"one of labels \(words or whole numbers\), label, .* it has image, label"):
        load_images(folder)


def test_whole_numbers_beside_a_blank_stay_whole_numbers(tmp_path: Path) -> None:
    """Beside a blank cell, tables keep 7 as the floating-point number 7.0."""
    floats = {"image": datasets.Image(), "label": datasets.Value("float64"), "lesion_id": datasets.Value("float64")}
    columns = {"image": pictures(3), "label": [1.0, 0.0, None], "lesion_id": [7.0, None, 12.0]}
    folder = save(tmp_path / "data", columns, floats)
    with pytest.raises(DataError, match="1 × image without a label: train-000002"):
        load_images(folder)
    dataset = load_images(folder, skip_bad_images=True, skipped_csv=tmp_path / "skipped.csv").dataset
    assert diagnoses(dataset) == ["1", "0"]
    assert dataset["lesion_id"][:] == ["7", None]


def test_labels_are_mapped_one_by_one_and_unknown_ones_keep_their_names(tmp_path: Path) -> None:
    loaded = load_images(labelled(tmp_path, ["melanoma", "nevus", "other", "MEL", "Café"], [0, 1, 2, 3, 4]))
    assert diagnoses(loaded.dataset) == ["MEL", "NV", "other", "MEL", "Café"]
    assert "labels read as ISIC diagnoses: melanoma → MEL, nevus → NV" in loaded.report
    assert loaded.report.count("no diagnosis of ISIC 2019: Café, other") == 1


def test_a_label_in_two_spellings_of_unicode_is_one_and_in_two_cases_is_refused(tmp_path: Path) -> None:
    features = {"image": datasets.Image(), "label": datasets.Value("string")}
    both = ["caf\u00e9", "cafe\u0301"]
    assert load_images(save(tmp_path / "a", {"image": pictures(2), "label": both}, features)).dataset["label"][:] == [
        0,
        0,
    ]
    with pytest.raises(DataError, match="the labels 'Wart' and 'wart' differ in case alone"):
        load_images(save(tmp_path / "b", {"image": pictures(2), "label": ["Wart", "wart"]}, features))


def test_patients_and_skin_types_are_kept(tmp_path: Path) -> None:
    folder = labelled(
        tmp_path, ["a", "b"], [0, 1], patient_id=["007", "8"], fitzpatrick_skin_type=["IV", ""], dx_type=["x", "y"]
    )
    loaded = load_images(folder)
    assert loaded.dataset.column_names == [*CONTRACT, "patient_id", "fitzpatrick_skin_type"]
    assert loaded.dataset["patient_id"][:] == ["007", "8"]
    assert loaded.dataset["fitzpatrick_skin_type"][:] == ["IV", None]


def test_image_ids_that_are_not_unique_are_made_from_split_and_row(tmp_path: Path) -> None:
    dataset = load_images(labelled(tmp_path, ["a", "b"], [0, 1], image_id=["same", "same"])).dataset
    assert dataset["image_id"][:] == ["train-000000", "train-000001"]


def test_a_data_set_without_image_or_label_is_refused_with_its_columns(tmp_path: Path) -> None:
    no_image = save(tmp_path / "a", {"text": ["x"], "label": ["y"]}, {"text": datasets.Value("string"), "label": datasets.Value("string")})  # fmt: skip # noqa: E501
    with pytest.raises(DataError, match=r"needs a column of images, .*; it has text, label: rename"):
        load_images(no_image)
    no_label = save(tmp_path / "b", {"image": pictures(1), "text": ["y"]}, {"image": datasets.Image(), "text": datasets.Value("string")})  # fmt: skip # noqa: E501
    with pytest.raises(DataError, match=r"and one of labels .*; it has image, text: rename"):
        load_images(no_label)


def test_broken_and_unlabelled_images_of_a_hub_data_set_are_counted_or_left_out(tmp_path: Path) -> None:
    images = pictures(4)
    images[1] = {"bytes": images[1]["bytes"][:-30], "path": None}
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    folder = save(tmp_path / "data", {"image": images, "label": [0, 1, -1, 1]}, features)
    with pytest.raises(DataError) as raised:
        load_images(folder)
    assert "1 × image without a label: train-000002" in str(raised.value)
    assert "1 × image cannot be read: train-000001" in str(raised.value)
    dataset = load_images(folder, skip_bad_images=True, skipped_csv=tmp_path / "skipped.csv").dataset
    assert dataset["image_id"][:] == ["train-000000", "train-000003"]
    assert set(pd.read_csv(tmp_path / "skipped.csv")["image_id"]) == {"train-000001", "train-000002"}


def squares(codes: list[str], values: list[int]) -> datasets.Dataset:
    n = len(codes)
    columns = {
        "image": [{"bytes": png(value), "path": None} for value in values],
        "image_id": [f"i{value}" for value in values],
        "label": codes,
        "lesion_id": [None] * n,
        "source": ["unknown"] * n,
        "age_approx": [None] * n,
        "sex": [None] * n,
        "anatom_site_general": [None] * n,
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def test_selected_diagnoses_are_numbered_in_the_order_given() -> None:
    dataset = squares(["MEL", "NV", "DF", "BCC", "NV"], [10, 20, 30, 40, 50])
    chosen = select_diagnoses(dataset, ["BCC", "MEL", "NV"])
    assert chosen.column_names == CONTRACT
    assert chosen.features["label"].names == ["BCC", "MEL", "NV"]
    assert chosen["image_id"][:] == ["i10", "i20", "i40", "i50"]
    assert chosen["label"][:] == [1, 2, 0, 2]
    assert chosen["image"][3].getpixel((0, 0)) == (50, 25, 60)


def test_all_diagnoses_are_those_that_are_present() -> None:
    dataset = squares(["NV", "MEL", "DF"], [10, 20, 30])
    chosen = select_diagnoses(dataset, ["all"])
    assert chosen.features["label"].names == ["MEL", "NV", "DF"]
    assert chosen["label"][:] == [1, 0, 2]


def test_diagnoses_that_the_data_do_not_have_are_refused_with_those_that_they_have() -> None:
    dataset = squares(["NV", "MEL"], [10, 20])
    with pytest.raises(DataError, match=r"no image of DF; the dataset has MEL 1, NV 1, BCC 0"):
        select_diagnoses(dataset, ["NV", "DF"])
    with pytest.raises(DataError, match="no image of mole"):
        select_diagnoses(dataset, ["mole"])
    with pytest.raises(DataError, match="repeated"):
        select_diagnoses(dataset, ["NV", "NV"])


def fingerprint(dataset: datasets.Dataset) -> str:
    return LoadedImages(dataset, hash_images(dataset)).fingerprint


def test_the_fingerprint_is_of_the_content_and_not_of_the_order_or_the_place(tmp_path: Path) -> None:
    dataset = squares(["NV", "MEL", "BCC"], [10, 20, 30])
    same = fingerprint(dataset)
    assert fingerprint(dataset.select([2, 0, 1])) == same
    assert fingerprint(select_diagnoses(dataset, ["BCC", "NV", "MEL"])) == same
    assert fingerprint(squares(["NV", "MEL", "BCC"], [10, 20, 31])) != same
    assert fingerprint(squares(["NV", "NV", "BCC"], [10, 20, 30])) != same


def test_the_demo_takes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave --data_dir out"):
        load_images("demo", data_dir=tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("x" * 300, "line\nfeed", "\x1b[2J", "=cmd|x", "+1", "@a", "-1", "<script>alert(1)</script>", "a|b"),
        *("all", "Overall", "error", "image", "verdict", "probability", "reason", "NA", "null"),
    ],
)
def test_a_label_that_no_model_folder_may_have_is_refused_before_training(name: str) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["NV", name])})
    data = datasets.Dataset.from_dict({"label": [0, 1]}, features=features)
    with pytest.raises(DataError, match="cannot be shown"):
        select_diagnoses(data, ["all"])
