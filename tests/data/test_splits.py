"""Lesions stay together, shares are kept, near-duplicates are found, and the reference system's split is reproduced exactly."""

import dataclasses
import io
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import pairwise_distances

from modeling.data import duplicates
from modeling.data.columns import FEATURES
from modeling.data.demo import draw_lesion
from modeling.data.duplicates import near_duplicates
from modeling.data.isic2019 import source_of
from modeling.data.problems import DataError
from modeling.data.sources import LoadedImages, load_images
from modeling.data.splits import diagnoses_of, group_lesions, leave_sources_out, make_splits, read_splits, splits_of
from modeling.data.splits_file import (
    LeakageError,
    check_no_leakage,
    describe_split,
    leakage,
    load_splits,
    splits_hash,
    write_splits,
)
from modeling.labels import CODES, REFERENCE_CODES
from support.hashes import hash_images


def lesions(n: int = 400, seed: int = 0) -> pd.DataFrame:
    """A table of n lesions with one to five images each, two diagnoses and two sources."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        label, source = rng.choice(["MEL", "NV"], p=[0.3, 0.7]), rng.choice(["BCN", "HAM"])
        for _ in range(int(rng.choice(5, p=[0.5, 0.2, 0.15, 0.1, 0.05])) + 1):
            rows.append((f"ISIC_{len(rows):07d}", f"{source}_{number:07d}", label, source))
    return pd.DataFrame(rows, columns=["image_id", "lesion_id", "label", "source"])


@pytest.fixture(scope="module")
def official(request: pytest.FixtureRequest) -> pd.DataFrame:
    """The table of the full official CSVs, read by other code than the builder's."""
    folder = request.getfixturevalue("real_data") / "isic2019_csv"
    labels = pd.read_csv(folder / "ISIC_2019_Training_GroundTruth.csv")
    metadata = pd.read_csv(folder / "ISIC_2019_Training_Metadata.csv")
    table = labels.merge(metadata, on="image").rename(columns={"image": "image_id"})
    table["label"] = table[list(CODES)].idxmax(axis=1)
    table["source"] = [source_of(lesion if isinstance(lesion, str) else None) for lesion in table["lesion_id"]]
    return table


@pytest.mark.parametrize("per_source", [1, 2, 3, 5])
def test_many_small_sources_leave_each_split_its_part(per_source: int) -> None:
    rows = [(f"i{n}", f"l{n}", ("MEL", "NV")[n % 2], f"site {n // 2 // per_source}") for n in range(600)]
    table = pd.DataFrame(rows, columns=["image_id", "lesion_id", "label", "source"])
    parts = make_splits(table, diagnoses=["MEL", "NV"])["split"].value_counts(normalize=True)
    assert parts.to_dict() == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15}, abs=0.01)


def test_all_images_of_a_lesion_share_a_split() -> None:
    splits = make_splits(lesions(), diagnoses=["MEL", "NV"])
    assert len(splits) == len(lesions())
    assert splits.groupby("lesion_id")["split"].nunique().max() == 1
    assert set(splits["split"]) == {"train", "val", "test"}


def test_each_diagnosis_of_each_source_is_split_70_15_15() -> None:
    splits = make_splits(lesions(), diagnoses=["MEL", "NV"])
    shares = pd.crosstab([splits["label"], splits["source"]], splits["split"], normalize="index")
    assert (shares - [0.15, 0.70, 0.15]).abs().max().max() < 0.02  # columns: test, train, val


def test_splits_do_not_depend_on_the_order_of_the_rows() -> None:
    table = lesions()
    shuffled = table.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(
        make_splits(table, diagnoses=["MEL", "NV"]), make_splits(shuffled, diagnoses=["MEL", "NV"])
    )


def test_the_seed_decides() -> None:
    first, again, other = (make_splits(lesions(), diagnoses=["MEL", "NV"], seed=seed) for seed in (1, 1, 2))
    assert splits_hash(first) == splits_hash(again) != splits_hash(other)


def test_splits_stay_the_same_over_releases_of_numpy_and_pandas() -> None:
    names = [f"L{number:02d}" for number in range(14)]
    table = pd.DataFrame({"image_id": names, "lesion_id": names, "label": "NV", "source": "HAM"})
    splits = make_splits(table, diagnoses=["NV"])
    assert splits["lesion_id"][splits["split"] == "val"].tolist() == ["L01", "L10"]
    assert splits["lesion_id"][splits["split"] == "test"].tolist() == ["L06", "L11"]


