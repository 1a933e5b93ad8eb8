"""Pushing, by the real Hub clients against a stand-in on loopback (tests/support/hub.py)."""

import ast
import importlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
import types
import urllib.request
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import get_session
from packaging.requirements import Requirement
from PIL import Image

from modeling.files import ModelFolderError
from modeling.model_folder import resolve_model_folder
from modeling.publish.__main__ import main
from modeling.publish.hub import ATTEMPTS, PublishError
from modeling.publish.push import check_can_push, push_model
from modeling.publish.space import push_space
from stress.push_faults import Case, copy_sources, hurried_client, make_model_folder, run_case, short_cases
from support.hub import FINE_TOKEN, FREE_TOKEN, GUEST_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer
from support.ports import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, scored_folder: Path) -> tuple[Path, Path]:
    """Two complete model folders, an older and a newer one; only to be read."""
    base = tmp_path_factory.mktemp("models")
    return (
        make_model_folder(base / "old", seed=1, scored=scored_folder),
        make_model_folder(base / "new", seed=2, scored=scored_folder),
    )


@pytest.fixture
def folder(tmp_path: Path, scored_folder: Path) -> Path:
    """A complete model folder to change."""
    return make_model_folder(tmp_path / "model", seed=3, scored=scored_folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    with HubServer() as server:
        server.connect(monkeypatch)
        yield server


# ---- The right to push ---------------------------------------------------------------------------------------------


def test_the_repository_is_there_when_the_token_may_write(hub):
    check_can_push("lesions", private=True)
    assert hub.repo("me/lesions").private
    check_can_push("clinic/lesions")
    check_can_push("clinic/lesions", FINE_TOKEN)
    assert not hub.repo("clinic/lesions").private


@pytest.mark.parametrize(
    ("repo_id", "token", "sentence"),
    [
        ("me/lesions", "hf_" + "wrong" * 8, "the token is wrong, expired or revoked"),
        ("me/lesions", READ_TOKEN, "the token may not write to me/lesions. Make one with the role 'write'"),
        ("me/lesions", FINE_TOKEN, "the token may not write to me/lesions"),
        ("clinic/lesions", GUEST_TOKEN, "the token may not write to clinic/lesions"),
        ("other/lesions", WRITE_TOKEN, "the token may not write to other/lesions"),
        ("me/bad name", WRITE_TOKEN, "not a valid repository name"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_missing_right_is_named_before_training(hub, repo_id, token, sentence, there):
    if there:
        hub.add_repo(repo_id, {})
    before = dict(hub.repos)
    with pytest.raises(PublishError, match=re.escape(sentence)) as caught:
        check_can_push(repo_id, token)
    assert token not in str(caught.value)
    assert hub.repos == before


def test_no_token_at_all_says_how_to_get_one(hub, monkeypatch):
    hub.connect(monkeypatch, token=None)
    with pytest.raises(PublishError, match=r"no Hub token on this machine.*hf auth login"):
        check_can_push("me/lesions")


# ---- What is pushed ------------------------------------------------------------------------------------------------

LOAD = """
import json, sys
import numpy as np, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from modeling import LesionClassifier

repo_id, folder, picture = sys.argv[1:]
image = Image.open(picture).convert("RGB")
local = LesionClassifier.from_pretrained(folder)
with torch.inference_mode():
    wanted = torch.from_numpy(local.engine.forward(local.transform(image)[None]).logits)
    through_timm = timm.create_model(f"hf-hub:{repo_id}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=through_timm))
    processor = AutoImageProcessor.from_pretrained(repo_id, revision="v1.0")
    theirs = AutoModelForImageClassification.from_pretrained(repo_id, revision="v1.0").eval()
    logits = {
        "timm": through_timm(transform(image)[None]),
        "transformers": theirs(**processor(image, return_tensors="pt")).logits,
    }
ours = LesionClassifier.from_pretrained(repo_id, revision="v1.0")
logits["LesionClassifier"] = torch.from_numpy(ours.engine.forward(ours.transform(image)[None]).logits)
answer = pipeline("image-classification", model=repo_id)(image, top_k=4)
wanted_probs = ours.predict(picture).probabilities
print(json.dumps({
    "differences": {name: float((value - wanted).abs().max()) for name, value in logits.items()},
    "pipeline": max(abs(entry["score"] - wanted_probs[entry["label"]]) for entry in answer),
    "id2label": list(theirs.config.id2label.values()),
    "revision": ours.revision,
}))
"""


def test_a_pushed_private_model_loads_by_repo_id_through_all_three_loaders(hub, folders, tmp_path, lesion_image):
    pushed = push_model(folders[0], "me/lesions", private=True, tag="v1.0")
    assert hub.repo("me/lesions").private
    lesion_image.resize((64, 64)).save(tmp_path / "lesion.png")  # already at its size: no loader has to replicate
    command = [sys.executable, "-c", LOAD, "me/lesions", str(folders[0]), str(tmp_path / "lesion.png")]
    environment = {**hub.env(home=tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["differences"].values()) <= 1e-5, found
    assert found["pipeline"] <= 1e-5
    assert found["id2label"] == ["BCC", "BKL", "MEL", "NV"]
    assert found["revision"] == pushed.revision
    assert not [entry for entry in hub.log if entry.status >= 500]


def test_a_push_is_one_commit_and_the_same_push_again_changes_nothing(hub, folders):
    first = push_model(folders[0], "me/lesions", tag="v1.0")
    assert first.changed
    assert first.url == f"{hub.url}/me/lesions"
    repo = hub.repo("me/lesions")
    assert [commit.title for commit in repo.commits[1:]] == ["Add model of run run1"]
    hub.log.clear()
    second = push_model(folders[0], "me/lesions", tag="v1.0")
    assert (second.changed, second.revision) == (False, first.revision)
    assert {entry.route for entry in hub.log} == {"info", "refs"}
    assert len(repo.commits) == 2


def test_only_what_changed_is_sent(hub, folder):
    push_model(folder, "me/lesions")
    hub.log.clear()
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Better words\n")
    push_model(folder, "me/lesions")
    assert not hub.requests("lfs-put")
    assert sum(entry.body_bytes for entry in hub.log) < 2000


def test_an_update_takes_away_old_figures_but_keeps_what_others_added(hub, folders):
    hub.add_repo("me/lesions", folders[0])
    hub.add_repo("me/lesions", {**hub.repo("me/lesions").files(), "NOTES.md": b"by hand"})
    push_model(folders[1], "me/lesions")
    files = hub.repo("me/lesions").files()
    assert "figures/roc_2.png" in files
    assert "figures/roc_1.png" not in files
    assert files["NOTES.md"] == b"by hand"


def test_a_tag_is_never_moved(hub, folders):
    first = push_model(folders[0], "me/lesions", tag="v1.0")
    with pytest.raises(PublishError, match=r"tag 'v1.0' of me/lesions already names revision .* choose another"):
        push_model(folders[1], "me/lesions", tag="v1.0")
    assert hub.repo("me/lesions").tags == {"v1.0": first.revision}
    assert hub.repo("me/lesions").head.oid == first.revision


def test_private_is_not_promised_for_a_public_repository(hub, folders):
    hub.add_repo("me/lesions", {"README.md": b"# here"})
    check_can_push("me/lesions")
    with pytest.raises(PublishError, match="exists and is public"):  # known before hours of training
        check_can_push("me/lesions", private=True)
    with pytest.raises(PublishError, match="exists and is public"):
        push_model(folders[0], "me/lesions", private=True)
    assert "model.safetensors" not in hub.repo("me/lesions").files()


# ---- What is not pushed --------------------------------------------------------------------------------------------


def edit_metrics(folder: Path, change: Callable[[Any], None]) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    change(metrics)
    (folder / "metrics.json").write_text(json.dumps(metrics))


def other_weights(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")


def written(name: str, content: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)

    return write


def with_example(folder: Path, file: str = "1_MEL.jpg", content: bytes | None = None) -> None:
    (folder / "examples").mkdir()
    Image.new("RGB", (8, 8), (90, 60, 40)).save(folder / "examples" / "1_MEL.jpg")
    if content is not None:
        (folder / "examples" / "1_MEL.jpg").write_bytes(content)
    listed = {"examples": [{"file": file, "diagnosis": "MEL"}], "license": "apache-2.0", "attribution": "ours"}
    (folder / "examples" / "examples.json").write_text(json.dumps(listed))


def linked(name: str) -> Callable[[Path], object]:
    def link(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return link


# What is done to a folder, and what is then said of it.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (linked("figures/roc_3.png"), "figures/roc_3.png is a link"),
    "linked folder": (linked("figures"), "figures/roc_3.png is a link"),
    "no figure": (lambda folder: (folder / "figures" / "roc_3.png").unlink(), "figures/roc_3.png is missing or empty"),
    "figure of text": (written("figures/roc_3.png", "<html>"), "figures/roc_3.png' is not an image"),
    "example of text": (lambda folder: with_example(folder, content=b"<html>"), "examples/1_MEL.jpg' is not an image"),
    "example elsewhere": (lambda folder: with_example(folder, "../../x.jpg"), "examples.json is damaged"),
    "no external validation": (written("external/clinic.json", "{}"), "external/clinic.json has schema None"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "README.md is missing or empty"),
    "no evaluation": (
        lambda folder: (folder / "evaluation.md").unlink(),
        "evaluation.md is missing or empty; `python -m modeling.publish card",
    ),
    "no folder": (shutil.rmtree, "there is no such folder; give the folder `model` of a run"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json is missing or empty"),
    "scores of another model": (
        lambda folder: edit_metrics(folder, lambda metrics: metrics["model"].update(weights_sha256="0" * 64)),
        "metrics.json is of another model: its weights_sha256",
    ),
    "empty metrics": (written("metrics.json", ""), "metrics.json is not valid JSON"),
    "hollow metrics": (written("metrics.json", "{}"), "has schema None and this version reads"),
    "other weights": (other_weights, "model.safetensors is not the file that config.json describes"),
    "bad json": (written("train_config.json", "{"), "train_config.json is not valid JSON"),
    "token": (
        written("train_config.json", json.dumps({"options": {"hub_token": "hf_" + "a1B2" * 9}})),
        "train_config.json has a Hub token in it",
    ),
    "token in use": (written("splits.csv", "hf_dashed-token-of-this-test"), "splits.csv has a Hub token in it"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_folder_that_must_not_get_out_stays_here(hub, folder, how):
    spoil, sentence = REFUSED[how]
    spoil(folder)
    with pytest.raises(PublishError, match=re.escape(sentence)):
        push_model(folder, "me/lesions", token="hf_dashed-token-of-this-test" if how == "token in use" else None)
    assert not hub.log


def test_only_the_files_of_a_model_folder_are_sent_and_what_stays_is_named(hub, folder, caplog):
    with_example(folder)
    stray = (
        "predictions.csv",
        "skipped.csv",
        "best.pth",
        "figures/face.png",
        "examples/2_MEL.jpg",
        "external/Ward 3.json",
    )
    for name in stray:
        written(name, "Jane Doe")(folder)
    push_model(folder, "me/lesions")
    files = hub.repo("me/lesions").files()
    assert {"examples/1_MEL.jpg", "examples/examples.json", "figures/roc_3.png", "onnx/model.onnx"} <= set(files)
    assert not set(stray) & set(files)
    (message,) = [record.getMessage() for record in caplog.records if "Not sent" in record.getMessage()]
    assert all(name in message for name in stray)


# ---- The Hub in trouble --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", short_cases(), ids=str)
def test_no_fault_leaves_half_a_push(case: Case, folders, monkeypatch, tmp_path, caplog):
    if case.target == "space":
        copy_sources(tmp_path, monkeypatch)
    with caplog.at_level(logging.INFO):
        run_case(case, *folders, monkeypatch)
    assert WRITE_TOKEN not in caplog.text


def test_a_server_says_how_long_to_wait_up_to_a_minute(hub, folders, monkeypatch):
    hub.fail("commit", status=429, headers={"Retry-After": "7"})  # a request that the client does not repeat
    hub.fail("lfs-batch", status=429, headers={"Retry-After": "7"})  # one that it does, after a second more
    hub.fail("lfs-put", status=503, headers={"Retry-After": "86400"})
    hub.fail("info", status=429, headers={"RateLimit": '"api";r=0;t=3000'})
    with hurried_client(monkeypatch) as waits:
        push_model(folders[0], "me/lesions")
    assert sorted(waits) == [1.0, 7.0, 8.0, 61.0]


def test_a_hub_that_never_answers_is_given_up_and_the_client_is_left_as_it_was(hub, folders, monkeypatch):
    hooks = get_session().event_hooks
    hub.fail("*", kind="hang", times=float("inf"))
    start = time.monotonic()
    with hurried_client(monkeypatch), pytest.raises(PublishError, match="did not answer, also after several tries"):
        push_model(folders[0], "me/lesions")
    assert time.monotonic() - start < 20
    assert get_session().event_hooks == hooks
    assert get_session().timeout.read is None
    assert len(hub.log) == 0


def test_a_hub_that_is_not_there_is_given_up(folders, monkeypatch):
    with HubServer() as gone:
        gone.connect(monkeypatch)
    with hurried_client(monkeypatch) as waits, pytest.raises(PublishError, match="ConnectError"):
        push_model(folders[0], "me/lesions")
    assert waits == [1, 2, 4, 8]


def test_a_namespace_that_stays_busy_does_not_hang_the_push(hub, folders, monkeypatch):
    busy = "Cannot create repo: another conflicting operation is in progress"
    hub.fail("create", status=409, message=busy, times=float("inf"))
    with hurried_client(monkeypatch), pytest.raises(PublishError, match="another repository is being created"):
        push_model(folders[0], "me/lesions")
    assert len(hub.requests("create")) == ATTEMPTS


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["model", ".", "--repo_id", "not valid"], "--repo_id"),
        (["space", "--model_id", "not valid", "--space_id", "me/space"], "--model_id"),
        (["space", "--model_id", "me/lesions", "--space_id", "not valid"], "--space_id"),
    ],
)
def test_an_invalid_name_is_named_with_its_option_and_not_to_be_tried_again(hub, capsys, arguments, option):
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"{option} 'not valid' is not a valid repository name, such as me/name")
    assert "try again" not in message
    assert not hub.log


def test_a_failed_command_returns_one_and_prints_the_command_that_retries_without_the_token(hub, folders, capsys):
    arguments = ["model", str(folders[0]), "--repo_id", "lesions", "--private", "--tag", "v1.0"]
    arguments += ["--commit_message", "Better"]
    hub.fail("commit", status=403, message="you sent {token}")
    assert main(arguments) == 1
    output = "".join(capsys.readouterr())
    assert f"python -m modeling.publish {' '.join(arguments)}" in output
    assert "The Hub says: you sent hf_***" in output
    assert WRITE_TOKEN not in output
    assert main(arguments) == 0
    assert f"is now at revision {hub.repo('me/lesions').head.oid}" in capsys.readouterr().out
    assert hub.repo("me/lesions").head.title == "Better"
    assert len(hub.requests("lfs-put")) == 3  # weights, ONNX network and figure, once each


def test_the_command_line_exits_with_its_status(hub, folders):
    hub.fail("info", status=401, message="you sent {token}")
    command = [sys.executable, "-m", "modeling.publish", "model", str(folders[0]), "--repo_id", "me/lesions"]
    done = subprocess.run(command, env=hub.env(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("The push to me/lesions did not finish: the Hub answered 401: the token is wrong")
    assert WRITE_TOKEN not in done.stdout + done.stderr


# ---- The Space -----------------------------------------------------------------------------------------------------


def test_a_revision_that_the_model_lacks_is_named(hub, folders, tmp_path, monkeypatch):
    copy_sources(tmp_path, monkeypatch)
    push_model(folders[0], "me/lesions")
    with pytest.raises(PublishError, match=r"no model me/lesions with a revision v9 .* push it first"):
        push_space("me/lesions", "me/lesion-space", model_revision="v9")


def test_a_tag_is_loaded_as_a_revision_and_one_that_is_missing_is_named(hub, folders, tmp_path, monkeypatch):
    hub.connect(monkeypatch, cache=tmp_path / "cache")
    model = push_model(folders[0], "me/lesions", tag="v1.0")
    assert resolve_model_folder("me/lesions", "v1.0").revision == model.revision
    with pytest.raises(ModelFolderError, match=r"'me/lesions' with a revision 'v2\.0'"):
        resolve_model_folder("me/lesions", "v2.0")


def test_a_space_is_one_commit_that_names_its_model_and_the_same_push_again_changes_nothing(
    hub, folders, tmp_path, monkeypatch
):
    copy_sources(tmp_path, monkeypatch)
    model = push_model(folders[0], "me/lesions", tag="v1.0")
    first = push_space("me/lesions", "me/lesion-space", model_revision="v1.0")
    assert first.changed
    space = hub.repo("me/lesion-space", "space")
    assert (space.sdk, space.hardware) == ("gradio", None)
    files = space.files()
    assert json.loads(files["model.json"]) == {"model_id": "me/lesions", "revision": model.revision}
    assert {"app.py", "README.md", "requirements.txt", "modeling/predictor.py", "modeling/__init__.py"} <= set(files)
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert header["sdk"] == "gradio"
    assert header["python_version"] == "3.12"
    assert header["models"] == ["me/lesions"]
    assert header["preload_from_hub"] == [f"me/lesions config.json,onnx/model.onnx {model.revision}"]
    hub.log.clear()
    second = push_space("me/lesions", "me/lesion-space", model_revision="v1.0")
    assert (second.changed, second.revision) == (False, first.revision)
    assert not [entry for entry in hub.log if entry.method == "POST"]

    newer = push_model(folders[1], "me/lesions")
    assert push_space("me/lesions", "me/lesion-space").changed
    assert json.loads(space.files()["model.json"])["revision"] == newer.revision
    assert len(space.commits) == 3


STATIC = """
def static_files(model_id, revision):
    return {"README.md": b"---\\ntitle: Lesions\\nsdk: static\\n---\\n", "index.html": b"<title>Lesions</title>"}
"""


def test_a_static_space_takes_the_place_of_a_gradio_one_in_one_commit(hub, folders, tmp_path, monkeypatch):
    copy_sources(tmp_path, monkeypatch)
    (tmp_path / "space" / "static_space.py").write_text(STATIC)
    model = push_model(folders[0], "me/lesions")
    push_space("me/lesions", "me/lesion-space")
    push_space("me/lesions", "me/lesion-space", static=True)
    space = hub.repo("me/lesion-space", "space")
    assert len(space.commits) == 3
    files = space.files()
    assert set(files) == {".gitattributes", "README.md", "index.html", "model.json"}
    assert yaml.safe_load(files["README.md"].decode().split("---")[1]) == {
        "title": "Lesions",
        "sdk": "static",
        "models": ["me/lesions"],
    }
    assert json.loads(files["model.json"]) == {"model_id": "me/lesions", "revision": model.revision}


def test_without_a_paid_plan_the_free_ways_are_named(hub, folders, tmp_path, monkeypatch, capsys):
    copy_sources(tmp_path, monkeypatch)
    (tmp_path / "space" / "static_space.py").write_text(STATIC)
    hub.connect(monkeypatch, token=FREE_TOKEN)
    push_model(folders[0], "free/lesions")
    capsys.readouterr()
    plain = ["space", "--model_id", "free/lesions", "--space_id", "free/page", "--private"]
    assert main(plain) == 1
    message = capsys.readouterr().err
    assert "answered 402: it requires a paid plan. Spaces free of charge: --static, or --hardware zero-a10g" in message
    assert ("space", "free/page") not in hub.repos
    for name in ("one", "two"):
        assert main(["space", "--model_id", "free/lesions", "--space_id", name, "--hardware", "zero-a10g"]) == 0
        assert hub.repo(f"free/{name}", "space").hardware == "zero-a10g"
    assert main([*plain, "--hardware", "zero-a10g"]) == 1
    assert main([*plain, "--static"]) == 0
    assert hub.repo("free/page", "space").sdk == "static"


def test_a_pushed_space_serves_its_model_from_what_was_pushed_alone(hub, folders, tmp_path):
    model = push_model(folders[0], "me/lesions", private=True)
    push_space("me/lesions", "me/lesion-space", private=True)
    for path, content in hub.repo("me/lesion-space", "space").files().items():
        (tmp_path / "app" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / path).write_bytes(content)
    port = free_port()
    environment = {**hub.env(home=tmp_path / "cache"), "OMP_NUM_THREADS": "1", "GRADIO_SERVER_PORT": str(port)}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, env=environment, cwd=tmp_path / "app", stdout=subprocess.PIPE, text=True) as server:
        try:
            assert any("The page is at" in line for line in server.stdout)  # or the server ended
            address = f"http://127.0.0.1:{port}/gradio_api/call/page_about"
            request = urllib.request.Request(address, b'{"data": []}', {"Content-Type": "application/json"})
            event = json.loads(urllib.request.urlopen(request, timeout=60).read())["event_id"]
            about = urllib.request.urlopen(f"{address}/{event}", timeout=60).read().decode()
        finally:
            server.terminate()
    assert "me/lesions" in about
    assert model.revision in about


def test_a_model_whose_push_did_not_finish_is_to_be_pushed_again(hub):
    hub.add_repo("me/lesions", {"README.md": b""})
    with pytest.raises(PublishError, match=r"me/lesions has no config.json and no onnx/model.onnx; push it first"):
        push_space("me/lesions", "me/page")
    assert ("space", "me/page") not in hub.repos


def test_a_space_without_its_model_on_the_hub_says_to_push_it_first(hub):
    with pytest.raises(PublishError, match=r"no model me/lesions .* push it first"):
        push_space("me/lesions", "me/lesion-space")
    assert ("space", "me/lesion-space") not in hub.repos


PLATFORM = {"gradio", "huggingface-hub", "spaces"}  # installed by the Hub itself


def test_the_space_requires_what_its_code_imports_and_pins_nothing_of_the_platform():
    requirements = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    pins = dict(re.fullmatch(r"([\w-]+)==([\w.]+)", line).groups() for line in requirements if line[0] != "#")
    assert not PLATFORM & set(map(normal, pins))
    for name, version in pins.items():
        assert metadata.version(name) == version  # the tested one
    header = yaml.safe_load((ROOT / "space" / "README.md").read_text().split("---")[1])
    assert metadata.version("gradio") == header["sdk_version"]
    served = [path for path in (ROOT / "modeling").glob("*.py") if path.stem != "bulk"]  # archives are not in a Space
    own = {path.stem for path in (ROOT / "space").glob("*.py")} | {"modeling"}
    imported: set[str] = set()
    for path in [*served, *(ROOT / "space").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    not_served = {"scipy", "sklearn", "accelerate", "spaces"}  # fitting, archives over several processes, ZeroGPU's own
    other_engine = {"torch", "torchvision", "timm", "safetensors", "pytorch_grad_cam"}
    third_party = imported - own - not_served - other_engine - sys.stdlib_module_names
    distributions = metadata.packages_distributions()
    installed = with_dependencies({*pins, *PLATFORM})
    missing = {name for name in third_party if not installed & {normal(found) for found in distributions[name]}}
    assert not missing


def test_zero_gpu_gets_a_function_where_the_platform_has_it(monkeypatch):
    import app  # where the package `spaces` is not installed

    registered = []
    monkeypatch.setitem(sys.modules, "spaces", types.SimpleNamespace(GPU=registered.append))
    importlib.reload(app)
    assert len(registered) == 1


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_dependencies(names: set[str]) -> set[str]:
    """Distributions that come with these, as installed here; without their extras."""
    found: set[str] = set()
    waiting = {normal(name) for name in names}
    while waiting:
        name = waiting.pop()
        found.add(name)
        try:
            needed = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # for another platform
        wanted = {normal(need.name) for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})}
        waiting |= wanted - found
    return found


def test_the_stand_in_refuses_a_wrong_space_header(hub, folders, tmp_path, monkeypatch):
    copy_sources(tmp_path, monkeypatch)
    hub.add_repo("me/lesions", folders[0])
    header = tmp_path / "space" / "README.md"
    header.write_text(header.read_text().replace("colorFrom: indigo", "colorFrom: teal"))
    with pytest.raises(PublishError, match="colorFrom"):
        push_space("me/lesions", "me/lesion-space")
