"""The page without a server: the files of a static Space, and the same build served on this machine.

The visitor's browser runs the network; `space/page/build.mjs` puts page and runtime together. Needs npm.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from modeling import __version__
from modeling.files import ROOT, ModelFolderError
from modeling.labels import DIAGNOSES
from modeling.model_folder import file_beside, resolve_model_folder

PAGE = Path(__file__).parent / "page"
HUB = "https://huggingface.co"
# Model files come from the Hub's own storage hosts, to which it redirects.
HUB_HOSTS = (HUB, "https://*.huggingface.co", "https://*.hf.co")
BUILD_TIMEOUT_S = 600
MODEL_FILES = re.compile(r"config\.json|metrics\.json|onnx/model\.onnx|(figures|examples)/[\w-]+\.(png|jpg|json)")


class BuildError(RuntimeError):
    """The page could not be built; the message says why."""


def static_files(model_id: str, revision: str | None, *, local: bool = False) -> dict[str, bytes]:
    """Return the files of a static Space, by path: the page, and sentences, diagnoses and version from the package.

    The page reads the model from the Hub, at a full commit hash, so that they belong together; a local page from `model/`.
    """
    url, hosts = ("model/", ()) if local else (f"{HUB}/{model_id}/resolve/{revision}/", HUB_HOSTS)
    origin = {"model_id": model_id, "revision": revision, "model_url": url, "model_hosts": hosts}
    labels = [{**asdict(diagnosis), "malignant": diagnosis.malignant} for diagnosis in DIAGNOSES]
    return {
        **{file.name: file.read_bytes() for file in PAGE.glob("[!.]*") if file.is_file()},
        "texts.json": (ROOT / "modeling" / "texts.json").read_bytes(),
        "labels.json": json.dumps(labels, indent=1).encode(),
        "page.json": json.dumps({**origin, "package_version": __version__}, indent=1).encode(),
    }


def build(files: dict[str, bytes]) -> Path:
    """Build the page once, and return the folder that a server hands out; needs npm."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skin-lesion-classifier"
    locked = {name: files[name] for name in ("package.json", "package-lock.json")}
    work, packages = cache / f"page-{_digest(files)}", cache / f"npm-{_digest(locked)}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "build.lock"):
        if not (work / "dist").is_dir():  # build.mjs renames it into place
            if not (packages / "node_modules" / ".package-lock.json").is_file():  # which npm writes last
                _write(locked, packages)
                _run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], packages)
            _write(files, work)
            _run(["node", "build.mjs", str(packages / "node_modules")], work)
    return work / "dist"


def _write(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _run(command: list[str], folder: Path) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise BuildError("the page is built with npm, which is not installed; install Node.js 20 or newer.")
    done = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    if done.returncode:
        raise BuildError(f"`{' '.join(command)}` failed in {folder}: {(done.stderr or done.stdout)[-500:]}")


def serve(model: str | Path, port: int, *, revision: str | None = None) -> None:
    """Build the page of a model and serve it on this machine until interrupted; raise OSError if the port is in use."""
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
    """Return a Starlette app of the page and of a model's files."""
    from starlette.applications import Starlette
    from starlette.responses import FileResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    source = resolve_model_folder(model, revision)

    def of_model(request: Any) -> Response:
        name = request.path_params["name"]
        with contextlib.suppress(ModelFolderError):
            if MODEL_FILES.fullmatch(name) and (path := file_beside(source, name)):
                return FileResponse(path)
        return Response(status_code=404)

    page = StaticFiles(directory=build(static_files(source.model_id, source.revision, local=True)), html=True)
    return Starlette(routes=[Route("/model/{name:path}", of_model), Mount("/", page)])


def _digest(files: dict[str, bytes]) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
