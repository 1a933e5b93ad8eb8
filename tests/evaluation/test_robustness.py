import numpy as np
import pytest

from modeling.evaluation.ood import FAR_KINDS, SIDE_PX, far_images
from modeling.evaluation.robustness import CHANGES, change_image, score_change
from modeling.evaluation.split import Split

CODES = ("BCC", "BKL", "MEL", "NV")


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_changes_the_image_the_same_way_each_time_and_keeps_its_size(name, lesion_image) -> None:
    first, second = (change_image(name, lesion_image, 0) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.mode == "RGB"
    assert sorted(first.size) == sorted(lesion_image.size)
    assert not (first.size == lesion_image.size and np.array_equal(first, lesion_image))


def test_turning_shows_no_black_corners(lesion_image) -> None:
    assert np.asarray(change_image("rotation 15°", lesion_image, 0)).min() > 20


def test_score_of_a_change_is_worked_out_by_hand() -> None:
    split = Split(CODES, np.eye(4)[[0, 0, 1, 0]], np.array([0, 0, 1, 1]), np.arange(4))
    got = score_change(np.array([0, 1, 1, 0]), split)
    assert got["flip_rate"]["value"] == 0.25
    assert got["balanced_accuracy_gain"]["value"] == pytest.approx(-0.25)
    same = score_change(split.predicted, split)
    assert same["flip_rate"]["value"] == 0
    assert same["balanced_accuracy_gain"]["value"] == 0


@pytest.mark.parametrize("kind", FAR_KINDS)
def test_far_images_are_repeatable_and_all_different(kind) -> None:
    images = [np.asarray(image) for image in far_images(kind, 6)]
    assert all(image.shape == (SIDE_PX, SIDE_PX, 3) for image in images)
    assert all(np.array_equal(a, b) for a, b in zip(images, far_images(kind, 6), strict=True))
    # More images do not change the first ones.
    assert np.array_equal(images[0], far_images(kind, 12)[0])
    if kind != "blank":
        assert len({image.tobytes() for image in images}) == 6
