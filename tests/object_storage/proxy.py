"""What stands between a client and the object store: it loses answers, or delays them."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from tests.loopback_server import LoopbackServer

HOP = {"connection", "transfer-encoding", "content-length"}


class Proxy(LoopbackServer):
    """Hands requests on to a port of this machine; runs between enter and exit.

    Attributes
    ----------
    loses : whether the answer to a request (method, path) is lost after it was carried out
    seconds : how long each answer to a request (method, path) is held back
    lost : paths whose answer was lost
    """

    def __init__(self, port: int) -> None:
        self.loses: Callable[[str, str], bool] = lambda _method, _path: False
        self.seconds: Callable[[str, str], float] = lambda _method, _path: 0.0
        self.lost: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _hand_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                try:
                    upstream.putrequest(
                        self.command, self.path, skip_host=True, skip_accept_encoding=True
                    )
                    for name, value in self.headers.items():
                        upstream.putheader(name, value)
                    upstream.endheaders(body)
                    answer = upstream.getresponse()
                    content = answer.read()
                finally:
                    upstream.close()
                time.sleep(proxy.seconds(self.command, self.path))
                status, headers = answer.status, answer.getheaders()
                if status < 300 and proxy.loses(self.command, self.path):
                    proxy.lost.append(self.path)
                    status, headers, content = 503, [], b""
                self.send_response(status)
                length = str(len(content))
                for name, value in headers:
                    if self.command == "HEAD" and name.lower() == "content-length":
                        length = value
                    if name.lower() not in HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _hand_on  # noqa: N815

        super().__init__(Handler)

    def lose_once(self, method: str, end: str) -> None:
        """Lose the next answer to a request of a path with this end."""
        before = len(self.lost)
        self.loses = lambda asked, path: (
            len(self.lost) == before and asked == method and path.partition("?")[0].endswith(end)
        )
