"""The image's health check as a process, against a real server, with a proxy in the environment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker/healthcheck.py"
PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


class Answer(BaseHTTPRequestHandler):
    """Two lines, whatever is asked for; a proxy would be asked for a whole URL."""

    def do_GET(self) -> None:
        self.send_response(502 if self.path == "/sick" else 200)
        self.end_headers()
        self.wfile.write(b"masc_ready 1.0\nmasc_draining 0.0\n")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def check(*arguments: str, proxy: str) -> int:
    environment = dict(os.environ) | dict.fromkeys(PROXIES, proxy)
    environment.pop("NO_PROXY", None)
    environment.pop("no_proxy", None)
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], env=environment, capture_output=True, check=False
    ).returncode


@pytest.mark.parametrize("line", ["", "masc_ready 1.0"])
def test_it_asks_the_process_itself_and_no_proxy(port: int, line: str) -> None:
    assert (
        check(f"http://127.0.0.1:{port}/", *filter(None, [line]), proxy="http://127.0.0.1:1") == 0
    )


def test_a_proxy_that_answers_for_the_process_does_not_make_it_well(port: int) -> None:
    assert check("http://127.0.0.1:1/", proxy=f"http://127.0.0.1:{port}") != 0
    assert check(f"http://127.0.0.1:{port}/sick", proxy="") != 0
    assert check(f"http://127.0.0.1:{port}/", "masc_ready 0.0", proxy="") != 0
