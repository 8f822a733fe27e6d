"""The protocol of the Hugging Face hub on loopback, for small files.

A repository's large files are redirects to another origin, which knows them by their SHA-256; what
lies below ``/plain/`` is as of any web server. Both serve ranges.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    method: str
    path: str
    range: str
    authorization: str


@dataclass
class Hub:
    """What is there, what was asked for, and what goes wrong.

    Attributes
    ----------
    files : content by ``owner/repo/file``, or ``plain/file``
    commits : by branch or tag; what a commit holds never changes
    token : what opens the repositories ``gated/...``
    cut : bytes of a content after which the connections of so many requests end
    stalls : whether those connections stay open instead
    lengths : whether contents come with their length
    sent : content that is sent in place of another
    headers : of files below ``plain/``
    statuses : answers to every request of a method, in place of the file
    """

    files: dict[str, bytes] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=lambda: {"main": "a" * 40, "v1": "b" * 40})
    token: str = ""
    cut: list[int] = field(default_factory=list)
    stalls: bool = False
    lengths: bool = True
    sent: dict[str, bytes] = field(default_factory=dict)
    size: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    web: str = ""  # of the storage, and of other files

    def gets(self, part: str = "/storage/") -> list[Request]:
        """Requests of contents."""
        return [one for one in self.requests if one.method == "GET" and part in one.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0].lstrip("/")
        token = self.headers.get("Authorization", "")
        hub.requests.append(Request(self.command, self.path, self.headers.get("Range", ""), token))
        if self.command in hub.statuses:
            self._say(hub.statuses[self.command], {})
        elif path.startswith("storage/"):
            digest = path.removeprefix("storage/")
            contents = {hashlib.sha256(c).hexdigest(): c for c in hub.files.values()}
            self._send(hub.sent.get(digest, contents[digest]), {})
        elif path.startswith("plain/") and path in hub.files:
            self._send(hub.files[path], hub.headers)
        elif match := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3], token)
        else:
            self._say(404, {})

    def _resolve(self, repository: str, revision: str, name: str, token: str) -> None:
        content = self.hub.files.get(f"{repository}/{name}")
        commit = self.hub.commits.get(revision, revision)
        if not any(key.startswith(f"{repository}/") for key in self.hub.files):
            self._say(401, {"X-Error-Code": "RepoNotFound"})
        elif repository.startswith("gated/") and token != f"Bearer {self.hub.token}":
            self._say(403 if token else 401, {"X-Error-Code": "GatedRepo"})
        elif commit not in self.hub.commits.values():
            self._say(404, {"X-Error-Code": "RevisionNotFound"})
        elif content is None:
            self._say(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif len(content) < 1000:  # not in LFS
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's
            self._send(content, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'})
        else:
            digest = hashlib.sha256(content).hexdigest()
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(self.hub.size or len(content)),
                "Location": f"{self.hub.web}/storage/{digest}?signature=secret",
            }
            self._say(302, headers)

    def _send(self, content: bytes, headers: dict[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        if asked:
            whole = len(content)
            headers = headers | {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        self._say(206 if asked else 200, headers, content[start:])

    def _say(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        if self.hub.lengths or not body:
            headers = {"Content-Length": str(len(body))} | headers
        else:
            headers = {"Connection": "close"} | headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if body and self.hub.cut:
            self.wfile.write(body[: self.hub.cut.pop(0)])
            self.wfile.flush()
            if self.hub.stalls:
                self.hub.closed.wait()
            self.close_connection = True
        else:
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that went away is no error, and stderr is what tests read of a command.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub and its storage, each on a port of its own."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{servers[0].server_port}"
    hub.web = f"http://localhost:{servers[1].server_port}"  # another host, too
    try:
        yield hub
    finally:
        hub.closed.set()
        for server in servers:
            server.shutdown()
            server.server_close()
