"""modeling/model.py: what is saved is what others load, and what does not fit is refused with the reason."""

import json
import pickle
import shutil

import pytest
import timm
import torch
from hub import HubServer
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from modeling.labels import ORIGINAL_CODES
from modeling.model import ModelFolderError, build_model, file_sha256, load_model_folder, save_model_folder
from modeling.predictor import LesionClassifier


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_three_loaders_give_the_same_logits_labels_and_preprocessing(folder, lesion_image):
    image = lesion_image.resize((401, 299))
    classifier = LesionClassifier.from_pretrained(folder, device="cpu")
    ours = torch.from_numpy(classifier.forward(classifier.preprocess(image)[None]).logits)

    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=by_timm), is_training=False)
    processor = AutoImageProcessor.from_pretrained(folder)
    by_transformers = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(by_timm(transform(image)[None]), ours, rtol=0, atol=1e-5)
        logits = by_transformers(**processor(image, return_tensors="pt")).logits
    torch.testing.assert_close(logits, ours, rtol=0, atol=1e-5)
    assert by_transformers.config.id2label == dict(enumerate(ORIGINAL_CODES))
    assert by_timm.pretrained_cfg["label_names"] == list(ORIGINAL_CODES)

    answers = pipeline("image-classification", model=str(folder))(image, top_k=4)
    expected = classifier.predict(image).probabilities
    assert {answer["label"]: pytest.approx(answer["score"], abs=1e-5) for answer in answers} == expected


def test_the_folder_says_which_key_is_whose(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["lesion"]["schema"] == 1
    assert config["lesion"]["weights_sha256"] == file_sha256(folder / "model.safetensors")
    assert "model_args" not in config
    assert "num_classes" not in config["pretrained_cfg"]
    assert config["label_descriptions"]["MEL"] == "melanoma"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("lesion"), "no entry 'lesion'"),
        (lambda c: c["lesion"].update(schema=99), "schema is 99"),
        (lambda c: c.update(num_classes=5), "num_classes is 5, but there are 4 label_names"),
        (lambda c: c.update(label_names=["a", "a", "b", "c"]), "different names"),
        (lambda c: c.update(label_names=["x"] * 10**5), "different names"),
        (lambda c: c.update(architecture="hf-hub:someone/evil"), "no timm network"),
        (lambda c: c.update(architecture=7), "no timm network"),
        (lambda c: c.update(model_args={"block_args": 1}), "model_args"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 10**6, 10**6]), "input_size"),
        (lambda c: c["pretrained_cfg"].update(input_size="3"), "input_size"),
        (lambda c: c.update(label_descriptions=[]), "label_descriptions"),
        (lambda c: c.update(label_descriptions={"MEL": ["<x>"]}), "label_descriptions"),
        (lambda c: c["pretrained_cfg"].update(std=[0, 0, 0]), "std must not be zero"),
        (lambda c: c["pretrained_cfg"].update(mean=["a", 0, 0]), "mean must be three numbers"),
        (lambda c: c["pretrained_cfg"].update(crop_mode="center"), "crop_mode"),
        (lambda c: c["lesion"].update(weights_sha256="0" * 64), "weights_sha256 differs"),
        (lambda c: c["lesion"].pop("weights_sha256"), "weights_sha256 differs"),
        (lambda c: c.update(architecture="test_resnet"), "does not fit the network"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_reason(folder, change, words):
    edit(folder, change)
    with pytest.raises(ModelFolderError, match=words):
        LesionClassifier.from_pretrained(folder, device="cpu")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("classifier.bias"), "1 tensors missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unknown"),
        (lambda t: t.update({"classifier.bias": torch.zeros(5)}), "another shape"),
        (lambda t: t.update({"classifier.bias": torch.ones(4)}), "weights_sha256 differs"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_reason(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(ModelFolderError, match=words):
        load_model_folder(folder)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x10\x00\x00\x00\x00\x00\x00\x00{}", b"hello world, no tensors here"]
)
def test_a_damaged_weights_file_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelFolderError, match="no whole safetensors file"):
        load_model_folder(folder)


