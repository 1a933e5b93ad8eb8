"""Many photos at once: a row each, and the table of them."""

import csv
import dataclasses
import io
import re

import answers
import batches
import pytest

from modeling.classifier import LesionClassifier
from modeling.images import ImageError
from modeling.labels import diagnosis_of
from stress.space_soak import photos
from support.space import Photo, pixels_of
from support.untrained import untrained_folder

COMPARED = ("verdict", "diagnosis", "probability", "probabilities", "operating_points", "abstained", "flagged")


def rows_of(classifier, *sent: Photo) -> list[dict]:
    return list(batches.classify_rows(classifier, sent))


def test_each_photo_of_a_batch_gets_the_answer_that_it_gets_alone(classifier, photo):
    sent = (photo, Photo(photos(3)[0], "one.jpg"))
    rows = rows_of(classifier, *sent)
    assert [(row["number"], row["name"]) for row in rows] == [(0, "lesion.jpg"), (1, "one.jpg")]
    for row, one in zip(rows, sent, strict=True):
        alone = answers.answer_fields(classifier, classifier.predict(one.decode()))
        assert {key: row[key] for key in COMPARED} == {key: alone[key] for key in COMPARED}
        assert max(pixels_of(row["thumbnail"]).shape) == 96
        malignant = sum(value for code, value in alone["probabilities"].items() if diagnosis_of(code).malignant)
        assert row["malignant_probability"] == pytest.approx(malignant, abs=2e-6)


def test_a_bad_file_in_a_batch_gets_a_sentence_and_the_others_their_answers(classifier, photo, tmp_path):
    bad = {"text.jpg": b"text", "empty.jpg": b"", "in.zip": b"PK\x03\x04 an archive"}
    sent = (Photo(data, name) for name, data in bad.items())
    rows = {row["name"]: row for row in rows_of(classifier, *sent, Photo(str(tmp_path / "gone"), "gone.jpg"), photo)}
    assert "text.jpg" in rows["text.jpg"]["error"]
    assert "0 bytes" in rows["empty.jpg"]["error"]
    assert "in.zip is not an image" in rows["in.zip"]["error"]
    assert "gone.jpg is no longer here" in rows["gone.jpg"]["error"]
    assert rows["lesion.jpg"]["diagnosis"] in classifier.codes


def test_no_photo_or_too_many_are_refused(classifier, photo):
    with pytest.raises(ImageError, match="no photo"):
        rows_of(classifier)
    with pytest.raises(ImageError, match="The limit is 200"):
        rows_of(classifier, *[photo] * 201)


def test_the_table_is_sorted_by_suspicion_and_its_csv_has_no_formula_of_a_visitor(classifier, photo, tmp_path):
    (empty := tmp_path / "empty.jpg").touch()
    rows = rows_of(
        classifier,
        dataclasses.replace(photo, source=str(empty), name="@bad"),
        dataclasses.replace(photo, name="=cmd|' /C calc'!A0.jpg"),
    )
    table = batches.table(classifier, rows)
    assert (table["notice"], table["provenance"]) == (classifier.notice, classifier.provenance)
    first, second = csv.DictReader(io.StringIO(table["csv"]))
    assert {name: first[name] or None for name in classifier.provenance} == classifier.provenance
    assert first["image"].startswith("'=")
    assert second["image"] == "'@bad"
    assert sum(float(first[code]) for code in classifier.codes) == pytest.approx(1, abs=1e-5)
    assert first["verdict"] == rows[1]["verdict"]
    assert first["flagged"] == "melanoma"
    assert (first["MEL@95"], first["abstained"]) == ("True", "False")
    assert float(first["malignant_probability"]) == rows[1]["malignant_probability"]
    assert second["diagnosis"] == ""
    assert re.match("'@bad .*0 bytes", second["error"])
    made = [
        {"name": name, "error": None, "flagged": flagged, "abstained": name == "odd", "malignant_probability": value}
        for name, flagged, value in (
            ("nevus", [], 0.11),
            ("bcc", ["malignancy"], 0.97),
            ("odd", ["melanoma"], 0.99),
            ("mel", ["melanoma"], 0.98),
        )
    ]
    assert [row["name"] for row in batches.table(classifier, made)["rows"]] == ["mel", "bcc", "odd", "nevus"]


def test_labels_of_an_untrusted_model_are_no_formula_and_say_nothing_about_malignancy(tmp_path, photo):
    classifier = LesionClassifier.from_pretrained(untrained_folder(tmp_path / "m", codes=("=1+1", "@SUM(A1)")))
    rows = rows_of(classifier, photo)
    assert "malignant_probability" not in rows[0]
    cells = [cell for row in csv.reader(io.StringIO(batches.table(classifier, rows)["csv"])) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@"))]
    assert "malignant_probability" not in cells
