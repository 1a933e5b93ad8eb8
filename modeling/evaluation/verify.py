"""A model folder's hashes and its stored answer, computed anew: is it what was saved, and does it answer as it did?"""

from modeling.classifier import LesionClassifier
from modeling.data.splits import load_splits, splits_hash
from modeling.files import METRICS_NAME, RUN_NAME, SPLITS_NAME, WEIGHTS_NAME, ModelFolderError, read_json, shortened
from modeling.model_folder import ONNX_NAME, checked_file, fetch, file_beside
from modeling.training.calibrate_and_save import golden_prediction

# Two machines may differ by rounding, and JPEG-free drawing leaves nothing else to differ.
GOLDEN_TOLERANCE = 1e-3


def verify(classifier: LesionClassifier) -> str:
    """Check a loaded model against the hashes and the answer stored in its config, and say what was checked.

    Loading has compared config.json with its own hash already, if it holds one. Compared here: weights and ONNX network
    with their hashes, splits.csv with its hash, whether metrics.json and train_config.json are of this model, and the
    answer for a drawn image. The numbers of metrics.json have no hash; scoring again shows whether they hold.

    Raises:
        ModelFolderError: If there is no stored answer, or something differs.
    """
    lesion = classifier.lesion
    if not lesion.get("golden"):
        raise ModelFolderError(
            "config.json stores no golden prediction; only models trained by train.py can be verified."
        )
    checked = [f"weights sha256 {lesion['weights_sha256'][:12]}"]
    checked += ["every entry of config.json"] if lesion.get("config_sha256") else []
    checked_file(fetch(classifier.source, WEIGHTS_NAME), lesion["weights_sha256"])
    if lesion.get("onnx_sha256"):
        checked_file(fetch(classifier.source, ONNX_NAME), lesion["onnx_sha256"])
        checked.append(ONNX_NAME)
    try:
        beside = [_check_beside(classifier, name) for name in (METRICS_NAME, RUN_NAME, SPLITS_NAME)]
        gap, diagnosis, probability = _check_golden(classifier)
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelFolderError(
            f"what is stored beside the weights cannot be compared ({type(error).__name__}: {str(error)[:300]}); "
            "download the folder again."
        ) from error
    return (
        f"verified: {', '.join([*checked, *filter(None, beside)])}, golden prediction {diagnosis} {probability:.4f}, "
        f"largest difference {gap:.1e}. Not covered: the numbers of {METRICS_NAME}; score again to compare them."
    )


def _check_beside(classifier: LesionClassifier, name: str) -> str | None:
    """Compare one file beside the weights with config.json; return what was checked, None if there is no such file."""
    path, lesion = file_beside(classifier.source, name), classifier.lesion
    if path is None:
        return None
    if name == SPLITS_NAME:
        stored = {"splits_sha256": splits_hash(load_splits(path))}
    elif name == RUN_NAME:
        content = read_json(path)
        stored = {key: content[key] for key in ("run_id", "data_fingerprint", "splits_sha256")}
    else:
        content = read_json(path)
        if content["model"]["codes"] != list(classifier.codes):
            raise ModelFolderError(f"{name} has other diagnoses than config.json, or in another order.")
        stored = {
            **{key: content["model"][key] for key in ("weights_sha256", "run_id")},
            "data_fingerprint": content["data"]["fingerprint"],
        }
    for key, value in stored.items():
        if lesion.get(key) is not None and lesion[key] != value:
            raise ModelFolderError(
                f"{name} is not of this model: its {key} is {shortened(value)}, and config.json says {lesion[key]!r}."
            )
    return name


def _check_golden(classifier: LesionClassifier) -> tuple[float, str, float]:
    """Compare the answer for the drawn image with the stored one; return the difference, diagnosis and probability."""
    stored, now = classifier.lesion["golden"], golden_prediction(classifier)
    if now["mean_rgb"] != stored["mean_rgb"]:
        raise ModelFolderError(
            f"the drawn image itself differs (mean colour {now['mean_rgb']}, stored {shortened(stored['mean_rgb'])}): this "
            "version of the package or of Pillow draws differently, so the model cannot be verified with it."
        )
    if list(stored["probabilities"]) != list(now["probabilities"]):
        raise ModelFolderError(
            f"the stored answer is of {shortened(list(stored['probabilities']))}, the model's diagnoses are "
            f"{', '.join(classifier.codes)}: the labels are not those that it was saved with."
        )
    gap = max(abs(now["probabilities"][code] - value) for code, value in stored["probabilities"].items())
    if not gap <= GOLDEN_TOLERANCE:
        raise ModelFolderError(
            f"the answer for the drawn image differs by {gap:.4f} (now {now['probabilities']}, stored "
            f"{shortened(stored['probabilities'])}): the weights, the preprocessing or a library is not what it was."
        )
    return gap, now["diagnosis"], now["probabilities"][now["diagnosis"]]
