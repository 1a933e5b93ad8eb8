"""Put a model folder on the Hub: checked on this machine first, then sent as one commit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from modeling.files import ModelFolderError, file_sha256, files_of, read_json
from modeling.metrics_file import read_metrics
from modeling.model_folder import CONFIG_NAME, METRICS_NAME, ONNX_NAME, PICKLE_SUFFIXES, WEIGHTS_NAME, read_config
from modeling.publish.card import CARD_NAME, CARD_REPO_ID, EVALUATION_NAME
from modeling.publish.hub import (
    Published,
    PublishError,
    bounded_client,
    check_no_token,
    check_private,
    command,
    commit_files,
    ensure_repo,
    explained,
    logger,
    persist,
    token_or_refuse,
    with_namespace,
)

# What a model folder may hold; all else is refused, so that nothing executable and no stray file gets out.
ALLOWED_SUFFIXES = (".safetensors", ".json", ".md", ".csv", ".png", ".jpg", ".onnx")
# Files of an earlier push that would contradict this one; whatever else somebody added by hand stays.
REPLACED_IN_MODEL = (
    "figures/*",
    "examples/*",
    "external/*",
    "*.onnx",
    "*.safetensors",
    "splits.csv",
    "image_hashes.csv",
)


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
        private: Make a new repository private; an existing public one is then refused.
        tag: Name this revision, such as "v1.0"; a tag that names another revision is never moved.
        commit_message: By default the run id of the model.
        token: Hub token with the right to write; by default the one of `hf auth login` or HF_TOKEN.

    Raises:
        PublishError: If the folder is not complete, or the Hub refuses or is out of reach; names the command to retry.
    """
    folder = Path(folder)
    token = token_or_refuse(token)
    check_model_folder(folder, token)
    run_id = read_config(folder)["lesion"].get("run_id", folder.resolve().parent.name)
    files: dict[str, Path | bytes] = {file.relative_to(folder).as_posix(): file for file in files_of(folder)}
    retry = ["model", str(folder), "--repo_id", repo_id]
    retry += ["--private"] if private else []
    retry += ["--revision_tag", tag] if tag else []
    retry += ["--commit_message", commit_message] if commit_message else []
    with explained(repo_id, token, retry, untouched=folder), bounded_client():
        api = HfApi(token=token)
        repo_id = with_namespace(api, repo_id)
        ensure_repo(api, repo_id, "model", private=private)
        for name in (CARD_NAME, EVALUATION_NAME):  # now that the repository has a name
            files[name] = (folder / name).read_text(encoding="utf-8").replace(CARD_REPO_ID, repo_id).encode()
        return commit_files(
            api,
            repo_id,
            "model",
            files,
            replaced=REPLACED_IN_MODEL,
            message=commit_message or f"Add model of run {run_id}",
            tag=tag,
        )


def check_can_push(repo_id: str, token: str | None = None, *, private: bool = False) -> str:
    """Find out before hours of training whether a push to `repo_id` would be allowed, and return its full name.

    Raises:
        PublishError: If there is no token, the Hub does not know it, or it may not write there; or the repository is public and
            is to be private.
    """
    token = token_or_refuse(token)
    with explained(repo_id, token, None), bounded_client():
        api = HfApi(token=token)
        user = persist(lambda: api.whoami())
        repo_id = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
        validate_repo_id(repo_id)
        reason = _reason_not_to_write(user, repo_id)
        if reason:
            raise PublishError(reason)
        try:
            persist(lambda: api.auth_check(repo_id, write=True))
            if private:
                check_private(repo_id, persist(lambda: api.model_info(repo_id)))
        except RepositoryNotFoundError:
            logger.info("%s is not there yet and will be created.", repo_id)
    return repo_id


