"""The one line that sums an answer up, and how probabilities are written."""

import pytest

from modeling.operating_points import OperatingPoint
from modeling.prediction import Prediction, percent, rounded, target_words, verdict

MEL_95 = OperatingPoint("MEL@95", ("MEL",), 0.95, 0.1, 0.95, 0.62, 40, 100)
MEL_90 = OperatingPoint("MEL@90", ("MEL",), 0.90, 0.2, 0.90, 0.74, 40, 100)
ANY_95 = OperatingPoint("malignant@95", ("BCC", "MEL"), 0.95, 0.1, 0.95, 0.62, 60, 80)
ANY_90 = OperatingPoint("malignant@90", ("BCC", "MEL"), 0.90, 0.2, 0.90, 0.74, 60, 80)
NEVUS = {"MEL": 0.31, "NV": 0.69}


def line(points, *above, abstained=False, answer="NV"):
    return verdict(points, {p.name: p.name in above for p in points}, NEVUS, answer, abstained=abstained)


def test_a_nevus_above_the_melanoma_threshold_is_headed_by_the_threshold():
    assert line([MEL_95], "MEL@95") == (
        "Above the threshold set to catch 95 % of melanomas. Most probable: melanocytic nevus, 69 %."
    )


def test_a_first_answer_that_is_not_the_most_probable_is_said_beside_it():
    assert line([MEL_95], "MEL@95", answer="MEL") == (
        "Above the threshold set to catch 95 % of melanomas. First answer, weighted towards rare diagnoses and "
        "melanoma: melanoma, 31 %. Most probable: melanocytic nevus, 69 %."
    )


def test_a_lesion_below_every_threshold_is_no_all_clear():
    assert line([MEL_90, MEL_95]) == (
        "Below the thresholds set to catch 95 % and 90 % of melanomas: no all-clear. Most probable: melanocytic nevus, 69 %."
    )


def test_every_threshold_is_named_on_its_own_side():
    points = [MEL_90, MEL_95, ANY_90, ANY_95]
    assert line(points, "MEL@95", "malignant@95") == (
        "Above the thresholds set to catch 95 % of melanomas and of malignant lesions; "
        "below the thresholds set to catch 90 % of melanomas and of malignant lesions. "
        "Most probable: melanocytic nevus, 69 %."
    )
    assert line(points, "MEL@95", "malignant@90", "malignant@95").startswith(
        "Above the thresholds set to catch 95 % of melanomas, and 95 % and 90 % of malignant lesions; "
        "below the threshold set to catch 90 % of melanomas."
    )


def test_an_abstention_is_said_first_and_hides_no_threshold():
    text = line([MEL_95], "MEL@95", abstained=True)
    assert text.startswith("The model abstains:")
    assert "Above the threshold set to catch 95 % of melanomas." in text


def test_a_model_without_thresholds_says_so():
    assert line([]) == "This model has no tested threshold. Most probable: melanocytic nevus, 69 %."


def test_a_target_is_named_in_words():
    assert target_words(("MEL", "AK")) == "malignant and pre-malignant lesions"
    assert target_words(("rash", "NV")) == "lesions such as rash, melanocytic nevus"


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0 %"), (0.0004, "< 0.1 %"), (0.042, "4.2 %"), (0.953, "95 %"), (0.9996, "> 99.9 %"), (1, "100 %")],
)
def test_a_rounded_fraction_never_claims_certainty(fraction, text):
    assert percent(fraction) == text


def test_a_probability_is_never_rounded_to_certain_or_impossible():
    assert (rounded(0.0), rounded(1.0), rounded(0.12345678)) == (1e-6, 1 - 1e-6, 0.123457)
    sure = Prediction("MEL", 1.0, {"MEL": 1.0, "NV": 0.0}, False, None, {}, {}, "")
    assert sure.to_dict()["probabilities"] == {"MEL": 1 - 1e-6, "NV": 1e-6}
