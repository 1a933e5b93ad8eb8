"""Put a model folder or the Space on the Hub, whole or not at all; render the model card.

    python -m modeling.publish model RUN/model --repo_id me/name
    python -m modeling.publish space --model_id me/name --space_id me/space
    python -m modeling.publish card RUN/model
    python -m modeling.publish export RUN/model

Everything is checked on this machine first and then sent as one commit, so a repository never shows half a model. What
the Hub already has is not sent again: a second run completes a push that failed, or changes nothing.
"""

import argparse
import hashlib
import logging
import mmap
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    ModelInfo,
    SpaceCard,
    SpaceInfo,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import _http as hub_http
from huggingface_hub.utils import validate_repo_id

from modeling.labels import ATTRIBUTION, NOTICE, SYNTHETIC_NOTICE, diagnosis_of
from modeling.model import (
    CONFIG_NAME,
    METRICS_NAME,
    PICKLE_SUFFIXES,
    WEIGHTS_NAME,
    ModelFolderError,
    file_sha256,
    read_config,
    read_json,
)

ROOT = Path(__file__).resolve().parents[1]
CARD_NAME = "README.md"
CARD_TEMPLATE = "model_card.md"
SYNTHETIC_LICENSE = "apache-2.0"
CARD_REPO_ID = "me/skin-lesion-b0"  # stands in the card for the repository until it is pushed
# What a model folder may hold; all else is refused, so that nothing executable and no stray file gets out.
ALLOWED_SUFFIXES = (".safetensors", ".json", ".md", ".csv", ".png", ".onnx")
# Files of an earlier push that would contradict this one; whatever else somebody added by hand stays.
REPLACED_IN_MODEL = ("figures/*", "*.onnx", "*.safetensors", "splits.csv")
REPLACED_IN_SPACE = ("*.py",)

ATTEMPTS = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0  # a server may ask for more by Retry-After; a person would rather run the command again
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0  # between two bytes, not for a whole upload
TRANSIENT_STATUS = (408, 409, 412, 429, 500, 502, 503, 504)
HUB_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")

logger = logging.getLogger(__name__)
# httpx in huggingface_hub 1, httpx2 in 2: the parent of both time-outs and broken connections.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]
T = TypeVar("T")


class PublishError(RuntimeError):
    """A push that cannot be made or did not go through, with the reason and what to do."""


@dataclass(frozen=True)
class Published:
    """What is on the Hub after a push; `str()` of it is the address.

    Attributes:
        url: Page of the repository.
        revision: Full hash of the commit that holds what was pushed.
        changed: False if the Hub already had exactly this.
    """

    url: str
    revision: str
    changed: bool

    def __str__(self) -> str:
        return self.url


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
    token = _token_or_refuse(token)
    check_model_folder(folder, token=token)
    run_id = read_config(folder)["lesion"].get("run_id", folder.resolve().parent.name)
    files: dict[str, Path | bytes] = {file.relative_to(folder).as_posix(): file for file in _files_of(folder)}
    retry = ["model", str(folder), "--repo_id", repo_id]
    retry += ["--private"] if private else []
    retry += ["--revision_tag", tag] if tag else []
    with _explained(repo_id, token, retry, untouched=folder), _bounded_client():
        api = HfApi(token=token)
        repo_id = _with_namespace(api, repo_id)
        _ensure_repo(api, repo_id, "model", private=private)
        card = (folder / CARD_NAME).read_text(encoding="utf-8")
        files[CARD_NAME] = card.replace(CARD_REPO_ID, repo_id).encode()  # now that it has a name
        return _commit(
            api,
            repo_id,
            "model",
            files,
            replaced=REPLACED_IN_MODEL,
            message=commit_message or f"Add model of run {run_id}",
            tag=tag,
        )


