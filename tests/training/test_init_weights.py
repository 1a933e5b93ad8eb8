"""modeling/training/init_weights.py: any weights to start from, named for what they are, and kept from what is tested on."""

import json
import shutil
from dataclasses import asdict

import datasets
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from modeling.calibration import Calibration
from modeling.data.duplicates import write_hashes
from modeling.data.splits_file import LeakageError, load_splits, splits_hash, write_splits
from modeling.files import ModelFolderError, file_sha256
from modeling.model_folder import UNKNOWN_ORIGIN
from modeling.network import build_model, fold_calibration
from modeling.training.calibrate_and_save import license_of
from modeling.training.init_weights import Origin, Start, check_not_seen, find_starts, load_starts
from modeling.training.options import parse_options
from support.hashes import hash_images
from support.hub import HubServer


def found(init_from):
    [start] = find_starts(parse_options(["--backbone", "test_efficientnet", "--init_from", str(init_from)]))
    return start


def edited(folder, **lesion):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["lesion"] |= {"config_sha256": None, **lesion}
    path.write_text(json.dumps(config))


@pytest.fixture
def folder(tiny_model_folder, tmp_path):
    """A model folder of this package, to change."""
    return shutil.copytree(tiny_model_folder, tmp_path / "runs" / "first" / "model")


def test_a_model_folder_is_known_by_its_run_its_hash_and_its_own_base_model(folder):
    edited(folder, base_model="timm/efficientnet_b0.ra_in1k")
    start = found(folder)
    assert (start.origin.kind, start.origin.name) == ("weights", "first")
    assert start.origin.sha256 == file_sha256(folder / "model.safetensors")
    assert start.origin.base_model == "timm/efficientnet_b0.ra_in1k"
    assert start.splits is None
    (folder / "splits.csv").write_text("")
    assert found(folder).splits == folder / "splits.csv"


def test_a_file_alone_is_of_unknown_origin(folder, tmp_path):
    file = tmp_path / "lite0.safetensors"
    shutil.copyfile(folder / "model.safetensors", file)
    start = found(file)
    assert (start.origin.name, start.origin.base_model) == ("lite0.safetensors", UNKNOWN_ORIGIN)
    assert start.weights == file


def test_a_folder_in_timms_layout_says_which_of_timms_weights_it_holds(tmp_path):
    model = timm.create_model("test_efficientnet", num_classes=1000)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "test_efficientnet", "num_classes": 1000, "pretrained_cfg": {"tag": "r160_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert found(tmp_path).origin.base_model == "timm/test_efficientnet.r160_in1k"
    ours = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False)
    load_starts(ours, [found(tmp_path)])
    assert torch.equal(ours.conv_stem.weight, model.conv_stem.weight)
    assert ours.get_classifier().weight.shape[0] == 4


def test_without_init_from_a_run_starts_from_pretrained_weights_or_from_scratch():
    pretrained, scratch = parse_options([]), parse_options(["--pretrained", "false"])
    assert find_starts(pretrained) == [Start(Origin("pretrained", "efficientnet_b0"))]
    assert find_starts(scratch) == [Start(Origin("scratch"))]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: folder / "nothing", "REPO@REVISION"),
        (lambda folder: (folder / "model.safetensors").unlink() or folder, r"no model\.safetensors"),
    ],
)
def test_what_is_not_there_is_said_with_what_would_do(folder, spoil, words):
    with pytest.raises(ModelFolderError, match=words):
        found(spoil(folder))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b"PK\x03\x04 a pickle"])
def test_garbage_names_the_file(tmp_path, content):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    model = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False)
    with pytest.raises(ModelFolderError, match=r"weights\.safetensors is not a \.safetensors file, or it is damaged"):
        load_starts(model, [found(file)])