def test_only_the_wanted_diagnoses_are_split() -> None:
    assert set(make_splits(lesions(), diagnoses=["MEL"])["label"]) == {"MEL"}
    with pytest.raises(DataError, match="no image has a diagnosis of"):
        make_splits(lesions(), diagnoses=["DF"])


def test_without_pixels_an_image_without_lesion_is_a_lesion_of_its_own() -> None:
    table = lesions(50)
    table.loc[table["image_id"].isin(["ISIC_0000003", "ISIC_0000005"]), "lesion_id"] = np.nan
    splits = make_splits(table, diagnoses=["MEL", "NV"]).set_index("image_id")
    assert splits.loc["ISIC_0000003", "lesion_id"] == "dup:ISIC_0000003"
    assert splits.loc["ISIC_0000005", "lesion_id"] == "dup:ISIC_0000005"


def test_leakage_is_the_share_of_test_images_whose_lesion_is_in_train() -> None:
    rows = [
        ("a", "L1", "MEL", "HAM", "train"), ("b", "L1", "MEL", "HAM", "test"), ("c", "L2", "MEL", "HAM", "test"),
        ("d", "L3", "NV", "HAM", "val"), ("e", "L3", "NV", "HAM", "test"), ("f", None, "NV", "HAM", "train"),
        ("g", None, "NV", "HAM", "test"),
    ]  # fmt: skip
    splits = pd.DataFrame(rows, columns=["image_id", "lesion_id", "label", "source", "split"])
    assert leakage(splits) == {"overall": 0.25, "MEL": 0.5, "NV": 0.0}
    with pytest.raises(LeakageError, match="2 lesions are in more than one split: L1, L3"):
        check_no_leakage(splits)


def test_an_image_in_two_splits_is_leakage_and_an_unknown_split_is_refused(tmp_path: Path) -> None:
    splits = make_splits(lesions(30), diagnoses=["MEL", "NV"])
    check_no_leakage(splits)
    with pytest.raises(LeakageError, match="1 images are in more than one split: ISIC_0000000"):
        check_no_leakage(pd.concat([splits, splits.head(1).assign(split="test")]))
    write_splits(splits.assign(split="holdout"), tmp_path / "splits.csv")
    with pytest.raises(DataError, match="must be one of train, val, test, got 'holdout'"):
        load_splits(tmp_path / "splits.csv")


def test_one_moved_image_is_leakage() -> None:
    splits = make_splits(lesions(), diagnoses=["MEL", "NV"])
    several = splits[splits["lesion_id"].duplicated()].index[0]
    splits.loc[several, "split"] = "val" if splits.loc[several, "split"] == "test" else "test"
    with pytest.raises(LeakageError, match="1 lesions are in more than one split"):
        check_no_leakage(splits)


def test_written_splits_are_read_back_the_same(tmp_path: Path) -> None:
    table = lesions(40)
    table.loc[0, "lesion_id"] = None
    for protocol in ("lesion", "original"):
        splits = make_splits(table, diagnoses=["MEL", "NV"], protocol=protocol)
        write_splits(splits, tmp_path / "splits.csv")
        again = read_splits(tmp_path / "splits.csv", table)
        pd.testing.assert_frame_equal(again, splits, check_dtype=False)
        assert splits_hash(again) == splits_hash(splits)


def test_splits_of_other_data_are_refused_with_counts(tmp_path: Path) -> None:
    table = lesions(40)
    path = tmp_path / "splits.csv"
    write_splits(make_splits(table, diagnoses=["MEL", "NV"]), path)
    with pytest.raises(DataError, match=r"2 rows name images that the data do not have, such as ISIC_0000000, ISIC_"):
        read_splits(path, table[2:])
    more = pd.concat([table, table.head(3).assign(image_id=["x", "y", "z"])])
    with pytest.raises(DataError, match="3 images of the data have no row, such as x, y, z"):
        read_splits(path, more)
    with pytest.raises(DataError, match="1 labels differ from the data, such as ISIC_0000007"):
        read_splits(path, table.assign(label=table["label"].where(table["image_id"] != "ISIC_0000007", "DF")))
    with pytest.raises(DataError, match="1 lesion ids differ from the data, such as ISIC_0000007"):
        read_splits(path, table.assign(lesion_id=table["lesion_id"].where(table["image_id"] != "ISIC_0000007", "L")))
    pd.read_csv(path).drop(columns="split").to_csv(path, index=False)
    with pytest.raises(DataError, match="lacks 1 columns: split"):
        read_splits(path, table)


