"""A small Hugging Face Hub on loopback: the real clients talk to it over HTTP, and it fails on demand.

It answers what huggingface_hub, transformers, timm and datasets call: who am I, create, preupload, LFS batch, upload
and verify, commit (atomic), tags, refs, info, tree, resolve with ranges. A free account creates static
Spaces and two ZeroGPU Spaces; any other Space costs 402. All of it is in memory.

    with HubServer() as hub:
        hub.fail("commit", status=503, times=2)
        subprocess.run(..., env=hub.env())            # a client in its own process: HF_ENDPOINT is read at import
        hub.connect(monkeypatch)                      # or this process: points the loaded client at the stand-in
        hub.repo("me/lesions").files()["config.json"]
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE_TOKEN = "hf_" + "standinwrite" * 3
READ_TOKEN = "hf_" + "standinread" * 3
FINE_TOKEN = "hf_" + "standinfine" * 3  # fine-grained: may write to the organisation "clinic" only
GUEST_TOKEN = "hf_" + "standinguest" * 3  # role "write", but only a reader in the organisation "clinic"

FREE_TOKEN = "hf_" + "standinfree" * 3  # of a user without a paid plan

Kind = Literal["status", "cut", "hang", "lost", "portal"]
ZERO_GPU, FREE_ZERO_GPU_SPACES = "zero-a10g", 2
PORTAL = b"<!doctype html><title>Log in to this network</title>"  # in place of the Hub's answer
LICENSES = ("apache-2.0", "cc-by-nc-4.0", "cc-by-4.0", "mit", "other", "cc0-1.0")
COLOURS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")


@dataclass(frozen=True)
class Blob:
    """One version of a file."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def pointer(self) -> bytes:
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @property
    def git_oid(self) -> str:
        content = self.pointer if self.lfs else self.data
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()

    def describe(self, path: str) -> dict[str, Any]:
        about: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data), "oid": self.git_oid}
        if self.lfs:
            about["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return about


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    """A repository: a line of commits, tags, large files, and for a Space its hardware."""

    repo_id: str
    kind: str  # "model", "dataset" or "space"
    private: bool = False
    sdk: str | None = None
    hardware: str | None = None
    commits: list[Commit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.add_commit(
            "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", False)}
        )

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        commit = self.at(revision)
        assert commit is not None, f"{self.repo_id} has no revision {revision}"
        return {path: blob.data for path, blob in commit.files.items()}

    def at(self, revision: str) -> Commit | None:
        if revision in ("main", "HEAD", "refs/heads/main"):
            return self.head
        wanted = self.tags.get(revision.removeprefix("refs/tags/"), revision)
        return next((commit for commit in self.commits if len(wanted) >= 7 and commit.oid.startswith(wanted)), None)

    def add_commit(self, title: str, files: Mapping[str, Blob]) -> Commit:
        text = json.dumps([self.repo_id, self.kind, len(self.commits), title, {k: v.git_oid for k, v in files.items()}])
        commit = Commit(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), title, dict(files))
        self.commits.append(commit)
        return commit


@dataclass
class Fault:
    route: str
    kind: Kind
    status: int
    headers: Mapping[str, str]
    message: str
    times: float  # how often it still strikes
    skip: int  # how many requests pass before it strikes


@dataclass(frozen=True)
class Request:
    """What the log keeps of a request; `status` is 0 where the connection was cut or hung."""

    route: str
    method: str
    path: str
    status: int
    body_bytes: int


