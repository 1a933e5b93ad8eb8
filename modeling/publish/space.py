"""Push the Space to the Hub: page, package and the name of its model in one commit."""

import importlib
import json
import sys
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, SpaceCard
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from modeling.files import ROOT, files_of
from modeling.model_folder import CONFIG_NAME, ONNX_NAME
from modeling.publish import hub
from modeling.publish.hub import Files, Published, PublishError, command, persist

MODEL_FILE = "model.json"  # which model a Space serves: {"model_id", "revision"}
# Files of an earlier push that would contradict this one, of either kind of Space.
REPLACED_IN_SPACE = ("modeling/*", "page/*", "*.py", "*.js", "*.mjs", "*.css", "*.html", "*.json", "*.svg", "*.txt")


def push_space(
    model_id: str,
    space_id: str,
    *,
    model_revision: str | None = None,
    static: bool = False,
    hardware: str | None = None,
    private: bool = False,
) -> Published:
    """Create or update the Space that serves a model of the Hub.

    Args:
        model_id: Repository of the model.
        space_id: "me/space", or "space" for the user of the token. Created if it is not there.
        model_revision: Branch, tag or commit, pinned to its full commit hash; by default the newest commit.
        static: Push the page that computes in the visitor's browser instead of the Gradio app.
        hardware: Of a new Space, such as "zero-a10g"; by default the Hub's.
        private: Make a new Space private; an existing public one is refused.

    Raises:
        PublishError: If the model cannot be served, or the Hub refuses or is out of reach.
    """
    hub.check_repo_id(model_id, "--model_id")
    hub.check_repo_id(space_id, "--space_id")
    token = hub.token_or_refuse()
    options = {"model_id": model_id, "space_id": space_id, "model_revision": model_revision, "private": private}
    with hub.connected(space_id, token, command("space", **options, static=static, hardware=hardware)) as api:
        space_id = hub.with_namespace(api, space_id)
        model = _model_info(api, model_id, model_revision)
        files = (static_space_files if static else space_files)(model_id, str(model.sha))
        hub.check_no_token(files, token)
        sdk = "static" if static else "gradio"
        hub.ensure_repo(api, space_id, "space", private=private, space_sdk=sdk, space_hardware=hardware)
        message = f"Serve {model_id} at {str(model.sha)[:12]}"
        pushed = hub.commit_files(api, space_id, "space", files, replaced=REPLACED_IN_SPACE, message=message)
    if model.private:
        way = "make it public" if static else "give the Space a secret HF_TOKEN that may read it, in its settings"
        hub.logger.warning("The Space cannot read %s, which is private: %s.", model_id, way)
    return pushed


def _model_info(api: HfApi, model_id: str, revision: str | None) -> ModelInfo:
    """Return what the Hub has of a model, at a revision that has all that a Space needs."""
    push_first = f"push it first: {command('model', 'RUN/model', repo_id=model_id)}"
    try:
        model = persist(lambda: api.model_info(model_id, revision=revision))
    except (RepositoryNotFoundError, RevisionNotFoundError):
        named = f"{model_id} with a revision {revision}" if revision else model_id
        raise PublishError(f"the Hub has no model {named} that this token may read; {push_first}") from None
    missing = {CONFIG_NAME, ONNX_NAME} - {file.rfilename for file in model.siblings or []}
    if missing:
        raise PublishError(f"{model_id} has no {' and no '.join(sorted(missing))}; {push_first}")
    return model


def space_files(model_id: str, revision: str) -> dict[str, Path | bytes]:
    """Return the files of the Gradio Space, by path: `space/*` at the root of its repository, and the package beside it."""
    space, package = _clone("app.py"), ROOT / "modeling"
    # gradio writes .pyi files beside its components while it runs.
    files = {file.relative_to(space).as_posix(): file for file in files_of(space) if file.suffix != ".pyi"}
    serving = [file for file in files_of(package) if file.suffix in (".py", ".json")]
    files |= {f"modeling/{file.relative_to(package).as_posix()}": file for file in serving}
    return _with_model(files, model_id, revision)


def static_space_files(model_id: str, revision: str) -> dict[str, Path | bytes]:
    """Return the files of the static Space, by path."""
    sys.path.append(str(_clone("static_space.py")))
    return _with_model(importlib.import_module("static_space").static_files(model_id, revision), model_id, revision)


def _clone(name: str) -> Path:
    """Return the folder `space` of the clone."""
    space = ROOT / "space"
    if not (space / name).is_file():
        raise PublishError(f"{space} has no {name}: run this from a clone of the repository, after `pip install -e .`")
    return space


def _with_model(files: Files, model_id: str, revision: str) -> dict[str, Path | bytes]:
    """Name the model in MODEL_FILE and in the header of the README."""
    readme = files["README.md"]
    header = SpaceCard(readme.decode() if isinstance(readme, bytes) else readme.read_text(encoding="utf-8"))
    header.data["models"] = [model_id]
    if header.data.get("sdk") == "gradio":  # a static Space has no machine that could preload
        header.data["preload_from_hub"] = [f"{model_id} {CONFIG_NAME},{ONNX_NAME} {revision}"]
    named = json.dumps({"model_id": model_id, "revision": revision}, indent=2) + "\n"
    return {**files, "README.md": str(header).encode(), MODEL_FILE: named.encode()}
