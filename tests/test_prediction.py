"""The verdict of an answer, and how probabilities are written."""

import pytest

from modeling.formatting import percent
from modeling.operating_points import OperatingPoint
from modeling.prediction import Prediction, rounded, target_name, verdict

MEL_95 = OperatingPoint("MEL@95", ("MEL",), 0.95, 0.1, 0.95, 0.62, 40, 100)
MEL_90 = OperatingPoint("MEL@90", ("MEL",), 0.90, 0.2, 0.90, 0.74, 40, 100)
ANY_95 = OperatingPoint("malignant@95", ("BCC", "MEL"), 0.95, 0.1, 0.95, 0.62, 60, 80)
ANY_90 = OperatingPoint("malignant@90", ("BCC", "MEL"), 0.90, 0.2, 0.90, 0.74, 60, 80)
ALL = [MEL_90, MEL_95, ANY_90, ANY_95]


def line(points, *above, abstained=False):
    reached = {point.name: point.name in above for point in points}
    return verdict(points, reached, diagnosis="NV", probability=0.81, abstained=abstained)


@pytest.mark.parametrize(
    ("points", "above", "expected"),
    [
        (
            ALL,
            ["MEL@95", "malignant@95"],
            "Flagged: above the 95 %-sensitivity thresholds for melanoma and for malignancy. "
            "Most likely: melanocytic nevus (81 %).",
        ),
        (
            ALL,
            ["malignant@90", "malignant@95"],
            "Flagged: above the 95 %-sensitivity threshold for malignancy. Most likely: melanocytic nevus (81 %).",
        ),
        (
            ALL,
            [],
            "Not flagged: below the 95 %-sensitivity thresholds for melanoma and for malignancy; this does not rule out disease. "
            "Most likely: melanocytic nevus (81 %).",
        ),
        (
            [MEL_90],
            [],
            "Not flagged: below the 90 %-sensitivity threshold for melanoma; this does not rule out disease. "
            "Most likely: melanocytic nevus (81 %).",
        ),
        ([], [], "This model has no tested threshold. Most likely: melanocytic nevus (81 %)."),
    ],
)
def test_the_verdict_names_one_threshold_a_target_and_the_most_probable_diagnosis(points, above, expected):
    assert line(points, *above) == expected


def test_an_abstention_gives_no_diagnosis():
    assert line(ALL, "MEL@95", abstained=True) == (
        "No answer: the photo does not look like the dermoscopic images that this model was trained on."
    )


def test_a_target_is_named_in_words():
    assert target_name(("MEL",)) == "melanoma"
    assert target_name(("MEL", "AK")) == "malignancy"
    assert target_name(("rash", "NV")) == "rash or melanocytic nevus"


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0 %"), (0.0004, "< 0.1 %"), (0.042, "4.2 %"), (0.953, "95 %"), (0.9996, "> 99.9 %"), (1, "100 %")],
)
def test_a_rounded_fraction_never_claims_certainty(fraction, text):
    assert percent(fraction) == text


def test_a_probability_is_never_rounded_to_certain_or_impossible():
    assert (rounded(0.0), rounded(1.0), rounded(0.12345678)) == (1e-6, 1 - 1e-6, 0.123457)
    priors = {"MEL": 0.5, "NV": 0.5}
    sure = Prediction("MEL", 1.0, {"MEL": 1.0, "NV": 0.0}, priors, (), False, None, {}, "", {}, "")
    assert sure.to_dict()["probabilities"] == {"MEL": 1 - 1e-6, "NV": 1e-6}
