"""Folders of images as users have them: every file is used, or counted and named; what cannot be used is refused in words."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pillow_heif
import pytest
from PIL import Image

from modeling.data import decoding
from modeling.data.problems import DataError
from modeling.data.sources import LoadedImages, load_images
from support.hashes import hash_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def draw(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 255, size=(12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    (pillow_heif.from_pillow(image) if path.suffix == ".heic" else image).save(path)


def classes(folder: Path, names: tuple[str, ...] = ("MEL", "NV"), n: int = 2) -> Path:
    for number, name in enumerate(names):
        for index in range(n):
            draw(folder / name / f"{index}.png", 10 * number + index)
    return folder


def labels_of(loaded: LoadedImages) -> dict[str, str]:
    names = loaded.dataset.features["label"].names
    rows = loaded.dataset.remove_columns("image")
    return {row["image_id"]: names[row["label"]] for row in rows}


def test_image_ids_are_paths_in_the_folder(tmp_path: Path) -> None:
    loaded = load_images(str(classes(tmp_path / "data")))
    assert labels_of(loaded) == {"MEL/0.png": "MEL", "MEL/1.png": "MEL", "NV/0.png": "NV", "NV/1.png": "NV"}
    assert loaded.report == "images: 4 found, 4 used"


def test_two_folders_of_files_of_the_same_names_and_sizes_are_two_datasets(tmp_path: Path) -> None:
    """The pixels that training sees are those of the folder that was named, also after another one of like files."""
    for number, name in enumerate(("a", "b")):
        for code in ("MEL", "NV"):
            path = tmp_path / name / code / "0.bmp"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (16, 16), (number, len(code), 0)).save(path)
    loaded = [load_images(str(tmp_path / name), size_px=8) for name in ("a", "b")]
    assert loaded[0].fingerprint != loaded[1].fingerprint
    assert [one.pixels[0]["pixels"][0] for one in loaded if one.pixels] == [0, 1]
    # An image that is replaced by one of the same size, with the same time.
    path = tmp_path / "b" / "MEL" / "0.bmp"
    time = path.stat().st_mtime_ns
    Image.new("RGB", (16, 16), (9, 9, 9)).save(path)
    os.utime(path, ns=(time, time))
    again = load_images(str(tmp_path / "b"), size_px=8)
    assert again.pixels is not None
    assert again.pixels[0]["pixels"][0] == 9
    assert again.fingerprint != loaded[1].fingerprint


def test_a_class_folder_that_is_a_link_is_followed(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data")
    draw(tmp_path / "elsewhere" / "x.png", 50)
    (folder / "BCC").symlink_to(tmp_path / "elsewhere")
    assert labels_of(load_images(str(folder)))["BCC/x.png"] == "BCC"


def test_a_link_to_a_folder_above_does_not_loop(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data")
    (folder / "MEL" / "up").symlink_to(folder)
    assert len(load_images(str(folder)).dataset) == 4


def test_a_class_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scandir = classes(tmp_path / "data"), os.scandir

    def denied(path: str) -> object:
        if path == str(folder / "NV"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"NV cannot be read \(Permission denied\); check its rights"):
        load_images(str(folder))


@pytest.mark.parametrize(("name", "kind"), [("BCC", "link that leads nowhere"), ("NV/x.png", "image cannot be read")])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, name: str, kind: str) -> None:
    folder = classes(tmp_path / "data")
    (folder / name).symlink_to("/nowhere")
    with pytest.raises(DataError, match=f"1 × {kind}: {name}"):
        load_images(str(folder))
    assert len(load_images(str(folder), skip_bad_images=True, skipped_csv=tmp_path / "skipped.csv").dataset) == 4


def test_every_type_that_the_decoder_reads_is_used(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data", n=0)
    for number, suffix in enumerate((".jpg", ".JPEG", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic")):
        draw(folder / ("MEL", "NV")[number % 2] / f"{number}{suffix}", number)
    for name in ("notes.txt", "MEL/scan.zip", ".DS_Store"):
        (folder / name).write_bytes(b"x")
    assert len(load_images(str(folder)).dataset) == 9


def test_of_nested_folders_the_top_one_is_the_diagnosis(tmp_path: Path) -> None:
    loaded = load_images(str(classes(tmp_path / "data", ("MEL/HAM", "MEL/BCN", "NV/HAM"), n=1)))
    assert labels_of(loaded) == {"MEL/HAM/0.png": "MEL", "MEL/BCN/0.png": "MEL", "NV/HAM/0.png": "NV"}


def test_an_image_beside_the_class_folders_is_a_problem_that_is_named(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data")
    draw(folder / "train.png", 99)
    with pytest.raises(DataError, match=r"1 × image without a label: train\.png \(.* or a folder for each diagnosis"):
        load_images(str(folder))
    loaded = load_images(str(folder), skip_bad_images=True, skipped_csv=tmp_path / "skipped.csv")
    assert len(loaded.dataset) == 4
    assert "images: 5 found, 4 used\n  left out: 1 × image without a label: train.png" in loaded.report


def test_folders_of_one_diagnosis_in_two_spellings_are_one(tmp_path: Path) -> None:
    loaded = load_images(str(classes(tmp_path / "data", ("MEL", "mel", "melanoma", "x"))))
    assert loaded.dataset.features["label"].names == ["MEL", "x"]
    assert "labels read as ISIC diagnoses: mel → MEL, melanoma → MEL" in loaded.report


def test_a_path_with_glob_characters_is_read(tmp_path: Path) -> None:
    assert len(load_images(str(classes(tmp_path / "data [1] *"))).dataset) == 4


def test_folders_of_splits_are_the_datasets_own_splits(tmp_path: Path) -> None:
    classes(tmp_path / "data" / "train")
    classes(tmp_path / "data" / "Test", n=1)
    loaded = load_images(str(tmp_path / "data"))
    assert loaded.given_splits is not None
    assert loaded.given_splits["Test/NV/0.png"] == "Test"
    assert labels_of(loaded)["train/MEL/1.png"] == "MEL"
    draw(tmp_path / "data" / "stray.png", 98)
    with pytest.raises(DataError, match=r"1 × image outside of the folders of splits: stray\.png"):
        load_images(str(tmp_path / "data"))
    beside = load_images(str(tmp_path / "data"), skip_bad_images=True, skipped_csv=tmp_path / "skipped.csv")
    assert beside.given_splits == loaded.given_splits
    assert labels_of(beside) == labels_of(loaded)
    classes(tmp_path / "data", ("BCC",))
    with pytest.raises(DataError, match=r"folders of splits \(Test, train\) beside others \(BCC\)"):
        load_images(str(tmp_path / "data"))


# ---- with a table ----

ROWS = "".join(f"{index}.png,{'MEL' if index % 2 else 'NV'},{40 + index}\n" for index in range(4))


def with_table(folder: Path, rows: str = ROWS, header: str = "file_name,label,age") -> Path:
    """Four images and a metadata.csv."""
    for index in range(4):
        draw(folder / f"{index}.png", index)
    (folder / "metadata.csv").write_text(f"{header}\n{rows}")
    return folder


def dangling(folder: Path) -> None:
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to("/nowhere.png")


def test_an_image_without_a_row_does_not_rename_the_others(tmp_path):
    rows = "".join(f"{index}.png,MEL,ISIC_{index}\n" for index in range(4))
    folder = with_table(tmp_path / "data", rows, "file_name,label,isic_id")
    draw(folder / "stray.png")
    loaded = load_images(str(folder), skip_bad_images=True, skipped_csv=tmp_path / "skipped.csv")
    assert loaded.dataset["image_id"][:] == [f"ISIC_{index}" for index in range(4)]
    assert "stray.png" in (tmp_path / "skipped.csv").read_text()


def test_a_table_of_another_name_is_not_passed_over(tmp_path):
    """HAM10000 as downloaded: two folders of parts, and a table beside them."""
    for part in ("part_1", "part_2"):
        draw(tmp_path / "data" / part / "0.png")
    (tmp_path / "data" / "HAM10000_metadata.csv").write_text("image_id,dx\n0,mel\n")
    with pytest.raises(
        DataError, match=r"HAM10000_metadata\.csv is not read: write the table as metadata\.csv, or remove it"
    ):
        load_images(str(tmp_path / "data"))


FAULTS: dict[str, tuple[str, Callable[[Path], object], str, list[str]]] = {
    "missing image": (ROWS + "9.png,MEL,30\n", lambda f: None, "1 × row without an image file: 9.png", ["9.png"]),
    "row twice": (ROWS + "1.png,NV,3\n", lambda f: None, "1 × image file in more than one row: 1.png", ["1.png"]),
    "no row": (ROWS, lambda f: draw(f / "new.png"), "1 × image without a row: new.png", ["new.png"]),
    "other type without a row": (ROWS, lambda f: draw(f / "n.webp"), "1 × image without a row: n.webp", ["n.webp"]),
    "dangling link with a row": (ROWS, dangling, "1 × image cannot be read", ["2.png"]),
    "dangling link without a row": (
        ROWS, lambda f: (f / "new.png").symlink_to("/nowhere.png"), "1 × image without a row", ["new.png"],
    ),
    "pipe": (ROWS, lambda f: os.mkfifo(f / "new.png"), "1 × image without a row", ["new.png"]),
    "no label": (ROWS.replace("MEL,41", ",41"), lambda f: None, "1 × image without a label: 1.png", ["1.png"]),
    "outside": (
        ROWS + "../../../etc/passwd,MEL,30\n", lambda f: None, "1 × row without an image file", ["../../../etc/passwd"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_folder_is_counted_and_named_or_left_out_and_listed(tmp_path: Path, fault: str) -> None:
    rows, harm, message, bad = FAULTS[fault]
    folder = with_table(tmp_path / "data", rows)
    harm(folder)
    with pytest.raises(DataError) as raised:
        load_images(str(folder))
    assert message in str(raised.value)
    loaded = load_images(str(folder), skip_bad_images=True, skipped_csv=tmp_path / "skipped.csv")
    assert loaded.dataset["image_id"][:] == [name for index in range(4) if (name := f"{index}.png") not in bad]
    assert set(pd.read_csv(tmp_path / "skipped.csv")["image_id"]) == set(bad)
    assert message in loaded.report


def test_ids_are_read_as_text(tmp_path: Path) -> None:
    rows = f"0.png,NV,007\n1.png,MEL,7\n2.png,NV,\n3.png,MEL,{2**60 + 1}\n"
    dataset = load_images(str(with_table(tmp_path / "data", rows, "file_name,label,lesion_id"))).dataset
    assert dataset["lesion_id"][:] == ["007", "7", None, str(2**60 + 1)]


def test_a_file_with_two_rows_is_left_out_also_where_images_have_ids_of_their_own(tmp_path: Path) -> None:
    rows = "0.png,NV,a\n1.png,MEL,b\n2.png,NV,c\n3.png,MEL,d\n3.png,NV,e\n"
    folder = with_table(tmp_path / "data", rows, "file_name,label,image_id")
    loaded = load_images(str(folder), skip_bad_images=True, skipped_csv=tmp_path / "skipped.csv")
    assert loaded.dataset["image_id"][:] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("file_name,age", "0.png,4\n", "needed is a column label, labels, dx"),
        ("file,label", "0.png,NV\n", r"lacks 1 columns: file_name \(it has file, label\)"),
        ("file_name,label", "", "no usable image is left"),
        ("", "", "cannot be read as a table"),
        ("file_name,label", '0.png,"NV\n', "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_words(tmp_path: Path, header: str, rows: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_images(str(with_table(tmp_path / "data", rows, header)))


def test_a_table_in_each_folder_of_a_split_names_its_own_images(tmp_path: Path) -> None:
    for split, label in (("train", "MEL"), ("test", "NV")):
        for number in range(2):
            draw(tmp_path / "data" / split / f"{number}.png", ord(split[1]) + number)
        (tmp_path / "data" / split / "metadata.csv").write_text(f"file_name,label\n0.png,{label}\n1.png,BCC\n")
    loaded = load_images(str(tmp_path / "data"))
    assert labels_of(loaded) == {"test/0.png": "NV", "test/1.png": "BCC", "train/0.png": "MEL", "train/1.png": "BCC"}


def test_a_table_beside_class_folders_adds_what_it_knows(tmp_path: Path) -> None:
    folder = classes(tmp_path / "data", n=1)
    (folder / "metadata.csv").write_text("file_name,lesion_id\nMEL/0.png,1\nNV/0.png,2\n")
    loaded = load_images(str(folder))
    assert labels_of(loaded) == {"MEL/0.png": "MEL", "NV/0.png": "NV"}
    assert loaded.dataset["lesion_id"][:] == ["1", "2"]
    draw(folder / "NV" / "1.png", 7)
    with pytest.raises(DataError, match=r"1 × image without a row: NV/1\.png"):
        load_images(str(folder))


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet"])
def test_a_table_of_another_kind_is_refused_and_not_left_out(tmp_path: Path, name: str) -> None:
    folder = classes(tmp_path / "data")
    (folder / name).write_text("{}")
    with pytest.raises(DataError, match=rf"{name} is not read: write the table as metadata\.csv"):
        load_images(str(folder))


@pytest.mark.parametrize("name", ["  ", "nowhere", "empty"])
def test_what_is_no_dataset_is_refused_with_what_it_must_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="--dataset"):
        load_images(str(tmp_path / name) if name.strip() else name)


def test_images_of_a_folder_are_decoded_once_and_again_after_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = [], decoding.decode_image
    monkeypatch.setattr(decoding, "decode_image", lambda *a, **k: (decoded.append(a[0]), decode(*a, **k))[1])
    folder = with_table(tmp_path / "data")
    loaded = load_images(str(folder))
    assert loaded.hashes["hash"].str.fullmatch("[0-9a-f]{64}").all()
    pd.testing.assert_frame_equal(load_images(str(folder)).hashes, loaded.hashes)
    (folder / "metadata.csv").write_text(f"file_name,label,age\n{ROWS.replace(',41', ',50')}")
    assert load_images(str(folder)).fingerprint != loaded.fingerprint
    assert len(decoded) == 4
    pd.testing.assert_frame_equal(hash_images(loaded.dataset), loaded.hashes, check_dtype=False)
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:-30])
    with pytest.raises(DataError, match="1 × image cannot be read"):
        load_images(str(folder))
