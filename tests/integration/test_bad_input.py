"""Requests and models that are wrong: the same codes and words over REST and gRPC."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from roost.core.errors import Code
from roost.core.tensors import Tensor, from_array, pack_bytes

from tests.clients import TRANSPORTS, CallFailed, connect, four, sixteen
from tests.models import write_dummy, write_garbage, write_identity, write_simple
from tests.server import RoostServer, started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoostServer]:
    folder = tmp_path_factory.mktemp("bad_input")
    models = folder / "models"
    write_simple(models / "simple" / "1" / "model.onnx")
    write_identity(models / "words" / "1" / "model.onnx", "BYTES")
    write_simple(models / "batched" / "1" / "model.onnx", batch=-1)
    (models / "batched" / "config.pbtxt").write_text("max_batch_size: 4\n")
    write_garbage(models / "garbage" / "1" / "model.onnx")
    write_simple(models / "contradiction" / "1" / "model.onnx")
    (models / "contradiction" / "config.pbtxt").write_text(
        'input { name: "INPUT0" data_type: TYPE_FP32 dims: [1, 16] }\n'
        'input { name: "INPUT1" data_type: TYPE_INT32 dims: [1, 16] }\n'
    )
    write_simple(models / "typo" / "1" / "model.onnx")
    (models / "typo" / "config.pbtxt").write_text("max_batch_sise: 4\n")
    (models / "empty").mkdir(parents=True)
    (models / "no_file" / "1").mkdir(parents=True)
    write_dummy(models / "fails" / "1" / "model.dummy", fail="no luck today", fail_code="INTERNAL")
    with started(models, folder / "run", "--workers", "1") as running:
        yield running


@dataclass(frozen=True)
class Case:
    """A call and how it must end: a code, and words that the message has."""

    code: Code
    words: tuple[str, ...]
    inputs: Sequence[Tensor] = field(default_factory=sixteen)
    model: str = "simple"
    version: str = ""
    outputs: tuple[str, ...] = ()


def _int32(name: str, *shape: int) -> Tensor:
    return from_array(name, "INT32", np.ones(shape, np.int32))


def _words(data: bytes, *shape: int) -> list[Tensor]:
    return [Tensor("INPUT0", "BYTES", shape, data)]


def _second(tensor: Tensor) -> list[Tensor]:
    return [sixteen()[0], tensor]


BAD = Code.INVALID_ARGUMENT
CASES = {
    "unknown model": Case(Code.NOT_FOUND, ("'nope'",), model="nope"),
    "unknown version": Case(Code.NOT_FOUND, ("'simple'", "7"), version="7"),
    "unknown input": Case(BAD, ("'OTHER'", "'simple'", "'INPUT1'"), _second(_int32("OTHER", 1, 16))),
    "missing input": Case(BAD, ("2 inputs", "got 1", "'INPUT1'"), sixteen()[:1]),
    "no inputs": Case(BAD, ("'INPUT0'", "'INPUT1'"), []),
    "input twice": Case(BAD, ("'INPUT0'", "already"), [sixteen()[0], sixteen()[0]]),
    "unknown output": Case(BAD, ("'OTHER'", "'OUTPUT0'"), outputs=("OTHER",)),
    "wrong datatype": Case(
        BAD, ("'INPUT1'", "'FP32'", "'INT32'"), _second(from_array("INPUT1", "FP32", np.ones((1, 16), np.float32)))
    ),
    "unknown datatype": Case(BAD, ("INPUT1", "FP7"), _second(Tensor("INPUT1", "FP7", (1, 16), bytes(64)))),
    "wrong dimension": Case(BAD, ("'INPUT1'", "[1,16]", "[1,8]"), _second(_int32("INPUT1", 1, 8))),
    "wrong rank": Case(BAD, ("'INPUT1'", "[1,16]", "[16]"), _second(_int32("INPUT1", 16))),
    "negative dimension": Case(BAD, ("INPUT1",), _second(Tensor("INPUT1", "INT32", (1, -16), bytes(64)))),
    "huge shape": Case(BAD, ("INPUT1",), _second(Tensor("INPUT1", "INT32", (2**40, 2**40), bytes(64)))),
    "too few bytes": Case(BAD, ("'INPUT1'", "64", "60"), _second(Tensor("INPUT1", "INT32", (1, 16), bytes(60)))),
    "too many bytes": Case(BAD, ("'INPUT1'", "64", "65"), _second(Tensor("INPUT1", "INT32", (1, 16), bytes(65)))),
    "too few strings": Case(BAD, ("'INPUT0'", "2", "1"), _words(pack_bytes([b"a"]), 1, 2), "words"),
    "too many strings": Case(BAD, ("INPUT0", "1"), _words(pack_bytes([b"a", b"b"]), 1, 1), "words"),
    "half a length": Case(BAD, ("INPUT0",), _words(b"\x01\x00", 1, 1), "words"),
    "half a string": Case(BAD, ("INPUT0", "9"), _words(b"\x09\x00\x00\x00abc", 1, 1), "words"),
    "batch too large": Case(
        BAD, ("<= 4", "'batched'", "5"), [_int32("INPUT0", 5, 16), _int32("INPUT1", 5, 16)], "batched"
    ),
    "batches differ": Case(BAD, ("INPUT1", "2", "3"), [_int32("INPUT0", 3, 16), _int32("INPUT1", 2, 16)], "batched"),
    "no batch dimension": Case(BAD, ("[16]", "[-1, 16]"), [_int32("INPUT0", 16), _int32("INPUT1", 16)], "batched"),
    "garbage": Case(Code.UNAVAILABLE, ("'garbage'", "Protobuf parsing failed"), model="garbage"),
    "contradicting config": Case(
        Code.UNAVAILABLE, ("'contradiction'", "INPUT0", "FP32", "INT32"), model="contradiction"
    ),
    "typo in the config": Case(Code.UNAVAILABLE, ("'typo'", "max_batch_sise"), model="typo"),
    "empty folder": Case(Code.UNAVAILABLE, ("'empty'", "no version"), model="empty"),
    "no model file": Case(Code.UNAVAILABLE, ("'no_file'", "model.onnx"), model="no_file"),
    "model fails": Case(Code.INTERNAL, ("no luck today",), four(), "fails"),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_wrong_requests(server: RoostServer, transport: str, case: Case) -> None:
    async with connect(server, transport) as client:
        with pytest.raises(CallFailed) as error:
            await client.infer(case.model, case.inputs, version=case.version, outputs=case.outputs)
        assert error.value.means(case.code), str(error.value)
        for word in case.words:
            assert word in error.value.message
        assert not re.search(r"/tmp|\.py|0x[0-9a-f]{6}", error.value.message)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_what_is_wrong_with_models_shows_and_the_others_serve(server: RoostServer, transport: str) -> None:
    async with connect(server, transport) as client:
        for name in ("garbage", "contradiction", "typo", "empty", "no_file"):
            with pytest.raises(CallFailed):
                await client.infer(name, sixteen())
            assert not await client.is_ready(name)
        assert not await client.is_ready("nope")
        assert await client.is_ready("simple")
        index = await client.index()
        for name, version in (("garbage", "1"), ("contradiction", "1"), ("typo", ""), ("empty", ""), ("no_file", "1")):
            state, reason = index[name, version]
            assert state == "UNAVAILABLE"
            assert reason
        assert index["simple", "1"] == ("READY", "")
        with pytest.raises(CallFailed) as error:
            await client.metadata("nope")
        assert error.value.means(Code.NOT_FOUND)
        assert await client.metadata("simple") == ["INPUT0", "INPUT1"]
        answer = await client.infer("simple", sixteen(5, 2), outputs=["OUTPUT1"])
        assert [(tensor.name, bytes(tensor.data)) for tensor in answer.outputs] == [
            ("OUTPUT1", np.full((1, 16), 3, np.int32).tobytes())
        ]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_model_over_the_budget_evicts_nothing(tmp_path: Path, repository: Path, transport: str) -> None:
    for name, memory_bytes in (("small", 8 << 20), ("large", 200 << 20)):
        write_dummy(repository / name / "1" / "model.dummy")
        (repository / name / "config.pbtxt").write_text(
            f'parameters {{ key: "roost.memory_bytes" value {{ string_value: "{memory_bytes}" }} }}\n'
        )
    flags = ("--workers", "1", "--memory-budget", "100MiB")
    with started(repository, tmp_path / "run", *flags) as server:
        async with connect(server, transport) as client:
            await client.infer("small", four())
            for _ in range(2):
                with pytest.raises(CallFailed) as error:
                    await client.infer("large", four())
                assert error.value.means(Code.RESOURCE_EXHAUSTED)
                assert "'large'" in error.value.message
                assert "200 MiB" in error.value.message
                assert "100 MiB" in error.value.message
            await client.infer("small", four())
        assert server.resident() == {"small"}
        assert server.metric("roost_evictions_total") == 0
        assert server.metric("roost_loads_total", model="small") == 1
        assert server.status()["devices"][0]["used_bytes"] == 8 << 20
