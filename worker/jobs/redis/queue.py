"""Both sides of the queue in Redis, as the port has them."""

from __future__ import annotations

from redis.exceptions import NoPermissionError

from masc_core.errors import ConfigError
from worker.jobs.queue import DEFAULT_PREFIX, QueueLimits
from worker.jobs.redis.client import QueueNamespace, check_access
from worker.jobs.redis.connection import check_server, connect_blocking, database_of
from worker.jobs.redis.consumer import RedisConsumer
from worker.jobs.redis.producer import RedisProducer


class RedisQueue(RedisProducer, RedisConsumer):
    """See `JobQueue`; either side connects when it is used.

    Parameters
    ----------
    url : of Redis, as `RedisUrl` reads it
    limits : of the queue; the same in all processes that share it
    prefix : of its keys and channels, between braces

    Raises
    ------
    ValueError : the URL cannot be read
    ConfigError : its server is no Redis, too old, or does not let us do what the queue does
    """

    def __init__(self, url: str, limits: QueueLimits, prefix: str = DEFAULT_PREFIX) -> None:
        client = connect_blocking(url, QueueNamespace.key(prefix))
        namespace = QueueNamespace.of(limits, database_of(client), prefix)
        try:
            check_server(client)
            check_access(client, namespace)
        except NoPermissionError as error:
            raise ConfigError(f"Redis' user needs {namespace.rights}: NOPERM {error}") from None
        client.connection_pool.disconnect()  # a front end needs no more of it
        RedisProducer.__init__(self, url, limits, namespace)
        RedisConsumer.__init__(self, client, limits, namespace)

    async def __aexit__(self, *_: object) -> None:
        """Disconnect both sides; the jobs stay."""
        await super().__aexit__()
        self.close()