def test_what_does_not_fit_is_named(folder):
    model = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False)
    tensors = load_file(folder / "model.safetensors")
    del tensors["bn1.weight"]
    tensors["conv_stem.weight"] = torch.zeros(3, 3)
    tensors["extra"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    words = (
        r"another network than --backbone test_efficientnet: 3 tensors .*such as bn1\.weight, conv_stem\.weight, extra"
    )
    with pytest.raises(ModelFolderError, match=words):
        load_starts(model, [found(folder)])


def test_a_classifier_of_the_same_size_is_loaded_too_and_may_be_missing(folder):
    model = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False)
    load_starts(model, [found(folder)])
    tensors = load_file(folder / "model.safetensors")
    assert torch.equal(model.get_classifier().weight, tensors["classifier.weight"])
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors")
    load_starts(model, [found(folder)])


def test_of_several_weights_the_mean_is_loaded(folder, tmp_path):
    model = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False)
    other = {key: value + 1 for key, value in load_file(folder / "model.safetensors").items()}
    expected = {key: value.double() - 0.5 for key, value in other.items()}
    save_file(other, tmp_path / "other.safetensors")
    starts = [found(folder), found(tmp_path / "other.safetensors")]
    load_starts(model, starts)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[key], rtol=0, atol=1e-6)
    origin = check_not_seen(starts, BEFORE, images(["a"]))
    assert origin.name == "first, other.safetensors"
    assert origin.sha256 == f"{starts[0].origin.sha256}, {file_sha256(tmp_path / 'other.safetensors')}"
    assert origin.base_model == UNKNOWN_ORIGIN


def test_calibration_is_taken_out_of_a_model_folder_but_not_of_other_weights_in_it(folder):
    """Its probabilities are at equal priors, while raw logits estimate the mix of the images trained on."""
    raw = load_file(folder / "model.safetensors")
    model = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False)
    model.load_state_dict(raw)
    calibration = Calibration("vector scaling", (0.5, 1.0, 2.0, 1.5), (0.1, -1.0, 2.0, 0.0), {})
    fold_calibration(model, calibration)
    save_file(model.state_dict(), folder / "model.safetensors")
    edited(folder, calibration=asdict(calibration))
    load_starts(model, [found(folder)])
    assert not torch.allclose(model.get_classifier().bias, raw["classifier.bias"])  # config.json is of other weights
    edited(folder, weights_sha256=file_sha256(folder / "model.safetensors"))
    load_starts(model, [found(folder)])
    assert torch.allclose(model.get_classifier().bias, raw["classifier.bias"])
    assert torch.allclose(model.get_classifier().weight, raw["classifier.weight"])
    edited(folder, calibration=asdict(calibration) | {"scale": [1.0, 2.0]})
    with pytest.raises(ModelFolderError, match="calibration must have a number for each of the 4 label_names"):
        found(folder)
    edited(folder, calibration=asdict(calibration))
    more = build_model("test_efficientnet", num_classes=5, size_px=32, pretrained=False)
    load_starts(more, [found(folder)])  # without the classifier
    assert torch.equal(more.conv_stem.weight, raw["conv_stem.weight"])


def test_weights_that_are_not_trained_on_must_be_of_the_same_diagnoses(folder):
    model = build_model("test_efficientnet", num_classes=4, size_px=32, pretrained=False)
    codes = found(folder).codes
    load_starts(model, [found(folder)], codes=codes)
    for wrong in (codes[::-1], codes[:3], [*codes, "DF"]):
        with pytest.raises(ModelFolderError, match=f"are not of the diagnoses {', '.join(wrong)}, in this order"):
            load_starts(model, [found(folder)], codes=wrong)
    (folder / "config.json").unlink()  # a file alone does not say of which they are
    load_starts(model, [found(folder)], codes=codes[::-1])
    three = build_model("test_efficientnet", num_classes=3, size_px=32, pretrained=False)
    with pytest.raises(ModelFolderError, match="are not of the diagnoses"):
        load_starts(three, [found(folder)], codes=codes[:3])


# ---- what the weights have seen ------------------------------------------------------------------------------------


