"""Answers in shared memory: right bytes for slow readers while slots are used again; lost workers leave nothing."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import psutil
import pytest
import uvloop
from roost.core.errors import Code, Limit
from roost.core.requests import InferRequest, InferResponse
from roost.core.tensors import Tensor, from_array
from roost.router.admission import ByteBudget
from roost.router.arena import Arena
from roost.router.validation import Contract

from tests.clients import TRANSPORTS, CallFailed, connect
from tests.fakes import MIB, FakeDataPlane
from tests.integration.grpc_place import INFER, infer_bytes, output_of, serving
from tests.integration.rest_place import Served, announcement, read_answer, serve, until
from tests.integration.test_grpc_limits import stalling_proxy
from tests.models import write_identity
from tests.server import RoostServer, eventually, started, wait_for
from tests.unit import grpc_fakes

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio"), pytest.param(uvloop.new_event_loop, id="uvloop")]
# More than sockets buffer; the last bytes are few enough that writing them would not wait for the client by itself.
ANSWER_BYTES = 8 * MIB + 40_000
SLOW_READERS = 3


class Answers:
    """Makes answers of one value in an arena that has room for ten of them."""

    def __init__(self) -> None:
        self.arena = Arena(10 * ANSWER_BYTES)
        self.budget = ByteBudget(100 * MIB, "answers", Limit.ANSWER_BUDGET)
        self.offsets: Counter[int] = Counter()

    def make(self, fill: int) -> Tensor:
        """An answer as the link hands it on, but that its slot is written here."""
        offset = self.arena.take(ANSWER_BYTES)
        assert offset is not None
        self.offsets[offset] += 1
        self.arena.write(offset, [fill.to_bytes() * ANSWER_BYTES])
        view = self.arena.answer(offset, ANSWER_BYTES, self.budget)
        return Tensor("OUT", "UINT8", (ANSWER_BYTES,), view)

    @property
    def held_bytes(self) -> int:
        """What answers hold that are still referred to."""
        return self.arena.used_bytes + self.budget.used_bytes


class RestPlane(FakeDataPlane):
    """``big`` answers from an arena."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers

    async def run(self, contract: Contract, request: InferRequest) -> list[Tensor]:
        if contract.model == "big":
            return [self.answers.make(int(request.parameters["fill"]))]
        return await super().run(contract, request)


def request_for(fill: int) -> bytes:
    return json.dumps({"inputs": [], "parameters": {"fill": fill, "size": 0, "binary_data_output": True}}).encode()


async def ask_often(served: Served, fills: range) -> None:
    """Answers that come and go while others wait to be read."""
    for fill in fills:
        status, _, data = await served.call("POST", "/v2/models/big/infer", request_for(fill))
        assert status == 200
        assert data[-ANSWER_BYTES:] == fill.to_bytes() * ANSWER_BYTES


async def read_slowly_over_rest() -> None:
    answers = Answers()
    async with serve(RestPlane(answers)) as served:
        slow = []
        for fill in range(1, SLOW_READERS + 1):
            reader, writer = await served.connect(receive_bytes=4096)
            body = request_for(fill)
            writer.write(announcement(len(body)).replace(b"simple", b"big") + body)
            slow.append((fill, reader, writer))
        await until(lambda: answers.budget.used_bytes == SLOW_READERS * ANSWER_BYTES)
        await ask_often(served, range(100, 110))
        async with asyncio.TaskGroup() as group:
            group.create_task(ask_often(served, range(110, 120)))
            for fill, reader, writer in slow:
                _, body = await read_answer(reader)
                assert body[-ANSWER_BYTES:] == fill.to_bytes() * ANSWER_BYTES
                writer.close()
        vanishing, writer = await served.connect(receive_bytes=4096)
        body = request_for(9)
        writer.write(announcement(len(body)).replace(b"simple", b"big") + body)
        assert await vanishing.readexactly(10)
        writer.transport.abort()
        await until(lambda: answers.held_bytes == 0)
    assert max(answers.offsets.values()) >= 10, "slots were to be used again"


