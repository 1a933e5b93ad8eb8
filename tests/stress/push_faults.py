"""Push a model, a Gradio Space and a static Space under every fault on every route of the Hub, and count what survives.

    python tests/stress/push_faults.py            # all of it, ten to twenty minutes
    python tests/stress/push_faults.py --short    # the part that the test suite runs

A fault strikes once or lasts. After each push: the repository shows the old version or the new one, whole, the name of a
Space's model included; the local folder is untouched; no message holds the token; the time was bounded. Then the Hub
recovers, and a second push must complete without sending large files again that had arrived.
"""

import argparse
import hashlib
import json
import logging
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub.utils import disable_progress_bars
from PIL import Image

from modeling.files import ROOT, file_sha256
from modeling.publish import hub as hub_module
from modeling.publish import space
from modeling.publish.hub import LONGEST_WAIT_S, Published, PublishError
from modeling.publish.push import push_model
from modeling.publish.space import push_space, space_files, static_space_files

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.hub import WRITE_TOKEN, HubServer, Repo
from support.scored import make_scored_folder
from support.untrained import untrained_folder

MODEL_ROUTES = (
    "create",
    "info",
    "refs",
    "preupload",
    "lfs-batch",
    "lfs-put",
    "lfs-verify",
    "validate-yaml",
    "commit",
    "tag",
)
SPACE_ROUTES = ("create", "info", "preupload", "validate-yaml", "commit")
TARGETS = {"model": MODEL_ROUTES, "space": SPACE_ROUTES, "static": SPACE_ROUTES}
STATUS_FAULTS = ("401", "402", "403", "404", "409", "413", "429", "500", "503")
FAULTS = (*STATUS_FAULTS, "cut", "hang", "lost", "portal")
# A single one of these must not be noticed by the user; the others are answers that waiting does not change.
MUST_SURVIVE_ONCE = ("429", "500", "503", "cut", "hang", "lost")
HANG_TIMEOUT_S = 0.25
SPEED = 200.0  # the clients' waits are this many times shorter here
LIMIT_S = 60.0  # of one push, waits counted at full length apart


@dataclass(frozen=True)
class Case:
    target: str  # "model", "space" or "static"
    route: str
    fault: str
    lasting: bool
    fresh: bool  # nothing on the Hub yet

    def __str__(self) -> str:
        times, start = "lasting" if self.lasting else "once", "fresh" if self.fresh else "update"
        return f"{self.target}/{self.route}/{self.fault}/{times}/{start}"


def all_cases() -> list[Case]:
    return [
        Case(target, route, fault, lasting, fresh)
        for target, routes in TARGETS.items()
        for route in routes
        for fault in FAULTS
        for lasting in (False, True)
        for fresh in (False, True)
    ]


def short_cases() -> list[Case]:
    """Every fault where it hurts most, and every route once."""
    cases = [Case("model", "lfs-put", fault, lasting=False, fresh=True) for fault in FAULTS]
    cases += [Case("model", "commit", fault, lasting=True, fresh=False) for fault in FAULTS]
    cases += [Case("model", "commit", fault, lasting=False, fresh=True) for fault in MUST_SURVIVE_ONCE]
    cases += [Case("model", route, "503", lasting=False, fresh=True) for route in MODEL_ROUTES]
    cases += [Case("model", route, "portal", lasting=True, fresh=False) for route in ("info", "preupload", "commit")]
    for target in ("space", "static"):
        cases += [Case(target, route, "lost", lasting=False, fresh=False) for route in SPACE_ROUTES]
        cases += [Case(target, "info", "503", lasting=True, fresh=False)]
        cases += [Case(target, "create", "402", lasting=True, fresh=True)]
    return cases


def make_model_folder(folder: Path, *, seed: int, scored: Path) -> Path:
    """A complete model folder with a tiny network, and scores taken from a folder that was really evaluated."""
    lesion = {
        "package_version": "0",
        "run_id": f"run{seed}",
        "dataset": "demo",
        "synthetic": True,
        "operating_points": [],
    }
    untrained_folder(folder, seed=seed, onnx=True, **lesion)
    metrics = json.loads((scored / "metrics.json").read_text())
    metrics["model"] |= {"weights_sha256": file_sha256(folder / "model.safetensors"), "run_id": f"run{seed}"}
    metrics["figures"] = [{"file": f"roc_{seed}.png", "title": "ROC", "caption": "ROC", "alt": "ROC"}]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "README.md").write_text(f"---\nlicense: cc-by-nc-4.0\n---\n# Run {seed}\n")
    (folder / "evaluation.md").write_text(f"# Evaluation of run {seed}\n")
    (folder / "figures").mkdir()
    Image.new("RGB", (8, 8), (seed, 0, 0)).save(folder / "figures" / f"roc_{seed}.png")
    return folder


