from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from modeling.classifier import LesionClassifier
from modeling.evaluation.bootstrap import bootstrap_lesions, estimate_mean
from modeling.evaluation.saliency import (
    _ranks,
    centred_blob,
    off_centre,
    random_map,
    randomise_classifier,
    read_mask,
    score_heat_maps,
    score_map,
    score_road,
)


def inside(height: int = 8, width: int = 10) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[2:4, 3:7] = True
    return mask


def test_a_map_equal_to_its_mask_scores_one_and_its_opposite_zero() -> None:
    mask = inside()
    assert score_map(mask.astype(np.float32), mask) == pytest.approx({"heat_inside": 1, "pointing_game": 1, "iou": 1})
    opposite = score_map((~mask).astype(np.float32), mask)
    assert opposite == pytest.approx({"heat_inside": 0, "pointing_game": 0, "iou": 0})


def test_map_scores_are_worked_out_by_hand() -> None:
    mask = np.array([[True, True, False, False]])
    got = score_map(np.array([[4.0, 1.0, 3.0, 0.0]]), mask)
    # The two hottest pixels are one inside and one outside: they share one of three.
    assert got == pytest.approx({"heat_inside": 5 / 8, "pointing_game": 1, "iou": 1 / 3})


def test_a_constant_map_scores_by_area_whatever_the_order_of_its_ties() -> None:
    mask = inside()
    share = mask.mean()
    got = score_map(np.ones(mask.shape, np.float32), mask)
    hits = mask.sum() * share
    assert got == pytest.approx({"heat_inside": share, "pointing_game": share, "iou": hits / (2 * mask.sum() - hits)})


def test_a_map_without_heat_is_undefined_and_not_zero() -> None:
    assert all(np.isnan(value) for value in score_map(np.zeros((8, 10)), inside()).values())


def test_baselines_are_centred_and_random() -> None:
    blob = centred_blob(np.ones((9, 13)))
    assert blob.min() > 0.99  # as concentrated as no concentration
    blob = centred_blob(np.eye(9, 13))
    assert np.unravel_index(blob.argmax(), blob.shape) == (4, 6)
    first, second = (random_map((9, 13), (3, 3), np.random.default_rng(seed)) for seed in (0, 1))
    assert first.shape == (9, 13)
    assert first.min() >= 0
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("power", [1, 4, 20])
def test_the_blob_is_as_concentrated_as_the_map(power) -> None:
    heat = np.random.default_rng(0).random((60, 80)) ** power
    blob = centred_blob(heat)

    def effective_area(values: np.ndarray) -> float:
        weights = values.astype(np.float64) / values.sum(dtype=np.float64)
        return 1 / (weights**2).sum()

    assert effective_area(blob) == pytest.approx(effective_area(heat), rel=0.01)


def test_a_crop_takes_image_and_mask_to_the_same_corner() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    mask = pixels[:, :, 0] > 128
    corners = set()
    for seed in range(12):
        image, inside = off_centre(Image.fromarray(pixels), mask, np.random.default_rng(seed))
        assert image.size == (39, 26)
        assert np.array_equal(np.asarray(image)[:, :, 0] > 128, inside)
        corners.add(np.asarray(image).tobytes())
    assert len(corners) == 4


def test_masks_are_read_in_the_image_s_geometry_and_empty_ones_refused(tmp_path) -> None:
    mask = np.zeros((20, 40), np.uint8)
    mask[:, :20] = 255
    Image.fromarray(mask).save(tmp_path / "a_segmentation.png")
    Image.fromarray(mask * 0).save(tmp_path / "b_segmentation.png")
    read = read_mask(tmp_path, "a", (10, 10))
    assert read[:, :5].all()
    assert not read[:, 5:].any()
    with pytest.raises(ValueError, match="marks no pixels"):
        read_mask(tmp_path, "b", (10, 10))
    (tmp_path / "c_segmentation.png").write_bytes((tmp_path / "a_segmentation.png").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"c_segmentation\.png' is damaged or incomplete"):
        read_mask(tmp_path, "c", (10, 10))


@pytest.fixture
def classifier(tiny_model_folder) -> LesionClassifier:
    return LesionClassifier.from_pretrained(tiny_model_folder, device="cpu", engine="torch")


def test_randomising_changes_the_copy_and_not_the_model(classifier, lesion_image) -> None:
    before = classifier.predict(lesion_image).probabilities
    randomised = randomise_classifier(classifier)
    assert randomised.predict(lesion_image).probabilities != before
    assert classifier.predict(lesion_image).probabilities == before
    ours, theirs = (model.engine.network.get_classifier().weight for model in (classifier, randomised))
    assert torch.equal(ours.flatten().sort().values, theirs.flatten().sort().values)


