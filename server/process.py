"""The process of a front end: its socket, uvicorn, and signals.

SIGTERM or SIGINT starts draining (`server.drain`); a second one ends the process at once.
"""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from masc_core.errors import ConfigError
from server.connections import BoundedConfig
from server.drain import Drain
from server.middleware.hosts import is_loopback
from server.state import app_state

logger = logging.getLogger(__name__)

OPEN_TO_ALL = (
    "reached at %s without API keys: everyone who can reach this machine can use the service. "
    "To close it: masc keys create NAME --file keys.toml, and set MASC_API_KEYS_FILE=keys.toml"
)
CLOSE_SECONDS = 3  # for what still runs to tell its client; streams can be resumed elsewhere


class DrainingServer(uvicorn.Server):
    """Uvicorn that drains on a signal."""

    def __init__(self, config: uvicorn.Config, drain: Drain, is_broken: Callable[[], bool]) -> None:
        super().__init__(config)
        self._drain, self._is_broken = drain, is_broken

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Begin to drain; end at once if it drains already."""
        if self._drain.is_draining:
            self.should_exit = True
        self._drain.begin()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: drain if broken, end when drained."""
        if self._is_broken():
            self._drain.begin()
        if self._drain.is_over:
            self.should_exit = True
        if self.should_exit:
            self._drain.abort()
        return await super().on_tick(counter)


def serve(
    app: FastAPI, listener: socket.socket, is_broken: Callable[[], bool] = lambda: False
) -> None:
    """Serve in the main thread until a signal, and return when all accepted work is answered.

    ``is_broken`` is polled: once it returns True the front end drains without a signal.
    """
    state = app_state(app)
    config = BoundedConfig(app, state.settings, state.metrics, CLOSE_SECONDS)
    server = DrainingServer(config, state.drain, is_broken)
    signal.signal(signal.SIGTERM, server.handle_exit)  # also before uvicorn listens for it
    server.run(sockets=[listener])


@contextmanager
def listen(
    host: str, port: int, *, keys: bool, published_host: str = ""
) -> Iterator[socket.socket]:
    """Bind first, so that a port in use fails before anything slow is done.

    Parameters
    ----------
    host, port : port 0 takes a free one
    keys : whether clients need keys; if not, and others can connect, a warning is logged
    published_host : the address by which to decide that, if not the bound one

    Raises
    ------
    ConfigError : the address cannot be bound
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        listener = socket.create_server(
            address[:2], family=family, backlog=2048, dualstack_ipv6=both
        )
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    # Accepted sockets inherit this. An answer is written in two parts, head and body, and on a kept
    # connection the second would wait for the client to acknowledge the first: 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        bound = listener.getsockname()
        reached = published_host or bound[0]
        if not keys and not is_loopback(reached):
            logger.warning(OPEN_TO_ALL, reached)
        where = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        logger.info("MASC on http://%s:%d", where, bound[1])
        yield listener