def test_leaving_a_source_out_tests_on_all_of_it_and_trains_on_the_others() -> None:
    splits = make_splits(lesions(), diagnoses=["MEL", "NV"])
    held_out = leave_sources_out(splits, ["HAM"])
    test = held_out[held_out["split"] == "test"]
    assert set(test["image_id"]) == set(splits["image_id"][splits["source"] == "HAM"])
    rest = held_out[held_out["split"] != "test"]
    expected = splits[(splits["source"] == "BCN") & (splits["split"] != "test")]
    pd.testing.assert_frame_equal(rest.reset_index(drop=True), expected.reset_index(drop=True))
    with pytest.raises(DataError, match="no image is of source MSK; the splits have BCN"):
        leave_sources_out(splits, ["HAM", "MSK"])


def test_several_sources_are_left_out_together() -> None:
    table = lesions()
    table.loc[table.index % 7 == 0, "source"] = "unknown"
    held_out = leave_sources_out(make_splits(table, diagnoses=["MEL", "NV"]), ["HAM", "unknown"])
    assert set(held_out["source"][held_out["split"] == "test"]) == {"HAM", "unknown"}
    assert set(held_out["source"][held_out["split"] != "test"]) == {"BCN"}


def test_the_file_of_a_run_that_left_a_source_out_is_read_back_for_the_same_source(tmp_path: Path) -> None:
    table = lesions()
    held_out = leave_sources_out(make_splits(table, diagnoses=["MEL", "NV"]), ["HAM"])
    path = tmp_path / "splits.csv"
    write_splits(held_out, path)
    again = leave_sources_out(read_splits(path, table, test_source=["HAM"]), ["HAM"])
    pd.testing.assert_frame_equal(again, held_out, check_dtype=False)
    for other in ([], ["BCN"]):
        with pytest.raises(DataError, match=r"images of the data have no row.*--test_source"):
            read_splits(path, table, test_source=other)


