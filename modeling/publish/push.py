"""Push a model folder to the Hub: checked on this machine first, then sent as one commit."""

from collections.abc import Mapping
from pathlib import Path

from modeling.files import files_of, read_json
from modeling.images import decode_image
from modeling.metrics_file import read_metrics, read_metrics_of
from modeling.model_folder import (
    CONFIG_NAME,
    EXAMPLES_NAME,
    EXTERNAL_NAME,
    HASHES_NAME,
    METRICS_NAME,
    ONNX_NAME,
    RUN_NAME,
    SPLITS_NAME,
    WEIGHTS_NAME,
    checked_file,
    read_config,
)
from modeling.publish import hub
from modeling.publish.card import CARD_NAME, EVALUATION_NAME, NOTEBOOK_NAME, SEEDS_NAME, THIS_FOLDER, read_examples
from modeling.publish.hub import Published, PublishError, command, persist

NEEDED = (WEIGHTS_NAME, CONFIG_NAME, ONNX_NAME, METRICS_NAME, CARD_NAME, EVALUATION_NAME)
OPTIONAL = (RUN_NAME, SPLITS_NAME, HASHES_NAME, SEEDS_NAME, NOTEBOOK_NAME, "LICENSE")
# Files of an earlier push that would contradict this one; what somebody added by hand stays.
REPLACED_IN_MODEL = ("figures/*", "examples/*", "external/*", "*.onnx", "*.safetensors", *OPTIONAL)


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    tag: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> Published:
    """Send a model folder to the Hub as one commit; the folder itself is only read.

    Args:
        folder: A complete model folder, card included.
        repo_id: "me/name", or "name" for the user of the token. Created if it is not there.
        private: Make a new repository private; an existing public one is refused.
        tag: Name of this revision, such as "v1.0"; a tag is never moved.
        commit_message: By default it names the run of the model.
        token: By default the one of `hf auth login` or HF_TOKEN.

    Raises:
        PublishError: If the folder is not complete, or the Hub refuses or is out of reach.
    """
    folder = Path(folder)
    hub.check_repo_id(repo_id, "--repo_id")
    token = hub.token_or_refuse(token)
    retry = command("model", str(folder), repo_id=repo_id, private=private, tag=tag, commit_message=commit_message)
    try:
        files = checked_files(folder)
    except ValueError as error:
        raise PublishError(f"{folder} cannot be published: {error}") from None
    hub.check_no_token(files, token)
    left = sorted({file.relative_to(folder).as_posix() for file in files_of(folder)} - set(files))
    if left:
        hub.logger.warning("Not sent, since a model folder has no such files: %s", ", ".join(left))
    with hub.connected(repo_id, token, retry) as api:
        repo_id = hub.with_namespace(api, repo_id)
        hub.ensure_repo(api, repo_id, "model", private=private)
        message = commit_message or f"Add model of run {read_config(folder)['lesion'].get('run_id', folder.name)}"
        files = _with_repo_id(files, repo_id)
        return hub.commit_files(api, repo_id, "model", files, replaced=REPLACED_IN_MODEL, message=message, tag=tag)


def checked_files(folder: Path) -> dict[str, Path | bytes]:
    """Return the files that a model folder has by contract, by name; they are valid and about the same model.

    Raises:
        ValueError: If one is not, is missing or is a link, with its name.
    """
    if not folder.is_dir():
        raise ValueError("there is no such folder; give the folder `model` of a run")
    names = [*NEEDED, *(name for name in OPTIONAL if (folder / name).exists())]
    if (folder / METRICS_NAME).exists():
        names += [f"figures/{figure['file']}" for figure in read_metrics(folder / METRICS_NAME)["figures"]]
    names += [name for file in folder.glob("external/*") if EXTERNAL_NAME.fullmatch(name := f"external/{file.name}")]
    if (folder / EXAMPLES_NAME).exists():
        names += [EXAMPLES_NAME, *(f"examples/{entry['file']}" for entry in read_examples(folder)["examples"])]
    for name in names:
        if (folder / name).resolve() != folder.resolve() / name:
            raise ValueError(f"{name} is a link")
        if not (folder / name).is_file() or (folder / name).stat().st_size == 0:
            card = command("card", str(folder))
            raise ValueError(f"{name} is missing or empty; `{card}` writes {CARD_NAME} and {EVALUATION_NAME}.")
    config = read_config(folder)
    lesion = config["lesion"]
    for name, sha256 in ((WEIGHTS_NAME, lesion["weights_sha256"]), (ONNX_NAME, lesion.get("onnx_sha256"))):
        checked_file(folder / name, sha256)
    for name in names:
        if name == METRICS_NAME or name.startswith("external/"):
            read_metrics_of(folder / name, config["label_names"], lesion["weights_sha256"])
        elif name.endswith((".json", ".ipynb")):
            read_json(folder / name)
        elif name.endswith((".png", ".jpg")):
            decode_image(folder / name)
    return {name: folder / name for name in names}


def _with_repo_id(files: Mapping[str, Path | bytes], repo_id: str) -> dict[str, Path | bytes]:
    """Return the files with the name of the repository where the pages name this folder."""
    named, address = dict(files), f"{{https://huggingface.co/{repo_id}}}"
    for name in (name for name in files if name.endswith((".md", ".ipynb"))):
        text = Path(str(files[name])).read_text(encoding="utf-8")
        text = text.replace(f"local-dir:{THIS_FOLDER}", f"hf-hub:{repo_id}").replace(f"{{{THIS_FOLDER}}}", address)
        named[name] = text.replace(THIS_FOLDER, repo_id).encode()
    return named


def check_can_push(repo_id: str, token: str | None = None, *, private: bool = False) -> None:
    """Make sure before hours of training that a push to `repo_id` will be allowed.

    A repository that is not there is created, as by transformers' Trainer: nothing else proves the right to do so.

    Raises:
        PublishError: If it would not, or if `repo_id` is public and is to be private.
    """
    hub.check_repo_id(repo_id, "--hub_model_id")
    with hub.connected(repo_id, hub.token_or_refuse(token)) as api:
        repo_id = hub.with_namespace(api, repo_id)
        hub.ensure_repo(api, repo_id, "model", private=private)
        persist(lambda: api.auth_check(repo_id, write=True))
