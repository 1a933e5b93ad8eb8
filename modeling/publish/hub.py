"""Push to the Hub: one atomic commit, retries with time-outs, readable errors."""

import logging
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from huggingface_hub.utils.sha import git_hash

ATTEMPTS = 5
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0  # a server may request more by Retry-After; a person would rather run the command again
CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 60.0  # between two bytes, not for a whole upload
TRANSIENT_STATUS = (408, 409, 412, 429, 500, 502, 503, 504)
HUB_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")

logger = logging.getLogger(__name__)
T = TypeVar("T")
Files = Mapping[str, Path | bytes]  # path in the repository → content


class PublishError(Exception):
    """A push that cannot be made or did not go through, with the reason and what to do."""


@dataclass(frozen=True)
class Published:
    """What is on the Hub after a push."""

    url: str  # page of the repository
    revision: str  # full hash of the commit that holds what was pushed
    changed: bool  # False if the Hub already had exactly this


def commit_files(
    api: HfApi,
    repo_id: str,
    repo_type: str,
    files: Files,
    *,
    replaced: Sequence[str],
    message: str,
    tag: str | None = None,
) -> Published:
    """Make the repository hold `files` by at most one commit, and tag it.

    What matches `replaced` (patterns) and is not in `files` is deleted by the same commit. `HfApi.upload_folder` would make
    several commits of a slow upload: https://github.com/huggingface/huggingface_hub, `_upload_pipeline.py` of version 2.
    """
    sent = False

    def tagged() -> str | None:
        refs = api.list_repo_refs(repo_id, repo_type=repo_type).tags
        return next((ref.target_commit for ref in refs if ref.name == tag), None)

    def attempt() -> str:
        nonlocal sent
        info: Any = api.repo_info(repo_id, repo_type=repo_type, files_metadata=True)
        head = str(info.sha)
        # The SHA-256 of a large file, git's own hash of a small one.
        there = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings}
        operations = _operations(files, there, replaced)
        if tag and (names := tagged()) is not None and (operations or names != head):
            raise PublishError(
                f"tag {tag!r} of {repo_id} already names revision {names[:12]}, and a published revision is never moved: "
                "choose another --tag."
            )
        if not operations:
            return head
        sent = True
        # An answer may be lost on its way: the next attempt then finds the commit there.
        commit = api.create_commit(repo_id, operations, commit_message=message, repo_type=repo_type, parent_commit=head)
        return str(commit.oid)

    revision = persist(attempt)
    if tag and persist(tagged) != revision:
        # An earlier attempt may have put it, if only the answer was lost.
        persist(lambda: api.create_tag(repo_id, tag=tag, revision=revision, repo_type=repo_type, exist_ok=True))
    url = f"{api.endpoint}/{'spaces/' if repo_type == 'space' else ''}{repo_id}"
    return Published(url, revision, changed=sent)


