"""Out-of-distribution (OOD) scores compared: AUROC of each score against test, for each kind of image and each model.

    python benchmarks/abstention.py MODEL... --data_dir DIR

Every score is fitted on val of the model's own splits. The kinds are generated images, diagnoses that the model does not
know, and the folders given by --photographs. All were seen while the score of `modeling.abstention` was designed.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import logsumexp, softmax
from side_by_side import write
from sklearn.metrics import roc_auc_score

from modeling.classifier import LesionClassifier
from modeling.data.sources import load_images
from modeling.data.splits_file import load_splits
from modeling.evaluation.context import Context
from modeling.evaluation.ood import FAR_KINDS, far_images
from modeling.images import decode_image
from modeling.inference import Outputs, run_images

N_EACH = 100
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # logits (N, C), features (N, D) → (N,), higher is further away


def scores_fitted_on(logits: np.ndarray, features: np.ndarray, labels: np.ndarray) -> dict[str, Score]:
    """Return the scores that are compared, fitted on val."""
    found: dict[str, Score] = {
        "energy": lambda z, f: -logsumexp(z, axis=1),
        "maximum probability": lambda z, f: -softmax(z, axis=1).max(axis=1),
        "feature norm": lambda z, f: -np.linalg.norm(f, axis=1),
    }
    length = np.linalg.norm(features, axis=1).mean()
    scales: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "": np.asarray,
        ", normalised": normalised,
        ", both": lambda f: np.hstack([normalised(f), f / length]),
    }
    for name, scale in scales.items():
        known = scale(features)
        found[f"kNN 10{name}"] = nearest(known, 10, scale)
        found[f"kNN 50{name}"] = nearest(known, 50, scale)
        found[f"Mahalanobis{name}"] = mahalanobis(known, labels, scale)
        distance = off_plane(known, 16, scale)
        found[f"residual 16{name}"] = lambda z, f, distance=distance: distance(f)
        weight = abs(logits.max(axis=1).mean()) / distance(features).mean()
        for factor in (1, 2, 3, 4):
            found[f"ViM 16, distance x {factor}{name}"] = lambda z, f, a=factor * weight, distance=distance: (
                a * distance(f) - logsumexp(z, axis=1)
            )
    return found


def normalised(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def nearest(known: np.ndarray, k: int, scale: Callable) -> Score:
    """Distance to the k-th nearest image of val (Sun et al. 2022, arXiv:2204.06507)."""

    def score(logits: np.ndarray, features: np.ndarray) -> np.ndarray:
        other = scale(features)
        squared = (other**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2 * other @ known.T
        return np.sqrt(np.maximum(np.partition(squared, k - 1, axis=1)[:, k - 1], 0))

    return score


def mahalanobis(known: np.ndarray, labels: np.ndarray, scale: Callable, shrinkage: float = 0.5) -> Score:
    """Least distance to a diagnosis' mean under one shrunk covariance (arXiv:1807.03888; normalised: 2505.18032)."""
    present = np.unique(labels)
    means = np.stack([known[labels == label].mean(axis=0) for label in present])
    residuals = known - means[np.searchsorted(present, labels)]
    covariance = residuals.T @ residuals / len(residuals)
    size = len(covariance)
    precision = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / size * np.eye(size))

    def score(logits: np.ndarray, features: np.ndarray) -> np.ndarray:
        offsets = [scale(features) - mean for mean in means]
        return np.min([((offset @ precision) * offset).sum(axis=1) for offset in offsets], axis=0)

    return score


def off_plane(known: np.ndarray, n_directions: int, scale: Callable) -> Callable[[np.ndarray], np.ndarray]:
    """Distance from the plane of greatest variance, the geometric part of ViM (Wang et al. 2022, arXiv:2203.10807)."""
    centre = known.mean(axis=0)
    directions = np.linalg.svd(known - centre, full_matrices=False)[2][:n_directions]

    def distance(features: np.ndarray) -> np.ndarray:
        offsets = scale(features) - centre
        return np.linalg.norm(offsets - (offsets @ directions.T) @ directions, axis=1)

    return distance


def compare(model: str, data_dir: str | None, photographs: list[str]) -> dict[str, object]:
    """Print the table of one model and return it."""
    classifier = LesionClassifier.from_pretrained(model)
    dataset = load_images(str(classifier.lesion["dataset"]), data_dir=data_dir).dataset
    context = Context(classifier, dataset, load_splits(Path(model) / "splits.csv"))
    kinds = {kind: far_images(kind, N_EACH) for kind in FAR_KINDS}
    kinds |= {
        Path(folder).name: [decode_image(path) for path in sorted(Path(folder).iterdir())] for folder in photographs
    }
    outside = {code: split.outputs for code, split in context.other_diagnoses.items()}
    for kind, images in kinds.items():
        ids = [f"{number}" for number in range(len(images))]
        outside[kind] = run_images(classifier, images, image_ids=ids, labels=[-1] * len(ids))

    def values_of(score: Score, outputs: Outputs) -> np.ndarray:
        return score(outputs.logits.astype(np.float64), outputs.features.astype(np.float64))

    val, test = context.val.outputs, context.test.outputs
    about = f"{classifier.architecture}, run {classifier.lesion.get('run_id')}"
    print(f"\n{about}, val {len(val.labels)}, test {len(test.labels)}")
    print(f"| score | {' | '.join(outside)} |\n|---|{'---|' * len(outside)}")
    aurocs: dict[str, dict[str, float]] = {}
    scores = scores_fitted_on(val.logits.astype(np.float64), val.features.astype(np.float64), val.labels)
    for name, score in scores.items():
        inside = values_of(score, test)
        aurocs[name] = {}
        for kind, outputs in outside.items():
            other = values_of(score, outputs)
            is_outside = np.arange(len(inside) + len(other)) >= len(inside)
            aurocs[name][kind] = round(float(roc_auc_score(is_outside, np.concatenate([inside, other]))), 4)
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in aurocs[name].values())} |", flush=True)
    counts = {kind: len(outputs.labels) for kind, outputs in outside.items()}
    return {"model": about, "n_val": len(val.labels), "n_test": len(test.labels), "n_outside": counts, "auroc": aurocs}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="Model folders.")
    parser.add_argument("--data_dir", help="Local copy of ISIC 2019.")
    parser.add_argument("--photographs", nargs="*", default=[], help="Folders of images that show no lesion.")
    options = parser.parse_args()
    write(
        "abstention",
        {"models": [compare(model, options.data_dir, options.photographs) for model in options.models]},
        {},
    )
