"""modeling/data/augmentation.py: its geometry and colours are what they say, and each link of its chain does its own."""

import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from modeling.data.augmentation import Augmentation, colour_matrix, compress, tone_curve, warp_matrix

SAME_LIGHT = {"brightness": 0, "contrast": 0, "saturation": 0, "white_balance": 0, "gamma": (1, 1)}
CHAIN = ("blur", "sharpen", "downscale", "noise", "jpeg")
SAME_CAMERA = {f"{step}_probability": 0 for step in CHAIN}
NOTHING = {"crop_scale": (1, 1), "crop_ratio": (1, 1), **SAME_LIGHT, **SAME_CAMERA}


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
    monkeypatch.setattr("modeling.data.augmentation.warp_matrix", lambda *_, **__: np.eye(2, 3))
    assert (augmentation(image, np.random.default_rng(0)) == image).all()


def test_a_random_warp_shows_nothing_but_the_image_and_its_mirrored_rim_and_never_repeats():
    rng = np.random.default_rng(0)
    augmentation = Augmentation(224, fill=(0, 0, 0), erase_probability=0, **SAME_LIGHT, **SAME_CAMERA)
    image = np.full((258, 258, 3), 200, np.uint8)
    results = [augmentation(image, rng) for _ in range(50)]
    assert all(result.shape == (224, 224, 3) and result.dtype == np.uint8 for result in results)
    assert all((result == 200).all() for result in results)
    noise = rng.integers(0, 256, (258, 258, 3), dtype=np.uint8)
    assert len({augmentation(noise, rng).tobytes() for _ in range(20)}) == 20


