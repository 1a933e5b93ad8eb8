"""Images of one dataset are found in another: by file, id, lesion and look, with what is kept in a model folder."""

import io
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from modeling.data.columns import FEATURES
from modeling.data.demo import draw_lesion
from modeling.data.duplicates import check_same_images, find_known, read_hashes, write_hashes
from modeling.data.problems import DataError
from modeling.images import decode_image
from modeling.labels import CODES
from modeling.model_folder import HASHES_NAME
from support.hashes import hash_images


def saved(image: Image.Image, quality: int = 95) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def dataset_of(images: list[bytes], ids: list[str], lesions: list[str | None] | None = None) -> datasets.Dataset:
    n = len(images)
    columns = {
        "image": [{"bytes": data, "path": None} for data in images],
        "image_id": ids,
        "label": ["NV"] * n,
        "lesion_id": lesions or [None] * n,
        "source": ["unknown"] * n,
        "age_approx": [None] * n,
        "sex": [None] * n,
        "anatom_site_general": [None] * n,
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def drawn(seed: int) -> Image.Image:
    return draw_lesion(np.random.default_rng(seed), CODES[seed % 8], width_px=160, height_px=120)


def planted_copies(training: list[bytes], others: list[bytes], tmp_path: Path) -> tuple[set[str], set[str]]:
    """Hide copies of the first ten training images as they are and of the next ten saved again smaller; return both sets
    of ids: hidden and found, with nothing at hand but the hashes of the training images on disk."""
    known = dataset_of(training, [f"train-{index:06d}" for index in range(len(training))])
    write_hashes(hash_images(known), tmp_path / HASHES_NAME)
    again = []
    for data in training[10:20]:
        image = decode_image(data)
        again.append(saved(image.resize((image.width * 3 // 4, image.height * 3 // 4)), quality=60))
    # The ids are made of split and row, so that they coincide and mean nothing.
    external = [*others[:15], *training[:10], *again, *others[15:]]
    table = hash_images(dataset_of(external, [f"train-{index:06d}" for index in range(len(external))]))
    found = find_known(table, read_hashes(tmp_path / HASHES_NAME))
    assert found["reason"].value_counts().to_dict() == {"same file": 10, "near-duplicate": 10}
    hidden = {f"train-{15 + index:06d}": f"train-{index:06d}" for index in range(20)}
    pairs = dict(zip(found["image_id"], found["known_id"], strict=True))
    assert all(pairs[copy] == original for copy, original in hidden.items() if copy in pairs)
    return set(hidden), set(pairs)


def test_copies_of_drawings_are_found_20_of_20_and_nothing_else(tmp_path: Path) -> None:
    hidden, found = planted_copies(
        [saved(drawn(seed)) for seed in range(60)], [saved(drawn(seed)) for seed in range(100, 140)], tmp_path
    )
    assert found == hidden


def test_copies_of_real_photographs_are_found_20_of_20_and_nothing_else(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "isic2019"
    metadata = pd.read_csv(folder / "ISIC_2019_Training_Metadata.csv").drop_duplicates(
        "lesion_id"
    )  # one of each lesion
    paths = [folder / "ISIC_2019_Training_Input" / f"{image_id}.jpg" for image_id in metadata["image"][:1500]]
    images = [path.read_bytes() for path in paths]
    hidden, found = planted_copies(images[:1000], images[1000:], tmp_path)
    assert found == hidden


def table_of(rows: list[tuple[str, str | None, int]]) -> pd.DataFrame:
    """Rows of image_id, lesion_id and a number whose hashes are far from those of other numbers."""
    hashes = [np.random.default_rng(number).bytes(64).hex() for _, _, number in rows]
    table = pd.DataFrame({"image_id": [row[0] for row in rows], "lesion_id": [row[1] for row in rows]}, dtype=object)
    return table.assign(hash=[digits[:64] for digits in hashes], sha256=[digits[64:] for digits in hashes])


def test_the_reason_is_the_strongest_that_holds() -> None:
    known = table_of([
        ("ISIC_0000001", "HAM_0000001", 1), ("ISIC_0000002", "HAM_0000002", 2), ("MEL/3.jpg", "dup:MEL/3.jpg", 3),
        ("x", None, 4), ("y", "7", 5),
    ])  # fmt: skip
    images = table_of([
        ("a", "HAM_0000001", 1), ("ISIC_0000002", "L9", 20), ("new", "HAM_0000002", 21), ("copy", None, 3),
        ("MEL/3.jpg", "dup:MEL/3.jpg", 30), ("other", "7", 31), ("x", None, 32),
    ])  # fmt: skip
    images.loc[3, "sha256"] = "another file"
    found = find_known(images.set_axis(range(10, 17)), known)
    assert found.to_numpy().tolist() == [
        ["a", "ISIC_0000001", "same file"],
        ["ISIC_0000002", "ISIC_0000002", "image id"],
        ["new", "ISIC_0000002", "lesion id"],
        ["copy", "MEL/3.jpg", "near-duplicate"],
        ["other", "y", "lesion id"],  # the two share a file, so "7" is the same lesion in both
    ]


def test_ids_of_two_folders_mean_nothing() -> None:
    """Row numbers, paths and lesion numbers agree by chance; content that agrees is found whatever its name."""
    known = table_of([(f"MEL/{number}.jpg", str(number), number) for number in range(5)])
    others = table_of([(f"MEL/{number}.jpg", str(number), 100 + number) for number in range(5)])
    assert find_known(others, known).empty
    same = known.assign(image_id=[f"NV/{number}.jpg" for number in range(5)], lesion_id=None)
    assert find_known(same, known)["known_id"].tolist() == known["image_id"].tolist()


def test_images_that_are_others_under_the_same_names_are_refused() -> None:
    known = table_of([(f"MEL/{number}.jpg", None, number) for number in range(5)])
    check_same_images(known[::-1], known)
    check_same_images(known.assign(sha256="re-encoded"), known)
    with pytest.raises(
        DataError, match=r"2 images differ from the model's images of the same name, such as MEL/0.jpg, MEL/1.jpg"
    ):
        check_same_images(table_of([("MEL/0.jpg", None, 9), ("MEL/1.jpg", None, 8), ("MEL/2.jpg", None, 2)]), known)


def test_nothing_is_known_of_nothing() -> None:
    images = table_of([("a", None, 1)])
    assert find_known(images, images[:0]).empty
    assert find_known(images[:0], images).empty


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read as a table"),
        ("a,b\n1,2\n", "lacks 3 columns: image_id, lesion_id, hash"),
        ("image_id,lesion_id,hash\na,,xyz\n", "a hash is not 64 hexadecimal digits"),
        ("image_id,lesion_id,hash\na,,\n", "a hash is not 64 hexadecimal digits"),
    ],
)
def test_what_is_no_table_of_hashes_is_refused_by_name(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / HASHES_NAME).write_text(content)
    with pytest.raises(DataError, match=f"{HASHES_NAME}.*{words}"):
        read_hashes(tmp_path / HASHES_NAME)


def test_hashes_that_were_written_are_read_back(tmp_path: Path) -> None:
    hashes = table_of([("a", None, 1), ("b", "L", 2)])
    write_hashes(hashes[::-1], tmp_path / HASHES_NAME)
    pd.testing.assert_frame_equal(read_hashes(tmp_path / HASHES_NAME), hashes, check_dtype=False)