def copy_sources(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let the Space be made from a copy of its files, so that nobody edits them during a push."""
    for name in ("space", "modeling"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyi", "node_modules")
        )
    patch.setattr(space, "ROOT", folder)
    patch.delitem(sys.modules, "static_space", raising=False)
    patch.syspath_prepend(folder / "space")


@contextmanager
def hurried_client(patch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Shorten the clients' waits and time-outs, and keep what they would have been."""
    waits: list[float] = []
    sleep = time.sleep

    def short_sleep(seconds: float) -> None:
        waits.append(seconds)
        sleep(seconds / SPEED)

    with patch.context() as inner:
        inner.setattr(time, "sleep", short_sleep)
        inner.setattr(hub_module, "ANSWER_TIMEOUT_S", HANG_TIMEOUT_S)
        yield waits


def run_case(case: Case, old: Path, new: Path, patch: pytest.MonkeyPatch) -> bool:
    """Push under one fault, check all promises, recover, push again; return whether the first push went through."""
    with HubServer() as hub:
        hub.connect(patch)
        if case.target != "model":
            hub.add_repo("me/model", old)
        repo_id, kind = ("me/lesions", "model") if case.target == "model" else ("me/space", "space")
        if not case.fresh:
            of_space = {"modeling/gone.py": b"", "app.py": b"old", "model.json": b"{}"}
            before = old if case.target == "model" else of_space
            hub.add_repo(repo_id, before, kind=kind)
        folder_before, visible_before = _fingerprint(new), _visible(hub, repo_id, kind)

        times = float("inf") if case.lasting else 1
        if case.fault in STATUS_FAULTS:
            headers = {"Retry-After": "100000"} if case.fault == "429" else {}
            message = "sent: {token}"  # the worst server repeats what it was sent
            hub.fail(case.route, status=int(case.fault), times=times, headers=headers, message=message)
        else:
            hub.fail(case.route, kind=case.fault, times=times)

        with hurried_client(patch) as waits:
            start, first, message = time.monotonic(), None, ""
            try:
                first = _push(case, new)
            except PublishError as error:
                message = str(error)
            spent_s = time.monotonic() - start
            assert spent_s < LIMIT_S, f"{case}: {spent_s:.0f} s"
            assert all(wait <= LONGEST_WAIT_S + 1 for wait in waits), f"{case}: waits {waits}"
            assert _fingerprint(new) == folder_before, f"{case}: the local folder changed"
            assert WRITE_TOKEN not in message, f"{case}: the token is in the message"

            whole = _expected(case, hub, old, new)
            visible = _visible(hub, repo_id, kind)
            assert visible in (visible_before, whole, _empty(kind)), f"{case}: half-visible: {sorted(visible or [])}"
            if first is None:
                assert "python -m modeling.publish" in message, f"{case}: no command to retry in {message!r}"
                assert case.lasting or case.fault not in MUST_SURVIVE_ONCE, f"{case}: gave up: {message}"

            hub.heal()
            arrived = set(hub.repos[kind, repo_id].lfs) if (kind, repo_id) in hub.repos else set()
            n_before = len(hub.log)
            second = _push(case, new)
            assert _visible(hub, repo_id, kind) == whole, f"{case}: the second push is not whole"
            assert _tag_and_model(case, hub, second), f"{case}: the tag or the Space's model is wrong"
            sent_again = {entry.path.rsplit("/", 1)[1] for entry in hub.log[n_before:] if entry.route == "lfs-put"}
            assert not arrived & sent_again, f"{case}: sent again"
            n_commits = len(hub.repo(repo_id, kind).commits) - (1 if case.fresh else 2)
            assert n_commits == 1, f"{case}: {n_commits} commits for one change"
    return first is not None


def _push(case: Case, folder: Path) -> Published:
    if case.target == "model":
        return push_model(folder, "me/lesions", tag="v2")
    return push_space("me/model", "me/space", static=case.target == "static")


def _fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest() + str(files)


def _visible(hub: HubServer, repo_id: str, kind: str) -> dict[str, bytes] | None:
    return hub.repo(repo_id, kind).files() if (kind, repo_id) in hub.repos else None


def _empty(kind: str) -> dict[str, bytes]:
    return Repo("a/b", kind).files()


def _expected(case: Case, hub: HubServer, old: Path, new: Path) -> dict[str, bytes]:
    """What the repository shows after a push that went through."""
    if case.target == "model":
        contents = {path.relative_to(new).as_posix(): path.read_bytes() for path in new.rglob("*") if path.is_file()}
    else:
        files_of = static_space_files if case.target == "static" else space_files
        files = files_of("me/model", hub.repo("me/model").head.oid)
        contents = {
            path: source if isinstance(source, bytes) else source.read_bytes() for path, source in files.items()
        }
    return {**_empty(case.target), **contents}


def _tag_and_model(case: Case, hub: HubServer, pushed: Published) -> bool:
    if case.target == "model":
        return hub.repo("me/lesions").tags == {"v2": pushed.revision}
    repo = hub.repo("me/space", "space")
    named = json.loads(repo.files()["model.json"])
    return named == {"model_id": "me/model", "revision": hub.repo("me/model").head.oid}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="only the cases of the test suite")
    cases = short_cases() if parser.parse_args().short else all_cases()
    logging.disable(logging.WARNING)
    disable_progress_bars()
    start, tally, survived = time.monotonic(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        (Path(temporary) / "scored").mkdir()
        scored = make_scored_folder(Path(temporary) / "scored")
        old = make_model_folder(Path(temporary) / "old", seed=1, scored=scored)
        new = make_model_folder(Path(temporary) / "new", seed=2, scored=scored)
        copy_sources(Path(temporary) / "sources", patch)
        for place, case in enumerate(cases, start=1):
            went_through = run_case(case, old, new, patch)
            print(f"\r{place} of {len(cases)}", end="", flush=True)
            key = f"{case.fault:>5} {'lasting' if case.lasting else 'once'}"
            tally[key] += 1
            survived[key] += went_through
    print("\nfault            went through   refused with a sentence, completed by the second push")
    for key in sorted(tally):
        print(f"{key:<15} {survived[key]:>5} of {tally[key]:<5} {tally[key] - survived[key]:>5}")
    print(f"{len(cases)} cases, all promises kept, in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
