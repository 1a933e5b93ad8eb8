"""`python -m modeling.evaluation MODEL --verify`: are the files of a model folder those that were saved together?"""

from modeling.classifier import LesionClassifier
from modeling.data.splits_file import load_splits, splits_hash
from modeling.files import ModelFolderError
from modeling.metrics_file import read_metrics_of
from modeling.model_folder import (
    CONFIG_NAME,
    METRICS_NAME,
    ONNX_NAME,
    SPLITS_NAME,
    WEIGHTS_NAME,
    checked_file,
    fetch,
    file_beside,
)


def verify(classifier: LesionClassifier) -> str:
    """Compare the files of a loaded model with the hashes in config.json, and return which were compared.

    Raises:
        ModelFolderError: If one differs.
    """
    source, lesion, compared = classifier.source, classifier.lesion, [CONFIG_NAME]
    for name, sha256 in ((WEIGHTS_NAME, lesion["weights_sha256"]), (ONNX_NAME, lesion.get("onnx_sha256"))):
        if sha256:
            checked_file(fetch(source, name), sha256)
            compared.append(name)
    if lesion.get("splits_sha256") and (path := file_beside(source, SPLITS_NAME)):
        if splits_hash(load_splits(path)) != lesion["splits_sha256"]:
            raise ModelFolderError(f"{path} does not belong to this model; download the folder again.")
        compared.append(SPLITS_NAME)
    if path := file_beside(source, METRICS_NAME):
        read_metrics_of(path, classifier.codes, lesion["weights_sha256"])
        compared.append(METRICS_NAME)
    return f"verified: {', '.join(compared)}. The scores in {METRICS_NAME} have no hash; score again to compare them."
