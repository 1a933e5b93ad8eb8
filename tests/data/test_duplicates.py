"""Images of one dataset are found in another: by id, by lesion, and saved again, with what is kept in a model folder."""

import io
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from modeling.data.demo import draw_lesion
from modeling.data.duplicates import HASHES_NAME, find_known, hash_images, read_hashes, write_hashes
from modeling.data.isic2019 import FEATURES
from modeling.data.problems import DataError
from modeling.images import decode_image
from modeling.labels import CODES


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
    assert set(found["reason"]) == {"near-duplicate"}
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
    """Rows of image_id, lesion_id and a number whose hash is far from those of other numbers."""
    hashes = [np.random.default_rng(number).bytes(32).hex() for _, _, number in rows]
    return pd.DataFrame(
        {"image_id": [row[0] for row in rows], "lesion_id": [row[1] for row in rows], "hash": hashes}, dtype=object
    )


def test_the_reason_is_the_strongest_that_holds() -> None:
    known = table_of([("ISIC_1", "L1", 1), ("ISIC_2", "L2", 2), ("val-000003", "dup:val-000003", 3), ("x", None, 4)])
    images = table_of([
        ("ISIC_1", "L1", 1), ("ISIC_2", "L9", 20), ("new", "L2", 21), ("copy", None, 3), ("val-000003", "dup:val-000003", 30),
        ("other", None, 31),
    ])  # fmt: skip
    found = find_known(images.set_axis(range(10, 16)), known)
    assert found.to_numpy().tolist() == [
        ["ISIC_1", "ISIC_1", "image id"],
        ["ISIC_2", "ISIC_2", "image id"],
        ["new", "ISIC_2", "lesion id"],
        ["copy", "val-000003", "near-duplicate"],
    ]


def test_nothing_is_known_of_nothing() -> None:
    images = table_of([("a", None, 1)])
    assert find_known(images, images[:0]).empty
    assert find_known(images[:0], images).empty


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", "image_id,lesion_id,hash\na,,xyz\n", "image_id,lesion_id,hash\na,,\n"]
)
def test_what_is_no_table_of_hashes_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / HASHES_NAME).write_text(content)
    with pytest.raises(DataError, match=f"{HASHES_NAME} is no table of image_id, lesion_id, hash"):
        read_hashes(tmp_path / HASHES_NAME)


def test_hashes_that_were_written_are_read_back(tmp_path: Path) -> None:
    hashes = table_of([("a", None, 1), ("b", "L", 2)])
    write_hashes(hashes[::-1], tmp_path / HASHES_NAME)
    pd.testing.assert_frame_equal(read_hashes(tmp_path / HASHES_NAME), hashes, check_dtype=False)