def test_a_cut_off_weights_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFolderError, match="no whole safetensors file"):
        load_model_folder(folder)


class Bomb:
    def __reduce__(self):
        return (print, ("the pickle was opened",))


def test_a_pickle_is_never_opened(folder, capsys):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelFolderError, match=r"pytorch_model\.bin is a pickle"):
        load_model_folder(folder)
    assert "opened" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": ' * 5000, "\x00"])
def test_a_damaged_configuration_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        load_model_folder(folder)


def test_neither_folder_nor_repository_is_said_in_words():
    with pytest.raises(ModelFolderError, match="neither a folder here nor a Hub repository id"):
        LesionClassifier.from_pretrained("no/such/folder/at/all")


def test_a_folder_has_no_revision(folder):
    with pytest.raises(ModelFolderError, match="has no revisions"):
        LesionClassifier.from_pretrained(folder, revision="v1")


def test_training_goes_on_from_a_folder_with_other_diagnoses(folder):
    start = build_model("test_efficientnet", num_classes=8, size_px=64, pretrained=False, init_from=folder)
    saved = load_file(folder / "model.safetensors")
    assert torch.equal(start.conv_stem.weight, saved["conv_stem.weight"])
    assert start.get_classifier().weight.shape[0] == 8


def test_init_from_another_network_is_refused(folder):
    with pytest.raises(ModelFolderError, match="of another network"):
        build_model("test_resnet", num_classes=4, size_px=64, pretrained=False, init_from=folder)


def test_an_unknown_backbone_is_named():
    with pytest.raises(ModelFolderError, match="no network named 'efficientnet_b99'"):
        build_model("efficientnet_b99", num_classes=4, size_px=64, pretrained=False)


def test_weights_that_cannot_be_downloaded_name_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFolderError, match=r"--pretrained false.*--init_from"):
        build_model("test_efficientnet", num_classes=4, size_px=64, pretrained=True)


def test_every_backbone_of_one_linear_classifier_survives_the_round_trip(tmp_path):
    for backbone in ("test_resnet", "test_convnext", "test_efficientnet"):
        model = build_model(backbone, num_classes=3, size_px=64, pretrained=False).eval()
        save_model_folder(model, tmp_path / backbone, codes=["BCC", "MEL", "NV"], lesion={})
        loaded, _ = load_model_folder(tmp_path / backbone)
        pixel_values = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(loaded(pixel_values), model(pixel_values), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda lesion: lesion.update(operating_points=[{"name": "MEL@95"}]),
        lambda lesion: lesion.update(operating_points=[1]),
        lambda lesion: lesion.update(abstention={"method": "a later one", "threshold": 1}),
    ],
)
def test_thresholds_that_cannot_be_read_are_refused(folder, change):
    edit(folder, lambda config: change(config["lesion"]))
    with pytest.raises(ModelFolderError, match=r"'lesion' of config\.json cannot be used"):
        LesionClassifier.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("revision", [None, "v1.0"])
def test_an_earlier_download_serves_while_the_hub_is_down(folder, revision, monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path / "cache")
        repo = hub.add_repo("me/lesions", folder)
        repo.tags["v1.0"] = repo.head.oid
        first = LesionClassifier.from_pretrained("me/lesions", revision=revision, device="cpu")
        assert (first.revision, first.source.from_cache) == (repo.head.oid, False)
        hub.fail("*", status=503, times=float("inf"))
        again = LesionClassifier.from_pretrained("me/lesions", revision=revision, device="cpu")
        assert (again.revision, again.source.from_cache) == (repo.head.oid, True)
        with pytest.raises(ModelFolderError, match="no earlier download"):
            LesionClassifier.from_pretrained("me/others", device="cpu")


def test_a_missing_repository_and_a_missing_revision_are_told_apart(folder, monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path / "cache")
        hub.add_repo("me/lesions", folder)
        with pytest.raises(ModelFolderError, match="no revision 'v9'"):
            LesionClassifier.from_pretrained("me/lesions", revision="v9")
        with pytest.raises(ModelFolderError, match="has no model 'me/nothing'"):
            LesionClassifier.from_pretrained("me/nothing")
