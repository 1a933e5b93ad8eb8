"""Which OOD score tells other images from those of test? AUROC of each score, each kind of image and each model.

    python benchmarks/abstention.py MODEL... --data_dir DIR

Everything is fitted on val of the model's own splits. `modeling.evaluation.ood.CHOSEN_ON` chooses, the other kinds are
only reported: generated ones, diagnoses that the model does not know, and the folders given by --photographs.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.special import logsumexp, softmax
from sklearn.metrics import roc_auc_score

from modeling.classifier import LesionClassifier
from modeling.data.sources import load_images
from modeling.data.splits import load_splits
from modeling.evaluation.context import StoredImages, classify_images, metadata_table
from modeling.evaluation.ood import CHOSEN_ON, FAR_KINDS, far_images
from modeling.images import decode_image

N_EACH = 100
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]  # logits (N, C), features (N, D) → (N,), higher is further away


def scores_fitted_on(logits: np.ndarray, features: np.ndarray, labels: np.ndarray) -> dict[str, Score]:
    """Return every score that is compared, fitted on val."""
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
        for factor in (1, 2, 4):
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


def compare(model: str, data_dir: str | None, photographs: list[str]) -> None:
    """Print the table of one model."""
    classifier = LesionClassifier.from_pretrained(model)
    dataset = load_images(str(classifier.lesion["dataset"]), data_dir=data_dir).dataset
    table, splits = metadata_table(dataset), load_splits(Path(model) / "splits.csv")
    images = StoredImages(dataset, table)
    names = {split: splits["image_id"][splits["split"] == split] for split in ("val", "test")}
    val, test = (classify_images(classifier, images.load(names[split])) for split in ("val", "test"))
    kinds = {kind: far_images(kind, N_EACH) for kind in sorted(FAR_KINDS, key=lambda kind: kind not in CHOSEN_ON)}
    for code in sorted(set(table["label"]) - set(classifier.codes)):
        kinds[code] = images.load(table["image_id"][table["label"] == code][:N_EACH])
    for folder in photographs:
        kinds[Path(folder).name] = [decode_image(path) for path in sorted(Path(folder).iterdir())]
    outside = {kind: classify_images(classifier, shown) for kind, shown in kinds.items()}
    labels = np.array([classifier.codes.index(code) for code in table["label"].loc[names["val"]]])
    print(
        f"\n{model}, {classifier.architecture}, val {len(labels)}, test {len(names['test'])}; chosen on {', '.join(CHOSEN_ON)}"
    )
    print(f"| score | {' | '.join(outside)} |\n|---|{'---|' * len(outside)}")
    for name, score in scores_fitted_on(*(part.astype(np.float64) for part in val), labels).items():
        inside = score(*(part.astype(np.float64) for part in test))
        aurocs = []
        for answers in outside.values():
            other = score(*(part.astype(np.float64) for part in answers))
            is_outside = np.arange(len(inside) + len(other)) >= len(inside)
            aurocs.append(roc_auc_score(is_outside, np.concatenate([inside, other])))
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in aurocs)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="Model folders.")
    parser.add_argument("--data_dir", help="Local copy of ISIC 2019.")
    parser.add_argument("--photographs", nargs="*", default=[], help="Folders of images that show no lesion.")
    options = parser.parse_args()
    for model in options.models:
        compare(model, options.data_dir, options.photographs)
