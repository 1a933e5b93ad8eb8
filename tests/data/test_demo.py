"""The demo drawings are the same at every run, look different by diagnosis, and carry the artefacts of real images."""

from collections.abc import Callable

import datasets
import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modeling.data import demo
from modeling.data.artefacts import draw_hair, draw_ink, draw_ruler, draw_vignette
from modeling.data.columns import FEATURES
from modeling.data.demo import draw_lesion, load_demo
from modeling.data.sources import LoadedImages, select_diagnoses
from modeling.data.splits import make_splits
from modeling.labels import CODES, REFERENCE_CODES
from support.hashes import hash_images

pytestmark = pytest.mark.slow

Artefact = Callable[[Image.Image, np.random.Generator], Image.Image]
ARTEFACTS = [draw_hair, draw_ruler, draw_vignette, draw_ink]


@pytest.fixture(scope="module")
def drawn() -> datasets.Dataset:
    return load_demo()


def test_the_demo_has_the_columns_of_the_real_data_and_says_that_it_is_synthetic(drawn: datasets.Dataset) -> None:
    assert drawn.features == FEATURES
    assert set(drawn["source"]) == {"synthetic"}
    assert len(set(drawn["image_id"])) == drawn.num_rows
    assert 700 <= drawn.num_rows <= 900
    assert {image.size for image in drawn.select(range(5))["image"]} == {(160, 120)}


def test_every_diagnosis_is_drawn_and_the_default_ones_most(drawn: datasets.Dataset) -> None:
    counts = np.bincount(drawn["label"][:], minlength=8)
    for code, n in zip(CODES, counts, strict=True):
        assert n >= (140 if code in REFERENCE_CODES else 30), code


def test_lesions_have_one_diagnosis_and_one_to_four_photographs(drawn: datasets.Dataset) -> None:
    table = drawn.remove_columns("image").to_pandas()
    lesions = table.dropna(subset="lesion_id").groupby("lesion_id")
    assert lesions["label"].nunique().max() == 1
    assert set(lesions.size()) == {1, 2, 3, 4}
    assert lesions["age_approx"].nunique().max() == 1


def test_metadata_and_lesion_ids_are_blank_here_and_there(drawn: datasets.Dataset) -> None:
    blank = drawn.remove_columns("image").to_pandas().isna().mean()
    for column in ("lesion_id", "age_approx", "sex", "anatom_site_general"):
        assert 0.01 < blank[column] < 0.15, column


def test_photographs_without_lesion_id_are_grouped_as_near_duplicates(drawn: datasets.Dataset) -> None:
    splits = make_splits(drawn, diagnoses=CODES, hashes=hash_images(drawn)).set_index("image_id")
    unknown = [row["image_id"] for row in drawn.remove_columns("image") if row["lesion_id"] is None]
    groups = splits.loc[unknown, "lesion_id"].value_counts()
    assert groups.index.str.startswith("dup:").all()
    assert set(groups) == {1, 2, 3, 4}
    # Copies of one photograph follow each other: each group is one run of images.
    runs = splits.loc[unknown, "lesion_id"]
    assert (runs != runs.shift()).sum() == len(groups)


def test_the_same_seed_draws_the_same_pixels_and_another_seed_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "LESIONS_PER_DEFAULT_DIAGNOSIS", 2)
    monkeypatch.setattr(demo, "LESIONS_PER_OTHER_DIAGNOSIS", 1)
    data = [load_demo(seed=seed) for seed in (0, 0, 1)]
    first, again, other = (LoadedImages(one, hash_images(one)).fingerprint for one in data)
    assert first == again != other


def test_a_simple_model_tells_the_default_diagnoses_apart_on_lesions_that_it_has_not_seen(
    drawn: datasets.Dataset,
) -> None:
    chosen = select_diagnoses(drawn, REFERENCE_CODES)
    split = make_splits(chosen, diagnoses=REFERENCE_CODES, hashes=hash_images(chosen)).set_index("image_id")["split"]
    is_test = np.array([split[image_id] == "test" for image_id in chosen["image_id"]])
    labels = np.array(chosen["label"][:])
    features = np.stack([colour_histogram(image) for image in chosen["image"]])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    model.fit(features[~is_test], labels[~is_test])
    assert balanced_accuracy_score(labels[is_test], model.predict(features[is_test])) >= 0.75


