"""Put the Space on the Hub: page and package in one commit, and the variables it reads."""

from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, SpaceCard
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from modeling.files import ROOT, files_of
from modeling.model_folder import CONFIG_NAME, ONNX_NAME
from modeling.publish.hub import (
    Published,
    PublishError,
    bounded_client,
    check_no_token,
    command,
    commit_files,
    ensure_repo,
    explained,
    logger,
    persist,
    token_or_refuse,
    with_namespace,
)

REPLACED_IN_SPACE = ("*.py",)


def push_space(
    model_id: str,
    space_id: str,
    *,
    model_revision: str | None = None,
    private: bool = False,
) -> Published:
    """Create or update the Space that serves a model: page and package in one commit, and the variables it reads.

    Args:
        model_id: Repository of the model, which must be on the Hub already.
        space_id: "me/space", or "space" for the user of the token. Created if it is not there.
        model_revision: Branch, tag or commit of the model; pinned to its full commit hash. By default the newest.
        private: Make a new Space private; an existing public one is then refused.

    Raises:
        PublishError: As in `push_model`.
    """
    token = token_or_refuse()
    retry = ["space", "--model_id", model_id, "--space_id", space_id]
    retry += ["--model_revision", model_revision] if model_revision else []
    retry += ["--private"] if private else []
    with explained(space_id, token, retry), bounded_client():
        api = HfApi(token=token)
        space_id = with_namespace(api, space_id)
        try:
            model = persist(lambda: api.model_info(model_id, revision=model_revision))
        except RevisionNotFoundError:
            raise PublishError(
                f"{model_id} has no revision {model_revision}; give a branch, a tag or a commit."
            ) from None
        except RepositoryNotFoundError:
            raise PublishError(
                f"the Hub has no model {model_id} that this token may read; push it first: "
                f"{command('model', 'RUN/model', '--repo_id', model_id)}"
            ) from None
        if ONNX_NAME not in {file.rfilename for file in model.siblings or []}:
            raise PublishError(
                f"{model_id} has no {ONNX_NAME}, which the Space computes with; write it and push again: "
                f"{command('export', 'RUN/model')}"
            )
        variables = {"MODEL_ID": model_id, "MODEL_REVISION": str(model.sha)}
        files = space_files(model_id, str(model.sha))
        check_no_token(files, token)
        # A first build already knows its model.
        at_creation = [{"key": key, "value": value} for key, value in variables.items()]
        ensure_repo(api, space_id, "space", private=private, space_sdk="gradio", space_variables=at_creation)
        pushed = commit_files(
            api,
            space_id,
            "space",
            files,
            replaced=REPLACED_IN_SPACE,
            message=f"Serve {model_id} at {str(model.sha)[:12]}",
        )
        set_before = {key: value.value for key, value in persist(lambda: api.get_space_variables(space_id)).items()}
        changed = {key: value for key, value in variables.items() if set_before.get(key) != value}
        for key, value in changed.items():
            persist(partial(api.add_space_variable, space_id, key, value))
    if model.private:
        logger.warning(
            "%s is private: give the Space a secret HF_TOKEN that may read it (in the Space's settings).", model_id
        )
    return Published(pushed.url, pushed.revision, pushed.changed or bool(changed))


def space_files(model_id: str, model_revision: str) -> dict[str, Path | bytes]:
    """Return what the Space's repository holds, by path: `space/*` at its root, and the package beside it."""
    space = ROOT / "space"
    missing = [name for name in ("app.py", "README.md", "requirements.txt") if not (space / name).is_file()]
    if missing:
        raise PublishError(
            f"{space} has no {', '.join(missing)}: run this from a clone of the repository, "
            "installed with `pip install -e`."
        )
    # gradio writes .pyi files beside its components while it runs.
    page = [file for file in files_of(space) if file.suffix != ".pyi"]
    files: dict[str, Path | bytes] = {file.relative_to(space).as_posix(): file for file in page}
    package = ROOT / "modeling"
    files |= {f"modeling/{file.relative_to(package).as_posix()}": file for file in sorted(package.rglob("*.py"))}
    header = SpaceCard((space / "README.md").read_text(encoding="utf-8"))
    header.data["models"] = [model_id]
    header.data["preload_from_hub"] = [f"{model_id} {CONFIG_NAME},{ONNX_NAME} {model_revision}"]
    return {**files, "README.md": str(header).encode()}
