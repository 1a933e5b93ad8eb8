"""The Hub under load: one atomic commit, bounded waiting, and a sentence for whatever fails."""

import hashlib
import logging
import mmap
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo, SpaceInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.utils import _http as hub_http
from huggingface_hub.utils import validate_repo_id

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
    """What is on the Hub after a push; `str()` of it is the address."""

    url: str  # page of the repository
    revision: str  # full hash of the commit that holds what was pushed
    changed: bool  # False if the Hub already had exactly this

    def __str__(self) -> str:
        return self.url


def commit_files(
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

    revision = persist(attempt)
    left_out = _operations(files, persist(lambda: _remote_files(api, repo_id, repo_type))[1], ()) if sent else []
    if left_out:
        names = ", ".join(operation.path_in_repo for operation in left_out)
        raise PublishError(f"{repo_id} took the commit but not all of it (its .gitignore?): {names}.")
    url = f"{api.endpoint}/{'spaces/' if repo_type == 'space' else ''}{repo_id}"
    if tag:
        persist(lambda: _put_tag(api, repo_id, repo_type, tag, revision))
    return Published(url, revision, changed=sent)


def _info(api: HfApi, repo_id: str, repo_type: str) -> ModelInfo | SpaceInfo:
    ask = api.space_info if repo_type == "space" else api.model_info
    return ask(repo_id, files_metadata=True)


def ensure_repo(api: HfApi, repo_id: str, repo_type: str, *, private: bool, **at_creation: Any) -> None:
    """Create a repository that is not there."""

    def attempt() -> ModelInfo | SpaceInfo | None:
        try:
            return _info(api, repo_id, repo_type)
        except RepositoryNotFoundError:
            # Where nothing is said, an organisation's own default holds.
            api.create_repo(repo_id, repo_type=repo_type, private=True if private else None, **at_creation)
            return None

    found = persist(attempt)
    if private and found is not None:
        check_private(repo_id, found)


def check_private(repo_id: str, found: ModelInfo | SpaceInfo) -> None:
    if not found.private:
        raise PublishError(
            f"{repo_id} exists and is public: make it private in its settings, or do not ask for a private one."
        )


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
    """Tag a revision; an earlier attempt may have tagged it already, where only the Hub's answer was lost."""
    if _tags(api, repo_id, repo_type).get(tag) != revision:
        api.create_tag(repo_id, tag=tag, revision=revision, repo_type=repo_type)


def _tags(api: HfApi, repo_id: str, repo_type: str) -> dict[str, str]:
    return {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).tags}


# The Hub under load, and what is said when it fails.


class _Busy(OSError):
    """The Hub is creating another repository of this user."""


def persist(call: Callable[[], T]) -> T:
    """Make a call that the client does not retry itself; wait and try again where that can help."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (HTTPError, _Busy) as error:
            status = _status(error)
            if attempt == ATTEMPTS or (status is not None and status not in TRANSIENT_STATUS):
                raise
            wait_s = _asked_wait_s(error) or min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
            what = f"answered {status}" if status else f"did not answer ({type(error).__name__})"
            logger.warning("The Hub %s; trying again in %.0f s (%d of %d).", what, wait_s, attempt, ATTEMPTS - 1)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None


def _asked_wait_s(error: BaseException) -> float | None:
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return None
    value = error.response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_WAIT_S) if value.isdigit() else None


@contextmanager
def bounded_client() -> Iterator[None]:
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
    asked_s = response.headers.get("Retry-After", "")
    if limits is not None and limits.remaining == 0 and not asked_s:
        asked_s = str(limits.reset_in_seconds)
    if response.status_code in TRANSIENT_STATUS and asked_s.isdigit():
        response.headers.pop("RateLimit", None)
        response.headers["Retry-After"] = str(min(int(asked_s), int(LONGEST_WAIT_S)))
    if response.status_code == 409:
        response.read()
        if "another conflicting operation is in progress" in response.text:
            # create_repo would ask again at once, without end.
            raise _Busy("another repository is being created for this user")


@contextmanager
def explained(
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
        f"sent twice):\n  {command(*retry)}"
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


def token_or_refuse(token: str | None = None) -> str:
    found = token or get_token()
    if not found:
        raise PublishError(
            "there is no Hub token on this machine: make one with the role 'write' at "
            f"{HfApi().endpoint}/settings/tokens and run `hf auth login`, or set HF_TOKEN."
        )
    return found


def with_namespace(api: HfApi, repo_id: str) -> str:
    if "/" not in repo_id:
        repo_id = f"{persist(lambda: api.whoami())['name']}/{repo_id}"
    validate_repo_id(repo_id)
    return repo_id


def check_no_token(files: Mapping[str, Path | bytes], token: str) -> None:
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


def _has_token(content: "bytes | mmap.mmap", token: str) -> bool:
    return HUB_TOKEN.search(content) is not None or content.find(token.encode()) >= 0


def command(*arguments: str) -> str:
    return shlex.join(["python", "-m", "modeling.publish", *arguments])