def images(names):
    """One noisy image a name; names that differ in a trailing "~" show almost the same."""
    pictures, lesion_of = [], {"a": "L1", "a2": "L1", "b": "L2", "b2": "L2", "c2": "L3", "e": "L4"}
    for name in names:
        rng = np.random.default_rng(sum(map(ord, name.rstrip("~"))))
        picture = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 96))
        pictures.append(picture.resize((90, 90)).resize((96, 96)) if name.endswith("~") else picture)
    columns = {"image_id": names, "lesion_id": [lesion_of.get(name) for name in names], "image": pictures}
    return hash_images(datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()))


def table(rows):
    return pd.DataFrame(
        [(image_id, lesion_id, "NV", "HAM", split) for image_id, lesion_id, split in rows],
        columns=["image_id", "lesion_id", "label", "source", "split"],
    )


def start_with(folder, splits, hashes):
    write_splits(splits, folder / "splits.csv")
    write_hashes(hashes, folder / "image_hashes.csv")
    return found(folder)


BEFORE = table([("a", "L1", "train"), ("b", "L2", "val"), ("c", "L3", "test"), ("d", "dup:d", "train")])


def test_weights_that_saw_nothing_of_val_and_test_are_said_to_have_been_compared(folder):
    now = table([("a2", "L1", "train"), ("c2", "L3", "test"), ("e", "L4", "val"), ("b2", "L2", "val")])
    start = start_with(folder, BEFORE, images(["a", "b", "c", "d"]))
    origin = check_not_seen([start], now, images(["a2", "c", "c2", "e", "b2"]))
    assert origin.overlap == "none, by image, lesion id and near-duplicates"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("a2", "L1", "val"), "1 images of val, such as a2"),  # trained on another photo of the lesion
        (("a2", "L1", "test"), "1 images of test, such as a2"),
        (("b2", "L2", "test"), "1 images of test, such as b2"),  # its best epoch was chosen on it
        (("a", None, "test"), "1 images of test, such as a"),
        (("d~", "dup:d~", "test"), "1 images of test, such as d~"),  # a near-duplicate; neither has a lesion id
    ],
)
def test_weights_that_saw_a_lesion_of_val_or_test_are_refused_with_the_way_out(folder, row, words):
    start = start_with(folder, BEFORE, images(["a", "b", "c", "d"]))
    with pytest.raises(LeakageError) as caught:
        check_not_seen([start], table([("e", "L4", "train"), row]), images(["c", "e", row[0]]))  # c: the same data
    assert words in str(caught.value)
    assert f"--splits {start.splits}, and its --test_source, if it had one" in str(caught.value)


def test_an_image_that_was_held_out_before_too_is_no_leak(folder):
    """c looks like d, on which the weights were trained; both runs have the same splits."""
    hashes = images(["a", "b", "c", "d"])
    hashes.loc[hashes["image_id"] == "c", "hash"] = hashes["hash"][hashes["image_id"] == "d"].item()
    assert check_not_seen([start_with(folder, BEFORE, hashes)], BEFORE, hashes).overlap.startswith("none")


def test_two_folders_are_compared_by_content_and_not_by_names(folder):
    start = start_with(folder, BEFORE, images(["a", "b", "c", "d"]))
    others = images(["p", "q", "r"]).assign(image_id=["a", "b", "e"], lesion_id=["L1", "L2", None])
    now = table([("a", "L1", "test"), ("b", "L2", "val"), ("e", None, "train")])
    assert check_not_seen([start], now, others).overlap.startswith("none")
    copies = images(["a", "b", "d"]).assign(image_id=["c", "y", "z"], lesion_id=None)  # c was held out, and shows a now
    with pytest.raises(LeakageError, match="1 images of test, such as c"):
        check_not_seen([start], table([("c", None, "test"), ("y", None, "train"), ("z", None, "train")]), copies)