class Refused(Exception):
    """An answer other than 200, as the Hub words it."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


class _Cut(Exception):
    """The connection is to be closed without an answer."""


class HubServer:
    """The stand-in. `repos` maps (kind, repo id) to a Repo; `log` lists every request answered."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.log: list[Request] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        clinic = {"type": "org", "name": "clinic"}
        self.users: dict[str, dict[str, Any]] = {
            WRITE_TOKEN: _user("me", {"role": "write"}, [{**clinic, "roleInOrg": "write"}]),
            READ_TOKEN: _user("me", {"role": "read"}, [{**clinic, "roleInOrg": "write"}]),
            FINE_TOKEN: _user("me", _fine_grained("clinic"), [{**clinic, "roleInOrg": "write"}]),
            GUEST_TOKEN: _user("guest", {"role": "write"}, [{**clinic, "roleInOrg": "read"}]),
            FREE_TOKEN: {**_user("free", {"role": "write"}, []), "isPro": False},
        }
        self._faults: list[Fault] = []

    def __enter__(self) -> "HubServer":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    def add_repo(
        self, repo_id: str, files: Mapping[str, bytes] | Path, *, kind: str = "model", private: bool = False
    ) -> Repo:
        """Put a repository there without a push: from a folder or from a mapping of path to content."""
        if isinstance(files, Path):
            folder = files
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        repo = self.repos[kind, repo_id] = Repo(repo_id, kind, private, "gradio" if kind == "space" else None)
        blobs = {path: Blob(data, _is_large(path, data[:512])) for path, data in files.items()}
        repo.lfs |= {blob.sha256: blob.data for blob in blobs.values() if blob.lfs}
        repo.add_commit("Add files", {**repo.head.files, **blobs})
        return repo

    def fail(
        self,
        route: str,
        *,
        status: int = 500,
        kind: Kind = "status",
        times: float = 1,
        skip: int = 0,
        headers: Mapping[str, str] | None = None,
        message: str = "fault injected",
    ) -> None:
        """Let a route ("*": every route) fail.

        Args:
            route: Name as in `log` and in `_routes`, such as "commit", "lfs-put" or "resolve".
            status: Answer this status, for kind "status".
            kind: "status"; "cut": close the connection in the middle of the request's body; "hang": never answer;
                "lost": do the work, then close the connection without an answer; "portal": answer 200 with a web page, as a
                network does before its user has logged in.
            times: Number of requests that fail; float("inf") for all of them.
            skip: Number of requests of that route to let through first.
            headers: Sent with the answer, such as {"Retry-After": "3"}.
            message: Error text of the answer.
        """
        with self.lock:
            self._faults.append(Fault(route, kind, status, headers or {}, message, times, skip))

    def heal(self) -> None:
        """Take all faults back."""
        with self.lock:
            self._faults.clear()

    def requests(self, route: str) -> list[Request]:
        return [request for request in self.log if request.route == route]

    def env(self, *, token: str | None = WRITE_TOKEN, home: Path | None = None) -> dict[str, str]:
        """Environment of a client process: this Hub, `home` as its cache, `token` (None: not logged in)."""
        taken_out = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE")
        environment = {key: value for key, value in os.environ.items() if key not in taken_out}
        environment |= {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        if home is not None:
            environment["HF_HOME"] = str(home)
        if token is not None:
            environment["HF_TOKEN"] = token
        return environment

    def connect(self, monkeypatch: Any, *, token: str | None = WRITE_TOKEN, cache: Path | None = None) -> None:
        """Point the huggingface_hub of this process at the stand-in until the test ends (`monkeypatch` of pytest)."""
        from huggingface_hub import constants
        from huggingface_hub.utils import _http

        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(_http, "_HUB_ORIGINS", frozenset({("http", "127.0.0.1", self._server.server_port)}))
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", self.url)
        if cache is not None:
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
            monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
        else:
            monkeypatch.setenv("HF_TOKEN", token)

    def strike(self, route: str) -> Fault | None:
        """Return the fault that hits this request, and count it down."""
        with self.lock:
            for fault in self._faults:
                if fault.route not in (route, "*") or fault.times <= 0:
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


def _user(name: str, access: dict[str, Any], orgs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "user",
        "name": name,
        "isPro": True,
        "orgs": orgs,
        "auth": {"type": "access_token", "accessToken": access},
    }


def _fine_grained(namespace: str) -> dict[str, Any]:
    entity = {"type": "org", "name": namespace}
    scope = {"entity": entity, "permissions": ["repo.content.read", "repo.write"]}
    return {"role": "fineGrained", "fineGrained": {"global": [], "scoped": [scope]}}


def _is_large(path: str, sample: bytes) -> bool:
    """True where the Hub wants the LFS protocol: its default .gitattributes, and all that is not text."""
    return path.endswith((".safetensors", ".onnx", ".bin", ".zip", ".parquet")) or b"\0" in sample


def _check_metadata(content: str, kind: str) -> list[str]:
    """Return what the Hub would refuse in the front matter of a README.md."""
    match = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", content, flags=re.DOTALL)
    if match is None:
        return []
    try:
        data = yaml.safe_load(match.group(1))
    except yaml.YAMLError as error:
        return [f"not valid YAML: {error}"]
    errors = []
    if "license" in data and data["license"] not in LICENSES:
        errors.append(f'"license" must be one of {LICENSES}')
    if kind == "space":
        errors += [f'"{key}" is required' for key in ("sdk",) if key not in data]
        errors += [
            f'"{key}" must be one of {COLOURS}'
            for key in ("colorFrom", "colorTo")
            if data.get(key, "red") not in COLOURS
        ]
        if len(data.get("short_description", "")) > 60:
            errors.append('"short_description" must be at most 60 characters long')
    for entry in data.get("model-index", []):
        for result in entry.get("results", []):
            if "type" not in result.get("task", {}) or not {"name", "type"} <= set(result.get("dataset", {})):
                errors.append('"model-index" results need task.type, dataset.name and dataset.type')
            if not all({"type", "value"} <= set(metric) for metric in result.get("metrics", [{}])):
                errors.append('"model-index" metrics need type and value')
    return errors


class _Handler(BaseHTTPRequestHandler):
    """One request: find the route, let a fault strike, check the token, answer."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the console quiet; `hub.log` has it all."""

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        route, answer, groups = _find_route(self.command, parts.path)
        self.route, self.body_bytes = route, 0
        try:
            fault = self.hub.strike(route)
            self._fail_before(fault)
            self.body = self._read_body()
            if fault is not None and fault.kind == "portal":
                self._send(200, {"Content-Type": "text/html"}, PORTAL)
            elif fault is not None and fault.kind == "status":
                self._send_error(
                    fault.status, fault.message.replace("{token}", self._token() or ""), None, fault.headers
                )
            else:
                try:
                    with self.hub.lock:
                        status, headers, body = answer(self, **groups)
                    if fault is not None and fault.kind == "lost":
                        raise _Cut
                    self._send(status, headers, body)
                except Refused as refusal:
                    self._send_error(refusal.status, refusal.message, refusal.code, refusal.headers)
        except (_Cut, ConnectionError, TimeoutError):
            self.close_connection = True
            self._log(0)

    def _log(self, status: int) -> None:
        # Before the answer leaves, so that a client which has it finds the request in the log.
        self.hub.log.append(Request(self.route, self.command, self.path, status, self.body_bytes))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _fail_before(self, fault: Fault | None) -> None:
        if fault is not None and fault.kind == "cut":
            self.body_bytes = len(self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2))
            raise _Cut
        if fault is not None and fault.kind == "hang":
            self.hub.closing.wait()
            raise _Cut

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
        else:
            wanted = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(wanted)
            if len(body) < wanted:
                raise _Cut  # the client went away
        self.body_bytes = len(body)
        return body

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._log(status)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _send_error(self, status: int, message: str, code: str | None, headers: Mapping[str, str]) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message, **headers}
        if code is not None:
            headers["X-Error-Code"] = code
        self._send(status, headers, json.dumps({"error": message}).encode())

    # The user, and the rights.

    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ").strip() or None

    def user(self) -> dict[str, Any] | None:
        token = self._token()
        if token is not None and token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return None if token is None else self.hub.users[token]

    def can_write(self, namespace: str) -> bool:
        user = self.user()
        if user is None:
            return False
        access = user["auth"]["accessToken"]
        if access["role"] == "fineGrained":
            scopes = access["fineGrained"]["scoped"]
            return any(s["entity"]["name"] == namespace and "repo.write" in s["permissions"] for s in scopes)
        roles = {user["name"]: "write"} | {org["name"]: org["roleInOrg"] for org in user["orgs"]}
        return access["role"] == "write" and roles.get(namespace) in ("contributor", "write", "admin")

    def readable(self, kind: str, repo_id: str) -> Repo:
        user, repo = self.user(), self.hub.repos.get((kind, repo_id))
        if repo is None or (repo.private and (user is None or repo_id.split("/")[0] not in _namespaces(user))):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, kind: str, repo_id: str) -> Repo:
        repo = self.readable(kind, repo_id)
        if not self.can_write(repo_id.split("/")[0]):
            raise Refused(403, f"You don't have the rights to write to {repo_id}")
        return repo


