"""What is mutated, and the tests that have to notice.

Folders and patterns are below the project's root; the tests that notice most come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

JOBS, REDIS = "tests/worker/jobs", "tests/worker/jobs/redis"


@dataclass(frozen=True, slots=True)
class Target:
    """Sources that keep one promise.

    Parameters
    ----------
    sources : of Python or Lua
    tests : files or folders
    variables : of the tests' environment
    options : of pytest
    """

    sources: tuple[str, ...]
    tests: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()


QUEUE = Target(
    ("worker/jobs/redis/scripts/*.lua",),
    (f"{JOBS}/test_queue_contract.py", f"{REDIS}/test_leases.py", f"{REDIS}/test_front_ends.py",
     f"{REDIS}/test_consumer.py", f"{REDIS}/test_arrivals.py", f"{REDIS}/test_random_walks.py",
     f"{REDIS}/test_traces.py"),
    options=("-k", "(not memory or bound) and not thousand"),
)  # fmt: skip
# Loops run as plain Python: compiled, each mutant would take a minute of compilation.
INTERPRETED = (("NUMBA_DISABLE_JIT", "1"),)
# Runs of several processes that are killed and repeated take ten seconds each.
NO_KILLED_RUNS = ("-k", "not killed")

TARGETS: dict[str, Target] = {
    "sampling": Target(
        tuple(f"masc_core/sampling/{name}.py" for name in ("sampler", "rng", "in_cluster")),
        tuple(f"tests/masc_core/sampling/test_{name}.py"
              for name in ("sampler", "rng", "params", "in_cluster", "refinement")),
        options=("-k", "not papers_width"),  # half a minute
    ),
    "cluster softmax": Target(
        ("masc_core/sampling/cluster_softmax.py",),
        ("tests/masc_core/sampling/test_cluster_softmax.py",),
    ),
    "tree": Target(
        ("masc_core/tree/build.py", "masc_core/semantic_tree.py"),
        ("tests/masc_core/tree/test_build.py", "tests/masc_core/test_semantic_tree.py"),
    ),
    "tree merges": Target(
        tuple(f"masc_core/tree/upgma/{name}.py"
              for name in ("average", "candidate_lists", "clusters")),
        tuple(f"tests/masc_core/tree/upgma/test_{name}.py"
              for name in ("clusters", "candidate_lists", "average")),
        INTERPRETED,
        # A hash wraps, of which NumPy warns. 512.0 would take half a minute.
        ("-W", "ignore:overflow:RuntimeWarning", "-k",
         "(lists or clusters or hurt or true_minimum or progress or heights) and not 512.0"),
    ),
    "queue scripts": QUEUE,
    "queue in Redis": Target(
        ("worker/jobs/redis/producer.py", "worker/jobs/redis/consumer.py"),
        (f"{REDIS}/test_producer.py", *QUEUE.tests, f"{REDIS}/test_outages.py"),
        options=QUEUE.options,
    ),
    "queue in memory": Target(
        ("worker/jobs/memory.py",),
        (f"{JOBS}/test_queue_contract.py", f"{JOBS}/test_memory.py"),
        options=("-k", "not redis"),
    ),
    "keys": Target(
        tuple(f"server/auth/{name}.py" for name in ("dependencies", "api_keys")),
        tuple(f"tests/server/auth/test_{name}.py"
              for name in ("dependencies", "api_keys", "command")),
    ),
    "limits": Target(
        ("server/middleware/body_limit.py", "worker/jobs/queue.py"),
        ("tests/server/auth/test_rate_limit.py", "tests/server/middleware/test_body_limit.py",
         *(f"{JOBS}/test_{name}.py" for name in ("queue", "settings", "memory", "queue_contract"))),
    ),
    "deadlines": Target(
        ("server/answers/job_updates.py", "server/connections.py", "worker/job_run.py"),
        ("tests/server/answers/test_job_updates.py", "tests/server/intake/test_admit.py",
         "tests/worker/test_job_run.py", "tests/server/test_connections.py"),
    ),
    "atomic files": Target(("masc_core/io/files.py",), ("tests/masc_core/io/test_files.py",)),
    "registry": Target(
        ("masc_core/bundle/registry.py",),
        tuple(f"tests/masc_core/bundle/test_{name}.py" for name in ("registry",)),
    ),
    "checkpoint": Target(
        ("training/loop/checkpoint.py",),
        ("tests/training/loop/test_checkpoint.py", "tests/training/loop/test_trainer.py",
         "tests/training/loop/test_distributed.py"),
        options=NO_KILLED_RUNS,
    ),
    "training loop": Target(
        ("training/loop/trainer.py",),
        ("tests/training/loop/test_trainer.py", "tests/training/loop/test_distributed.py"),
        options=NO_KILLED_RUNS,
    ),
    "worker loop": Target(
        ("worker/loop.py", "worker/model/served.py"),
        ("tests/worker/test_loop.py", "tests/worker/test_loop_life.py",
         "tests/worker/test_loop_versions.py", "tests/worker/test_loop_models.py",
         "tests/worker/test_loop_redis.py"),
    ),
}  # fmt: skip


def sources_of(root: Path, target: Target) -> list[Path]:
    """Its sources.

    Raises
    ------
    FileNotFoundError : a pattern, or a file of tests, that is nowhere: it has moved
    """
    files: list[Path] = []
    for pattern in target.sources:
        found = sorted(root.glob(pattern))
        if not found:
            raise FileNotFoundError(f"targets.py: there is no {pattern}")
        files += found
    for test in target.tests:
        if not (root / test).exists():
            raise FileNotFoundError(f"targets.py: there is no {test}")
    return files
