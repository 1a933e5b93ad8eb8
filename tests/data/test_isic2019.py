"""ISIC 2019 from a folder, a zip and a download; every fault of a copy is counted, named and can be left out."""

import contextlib
import csv
import functools
import http.server
import os
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from modeling.data import decoding, isic2019
from modeling.data.isic2019 import IMAGES, LABELS_CSV, METADATA_CSV
from modeling.data.problems import DataError
from modeling.data.sources import load_images
from modeling.labels import CODES

IDS = [f"ISIC_000000{number}" for number in range(9)] + ["ISIC_0000009_downsampled"]
LESIONS = ["BCN_0000001", "BCN_0000001", "HAM_0000002", "MSK4_0000003", "", "", "BCN_0000004", "HAM_0000005", "", ""]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A local copy in the official layout: ten coloured squares, one of each diagnosis and two more."""
    folder = tmp_path / "isic"
    (folder / IMAGES).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image_id in IDS:
        noise = rng.integers(0, 255, size=(24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / IMAGES / f"{image_id}.jpg")
    labels = [[image_id, *np.eye(9)[index % 8]] for index, image_id in enumerate(IDS)]
    pd.DataFrame(labels, columns=["image", *CODES, "UNK"]).to_csv(folder / LABELS_CSV, index=False)
    metadata = pd.DataFrame({"image": IDS, "age_approx": [45.0, *[""] * 8, "60"], "anatom_site_general": "head/neck"})
    metadata["lesion_id"] = LESIONS
    metadata["sex"] = ["male", "", *["female"] * 8]
    metadata.to_csv(folder / METADATA_CSV, index=False)
    return folder


def change(path: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    edit(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def set_label(folder: Path, image_id: str, code: str, value: str) -> None:
    def edit(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["image"] == image_id, code] = value
        return table

    change(folder / LABELS_CSV, edit)


def repeat_row(path: Path) -> None:
    change(path, lambda table: pd.concat([table, table[table["image"] == IDS[0]]]))


def drop_row(path: Path) -> None:
    change(path, lambda table: table[table["image"] != IDS[0]])


def test_a_folder_gives_every_image_in_the_columns_of_the_contract(copy: Path) -> None:
    dataset = load_images("isic2019", data_dir=copy).dataset
    assert dataset.column_names == [
        "image", "image_id", "label", "lesion_id", "source", "age_approx", "sex", "anatom_site_general",
    ]  # fmt: skip
    assert dataset["image_id"][:] == IDS
    assert dataset.features["label"].names == ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC"]
    assert dataset["label"][:] == [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
    assert dataset["lesion_id"][:] == [lesion or None for lesion in LESIONS]
    assert dataset["source"][:] == [
        "BCN",
        "BCN",
        "HAM",
        "MSK",
        "unknown",
        "unknown",
        "BCN",
        "HAM",
        "unknown",
        "unknown",
    ]
    assert dataset["age_approx"][:] == [45.0, *[None] * 8, 60.0]
    assert dataset["sex"][:3] == ["male", None, "female"]
    assert dataset["anatom_site_general"][0] == "head/neck"


def test_the_cache_holds_paths_and_no_copy_of_the_pixels(copy: Path) -> None:
    dataset = load_images("isic2019", data_dir=copy).dataset
    stored = dataset.cast_column("image", datasets.Image(decode=False))[3]["image"]
    assert stored == {"bytes": None, "path": str(copy / IMAGES / f"{IDS[3]}.jpg")}
    expected = np.asarray(Image.open(copy / IMAGES / f"{IDS[3]}.jpg"))
    np.testing.assert_array_equal(np.asarray(dataset[3]["image"]), expected)


def test_hidden_files_and_the_masks_beside_the_images_are_no_images(copy: Path) -> None:
    (copy / IMAGES / "LICENSE.txt").write_text("CC BY-NC 4.0")
    (copy / IMAGES / "._ISIC_0000000.jpg").write_bytes(b"left by a file manager")
    (copy / "lesion_masks").mkdir()
    (copy / "lesion_masks" / "ISIC_0000000.png").write_bytes(b"")
    assert load_images("isic2019", data_dir=copy).dataset.num_rows == 10


def zip_images(folder: Path, prefix: str = f"{IMAGES}/") -> Path:
    archive = folder / f"{IMAGES}.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr(f"{prefix}LICENSE.txt", "CC BY-NC 4.0")
        for path in sorted((folder / IMAGES).iterdir()):
            opened.write(path, f"{prefix}{path.name}")
            path.unlink()
    (folder / IMAGES).rmdir()
    return archive


def test_runs_that_start_together_unpack_the_zip_once(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the second would delete the images that the first is reading by now, and put its own in their place."""
    archive, calls, extract = zip_images(copy), [], zipfile.ZipFile.extractall

    def slow(opened: zipfile.ZipFile, folder: Path) -> None:
        calls.append(folder)
        time.sleep(0.1)
        extract(opened, folder)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", slow)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(isic2019.unpack, [archive] * 2, [tmp_path / "cache"] * 2)
    assert first == second
    assert len(calls) == 1


