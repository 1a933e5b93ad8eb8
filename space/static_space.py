"""The page without a server: the files of a static Space, and the same build served on this machine.

The visitor's browser runs the network; `space/page/build.mjs` puts page and runtime together. Needs npm.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modeling import __version__
from modeling.files import ROOT, files_of
from modeling.labels import DIAGNOSES
from modeling.model_folder import resolve_model_folder

PAGE = Path(__file__).parent / "page"
HUB = "https://huggingface.co"
# Model files come from the Hub's own storage hosts, to which it redirects.
HUB_HOSTS = (HUB, "https://*.huggingface.co", "https://*.hf.co")
BUILD_TIMEOUT_S = 600


class BuildError(RuntimeError):
    """The page could not be built; the message says what to do."""


def static_files(model_id: str, revision: str | None) -> dict[str, bytes]:
    """Return the files of a static Space, by path: the page, and sentences, diagnoses and version from the package.

    The page reads the model from the Hub, at a full commit hash; without a revision from the folder `model` beside it.
    """
    url, hosts = (f"{HUB}/{model_id}/resolve/{revision}/", HUB_HOSTS) if revision else ("model/", ())
    origin = {"model_id": model_id, "revision": revision, "model_url": url, "model_hosts": hosts}
    labels = [{**asdict(diagnosis), "malignant": diagnosis.malignant} for diagnosis in DIAGNOSES]
    return {
        **{file.name: file.read_bytes() for file in files_of(PAGE)},
        "texts.json": (ROOT / "modeling" / "texts.json").read_bytes(),
        "labels.json": json.dumps(labels, indent=1).encode(),
        "page.json": json.dumps({**origin, "package_version": __version__}, indent=1).encode(),
    }


def build(files: dict[str, bytes]) -> Path:
    """Build the page once, and return the folder that a server hands out.

    Raises:
        BuildError: If npm is missing or fails.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skin-lesion-classifier"
    locked = {name: files[name] for name in ("package.json", "package-lock.json")}
    work, packages = cache / f"page-{_digest(files)}", cache / f"npm-{_digest(locked)}"
    if not (work / "dist" / "sw.js").is_file():
        if not (packages / "node_modules" / ".package-lock.json").is_file():  # which npm writes last
            _write(locked, packages)
            _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], packages)
        _write(files, work)
        (work / "node_modules").unlink(missing_ok=True)
        (work / "node_modules").symlink_to(packages / "node_modules")
        _run(["node", "build.mjs"], work)
    return work / "dist"


def _write(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _run(command: list[str], folder: Path) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise BuildError(
            "the page in the browser is built with npm, which is not installed; install Node.js 20 or newer."
        )
    done = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    if done.returncode:
        raise BuildError(f"`{' '.join(command)}` failed in {folder}: {(done.stderr or done.stdout)[-500:]}")


def serve(model: str | Path, port: int, *, revision: str | None = None) -> None:
    """Build the page of a model and serve it on this machine until interrupted; an OSError is about the port."""
    import uvicorn  # not installed where a static Space is only published

    with socket.create_server(("127.0.0.1", port)) as listener, contextlib.suppress(KeyboardInterrupt):
        try:
            app = page_app(model, revision=revision)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"the page cannot be built: {error}") from error
        print(f"The page, computing in the browser: http://127.0.0.1:{port}/ (Ctrl+C ends it)", flush=True)
        headers = [("Cache-Control", "no-cache"), ("X-Content-Type-Options", "nosniff")]
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, headers=headers)).run([listener])


def page_app(model: str | Path, *, revision: str | None = None) -> Any:
    """Return a Starlette app of the page, and of the model folder if it is on this machine."""
    from starlette.applications import Starlette
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    source = resolve_model_folder(model, revision)
    folder = StaticFiles(directory=source.path)
    page = StaticFiles(directory=build(static_files(source.model_id, source.revision)), html=True)
    return Starlette(routes=[Mount("/model", folder), Mount("/", page)])


def _digest(files: dict[str, bytes]) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
