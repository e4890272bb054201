"""A Hub on this machine, just large enough for huggingface_hub's own client to push to and pull from."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_let_me_in"


class FakeHub:
    """What the server holds. repos: id -> file name -> bytes. seen: every request, for tests to look at."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.commits: list[str] = []
        self.seen: list[str] = []
        self.address = ""

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        repo = "/".join(part for part in (body.get("organization") or "me", body["name"]) if part)
        if repo in self.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{repo}"}
        self.repos[repo] = {}
        self.private[repo] = bool(body.get("private")) or body.get("visibility") == "private"
        return 200, {"url": f"{self.address}/{repo}", "name": repo, "id": repo}

    def info(self, repo: str) -> dict[str, Any]:
        siblings = [{"rfilename": name, "size": len(data)} for name, data in self.repos[repo].items()]
        return {"id": repo, "modelId": repo, "sha": COMMIT, "private": self.private.get(repo, False), "tags": [],
                "downloads": 0, "likes": 0, "siblings": siblings}  # fmt: skip

    def tree(self, repo: str) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.repos[repo].items()
        ]

    def commit(self, repo: str, lines: bytes) -> dict[str, Any]:
        for line in filter(None, lines.splitlines()):
            entry = json.loads(line)
            if entry["key"] == "header":
                self.commits.append(entry["value"]["summary"])
            if entry["key"] == "file":
                assert entry["value"]["encoding"] == "base64"
                self.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return {"commitUrl": f"{self.address}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(f"{self.command} {path}")
        if path == "/api/whoami-v2":
            return self._json(200 if self._allowed() else 401, {"name": "me", "type": "user", "auth": {}})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/[^/]+|/tree/[^/]+)?", path):
            repo, what = found[1], found[2] or ""
            if repo not in self.hub.repos:
                return self._missing("RepoNotFound", 401)
            return self._json(200, self.hub.tree(repo) if what.startswith("/tree") else self.hub.info(repo))
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            return self._file(found[1], found[2])
        return self._missing("EntryNotFound", 404)

    do_HEAD = do_GET

    def _file(self, repo: str, name: str) -> None:
        if repo not in self.hub.repos:
            return self._missing("RepoNotFound", 401)
        if name not in self.hub.repos[repo]:
            return self._missing("EntryNotFound", 404)
        data = self.hub.repos[repo][name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append(f"POST {path}")
        body = self._body()
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if not self._allowed():
            return self._json(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            return self._json(*self.hub.create(json.loads(body)))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/[^/]+", path)
        if not found or found[1] not in self.hub.repos:
            return self._missing("RepoNotFound", 404)
        if found[2] == "commit":
            return self._json(200, self.hub.commit(found[1], body))
        files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
        return self._json(200, {"files": files})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _json(self, status: int, value: Any) -> None:
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def _missing(self, code: str, status: int) -> None:
        raw = b"{}"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)


@contextlib.contextmanager
def serve() -> Iterator[FakeHub]:
    """Gives an empty Hub while the block runs."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
