"""Calls of scripts by threads, each over a connection of its own."""

from __future__ import annotations

from typing import Any

from redis.exceptions import NoScriptError

from worker.jobs.redis.connection import BlockingRedis, reachable_queue
from worker.jobs.redis.scripts import PREFIX, load_script


class Caller:
    """Calls scripts by their names, from any thread.

    Parameters
    ----------
    client : what is called
    settings : for all scripts
    """

    def __init__(self, client: BlockingRedis, settings: bytes) -> None:
        self._client, self._settings = client, settings

    def run(self, name: str, *args: bytes | str | float) -> Any:  # noqa: ANN401 - as scripts return
        """Run a script; raises `QueueDownError`."""
        script = load_script(name)
        arguments = (PREFIX, self._settings, *args)
        with reachable_queue():
            try:
                return self._client.evalsha(script.sha, 1, *arguments)
            except NoScriptError:
                return self._client.eval(script.text, 1, *arguments)
