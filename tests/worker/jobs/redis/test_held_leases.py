from __future__ import annotations

from dataclasses import replace

from tests.worker.jobs.samples import job
from worker.jobs.job import Lease
from worker.jobs.redis.leases import HeldLeases

LEASE = Lease(job(), 1, 60.0)
LATER = replace(LEASE, token=2)


def test_only_what_was_claimed_is_held() -> None:
    held = HeldLeases()
    assert held.lost([LEASE]) == {LEASE.job_id}
    held.add([LEASE])
    assert held.lost([LEASE]) == set()
    assert held.tokens == {LEASE.job_id: LEASE.token}
    held.drop(LEASE.job_id, LEASE.token)
    assert held.lost([LEASE]) == {LEASE.job_id}
    assert held.tokens == {}


def test_the_end_of_an_older_lease_does_not_end_the_later_one() -> None:
    held = HeldLeases()
    held.add([LATER])
    held.drop(LEASE.job_id, LEASE.token)
    assert held.lost([LATER]) == set()
    assert held.lost([LEASE, LATER]) == {LEASE.job_id}


def test_what_is_lost_before_its_claim_returns_is_never_held() -> None:
    held = HeldLeases()
    with held.claiming():
        with held.claiming():
            held.drop(LEASE.job_id, LEASE.token)
        held.add([LEASE])
    assert held.lost([LEASE]) == {LEASE.job_id}
    with held.claiming():
        held.add([LEASE])
    assert held.lost([LEASE]) == set()