def test_a_classifier_that_reads_the_lesion_beats_its_randomised_self(classifier) -> None:
    """The classifier layer is set by hand to read the features that are hotter in the left half, where the lesion is."""
    pixels = np.full((128, 128, 3), 220, np.uint8)
    pixels[:, :64] = np.random.default_rng(0).integers(0, 120, (128, 64, 3))
    image, mask = Image.fromarray(pixels), np.zeros((128, 128), bool)
    mask[:, :64] = True
    with torch.inference_mode():
        maps = classifier.engine.network.forward_features(torch.from_numpy(classifier.transform(image))[None])[
            0
        ]  # (K, h, w)
    half = maps.shape[2] // 2
    contrast = maps[:, :, :half].mean(dim=(1, 2)) - maps[:, :, half:].mean(dim=(1, 2))
    with torch.no_grad():
        layer = classifier.engine.network.get_classifier()
        layer.weight.zero_()
        layer.weight[2, contrast.topk(3).indices] = 5.0
        layer.bias.copy_(torch.tensor([0.0, 0.0, 50.0, 0.0]))
    scores = score_heat_maps(classifier, [image] * 2, [mask] * 2, bootstrap_lesions(["a", "b"]))
    model = scores["model"]["heat_inside"]["value"]
    assert scores["model"]["n_without_heat"] == 0
    assert model > scores["random_map"]["heat_inside"]["value"]
    assert model > scores["centred_blob"]["heat_inside"]["value"]
    moved = scores["off_centre"]
    assert moved["n_images"] == 2 or "reason" in moved
    randomised = scores["randomised"]["heat_inside"]["value"]
    assert randomised is None or randomised < model
    similarity = scores["similarity_to_randomised"]["value"]
    assert similarity is None or similarity < 0.99


def test_road_is_repeatable_and_bounded(classifier, lesion_image) -> None:
    first = score_road(classifier, [lesion_image] * 2, bootstrap_lesions(["a", "b"]))
    assert first == score_road(classifier, [lesion_image] * 2, bootstrap_lesions(["a", "b"]))
    assert -0.5 <= first["model"]["value"] <= 0.5
    assert first["n_images"] == 2


def test_road_is_worked_out_by_hand() -> None:
    """The probability is the square of how much of the hottest fifth is untouched."""
    pixel_values = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    heat = np.random.default_rng(0).permutation(1024).reshape(32, 32).astype(np.float32)
    hottest = torch.from_numpy(heat >= 0.8 * 1024)

    def forward(pixels: np.ndarray) -> SimpleNamespace:
        batch = torch.from_numpy(pixels)
        untouched = (batch == pixel_values).all(dim=1)[:, hottest].double().mean(dim=1).numpy()
        return SimpleNamespace(probs=np.stack([1 - untouched**2, untouched**2], axis=1))

    reader = SimpleNamespace(
        codes=("NV", "MEL"),
        transform=lambda image: pixel_values.numpy(),
        forward=forward,
        explain=lambda image: SimpleNamespace(
            prediction=SimpleNamespace(diagnosis="MEL"), heat_map=lambda code, size: heat
        ),
    )
    found = score_road(reader, [Image.new("RGB", (32, 32))] * 2, bootstrap_lesions(["a", "b"]))
    # Without the hottest 10 % half of the fifth is left, without 30 or 50 % nothing; without the coldest all of it.
    assert found["model"]["value"] == pytest.approx(((1 - 0.25) / 2 + 1 / 2 + 1 / 2) / 3, abs=0.01)


def test_ranks_keep_the_order_of_heat_and_break_only_ties_by_chance() -> None:
    heat = np.array([[0.0, 3.0, 0.0], [1.0, 0.0, 2.0]])
    ranks = _ranks(heat, np.random.default_rng(0))
    assert ranks[heat > 0] == pytest.approx([1.0, 0.6, 0.8])
    assert sorted(ranks[heat == 0]) == pytest.approx([0.0, 0.2, 0.4])


def test_maps_without_heat_count_neither_in_the_mean_nor_in_its_interval() -> None:
    found = estimate_mean(np.array([0.2, np.nan, 0.4, 0.6, np.nan, np.nan]), bootstrap_lesions([*"abcdef"]))
    assert found["value"] == pytest.approx(0.4)
    assert found["high"] == pytest.approx(0.6)
    assert "one lesion" in estimate_mean(np.array([0.2, np.nan, np.nan]), bootstrap_lesions([*"abc"]))["reason"]
