"""A hub on this machine: just enough of its HTTP interface to download from, push to, and be refused by.

A dataset is a repository whose id starts with "datasets/".

`serving()` starts it on a free port; `speak_to(hub, ...)` makes `huggingface_hub` use it, with a cache of its
own and no token but those that a test gives.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_good"

_ID = r"(?P<id>(?:datasets/)?[^/]+/[^/]+)"
_ROUTES = {
    "info": re.compile(rf"/api/models/{_ID}(?:/revision/(?P<rev>[^/]+))?"),
    "tree": re.compile(rf"/api/models/{_ID}/tree/(?P<rev>[^/]+)(?:/(?P<folder>.+))?"),
    "preupload": re.compile(rf"/api/models/{_ID}/preupload/(?P<rev>[^/]+)"),
    "commit": re.compile(rf"/api/models/{_ID}/commit/(?P<rev>[^/]+)"),
    "branch": re.compile(rf"/api/models/{_ID}/branch/(?P<rev>[^/]+)"),
    "whoami": re.compile(r"/api/whoami-v2"),
    "create": re.compile(r"/api/repos/create"),
    "check_card": re.compile(r"/api/validate-yaml"),
    "file": re.compile(rf"/{_ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)"),
}


@dataclass
class Repo:
    """One repository: its files by branch, and who may read it."""

    branches: dict[str, dict[str, bytes]]
    needs_token: bool = False
    gated: bool = False

    def sha(self, branch: str) -> str:
        """A commit's name that follows from the files, as git's does."""
        content = sorted(
            (path, hashlib.sha1(data).hexdigest()) for path, data in self.branches[branch].items()
        )
        return hashlib.sha1(repr(content).encode()).hexdigest()

    def branch_of(self, revision: str) -> str | None:
        return next((name for name in self.branches if revision in (name, self.sha(name))), None)


@dataclass
class Hub:
    """What the server answers from, and what it was asked."""

    repos: dict[str, Repo] = field(default_factory=dict)
    always: int | None = None
    """Status of every answer, where set."""
    downloads: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)
    pull_requests: int = 0
    sent: int = 0
    """Bytes of files."""
    url: str = ""

    def add(self, repo_id: str, files: dict[str, bytes] | Path, **access: bool) -> Repo:
        if isinstance(files, Path):
            files = {
                str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()
            }
        self.repos[repo_id] = Repo({"main": dict(files)}, **access)
        return self.repos[repo_id]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        """Keep quiet."""

    def do_HEAD(self):
        self._route()

    def do_GET(self):
        self._route()

    def do_POST(self):
        self._route()

    def _route(self):
        path = unquote(urlsplit(self.path).path)
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.always is not None:
            return self._json({"error": "as the test wants it"}, self.hub.always)
        path = path.replace("/api/datasets/", "/api/models/datasets/", 1)
        for name, pattern in _ROUTES.items():
            if match := pattern.fullmatch(path):
                return getattr(self, f"_{name}")(**match.groupdict())
        return self._json({"error": "no such route"}, 404)

    def _json(self, value, status=200, **headers):
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def _send(self, body, status, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _open(self, id, rev):
        """The files of a revision, or None after having refused as the hub does."""
        repo = self.hub.repos.get(id)
        if repo is None or (repo.needs_token and not self._may()):
            # Without a valid token the hub does not even say that a private repository exists.
            self._json(
                {"error": "Repository not found"}, 404 if self._may() else 401, X_Error_Code="RepoNotFound"
            )
            return None
        branch = repo.branch_of(rev or "main")
        if branch is None:
            self._json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            return None
        return repo, branch, repo.branches[branch]

    def _info(self, id, rev):
        if found := self._open(id, rev):
            repo, branch, files = found
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": id, "sha": repo.sha(branch), "siblings": siblings, "tags": [], "downloads": 0})

    def _tree(self, id, rev, folder):
        if found := self._open(id, rev):
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in found[2].items()
                if folder is None or path.startswith(f"{folder}/")
            ]
            self._json(entries)

    def _file(self, id, rev, path):
        found = self._open(id, rev)
        if not found:
            return None
        repo, branch, files = found
        if repo.gated and not self._may():
            return self._json({"error": "Access is restricted"}, 403, X_Error_Code="GatedRepo")
        if path not in files:
            return self._json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        if self.command == "GET":
            self.hub.downloads.append(path)
        data, status = files[path], 200
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": repo.sha(branch)}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        if self.command == "GET":
            self.hub.sent += len(data)
        return self._send(data, status, headers)

    def _whoami(self):
        return self._json({"name": "me"}) if self._may() else self._json({"error": "Invalid username"}, 401)

    def _create(self):
        if not self._may():
            return self._json({"error": "Invalid username or password."}, 401)
        wanted = json.loads(self._body)
        id = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
        if id in self.hub.repos:
            return self._json({"error": "You already created this repo", "url": f"{self.hub.url}/{id}"}, 409)
        self.hub.add(
            id,
            {".gitattributes": b""},
            needs_token=wanted.get("private") or wanted.get("visibility") == "private",
        )
        return self._json({"url": f"{self.hub.url}/{id}", "id": id})

    def _branch(self, id, rev):
        if found := self._open(id, "main"):
            repo = found[0]
            if rev in repo.branches:
                return self._json({"error": "Reference already exists"}, 409)
            repo.branches[rev] = dict(found[2])
            self._json({})
        return None

    def _preupload(self, id, rev):
        if self._open(id, rev):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(self._body)["files"]
            ]
            self._json({"files": files})

    def _check_card(self):
        self.hub.cards.append(json.loads(self._body)["content"])
        self._json({"errors": [], "warnings": []})

    def _commit(self, id, rev):
        found = self._open(id, rev)
        if not found:
            return None
        if not self._may():
            return self._json({"error": "You don't have the rights to write"}, 403)
        repo, branch, files = found
        lines = [json.loads(line) for line in self._body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repo.sha(branch):
            return self._json({"error": "A commit has happened since"}, 412)
        if "create_pr=1" in self.path:
            self.hub.pull_requests += 1
            branch = f"refs/pr/{self.hub.pull_requests}"
            files = repo.branches[branch] = dict(files)
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        answer = {
            "commitUrl": f"{self.hub.url}/{id}/commit/{repo.sha(branch)}",
            "commitOid": repo.sha(branch),
        }
        if "create_pr=1" in self.path:
            answer["pullRequestUrl"] = f"{self.hub.url}/{id}/discussions/{self.hub.pull_requests}"
        return self._json(answer)


@contextlib.contextmanager
def serving():
    """Yield a `Hub` that answers on a free port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def speak_to(url: str, monkeypatch, cache: Path) -> None:
    """Make `huggingface_hub` use the hub at `url`, online, with a cache of its own and no stored token."""
    from huggingface_hub import constants, hf_api

    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(hf_api.api, "endpoint", url)  # made at import: behind `huggingface_hub.create_repo`
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
