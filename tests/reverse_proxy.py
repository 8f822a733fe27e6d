"""A real nginx in front of a service, on a free port of this machine."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ABSENT = "needs nginx; on Debian: apt-get install nginx-light"
START_SECONDS = 10.0
CONFIGURATION = """
{user} daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        {directives}
    }}
}}
"""


def nginx_path() -> str | None:
    """The nginx of this machine; None where there is none."""
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/bin")


@contextmanager
def nginx(directives: str) -> Iterator[int]:
    """Run it with these lines in its ``server`` block, and give its port."""
    binary = nginx_path()
    assert binary is not None
    with tempfile.TemporaryDirectory(prefix="masc-nginx-") as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        configuration = Path(folder, "nginx.conf")
        user = "user root;" if os.geteuid() == 0 else ""  # or it cannot read the files of tests
        configuration.write_text(
            CONFIGURATION.format(user=user, folder=folder, port=port, directives=directives)
        )
        process = subprocess.Popen([binary, "-p", folder, "-c", configuration, "-e", "stderr"])
        try:
            _wait(process, port)
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            assert process.poll() is None, "nginx has ended"
            assert time.monotonic() < until, "nginx does not start"
            time.sleep(0.01)
        else:
            return
