"""Heat maps scored against lesion masks, beside a centred blob that is as concentrated as the map.

A map that points at the lesion need not be a good one: most lesions are in the middle of the image, so a centred blob points
there too.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from modeling.evaluation.context import Context
from modeling.evaluation.split import estimate_mean
from modeling.images import decode_image

MASK_NAME = "{image_id}_segmentation.png"
SCORES = ("heat_inside", "pointing_game", "iou")


def heat_maps_section(context: Context) -> dict[str, Any]:
    """Score the heat map of the predicted diagnosis for the images of the sample that have a mask."""
    folder = context.masks_dir
    if folder is None:
        return {"reason": "no lesion masks were given (--masks DIR)"}
    image_ids = context.sample.image_ids
    has_mask = np.array([(folder / MASK_NAME.format(image_id=image_id)).is_file() for image_id in image_ids])
    if not has_mask.any():
        return {"reason": "no image of the sample has a mask"}
    masked = context.sample.subset(has_mask)
    scores: dict[str, list[dict[str, float]]] = {"model": [], "centred_blob": []}
    fractions = []
    for image_id in tqdm(masked.image_ids, desc="heat maps"):
        image = context.load(image_id)
        inside = read_mask(folder, image_id, (image.height, image.width))
        explanation = context.classifier.explain(image)
        heat = explanation.heat_map(explanation.prediction.diagnosis)
        fractions.append(inside.mean())
        scores["model"].append(score_map(heat, inside))
        scores["centred_blob"].append(score_map(centred_blob(heat) if heat.max() > 0 else heat, inside))
    return {
        "n_images": len(masked),
        "n_lesions": masked.n_lesions,
        "mean_lesion_fraction": float(np.mean(fractions)),
        **{
            name: {
                score: estimate_mean(np.array([row[score] for row in rows]), masked, reason="no map has any heat")
                for score in SCORES
            }
            for name, rows in scores.items()
        },
    }


def read_mask(folder: Path, image_id: str, size: tuple[int, int]) -> np.ndarray:
    """Read a lesion mask, white inside the lesion, as boolean (H, W) of its image's (height, width).

    Raises:
        ValueError: If the file is damaged, or the mask marks no pixel, or all of them.
    """
    mask = decode_image(folder / MASK_NAME.format(image_id=image_id)).convert("L")
    inside = np.asarray(mask.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 127
    if inside.all() or not inside.any():
        raise ValueError(
            f"the mask of {image_id} marks {'all' if inside.all() else 'no'} pixels; leave it out of --masks"
        )
    return inside


def score_map(heat: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Score one heat map (H, W), >= 0, against a mask (H, W).

    Returns:
        `heat_inside`: fraction of the heat inside the lesion (energy-based pointing game, arXiv:1910.01279);
        `pointing_game`: 1 if the hottest pixel is inside (arXiv:1608.00507), a tie counting by its fraction;
        `iou`: overlap of the mask with as many of the hottest pixels as it has; pixels tied at the edge by their fraction.
        NaN for a map without any heat.
    """
    if heat.max() <= 0:
        return dict.fromkeys(SCORES, np.nan)
    heat, inside = heat.ravel().astype(np.float64), inside.ravel()
    n_inside = int(inside.sum())
    edge = np.partition(heat, -n_inside)[-n_inside]
    above, tied = heat > edge, heat == edge
    # Of the tied pixels only as many are taken as are missing; on average they hit the mask by its fraction among them.
    hits = inside[above].sum() + (n_inside - above.sum()) * inside[tied].mean()
    return {
        "heat_inside": float(heat[inside].sum() / heat.sum()),
        "pointing_game": float(inside[heat == heat.max()].mean()),
        "iou": float(hits / (2 * n_inside - hits)),
    }


def centred_blob(heat: np.ndarray) -> np.ndarray:
    """Return a Gaussian in the middle of the image that is as concentrated as a heat map (H, W).

    Concentration is the effective area, (sum of heat)^2 / sum of heat^2, as a fraction of the image: a small blob in the
    middle is inside most lesions, so a wide one would be too easy to beat.
    """
    area = heat.astype(np.float64).sum() ** 2 / max((heat.astype(np.float64) ** 2).sum(), 1e-12) / heat.size

    def sides(width: float) -> list[np.ndarray]:
        return [np.exp(-((np.linspace(-1, 1, side) / width) ** 2) / 2) for side in heat.shape]

    narrow, wide = 1e-3, 1e3
    for _ in range(50):
        width = np.sqrt(narrow * wide)
        reached = np.prod([side.sum() ** 2 / (side**2).sum() / side.size for side in sides(width)])
        narrow, wide = (width, wide) if reached < area else (narrow, width)
    y, x = sides(width)
    return np.outer(y, x).astype(np.float32)