Answer = tuple[int, Mapping[str, str], bytes]


def _namespaces(user: Mapping[str, Any]) -> set[str]:
    return {user["name"], *(org["name"] for org in user["orgs"])}


def _json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _commit_of(repo: Repo, revision: str) -> Commit:
    commit = repo.at(unquote(revision))
    if commit is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def _whoami(request: _Handler) -> Answer:
    user = request.user()
    if user is None:
        raise Refused(401, "Invalid username or password.")
    return _json(user)


def _create(request: _Handler) -> Answer:
    wanted = json.loads(request.body)
    user = request.user()
    if user is None:
        raise Refused(401, "Invalid username or password.")
    namespace, kind = wanted.get("organization") or user["name"], wanted.get("type") or "model"
    repo_id = f"{namespace}/{wanted['name']}"
    if not request.can_write(namespace):
        raise Refused(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
    prefix = "" if kind == "model" else f"{kind}s/"
    about = {"url": f"{request.hub.url}/{prefix}{repo_id}", "name": repo_id}
    if (kind, repo_id) in request.hub.repos:
        return _json({**about, "error": f"You already created this {kind} repo"}, 409)
    if kind == "space" and not user["isPro"] and wanted.get("sdk") != "static":
        _check_free(request.hub, namespace, wanted.get("hardware"))
    request.hub.repos[kind, repo_id] = Repo(
        repo_id, kind, wanted.get("visibility") == "private", wanted.get("sdk"), wanted.get("hardware")
    )
    return _json(about)


def _check_free(hub: HubServer, namespace: str, hardware: str | None) -> None:
    """Refuse a Space that needs a paid plan; source: https://huggingface.co/docs/hub/spaces-overview, August 2026."""
    held = [
        repo for (_, name), repo in hub.repos.items() if name.startswith(f"{namespace}/") and repo.hardware == ZERO_GPU
    ]
    if hardware != ZERO_GPU or len(held) >= FREE_ZERO_GPU_SPACES:
        raise Refused(402, "Subscribe to PRO to create this Space. Static Spaces and two ZeroGPU Spaces are free.")


def _validate_yaml(request: _Handler) -> Answer:
    wanted = json.loads(request.body)
    errors = _check_metadata(wanted["content"], wanted["repoType"])
    return _json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)


