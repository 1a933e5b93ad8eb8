"""Pushing, by the real Hub clients against a stand-in on loopback (tests/support/hub.py)."""

import ast
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub.utils import _http as hub_http
from packaging.requirements import Requirement

from modeling.publish.__main__ import main
from modeling.publish.hub import ATTEMPTS, PublishError
from modeling.publish.push import check_can_push, push_model
from modeling.publish.space import push_space
from stress.push_faults import Case, copy_sources, hurried_client, make_model_folder, run_case, short_cases
from support.hub import FINE_TOKEN, GUEST_TOKEN, READ_TOKEN, WRITE_TOKEN, HubServer

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


def test_the_full_name_comes_back_when_the_token_may_write(hub):
    assert check_can_push("lesions") == "me/lesions"
    assert check_can_push("clinic/lesions") == "clinic/lesions"
    assert check_can_push("clinic/lesions", FINE_TOKEN) == "clinic/lesions"


@pytest.mark.parametrize(
    ("repo_id", "token", "sentence"),
    [
        ("me/lesions", "hf_" + "wrong" * 8, "does not accept the token"),
        ("me/lesions", READ_TOKEN, "the token of me may only read"),
        ("me/lesions", FINE_TOKEN, "has no right 'write' on 'me'"),
        ("clinic/lesions", GUEST_TOKEN, "guest may only read in 'clinic'"),
        (
            "other/lesions",
            WRITE_TOKEN,
            "no member of 'other', so other/lesions cannot be written; name one of: me, clinic",
        ),
        ("me/bad name", WRITE_TOKEN, "no valid repository name"),
    ],
)
def test_a_missing_right_is_named_before_training(hub, repo_id, token, sentence):
    with pytest.raises(PublishError, match=re.escape(sentence)) as caught:
        check_can_push(repo_id, token)
    assert token not in str(caught.value)
    assert not hub.repos


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
    wanted = torch.from_numpy(local.forward(local.transform(image)[None]).logits)
    through_timm = timm.create_model(f"hf-hub:{repo_id}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=through_timm))
    processor = AutoImageProcessor.from_pretrained(repo_id, revision="v1.0")
    theirs = AutoModelForImageClassification.from_pretrained(repo_id, revision="v1.0").eval()
    logits = {
        "timm": through_timm(transform(image)[None]),
        "transformers": theirs(**processor(image, return_tensors="pt")).logits,
    }
ours = LesionClassifier.from_pretrained(repo_id, revision="v1.0")
logits["LesionClassifier"] = torch.from_numpy(ours.forward(ours.transform(image)[None]).logits)
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
    assert str(first) == f"{hub.url}/me/lesions"
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
    return lambda folder: (folder / name).write_text(content)


# What is done to a folder, and what is then said of it.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (written("best_model.pth", "x"), "best_model.pth is a pickle, which can run code"),
    "stray": (written("notes.txt", "x"), "notes.txt does not belong in a model folder"),
    "link": (
        lambda folder: (folder / "figures" / "passwd.json").symlink_to("/etc/passwd"),
        "figures/passwd.json is a link",
    ),
    "no card": (lambda folder: (folder / "README.md").unlink(), "README.md is missing or empty"),
    "no evaluation": (
        lambda folder: (folder / "evaluation.md").unlink(),
        "evaluation.md is missing or empty (write it with `python -m modeling.publish card",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "scores of another model": (
        lambda folder: edit_metrics(folder, lambda metrics: metrics["model"].update(weights_sha256="0" * 64)),
        "metrics.json is of another model: its weights_sha256",
    ),
    "empty metrics": (written("metrics.json", ""), "metrics.json is missing or empty"),
    "other weights": (other_weights, "weights_sha256 differs"),
    "bad json": (written("train_config.json", "{"), "train_config.json is not valid JSON"),
    "bad metadata": (written("README.md", "---\nlicense: [\n---\n"), "the metadata of README.md is not valid"),
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


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("null", "a JSON object was expected, got None"),
        ("[]", "a JSON object was expected, got []"),
        ('"scores"', "a JSON object was expected, got 'scores'"),
        ("{}", "is of schema None and this version reads 2"),
        ("[" * 10**5 + "]" * 10**5, "is not valid JSON"),
        ('{"a": ' * 10**5 + "1" + "}" * 10**5, "is not valid JSON"),
        ('{"schema_version": 2}', "is damaged: 'model': Field required"),
    ],
    ids=["null", "list", "text", "empty", "deep list", "deep object", "hollow"],
)
def test_what_is_no_metrics_json_is_not_published(hub, folder, content, sentence):
    (folder / "metrics.json").write_text(content)
    with pytest.raises(PublishError, match=re.escape(sentence)):
        push_model(folder, "me/lesions")
    assert not hub.log


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        ("test", None, "'test': Input should be a valid dictionary"),
        ("test.accuracy", [0.9], "'test.accuracy': Input should be a valid dictionary"),
        ("test.accuracy.value", "0.9", "'test.accuracy.value': Input should be a valid number"),
        ("test.accuracy.value", 1.01, "'test.accuracy.value': Input should be less than or equal to 1"),
        ("test.n_images", 4.0, "'test.n_images': Input should be a valid integer"),
        ("test.n_images", True, "'test.n_images': Input should be a valid integer"),
        ("test.confusion", [[1, 2], [3, 4]], "test is not about the diagnoses of model.codes"),
        ("model.codes", "BCC", "'model.codes': Input should be a valid list"),
        ("model.architecture", "a\nb", "'model.architecture': String should match pattern"),
        ("val", {"reason": 3}, "'val.reason': Input should be a valid string"),
        ("operating_points.0.threshold", 7, "'operating_points.0.threshold': Input should be less than or equal to 1"),
        ("figures", ["../../etc/passwd"], "'figures.0': String should match pattern"),
        ("heat_maps", {}, "'heat_maps.masks': Field required"),
    ],
)
def test_an_entry_that_no_evaluation_writes_is_named_and_not_published(hub, folder, place, value, sentence):
    def change(metrics: Any) -> None:
        *parents, last = (int(part) if part.isdigit() else part for part in place.split("."))
        for parent in parents:
            metrics = metrics[parent]
        metrics[last] = value

    edit_metrics(folder, change)
    with pytest.raises(PublishError, match=re.escape(sentence)):
        push_model(folder, "me/lesions")
    assert not hub.log


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
    assert sorted(waits) == [7.0, 8.0, 60.0, 61.0]


