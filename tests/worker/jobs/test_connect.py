from __future__ import annotations

import asyncio
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from masc_core.errors import ConfigError, QueueDownError, QueueFullError
from tests.redis_server import RedisServer
from tests.worker.jobs.samples import job, result
from worker.jobs.connect import connect
from worker.jobs.job import GenerationRequest, Job
from worker.jobs.queue import QueueLimits
from worker.jobs.redis.queue import RedisQueue


def test_memory_is_a_queue_with_the_given_limit() -> None:
    queue = connect("memory://", QueueLimits(max_jobs=1))
    request = GenerationRequest("tiny", 0, 1.0, 0)
    asyncio.run(queue.submit(Job(request)))
    with pytest.raises(QueueFullError):
        asyncio.run(queue.submit(Job(request)))


def test_redis_is_a_queue_with_the_given_limits(redis_url: str) -> None:
    queue = connect(redis_url, QueueLimits(lease_seconds=7.0))
    assert isinstance(queue, RedisQueue)
    with closing(queue):
        assert queue.lease_seconds == 7.0
        assert queue.claim("tiny", 1, 0.0) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://:hush@h:port/0", "cannot be read"),
        ("redis://:hush/x@h:6379/0", "%2F"),  # else the port is a part of the password
        ("redis://:12/hush@h:6379/0", "%2F"),
        ("redis://:12#hush@h:6379/0", "%23"),
        ("redis://:12?hush@h:6379/0", "%3F"),
        ("redis://:hu[sh@h:6379/0", "cannot be read"),
        ("redis://:hush@h/first", "number of a database"),
        ("redis://:hush@h?db=first", "cannot be read"),
        ("redis://h/0?password=a&hush=b", "other options"),
        ("redis://:hush@h/0?decode_responses=1", "other options"),
        ("redis://:hush@h/0?ssl_ca_certs=/etc/ssl/cert.pem", "other options"),
        ("rediss://:hush@h/0?ssl_ca_certs=/nowhere/hush.pem", "No such file"),
        ("rediss://:hush@h/0?ssl_cert_reqs=hush", "ssl_cert_reqs"),
        ("unix://hush.sock?db=0", "absolute path"),
        ("unix:///" + "hush" * 27, "107 bytes"),
        ("unix:///run/hush%00.sock", "control character"),
        ("redis://:hush@h%00/0", "control character"),
        ("redis://:hu\nsh@h/0", "control character"),
        (" redis://:hush@h/0", "control character"),
        ("redis://:hush@h/0?db=1&db=2", "twice: db"),
        ("redis://:hush@h/1?db=1", "twice: db"),
        ("redis://:hush@h/0?password=other", "twice: password"),
        ("redis://ann:hush@h?username=ann", "twice: username"),
        ("redis://:hush@h?db=", "without a value"),
        ("rediss://:hush@h?ssl_ca_certs=", "without a value"),
        ("rediss://:hush@h?ssl_keyfile=/hush.pem", "without an ssl_certfile"),
        ("rediss://:hush@h?ssl_password=hush", "without an ssl_certfile"),
        ("rediss://:hush@h?ssl_certfile=/nowhere/hush.pem", "No such file"),
        ("rediss://:hush@h?ssl_ca_path=/nowhere/hush", "ssl_ca_path is no folder"),
        ("rediss://:hush@h?ssl_ca_certs=/dev/null", "certificates of the URL"),
        ("rediss://:hush@h?ssl_ca_certs=/", "certificates of the URL"),
        ("redis+sentinel://:hush@h:26379,i:26379", "names no master"),
        ("redis+sentinel://:hush@h/hu sh/0", "control character"),
        ("redis+sentinel://:hush@h/hush!/0", "names no master"),
        ("redis+sentinel://:hush@h/master/first", "number of a database"),
        ("redis+sentinel://:hush@h,/master/0", "host without a name"),
        ("redis+sentinel://:hush@,h/master/0", "host without a name"),
        ("redis+sentinel://:hush@h:port,i/master/0", "cannot be read"),
        ("redis+sentinel://:hush/x@h,i/master/0", "%2F"),
        ("redis+sentinel://:hush@h/master/0?db=1", "twice: db"),
        ("redis+sentinel://:hush@h/master?password=other", "twice: password"),
        ("redis+sentinel://h/m?sentinel_password=hush&sentinel_password=hush", "more than one"),
        ("redis+sentinel://h/m?sentinel_password=hush@x", "%40"),
        ("redis+sentinel://h/m?sentinel_passwords=hush", "other options"),
        ("redis+sentinel://:hush@h/m?ssl_cert_reqs=none", "other options"),
        ("rediss+sentinel://:hush@h/m?ssl_ca_certs=/nowhere/hush.pem", "No such file"),
        ("redis+cluster://:hush@h/1", "no other database"),
        ("redis+cluster://:hush@h?db=1", "no other database"),
        ("redis+cluster://:hush@h/master", "number of a database"),
        ("redis+cluster://:hush@h?sentinel_password=hush", "no Sentinels"),
        ("redis+cluster://:hush@", "host without a name"),
        ("redis://:hush@h,i/0", "host"),
        ("unix+cluster://:hush@h", "no queue for a URL of the kind"),
        ("redis+ring://:hush@h", "no queue for a URL of the kind"),
    ],
)
def test_a_url_of_redis_that_cannot_be_read_is_one_line_without_a_password(
    url: str, reason: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        connect(url, QueueLimits())
    message = str(refusal.value)
    assert message.startswith("MASC_QUEUE_URL: ")
    assert reason in message
    assert "hush" not in message
    assert "\n" not in message


@pytest.mark.anyio
@pytest.mark.parametrize("login", ["", "ann:p%2Fw%23d%40%3F@"])
async def test_a_socket_is_as_good_as_an_address(tmp_path: Path, login: str) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer(unixsocket=str(path)) as server:
        with server.client() as inside:
            inside.acl_setuser(
                "ann",
                enabled=True,
                passwords=["+p/w#d@?"],
                keys=["*"],
                channels=["*"],
                commands=["+@all"],
            )
        queue = connect(f"unix://{login}{path}?db=2", QueueLimits())
        async with queue:
            sent = job()
            await queue.submit(sent)
            (lease,) = await asyncio.to_thread(queue.claim, "tiny", 1, 0.0)
            assert queue.report([(lease, result())]) == [True]
            assert await queue.outcome(sent.id) == result()
            assert [bool(await queue.count_request("ann", 1)) for _ in range(2)] == [False, True]


def test_a_wrong_password_names_the_variable_only() -> None:
    with RedisServer(requirepass="secret") as server, pytest.raises(ConfigError) as refusal:
        connect(f"redis://:hush@127.0.0.1:{server.port}", QueueLimits())
    assert str(refusal.value).startswith("MASC_QUEUE_URL: ")
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("url", ["", "memory", "ftp://host", "http://[::1", "postgres://u:hush@h"])
def test_other_urls_are_refused_without_telling_a_password(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        connect(url, QueueLimits(max_jobs=1))
    assert "hush" not in str(refusal.value)
    assert str(refusal.value).startswith("MASC_QUEUE_URL: ")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of localhost, with its key in the same file."""
    file = tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(file)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    file.write_text((tmp_path / "key.pem").read_text() + file.read_text())
    return file


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster"])
async def test_tls_is_for_all_connections(certificate: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tls = {"tls-port": str(port), "tls-auth-clients": "no"}
    tls |= {"tls-cert-file": str(certificate), "tls-key-file": str(certificate)}
    with RedisServer(**tls):
        url = f"{scheme}://localhost:{port}"
        connect(url, QueueLimits())  # an authority that nobody knows: it is away, and says so
        async with connect(f"{url}?ssl_ca_certs={certificate}", QueueLimits()) as queue:
            sent = job()
            await queue.submit(sent)
            (lease,) = await asyncio.to_thread(queue.claim, "tiny", 1, 0.0)
            assert queue.report([(lease, result())]) == [True]
            assert await queue.outcome(sent.id) == result()
        with pytest.raises(QueueDownError):
            connect(f"{scheme}://127.0.0.1:{port}?ssl_ca_certs={certificate}", QueueLimits()).claim(
                "a", 1, 0.0
            )
