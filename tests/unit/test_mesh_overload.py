"""More work than time: what the mesh still answers in time, in virtual time, of requests that come at random."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import pytest
from roost.core.errors import RoostError
from roost.core.requests import Done, InferRequest, InferResponse, RequestContext
from roost.core.tensors import Tensor

from tests.unit.mesh_fakes import Bed, Job, bed
from tests.virtual_time import virtual

LIMIT_S = 0.03
SECONDS = 3.0


@dataclass
class Device:
    """Runs batches one after the other: b + a·n seconds for n rows, more or less."""

    b_s: float
    a_s: float
    varies_by: float
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    busy_until: float = 0.0

    def run(self, job: Job) -> None:
        loop = asyncio.get_running_loop()
        took_s = (self.b_s + self.a_s * len(job.data)) * self.draw.lognormvariate(0, self.varies_by)
        self.busy_until = max(loop.time(), self.busy_until) + took_s
        loop.call_at(self.busy_until, self._end, job, took_s)

    def _end(self, job: Job, took_s: float) -> None:
        farm = job.process.farm
        if job in farm.jobs:
            farm.run_ns = round(took_s * 1e9)
            job.answer()


@dataclass
class Clients:
    """They want their answers within ``LIMIT_S``, and count."""

    sent: int = 0
    in_time: int = 0
    too_late: int = 0
    refused_after_s: list[float] = field(default_factory=list)

    async def send(self, on: Bed, rate_per_s: float) -> None:
        model = on.revisions[0]
        assert model.intake is not None
        draw, end = random.Random(2), time.monotonic() + SECONDS
        while time.monotonic() < end:
            await asyncio.sleep(draw.expovariate(rate_per_s))
            now = time.monotonic()
            tensors = [Tensor("x", "UINT8", (1,), b"x")]
            request = InferRequest("a", "", RequestContext(now, now + 0.9 * LIMIT_S), tensors)
            self.sent += 1
            try:
                on.mesh.submit(model, request, self._outcome(now), model.intake.measure(request))
            except RoostError:
                self.refused_after_s.append(0.0)
        await asyncio.sleep(1)

    def _outcome(self, sent_at: float) -> Done:
        def done(outcome: InferResponse | RoostError) -> None:
            took_s = time.monotonic() - sent_at
            if isinstance(outcome, RoostError):
                self.refused_after_s.append(took_s)
            elif took_s <= LIMIT_S:
                self.in_time += 1
            else:
                self.too_late += 1

        return done


async def answered_per_s(device: Device, rate_per_s: float) -> tuple[float, Clients]:
    clients = Clients()
    async with bed(max_queued_bytes=1 << 20) as on:
        await on.mesh.loader.bring(on.model("a", 10, batch=16))
        on.farm.on_run = device.run
        await clients.send(on, rate_per_s)
    return clients.in_time / SECONDS, clients


@virtual
@pytest.mark.parametrize(("b_over_a", "carries_per_s"), [(0.2, 130), (1.0, 180), (4.0, 380)])
@pytest.mark.parametrize("times", [1, 2, 6])
async def test_no_load_is_so_high_that_little_is_answered(b_over_a: float, carries_per_s: float, times: int) -> None:
    """A device that carries so many requests a second still answers nearly as many when more come."""
    a_s = 0.006 / (1 + b_over_a)
    in_time_per_s, clients = await answered_per_s(Device(b_over_a * a_s, a_s, 0.05), times * carries_per_s)
    assert in_time_per_s > 0.9 * carries_per_s
    assert clients.too_late < 0.02 * clients.sent
    waited, refused = [after_s for after_s in clients.refused_after_s if after_s], len(clients.refused_after_s)
    assert len(waited) <= max(2, 0.04 * refused), "nearly all refusals come at once"
    assert sum(after_s > 0.02 for after_s in waited) <= max(2, 0.01 * refused), (
        "and the others early enough to ask elsewhere"
    )


@virtual
@pytest.mark.parametrize("varies_by", [0.3, 0.6])
async def test_a_device_whose_runs_vary_is_not_left_idle(varies_by: float) -> None:
    a_s = 0.003
    calm, _ = await answered_per_s(Device(a_s, a_s, varies_by), 100)
    busy, _ = await answered_per_s(Device(a_s, a_s, varies_by), 800)
    assert calm > 55
    assert busy > calm