def test_a_hub_that_never_answers_is_given_up_and_the_client_is_left_as_it_was(hub, folders, monkeypatch):
    make_client = hub_http._GLOBAL_CLIENT_FACTORY
    hub.fail("*", kind="hang", times=float("inf"))
    start = time.monotonic()
    with hurried_client(monkeypatch), pytest.raises(PublishError, match="did not answer, also after several tries"):
        push_model(folders[0], "me/lesions")
    assert time.monotonic() - start < 20
    assert hub_http._GLOBAL_CLIENT_FACTORY is make_client
    assert len(hub.log) == 0


def test_a_hub_that_is_not_there_is_given_up(folders, monkeypatch):
    with HubServer() as gone:
        gone.connect(monkeypatch)
    with hurried_client(monkeypatch) as waits, pytest.raises(PublishError, match="ConnectError"):
        push_model(folders[0], "me/lesions")
    assert waits == [1, 2, 4, 8]


def test_a_namespace_that_is_busy_for_ever_does_not_hang_the_push(hub, folders, monkeypatch):
    busy = "Cannot create repo: another conflicting operation is in progress"
    hub.fail("create", status=409, message=busy, times=float("inf"))
    with hurried_client(monkeypatch), pytest.raises(PublishError, match="another repository is being created"):
        push_model(folders[0], "me/lesions")
    assert len(hub.requests("create")) == ATTEMPTS


def test_a_file_left_out_by_the_repositorys_gitignore_is_noticed(hub, folders, monkeypatch):
    hub.add_repo("me/lesions", {".gitignore": b"metrics.json"})
    with pytest.raises(PublishError, match=r"took the commit but not all of it.*metrics\.json"):
        push_model(folders[0], "me/lesions")


def test_a_failed_command_returns_one_and_prints_the_command_that_retries_without_the_token(hub, folders, capsys):
    arguments = ["model", str(folders[0]), "--repo_id", "lesions", "--private", "--revision_tag", "v1.0"]
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
    assert done.stderr.startswith("The push to me/lesions did not finish: the Hub does not accept the token (401)")
    assert WRITE_TOKEN not in done.stdout + done.stderr


# ---- The Space -----------------------------------------------------------------------------------------------------


