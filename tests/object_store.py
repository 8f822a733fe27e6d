"""A real S3 server for tests: the RADOS gateway of Ceph over a monitor and a daemon in memory."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import obstore
from obstore.store import S3Store

from tests.redis_server import free_port

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
START_SECONDS = 60.0
KEY, SECRET = "masc-test", "not-to-be-seen-anywhere"

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket = {folder}/$name.$pid.socket
log file = {folder}/$name.log
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd class load list = *
osd class default list = *
osd class update on start = false
paxos propose interval = 0.02
paxos min wait = 0.01
[client.rgw]
rgw data = {folder}
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw enable gc threads = false
rgw enable lc threads = false
rgw enable quota threads = false
rgw dynamic resharding = false
rgw override bucket index max shards = 1
rgw num control oids = 1
rgw usage max shards = 1
rgw lc max objs = 1
rgw gc max objs = 1
rgw data log num shards = 1
rgw md log max shards = 1
"""


def is_installed() -> bool:
    return all(map(shutil.which, PROGRAMS))


class ObjectStore:
    """Runs between enter and exit; the gateway can be stopped and started again in between."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="masc-s3-")
        self._path = Path(self._folder.name)
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._gateway: subprocess.Popen[bytes] | None = None
        self.port, self._monitor = free_port(), free_port()

    @property
    def variables(self) -> dict[str, str]:
        """What a client of it has in its environment."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def __enter__(self) -> Self:
        try:
            self._start_cluster()
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.stop()
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        self._folder.cleanup()

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket; returns its address."""
        store = S3Store(
            name,
            endpoint=self.variables["AWS_ENDPOINT_URL"],
            access_key_id=KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
        )
        url = obstore.sign(store, "PUT", "", timedelta(seconds=60))
        httpx.put(url, timeout=START_SECONDS).raise_for_status()
        return f"s3://{name}"

    def start(self) -> None:
        """Start the gateway, and wait until it serves."""
        self._gateway = self._spawn("radosgw", "-f", "-n", "client.rgw")
        until = time.monotonic() + START_SECONDS
        while not self.is_up():
            assert self._gateway.poll() is None, self._log("client.rgw")
            assert time.monotonic() < until, self._log("client.rgw")
            time.sleep(0.05)

    def stop(self) -> None:
        """End the gateway; what is stored stays."""
        if self._gateway is not None:
            self._gateway.terminate()
            self._gateway.wait()
            self._gateway = None

    def hang(self) -> None:
        """Let it accept connections and answer nothing, until `go_on`."""
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._gateway is not None
        self._gateway.send_signal(signal.SIGCONT)

    def is_up(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _start_cluster(self) -> None:
        fsid = str(uuid.uuid4())
        text = CONFIGURATION.format(
            fsid=fsid, folder=self._path, monitor=self._monitor, port=self.port
        )
        (self._path / "ceph.conf").write_text(text)
        (self._path / "osd").mkdir()
        keyring, monmap = self._path / "keyring", self._path / "monmap"
        keyring.write_text("[mon.]\n\tkey = AQAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAA==\n")
        address = f"[v1:127.0.0.1:{self._monitor}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(monmap))
        files = ("--monmap", str(monmap), "--keyring", str(keyring))
        self._run("ceph-mon", "--mkfs", "-i", "a", *files)
        self._daemons.append(self._spawn("ceph-mon", "-f", "-i", "a"))
        disk = str(uuid.uuid4())
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", disk)
        until = time.monotonic() + START_SECONDS
        while " 1 up" not in self._run("ceph", "osd", "stat"):
            assert time.monotonic() < until, self._log("osd.0")
            if self._daemons[-1].poll() is not None or len(self._daemons) == 1:
                # At times it asks the monitor before it knows the cluster's id, and ends.
                self._daemons.append(self._spawn("ceph-osd", "-f", "-i", "0"))
        self._run(
            *("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "masc"),
            *("--display-name", "masc", "--access-key", KEY, "--secret-key", SECRET),
        )

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, timeout=START_SECONDS, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        return subprocess.Popen(
            command, env=self._environment, stdin=null, stdout=null, stderr=null
        )

    def _log(self, name: str) -> str:
        return (self._path / f"{name}.log").read_text(errors="replace")[-4000:]

    @property
    def _environment(self) -> dict[str, str]:
        return os.environ | {"CEPH_CONF": str(self._path / "ceph.conf")}
