"""modeling/inputs.py: image files in a fixed order, and datasets."""

from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import datasets
import pytest

from modeling.images import ImageError
from modeling.inputs import ArchiveError, StreamedDataset, in_words, is_dataset, is_hub_id, list_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with four images, a table, a hidden folder and a linked one."""
    for name in ("b.JPG", "a.heic", "labels.csv", "notes", "sub/c.tif", ".cache/x.jpg", "z/d.webp"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "sub")
    return tmp_path / "in"


def relative(folder: Path, paths) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in paths]


def test_a_folder_gives_its_image_files_and_counts_what_it_leaves_out(folder):
    left_out = Counter()
    assert relative(folder, list_files([str(folder)], left_out)) == ["a.heic", "b.JPG", "sub/c.tif", "z/d.webp"]
    assert left_out == {
        "'.csv' files": 1,
        "'' files": 1,
        f"hidden or linked folder '{folder}/.cache'": 1,
        f"hidden or linked folder '{folder}/link'": 1,
    }
    assert in_words(left_out).startswith("Left out: ")
    assert "'.csv' files (1)" in in_words(left_out)
    assert in_words(Counter()) == ""


def test_a_file_that_is_named_counts_whatever_its_ending(folder):
    left_out = Counter()
    assert list(list_files([str(folder / "notes")], left_out)) == [str(folder / "notes")]
    assert not left_out


def test_an_input_named_twice_counts_once(folder):
    inside = [str(folder / "b.JPG"), str(folder), f"{folder}/../in", str(folder / "sub"), str(folder / "sub/c.tif")]
    assert relative(folder, list_files(inside, Counter())) == ["a.heic", "b.JPG", "sub/c.tif", "z/d.webp"]
    twice = [str(folder / "b.JPG"), str(folder / "a.heic"), f"{folder}/sub/../b.JPG"]
    assert relative(folder, list_files(twice, Counter())) == ["b.JPG", "a.heic"]


def test_the_output_and_its_parts_are_passed_over(folder):
    (folder / "out.csv.parts").mkdir()
    (folder / "out.csv.parts" / "files").write_bytes(b"")
    (folder / "out.csv").write_bytes(b"")
    before, after = Counter(), Counter()
    list(list_files([str(folder)], before, "out.csv"))
    assert before["'.csv' files"] == 1
    list(list_files([str(folder)], after))
    assert after["'.csv' files"] == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("user/name", True),
        ("user/name@v1.0", True),
        ("user/photo.jpg", False),
        ("./user", False),
        ("photos", False),
        ("a/b/c", False),
        ("/a", False),
        ("u" * 200 + "/x", False),
        ("x" * 10**6, False),
    ],
)
def test_only_user_and_name_are_looked_for_on_the_hub(name, expected):
    assert is_hub_id(name) == is_dataset([name], None) == expected


def test_a_path_that_exists_is_no_hub_id(tmp_path, monkeypatch):
    (tmp_path / "user" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("user/name")


@pytest.mark.parametrize("name", ["photos", "no/such/folder", "missing.parquet", "./x"])
def test_a_missing_path_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchiveError, match=f"'{name}' does not exist"):
        StreamedDataset(name, "train")
    with pytest.raises(ArchiveError, match=f"'{name}' does not exist"):
        list(list_files([name], Counter()))


def test_a_name_that_the_hub_does_not_give_is_told_as_path_and_as_dataset(monkeypatch):
    monkeypatch.setattr("datasets.load_dataset_builder", Mock(side_effect=OSError("no\n way")))
    with pytest.raises(ArchiveError, match=r"'me/lesions@v1' cannot be opened .* not here \(OSError: no way\)"):
        StreamedDataset("me/lesions@v1", None)


def test_a_split_needs_one_dataset():
    with pytest.raises(ArchiveError, match="--split is for one dataset"):
        is_dataset(["a", "b"], "test")


def one_image(tmp_path: Path, image, **columns) -> StreamedDataset:
    features = {"image": datasets.Image(), **{name: datasets.Value("string") for name in columns}}
    rows = {"image": [image], **{name: [value] for name, value in columns.items()}}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(str(tmp_path / "one.parquet"))
    return StreamedDataset(str(tmp_path / "one.parquet"), None)


def test_an_image_whose_id_is_zero_is_named_so(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "id": datasets.Value("int64")})
    (tmp_path / "a.jpg").write_bytes(b"a")
    rows = {"image": [str(tmp_path / "a.jpg")] * 2, "id": [0, None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "ids.parquet"))
    dataset = StreamedDataset(str(tmp_path / "ids.parquet"), None)
    assert [name for name, _ in dataset.items()] == ["0", str(tmp_path / "a.jpg")]


def test_files_of_a_hub_dataset_are_its_own_and_other_addresses_are_not(tmp_path, monkeypatch):
    dataset = one_image(tmp_path, {"bytes": b"x", "path": None})
    dataset.own_address = "hf://datasets/me/lesions@"
    opened = []

    class File:
        def __init__(self, path, mode, **options):
            opened.append((path, *options))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def read(self, size):
            return b"image"

    monkeypatch.setattr("fsspec.open", File)
    for path in ("hf://datasets/me/lesions@abc/a.jpg", "zip://a.jpg::hf://datasets/me/lesions@abc/train.zip"):
        assert dataset._located(path) == b"image"
    for path in (
        "hf://datasets/me/private@abc/a.jpg",
        "http://127.0.0.1/hf://datasets/me/lesions@/a.jpg",
        "hf://datasets/me/lesions@abc/a.zip::http://127.0.0.1/a",
        "file:///etc/passwd",
    ):
        with pytest.raises(ImageError, match="--fetch_urls"):
            dataset._located(path)
    assert len(opened) == 2
    dataset.fetch_urls = True
    assert dataset._located("https://a.example/x.jpg") == b"image"
    assert opened[2] == ("https://a.example/x.jpg", "client_kwargs")
    assert dataset._located("/a/local/path.jpg") == "/a/local/path.jpg"
    with pytest.raises(ImageError, match="no image in this row"):
        dataset._located(None)


def test_a_dataset_without_one_image_column_is_refused(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(str(tmp_path / "t.parquet"))
    with pytest.raises(ArchiveError, match="0 image columns among text"):
        StreamedDataset(str(tmp_path / "t.parquet"), None)