async def read_slowly_over_grpc() -> None:
    answers, plane = Answers(), grpc_fakes.FakeDataPlane()

    async def answer(request: InferRequest) -> InferResponse:
        return InferResponse(grpc_fakes.MODEL, "1", [answers.make(request.inputs[0].data[0])])

    plane.on_infer = answer
    may_read = asyncio.Event()
    async with serving(plane) as (port, others), stalling_proxy(port, may_read) as proxy_port:
        options = [("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy_port}", options=options) as channel:
            may_read.set()
            await channel.channel_ready()
            may_read.clear()
            slow = [channel.unary_unary(INFER)(infer_bytes(bytes([fill]))) for fill in range(1, SLOW_READERS + 1)]
            await until(lambda: len(plane.requests) == SLOW_READERS)
            for fill in range(100, 120):
                answer_bytes = await others.unary_unary(INFER)(infer_bytes(bytes([fill])))
                assert output_of(answer_bytes) == bytes([fill]) * ANSWER_BYTES
            may_read.set()
            for fill, call in enumerate(slow, start=1):
                assert output_of(await call) == bytes([fill]) * ANSWER_BYTES
    await until(lambda: answers.held_bytes == 0)
    assert max(answers.offsets.values()) >= 10, "slots were to be used again"


@pytest.mark.parametrize("main", [read_slowly_over_rest, read_slowly_over_grpc])
@pytest.mark.parametrize("loop", LOOPS)
def test_slow_readers_get_the_right_bytes(
    loop: Callable[[], asyncio.AbstractEventLoop], main: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


# -- memory of clients ----------------------------------------------------------------------------------------------

MODELS = {"static": (1, 400_000), "symbolic": (-1, 400_000)}


def test_regions_of_clients_are_read_and_written_whatever_lies_where(tmp_path: Path, repository: Path) -> None:
    """The first request is cold; the second of the model with an open shape has no place for its output yet."""
    size_bytes = 4 * 400_000
    write_identity(repository / "static" / "1" / "model.onnx", "FP32", MODELS["static"])
    write_identity(repository / "symbolic" / "1" / "model.onnx", "FP32", MODELS["symbolic"])
    region = Path("/dev/shm") / f"test-arena-{os.getpid()}"
    part = {"shared_memory_region": "r", "shared_memory_byte_size": size_bytes}
    inputs = [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 400_000], "parameters": part}]
    outputs = [{"name": "OUTPUT0", "parameters": {**part, "shared_memory_offset": size_bytes}}]
    try:
        region.write_bytes(bytes(2 * size_bytes))
        with started(repository, tmp_path / "run", "--allow-client-shm") as server:
            described = {"key": f"/{region.name}", "offset": 0, "byte_size": 2 * size_bytes}
            assert server.post("/v2/systemsharedmemory/region/r/register", described)[0] == 200
            for number in range(1, 5):
                for model in MODELS:
                    content = os.urandom(size_bytes)
                    with region.open("r+b") as file:
                        file.write(content)
                    code, _ = server.post(f"/v2/models/{model}/infer", {"inputs": inputs, "outputs": outputs})
                    assert code == 200
                    assert region.read_bytes() == content * 2, (model, number)
            wait_for(lambda: is_calm(server), "peace")
    finally:
        region.unlink(missing_ok=True)


# -- workers that are killed ----------------------------------------------------------------------------------------

ROUNDS = 5


def arenas_of(server: RoostServer) -> int:
    """How many arenas the server has mapped."""
    maps = Path(f"/proc/{server.pid}/maps").read_text(encoding="utf-8")
    return sum("roost-arena" in line for line in maps.splitlines())


def is_calm(server: RoostServer) -> bool:
    """Whether nothing is under way, or held by what is not."""
    status = server.status()
    workers_are_idle = all(worker["state"] == "up" and not worker["in_flight"] for worker in status["workers"])
    held = (status["queued"], status["body_bytes"], status["answer_bytes"], server.metric("roost_worker_arena_bytes"))
    return workers_are_idle and not any(held)


async def test_killed_workers_leave_nothing(tmp_path: Path, repository: Path) -> None:
    for name, shape in MODELS.items():
        write_identity(repository / name / "1" / "model.onnx", "FP32", shape)
    draw = random.Random(4)
    outcomes: Counter[str] = Counter()
    done = asyncio.Event()

    async def call(transport: str, number: int) -> None:
        array = np.full((1, 400_000), number, np.float32)
        sent = [from_array("INPUT0", "FP32", array)]
        async with connect(server, transport) as client:
            while not done.is_set():
                try:
                    (output,) = (await client.infer(draw.choice(list(MODELS)), sent)).outputs
                except CallFailed as error:
                    outcomes["lost" if error.means(Code.UNAVAILABLE) else str(error)] += 1
                else:
                    outcomes["right" if bytes(output.data) == array.tobytes() else "wrong"] += 1

    with started(repository, tmp_path / "run", "--workers", "1") as server:
        async with connect(server, "rest") as client:
            for name in MODELS:
                await client.infer(name, [from_array("INPUT0", "FP32", np.zeros((1, 400_000), np.float32))])
        await eventually(lambda: is_calm(server), "peace")
        descriptors = psutil.Process(server.pid).num_fds()
        async with asyncio.TaskGroup() as group:
            for number, transport in enumerate(TRANSPORTS * 4):
                group.create_task(call(transport, number))
            for _ in range(ROUNDS):
                goal = outcomes["right"] + draw.randrange(5, 30)
                await eventually(lambda goal=goal: outcomes["right"] >= goal, "more answers")  # type: ignore[misc]
                os.kill(await eventually(lambda: server.status()["workers"][0]["pid"], "a process"), signal.SIGKILL)
            done.set()
        print(outcomes)
        assert set(outcomes) <= {"right", "lost"}
        await eventually(lambda: is_calm(server), "peace")
        await eventually(lambda: psutil.Process(server.pid).num_fds() <= descriptors, "all descriptors closed")
        await eventually(lambda: arenas_of(server) == 1, "the arenas of lost workers gone")