def _auth_check(request: _Handler, kind: str, repo_id: str, write: str | None) -> Answer:
    (request.writable if write else request.readable)(kind, repo_id)
    return _json({})


def _preupload(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    head = _commit_of(request.writable(kind, repo_id), revision)
    ignored = head.files[".gitignore"].data.decode().split() if ".gitignore" in head.files else []
    files = []
    for file in json.loads(request.body)["files"]:
        path, blob = file["path"], head.files.get(file["path"])
        mode = "lfs" if _is_large(path, base64.b64decode(file["sample"])) or file["size"] > 10_000_000 else "regular"
        entry = {"path": path, "uploadMode": mode, "shouldIgnore": path in ignored}
        if blob is not None:
            entry["oid"] = blob.sha256 if blob.lfs else blob.git_oid
        files.append(entry)
    return _json({"files": files, "commitOid": head.oid})


def _lfs_batch(request: _Handler, prefix: str | None, repo_id: str) -> Answer:
    kind = (prefix or "models/").removesuffix("s/")
    repo, objects = request.writable(kind, repo_id), []
    for wanted in json.loads(request.body)["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repo.lfs:
            url = f"{request.hub.url}/storage/{kind}/{repo_id}/{wanted['oid']}"
            entry["actions"] = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
        objects.append(entry)
    return _json({"transfer": "basic", "objects": objects})


def _lfs_put(request: _Handler, kind: str, repo_id: str, oid: str) -> Answer:
    # As with a signed URL there is no token here, and content that does not match its name is refused.
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, "the content does not match its sha256")
    request.hub.repos[kind, repo_id].lfs[oid] = request.body
    return 200, {"ETag": f'"{oid}"'}, b""


def _lfs_verify(request: _Handler, kind: str, repo_id: str, oid: str) -> Answer:
    content = request.writable(kind, repo_id).lfs.get(oid)
    if content is None or len(content) != json.loads(request.body)["size"]:
        raise Refused(404, f"no such object: {oid}")
    return _json({})


def _commit(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    repo = request.writable(kind, repo_id)
    if revision != "main":
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    files, header = dict(repo.head.files), {}
    for line in request.body.splitlines():
        operation = json.loads(line)
        key, value = operation["key"], operation["value"]
        if key == "header":
            header = value
        elif key == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in repo.lfs:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            files[value["path"]] = Blob(repo.lfs[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refused(400, f"operation {key} is not known to the stand-in")
    if not repo.head.oid.startswith(header.get("parentCommit", "")):
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    if found := [path for path, blob in files.items() if not blob.lfs and b"\0" in blob.data]:
        raise Refused(400, f"binary files must be pushed as LFS files: {found}")
    commit = repo.add_commit(header["summary"], files)
    prefix = "" if kind == "model" else f"{kind}s/"
    url = f"{request.hub.url}/{prefix}{repo_id}/commit/{commit.oid}"
    return _json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})


def _tag(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    repo, tag = request.writable(kind, repo_id), json.loads(request.body)["tag"]
    commit = _commit_of(repo, revision)
    if tag in repo.tags:
        raise Refused(409, f"Tag reference exists already: {tag}")
    repo.tags[tag] = commit.oid
    return _json({})


def _refs(request: _Handler, kind: str, repo_id: str) -> Answer:
    repo = request.readable(kind, repo_id)
    branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}]
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in repo.tags.items()]
    return _json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


