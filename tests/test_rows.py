"""modeling/rows.py: one row per image, and CSV files that spreadsheets open safely."""

import csv
import io

import pytest

from modeling.files import ModelFolderError
from modeling.images import ImageError
from modeling.prediction import Prediction
from modeling.rows import columns_of, malignant_probability, row_of, write_rows


def read_back(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def written(rows, columns=None) -> str:
    buffer = io.StringIO(newline="")
    write_rows(buffer, rows, columns or rows[0])
    return buffer.getvalue()


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_texts_that_a_spreadsheet_would_run_are_quoted_as_labels_and_as_values(start):
    header, row = read_back(written([{f"{start}cmd|x": f"{start}1+1", "MEL": -0.5, "n": -1}]))
    assert header == [f"'{start}cmd|x", "MEL", "n"]
    assert row == [f"'{start}1+1", "-0.5", "-1"]  # numbers are numbers


def test_cells_with_line_ends_stay_one_cell():
    rows = [{"image": "a\r.jpg"}, {"image": "b\n.jpg"}, {"image": 'c",\r\n.jpg'}]
    assert read_back(written(rows))[1:] == [[row["image"]] for row in rows]


def test_a_missing_value_is_an_empty_cell_and_the_columns_say_the_order(tmp_path):
    write_rows(tmp_path / "t.csv", [{"b": None, "x": 1}, {"a": True, "b": "é"}], ["a", "b"])
    assert (tmp_path / "t.csv").read_bytes() == "a,b\r\n,\r\nTrue,é\r\n".encode()
    write_rows(tmp_path / "t.csv", [], ["a", "b"])
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\r\n"


def test_a_model_that_knows_no_malignant_diagnosis_says_nothing_of_malignancy():
    assert malignant_probability({"NV": 0.5, "BKL": 0.5}) == {}
    assert malignant_probability({"mole": 0.5, "other": 0.5}) == {}
    assert malignant_probability({"NV": 0.25, "AK": 0.25, "MEL": 0.5}) == {"malignant_probability": 0.75}
    assert "malignant_probability" not in columns_of(["mole", "other"], [])
    assert "malignant_probability" in columns_of(["NV", "MEL"], [])


def test_a_row_has_the_columns_of_the_table():
    points = {"MEL@95": True, "malignant@95": True}
    prediction = Prediction(
        diagnosis="NV",
        probability=0.75,
        probabilities={"MEL": 0.25, "NV": 0.75},
        priors={"MEL": 0.5, "NV": 0.5},
        flagged=("melanoma", "malignancy"),
        abstained=False,
        reason=None,
        operating_points=points,
        verdict="v",
        provenance={},
        notice="n",
    )
    columns = columns_of(["MEL", "NV"], list(points))
    assert list(row_of(prediction, "a.jpg")) == [name for name in columns if name != "error"]
    assert row_of(prediction, "a.jpg")["flagged"] == "melanoma; malignancy"
    assert columns["MEL@95"] is bool
    assert columns["probability"] is columns["malignant_probability"] is float
    assert row_of(ImageError("damaged"), "a\udcff.jpg") == {"image": "a\\xff.jpg", "error": "damaged"}


def test_a_diagnosis_named_as_another_column_is_refused():
    with pytest.raises(ModelFolderError, match="a diagnosis named error, reason, as another"):
        columns_of(["MEL", "error", "reason"], [])
    with pytest.raises(ModelFolderError, match="a diagnosis named MEL, as another"):
        columns_of(["MEL", "NV"], ["MEL"])