def test_artefacts_and_light_do_not_give_the_diagnosis_away(drawn: datasets.Dataset) -> None:
    chosen = select_diagnoses(drawn, REFERENCE_CODES)
    rim = np.stack([np.asarray(image)[[0, 1, 2, 60, -3, -2, -1]].mean(axis=(0, 1)) for image in corners(chosen)])
    labels = np.array(chosen["label"][:])
    is_test = np.arange(len(labels)) % 3 == 0
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rim[~is_test], labels[~is_test])
    assert balanced_accuracy_score(labels[is_test], model.predict(rim[is_test])) < 0.40  # chance is 0.25


def corners(dataset: datasets.Dataset) -> list[Image.Image]:
    return [image.crop((0, 0, 24, 120)) for image in dataset["image"]]


def colour_histogram(image: Image.Image) -> np.ndarray:
    middle = image.crop((40, 30, 120, 90)).quantize(colors=256, palette=PALETTE, dither=Image.Dither.NONE)
    return np.sqrt(np.bincount(np.asarray(middle).ravel(), minlength=216)[:216] / 4800)


PALETTE = Image.new("P", (1, 1))
PALETTE.putpalette([51 * level for r in range(6) for g in range(6) for b in range(6) for level in (r, g, b)])


@pytest.mark.parametrize("code", CODES)
def test_a_single_lesion_can_be_drawn_at_any_size(code: str) -> None:
    image = draw_lesion(np.random.default_rng(1), code, width_px=300, height_px=200)
    assert (image.size, image.mode) == ((300, 200), "RGB")
    again = draw_lesion(np.random.default_rng(1), code, width_px=300, height_px=200)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(again))


def test_an_unknown_diagnosis_is_not_drawn() -> None:
    with pytest.raises(ValueError, match="no drawing for diagnosis 'UNK'; choose one of MEL, NV"):
        draw_lesion(np.random.default_rng(0), "UNK", width_px=32, height_px=32)


@pytest.mark.parametrize("artefact", ARTEFACTS)
@pytest.mark.parametrize("size", [(160, 120), (1022, 767), (48, 64)])
def test_an_artefact_changes_a_part_of_a_picture_of_any_size_and_leaves_the_original(
    artefact: Artefact, size: tuple[int, int]
) -> None:
    image = Image.new("RGB", size, (214, 170, 150))
    with_artefact = artefact(image, np.random.default_rng(3))
    assert with_artefact.size == size
    assert with_artefact.mode == "RGB"
    changed = (np.abs(np.asarray(with_artefact, dtype=int) - np.asarray(image, dtype=int)) > 8).any(axis=2).mean()
    assert 0.001 < changed < 0.6
    assert image.getextrema() == ((214, 214), (170, 170), (150, 150))


def test_each_image_has_a_mask_of_its_lesion_which_lies_off_the_middle(drawn: datasets.Dataset) -> None:
    masks = demo.demo_masks()
    assert list(masks) == drawn["image_id"][:]
    darker, middles = [], []
    for row in drawn.select(range(0, len(drawn), 4)):
        inside = masks[row["image_id"]]
        assert inside.shape == (120, 160)
        assert 0.04 < inside.mean() < 0.5
        middles.append(np.argwhere(inside).mean(axis=0) / inside.shape)
        if CODES[row["label"]] in ("MEL", "NV"):  # darker than the skin around them, within the field of view
            grey = np.asarray(row["image"].convert("L"), dtype=float)
            darker.append(grey[inside].mean() < grey[~inside & (grey > 60)].mean())
    assert np.mean(darker) > 0.95
    assert (np.std(middles, axis=0) > 0.08).all()
