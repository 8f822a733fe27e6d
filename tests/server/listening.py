"""The application under test behind a real server and a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from tests.server.service import Service


@contextmanager
def listening(service: Service) -> Iterator[int]:
    """Serve the application, and give the port."""
    config = uvicorn.Config(service.app, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            service.painter.gate.set()
            server.should_exit = True
            thread.join()
