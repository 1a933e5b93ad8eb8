"""Many photos at once: files and archives, hostile ones too, and the table of them."""

import csv
import dataclasses
import io
import re
import struct
import time
import zipfile
from pathlib import Path

import answers
import batches
import pytest

from modeling.classifier import LesionClassifier
from modeling.images import ImageError
from modeling.labels import diagnosis_of
from stress.space_soak import bz2_bombs, photos, zip_bomb
from support.space import Photo, pixels_of, zipped
from support.untrained import untrained_folder

COMPARED = ("verdict", "diagnosis", "probability", "probabilities", "operating_points", "abstained", "flagged")


def rows_of(classifier, *sent: Photo) -> list[dict]:
    return [row for _, _, row in batches.classify_rows(classifier, sent)]


def test_a_batch_reads_files_and_archives_and_gives_each_the_answer_it_gets_alone(classifier, photo, tmp_path):
    pictures = photos(3)
    archive = zipped(
        tmp_path / "a.zip",
        {
            "sub/one.jpg": pictures[0],
            "__MACOSX/x": b"x",
            ".hidden": b"",
            "a/.b": b"",
            "d/": b"",
            "x/labels.csv": b"a,b",
        },
    )
    rows = rows_of(classifier, photo, archive)
    assert [(row["number"], row["name"]) for row in rows] == [(0, "lesion.jpg"), (1, "one.jpg")]
    for row, source in zip(rows, (photo.source, pictures[0]), strict=True):
        alone = answers.answer_fields(classifier, classifier.predict(Photo(source, "x").decode()))
        assert {key: row[key] for key in COMPARED} == {key: alone[key] for key in COMPARED}
        assert max(pixels_of(row["thumbnail"]).shape) == 96
        malignant = sum(value for code, value in alone["probabilities"].items() if diagnosis_of(code).malignant)
        assert row["malignant_probability"] == pytest.approx(malignant, abs=2e-6)


def test_a_bad_file_in_a_batch_gets_a_sentence_and_the_others_their_answers(classifier, photo, tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x.jpg", b"x")
    sent = zipped(
        tmp_path / "a.zip",
        {"../../evil.jpg": photos(1)[0], "text.jpg": b"text", "empty.jpg": b"", "in.zip": inner.getvalue()},
    )
    rows = {row["name"]: row for row in rows_of(classifier, sent, photo)}
    assert rows["evil.jpg"]["error"] is None
    assert "text.jpg" in rows["text.jpg"]["error"]
    assert "0 bytes" in rows["empty.jpg"]["error"]
    assert "in.zip is an archive; send it as a batch, whole and not inside another" in rows["in.zip"]["error"]
    assert rows["lesion.jpg"]["diagnosis"] in classifier.codes
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]  # nothing was unpacked
    assert not (tmp_path.parents[1] / "evil.jpg").exists()


def test_a_zip_bomb_is_stopped_by_what_comes_out_of_it_not_by_what_it_claims(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MAX_FILE_BYTES", 1_000_000)
    data = bytearray(zip_bomb(3_000_000))
    central = data.rindex(b"PK\x01\x02")
    struct.pack_into("<L", data, central + 24, 100)  # claims to unpack to 100 bytes
    (tmp_path / "bomb.zip").write_bytes(data)
    (row,) = rows_of(classifier, Photo(str(tmp_path / "bomb.zip"), "bomb.zip"))
    assert row["error"]
    (tmp_path / "bomb.zip").write_bytes(zip_bomb(3_000_000))
    (row,) = rows_of(classifier, Photo(str(tmp_path / "bomb.zip"), "bomb.zip"))
    assert "unpacks to more than is allowed (1 MB)" in row["error"]


def test_all_archives_of_a_batch_together_are_bounded(classifier, tmp_path, monkeypatch):
    pictures = photos(2)
    monkeypatch.setattr(batches, "MAX_UNPACKED_BYTES", sum(map(len, pictures)) - 1)
    sent = [zipped(tmp_path / f"{number}.zip", {f"{number}.jpg": data}) for number, data in enumerate(pictures)]
    assert rows_of(classifier, sent[0])[0]["error"] is None
    with pytest.raises(ImageError, match="unpack to more than"):
        rows_of(classifier, *sent)


def test_encrypted_damaged_and_endless_archives_are_refused_with_the_reason(classifier, tmp_path, monkeypatch):
    data = bytearray(Path(zipped(tmp_path / "a.zip", {"x.jpg": b"x" * 100}).source).read_bytes())
    data[6] |= 1
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    (row,) = rows_of(classifier, Photo(str(tmp_path / "a.zip"), "a.zip"))
    assert "encrypted" in row["error"]
    many = zipped(tmp_path / "many.zip", {f"{number}.jpg": b"" for number in range(201)})
    with pytest.raises(ImageError, match="More than 200"):
        rows_of(classifier, many)
    monkeypatch.setattr(batches, "MAX_DIRECTORY_BYTES", 1000)
    (row,) = rows_of(classifier, many)
    assert (
        "many.zip is an archive; send it as a batch, whole and not inside another archive, with at most 200 photos"
        in row["error"]
    )
    with pytest.raises(ImageError, match="no photo"):
        rows_of(classifier, zipped(tmp_path / "empty.zip", {"folder/": b""}))


def test_archives_that_are_damaged_truncated_or_oddly_compressed_are_named_as_such(classifier, tmp_path):
    whole = Path(zipped(tmp_path / "a.zip", {"x.jpg": photos(1)[0]}).source).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    (row,) = rows_of(classifier, Photo(str(tmp_path / "cut.zip"), "cut.zip"))
    assert row["error"].startswith("cut.zip is an archive; send it as a batch, whole")
    (tmp_path / "bombs.zip").write_bytes(bz2_bombs(3))
    started = time.monotonic()
    rows = rows_of(classifier, Photo(str(tmp_path / "bombs.zip"), "bombs.zip"))
    assert time.monotonic() - started < 1  # nothing is unpacked
    assert all("unusual method" in row["error"] for row in rows)


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
        {"name": name, "error": None, "flagged": flagged, "malignant_probability": value}
        for name, flagged, value in (("nevus", [], 0.11), ("bcc", ["malignancy"], 0.97), ("mel", ["melanoma"], 0.98))
    ]
    assert [row["name"] for row in batches.table(classifier, made)["rows"]] == ["mel", "bcc", "nevus"]


def test_labels_of_an_untrusted_model_are_no_formula_and_say_nothing_about_malignancy(tmp_path, photo):
    classifier = LesionClassifier.from_pretrained(untrained_folder(tmp_path / "m", codes=("=1+1", "@SUM(A1)")))
    rows = rows_of(classifier, photo)
    assert "malignant_probability" not in rows[0]
    cells = [cell for row in csv.reader(io.StringIO(batches.table(classifier, rows)["csv"])) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "@"))]
    assert "malignant_probability" not in cells
