"""modeling/predictor.py: the command line, with and without a model and an output."""

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from modeling.bulk import ArchiveError
from modeling.classifier import LesionClassifier
from modeling.images import ImageError
from modeling.operating_points import OperatingPoint
from modeling.predictor import line_of, main, split_arguments
from support.untrained import random_rule, untrained_folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((72, 72)).save(path)
    return str(path)


@pytest.fixture
def model(tiny_model_folder) -> str:
    return str(tiny_model_folder)


def test_one_photo_is_answered_by_its_verdict_and_no_hash_is_shown(model, photo, capsys):
    assert main([model, photo]) == 0
    printed = capsys.readouterr()
    prediction = LesionClassifier.from_pretrained(model, device="cpu").predict(photo)
    assert printed.out.splitlines() == [f"{photo}  {prediction.verdict}"]
    assert prediction.notice in printed.err
    assert "sha256" not in printed.err
    assert prediction.provenance["weights_sha256"] not in printed.err


def test_without_a_model_the_released_one_answers(model, photo, capsys, monkeypatch):
    monkeypatch.setattr("modeling.classifier.released_model", lambda: Path(model))
    assert main([photo, photo]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main([str(Path(photo).parent)]) == 0
    assert photo in capsys.readouterr().out


def test_the_first_argument_is_the_model_if_it_is_one_or_is_no_image_here(model, photo, tmp_path):
    assert split_arguments([model, photo]) == (model, [photo])
    assert split_arguments(["me/model", photo]) == ("me/model", [photo])
    assert split_arguments(["no/such/model", photo]) == ("no/such/model", [photo])
    assert split_arguments([photo, "missing.jpg"]) == (None, [photo, "missing.jpg"])
    assert split_arguments(["missing.jpg", photo]) == (None, ["missing.jpg", photo])
    assert split_arguments([str(tmp_path), photo]) == (None, [str(tmp_path), photo])
    assert split_arguments(["x" * 10_000, photo]) == ("x" * 10_000, [photo])
    with pytest.raises(ArchiveError, match="is a model; name the images"):
        split_arguments([model])


def test_priors_change_probabilities_and_diagnosis_but_not_what_is_flagged(tmp_path, photo, capsys):
    point = OperatingPoint("MEL@95", ("MEL",), 0.95, 1e-6, 0.95, 0.5, 10, 10)
    untrained_folder(
        tmp_path / "m",
        codes=["MEL", "NV"],
        operating_points=[point],
        class_priors={"MEL": 0.01, "NV": 0.99},
    )
    rows = {}
    for priors in ("equal", "dataset", "MEL=3, NV=1"):
        output = tmp_path / f"{priors}.csv"
        assert main([str(tmp_path / "m"), photo, "--priors", priors, "--output", str(output)]) == 0
        with output.open(newline="") as file:
            (rows[priors],) = csv.DictReader(file)
    odds = {priors: float(row["MEL"]) / float(row["NV"]) for priors, row in rows.items()}
    assert odds["dataset"] == pytest.approx(odds["equal"] / 99, rel=1e-3)
    assert odds["MEL=3, NV=1"] == pytest.approx(odds["equal"] * 3, rel=1e-3)
    assert {row["flagged"] for row in rows.values()} == {"melanoma"}
    assert (rows["dataset"]["diagnosis"], rows["MEL=3, NV=1"]["diagnosis"]) == ("NV", "MEL")
    capsys.readouterr()
    assert main([str(tmp_path / "m"), photo, "--output", str(tmp_path / "dataset.csv")]) == 1
    assert "priors was {'MEL': 0.01, 'NV': 0.99} and is" in capsys.readouterr().err
    for wrong in ("MEL=1", "MEL=x,NV=1", "MEL=0,NV=1", "often", "MEL=1,NV=1,XX=1", ""):
        assert main([str(tmp_path / "m"), photo, "--priors", wrong]) == 1
        assert "Weights are written as MEL=0.1,NV=0.9" in capsys.readouterr().err


def test_operating_points_and_abstention_have_their_columns(tmp_path, photo, capsys):
    point = OperatingPoint("MEL@95", ("MEL",), 0.95, 1e-6, 0.95, 0.5, 10, 10)
    rule = dataclasses.replace(random_rule(2), threshold=-1e5)
    lesion = {"operating_points": [point], "abstention": rule}
    untrained_folder(tmp_path / "m", codes=["MEL", "NV"], **lesion)
    assert main([str(tmp_path / "m"), photo, "--output", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["MEL@95"], row["flagged"], row["abstained"]) == ("True", "melanoma", "True")
    assert row["reason"]
    assert list(row) == [
        "image", "verdict", "diagnosis", "probability", "flagged", "MEL", "NV", "malignant_probability",
        "abstained", "reason", "MEL@95", "error",
    ]  # fmt: skip
    capsys.readouterr()
    assert main([str(tmp_path / "m"), photo]) == 0
    assert "No answer" in capsys.readouterr().out


def test_a_table_in_the_folder_is_no_image(model, photo, tmp_path, capsys):
    (tmp_path / "photo.jpg").write_bytes(Path(photo).read_bytes())
    (tmp_path / "labels.csv").write_text("image,label\n")
    assert main([model, str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main([model, str(tmp_path), "--output", str(tmp_path / "out.csv")]) == 0
    said = "one row for each image. Images: 1. Not read: 0 (column error). Abstained: 0."
    assert said in capsys.readouterr().out
    assert main([model, str(tmp_path), "--output", str(tmp_path / "out.csv")]) == 0
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no/such/model", "a.jpg"], "model"),
        (["MODEL", "missing.jpg", "other.jpg"], "'missing.jpg' does not exist"),
        (["MODEL", "missing.jpg"], "'missing.jpg' does not exist"),
        (["MODEL", "photos"], "'photos' does not exist"),
        (["MODEL", "missing-folder/x/y", "--output", "o.csv"], "does not exist"),
        (["MODEL", "EMPTY"], "no image in 'EMPTY'"),
        (["MODEL", "EMPTY", "--output", "o.csv"], "no image in 'EMPTY'"),
        (["MODEL", "EMPTY", "--output", "o.xlsx"], "must end in .csv or .parquet"),
        (["MODEL", "EMPTY", "--output", "/"], "must end in .csv or .parquet"),
        (["MODEL", "EMPTY", "--output", ".csv"], "must end in .csv or .parquet"),
        (["x" * 300, "a.jpg"], "there is no such folder here"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(model, tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    assert main([model if word == "MODEL" else word for word in arguments]) == 1
    assert says in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EMPTY"]


def test_only_a_run_with_an_output_is_said_to_resume(monkeypatch, capsys):
    monkeypatch.setattr(LesionClassifier, "from_pretrained", Mock(side_effect=KeyboardInterrupt))
    for more, says in (([], "Stopped.\n"), (["--output", "o.csv"], "Stopped; the same command resumes.\n")):
        assert main(["m", "a.jpg", *more]) == 130
        assert capsys.readouterr().err == says


def test_a_reader_that_has_gone_gets_no_traceback(model, photo):
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "modeling.predictor", model, photo]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writes)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_line_shows_no_control_characters(model, photo):
    prediction = LesionClassifier.from_pretrained(model, device="cpu").predict(photo)
    assert line_of("a\x1b[31m\n.jpg", prediction) == f"a\\x1b[31m\\n.jpg  {prediction.verdict}"
    assert line_of("b.jpg", ImageError("not an image")) == "b.jpg  Not read: not an image"