def _reason_not_to_write(user: Mapping[str, Any], repo_id: str) -> str | None:
    """Compare what the Hub says about a token with the place it is to write to."""
    namespace = repo_id.split("/")[0]
    token = user.get("auth", {}).get("accessToken", {})
    new_token = f"make one with the role 'write' at {HfApi().endpoint}/settings/tokens and run `hf auth login`"
    if token.get("role") == "read":
        return f"the token of {user['name']} may only read; {new_token}."
    orgs = {org["name"]: org.get("roleInOrg", "write") for org in user.get("orgs", [])}
    if namespace not in {user["name"], *orgs}:
        places = ", ".join([user["name"], *orgs])
        return f"{user['name']} is no member of {namespace!r}, so {repo_id} cannot be written; name one of: {places}."
    if orgs.get(namespace) == "read":
        return f"{user['name']} may only read in {namespace!r}; ask its owners for the role 'contributor' or 'write'."
    if token.get("role") == "fineGrained":
        scopes = token.get("fineGrained", {}).get("scoped", [])
        writable = {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}
        if not {namespace, repo_id} & writable:
            return f"the fine-grained token of {user['name']} has no right 'write' on {namespace!r}; {new_token}."
    return None


def _contradictions(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """Return where weights, configuration and scores of a folder are not about the same model."""
    weights_sha256 = file_sha256(folder / WEIGHTS_NAME)
    problems = []
    if config["lesion"]["weights_sha256"] != weights_sha256:
        problems.append(f"{WEIGHTS_NAME} is not the file that {CONFIG_NAME} describes: weights_sha256 differs")
    if not (folder / ONNX_NAME).is_file() or config["lesion"].get("onnx_sha256") != file_sha256(folder / ONNX_NAME):
        problems.append(
            f"{ONNX_NAME} is missing or not the file that {CONFIG_NAME} describes (write it with "
            f"`{command('export', str(folder))}`)"
        )
    try:
        measured = read_metrics(folder / METRICS_NAME)["model"]
    except ModelFolderError as error:
        return [*problems, str(error)]
    if measured["weights_sha256"] != weights_sha256 or measured["codes"] != config["label_names"]:
        problems.append(f"{METRICS_NAME} is of another model: its weights_sha256 or diagnoses differ")
    return problems


def check_model_folder(folder: Path, token: str) -> None:
    """Make sure that a model folder is complete, consistent and holds nothing that must not get out.

    Raises:
        PublishError: With all that is wrong with it.
    """
    if not folder.is_dir():
        raise PublishError(f"there is no folder {folder}; give the folder `model` of a run.")
    try:
        config = read_config(folder)
    except ModelFolderError as error:
        raise PublishError(f"{folder} cannot be published: {error}") from error
    problems = []
    for name in (WEIGHTS_NAME, METRICS_NAME, CARD_NAME, EVALUATION_NAME):
        if not (folder / name).is_file() or (folder / name).stat().st_size == 0:
            advice = (
                f" (write it with `{command('card', str(folder))}`)" if name in (CARD_NAME, EVALUATION_NAME) else ""
            )
            problems.append(f"{name} is missing or empty{advice}")
    if not problems:
        problems += _contradictions(folder, config)
    for file in files_of(folder):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in PICKLE_SUFFIXES:
            problems.append(f"{name} is a pickle, which can run code when it is opened")
        elif file.suffix.lower() not in ALLOWED_SUFFIXES:
            problems.append(f"{name} does not belong in a model folder (allowed: {' '.join(ALLOWED_SUFFIXES)})")
        elif file.is_symlink():
            problems.append(f"{name} is a link")
        elif file.suffix == ".json" and name != METRICS_NAME:
            try:
                read_json(file)
            except ModelFolderError as error:
                problems.append(str(error))
    if not problems:
        try:
            ModelCard((folder / CARD_NAME).read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            problems.append(f"the metadata of {CARD_NAME} is not valid: {error}")
    if problems:
        raise PublishError(f"{folder} cannot be published:\n" + "\n".join(f"  - {problem}" for problem in problems))
    check_no_token({file.relative_to(folder).as_posix(): file for file in files_of(folder)}, token)
