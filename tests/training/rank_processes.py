"""Real processes that talk over gloo, as torchrun would start them but in a tenth of the time."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch

from masc_core.errors import MascError

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["training.stages.transformer"])
SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a rank ended: 0, 2 for a `MascError`, 1 for another one, -9 if killed; and its error."""

    status: int
    message: str


def run_ranks(count: int, work: Callable[..., object], *arguments: object) -> list[Ended]:
    """Let ``count`` ranks do ``work``, a function of a module, and wait for them."""
    port = _free_port()
    pipes = [_SERVER.Pipe(duplex=False) for _ in range(count)]
    processes = [
        _SERVER.Process(target=_rank, args=(rank, count, port, pipes[rank][1], work, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    hung = [process for process in processes if process.is_alive()]
    for process in hung:
        process.kill()
        process.join()
    assert not hung, f"{len(hung)} of {count} ranks did not end"
    messages = [pipe.recv() if pipe.poll() else "" for pipe, _ in pipes]
    return [Ended(p.exitcode or 0, message) for p, message in zip(processes, messages, strict=True)]


def all_well(count: int, work: Callable[..., object], *arguments: object) -> None:
    """Let the ranks do ``work``, and expect nothing to go wrong."""
    failed = [ended for ended in run_ranks(count, work, *arguments) if ended.status]
    assert not failed, "\n".join(ended.message for ended in failed)


def _rank(
    rank: int,
    count: int,
    port: int,
    pipe: Connection,
    work: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    try:
        work(*arguments)
    except MascError as error:
        pipe.send(str(error))
        sys.exit(2)
    except BaseException:  # noqa: BLE001 - whatever it is, the test is told
        pipe.send(traceback.format_exc())
        sys.exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
