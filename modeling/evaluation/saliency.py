"""Heat maps that are measured: against lesion masks, against maps that know nothing, and by what they leave out.

A map that points at the lesion need not be a good one, since most lesions lie in the middle: a centred blob points
there too. So every score stands beside that of a centred blob as concentrated as the map, on images as they are and on
crops that put the lesion off the centre; beside a random map; and beside the same network with a randomised classifier,
where a map that shows what the model has learnt must fall (Adebayo et al. 2018, arXiv:1810.03292). ROAD (Rong et al.
2022, arXiv:2202.00449) asks whether the hottest pixels matter to the score.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import rankdata

from modeling.classifier import LesionClassifier
from modeling.engines import TorchEngine
from modeling.evaluation.bootstrap import Bootstrap, estimate_mean
from modeling.evaluation.context import track
from modeling.images import decode_image

SEED = 0
MASK_NAME = "{image_id}_segmentation.png"
SCORES = ("heat_inside", "pointing_game", "iou")
NO_HEAT = "no map has any heat"
REMOVED_PERCENT = (10, 30, 50)
OFF_CENTRE = 0.65


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
    """A Gaussian in the middle of the image, as concentrated as a heat map (H, W): what needs no model.

    Concentration is the effective area, (sum of heat)^2 / sum of heat^2 as a fraction of the image: a small blob in the
    middle lies inside most lesions, so that a wide one would be too easy to beat.
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
    return (y[:, None] * x[None, :]).astype(np.float32)


def off_centre(image: Image.Image, inside: np.ndarray, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """Crop an image and its mask (H, W) to a corner at random, OFF_CENTRE of each side, so that the lesion leaves the middle."""
    width, height = (round(OFF_CENTRE * side) for side in image.size)
    left, top = (int(rng.integers(2)) * (side - kept) for side, kept in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height)), inside[top : top + height, left : left + width]


def random_map(size: tuple[int, int], grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Random heat (H, W) as coarse as a network's own map, whose grid is given."""
    coarse = Image.fromarray(rng.random(grid, dtype=np.float32))
    return np.asarray(coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC)).clip(0, None)


def randomise_classifier(classifier: LesionClassifier) -> LesionClassifier:
    """Return a copy whose classifier layer has the same weights in a random order: same scale, nothing learnt."""
    randomised = copy.copy(classifier)
    network = copy.deepcopy(classifier.engine.network)
    weight = network.get_classifier().weight
    order = np.random.default_rng(SEED).permutation(weight.numel())
    with torch.no_grad():
        weight.copy_(weight.flatten()[torch.from_numpy(order).to(weight.device)].reshape(weight.shape))
    randomised.engine = TorchEngine(network, classifier.engine.device)
    return randomised


def score_heat_maps(
    classifier: LesionClassifier, images: Sequence[Image.Image], masks: Sequence[np.ndarray], bootstrap: Bootstrap
) -> dict[str, Any]:
    """Score the first answer's heat map of each image against its mask, boolean (H, W), and those of baselines."""
    randomised = randomise_classifier(classifier)
    generators = np.random.default_rng(SEED).spawn(len(images))
    scores: dict[str, list[dict[str, float]]] = {
        name: [] for name in ("model", "randomised", "centred_blob", "random_map")
    }
    moved: dict[str, list[dict[str, float]]] = {"model": [], "centred_blob": []}
    similarity, used = [], []
    for image, inside, rng in track(list(zip(images, masks, generators, strict=True)), "heat maps"):
        explanation = classifier.explain(image)
        code = explanation.prediction.diagnosis
        heat, other = explanation.heat_map(code), randomised.explain(image).heat_map(code)
        grid = explanation.evidence.shape[1], explanation.evidence.shape[2]
        scores["model"].append(score_map(heat, inside))
        scores["randomised"].append(score_map(other, inside))
        scores["centred_blob"].append(score_map(centred_blob(heat), inside))
        scores["random_map"].append(score_map(random_map(inside.shape, grid, rng), inside))
        similarity.append(_rank_correlation(heat, other))
        crop, inside = off_centre(image, inside, rng)
        used.append(bool(inside.any() and not inside.all()))
        if used[-1]:
            explanation = classifier.explain(crop)
            heat = explanation.heat_map(explanation.prediction.diagnosis)
            moved["model"].append(score_map(heat, inside))
            moved["centred_blob"].append(score_map(centred_blob(heat), inside))
    return {
        "n_images": len(images),
        "n_lesions": bootstrap.n_lesions,
        "mean_lesion_fraction": float(np.mean([inside.mean() for inside in masks])),
        **_mean_scores(scores, bootstrap),
        "similarity_to_randomised": estimate_mean(np.array(similarity), bootstrap, reason=NO_HEAT),
        "off_centre": {"n_images": sum(used), **_mean_scores(moved, bootstrap.of(np.array(used)))}
        if any(used)
        else {"reason": "no crop shows a lesion and something else"},
    }