def _operations(
    files: Files, there: Mapping[str, str], replaced: Sequence[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return what has to change so that the repository holds `files`."""
    operations: list[CommitOperationAdd | CommitOperationDelete] = []
    for path, source in files.items():
        content = source if isinstance(source, bytes) else source.read_bytes()
        if there.get(path) not in (git_hash(content), sha256(content).hexdigest()):
            operations.append(CommitOperationAdd(path, source))
    stale = [path for path in there if path not in files and any(fnmatch(path, pattern) for pattern in replaced)]
    return operations + [CommitOperationDelete(path, is_folder=False) for path in stale]


def ensure_repo(api: HfApi, repo_id: str, repo_type: str, *, private: bool, **at_creation: Any) -> None:
    """Create a repository that is not there; refuse to call a public one private."""

    def is_public() -> bool:
        try:
            return not api.repo_info(repo_id, repo_type=repo_type).private
        except RepositoryNotFoundError:
            # None: an organisation's own default holds.
            api.create_repo(repo_id, repo_type=repo_type, private=private or None, **at_creation)
            return False

    if persist(is_public) and private:
        raise PublishError(f"{repo_id} exists and is public: make it private in its settings, or leave --private out.")


# ---- Names and tokens ------------------------------------------------------------------------------------------------


def check_repo_id(repo_id: str, option: str) -> None:
    """Refuse what cannot be the name of a repository, and name the option that gave it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise PublishError(f"{option} {repo_id!r} is not a valid repository name, such as me/name: {error}") from None


def with_namespace(api: HfApi, repo_id: str) -> str:
    """Complete "name" to "me/name"."""
    return repo_id if "/" in repo_id else f"{persist(api.whoami)['name']}/{repo_id}"


def token_or_refuse(token: str | None = None) -> str:
    """Return the Hub token of this machine or say how to get one."""
    if found := token or get_token():
        return found
    raise PublishError(
        f"there is no Hub token on this machine: make one with the role 'write' at {HfApi().endpoint}/settings/tokens and run "
        "`hf auth login`, or set HF_TOKEN."
    )


def check_no_token(files: Files, token: str) -> None:
    """Refuse to send a file with a Hub token in it; a leaked token is compromised."""
    for name, source in files.items():
        content = source if isinstance(source, bytes) else source.read_bytes()
        if HUB_TOKEN.search(content) or token.encode() in content:
            raise PublishError(f"{name} has a Hub token in it; take it out, and revoke the token if it was shared.")


# ---- Retries, time-outs and errors -----------------------------------------------------------------------------------


class _Busy(OSError):
    """The Hub is creating another repository of this user."""


def persist(call: Callable[[], T]) -> T:
    """Make a call that the client does not retry itself; wait and try again where that can help."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except (httpx2.HTTPError, _Busy) as error:
            status = status_of(error)
            if attempt == ATTEMPTS or (status is not None and status not in TRANSIENT_STATUS):
                raise
            header = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
            wait_s = min(float(header) if header.isdigit() else FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
            what = f"answered {status}" if status else f"did not answer ({type(error).__name__})"
            logger.warning("The Hub %s; trying again in %.0f s (%d of %d).", what, wait_s, attempt, ATTEMPTS - 1)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status that the Hub answered, if it answered."""
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


@contextmanager
def connected(repo_id: str, token: str, retry: str = "") -> Iterator[HfApi]:
    """Give the Hub's client, and turn its failures into sentences, without the token, with the command that tries again.

    Until the end the client's waiting is bounded: it has no time-out and sleeps for as long as a server requests.
    """
    hooks = get_session().event_hooks
    limits: Any = {"request": [*hooks["request"], _limit_request], "response": [*hooks["response"], _limit_wait]}
    set_client_factory(lambda: httpx2.Client(event_hooks=limits, follow_redirects=True, timeout=None))
    try:
        yield HfApi(token=token)
        return
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        reason = HUB_TOKEN.sub(b"hf_***", _sentence(error, repo_id).replace(token, "hf_***").encode()).decode()
    finally:
        set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=None))
    if retry:
        reason = (
            f"The push to {repo_id} did not finish: {reason}\n"
            f"A push is one commit, so {repo_id} shows all of it or nothing. To try again (files that the Hub has are not "
            f"sent twice):\n  {retry}"
        )
    # The cause is left out of the chain: its text is the server's, and may repeat what was sent.
    raise PublishError(reason) from None


def _limit_request(request: httpx2.Request) -> None:
    # Not at the client: most calls of huggingface_hub pass timeout=None.
    if request.extensions["timeout"]["read"] is None:
        answer = ANSWER_TIMEOUT_S
        request.extensions["timeout"] = {"connect": CONNECT_TIMEOUT_S, "read": answer, "write": answer, "pool": answer}


def _limit_wait(response: httpx2.Response) -> None:
    response.headers.pop("RateLimit", None)
    requested_s = response.headers.get("Retry-After", "")
    if requested_s.isdigit():
        response.headers["Retry-After"] = str(min(int(requested_s), int(LONGEST_WAIT_S)))
    if response.status_code == 409:
        response.read()
        if "another conflicting operation is in progress" in response.text:
            # create_repo would try again at once, without end.
            raise _Busy("another repository is being created for this user")


def _sentence(error: BaseException, repo_id: str) -> str:
    """Say what a failure of the Hub or of the connection to it means, and what to do."""
    cause: BaseException = error
    while not isinstance(cause, httpx2.HTTPError) and cause.__cause__ is not None:
        cause = cause.__cause__
    hub, status = HfApi().endpoint, status_of(cause)
    if status is None:
        silent = f"{hub} did not answer, also after several tries"
        reason = f"{type(cause).__name__}: {cause}"
        return f"{silent} ({reason})." if isinstance(cause, httpx2.HTTPError | _Busy) else reason
    new_token = f"Make one with the role 'write' at {hub}/settings/tokens and run `hf auth login`"
    in_words = {
        401: f"the token is wrong, expired or revoked. {new_token}",
        402: "it requires a paid plan. Spaces free of charge: --static, or --hardware zero-a10g",
        403: f"the token may not write to {repo_id}. {new_token}",
        404: f"there is no {repo_id} that this token may see. Check the name",
    }
    said = str(getattr(cause, "server_message", "") or "").strip()
    what = in_words.get(status, "wait some minutes")
    return f"the Hub answered {status}: {what}.{f' The Hub says: {said}' if said else ''}"


def command(*arguments: str, **options: str | bool | None) -> str:
    """Write a command line of this package's publisher, without the options that are None or False."""
    for name, value in options.items():
        if value:
            arguments += (f"--{name}",) if value is True else (f"--{name}", value)
    return shlex.join(["python", "-m", "modeling.publish", *arguments])