def push_space(
    model_id: str,
    space_id: str,
    *,
    model_revision: str | None = None,
    private: bool = False,
    token: str | None = None,
) -> Published:
    """Create or update the Space that serves a model: page and package in one commit, and the variables it reads.

    Args:
        model_id: Repository of the model, which must be on the Hub already.
        space_id: "me/space", or "space" for the user of the token. Created if it is not there.
        model_revision: Branch, tag or commit of the model; pinned to its full commit hash. By default the newest.
        private: Make a new Space private; an existing public one is then refused.
        token: As in `push_model`.

    Raises:
        PublishError: As in `push_model`.
    """
    token = _token_or_refuse(token)
    retry = ["space", "--model_id", model_id, "--space_id", space_id]
    retry += ["--model_revision", model_revision] if model_revision else []
    retry += ["--private"] if private else []
    with _explained(space_id, token, retry), _bounded_client():
        api = HfApi(token=token)
        space_id = _with_namespace(api, space_id)
        try:
            model = _persist(lambda: api.model_info(model_id, revision=model_revision))
        except RepositoryNotFoundError:
            raise PublishError(
                f"the Hub has no model {model_id} that this token may read; push it first: "
                f"{_command('model', 'RUN/model', '--repo_id', model_id)}"
            ) from None
        variables = {"MODEL_ID": model_id, "MODEL_REVISION": str(model.sha)}
        files = space_files(model_id, str(model.sha))
        _check_no_token(files, token)
        # A first build already knows its model.
        at_creation = [{"key": key, "value": value} for key, value in variables.items()]
        _ensure_repo(api, space_id, "space", private=private, space_sdk="gradio", space_variables=at_creation)
        pushed = _commit(
            api,
            space_id,
            "space",
            files,
            replaced=REPLACED_IN_SPACE,
            message=f"Serve {model_id} at {str(model.sha)[:12]}",
        )
        set_before = {key: value.value for key, value in _persist(lambda: api.get_space_variables(space_id)).items()}
        changed = {key: value for key, value in variables.items() if set_before.get(key) != value}
        for key, value in changed.items():
            _persist(partial(api.add_space_variable, space_id, key, value))
    if model.private:
        logger.warning(
            "%s is private: give the Space a secret HF_TOKEN that may read it (in the Space's settings).", model_id
        )
    return Published(pushed.url, pushed.revision, pushed.changed or bool(changed))


def check_can_push(repo_id: str, token: str | None = None, *, repo_type: str = "model") -> str:
    """Find out before hours of training whether a push to `repo_id` would be allowed, and return its full name.

    Raises:
        PublishError: If there is no token, the Hub does not know it, or it may not write there.
    """
    token = _token_or_refuse(token)
    with _explained(repo_id, token, None), _bounded_client():
        api = HfApi(token=token)
        user = _persist(lambda: api.whoami())
        repo_id = repo_id if "/" in repo_id else f"{user['name']}/{repo_id}"
        validate_repo_id(repo_id)
        reason = _reason_not_to_write(user, repo_id)
        if reason:
            raise PublishError(reason)
        try:
            _persist(lambda: api.auth_check(repo_id, repo_type=repo_type, write=True))
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