def changed(image, number=0, **options):
    """What one step alone makes of an image."""
    augmentation = Augmentation(image.shape[0], fill=(0, 0, 0), erase_probability=0, **{**NOTHING, **options})
    rng = np.random.default_rng(number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling.data.augmentation.warp_matrix", lambda *_, **__: np.eye(2, 3))
        return augmentation(image, rng)


@pytest.fixture
def textured():
    """Noise of all frequencies about grey, 160 px."""
    return np.random.default_rng(0).normal(128, 20, (160, 160, 3)).clip(0, 255).astype(np.uint8)


def sharpness(image):
    return cv2.Laplacian(image.astype(np.float32), cv2.CV_32F).std()


def test_each_link_of_the_chain_does_what_its_name_says(textured):
    flat = np.full((160, 160, 3), 128, np.uint8)
    for number in range(20):
        assert sharpness(changed(textured, number, blur_probability=1)) < sharpness(textured)
        assert sharpness(changed(textured, number, sharpen_probability=1)) > sharpness(textured)
        assert sharpness(changed(textured, number, downscale_probability=1)) < sharpness(textured)
        noise = changed(flat, number, noise_probability=1).astype(int) - 128
        assert 0.8 < noise.std() < 8.5
        assert (noise == noise[..., :1]).all()
        compressed = changed(textured, number, jpeg_probability=1).astype(int)
        assert 1 < np.abs(compressed - textured).mean() < 20
        for step in CHAIN[:3]:  # no light is added or taken
            assert changed(textured, number, **{f"{step}_probability": 1}).mean() == pytest.approx(128, abs=1)


def test_compression_is_that_of_the_format(textured):
    buffer = io.BytesIO()
    Image.fromarray(textured).save(buffer, "JPEG", quality=40, subsampling="4:2:0")
    expected = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs(compress(textured, 40).astype(int) - expected).mean() < 1
    red = np.zeros((16, 16, 3), np.uint8) + np.array([200, 30, 30], np.uint8)
    np.testing.assert_allclose(compress(red, 95), red, atol=4)  # red stays red: the channels are in order


def test_the_light_changes_its_colour_and_curve_within_bounds():
    grey = np.full((32, 32, 3), 128, np.uint8)
    gains = np.array([changed(grey, number, white_balance=0.1)[0, 0] / 128 for number in range(200)])
    assert 0.89 < gains.min() < 0.91
    assert 1.09 < gains.max() < 1.11
    assert np.abs(np.corrcoef(gains.T) - np.eye(3)).max() < 0.3  # each channel by itself
    curves = np.array([changed(grey, number, gamma=(0.5, 2))[0, 0, 0] for number in range(200)])
    assert 60 <= curves.min() < 75
    assert 170 < curves.max() <= 182
    assert tone_curve(2.0)[[0, 51, 255]].tolist() == [0, 10, 255]


def test_every_link_is_drawn_as_often_as_its_probability_says(textured):
    for step in ("downscale", "noise", "jpeg"):
        hit = [(changed(textured, n, **{f"{step}_probability": 0.3}) != textured).any() for n in range(200)]
        assert 40 < sum(hit) < 80, step
    either = [changed(textured, n, blur_probability=0.3, sharpen_probability=0.3) for n in range(200)]
    assert 40 < sum(sharpness(image) < sharpness(textured) for image in either) < 80
    assert 40 < sum(sharpness(image) > sharpness(textured) for image in either) < 80


def test_every_draw_fills_its_range_and_goes_no_further(monkeypatch):
    angles, sizes, centres, factors = [], [], [], []

    def warp(angle, size, centre, **sides):
        angles.append(angle), sizes.append(size), centres.append(centre)
        return warp_matrix(angle, size, centre, **sides)

    def colour(*drawn, mean):
        factors.append(drawn)
        return colour_matrix(*drawn, mean=mean)

    monkeypatch.setattr("modeling.data.augmentation.warp_matrix", warp)
    monkeypatch.setattr("modeling.data.augmentation.colour_matrix", colour)
    augmentation, rng = (
        Augmentation(28, fill=(0, 0, 0), brightness=0.1, contrast=0.2, saturation=0.3, crop_scale=(0.5, 1.2)),
        np.random.default_rng(0),
    )
    for _ in range(1000):
        augmentation(np.full((32, 32, 3), 100, np.uint8), rng)
    assert np.histogram(angles, 4, (0, 2 * np.pi))[0].min() > 200
    assert (np.ptp(factors, axis=0) > [0.19, 0.38, 0.57]).all()
    assert (np.abs(np.array(factors) - 1) <= [0.1, 0.2, 0.3]).all()
    width, height = np.abs(sizes).T / 32
    assert max(width.max(), height.max()) <= 1.2**0.5 + 1e-9
    assert (width * height).min() == pytest.approx(0.5, abs=0.02)
    assert (width * height).max() == pytest.approx(1.2, abs=0.03)
    assert (width / height).min() == pytest.approx(0.8, abs=0.02)
    assert (width / height).max() == pytest.approx(1.25, abs=0.02)
    assert 450 < (width < height).sum() < 550
    room = (1 - np.stack([width, height], axis=1)).clip(0) / 2
    reach = np.array(centres) / 32 / np.maximum(room, 1e-9)
    assert np.abs(reach).max() <= 1 + 1e-6
    assert (np.ptp(reach[room.min(axis=1) > 0.01], axis=0) > 1.9).all()


def test_no_symmetry_is_left_out():
    """An image that is red on its left side is red on each side now and then."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16, 0] = 255
    augmentation, sides = Augmentation(24, fill=(0, 0, 0)), set()
    for number in range(40):
        red = augmentation(pixels, np.random.default_rng(number))[:, :, 0]
        sides.add(int(np.argmax([red[:, :8].mean(), red[:, -8:].mean(), red[:8].mean(), red[-8:].mean()])))
    assert sides == {0, 1, 2, 3}


def test_a_mirrored_image_is_as_likely_as_not():
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


def test_a_rectangle_of_the_fill_colour_hides_a_part_in_one_image_of_four():
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
    grey = np.full((32, 32, 3), 100, np.uint8)
    middles = [int(changed(grey, number, brightness=0.2)[16, 16, 0]) for number in range(200)]
    assert 80 <= min(middles) < 83
    assert 117 < max(middles) <= 120