def test_weights_that_were_trained_from_others_are_compared_only_if_those_were_on_the_same_splits(folder):
    hashes = images(["a", "b", "c", "d"])
    start = start_with(folder, BEFORE, hashes)
    now = table([("e", "L4", "val")])

    def overlap(run, splits=BEFORE):
        (folder / "train_config.json").write_text(json.dumps(run))
        return check_not_seen([found(folder)], splits, hashes).overlap

    passed = {"kind": "weights", "overlap": "none, by image, lesion id and near-duplicates"}
    unchecked = {"kind": "weights", "overlap": "could not be checked, since …"}
    same = {"splits_sha256": splits_hash(load_splits(start.splits))}
    assert overlap({"origin": passed, **same}).startswith("none")
    assert overlap({"origin": {"kind": "pretrained"}}, now).startswith("none")
    expected = "could not be checked, since the weights of first were trained from others in turn"
    for run, splits in (
        ({"origin": unchecked, **same}, BEFORE),
        ({"origin": passed, **same}, now),
        ({"origin": passed}, now),
    ):
        assert overlap(run, splits) == expected
    (folder / "train_config.json").write_text(json.dumps({"origin": passed}))
    with pytest.raises(LeakageError):  # what the last run saw is refused all the same
        check_not_seen([found(folder)], table([("a2", "L1", "test")]), images(["a2", "c"]))


def test_weights_without_hashes_are_said_to_be_unchecked(folder):
    write_splits(BEFORE, folder / "splits.csv")
    origin = check_not_seen([found(folder)], BEFORE, images(["a"]))
    assert origin.overlap == "could not be checked, since the weights of first come without image_hashes.csv"


def test_weights_whose_hashes_lack_images_are_said_to_be_unchecked(folder):
    origin = check_not_seen([start_with(folder, BEFORE, images(["a", "b", "c"]))], BEFORE, images(["a"]))
    assert origin.overlap == "could not be checked, since image_hashes.csv lacks images of splits.csv"


def test_each_of_several_weights_is_compared(folder, tmp_path):
    harmless = start_with(shutil.copytree(folder, tmp_path / "harmless"), table([("x", "L9", "train")]), images(["x"]))
    start = start_with(folder, BEFORE, images(["a", "b", "c", "d"]))
    assert check_not_seen([harmless, start], BEFORE, images(["a", "b", "c"])).overlap.startswith("none")
    alone = found(shutil.copy(folder / "model.safetensors", tmp_path / "alone.safetensors"))
    overlap = check_not_seen([start, alone], BEFORE, images(["a", "b", "c"])).overlap
    assert overlap == "could not be checked, since the weights of alone.safetensors come without splits.csv"
    with pytest.raises(LeakageError, match="1 images of test, such as a2"):
        check_not_seen([harmless, start], table([("a2", "L1", "test")]), images(["a2", "c"]))


def test_weights_without_splits_are_said_to_be_unchecked(folder):
    origin = check_not_seen([found(folder)], BEFORE, images(["a"]))
    assert origin.overlap == "could not be checked, since the weights of first come without splits.csv"


@pytest.mark.parametrize(
    ("dataset", "kind", "license"),
    [
        ("isic2019", "pretrained", "cc-by-nc-4.0"),
        ("isic2019", "weights", "cc-by-nc-4.0"),
        ("demo", "scratch", "apache-2.0"),
        ("demo", "weights", None),
        ("demo", "pretrained", None),
        ("me/lesions", "scratch", None),
    ],
)
def test_the_data_ask_for_a_licence_and_drawings_for_none_only_if_nothing_else_was_seen(dataset, kind, license):
    assert license_of(parse_options(["--dataset", dataset]), {"kind": kind}) == license


@pytest.mark.slow  # the Hub's client tries for a while
def test_weights_of_others_serve_from_the_cache_while_the_hub_is_down(tmp_path, monkeypatch):
    (tmp_path / "timm").mkdir()
    save_file(
        timm.create_model("test_efficientnet", num_classes=10).state_dict(), tmp_path / "timm" / "model.safetensors"
    )
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"architecture": "test_efficientnet"}))
    with HubServer() as hub:
        hub.connect(monkeypatch, cache=tmp_path / "cache")
        hub.add_repo("timm/tiny", tmp_path / "timm")
        first = found("timm/tiny")
        hub.fail("*", status=503, times=float("inf"))
        assert found("timm/tiny") == first
    assert (first.splits, first.hashes) == (None, None)
