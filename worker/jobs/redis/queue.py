"""Both sides of the queue in Redis, as the port has them."""

from __future__ import annotations

from worker.jobs.queue import QueueLimits
from worker.jobs.redis.connection import check_server, connect_blocking
from worker.jobs.redis.consumer import RedisConsumer
from worker.jobs.redis.producer import RedisProducer


class RedisQueue(RedisProducer, RedisConsumer):
    """See `JobQueue`; either side connects when it is used.

    Parameters
    ----------
    url : of Redis: ``redis://``, ``rediss://`` or ``unix://``
    limits : of the queue; the same in all processes that share it

    Raises
    ------
    ValueError : the URL cannot be read
    ConfigError : its server is no Redis, too old or does not let us in
    """

    def __init__(self, url: str, limits: QueueLimits) -> None:
        client = connect_blocking(url)
        check_server(client)
        RedisProducer.__init__(self, url, limits)
        RedisConsumer.__init__(self, client, limits)

    async def __aexit__(self, *_: object) -> None:
        """Disconnect both sides; the jobs stay."""
        await super().__aexit__()
        self.close()