def _info(request: _Handler, kind: str, repo_id: str, revision: str | None = None) -> Answer:
    repo = request.readable(kind, repo_id)
    commit = _commit_of(repo, revision or "main")
    siblings: list[dict[str, Any]] = []
    for path, blob in commit.files.items():
        siblings.append({"rfilename": path})
        if "blobs" in request.query:
            siblings[-1] |= {"size": len(blob.data), "blobId": blob.git_oid}
            if blob.lfs:
                siblings[-1]["lfs"] = {"sha256": blob.sha256, "size": len(blob.data), "pointerSize": len(blob.pointer)}
    card = _card_data(commit)
    about = {
        "_id": hashlib.md5(repo_id.encode(), usedforsecurity=False).hexdigest()[:24],
        "id": repo_id,
        "modelId": repo_id,
        "author": repo_id.split("/")[0],
        "sha": commit.oid,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": "2026-01-01T00:00:00.000Z",
        "lastModified": "2026-01-01T00:00:00.000Z",
        "tags": card.get("tags", []),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "siblings": siblings,
    }
    if kind == "space":
        about |= {
            "sdk": repo.sdk,
            "runtime": {"stage": "BUILDING", "hardware": {"current": None, "requested": "cpu-basic"}},
        }
    return _json(about)


def _card_data(commit: Commit) -> dict[str, Any]:
    readme = commit.files["README.md"].data.decode() if "README.md" in commit.files else ""
    match = re.match(r"---\r?\n(.*?)\r?\n---", readme, flags=re.DOTALL)
    return (yaml.safe_load(match.group(1)) or {}) if match else {}


