"""Workers that are killed or crash while requests are on them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from roost.core.errors import Code
from roost.core.requests import InferResponse

from tests.clients import PROBE_OUTPUTS, TRANSPORTS, CallFailed, Client, connect, four, number
from tests.models import write_dummy
from tests.server import eventually, started

SLOTS = 4
WAITING = 12


async def _fill(client: Client, model: str, count: int, **parameters: float) -> list[asyncio.Task[InferResponse]]:
    return [asyncio.create_task(client.infer(model, four(), parameters=parameters)) for _ in range(count)]


def _split(results: Sequence[InferResponse | BaseException]) -> tuple[list[InferResponse], list[CallFailed]]:
    answered = [result for result in results if isinstance(result, InferResponse)]
    failed = [result for result in results if isinstance(result, CallFailed)]
    assert len(answered) + len(failed) == len(results), results
    return answered, failed


@pytest.mark.parametrize(("workers", "transport"), [(1, "rest"), (2, "rest"), (2, "grpc")])
async def test_only_what_a_killed_worker_was_running_fails(
    tmp_path: Path, repository: Path, workers: int, transport: str
) -> None:
    begun = tmp_path / "begun"
    write_dummy(repository / "a" / "1" / "model.dummy", outputs=PROBE_OUTPUTS, state=True, begun=str(begun))
    write_dummy(repository / "b" / "1" / "model.dummy", outputs=PROBE_OUTPUTS, state=True)
    with started(repository, tmp_path / "run", "--workers", str(workers)) as server:
        async with connect(server, transport) as client:
            before = number(await client.infer("a", four()), "pid")
            other = number(await client.infer("b", four()), "pid")
            assert (before == other) is (workers == 1)
            running = await _fill(client, "a", SLOTS, run_s=300)
            await eventually(lambda: begun.stat().st_size == 1 + SLOTS, "all slots taken")
            waiting = await _fill(client, "a", WAITING, run_s=0.01)
            beside = await _fill(client, "b", WAITING, run_s=0.01)
            queued = 2 * WAITING if workers == 1 else WAITING
            await eventually(lambda: server.status()["queued"] == queued, "the others queued")
            os.kill(before, signal.SIGKILL)
            answered, failed = _split(await asyncio.gather(*running, return_exceptions=True))
            assert not answered
            assert all(error.means(Code.UNAVAILABLE) for error in failed)
            answered, failed = _split(await asyncio.gather(*waiting, *beside, return_exceptions=True))
            assert not failed
            assert len(answered) == 2 * WAITING
            assert before not in {number(answer, "pid") for answer in answered}
            assert number(await client.infer("a", four()), "pid") != before
        await eventually(lambda: all(w["state"] == "up" for w in server.status()["workers"]), "all workers up")
        assert sum(worker["restarts"] for worker in server.status()["workers"]) == 1
        assert server.metric("roost_worker_restarts_total") == 1
        assert server.metric("roost_requests_total", model="a", code="UNAVAILABLE") == SLOTS
        assert server.metric("roost_queued_requests") == 0


async def test_a_worker_that_hangs_is_noticed_and_replaced(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "a" / "1" / "model.dummy", outputs=PROBE_OUTPUTS)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            before = number(await client.infer("a", four()), "pid")
            os.kill(before, signal.SIGSTOP)
            assert number(await client.infer("a", four()), "pid") != before  # not begun with, so it was sent again
        assert "does not answer" in server.log


async def test_a_worker_killed_while_it_loads(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "slow" / "1" / "model.dummy", load_s=0.5)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            request = asyncio.create_task(client.infer("slow", four()))
            await eventually(lambda: any(i["state"] == "loading" for i in server.instances()), "the load")
            os.kill(server.status()["workers"][0]["pid"], signal.SIGKILL)
            await request  # no run was lost, so it is loaded again by the next process
        device = server.status()["devices"][0]
        assert device["reserved_bytes"] == 0
        assert device["used_bytes"] == sum(instance["bytes"] for instance in server.instances())


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_model_that_crashes_is_put_in_quarantine(
    tmp_path: Path, repository: Path, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "1")  # which must not reach the starts of new workers
    write_dummy(repository / "bad" / "1" / "model.dummy", crash="run")
    write_dummy(repository / "good" / "1" / "model.dummy", outputs=PROBE_OUTPUTS)
    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, transport) as client:
            for _ in range(3):
                with pytest.raises(CallFailed) as error:
                    await client.infer("bad", four())
                assert error.value.means(Code.UNAVAILABLE)
                assert "quarantine" not in error.value.message
                await client.infer("good", four())
            restarts = server.status()["workers"][0]["restarts"]
            assert restarts == 3
            for _ in range(3):
                with pytest.raises(CallFailed) as error:
                    await client.infer("bad", four())
                assert error.value.means(Code.UNAVAILABLE)
                assert "quarantine" in error.value.message
            assert not await client.is_ready("bad")
            assert await client.is_ready("good")
            state, reason = (await client.index())["bad", "1"]
            assert state == "UNAVAILABLE"
            assert "quarantine" in reason
            await client.infer("good", four())
        assert server.status()["workers"][0]["restarts"] == restarts


async def test_a_model_that_crashes_while_it_loads(tmp_path: Path, repository: Path) -> None:
    write_dummy(repository / "bad" / "1" / "model.dummy", crash="load")
    write_dummy(repository / "good" / "1" / "model.dummy")
    with started(repository, tmp_path / "run", "--workers", "2") as server:
        async with connect(server, "grpc") as client:
            for _ in range(2):
                with pytest.raises(CallFailed) as error:
                    await client.infer("bad", four())
                assert error.value.means(Code.UNAVAILABLE)
            await client.infer("good", four())
        await eventually(lambda: all(w["state"] == "up" for w in server.status()["workers"]), "all workers up")
        device = server.status()["devices"][0]
        assert device["used_bytes"] == sum(instance["bytes"] for instance in server.instances())
