"""modeling/model_folder.py: what is saved is what others load, and what does not fit is refused with the reason."""

import json
import os
import pickle
import resource
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from modeling import __version__
from modeling.classifier import LesionClassifier
from modeling.config import CONFIG_SCHEMA, Config
from modeling.files import ModelFolderError, file_sha256
from modeling.labels import REFERENCE_CODES
from modeling.model_folder import WEIGHTS_NAME, config_sha256, file_beside, read_config, resolve_model_folder
from modeling.network import build_model, check_backbone, load_network, save_model_folder
from modeling.predictor import main as classify
from support.hub import HubServer


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """To change; without its ONNX file, so that the weights are what is loaded."""
    copy = shutil.copytree(tiny_model_folder, tmp_path / "model")
    shutil.rmtree(copy / "onnx")
    edit(copy, lambda config: config["lesion"].pop("onnx_sha256"))
    return copy


def calibration(**changes):
    return {"method": "vector scaling", "scale": [1.0] * 4, "bias": [0.0] * 4, "nll": {}, **changes}


def deep(levels):
    return [] if levels == 0 else [deep(levels - 1)]


def opened(folder):
    return LesionClassifier.from_pretrained(folder, device="cpu", engine="torch")


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    if isinstance(config.get("lesion"), dict) and "config_sha256" in config["lesion"]:
        config["lesion"]["config_sha256"] = config_sha256(config)  # as who changes it knowingly would
    path.write_text(json.dumps(config))


def test_three_loaders_give_the_same_logits_labels_and_preprocessing(folder, lesion_image):
    image = lesion_image.resize((401, 299))
    classifier = LesionClassifier.from_pretrained(folder, device="cpu")
    ours = torch.from_numpy(classifier.engine.forward(classifier.preprocess(image)[None]).logits)

    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=by_timm), is_training=False)
    processor = AutoImageProcessor.from_pretrained(folder)
    by_transformers = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        torch.testing.assert_close(by_timm(transform(image)[None]), ours, rtol=0, atol=1e-5)
        logits = by_transformers(**processor(image, return_tensors="pt")).logits
    torch.testing.assert_close(logits, ours, rtol=0, atol=1e-5)
    assert by_transformers.config.id2label == dict(enumerate(REFERENCE_CODES))
    assert by_timm.pretrained_cfg["label_names"] == list(REFERENCE_CODES)

    answers = pipeline("image-classification", model=str(folder))(image, top_k=4)
    expected = classifier.predict(image).probabilities
    assert {answer["label"]: pytest.approx(answer["score"], abs=1e-5) for answer in answers} == expected