def test_a_killed_extraction_leaves_nothing_that_is_taken_for_the_images(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, extract = zip_images(copy), zipfile.ZipFile.extractall

    def stop(opened: zipfile.ZipFile, folder: Path) -> None:
        opened.extract(opened.namelist()[1], folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile.ZipFile, "extractall", stop)
    with pytest.raises(KeyboardInterrupt):
        isic2019.unpack(archive, tmp_path / "cache")
    monkeypatch.setattr(zipfile.ZipFile, "extractall", extract)
    assert len(list(isic2019.unpack(archive, tmp_path / "cache").rglob("*.jpg"))) == len(IDS)


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", f"{IMAGES}/../../evil.jpg"])
def test_a_zip_that_points_outside_of_itself_writes_nothing_there(copy: Path, tmp_path: Path, name: str) -> None:
    archive = zip_images(copy)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, b"outside")
    isic2019.unpack(archive, tmp_path / "cache")
    assert all(path.is_relative_to(tmp_path / "cache") for path in tmp_path.rglob("*evil*"))
    assert not Path("/evil.jpg").exists()


@pytest.mark.parametrize("keep", [slice(None, -200), slice(0)])
def test_a_download_that_is_no_whole_zip_is_named_with_what_to_do(copy: Path, tmp_path: Path, keep: slice) -> None:
    archive = zip_images(copy)
    archive.write_bytes(archive.read_bytes()[keep] or b"<html>sign in</html>")
    with pytest.raises(
        DataError, match=rf"{IMAGES}\.zip is not a complete zip file .*; delete it and run the command again"
    ):
        isic2019.unpack(archive, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.jpg"))


def test_an_edited_metadata_file_is_another_dataset(copy: Path) -> None:
    before = load_images("isic2019", data_dir=copy).fingerprint
    for column, value in (
        ("age_approx", "50"),
        ("sex", "female"),
        ("anatom_site_general", "torso"),
        ("lesion_id", "HAM_9"),
    ):
        change(
            copy / METADATA_CSV,
            lambda table, column=column, value=value: table.assign(**{column: [value, *table[column][1:]]}),
        )
        after = load_images("isic2019", data_dir=copy).fingerprint
        assert after != before, column
        before = after


def image_of(folder: Path, index: int = 0) -> Path:
    return folder / IMAGES / f"{IDS[index]}.jpg"


FAULTS: dict[str, tuple[Callable[[Path], object], str, list[str]]] = {
    "missing": (lambda f: image_of(f).unlink(), "1 × row without an image file: ISIC_0000000", IDS[:1]),
    "empty": (lambda f: image_of(f).write_bytes(b""), "1 × image cannot be read: ISIC_0000000", IDS[:1]),
    "truncated": (
        lambda f: image_of(f).write_bytes(image_of(f).read_bytes()[:-300]),
        "1 × image cannot be read: ISIC_0000000",
        IDS[:1],
    ),
    "two that are no image": (
        lambda f: [image_of(f, 2).write_text("<html>404</html>"), image_of(f, 3).write_text("<html>404</html>")],
        "2 × image cannot be read: ISIC_0000002, ISIC_0000003",
        IDS[2:4],
    ),
    "no label": (lambda f: set_label(f, IDS[0], "MEL", "0.0"), "1 × labels do not sum to one", IDS[:1]),
    "two labels": (lambda f: set_label(f, IDS[0], "NV", "1.0"), "1 × labels do not sum to one", IDS[:1]),
    "label and unknown": (lambda f: set_label(f, IDS[0], "UNK", "1.0"), "1 × labels do not sum to one", IDS[:1]),
    "blank label": (lambda f: set_label(f, IDS[0], "NV", ""), "1 × labels do not sum to one", IDS[:1]),
    "row twice": (lambda f: repeat_row(f / LABELS_CSV), "1 × image with more than one row: ISIC_0000000", IDS[:1]),
    "metadata twice": (lambda f: repeat_row(f / METADATA_CSV), "1 × image with more than one row: ISIC_0000000", IDS[:1]),
    "no metadata": (
        lambda f: drop_row(f / METADATA_CSV), "1 × image without a row in both CSVs: ISIC_0000000", IDS[:1],
    ),
    "no row": (lambda f: [drop_row(f / LABELS_CSV), drop_row(f / METADATA_CSV)], "1 × image without a row in both CSVs", IDS[:1]),
    "only metadata": (
        lambda f: drop_row(f / LABELS_CSV), "1 × image without a row in both CSVs: ISIC_0000000", IDS[:1],
    ),
    "image twice": (
        lambda f: Image.new("RGB", (32, 24)).save(f / IMAGES / f"{IDS[0]}.png"), "1 × image file twice", IDS[:1],
    ),
    "dangling link": (
        lambda f: [image_of(f).unlink(), image_of(f).symlink_to("/nowhere.jpg")],
        "1 × image cannot be read: ISIC_0000000",
        IDS[:1],
    ),
    "pipe": (
        lambda f: [image_of(f).unlink(), os.mkfifo(image_of(f))],
        "1 × image cannot be read: ISIC_0000000",
        IDS[:1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_counted_and_named_or_left_out_and_listed(copy: Path, tmp_path: Path, fault: str) -> None:
    make, message, bad = FAULTS[fault]
    make(copy)
    with pytest.raises(DataError) as raised:
        load_images("isic2019", data_dir=copy)
    assert message in str(raised.value)
    assert "--skip_bad_images" in str(raised.value)

    dataset = load_images(
        "isic2019", data_dir=copy, skip_bad_images=True, skipped_csv=tmp_path / "run" / "skipped.csv"
    ).dataset
    assert dataset["image_id"][:] == [image_id for image_id in IDS if image_id not in bad]
    with (tmp_path / "run" / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted({row["image_id"] for row in rows}) == bad
    assert list(rows[0]) == ["image_id", "reason"]
    kind = message.split(" × ")[1].split(": ISIC")[0]
    assert any(row["reason"].startswith(kind) for row in rows)


@pytest.mark.parametrize("age", ["old", "inf", "-5", "1e300"])
def test_an_age_that_is_none_is_unknown(copy: Path, age: str) -> None:
    change(copy / METADATA_CSV, lambda table: table.assign(age_approx=[age, *table["age_approx"][1:]]))
    assert load_images("isic2019", data_dir=copy).dataset["age_approx"][:] == [*[None] * 9, 60.0]


def test_the_list_of_left_out_images_is_written_again_from_the_cache(copy: Path, tmp_path: Path) -> None:
    image_of(copy).unlink()
    for name in ("first.csv", "second.csv"):
        load_images("isic2019", data_dir=copy, skip_bad_images=True, skipped_csv=tmp_path / name)
    assert (tmp_path / "first.csv").read_text() == (tmp_path / "second.csv").read_text()
    assert IDS[0] in (tmp_path / "second.csv").read_text()


def test_an_error_names_only_the_first_few(copy: Path) -> None:
    for index in range(8):
        image_of(copy, index).unlink()
    with pytest.raises(DataError, match=r"8 × row without an image file: ISIC_0000000, .*ISIC_0000004, …"):
        load_images("isic2019", data_dir=copy)


@pytest.mark.parametrize(("name", "column"), [(LABELS_CSV, "SCC"), (METADATA_CSV, "lesion_id"), (LABELS_CSV, "image")])
def test_a_csv_without_a_column_is_named_with_the_column(copy: Path, name: str, column: str) -> None:
    change(copy / name, lambda table: table.drop(columns=column))
    with pytest.raises(DataError, match=rf"{name} lacks 1 columns: {column} "):
        load_images("isic2019", data_dir=copy, skip_bad_images=True)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b'image,"MEL\n1,2\n'])
def test_a_csv_that_is_none_is_named(copy: Path, content: bytes) -> None:
    (copy / LABELS_CSV).write_bytes(content)
    with pytest.raises(DataError, match=LABELS_CSV):
        load_images("isic2019", data_dir=copy)


def test_a_copy_without_its_files_is_told_the_layout(copy: Path, tmp_path: Path) -> None:
    (copy / METADATA_CSV).unlink()
    with pytest.raises(DataError, match=f"lacks {METADATA_CSV}; it must hold a folder {IMAGES}/"):
        load_images("isic2019", data_dir=copy)
    with pytest.raises(DataError, match=f"nowhere lacks {IMAGES}, {LABELS_CSV}, {METADATA_CSV}; it must hold"):
        load_images("isic2019", data_dir=tmp_path / "nowhere")


def test_a_file_that_vanishes_or_breaks_after_the_first_load_is_noticed(copy: Path) -> None:
    load_images("isic2019", data_dir=copy)
    whole = image_of(copy).read_bytes()
    image_of(copy).unlink()
    with pytest.raises(DataError, match="1 × row without an image file"):
        load_images("isic2019", data_dir=copy)
    image_of(copy).write_bytes(whole[:-300])
    with pytest.raises(DataError, match="1 × image cannot be read"):
        load_images("isic2019", data_dir=copy)


def test_an_image_that_is_replaced_by_one_of_the_same_size_and_time_is_read_again(copy: Path) -> None:
    path = image_of(copy).with_suffix(".bmp")
    image_of(copy).unlink()
    fingerprints = []
    for colour in ("red", "blue"):
        Image.new("RGB", (32, 24), colour).save(path)
        os.utime(path, (1_000_000_000, 1_000_000_000))
        loaded = load_images("isic2019", data_dir=copy, size_px=16)
        assert loaded.pixels is not None
        assert loaded.pixels[0]["pixels"][:3] == (b"\xff\0\0" if colour == "red" else b"\0\0\xff")
        fingerprints.append(loaded.fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_a_corrected_label_is_noticed(copy: Path) -> None:
    assert load_images("isic2019", data_dir=copy).dataset[0]["label"] == 0
    set_label(copy, IDS[0], "MEL", "0.0")
    set_label(copy, IDS[0], "NV", "1.0")
    assert load_images("isic2019", data_dir=copy).dataset[0]["label"] == 1


def test_images_are_checked_once_and_not_at_every_load(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counting(source: str, **options: int) -> Image.Image:
        decoded.append(source)
        return decode(source, **options)

    decode = decoding.decode_image
    monkeypatch.setattr(decoding, "decode_image", counting)
    load_images("isic2019", data_dir=copy)
    assert len(decoded) == 10
    load_images("isic2019", data_dir=copy)
    assert len(decoded) == 10


@pytest.fixture
def official_test(tmp_path: Path) -> Path:
    """The official test's layout: nine labels, weights of the challenge, no lesion ids; three images, one of them UNK."""
    folder = tmp_path / "test"
    images, labels_csv, metadata_csv = isic2019.TEST
    (folder / images).mkdir(parents=True)
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, size=(24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / images / f"ISIC_005{index}.jpg")
    (folder / labels_csv).write_text(
        "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK,score_weight,validation_weight\n"
        "ISIC_0050,0,1,0,0,0,0,0,0,0,1,0\nISIC_0051,0,0,0,0,0,0,0,0,1,1,0\nISIC_0052,0,0,0,0,0,0,0,1,0,1,0\n"
    )
    (folder / metadata_csv).write_text(
        "image,age_approx,anatom_site_general,sex\nISIC_0050,45,head/neck,male\nISIC_0051,,,\nISIC_0052,70,,female\n"
    )
    return folder


def test_the_official_test_has_the_columns_of_the_contract_and_a_ninth_label(official_test: Path) -> None:
    loaded = load_images("isic2019", data_dir=official_test, official_test=True)
    assert loaded.dataset.features["label"].names == ["NV", "SCC", "UNK"]
    assert loaded.dataset.remove_columns("image")[:] == {
        "image_id": ["ISIC_0050", "ISIC_0051", "ISIC_0052"],
        "label": [0, 2, 1],
        "lesion_id": [None] * 3,
        "source": ["unknown"] * 3,
        "age_approx": [45.0, None, 70.0],
        "sex": ["male", None, "female"],
        "anatom_site_general": ["head/neck", None, None],
    }
    assert loaded.hashes["hash"].str.len().eq(64).all()
    with pytest.raises(DataError, match="it must hold a folder ISIC_2019_Training_Input/"):
        load_images("isic2019", data_dir=official_test)


def test_the_official_test_is_downloaded_too(official_test: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = official_test / isic2019.TEST[0]
    with zipfile.ZipFile(images.with_suffix(".zip"), "w") as archive:
        for path in images.iterdir():
            archive.write(path, f"{images.name}/{path.name}")
    with served(official_test) as url:
        monkeypatch.setattr(isic2019, "URL", url)
        assert load_images("isic2019", official_test=True).dataset["label"][:] == [0, 2, 1]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def test_without_a_network_the_cause_and_the_way_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise FileNotFoundError("https://…/ISIC_2019_Training_Input.zip") from OSError("Name or service not known")

    monkeypatch.setattr(datasets.DownloadManager, "download", unreachable)
    with pytest.raises(
        DataError, match=r"could not be downloaded .*Check the network; .*--data_dir DIR, see docs/firewall"
    ):
        isic2019.load_isic2019()


def test_without_a_folder_the_official_files_are_downloaded_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isic2019.URL == "https://isic-challenge-data.s3.amazonaws.com/2019/"
    zip_images(copy)
    with served(copy) as url:
        monkeypatch.setattr(isic2019, "URL", url)
        first = load_images("isic2019").dataset
    assert first["image_id"][:] == IDS
    assert (
        load_images("isic2019").dataset[:]["label"] == first[:]["label"]
    )  # the server is gone: this comes from the cache


@pytest.mark.slow
def test_the_real_images_are_all_read_with_their_metadata(real_data: Path) -> None:
    dataset = load_images("isic2019", data_dir=real_data / "isic2019").dataset
    assert dataset.num_rows == 10015
    assert set(dataset["source"]) == {"HAM"}
    assert len(set(dataset["lesion_id"])) == 7470
    names = dataset.features["label"].names
    found = pd.Series([names[label] for label in dataset["label"]]).value_counts().to_dict()
    assert found == {"NV": 6705, "MEL": 1113, "BKL": 1099, "BCC": 514, "AK": 130, "VASC": 142, "DF": 115, "SCC": 197}


def test_the_full_csvs_beside_a_few_images_are_refused_with_the_count(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    (folder / IMAGES).mkdir(parents=True)
    for image_id in ("ISIC_0024306", "ISIC_0024307"):
        (folder / IMAGES / f"{image_id}.jpg").symlink_to(real_data / "isic2019" / IMAGES / f"{image_id}.jpg")
    for name in (LABELS_CSV, METADATA_CSV):
        (folder / name).symlink_to(real_data / "isic2019_csv" / name)
    with pytest.raises(DataError, match=r"25329 × row without an image file: ISIC_0000000, "):
        load_images("isic2019", data_dir=folder)
