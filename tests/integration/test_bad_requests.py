"""Every malformed request gets the right status and words, harms nobody else, and leaves no memory behind."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc.aio
import pytest
from roost.core.tensors import DATATYPES

from tests.integration import bad_grpc, bad_rest
from tests.integration.bad_requests import BadRequest, BehindPlain, Http, Outcome, Raw, Wires
from tests.models import write_dummy, write_identity, write_simple
from tests.server import RoostServer, started

CASES: dict[str, BadRequest] = {
    **{f"REST: {name}": case for name, case in bad_rest.CASES.items()},
    **{f"gRPC: {name}": case for name, case in bad_grpc.CALLS.items()},
    **{f"shared memory: {name}": case for name, case in bad_grpc.REGIONS.items()},
}
GROWTH_BYTES = 5 << 20
WARM_PASSES = 4
_SECRETS = re.compile(r"/dev/shm|bad_requests|\.py\b|0x[0-9a-f]{6}|Traceback|internal error")
FLAGS = ("--workers", "1", "--model-control", "explicit", "--load-model", "*", "--allow-client-shm")
LIMITS = ("--max-body", "32MiB", "--grpc-max-message-size", "2MiB")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    yield from running(tmp_path_factory.mktemp("bad_requests"), "native")


@pytest.fixture(scope="module")
def server_on_grpcio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    yield from running(tmp_path_factory.mktemp("bad_requests"), "grpcio")


def running(folder: Path, grpc_transport: str) -> Iterator[RoostServer]:
    models = folder / "models"
    write_simple(models / "simple" / "1" / "model.onnx")
    write_identity(models / "words" / "1" / "model.onnx", "BYTES")
    write_identity(models / "numbers" / "1" / "model.onnx", "FP32", (-1,))
    for datatype in DATATYPES:
        write_identity(models / f"identity_{datatype}" / "1" / "model.onnx", datatype)
    text = (("INPUT0", "BYTES", (-1, -1)),), (("OUTPUT0", "BYTES", (-1, -1)),)
    write_dummy(models / "echo_BYTES" / "1" / "model.dummy", *text)
    write_dummy(models / "many" / "1" / "model.dummy", stream=3)
    (models / "many" / "config.pbtxt").write_text("model_transaction_policy { decoupled: true }\n")
    with started(models, folder / "run", *FLAGS, *LIMITS, "--grpc-transport", grpc_transport) as server:
        yield server


@asynccontextmanager
async def wired(server: RoostServer) -> AsyncIterator[Wires]:
    options = [("grpc.max_send_message_length", -1)]
    async with (
        aiohttp.ClientSession(auto_decompress=False, skip_auto_headers={"Accept-Encoding"}) as session,
        grpc.aio.insecure_channel(server.grpc, options) as channel,
    ):
        yield Wires(server, session, channel)


async def next_request_is_served(wires: Wires) -> None:
    outcome = await Http(200, (), bad_rest.valid()).send(wires)
    assert outcome.status == 200, outcome


def wrong(case: BadRequest, outcome: Outcome) -> str:
    """What is wrong with an outcome, empty if nothing is."""
    if outcome.status != case.status:
        return f"expected {case.status}, got {outcome.status}: {outcome.message[:300]}"
    missing = [word for word in case.words if word not in outcome.message]
    if missing:
        return f"no {missing} in: {outcome.message[:300]}"
    found = _SECRETS.search(outcome.message)
    return f"says too much: {outcome.message[:300]}" if found else ""


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len(CASES) >= 80


@pytest.mark.parametrize("name", CASES)
async def test_bad_request(server: RoostServer, name: str) -> None:
    async with wired(server) as wires:
        assert wrong(CASES[name], await CASES[name].send(wires)) == ""
        await next_request_is_served(wires)


# What HEAD is answered with has a length and no body.
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not isinstance(case, (Http, Raw))])
async def test_bad_request_over_grpcio(server_on_grpcio: RoostServer, name: str) -> None:
    async with wired(server_on_grpcio) as wires:
        assert wrong(CASES[name], await CASES[name].send(wires)) == ""


@pytest.mark.parametrize("name", [name for name in bad_rest.CASES if name != "HEAD"])
async def test_bad_request_on_a_connection_that_was_good_before(server: RoostServer, name: str) -> None:
    case = bad_rest.CASES[name]
    assert isinstance(case, (Http, Raw))
    async with wired(server) as wires:
        for at_once in (False, True):
            outcome = await BehindPlain(case, Http(200, (), bad_rest.valid()), at_once).send(wires)
            assert wrong(case, outcome) == "", at_once
        await next_request_is_served(wires)


async def test_nothing_of_them_stays(server: RoostServer) -> None:
    async with wired(server) as wires:

        async def private_bytes_after_all() -> int:
            for case in CASES.values():
                await case.send(wires)
            await next_request_is_served(wires)
            return server.private_bytes()

        # The allocator keeps some of what the large ones took, now more and now less.
        before = max([await private_bytes_after_all() for _ in range(WARM_PASSES)])
        await private_bytes_after_all()
        grown = await private_bytes_after_all() - before
    assert grown < GROWTH_BYTES, f"memory grew by {grown / 2**20:.1f} MiB"
