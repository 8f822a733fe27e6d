"""The application under test behind a real server and a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from server.connections import BoundedConfig
from server.state import app_state
from tests.server.service import Service


@contextmanager
def serving(app: FastAPI) -> Iterator[int]:
    """Serve an application, and give the port."""
    state = app_state(app)
    server = uvicorn.Server(BoundedConfig(app, state.settings, state.metrics, graceful_seconds=3))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def listening(service: Service) -> Iterator[int]:
    """Serve the application of a service, and give the port."""
    with serving(service.app) as port:
        service.url = f"http://127.0.0.1:{port}"
        try:
            yield port
        finally:
            service.painter.gate.set()
