"""The page without a server: the files of a static Space, and the same build served on this machine.

The visitor's browser runs the network; `space/page/build.mjs` puts page and runtime together. Needs npm.
"""

import contextlib
import hashlib
import json
import mimetypes
import os
import re
import shutil
import socket
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modeling import __version__
from modeling.files import ModelFolderError
from modeling.labels import DIAGNOSES
from modeling.model_folder import file_beside, resolve_model_folder

PAGE = Path(__file__).parent / "page"
TEXTS = Path(__file__).parents[1] / "modeling" / "texts.json"
SERVER_ONLY = ("server.html", "server.js", "engine_server.js")
HUB = "https://huggingface.co"
# Model files come from the Hub's own storage hosts, to which it redirects.
HUB_HOSTS = (HUB, "https://*.huggingface.co", "https://*.hf.co")
BUILD_TIMEOUT_S = 600
MODEL_FILES = re.compile(r"config\.json|metrics\.json|onnx/model\.onnx|(figures|examples)/[\w-]+\.(png|jpg|json)")
HEADER = """---
title: Skin lesion classifier
emoji: 🔬
colorFrom: indigo
colorTo: gray
sdk: static
app_build_command: npm run build
app_file: dist/index.html
custom_headers:
  cross-origin-resource-policy: cross-origin
pinned: false
license: apache-2.0
short_description: Dermoscopy demo; photos stay on the device. No medical use.
models:
- {model_id}
tags:
- dermatology
- dermoscopy
- image-classification
- onnxruntime-web
---

# Skin lesion classifier

A dermoscopic photo in, the calibrated probability of each diagnosis out, computed in your browser: no photo leaves the
device. The page also works without a connection after the first visit.

**A research demonstration, not a medical device.** It cannot rule out melanoma or any other disease; anyone worried
about a spot on the skin should see a doctor.

The model is {model_id} at revision {revision}; its card says what it was trained on, how good it is and where it fails.
The code is under Apache-2.0, the weights under the licence that the model's card names.
"""


class BuildError(RuntimeError):
    """The page could not be built; the message says what to do."""


def static_files(model_id: str, revision: str) -> dict[str, bytes]:
    """Return the files of a static Space for a model on the Hub, by path in the Space's repository.

    The revision is a full commit hash, so that page and model belong together.
    """
    url = f"{HUB}/{model_id}/resolve/{revision}/"
    origin = {"model_id": model_id, "revision": revision, "model_url": url, "model_hosts": HUB_HOSTS}
    readme = HEADER.format(model_id=model_id, revision=revision)
    return {**page_files(origin), "README.md": readme.encode()}


def page_files(origin: dict[str, Any]) -> dict[str, bytes]:
    """Return the sources of the page, with what the build takes from the package: sentences, diagnoses and the version."""
    files = {file.name: file.read_bytes() for file in sorted(PAGE.iterdir()) if file.is_file()}
    labels = [{**asdict(diagnosis), "malignant": diagnosis.malignant} for diagnosis in DIAGNOSES]
    return {
        **{name: content for name, content in files.items() if name not in SERVER_ONLY},
        "texts.json": TEXTS.read_bytes(),
        "labels.json": json.dumps(labels, indent=1).encode(),
        "page.json": json.dumps({**origin, "package_version": __version__}, indent=1).encode(),
    }


def build(origin: dict[str, Any]) -> Path:
    """Build the page once, and return the folder that a server hands out.

    Raises:
        BuildError: If npm is missing or fails.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "skin-lesion-classifier"
    files = page_files(origin)
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
    """Build the page of a model folder and serve it on this machine until interrupted.

    Raises:
        BuildError: If npm is missing or fails.
        ModelFolderError: If there is no such model.
        OSError: If the port cannot be used.
    """
    import uvicorn  # not installed where a static Space is only published

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise OSError(f"port {port} cannot be used; give another with --port.") from error
    app = page_app(model, revision=revision)
    print(f"The page, computing in the browser: http://127.0.0.1:{port}/ (Ctrl+C ends it)", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


def page_app(model: str | Path, *, revision: str | None = None) -> Any:
    """Return a Starlette app of the page and of a model's files."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import FileResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    source = resolve_model_folder(model, revision)
    origin = {"model_id": source.model_id, "revision": source.revision, "model_url": "model/", "model_hosts": ()}
    for ending in (".js", ".mjs"):
        mimetypes.add_type("text/javascript", ending)  # whatever the host's own list says

    def of_model(request: Any) -> Response:
        name = request.path_params["name"]
        with contextlib.suppress(ModelFolderError):
            if MODEL_FILES.fullmatch(name) and (path := file_beside(source, name)):
                return FileResponse(path)
        return Response(status_code=404)

    async def with_headers(request: Any, answer: Any) -> Any:
        response = await answer(request)
        response.headers.update({"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"})
        return response

    return Starlette(
        routes=[
            Route("/model/{name:path}", of_model),
            Mount("/", StaticFiles(directory=build(origin), html=True)),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=with_headers)],
    )


def _digest(files: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]