def check_model_folder(folder: Path, *, token: str | None = None) -> None:
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
    for name in (WEIGHTS_NAME, METRICS_NAME, CARD_NAME):
        if not (folder / name).is_file() or (folder / name).stat().st_size == 0:
            advice = f" (write it with `{_command('card', str(folder))}`)" if name == CARD_NAME else ""
            problems.append(f"{name} is missing or empty{advice}")
    if not problems and config["lesion"].get("weights_sha256") != file_sha256(folder / WEIGHTS_NAME):
        problems.append(f"{WEIGHTS_NAME} is not the file that {CONFIG_NAME} describes: weights_sha256 differs")
    for file in _files_of(folder):
        name = file.relative_to(folder).as_posix()
        if file.suffix.lower() in PICKLE_SUFFIXES:
            problems.append(f"{name} is a pickle, which can run code when it is opened")
        elif file.suffix.lower() not in ALLOWED_SUFFIXES:
            problems.append(f"{name} does not belong in a model folder (allowed: {' '.join(ALLOWED_SUFFIXES)})")
        elif file.is_symlink():
            problems.append(f"{name} is a link")
        elif file.suffix == ".json":
            try:
                read_json(file)
            except ModelFolderError as error:
                problems.append(str(error))
    if not problems:
        try:
            ModelCard((folder / CARD_NAME).read_text(encoding="utf-8"))
        except (ValueError, RecursionError, yaml.YAMLError) as error:
            problems.append(f"the metadata of {CARD_NAME} is not valid: {error}")
    if problems:
        raise PublishError(f"{folder} cannot be published:\n" + "\n".join(f"  - {problem}" for problem in problems))
    _check_no_token({file.relative_to(folder).as_posix(): file for file in _files_of(folder)}, token)


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
    page = [file for file in _files_of(space) if file.suffix != ".pyi"]
    files: dict[str, Path | bytes] = {file.relative_to(space).as_posix(): file for file in page}
    files |= {f"modeling/{file.name}": file for file in sorted((ROOT / "modeling").glob("*.py"))}
    header = SpaceCard((space / "README.md").read_text(encoding="utf-8"))
    header.data["models"] = [model_id]
    header.data["preload_from_hub"] = [f"{model_id} {CONFIG_NAME},{WEIGHTS_NAME} {model_revision}"]
    return {**files, "README.md": str(header).encode()}


def _commit(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: Mapping[str, Path | bytes],
    *,
    replaced: Sequence[str],
    message: str,
    tag: str | None = None,
) -> Published:
    """Make the repository hold `files` by at most one commit, and tag it."""
    sent = False

    def attempt() -> str:
        nonlocal sent
        head, there = _remote_files(api, repo_id, repo_type)
        operations = _operations(files, there, replaced)
        if tag:
            _check_tag(api, repo_id, repo_type, tag, head=None if operations else head)
        if not operations:
            return head
        additions = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
        try:
            # The client itself retries these requests, large files included, with back-off.
            api.preupload_lfs_files(repo_id, additions, repo_type=repo_type, free_memory=False)
        except HTTPError as error:
            raise RuntimeError("the files could not be sent") from error
        sent = True
        # The client never repeats a commit, since its answer may be lost on the way. Here the next attempt looks first.
        commit = api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=head)
        return commit.oid

    revision = _persist(attempt)
    left_out = _operations(files, _persist(lambda: _remote_files(api, repo_id, repo_type))[1], ()) if sent else []
    if left_out:
        names = ", ".join(operation.path_in_repo for operation in left_out)
        raise PublishError(f"{repo_id} took the commit but not all of it (its .gitignore?): {names}.")
    url = f"{api.endpoint}/{'spaces/' if repo_type == 'space' else ''}{repo_id}"
    if tag:
        _persist(lambda: _put_tag(api, repo_id, repo_type, tag, revision))
    return Published(url, revision, changed=sent)


def _info(api: HfApi, repo_id: str, repo_type: str) -> ModelInfo | SpaceInfo:
    ask = api.space_info if repo_type == "space" else api.model_info
    return ask(repo_id, files_metadata=True)


def _ensure_repo(api: HfApi, repo_id: str, repo_type: str, *, private: bool, **at_creation: Any) -> None:
    """Create a repository that is not there."""

    def attempt() -> ModelInfo | SpaceInfo | None:
        try:
            return _info(api, repo_id, repo_type)
        except RepositoryNotFoundError:
            # Where nothing is said, an organisation's own default holds.
            api.create_repo(repo_id, repo_type=repo_type, private=True if private else None, **at_creation)
            return None

    found = _persist(attempt)
    if private and found is not None and not found.private:
        raise PublishError(f"{repo_id} exists and is public: make it private in its settings, or leave out --private.")


def _remote_files(api: HfApi, repo_id: str, repo_type: str) -> tuple[str, dict[str, str]]:
    """Return the newest commit and the hash of each file in it: SHA-256 of a large file, git's own of a small one."""
    info = _info(api, repo_id, repo_type)
    hashes = {file.rfilename: file.lfs.sha256 if file.lfs else str(file.blob_id) for file in info.siblings or []}
    return str(info.sha), hashes