def test_the_folder_says_which_key_is_whose(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["lesion"]["schema"] == CONFIG_SCHEMA
    assert config["lesion"]["weights_sha256"] == file_sha256(folder / "model.safetensors")
    assert "model_args" not in config
    assert "num_classes" not in config["pretrained_cfg"]
    assert config["label_descriptions"]["MEL"] == "melanoma"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("lesion"), "entry 'lesion' is None and this version reads 4"),
        (lambda c: c["lesion"].update(schema=99), "'lesion' is 99"),
        (lambda c: c.update(num_classes=5), "num_classes is 5, but there are 4 label_names"),
        (lambda c: c.update(label_names=["a", "a", "b", "c"]), "different names"),
        (lambda c: c.update(label_names=["x"] * 10**5), "at most 1000 items"),
        (lambda c: c.update(architecture="hf-hub:someone/evil"), "architecture: "),
        (lambda c: c.update(architecture=7), "architecture: "),
        (lambda c: c.update(architecture="local-dir:."), "architecture: "),
        (lambda c: c.update(architecture="../efficientnet_b0"), "architecture: "),
        (lambda c: c.update(model_args={"block_args": 1}), "model_args"),
        (lambda c: c.update(auto_map={"AutoModel": "evil.Evil"}), "auto_map"),
        (lambda c: c["pretrained_cfg"].update(url="https://evil.example/w.pth"), "url"),
        (lambda c: c["pretrained_cfg"].update(file="/etc/passwd"), "file"),
        (lambda c: c["pretrained_cfg"].update(hf_hub_id="someone/evil"), "hf_hub_id"),
        (lambda c: c["pretrained_cfg"].update(custom_load=True), "custom_load"),
        (lambda c: c.update(label_names=["a", "b", "c", "\x1b[2J"]), "printable"),
        (lambda c: c.update(label_names=["a", "b", "c", "d" * 10**6]), "printable"),
        (lambda c: c["lesion"].update(run_id={"a": 1}), r"lesion\.run_id"),
        (lambda c: c["lesion"].update(license="x" * 10**6), r"lesion\.license"),
        (lambda c: c["lesion"].update(calibration=-1), r"lesion\.calibration"),
        (
            lambda c: c["lesion"].update(calibration=calibration(scale=[1, 1, 1, 0])),
            r"scale\.3: Input should be greater than 0",
        ),
        (lambda c: c["lesion"].update(calibration=calibration(bias=[0.0])), "for each of the 4 label_names"),
        (lambda c: c["lesion"].update(class_priors={"NV": 1.0}), "class_priors must have a fraction for each"),
        (lambda c: c["lesion"].update(class_priors=dict.fromkeys(REFERENCE_CODES, 0.5)), "sum to 1"),
        (lambda c: c["lesion"].update(class_priors=dict.fromkeys(REFERENCE_CODES, 0.0)), r"class_priors\.BCC: Input"),
        (lambda c: c["lesion"].update(class_priors=[0.25] * 4), r"lesion\.class_priors"),
        (lambda c: c["lesion"].update(decision={"tau": 1}), r"lesion\.decision: unknown entry"),
        (lambda c: c["lesion"].update(schema=3), "'lesion' is 3 and this version reads 4"),
        (lambda c: c["lesion"].update(operating_points=[{}] * 101), "at most 100 items"),
        (lambda c: c["lesion"].update(threshold=float("nan")), "not valid JSON"),
        (lambda c: c["lesion"].update(run_id="\ud800"), "not valid JSON"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 64, 96]), "input_size"),
        (lambda c: c["pretrained_cfg"].update(input_size=[3, 10**6, 10**6]), "input_size"),
        (lambda c: c["pretrained_cfg"].update(input_size="3"), "input_size"),
        (lambda c: c.update(label_descriptions=[]), "label_descriptions"),
        (lambda c: c.update(label_descriptions={"MEL": ["<x>"]}), "label_descriptions"),
        (lambda c: c["pretrained_cfg"].update(std=[0, 0, 0]), r"pretrained_cfg\.std\.0: Input should be greater"),
        (
            lambda c: c["pretrained_cfg"].update(mean=["a", 0, 0]),
            r"pretrained_cfg\.mean\.0: Input should be a valid number",
        ),
        (lambda c: c["pretrained_cfg"].update(crop_mode="center"), "crop_mode"),
        (lambda c: c["lesion"].update(weights_sha256="0" * 64), "SHA-256 differs"),
        (lambda c: c["lesion"].pop("weights_sha256"), r"lesion\.weights_sha256: Field required"),
        (lambda c: c.update(num_classes=4.0), "num_classes: Input should be a valid integer"),
        (lambda c: c["lesion"].update(deep=deep(25)), r"lesion\.deep: unknown entry"),
        (
            lambda c: c["lesion"].update(config_sha256="0" * 64, onnx_sha256="x"),
            r"lesion\.onnx_sha256: String should match",
        ),
        (lambda c: c.update(architecture="test_resnet"), "does not fit the network"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_reason(folder, change, words):
    edit(folder, change)
    with pytest.raises(ModelFolderError, match=words):
        LesionClassifier.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("key", sorted(Config.__annotations__.keys() - {"num_features"}))
def test_no_entry_of_the_configuration_may_be_missing(folder, key):
    edit(folder, lambda config: config.pop(key))
    with pytest.raises(ModelFolderError, match=r"config\.json: "):
        opened(folder)


def test_a_configuration_of_any_size_is_not_read(folder):
    os.truncate(folder / "config.json", 10**10)  # of zeros, which take no place on the disk
    with pytest.raises(ModelFolderError, match="larger than 16 MiB"):
        opened(folder)


def test_a_message_about_a_untrusted_value_stays_short(folder):
    edit(folder, lambda config: config["pretrained_cfg"].update(mean=["x" * 10**6]))
    with pytest.raises(ModelFolderError) as caught:
        opened(folder)
    assert len(str(caught.value)) < 500


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rehash(folder):
    edit(folder, lambda config: config["lesion"].update(weights_sha256=file_sha256(folder / "model.safetensors")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("classifier.bias"), 'Missing key.*"classifier.bias"'),
        (lambda t: t.update(extra=torch.zeros(1)), 'Unexpected key.*"extra"'),
        (lambda t: t.update({"classifier.bias": torch.zeros(5)}), "size mismatch for classifier.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_reason(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(ModelFolderError, match="SHA-256 differs"):
        opened(folder)
    rehash(folder)
    with pytest.raises(ModelFolderError, match=f"(?s)does not fit the network.*{words}"):
        opened(folder)


def with_header(entries):
    """Bytes of a safetensors file that claims these tensors and holds none."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        b"\x10\x00\x00\x00\x00\x00\x00\x00{}",
        b"hello world, no tensors here",
        (2**62).to_bytes(8, "little") + b"{}",
        with_header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        with_header({"x": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}),
        pickle.dumps({"state_dict": [1.0] * 100}),
    ],
)
def test_a_damaged_weights_file_is_refused(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    rehash(folder)
    with pytest.raises(ModelFolderError, match="is damaged"):
        opened(folder)


def test_a_cut_off_weights_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    rehash(folder)
    with pytest.raises(ModelFolderError, match="is damaged"):
        opened(folder)


class Bomb:
    def __reduce__(self):
        return (print, ("the pickle was opened",))


def test_a_pickle_is_never_opened(folder, capsys):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelFolderError, match=r"has no model\.safetensors"):
        opened(folder)
    assert "opened" not in capsys.readouterr().out


def test_weights_of_any_size_are_not_read(folder):
    os.truncate(folder / "model.safetensors", 5 * 1024**3)
    with pytest.raises(ModelFolderError, match="larger than 4 GiB"):
        opened(folder)


def test_a_network_is_built_only_after_its_weights_are_seen_to_be_there(folder):
    edit(folder, lambda config: config.update(architecture="eva_giant_patch14_224"))  # four gigabytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFolderError, match="does not fit the network"):
        opened(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kilobytes


def test_weights_that_give_no_number_are_refused(folder):
    rewrite(folder, lambda tensors: tensors["classifier.bias"].fill_(float("nan")))
    rehash(folder)
    with pytest.raises(ModelFolderError, match="numbers that are not finite"):
        LesionClassifier.from_pretrained(folder, device="cpu")


def test_code_in_the_folder_is_never_run(folder, tmp_path):
    marker = tmp_path / "was run"
    for name in ("__init__.py", "modeling.py", "modeling_evil.py", "configuration_evil.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')")
    LesionClassifier.from_pretrained(folder, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "onnx/model.onnx", "metrics.json"])
def test_links_out_of_the_folder_are_refused(tiny_model_folder, tmp_path, name):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    for target in ("/etc/passwd", "/dev/zero", tiny_model_folder / name, tmp_path / "not there"):
        (folder / name).symlink_to(target)
        with pytest.raises(ModelFolderError, match="is a link out of the model folder"):
            file_beside(resolve_model_folder(folder), name)
        if name in ("config.json", "onnx/model.onnx"):
            with pytest.raises(ModelFolderError, match="is a link out of the model folder"):
                LesionClassifier.from_pretrained(folder, device="cpu")
        (folder / name).unlink()
    with pytest.raises(ModelFolderError, match="is a link out of the model folder"):
        file_beside(resolve_model_folder(folder), "../../etc/passwd")


def test_a_snapshot_in_the_hubs_cache_opens_as_a_folder(tiny_model_folder, lesion_image, tmp_path):
    """There, every file is a link to one in `blobs`."""
    snapshot, blobs = tmp_path / "models--me--x" / "snapshots" / "abc", tmp_path / "models--me--x" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in tiny_model_folder.rglob("*") if path.is_file()):
        shutil.copyfile(path, blobs / str(number))
        link = snapshot / path.relative_to(tiny_model_folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert LesionClassifier.from_pretrained(snapshot, device="cpu").predict(lesion_image).probability > 0


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": ' * 5000, "\x00"])
def test_a_damaged_configuration_is_refused(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelFolderError, match=r"config\.json"):
        opened(folder)


def test_without_a_name_the_released_model_of_the_clone_opens(tiny_model_folder, tmp_path, monkeypatch, lesion_image):
    monkeypatch.setattr("modeling.model_folder.ROOT", tmp_path)
    with pytest.raises(ModelFolderError, match="pretrained holds 0 models, not one; name a model folder"):
        LesionClassifier.from_pretrained()
    shutil.copytree(tiny_model_folder, tmp_path / "pretrained" / "lite0")
    classifier = LesionClassifier.from_pretrained(device="cpu")
    assert (classifier.model_id, classifier.revision) == ("lite0", None)
    shutil.copytree(tiny_model_folder, tmp_path / "pretrained" / "b0")
    with pytest.raises(ModelFolderError, match="holds 2 models"):
        LesionClassifier.from_pretrained()


def test_neither_folder_nor_repository_is_said_in_words():
    with pytest.raises(ModelFolderError, match="there is no such folder here"):
        LesionClassifier.from_pretrained("no/such/folder/at/all")


def test_a_folder_has_no_revision(folder):
    with pytest.raises(ModelFolderError, match="has no revisions"):
        LesionClassifier.from_pretrained(folder, revision="v1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ("efficientnet_b99", "no network named 'efficientnet_b99'"),
        *((name, "must give one feature map and end in one linear classifier") for name in ("levit_128", "test_vit")),
        *((name, "must give one feature map") for name in ("caformer_s18", "crossvit_9_240", "repvit_m1")),
    ],
)
def test_a_backbone_that_cannot_be_used_is_refused_in_one_sentence(backbone, words):
    with pytest.raises(ModelFolderError, match=words):
        check_backbone(backbone)


@pytest.mark.parametrize("backbone", ["efficientnet_b0", "tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_050"])
def test_a_convolutional_backbone_is_accepted(backbone):
    check_backbone(backbone)


def test_a_key_that_occurs_twice_is_refused(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"architecture": "test_resnet",', 1))
    with pytest.raises(ModelFolderError, match="a key occurs twice"):
        opened(folder)


def test_weights_that_cannot_be_downloaded_name_the_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFolderError, match=r"--pretrained false.*--init_from FILE\.safetensors"):
        build_model("test_efficientnet", num_classes=4, size_px=64, pretrained=True)


def test_every_backbone_of_one_linear_classifier_survives_the_round_trip(tmp_path):
    for backbone in ("test_resnet", "test_convnext", "test_efficientnet"):
        model = build_model(backbone, num_classes=3, size_px=64, pretrained=False).eval()
        save_model_folder(model, tmp_path / backbone, codes=["BCC", "MEL", "NV"], lesion={})
        loaded = load_network(tmp_path / backbone / WEIGHTS_NAME, read_config(tmp_path / backbone))
        pixel_values = torch.randn(2, 3, 64, 64)
        torch.testing.assert_close(loaded(pixel_values), model(pixel_values), rtol=0, atol=0)


def point(**changes):
    values = {"name": "MEL@95", "codes": ["MEL"], "target_sensitivity": 0.95, "threshold": 0.1, "sensitivity": 0.96}
    return {**values, "specificity": 0.5, "n_positive": 50, "n_negative": 100, **changes}


def rule(**changes):
    values = {
        "method": "ViM with and without normalisation",
        "threshold": 1.0,
        "false_alarm_rate": 0.05,
        "residual_weight": 1.0,
        "length": 1.0,
    }
    arrays = dict.fromkeys(("centre", "directions"), "AAAA" * 682 + "AAA=")  # of 512 zeros
    return {**values, **arrays, **changes}


def test_a_configuration_that_was_changed_after_it_was_written_is_refused(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"melanoma"', '"harmless"'))
    with pytest.raises(ModelFolderError, match="config_sha256 differs"):
        LesionClassifier.from_pretrained(folder, device="cpu")


def test_thresholds_that_can_be_read_are_read(folder):
    edit(folder, lambda config: config["lesion"].update(operating_points=[point()], abstention=rule()))
    classifier = LesionClassifier.from_pretrained(folder, device="cpu")
    assert classifier.operating_points[0].threshold == 0.1
    assert classifier.abstention.directions.shape == (1, 512)


@pytest.mark.parametrize(
    "change",
    [
        lambda lesion: lesion.update(operating_points=[{"name": "MEL@95"}]),
        lambda lesion: lesion.update(operating_points=[1]),
        lambda lesion: lesion.update(abstention={"method": "a later one", "threshold": 1}),
        lambda lesion: lesion.update(operating_points=[point(codes=["SCC"])]),
        lambda lesion: lesion.update(operating_points=[point(codes=[])]),
        lambda lesion: lesion.update(operating_points=[point(threshold="0.5")]),
        lambda lesion: lesion.update(operating_points=[point(sensitivity=2)]),
        *(lambda lesion, t=t: lesion.update(operating_points=[point(threshold=t)]) for t in (7, -5, 1e308)),
        *(lambda lesion, w=w: lesion.update(abstention=rule(residual_weight=w)) for w in (-1, 0)),
        lambda lesion: lesion.update(abstention=rule(length=0)),
        lambda lesion: lesion.update(abstention=rule(false_alarm_rate=1.5)),
        lambda lesion: lesion.update(operating_points=[point(n_positive=0.5)]),
        lambda lesion: lesion.update(operating_points=[point(name="\x1b[2J")]),
        lambda lesion: lesion.update(abstention=rule(centre="AAAA" * 7)),
        lambda lesion: lesion.update(abstention=rule(threshold="inf")),
        lambda lesion: lesion.update(abstention=rule(threshold=1e300)),
        lambda lesion: lesion.update(operating_points=[point(threshold=0)]),
        lambda lesion: lesion.update(operating_points=[point(), point(threshold=0.2)]),
    ],
)
def test_thresholds_that_cannot_be_read_are_refused(folder, change):
    edit(folder, lambda config: change(config["lesion"]))
    with pytest.raises(ModelFolderError, match=r"lesion|operating point|residual|array|reshape"):
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


@pytest.mark.slow  # the Hub's client tries for a while
def test_a_connection_that_breaks_is_said_in_a_sentence_and_an_earlier_download_serves(folder, monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path / "cache")
        hub.add_repo("me/lesions", folder)
        hub.fail("resolve", kind="lost", times=float("inf"))
        with pytest.raises(ModelFolderError, match="me/lesions could not be downloaded and no earlier download"):
            LesionClassifier.from_pretrained("me/lesions", device="cpu")
        hub.heal()
        first = LesionClassifier.from_pretrained("me/lesions", device="cpu")
        edit(folder, lambda config: config["lesion"].update(run_id="later"))
        hub.add_repo("me/lesions", folder)
        hub.fail("resolve", kind="lost", times=float("inf"))
        again = LesionClassifier.from_pretrained("me/lesions", device="cpu")
        assert (again.revision, again.source.from_cache) == (first.revision, True)


@pytest.mark.slow  # the Hub's client tries for a while
def test_a_hub_that_does_not_answer_is_no_proof_that_a_file_is_missing(folder, monkeypatch, tmp_path):
    (folder / "splits.csv").write_text("image_id,lesion_id,label,source,split\n")
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path / "cache")
        hub.add_repo("me/lesions", folder)
        source = resolve_model_folder("me/lesions")
        assert file_beside(source, "image_hashes.csv") is None
        hub.fail("*", status=503, times=float("inf"))
        with pytest.raises(ModelFolderError, match=r"splits\.csv of me/lesions could not be downloaded"):
            file_beside(source, "splits.csv")


def test_a_missing_repository_and_a_missing_revision_are_told_apart(folder, monkeypatch, tmp_path):
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path / "cache")
        hub.add_repo("me/lesions", folder)
        with pytest.raises(ModelFolderError, match="no model 'me/lesions' with a revision 'v9'"):
            LesionClassifier.from_pretrained("me/lesions", revision="v9")
        with pytest.raises(ModelFolderError, match="has no model 'me/nothing'"):
            LesionClassifier.from_pretrained("me/nothing")


def test_a_revision_pins_what_is_loaded_and_is_shown(folder, lesion_image, monkeypatch, tmp_path, capsys):
    lesion_image.save(tmp_path / "lesion.png")
    first_sha256 = file_sha256(folder / "model.safetensors")
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path / "cache")
        repo = hub.add_repo("me/lesions", folder)
        first = repo.tags["v1.0"] = repo.head.oid
        rewrite(folder, lambda tensors: tensors["classifier.bias"].add_(1))
        rehash(folder)
        later = hub.add_repo("me/lesions", folder)
        later.commits = [*repo.commits, *later.commits]
        later.tags["v1.0"], later.lfs = first, {**repo.lfs, **later.lfs}
        for revision in ("v1.0", first):
            assert classify(["me/lesions", str(tmp_path / "lesion.png"), "--revision", revision]) == 0
            assert f"Model: me/lesions, revision {first}." in capsys.readouterr().err
            assert LesionClassifier.from_pretrained("me/lesions", revision=revision).provenance == {
                "model_id": "me/lesions",
                "revision": first,
                "weights_sha256": first_sha256,
                "data_fingerprint": None,
                "package_version": __version__,
            }
        assert classify(["me/lesions", str(tmp_path / "lesion.png")]) == 0
        assert f"me/lesions, revision {later.head.oid}" in capsys.readouterr().err
