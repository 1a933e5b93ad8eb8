from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from modeling.evaluation.saliency import centred_blob, heat_maps_section, read_mask, score_map
from modeling.evaluation.split import Split


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
    # The two hottest pixels are one inside and one outside: they fraction one of three.
    assert got == pytest.approx({"heat_inside": 5 / 8, "pointing_game": 1, "iou": 1 / 3})


def test_a_constant_map_scores_by_area_whatever_the_order_of_its_ties() -> None:
    mask = inside()
    fraction = mask.mean()
    got = score_map(np.ones(mask.shape, np.float32), mask)
    hits = mask.sum() * fraction
    assert got == pytest.approx(
        {"heat_inside": fraction, "pointing_game": fraction, "iou": hits / (2 * mask.sum() - hits)}
    )


def test_a_map_without_heat_is_undefined_and_not_zero() -> None:
    assert all(np.isnan(value) for value in score_map(np.zeros((8, 10)), inside()).values())


def test_the_blob_is_centred() -> None:
    assert centred_blob(np.ones((9, 13))).min() > 0.99  # as concentrated as no concentration
    blob = centred_blob(np.eye(9, 13))
    assert np.unravel_index(blob.argmax(), blob.shape) == (4, 6)


@pytest.mark.parametrize("power", [1, 4, 20])
def test_the_blob_is_as_concentrated_as_the_map(power) -> None:
    heat = np.random.default_rng(0).random((60, 80)) ** power
    blob = centred_blob(heat)

    def effective_area(values: np.ndarray) -> float:
        weights = values.astype(np.float64) / values.sum(dtype=np.float64)
        return 1 / (weights**2).sum()

    assert effective_area(blob) == pytest.approx(effective_area(heat), rel=0.01)


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


def test_a_classifier_that_reads_the_lesion_beats_the_blob_and_images_without_a_mask_are_left_out(tmp_path) -> None:
    """The lesion is in a corner, where the model's map has its heat and a blob in the middle has none."""
    mask = np.zeros((40, 40), np.uint8)
    mask[:10, :10] = 255
    for image_id in ("a", "b"):
        Image.fromarray(mask).save(tmp_path / f"{image_id}_segmentation.png")
    heat = (mask > 0).astype(np.float32)
    explanation = SimpleNamespace(heat_map=lambda code: heat, prediction=SimpleNamespace(diagnosis="A"))
    table = pd.DataFrame({"image_id": ["a", "b", "c"]})
    context = SimpleNamespace(
        masks_dir=tmp_path,
        sample=Split(("A", "B"), np.full((3, 2), 0.5), np.zeros(3, int), np.arange(3), table=table),
        load=lambda image_id: Image.new("RGB", (40, 40)),
        classifier=SimpleNamespace(explain=lambda image: explanation),
    )
    found = heat_maps_section(context)
    assert found["n_images"] == 2
    assert found["mean_lesion_fraction"] == pytest.approx(100 / 1600)
    assert found["model"]["heat_inside"]["value"] == 1
    assert found["centred_blob"]["heat_inside"]["value"] < 0.1
    context.masks_dir = None
    assert "--masks" in heat_maps_section(context)["reason"]