def _operations(
    files: Mapping[str, Path | bytes], there: Mapping[str, str], replaced: Sequence[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return what has to change so that the repository holds `files`."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for path, source in files.items():
        content = source if isinstance(source, bytes) else source.read_bytes()
        git_hash = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if there.get(path) not in (git_hash, hashlib.sha256(content).hexdigest()):
            operations.append(CommitOperationAdd(path, source if isinstance(source, bytes) else str(source)))
    stale = [path for path in there if path not in files and any(fnmatch(path, pattern) for pattern in replaced)]
    return operations + [CommitOperationDelete(path, is_folder=False) for path in stale]


def _check_tag(api: HfApi, repo_id: str, repo_type: str, tag: str, *, head: str | None) -> None:
    """Refuse a tag that names another revision than `head`; None stands for a commit still to be made."""
    names = _tags(api, repo_id, repo_type).get(tag, head)
    if names != head:
        raise PublishError(
            f"tag {tag!r} of {repo_id} already names revision {str(names)[:12]}, and a published revision is never "
            "moved: choose another --revision_tag."
        )


def _put_tag(api: HfApi, repo_id: str, repo_type: str, tag: str, revision: str) -> None:
    """Tag a revision, unless an attempt whose answer was lost has done so."""
    if _tags(api, repo_id, repo_type).get(tag) != revision:
        api.create_tag(repo_id, tag=tag, revision=revision, repo_type=repo_type)


def _tags(api: HfApi, repo_id: str, repo_type: str) -> dict[str, str]:
    return {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags}


# The card.


def write_card(model_folder: str | Path) -> Path:
    """Write `README.md` of a model folder, whole or not at all, and return its path."""
    path = Path(model_folder) / CARD_NAME
    content = render_card(model_folder)
    unfinished = path.with_suffix(".md.part")
    unfinished.write_text(content, encoding="utf-8")
    unfinished.replace(path)
    return path


def render_card(model_folder: str | Path) -> str:
    """Render the model card of a folder from its `metrics.json` and `config.json` alone.

    Raises:
        PublishError: If a file or the template is missing, or the template names something that is not in these files.
    """
    folder = Path(model_folder)
    try:
        config = read_config(folder)
        metrics = read_json(folder / METRICS_NAME) if (folder / METRICS_NAME).is_file() else None
    except ModelFolderError as error:
        raise PublishError(str(error)) from error
    if metrics is None:
        raise PublishError(
            f"{folder} has no {METRICS_NAME}; make it with `python -m modeling.evaluation {folder} --data_dir DIR`."
        )
    if not (ROOT / CARD_TEMPLATE).is_file():
        raise PublishError(
            f"{ROOT} has no {CARD_TEMPLATE}: install from a clone of the repository with `pip install -e`."
        )
    try:
        body = _card_template(ROOT).render(
            metrics=metrics,
            base_model=config["lesion"].get("base_model"),
            license=_license(config["lesion"]),
            diagnoses=[diagnosis_of(code) for code in config["label_names"]],
            notice=NOTICE,
            synthetic_notice=SYNTHETIC_NOTICE,
            attribution=ATTRIBUTION,
            repo_id=CARD_REPO_ID,
        )
        metadata = _card_metadata(config, metrics).to_yaml()
    except Exception as error:  # an entry that is missing or of another kind fails in as many ways as it is used
        raise PublishError(
            f"{folder / METRICS_NAME} does not go with {CARD_TEMPLATE} ({type(error).__name__}: {str(error)[:300]}): it is "
            f"damaged or of another version; make it anew with `python -m modeling.evaluation {folder} --data_dir DIR`."
        ) from error
    body = re.sub(r"\n{3,}", "\n\n", body.strip())
    return f"---\n{metadata}\n---\n\n{body}\n"


@cache
def _card_template(root: Path) -> Any:
    # Imported late: publishing the Space does not need it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(root), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "estimate": format_estimate, "count": "{:,}".format, "cell": _cell}
    return environment.get_template(CARD_TEMPLATE)


def _card_metadata(config: Mapping[str, Any], metrics: Mapping[str, Any]) -> ModelCardData:
    """Return the front matter, by the Hub client's own classes so that the Hub can read it."""
    model, data, test = metrics["model"], metrics["data"], metrics["test"]
    dataset = str(data["dataset"])
    sources = ", ".join(data["sources"])
    name = {"isic2019": f"ISIC 2019 (sources {sources})", "demo": "synthetic drawings"}.get(dataset, dataset)
    values = {
        ("accuracy", "Accuracy"): test["accuracy"],
        ("balanced_accuracy", "Balanced accuracy"): test["balanced_accuracy"],
        ("f1", "Macro F1"): test["macro_f1"],
        ("roc_auc", "Macro AUROC"): test["macro_auroc"],
        ("precision", "Weighted precision"): test["weighted_precision"],
        ("recall", "Weighted recall"): test["weighted_recall"],
    }
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=dataset,
            dataset_name=f"{name}, split by {data['split_unit']}",
            dataset_split="test",
            metric_type=metric,
            metric_name=title,
            metric_value=estimate["value"],
        )
        for (metric, title), estimate in values.items()
        if estimate["value"] is not None
    ]
    tags = [
        "dermatology",
        "dermoscopy",
        "skin-lesion",
        "melanoma",
        "medical-imaging",
        "calibration",
        "timm",
        "transformers",
    ]
    return ModelCardData(
        license=_license(config["lesion"]),
        library_name="timm",
        pipeline_tag="image-classification",
        base_model=config["lesion"].get("base_model"),
        datasets=[dataset],
        metrics=list(dict.fromkeys(metric for metric, _ in values)),
        tags=[*tags, *(["synthetic"] if data["synthetic"] else [])],
        model_name=f"skin-lesion-{model['architecture']}",
        eval_results=results or None,
    )


