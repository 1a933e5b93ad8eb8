"""modeling/data/augmentation.py: its geometry and colours are what they say, and none of its draws leaves the picture."""

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from modeling.data.augmentation import Augmentation, colour_matrix, warp_matrix

NOTHING = {"crop_scale": (1, 1), "crop_ratio": (1, 1), "brightness": 0, "contrast": 0, "saturation": 0}


def test_opencv_starts_no_threads_which_forked_loader_processes_would_wait_for_for_ever():
    assert cv2.getNumThreads() == 1


def warped(image, angle, size, centre, to_px):
    matrix = warp_matrix(angle, size, centre, from_px=image.shape[0], to_px=to_px)
    return cv2.warpAffine(image, matrix, (to_px, to_px), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def test_a_warp_mirrors_turns_and_crops_exactly_where_nothing_has_to_be_interpolated():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    assert (warped(image, 0, (40, 40), (0, 0), 40) == image).all()
    assert (warped(image, 0, (-40, 40), (0, 0), 40) == image[:, ::-1]).all()
    assert (warped(image, 0, (40, -40), (0, 0), 40) == image[::-1]).all()
    assert (warped(image, np.pi / 2, (40, 40), (0, 0), 40) == np.rot90(image, -1)).all()
    assert (warped(image, 0, (20, 20), (-10, -10), 20) == image[:20, :20]).all()
    assert (warped(image, 0, (20, 20), (10, -10), 20) == image[:20, 20:]).all()
    assert (warped(image, np.pi / 2, (20, 20), (10, -10), 20) == np.rot90(image, -1)[:20, 20:]).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize(
    "factors", [(1, 1, 1), (1.2, 1, 1), (1, 0.8, 1), (1, 1, 1.2), (0.8, 1.2, 0.8), (1.2, 0.8, 1.2)]
)
def test_colours_change_as_torchvision_changes_them_in_any_order(factors, order):
    image = np.random.default_rng(0).integers(60, 180, (32, 32, 3), dtype=np.uint8)  # nothing is clipped on the way
    matrix = colour_matrix(*factors, mean=image.mean((0, 1)))
    expected = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    steps = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
    for number in order:
        expected = steps[number](expected, factors[number])
    difference = cv2.transform(image, matrix) - 255 * expected.permute(1, 2, 0).numpy()
    assert np.abs(difference).max() < 1  # less than one level of 255


def test_an_augmentation_of_nothing_leaves_all_but_side_and_angle(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    augmentation = Augmentation(40, fill=(0, 0, 0), erase_probability=0, **NOTHING)
    monkeypatch.setattr("modeling.augmentation.warp_matrix", lambda *_, **__: np.eye(2, 3))
    assert (augmentation(image, np.random.default_rng(0)) == image).all()


def test_a_random_warp_stays_in_the_picture_but_for_the_corners_and_never_repeats():
    rng = np.random.default_rng(0)
    augmentation = Augmentation(224, fill=(0, 0, 0), brightness=0, contrast=0, saturation=0, erase_probability=0)
    image = np.full((258, 258, 3), 200, np.uint8)
    results = [augmentation(image, rng) for _ in range(50)]
    assert all(result.shape == (224, 224, 3) and result.dtype == np.uint8 for result in results)
    # The middle of every crop lies in the picture; corners of a turned one may not.
    assert all((result[100:124, 100:124] == 200).all() for result in results)
    assert 0.01 < np.mean([(result == 0).mean() for result in results]) < 0.15
    noise = rng.integers(0, 256, (258, 258, 3), dtype=np.uint8)
    assert len({augmentation(noise, rng).tobytes() for _ in range(20)}) == 20


def test_every_draw_fills_its_range_and_goes_no_further(monkeypatch):
    angles, sizes, centres, factors = [], [], [], []

    def warp(angle, size, centre, **sides):
        angles.append(angle), sizes.append(size), centres.append(centre)
        return warp_matrix(angle, size, centre, **sides)

    def colour(*drawn, mean):
        factors.append(drawn)
        return colour_matrix(*drawn, mean=mean)

    monkeypatch.setattr("modeling.augmentation.warp_matrix", warp)
    monkeypatch.setattr("modeling.augmentation.colour_matrix", colour)
    augmentation, rng = (
        Augmentation(28, fill=(0, 0, 0), brightness=0.1, contrast=0.2, saturation=0.3),
        np.random.default_rng(0),
    )
    for _ in range(1000):
        augmentation(np.full((32, 32, 3), 100, np.uint8), rng)
    assert np.histogram(angles, 4, (0, 2 * np.pi))[0].min() > 200
    assert (np.ptp(factors, axis=0) > [0.19, 0.38, 0.57]).all()
    assert (np.abs(np.array(factors) - 1) <= [0.1, 0.2, 0.3]).all()
    width, height = np.abs(sizes).T / 32
    assert width.max() <= 1 >= height.max()
    assert (width * height).min() == pytest.approx(0.6, abs=0.02)
    assert (width * height).max() == pytest.approx(1, abs=0.02)
    assert (width / height).min() == pytest.approx(0.8, abs=0.02)
    assert (width / height).max() == pytest.approx(1.25, abs=0.02)
    assert 450 < (width < height).sum() < 550
    room = (1 - np.stack([width, height], axis=1)) / 2
    reach = np.array(centres) / 32 / np.maximum(room, 1e-9)
    assert np.abs(reach).max() <= 1 + 1e-6
    assert (np.ptp(reach[room.min(axis=1) > 0.01], axis=0) > 1.9).all()


def test_no_symmetry_is_left_out():
    """A picture that is red on its left side is red on each side now and then."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16, 0] = 255
    augmentation, sides = Augmentation(24, fill=(0, 0, 0)), set()
    for number in range(40):
        red = augmentation(pixels, np.random.default_rng(number))[:, :, 0]
        sides.add(int(np.argmax([red[:, :8].mean(), red[:, -8:].mean(), red[:8].mean(), red[-8:].mean()])))
    assert sides == {0, 1, 2, 3}


def test_a_mirrored_picture_is_as_likely_as_not():
    """Only a mirror turns a clockwise order of colours about the middle into the other one."""
    corners = np.zeros((64, 64, 3), np.uint8)
    corners[8:24, 8:24, 0] = corners[8:24, 40:56, 1] = corners[40:56, 40:56, 2] = 255
    augmentation = Augmentation(64, fill=(0, 0, 0), erase_probability=0, **NOTHING)
    mirrored = 0
    for number in range(200):
        result = augmentation(corners, np.random.default_rng(number)).astype(float)
        y, x = np.indices(result.shape[:2]) - 31.5
        angles = [np.arctan2((result[..., c] * y).sum(), (result[..., c] * x).sum()) for c in range(3)]
        mirrored += np.sin(angles[1] - angles[0]) < 0
    assert 70 < mirrored < 130


def test_a_rectangle_of_the_fill_colour_hides_a_part_in_one_picture_of_four():
    image = np.full((64, 64, 3), 200, np.uint8)
    augmentation = Augmentation(64, fill=(10, 20, 30), **NOTHING)
    shares, corners = [], []
    for number in range(400):
        hidden = (augmentation(image, np.random.default_rng(number)) == [10, 20, 30]).all(axis=2)
        shares.append(hidden.mean())
        rows, columns = np.nonzero(hidden)
        if len(rows):
            corners.append((rows.min(), columns.min(), 63 - rows.max(), 63 - columns.max()))
            assert hidden[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
    hit = np.array([share for share in shares if share])
    assert 70 < len(hit) < 130
    assert 0.01 < hit.min() < hit.max() <= 0.15
    assert (np.max(corners, axis=0) > 35).all()  # it comes near each edge, and far from it


def test_brightness_varies_within_its_bounds():
    image = np.full((32, 32, 3), 100, np.uint8)
    augmentation = Augmentation(32, fill=(0, 0, 0), erase_probability=0)
    middles = [int(augmentation(image, np.random.default_rng(number))[16, 16, 0]) for number in range(200)]
    assert min(middles) < 85
    assert max(middles) > 115
    # Contrast is about the mean, which the black corners lower: a little beyond [80, 120] is right.
    assert all(70 <= value <= 130 for value in middles)
