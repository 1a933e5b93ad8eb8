import numpy as np
import pytest

from modeling.calibration import softmax
from modeling.evaluation.bootstrap import bootstrap_lesions
from modeling.evaluation.metrics import point_metrics, score_split
from modeling.evaluation.reference import PUBLISHED, PUBLISHED_CONFUSION, compare, derived_scores
from modeling.labels import REFERENCE_CODES


def test_published_scores_follow_from_the_published_confusion_matrix() -> None:
    confusion = np.array(PUBLISHED_CONFUSION)
    labels, predicted = (np.repeat(places, confusion.ravel()) for places in np.indices((4, 4)).reshape(2, -1))
    assert len(labels) == 3503
    scores = point_metrics(np.eye(4)[predicted], labels, REFERENCE_CODES)
    for name, value in PUBLISHED.items():
        assert scores[name] == pytest.approx(value, abs=5e-5), name
    for name, value in derived_scores().items():
        assert scores[name] == pytest.approx(value), name
    assert derived_scores() == pytest.approx(
        {"balanced_accuracy": 0.8096, "macro_f1": 0.815, "MEL/recall": 0.717}, abs=5e-4
    )


@pytest.mark.parametrize("protocol", ["lesion", "original"])
def test_comparison_gives_numbers_only_for_what_this_run_measured(protocol: str) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 4
    scores = score_split(softmax(rng.normal(size=(40, 4))), labels, REFERENCE_CODES, bootstrap_lesions(np.arange(40)))
    published, on_original, on_lesion = compare(
        scores, protocol=protocol, dataset="isic2019", codes=REFERENCE_CODES, leakage_rate=0.0
    )
    assert published["scores"]["accuracy"]["value"] == 0.8578
    measured, other = (on_lesion, on_original) if protocol == "lesion" else (on_original, on_lesion)
    assert measured["scores"]["accuracy"] == scores["accuracy"]
    assert measured["scores"]["MEL/recall"] == scores["per_class"]["MEL"]["recall"]
    assert "scores" not in other
    assert other["reason"] == f"not measured in this run, whose protocol is {protocol}"


def test_comparison_refuses_other_data_and_other_diagnoses() -> None:
    arguments = {"protocol": "lesion", "leakage_rate": 0.0}
    demo = compare({}, dataset="demo", codes=REFERENCE_CODES, **arguments)[2]
    assert "measured on demo" in demo["reason"]
    assert "not comparable" in compare({}, dataset="isic2019", codes=("MEL", "NV"), **arguments)[2]["reason"]