def _license(lesion: Mapping[str, Any]) -> str | None:
    """Return the licence of the weights; drawings are this package's own, and for other data only their owner knows."""
    license = lesion.get("license") or (SYNTHETIC_LICENSE if lesion.get("synthetic") else None)
    return str(license) if license else None


def format_number(value: float | None, digits: int = 3) -> str:
    """Write a number of metrics.json as the card shows it."""
    return "not estimable" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"  # no minus zero


def format_estimate(estimate: Mapping[str, Any]) -> str:
    """Write a value with its interval, or say why there is none."""
    reason = estimate.get("reason", "")
    if estimate["value"] is None:
        return "suppressed" if reason.startswith("suppressed") else f"not estimable: {_cell(reason)}"
    value = format_number(estimate["value"])
    if "low" not in estimate:
        return value
    if estimate["low"] is None:
        return f"{value} (no interval)"
    # No-break spaces, or narrow columns would tear intervals apart.
    return f"{value} ({format_number(estimate['low'])} to {format_number(estimate['high'])})".replace(" ", "\u00a0")


def _cell(value: Any) -> str:
    """Keep a value from breaking a table."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


# The Hub under load, and what is said when it fails.


class _Busy(OSError):
    """The Hub is creating another repository of this user."""


def _persist(call: Callable[[], T]) -> T:
    """Make a call that the client does not retry itself; wait and try again where that can help."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (HTTPError, _Busy) as error:
            status = _status(error)
            if attempt == ATTEMPTS or (status is not None and status not in TRANSIENT_STATUS):
                raise
            wait_s = _wanted_wait_s(error) or min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
            what = f"answered {status}" if status else f"did not answer ({type(error).__name__})"
            logger.warning("The Hub %s; trying again in %.0f s (%d of %d).", what, wait_s, attempt, ATTEMPTS - 1)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def _wanted_wait_s(error: BaseException) -> float | None:
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return None
    value = error.response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_WAIT_S) if value.isdigit() else None