def drawn(seed: int, code: str = "NV") -> Image.Image:
    return draw_lesion(np.random.default_rng(seed), code, width_px=160, height_px=120)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def dataset_of(rows: list[tuple[bytes, str | None, str]]) -> datasets.Dataset:
    n = len(rows)
    columns = {
        "image": [{"bytes": row[0], "path": None} for row in rows],
        "image_id": [f"image_{index:03d}" for index in range(n)],
        "label": [row[2] for row in rows],
        "lesion_id": [row[1] for row in rows],
        "source": ["synthetic"] * n,
        "age_approx": [None] * n,
        "sex": [None] * n,
        "anatom_site_general": [None] * n,
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def test_images_without_lesion_id_share_the_split_of_their_near_duplicates() -> None:
    rows: list[tuple[bytes, str | None, str]] = []
    for seed in range(12):  # each picture three times: as it is, smaller, and brighter; without id
        image = drawn(seed, CODES[seed % 4])
        brighter = image.point(lambda value: min(255, int(value * 1.05)))
        rows += [(jpeg(picture), None, CODES[seed % 4]) for picture in (image, image.resize((120, 90)), brighter)]
    known = drawn(100)
    rows += [(jpeg(known), "L100", "NV"), (jpeg(known, 70), None, "NV"), (jpeg(drawn(101)), None, "NV")]
    data = dataset_of(rows)
    splits = make_splits(data, diagnoses=CODES, hashes=hash_images(data))
    for seed in range(12):
        group = splits[3 * seed : 3 * seed + 3]
        assert set(group["lesion_id"]) == {f"dup:image_{3 * seed:03d}"}
        assert group["split"].nunique() == 1
    assert splits["lesion_id"].tolist()[-3:] == ["L100", "L100", "dup:image_038"]


def test_near_duplicates_with_two_diagnoses_are_named(caplog: pytest.LogCaptureFixture) -> None:
    image = drawn(0)
    data = dataset_of([(jpeg(image), None, "NV"), (jpeg(image, 80), None, "MEL"), (jpeg(drawn(5)), None, "NV")])
    splits = make_splits(data, diagnoses=["MEL", "NV"], hashes=hash_images(data))
    assert "1 lesions have images of more than one diagnosis, such as dup:image_000" in caplog.text
    assert splits["split"][0] == splits["split"][1]


def test_a_lesion_with_two_diagnoses_is_named_as_a_lesion(caplog: pytest.LogCaptureFixture) -> None:
    table = lesions(40)
    table.loc[table["image_id"] == "ISIC_0000000", "label"] = "MEL"
    table.loc[table["image_id"] == "ISIC_0000001", ["label", "lesion_id"]] = ["NV", table["lesion_id"][0]]
    make_splits(table, diagnoses=["MEL", "NV"])
    assert f"1 lesions have images of more than one diagnosis, such as {table['lesion_id'][0]}" in caplog.text


def test_the_lesions_of_a_patient_share_a_split() -> None:
    table = lesions().assign(patient_id=lambda table: (table["lesion_id"].str[-3:].astype(int) // 3).astype(str))
    splits = make_splits(table, diagnoses=["MEL", "NV"])
    assert splits.groupby("patient_id")["split"].nunique().max() == 1
    assert describe_split(splits, patients=table.set_index("image_id")["patient_id"])["patients_apart"]
    by_lesion = make_splits(table.drop(columns="patient_id"), diagnoses=["MEL", "NV"])
    with pytest.raises(LeakageError, match=r"patients are in more than one split"):
        check_no_leakage(by_lesion.assign(patient_id=table["patient_id"]))


def test_no_image_is_hashed_where_every_lesion_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = dataset_of([(b"not decoded", f"L{index}", "NV") for index in range(4)])
    assert len(make_splits(unreadable, diagnoses=["NV"])) == 4


def test_pairs_of_near_duplicates_agree_with_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_PAIRS", 60 * 7)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, size=(60, 256), dtype=np.uint8)
    for index in range(0, 60, 3):  # chains: a hash, and two more with 0 to 57 bits flipped from the one before
        for copy in (index + 1, index + 2):
            bits[copy] = bits[copy - 1]
            bits[copy, rng.choice(256, size=index, replace=False)] ^= 1
    among = np.flatnonzero(rng.random(60) < 0.5)
    first, second = near_duplicates([np.packbits(row).tobytes().hex() for row in bits], among)
    near = (pairwise_distances(bits.astype(bool), metric="hamming") * 256).round() <= 32
    assert sorted(zip(first, second, strict=True)) == [(i, j) for i in among for j in np.flatnonzero(near[i])]
    assert len(first) > 40


def test_thousands_of_images_that_look_alike_are_grouped_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK_PAIRS", 2**18)
    bits = np.tile(np.random.default_rng(0).integers(0, 2, 256, dtype=np.uint8), (3000, 1))
    bits[np.arange(3000), np.arange(3000) % 256] ^= 1
    hashes = [row.tobytes().hex() for row in np.packbits(bits, axis=1)]
    tracemalloc.start()
    pairs = near_duplicates(hashes, np.arange(3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    _, group = connected_components(coo_matrix((np.ones(len(pairs[0])), pairs), shape=(3000, 3000)), directed=False)
    assert len(set(group)) == 1
    assert peak < 30e6  # 9 million pairs of two indices would take 144 MB


def test_lesions_that_near_duplicates_or_a_patient_connect_are_one_group() -> None:
    """The fourth image has no lesion id and looks like the first and the fifth, which have two."""
    table = pd.DataFrame({"image_id": list("abcdefg"), "lesion_id": ["L1", "L1", "L2", None, "L3", None, None]})
    table = table.assign(label="NV", patient_id=[None, None, "P", None, "P", None, None])
    words = {"a": "0" * 64, "b": "f" * 64, "c": "5" * 64, "d": "0" * 63 + "1", "e": "0" * 62 + "11", "f": "a" * 64}
    hashes = pd.DataFrame({"image_id": list("abcdefg"), "hash": [*words.values(), "3" * 64]})
    found, group = group_lesions(table, hashes)
    assert found["lesion_id"].tolist() == ["L1", "L1", "L2", "L1", "L3", "dup:f", "dup:g"]
    assert len(set(group)) == 3
    assert len(set(group[:5])) == 1


def test_the_original_protocol_is_a_seeded_permutation_of_an_image_folder() -> None:
    import torch

    table = lesions(40)
    files = sorted(f"{row.label}/{row.image_id}.jpg" for row in table.itertuples())  # as torchvision's ImageFolder
    parts = torch.utils.data.random_split(
        range(len(files)),
        [int(0.7 * len(files)), int(0.15 * len(files)), len(files) - int(0.7 * len(files)) - int(0.15 * len(files))],
        generator=torch.Generator().manual_seed(42),
    )
    splits = make_splits(table, diagnoses=["MEL", "NV"], protocol="original")
    for name, part in zip(("train", "val", "test"), parts, strict=True):
        expected = {Path(files[index]).stem for index in part.indices}
        assert set(splits["image_id"][splits["split"] == name]) == expected


def test_the_original_split_and_its_leakage_are_reproduced_on_the_official_csv(official: pd.DataFrame) -> None:
    splits = make_splits(official, diagnoses=REFERENCE_CODES, protocol="original")
    test = splits[splits["split"] == "test"]
    assert test["label"].value_counts().to_dict() == {"BCC": 485, "BKL": 405, "MEL": 683, "NV": 1930}
    percent = {name: round(100 * share, 1) for name, share in leakage(splits).items()}
    assert percent == {"overall": 56.0, "BCC": 81.9, "MEL": 77.5, "BKL": 54.8, "NV": 42.2}
    with pytest.raises(LeakageError):
        check_no_leakage(splits)


@pytest.mark.parametrize("diagnoses", [REFERENCE_CODES, CODES])
def test_the_official_csv_is_split_within_a_point_in_every_large_stratum(
    official: pd.DataFrame, diagnoses: tuple[str, ...]
) -> None:
    splits = make_splits(official, diagnoses=diagnoses)
    assert leakage(splits)["overall"] == 0
    counts = pd.crosstab([splits["label"], splits["source"]], splits["split"])
    shares = counts.div(counts.sum(axis=1), axis=0)[counts.sum(axis=1) >= 100]
    assert (shares - [0.15, 0.70, 0.15]).abs().max().max() < 0.01  # columns: test, train, val
    # Lesions with many photographs are in no split more often than in another.
    photographs = splits.groupby(["split", "lesion_id"]).size().groupby("split").mean()
    assert photographs.max() - photographs.min() < 0.05


@pytest.mark.slow
def test_the_byte_identical_real_images_share_a_split_with_or_without_their_ids(real_data: Path) -> None:
    dataset = load_images("isic2019", data_dir=real_data / "isic2019").dataset
    pairs = (("ISIC_0024366", "ISIC_0029861"), ("ISIC_0024777", "ISIC_0029938"))
    splits = make_splits(dataset, diagnoses=CODES).set_index("image_id")["split"]
    assert all(splits[first] == splits[second] for first, second in pairs)

    wanted = {image_id for pair in pairs for image_id in pair} | set(dataset["image_id"][:300])
    some = dataset.select([index for index, image_id in enumerate(dataset["image_id"]) if image_id in wanted])
    unknown = some.remove_columns("lesion_id").add_column(
        "lesion_id", [None] * len(some), feature=FEATURES["lesion_id"]
    )
    grouped = make_splits(unknown, diagnoses=CODES, hashes=hash_images(unknown)).set_index("image_id")["lesion_id"]
    assert all(grouped[first] == grouped[second] for first, second in pairs)
    assert grouped.nunique() >= len(some) - 20  # and few others are taken for one


def test_hashes_find_the_full_size_originals_of_the_small_copies(real_data: Path) -> None:
    folder = real_data / "isic2019" / "ISIC_2019_Training_Input"
    originals = [path for path in sorted((real_data / "originals").glob("*.jpg")) if (folder / path.name).exists()][:12]
    rows = [(path.read_bytes(), None, "NV") for path in originals]
    rows += [((folder / path.name).read_bytes(), None, "NV") for path in originals]
    hashes, n = hash_images(dataset_of(rows))["hash"].tolist(), len(originals)
    first, second = near_duplicates(hashes, np.arange(n))
    assert sorted(zip(first, second, strict=True)) == sorted((i, j) for i in range(n) for j in (i, n + i))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as a table"),
        (b"\x00\xff\xfe rubbish", "cannot be read as a table"),
        (b'image_id,lesion_id\n"a,b\n', "cannot be read as a table"),
        (b"a,b\n1,2\n", "lacks 5 columns: image_id, lesion_id, label, source, split"),
        (b"image_id,lesion_id,label,source,split\n" + b"x" * 1000 + b",l,MEL,HAM,test\n", "more than 200 characters"),
    ],
)
def test_what_is_no_table_of_splits_is_refused_by_name(tmp_path, content, words):
    path = tmp_path / "splits.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load_splits(path)
    assert str(path) in str(caught.value)


def test_missing_splits_are_refused_and_no_address_is_fetched(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path, "https://127.0.0.1:1/splits.csv"):
        with pytest.raises(DataError, match="cannot be read as a table"):
            load_splits(path)


def test_an_image_with_two_rows_is_refused(tmp_path):
    row = {"image_id": "a", "lesion_id": "l", "label": "MEL", "source": "HAM", "split": "test"}
    write_splits(pd.DataFrame([row, row]), tmp_path / "splits.csv")
    with pytest.raises(DataError, match="1 images have more than one row, such as a"):
        read_splits(tmp_path / "splits.csv", pd.DataFrame([row]))


def test_a_line_of_a_million_commas_is_refused_before_it_becomes_columns(tmp_path):
    path = tmp_path / "splits.csv"
    path.write_text("image_id,lesion_id,label,source,split\n" + "i,l,MEL,HAM,test," * 1_000_000)
    with pytest.raises(DataError, match="a line of 10000 characters"):
        load_splits(path)


def given_data() -> tuple[datasets.Dataset, dict[str, str]]:
    """Ten images in the dataset's own splits: two of test show what is in train, by lesion id and by near-duplicate."""
    rows: list[tuple[bytes, str | None, str]] = [(jpeg(drawn(seed)), None, CODES[seed % 2]) for seed in range(8)]
    rows += [(jpeg(drawn(0), 60), None, CODES[0]), (jpeg(drawn(50)), "L1", CODES[1])]
    rows[1] = (rows[1][0], "L1", CODES[1])
    names = ["train"] * 4 + ["validation"] * 2 + ["test"] * 4
    return dataset_of(rows), {f"image_{index:03d}": name for index, name in enumerate(names)}


def test_a_datasets_own_splits_are_used_as_they_are_and_their_leakage_is_reported() -> None:
    data, given = given_data()
    splits = make_splits(data, protocol="given", diagnoses=CODES[:2], given=given, hashes=hash_images(data))
    assert dict(zip(splits["image_id"], splits["split"], strict=True)) == {
        name: split.replace("validation", "val") for name, split in given.items()
    }
    assert leakage(splits) == {"overall": 0.5, CODES[0]: 0.5, CODES[1]: 0.5}


@pytest.mark.parametrize(
    ("renamed", "has"), [({"validation": "train"}, "test, train"), ({"test": "extra"}, "extra, train, validation")]
)
def test_splits_that_are_not_train_validation_and_test_are_refused_with_what_there_is(renamed, has) -> None:
    data, given = given_data()
    own = {name: renamed.get(split, split) for name, split in given.items()}
    with pytest.raises(DataError, match=f"needs a dataset with train, validation and test; this one has {has}"):
        make_splits(data, protocol="given", diagnoses=CODES[:2], given=own)
    with pytest.raises(DataError, match="this one has no splits"):
        make_splits(data, protocol="given", diagnoses=CODES[:2])


# ---- what a split may be called follows from the check, not from the option ----


def twins(n: int = 20) -> tuple[datasets.Dataset, pd.DataFrame]:
    """n pairs of near-duplicates without lesion ids, and their hashes."""
    rows: list[tuple[bytes, str | None, str]] = []
    for seed in range(n):
        image = drawn(seed, CODES[seed % 2])
        rows += [(jpeg(image), None, CODES[seed % 2]), (jpeg(image, 70), None, CODES[seed % 2])]
    data = dataset_of(rows)
    return data, hash_images(data)


@dataclasses.dataclass
class Options:
    protocol: str = "lesion"
    splits: str | None = None
    seed: int = 42
    test_source: tuple[str, ...] = ()
    diagnoses: list[str] = dataclasses.field(default_factory=lambda: list(REFERENCE_CODES))


def parted(data: datasets.Dataset, path: Path) -> Path:
    """Write splits that part every pair of twins, with an invented lesion id for each image."""
    ids = data["image_id"][:]
    names = [CODES[label] for label in data["label"]]
    rows = pd.DataFrame({"image_id": ids, "lesion_id": ids, "label": names, "source": "synthetic"})
    rows["split"] = ["train" if index % 2 == 0 else "test" if index % 8 < 4 else "val" for index in range(len(ids))]
    write_splits(rows, path)
    return path


@pytest.mark.parametrize("protocol", ["lesion", "original", "given"])
def test_a_file_of_splits_is_checked_for_near_duplicates(tmp_path: Path, protocol: str) -> None:
    data, hashes = twins(8)
    options = Options(protocol, str(parted(data, tmp_path / "splits.csv")))
    loaded = LoadedImages(data, hashes)
    if protocol == "lesion":
        with pytest.raises(LeakageError, match="8 lesions are in more than one split: dup:image_000"):
            splits_of(options, data, list(CODES[:2]), loaded)
        return
    splits = splits_of(options, data, list(CODES[:2]), loaded)
    said = describe_split(splits)
    assert (said["split_unit"], said["leakage"]["overall"], said["test_without_lesion_id"]) == ("image", 1.0, 1.0)


def test_the_random_split_of_images_reports_near_duplicates_as_leakage() -> None:
    data, hashes = twins()
    splits = make_splits(data, protocol="original", diagnoses=CODES[:2], hashes=hashes)
    where = splits.set_index("image_id")["split"]
    pairs = [(f"image_{2 * k:03d}", f"image_{2 * k + 1:03d}") for k in range(20)]
    in_test = [
        one for pair in pairs for one, other in (pair, pair[::-1]) if where[one] == "test" and where[other] == "train"
    ]
    assert leakage(splits)["overall"] == pytest.approx(len(in_test) / (where == "test").sum())
    assert in_test
    assert describe_split(splits)["split_unit"] == "image"


def test_a_split_is_called_what_it_is_whatever_made_it() -> None:
    splits = make_splits(lesions(), diagnoses=["MEL", "NV"])
    said = describe_split(splits)
    assert (said["split_unit"], said["test_without_lesion_id"], said["patients_apart"]) == ("lesion", 0.0, None)
    assert describe_split(make_splits(lesions(), diagnoses=["MEL", "NV"], protocol="original"))["split_unit"] == "image"


def test_train_and_val_need_each_diagnosis_and_test_does_not() -> None:
    rows = [(jpeg(drawn(seed, CODES[seed % 2])), f"L{seed}", CODES[seed % 2]) for seed in range(6)]
    data = dataset_of([*rows, (rows[1][0], "M1", CODES[2]), (rows[0][0], "M2", CODES[2])])
    splits = splits_of(Options(), data, list(CODES[:3]), LoadedImages(data, hash_images(data)))
    assert set(splits["split"][splits["label"] == CODES[2]]) == {"train", "val"}
    one = data.select(range(7))
    with pytest.raises(DataError, match=f"no image of {CODES[2]} in val"):
        splits_of(Options(), one, list(CODES[:3]), LoadedImages(one, hash_images(one)))


@pytest.mark.parametrize(
    ("codes", "expected"), [(["MEL", "NV"], ["all"]), (["BCC", "BKL", "MEL", "NV", "DF"], list(REFERENCE_CODES))]
)
def test_data_of_some_of_the_default_diagnoses_are_used_whole(codes: list[str], expected: list[str]) -> None:
    data = dataset_of([(b"", None, code) for code in codes])
    assert diagnoses_of(Options(), data) == expected
    assert diagnoses_of(Options(diagnoses=["MEL"]), data) == ["MEL"]
