"""Pods of docker/kubernetes as processes of this machine, each at an address of its own.

What a node does for a pod is done here: its container's arguments, variables and mounted Secret,
its probes, and at its end `preStop`, SIGTERM and the grace period. Of the images' paths only the
models and the keys are others; limits of processors, memory and rights are not kept.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.command_line import ROOT
from tests.docker.manifests import Manifest, container, environment, image_environment, one
from tests.faults.client import Client
from tests.faults.cluster import SHIPPED, Process

LAG_SECONDS = 5.0  # after which a Service sends nothing more to a pod that was deleted
HEALTH_CHECK = {"python": sys.executable, "/usr/local/bin/healthcheck.py": "docker/healthcheck.py"}


class Pod(Process):
    """A pod of the Deployment ``masc-PART``.

    Parameters
    ----------
    objects : the manifests
    part : ``server`` or ``worker``
    address : of loopback, which no other pod has
    folder : of the log, and of the mounted Secret in ``keys``
    secrets : values by name and key
    settings : variables that `masc-settings` holds besides
    """

    def __init__(
        self,
        objects: Sequence[Manifest],
        part: str,
        address: str,
        folder: Path,
        secrets: Mapping[str, Mapping[str, str]],
        settings: dict[str, str],
    ) -> None:
        name = f"masc-{part}"
        self._container = container(objects, "Deployment", name)
        self._grace = one(objects, "Deployment", name)["spec"]["template"]["spec"][
            "terminationGracePeriodSeconds"
        ]
        self.part, self._address = part, address
        self._ports = {port["name"]: port["containerPort"] for port in self._container["ports"]}
        here = {"/models": str(SHIPPED), "0.0.0.0": address}  # noqa: S104
        given = image_environment(part) | environment(objects, self._container, secrets) | settings
        variables = {
            variable: here.get(value, value.replace("/keys/", f"{folder}/keys/"))
            for variable, value in given.items()
            if variable.startswith("MASC_")
        }
        self.is_ready = False
        self._deleted = float("inf")
        log = folder / f"{part}-{address}.log"
        super().__init__(["masc", *self._container["args"]], log, variables)
        self._kubelet = asyncio.create_task(self._probe())

    @property
    def url(self) -> str:
        """Of its only port."""
        (port,) = self._ports.values()
        return f"http://{self._address}:{port}"

    @property
    def is_endpoint(self) -> bool:
        """Whether a Service sends requests to it."""
        return self.is_ready and time.monotonic() < self._deleted + LAG_SECONDS

    async def until_ready(self) -> None:
        """Wait for the readiness probe."""
        while not self.is_ready:
            assert self.status is None, self.log.read_text()
            if self._kubelet.done():
                self._kubelet.result()
            await asyncio.sleep(0.02)

    async def delete(self) -> None:
        """End it as a node does; that it has to be killed fails."""
        self._deleted = time.monotonic()
        hook = self._container.get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})
        await asyncio.sleep(hook["sleep"]["seconds"])
        self._kubelet.cancel()
        self.send(signal.SIGTERM)
        left = self._deleted + self._grace - time.monotonic()
        assert await asyncio.to_thread(self.wait, left) == 0, self.log.read_text()

    async def _probe(self) -> None:
        """Probe as a node does: nothing but `startupProbe` until that succeeds, then the others."""
        await self._until("startupProbe", wanted=True)
        async with asyncio.TaskGroup() as both:
            both.create_task(self._live())
            while True:
                await self._until("readinessProbe", wanted=True)
                self.is_ready = True
                await self._until("readinessProbe", wanted=False)
                self.is_ready = False

    async def _live(self) -> None:
        await self._until("livenessProbe", wanted=False)
        raise AssertionError(f"{self.url} would be begun anew: {self.log.read_text()}")

    async def _until(self, kind: str, *, wanted: bool) -> None:
        """Probe until it succeeds, or until it has failed as often in a row as it may."""
        probe = self._container[kind]
        failures = 0
        while True:
            if await self._succeeds(probe):
                if wanted:
                    return
                failures = 0
            else:
                failures += 1
                if failures >= probe.get("failureThreshold", 3):
                    assert not wanted or kind != "startupProbe", self.log.read_text()
                    if not wanted:
                        return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _succeeds(self, probe: Mapping[str, Any]) -> bool:
        seconds = probe.get("timeoutSeconds", 1)
        if "httpGet" in probe:
            asked = probe["httpGet"]
            url = f"http://{self._address}:{self._ports[asked['port']]}{asked['path']}"
            try:
                async with httpx.AsyncClient(timeout=seconds) as http:
                    return 200 <= (await http.get(url)).status_code < 400
            except httpx.TransportError:
                return False
        command = [
            HEALTH_CHECK.get(word, word).replace("127.0.0.1", self._address)
            for word in probe["exec"]["command"]
        ]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            return await asyncio.wait_for(process.wait(), seconds) == 0
        except TimeoutError:
            with suppress(ProcessLookupError):  # it has ended just now
                process.kill()
            return False


class Deployments:
    """Front ends and workers in the numbers of their manifests.

    Parameters
    ----------
    objects, folder, secrets, settings : as of `Pod`
    processes : to which every pod is added, for whoever ends them
    """

    def __init__(
        self,
        objects: Sequence[Manifest],
        folder: Path,
        secrets: Mapping[str, Mapping[str, str]],
        settings: dict[str, str],
        processes: list[Process],
    ) -> None:
        self._objects, self._given = objects, (folder, secrets, settings)
        self._processes = processes
        self._addresses = (f"127.0.1.{number}" for number in itertools.count(1))
        self.pods: dict[str, list[Pod]] = {"server": [], "worker": []}
        self._ever: list[Pod] = []

    def add(self, part: str) -> Pod:
        """Start one more pod."""
        pod = Pod(self._objects, part, next(self._addresses), *self._given)
        self.pods[part].append(pod)
        self._ever.append(pod)
        self._processes.append(pod)
        return pod

    async def start(self) -> None:
        """Start as many as the manifests say, and wait until they are ready."""
        for part in self.pods:
            for _ in range(one(self._objects, "Deployment", f"masc-{part}")["spec"]["replicas"]):
                self.add(part)
        await asyncio.gather(*(pod.until_ready() for pods in self.pods.values() for pod in pods))

    async def roll(self, part: str) -> None:
        """Replace all pods of a Deployment as its strategy says: one more, and none less."""
        spec = one(self._objects, "Deployment", f"masc-{part}")["spec"]
        assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        async with asyncio.TaskGroup() as ending:
            for old in list(self.pods[part]):
                await self.add(part).until_ready()
                self.pods[part].remove(old)
                ending.create_task(old.delete())

    async def send_to_endpoints(self, client: Client) -> None:
        """Be the Service: let a client send to the front ends that it has at every moment."""
        while True:
            ready = [pod for pod in self._ever if pod.is_endpoint]
            client.urls = [pod.url for pod in ready if pod.part == "server"]
            await asyncio.sleep(0.02)