@contextmanager
def _bounded_client() -> Iterator[None]:
    """Bound the waiting of huggingface_hub, which has no time-out and sleeps for as long as a server asks."""
    make_client = hub_http._GLOBAL_CLIENT_FACTORY

    def bounded() -> Any:
        client = make_client()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _limit_request],
            "response": [*hooks["response"], _limit_wait],
        }
        return client

    hub_http.set_client_factory(bounded)
    try:
        yield
    finally:
        hub_http.set_client_factory(make_client)


def _limit_request(request: Any) -> None:
    timeout = request.extensions.get("timeout") or {}
    if timeout.get("read") is None:
        answer, connect = ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S
        request.extensions["timeout"] = {"connect": connect, "read": answer, "write": answer, "pool": answer}


def _limit_wait(response: Any) -> None:
    limits = hub_http.parse_ratelimit_headers(response.headers)
    wanted = response.headers.get("Retry-After", "")
    if limits is not None and limits.remaining == 0 and not wanted:
        wanted = str(limits.reset_in_seconds)
    if response.status_code in TRANSIENT_STATUS and wanted.isdigit():
        response.headers.pop("RateLimit", None)
        response.headers["Retry-After"] = str(min(int(wanted), int(LONGEST_WAIT_S)))
    if response.status_code == 409:
        response.read()
        if "another conflicting operation is in progress" in response.text:
            # create_repo would ask again at once, without end.
            raise _Busy("another repository is being created for this user")


@contextmanager
def _explained(
    repo_id: str, token: str, retry: Sequence[str] | None, *, untouched: Path | None = None
) -> Iterator[None]:
    """Turn whatever went wrong on the Hub into a sentence, without the token, and with the command that retries."""
    try:
        yield
        return
    except PublishError as error:
        reason = str(error)
        if retry is None:
            raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = _sentence(error, repo_id)
    reason = HUB_TOKEN.sub(b"hf_***", reason.replace(token, "hf_***").encode()).decode()
    if retry is None:
        # The cause is left out of the chain: its text is the server's, and may repeat what was sent.
        raise PublishError(reason) from None
    kept = f" {untouched} is untouched." if untouched is not None else ""
    raise PublishError(
        f"The push to {repo_id} did not finish: {reason}\n"
        f"A push is one commit, so {repo_id} shows all of it or nothing.{kept} To try again (what the Hub has is not "
        f"sent twice):\n  {_command(*retry)}"
    ) from None


def _sentence(error: BaseException, repo_id: str) -> str:
    """Say what a failure of the Hub or of the connection to it means, and what to do."""
    cause: BaseException = error
    while not isinstance(cause, HTTPError | OfflineModeIsEnabled) and cause.__cause__ is not None:
        cause = cause.__cause__
    hub, status = HfApi().endpoint, _status(cause)
    said = str(getattr(cause, "server_message", "") or "").strip()
    detail = f" The Hub says: {said}" if said else ""
    if isinstance(cause, OfflineModeIsEnabled):
        return "the Hub client is in offline mode; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE."
    if isinstance(cause, HFValidationError):
        return f"{repo_id!r} is no valid repository name: {cause}"
    if status == 401:
        return (
            "the Hub does not accept the token (401): it is wrong, expired or revoked. "
            f"Make one with the role 'write' at {hub}/settings/tokens and run `hf auth login`.{detail}"
        )
    if status == 403:
        return f"the token may not write to {repo_id} (403); use one with the role 'write' on that name.{detail}"
    if status == 404:
        return f"the Hub knows no {repo_id}, or does not show it to this token (404); check the name.{detail}"
    if status in (409, 412):
        return f"somebody else is changing {repo_id} at the same time ({status}).{detail}"
    if status == 413:
        return f"a file is larger than the Hub takes (413); look for stray files in the folder.{detail}"
    if status == 429:
        return f"the Hub limits how often it may be asked (429); wait some minutes.{detail}"
    if status is not None and status >= 500:
        return f"the Hub is in trouble ({status}), also after several tries; wait some minutes.{detail}"
    if status is not None:
        return f"the Hub refused the request ({status}).{detail}"
    if isinstance(cause, HTTPError | _Busy):
        return f"{hub} did not answer, also after several tries ({type(cause).__name__}: {cause})."
    return f"{type(cause).__name__}: {cause}"