def test_a_revision_that_the_model_lacks_is_named(hub, folders, tmp_path, monkeypatch):
    copy_sources(tmp_path, monkeypatch)
    push_model(folders[0], "me/lesions")
    with pytest.raises(PublishError, match=r"me/lesions has no revision v9; give a branch, a tag or a commit"):
        push_space("me/lesions", "me/lesion-space", model_revision="v9")


def test_a_space_is_one_commit_with_its_model_pinned_and_the_same_push_again_changes_nothing(
    hub, folders, tmp_path, monkeypatch
):
    copy_sources(tmp_path, monkeypatch)
    model = push_model(folders[0], "me/lesions", tag="v1.0")
    first = push_space("me/lesions", "me/lesion-space", model_revision="v1.0")
    assert first.changed
    space = hub.repo("me/lesion-space", "space")
    assert space.variables == {"MODEL_ID": "me/lesions", "MODEL_REVISION": model.revision}
    files = space.files()
    assert {"app.py", "README.md", "requirements.txt", "modeling/predictor.py", "modeling/__init__.py"} <= set(files)
    assert all(path.endswith(".py") for path in files if path.startswith("modeling/"))
    header = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert header["sdk"] == "gradio"
    assert header["python_version"] == "3.12"
    assert header["models"] == ["me/lesions"]
    assert header["preload_from_hub"] == [f"me/lesions config.json,onnx/model.onnx {model.revision}"]
    assert header["license"] == "apache-2.0"
    hub.log.clear()
    second = push_space("me/lesions", "me/lesion-space", model_revision="v1.0")
    assert (second.changed, second.revision) == (False, first.revision)
    assert not [entry for entry in hub.log if entry.method == "POST"]

    newer = push_model(folders[1], "me/lesions")
    assert push_space("me/lesions", "me/lesion-space").changed
    assert space.variables["MODEL_REVISION"] == newer.revision
    assert len(space.commits) == 3


BUILD_PAGE = """
import os, sys
sys.path.insert(0, os.getcwd())
import app, modeling
from modeling.predictor import LesionClassifier
classifier = LesionClassifier.from_pretrained(os.environ["MODEL_ID"], revision=os.environ["MODEL_REVISION"])
app.build_demo(classifier)
print(classifier.model_id, classifier.revision, os.path.dirname(modeling.__file__))
"""


def test_a_pushed_space_builds_its_page_from_what_was_pushed_alone(hub, folders, tmp_path):
    model = push_model(folders[0], "me/lesions", private=True)
    push_space("me/lesions", "me/lesion-space", private=True)
    space = hub.repo("me/lesion-space", "space")
    for path, content in space.files().items():
        (tmp_path / "app" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "app" / path).write_bytes(content)
    environment = {**hub.env(home=tmp_path / "cache"), **space.variables, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", BUILD_PAGE]
    done = subprocess.run(command, env=environment, cwd=tmp_path / "app", capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"me/lesions {model.revision} {tmp_path / 'app' / 'modeling'}"


def test_a_space_without_its_model_on_the_hub_says_to_push_it_first(hub):
    with pytest.raises(PublishError, match=r"no model me/lesions .* push it first"):
        push_space("me/lesions", "me/lesion-space")
    assert ("space", "me/lesion-space") not in hub.repos


def test_the_space_requires_what_its_code_imports_and_one_gradio():
    requirements = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    pins = dict(
        re.fullmatch(r"([\w-]+)(?:\[\w+\])?==([\w.]+)", line).groups() for line in requirements if line[0] != "#"
    )
    header = yaml.safe_load((ROOT / "space" / "README.md").read_text().split("---")[1])
    assert header["sdk_version"] == pins["gradio"]
    served = [path for path in (ROOT / "modeling").glob("*.py") if path.stem != "bulk"]  # no archives in a Space
    own = {path.stem for path in (ROOT / "space").glob("*.py")} | {"modeling"}
    imported: set[str] = set()
    for path in [*served, *(ROOT / "space").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    not_served = {"scipy", "sklearn", "accelerate"}  # for fitting, and for archives over several processes
    other_engine = {"torch", "torchvision", "timm", "safetensors", "pytorch_grad_cam"}
    third_party = imported - own - not_served - other_engine - sys.stdlib_module_names
    distributions = metadata.packages_distributions()
    installed = with_dependencies(set(pins))
    installed |= {"mcp"} if any(line.startswith("gradio[mcp]") for line in requirements) else set()
    missing = {name for name in third_party if not installed & {normal(found) for found in distributions[name]}}
    assert not missing


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