def _tree(request: _Handler, kind: str, repo_id: str, revision: str, path: str | None = None) -> Answer:
    commit = _commit_of(request.readable(kind, repo_id), revision)
    under = f"{unquote(path).strip('/')}/" if path else ""
    inside = {name: blob for name, blob in commit.files.items() if name.startswith(under)}
    if under and not inside:
        raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
    deep = request.query.get("recursive", "").lower() in ("1", "true")
    entries = [blob.describe(name) for name, blob in inside.items() if deep or "/" not in name[len(under) :]]
    folders = {name[: name.index("/", len(under))] for name in inside if "/" in name[len(under) :]}
    return _json(
        [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)] + entries
    )


def _paths_info(request: _Handler, kind: str, repo_id: str, revision: str) -> Answer:
    commit = _commit_of(request.readable(kind, repo_id), revision)
    if "json" in request.headers.get("Content-Type", ""):
        paths = json.loads(request.body)["paths"]
    else:
        paths = parse_qs(request.body.decode())["paths"]
    return _json([commit.files[path].describe(path) for path in paths if path in commit.files])


def _resolve(request: _Handler, prefix: str | None, repo_id: str, revision: str, path: str) -> Answer:
    commit = _commit_of(request.readable((prefix or "models/").removesuffix("s/"), repo_id), revision)
    blob = commit.files.get(unquote(path))
    if blob is None:
        raise Refused(404, f"{path} does not exist", "EntryNotFound", {"X-Repo-Commit": commit.oid})
    etag = blob.sha256 if blob.lfs else blob.git_oid
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(blob.data))}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if wanted is None:
        return 200, headers, blob.data
    first, last = int(wanted.group(1)), min(int(wanted.group(2) or len(blob.data)), len(blob.data) - 1)
    if first >= len(blob.data):
        return 416, {"Content-Range": f"bytes */{len(blob.data)}"}, b""
    return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(blob.data)}"}, blob.data[first : last + 1]


def _unknown(request: _Handler) -> Answer:
    raise Refused(404, f"the stand-in has no {request.command} {request.path}", "EntryNotFound")


_REPO = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
_FILES = r"/(?P<prefix>datasets/|spaces/)?(?P<repo_id>[^/]+/[^/]+)"
_routes: list[tuple[str, str, str, Callable[..., Answer]]] = [
    ("whoami", "GET", r"/api/whoami-v2", _whoami),
    ("create", "POST", r"/api/repos/create", _create),
    ("validate-yaml", "POST", r"/api/validate-yaml", _validate_yaml),
    ("auth-check", "GET", _REPO + r"/auth-check(?P<write>/write)?", _auth_check),
    ("preupload", "POST", _REPO + r"/preupload/(?P<revision>[^/]+)", _preupload),
    ("lfs-batch", "POST", _FILES + r"\.git/info/lfs/objects/batch", _lfs_batch),
    ("lfs-put", "PUT", r"/storage/(?P<kind>\w+)/(?P<repo_id>[^/]+/[^/]+)/(?P<oid>\w{64})", _lfs_put),
    ("lfs-verify", "POST", r"/storage/(?P<kind>\w+)/(?P<repo_id>[^/]+/[^/]+)/(?P<oid>\w{64})/verify", _lfs_verify),
    ("commit", "POST", _REPO + r"/commit/(?P<revision>[^/]+)", _commit),
    ("tag", "POST", _REPO + r"/tag/(?P<revision>[^/]+)", _tag),
    ("refs", "GET", _REPO + r"/refs", _refs),
    ("tree", "GET", _REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _tree),
    ("paths-info", "POST", _REPO + r"/paths-info/(?P<revision>[^/]+)", _paths_info),
    ("info", "GET", _REPO + r"(?:/revision/(?P<revision>[^/]+))?", _info),
    ("resolve", "GET|HEAD", _FILES + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _resolve),
]


def _find_route(method: str, path: str) -> tuple[str, Callable[..., Answer], dict[str, str | None]]:
    for name, methods, pattern, answer in _routes:
        if method in methods.split("|") and (match := re.fullmatch(pattern, path)):
            return name, answer, match.groupdict()
    return "unknown", _unknown, {}
