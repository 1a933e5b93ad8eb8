"""Facts about the model: numbers, figures and examples of its folder, which may be untrusted."""

import dataclasses
import json
import shutil

import about
import httpx
import pytest
from PIL import Image

from modeling.classifier import LesionClassifier
from support.hub import HubServer
from support.space import served


def test_the_page_is_told_names_and_notice(classifier):
    told = about.about(classifier)
    assert told["model"]["names"]["MEL"] == "melanoma"
    assert told["model"]["codes"] == list(classifier.codes)
    assert told["model"]["notice"] == classifier.notice
    assert not told["model"]["from_cache"]
    assert (told["metrics"], told["figures"], told["examples"]) == (None, [], [])
    assert "published without metrics.json" in told["metrics_problem"]


def test_a_model_from_an_earlier_download_does_not_wait_for_the_hub_to_show_its_numbers(tmp_path, folder, monkeypatch):
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path)
        hub.add_repo("me/lesions", folder)
        hub.add_repo("me/lesions", {**hub.repo("me/lesions").files(), "metrics.json": b"{}"})
        downloaded = LesionClassifier.from_pretrained("me/lesions")
        downloaded.source = dataclasses.replace(downloaded.source, from_cache=True)
        hub.log.clear()
        told = about.about(downloaded)
    assert told["model"]["from_cache"]
    assert "metrics.json of me/lesions could not be downloaded" in told["metrics_problem"]
    assert not hub.log


@pytest.mark.parametrize(
    "content",
    ["null", "[]", '"text"', "{}", "[" * 100_000, '{"schema_version": 3}', '{"schema_version": 3, "figures": {}}'],
)
def test_untrusted_numbers_break_nothing(folder, tmp_path, content, capsys):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "metrics.json").write_text(content)
    told = about.about(LesionClassifier.from_pretrained(model))
    assert told["metrics"] is None
    assert "cannot be shown" in told["metrics_problem"]
    assert "Traceback" not in capsys.readouterr().err


def test_figures_are_listed_and_served_by_plain_names_and_no_links_are_followed(folder, tmp_path, monkeypatch):
    model, name = shutil.copytree(folder, tmp_path / "model"), "roc.png"
    classifier = LesionClassifier.from_pretrained(model)
    figures = [{"file": name, "title": "ROC", "caption": "A curve.", "alt": "A curve."}]
    (model / "metrics.json").write_text("{}")
    monkeypatch.setattr(about, "read_metrics", lambda path: {"figures": figures})
    assert about.about(classifier)["figures"] == [{**figures[0], "src": f"page/figures/{name}"}]
    path = model / "figures" / name
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    assert about.picture(classifier, f"figures/{name}") == path
    for other in ("figures/other.png", "figures/../config.json", "config.json", "figures/../../secret.png"):
        assert about.picture(classifier, other) is None
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    path.unlink()
    path.symlink_to(tmp_path / "secret.png")
    assert not found(lambda: about.picture(classifier, f"figures/{name}"))


def found(find) -> bool:
    """True if a file is found; a ValueError is a refusal."""
    try:
        return find() is not None
    except ValueError:
        return False


def test_examples_are_listed_with_what_they_show_and_only_plain_names_of_the_model_are_served(folder, tmp_path, capsys):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "examples").mkdir()
    Image.new("RGB", (64, 48)).save(model / "examples" / "1_MEL.jpg")
    Image.new("RGB", (64, 48)).save(model / "examples" / "2_no_lesion.jpg")
    listed = [{"file": "1_MEL.jpg", "diagnosis": "MEL"}, {"file": "2_no_lesion.jpg", "diagnosis": None}]
    content = {"examples": listed, "license": "CC0", "attribution": "me"}
    (model / "examples" / "examples.json").write_text(json.dumps(content))
    classifier = LesionClassifier.from_pretrained(model)
    told = about.about(classifier)
    assert told["examples"] == [
        {"name": "1_MEL.jpg", "about": "melanoma", "src": "page/examples/1_MEL.jpg"},
        {"name": "2_no_lesion.jpg", "about": "not a lesion", "src": "page/examples/2_no_lesion.jpg"},
    ]
    assert told["examples_source"] == "me CC0"
    assert about.picture(classifier, "examples/1_MEL.jpg") == model / "examples" / "1_MEL.jpg"
    for name in ("../config.json", "examples.json", "..", "3.jpg", "1_MEL.jpg\n"):
        assert about.picture(classifier, f"examples/{name}") is None
    (model / "examples" / "secret.jpg").symlink_to("/etc/passwd")
    assert not found(lambda: about.picture(classifier, "examples/secret.jpg"))
    for damaged in ([{"file": "../config.json", "diagnosis": "MEL"}], [{"file": "1_MEL.jpg"}], [3], {}, "x"):
        (model / "examples" / "examples.json").write_text(json.dumps({"examples": damaged}))
        assert about.about(classifier)["examples"] == []
    assert "Traceback" not in capsys.readouterr().err


def test_an_invented_picture_does_not_make_the_server_ask_the_hub(tmp_path, folder, monkeypatch):
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "examples").mkdir()
    Image.new("RGB", (64, 48)).save(model / "examples" / "1_MEL.jpg")
    content = {"examples": [{"file": "1_MEL.jpg", "diagnosis": "MEL"}]}
    (model / "examples" / "examples.json").write_text(json.dumps(content))
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path)
        hub.add_repo("me/lesions", model)
        with served(LesionClassifier.from_pretrained("me/lesions")) as url:
            hub.log.clear()
            names = ("examples/1_MEL.jpg", "examples/2.jpg", "figures/invented.png", "figures/other.png")
            assert [httpx.get(f"{url}/page/{name}").status_code for name in names] == [200, 404, 404, 404]
    assert not hub.log