def _mean_scores(scores: dict[str, list[dict[str, float]]], bootstrap: Bootstrap) -> dict[str, Any]:
    """Return the mean of each score of each kind of map, and how many maps have no heat."""
    return {
        name: {
            "n_without_heat": int(sum(np.isnan(row["iou"]) for row in rows)),
            **{
                score: estimate_mean(np.array([row[score] for row in rows]), bootstrap, reason=NO_HEAT)
                for score in SCORES
            },
        }
        for name, rows in scores.items()
    }


def score_road(classifier: LesionClassifier, images: Sequence[Image.Image], bootstrap: Bootstrap) -> dict[str, Any]:
    """Score faithfulness: how far the first answer's probability falls when the hottest pixels are removed.

    ROAD, over 10, 30 and 50 % of the pixels removed: the mean of (probability without the coldest pixels - probability
    without the hottest) / 2, in [-0.5, 0.5]. Above 0 the hot pixels matter more than the cold ones; a random map has 0.
    """
    # Imported late, as in explain.py: only this measurement needs it.
    from pytorch_grad_cam.metrics.road import ROADLeastRelevantFirst, ROADMostRelevantFirst

    generators = np.random.default_rng(SEED).spawn(len(images))
    scores: dict[str, list[float]] = {"model": [], "centred_blob": []}
    for image, rng in track(list(zip(images, generators, strict=True)), "faithfulness of heat maps"):
        explanation = classifier.explain(image)
        code = explanation.prediction.diagnosis
        pixel_values = torch.from_numpy(classifier.transform(image))  # (3, S, S)
        size = (pixel_values.shape[1], pixel_values.shape[2])
        heat = explanation.heat_map(code, size=size)
        maps = {"model": heat, "centred_blob": centred_blob(heat)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)  # the library's imputer adds a little noise
            removed = [
                metric(percentile=100 - percent).perturbation(pixel_values, torch.from_numpy(_ranks(heat, rng)))
                for heat in maps.values()
                for percent in REMOVED_PERCENT
                for metric in (ROADMostRelevantFirst, ROADLeastRelevantFirst)
            ]
        probs = classifier.forward(torch.stack(removed).numpy()).probs[:, list(classifier.codes).index(code)]
        without_hottest, without_coldest = probs.reshape(len(maps), -1, 2).mean(axis=1).T
        for name, value in zip(maps, (without_coldest - without_hottest) / 2, strict=True):
            scores[name].append(float(value))
    return {
        "n_images": len(images),
        "n_lesions": bootstrap.n_lesions,
        **{name: estimate_mean(np.array(values), bootstrap) for name, values in scores.items()},
    }


def _ranks(heat: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace heat by its rank in [0, 1], ties (all that is cold) in random order, so that a fraction can be removed."""
    order = np.lexsort((rng.random(heat.size), heat.ravel()))
    ranks = np.empty(heat.size, dtype=np.float32)
    ranks[order] = np.linspace(0, 1, heat.size, dtype=np.float32)
    return ranks.reshape(heat.shape)


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two maps (H, W); NaN if one is constant."""
    ranks = [rankdata(values.ravel()) for values in (first, second)]
    if any(values.std() == 0 for values in ranks):
        return np.nan
    return float(np.corrcoef(*ranks)[0, 1])
