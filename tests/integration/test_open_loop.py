"""The open-loop generator against a server that answers by script."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from loadtests.open_loop import NoGenerator, Outcome, Picks, Schedule, Target, post, run

pytestmark = pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc")), reason="there is no C compiler")

# The number of the request on its connection and its body give the bytes of the answer; None breaks the connection.
Script = Callable[[int, bytes], bytes | None]


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


@asynccontextmanager
async def serving(script: Script, delay_s: float = 0.0) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                said = script(number, await reader.readexactly(length))
                number += 1
                if said is None:
                    break
                await asyncio.sleep(delay_s)
                writer.write(said)
                await writer.drain()
                if b"connection: close" in said:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**20)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def generate(
    script: Script, *bodies: bytes, delay_s: float = 0.0, picks: Picks | None = None, **schedule: float
) -> Outcome:
    async with serving(script, delay_s) as port:
        target = Target("127.0.0.1", port, [post("/x", body) for body in bodies or (b"a",)])
        values = {"rate_per_s": 400.0, "duration_s": 0.25, "connections": 8, "grace_s": 5.0, **schedule}
        values["connections"] = int(values["connections"])
        return await asyncio.to_thread(run, target, Schedule(**values), picks)  # type: ignore[arg-type]


async def test_requests_go_out_in_turn_and_each_has_its_answer() -> None:
    outcome = await generate(lambda _, body: answer(b"to " + body), b"a", b"b" * 100_000, b"c")
    assert len(outcome.records) == 100
    assert set(outcome.records["status"]) == {200}
    assert sorted(outcome.answers) == [(0, b"to a"), (1, b"to " + b"b" * 100_000), (2, b"to c")]
    asked = [outcome.answers[index][0] for index in outcome.records["answer"]]
    assert asked == [index % 3 for index in range(100)]
    assert (outcome.records["sent_ns"] >= outcome.records["due_ns"]).all()
    assert (outcome.records["done_ns"] > outcome.records["sent_ns"]).all()


async def test_requests_may_be_picked() -> None:
    picks = np.random.default_rng(0).integers(0, 3, 100).astype(np.uint32)
    outcome = await generate(lambda _, body: answer(b"to " + body), b"a", b"b", b"c", picks=picks)
    assert set(outcome.records["status"]) == {200}
    assert [outcome.answers[index][0] for index in outcome.records["answer"]] == picks.tolist()
    assert sorted(outcome.answers) == [(0, b"to a"), (1, b"to b"), (2, b"to c")]


async def test_every_status_is_kept() -> None:
    statuses = ("200 OK", "429 Too Many Requests", "503 Service Unavailable", "500 Internal Server Error")
    outcome = await generate(lambda number, _: answer(b"{}", statuses[number % 4]), connections=1)
    assert [*outcome.records["status"][:4]] == [200, 429, 503, 500]


@pytest.mark.parametrize("announced", [True, False])
async def test_connections_that_end_are_opened_anew(announced: bool) -> None:
    def script(number: int, body: bytes) -> bytes | None:
        if announced:
            return answer(body, headers="connection: close\r\n")
        return None if number % 2 else answer(body)

    outcome = await generate(script)
    answered = int((outcome.records["status"] == 200).sum())
    assert answered == 100 if announced else answered >= 50
    assert set(outcome.records["status"]) <= {0, 200}


async def test_what_waits_for_a_connection_counts_from_its_intended_time() -> None:
    outcome = await generate(lambda _, body: answer(body), delay_s=0.02, connections=1, duration_s=0.1)
    assert set(outcome.records["status"]) == {200}
    assert outcome.records["waited"][1:].all()
    latency_ms = (outcome.records["done_ns"] - outcome.records["due_ns"]) / 1e6
    assert latency_ms[-1] > 500  # 40 of them, one after the other
    assert (np.diff(outcome.records["sent_ns"].astype(np.int64)) >= 0).all()


async def test_what_waits_too_long_for_a_connection_is_not_sent() -> None:
    outcome = await generate(lambda _, body: answer(body), delay_s=0.02, connections=1, duration_s=0.2, give_up_s=0.05)
    sent = outcome.records["status"] == 200
    assert 1 < sent.sum() < len(sent)
    assert not outcome.records["sent_ns"][~sent].any()
    assert outcome.records["waited"][~sent].all()


async def test_what_never_comes_is_given_up_after_the_grace() -> None:
    outcome = await generate(lambda _, body: answer(body), delay_s=60.0, grace_s=0.1)
    assert set(outcome.records["status"]) == {0}
    assert not outcome.records["done_ns"].any()


async def test_a_server_that_is_not_there_is_an_error() -> None:
    async with serving(lambda _, body: answer(body)) as port:
        pass
    with pytest.raises(NoGenerator, match="connect"):
        run(Target("127.0.0.1", port, [post("/x", b"")]), Schedule(10.0, 0.1))