def _token_or_refuse(token: str | None) -> str:
    found = token or get_token()
    if not found:
        raise PublishError(
            "there is no Hub token on this machine: make one with the role 'write' at "
            f"{HfApi().endpoint}/settings/tokens and run `hf auth login`, or set HF_TOKEN."
        )
    return found


def _with_namespace(api: HfApi, repo_id: str) -> str:
    if "/" not in repo_id:
        repo_id = f"{_persist(lambda: api.whoami())['name']}/{repo_id}"
    validate_repo_id(repo_id)
    return repo_id


def _files_of(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden ones and compiled Python."""
    inside = [path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink()]
    return [
        path
        for path in inside
        if not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
    ]


def _check_no_token(files: Mapping[str, Path | bytes], token: str | None) -> None:
    """Refuse to send a file with a Hub token in it; a published token is anybody's."""
    for name, source in files.items():
        if isinstance(source, Path) and source.stat().st_size == 0:
            continue
        if isinstance(source, bytes):
            found = _has_token(source, token)
        else:
            with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                found = _has_token(content, token)
        if found:
            raise PublishError(f"{name} has a Hub token in it; take it out, and revoke the token if it was shared.")


def _has_token(content: "bytes | mmap.mmap", token: str | None) -> bool:
    return HUB_TOKEN.search(content) is not None or (token is not None and content.find(token.encode()) >= 0)


def _command(*arguments: str) -> str:
    return shlex.join(["python", "-m", "modeling.publish", *arguments])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modeling.publish", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    model = commands.add_parser("model", help="send a model folder to the Hub")
    model.add_argument("folder", type=Path, help="the model folder of a run, RUN/model")
    model.add_argument("--repo_id", required=True, help="where to, me/name")
    model.add_argument("--private", action="store_true", help="make a new repository private")
    model.add_argument("--revision_tag", metavar="TAG", help="name this revision, for instance v1.0")
    model.add_argument("--commit_message", help="default: the run id of the model")

    space = commands.add_parser("space", help="create or update the Space that serves a model of the Hub")
    space.add_argument("--model_id", required=True, help="the model it serves, me/name")
    space.add_argument("--space_id", required=True, help="where to, me/space")
    space.add_argument("--model_revision", help="branch, tag or commit of the model; default: its newest commit")
    space.add_argument("--private", action="store_true", help="make a new Space private")

    card = commands.add_parser(
        "card", help="write README.md of a model folder anew, from its metrics.json and config.json"
    )
    card.add_argument("folder", type=Path, help="the model folder of a run, RUN/model")

    export = commands.add_parser("export", help="write the model as ONNX beside its weights")
    export.add_argument("folder", type=Path, help="the model folder of a run, RUN/model")
    export.add_argument("--int8", action="store_true", help="also write a version with 8-bit weights and activations")
    export.add_argument(
        "--data_dir", type=Path, help="local copy of its data: calibrates and measures the 8-bit version"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command == "model":
            pushed = push_model(
                options.folder,
                options.repo_id,
                private=options.private,
                tag=options.revision_tag,
                commit_message=options.commit_message,
            )
        elif options.command == "space":
            pushed = push_space(
                options.model_id, options.space_id, model_revision=options.model_revision, private=options.private
            )
        elif options.command == "card":
            print(write_card(options.folder))
            return 0
        else:
            from modeling.export import export_onnx  # its libraries come with the extra `export`

            print(export_onnx(options.folder, int8=options.int8, data_dir=options.data_dir))
            return 0
    except (PublishError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{pushed.url} {'is now at' if pushed.changed else 'already was at'} revision {pushed.revision}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
