from __future__ import annotations

import asyncio
import threading

import pytest

from worker.jobs.watchers import Watchers

pytestmark = pytest.mark.anyio


async def test_whoever_watches_is_woken_from_any_thread() -> None:
    watchers = Watchers()
    with watchers.watch("a") as first, watchers.watch("a") as second, watchers.watch("b") as other:
        assert watchers.watched == {"a", "b"}
        threading.Thread(target=watchers.notify, args=("a",)).start()
        await asyncio.wait_for(first.wait(), 5.0)
        await asyncio.wait_for(second.wait(), 5.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other.wait(), 0.01)
        watchers.notify_all()
        await asyncio.wait_for(other.wait(), 5.0)
    assert watchers.watched == frozenset()


async def test_news_before_the_wait_are_not_lost() -> None:
    watchers = Watchers()
    with watchers.watch("a") as news:
        watchers.notify("a")
        watchers.notify("a")
        await asyncio.wait_for(news.wait(), 5.0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(news.wait(), 0.01)
    watchers.notify("a")


def test_a_loop_that_has_ended_is_no_error() -> None:
    watchers = Watchers()

    async def begin() -> None:
        watching.__enter__()

    watching = watchers.watch("a")
    asyncio.run(begin())
    watchers.notify("a")
    watching.__exit__(None, None, None)


async def test_a_wait_may_have_an_end() -> None:
    watchers = Watchers()
    with watchers.watch("a") as news:
        await asyncio.wait_for(news.wait(0.01), 5.0)
        await asyncio.wait_for(news.wait(-1.0), 5.0)
        watchers.notify("a")
        await asyncio.wait_for(news.wait(60.0), 5.0)
