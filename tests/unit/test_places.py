"""The memory that router and worker share: what lies in it, for how long, and what happens when it is full."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable, Sequence

import pytest
from roost.core.arena import map_arena, running_table
from roost.core.errors import Code, ResourceExhausted
from roost.core.frames import (
    Credit,
    FrameType,
    Region,
    Response,
    Run,
    WireTensor,
    error_frame,
    parse_run,
    response_frame,
)
from roost.core.tensors import Buffer, pack_bytes
from roost.router.admission import AnswerMemory, ByteBudget
from roost.router.arena import WARM_BYTES, Arena
from roost.router.link import WorkerLink
from roost.router.places import ARENA_FROM_BYTES, MAX_INSTANCES, MAX_KINDS

from tests.unit.test_link import FakeTransport, Recorder, feed
from tests.virtual_time import virtual

LARGE = ARENA_FROM_BYTES
SMALL = ARENA_FROM_BYTES - 1


class Bench:
    """A link whose worker is the test, which sees the arena through a map of its own."""

    def __init__(self, size_bytes: int = 1 << 20) -> None:
        self.arena = Arena(size_bytes)
        self.theirs = memoryview(map_arena(self.arena.descriptor))
        self.recorder = Recorder()
        self.transport = FakeTransport()
        self.link = WorkerLink(self.recorder, self.arena)
        self.transport.protocol = weakref.ref(self.link)
        self.link.connection_made(self.transport)

    def send(
        self,
        *inputs: WireTensor,
        outputs: Sequence[WireTensor] = (),
        credit: Credit | None = None,
        instance: int = 4,
        wanted: Sequence[str] = ("y",),
    ) -> Run:
        """Sends run 1 and returns what the worker gets."""
        self.transport.written.clear()
        self.link.send_run(1, Run(instance, 5, inputs, wanted, {"p": 1}, credit), outputs)
        ((header, payload),) = self.transport.frames()
        assert (header.type, header.request) == (FrameType.RUN, 1)
        run = parse_run(payload)
        assert (run.instance, run.deadline_ns, run.credit, dict(run.parameters)) == (instance, 5, credit, {"p": 1})
        assert list(run.outputs) == list(wanted)
        return run

    def answer(self, *outputs: WireTensor, final: bool = True) -> None:
        feed(self.link, b"".join(bytes(b) for b in response_frame(1, Response(outputs, final=final))))

    def bytes_of(self, tensor: WireTensor) -> bytes:
        """What the worker sees."""
        if isinstance(tensor.data, Region):
            return bytes(self.theirs[tensor.data.offset : tensor.data.offset + tensor.data.length])
        assert isinstance(tensor.data, memoryview)
        return bytes(tensor.data)


def tensor(data: Buffer, name: str = "x") -> WireTensor:
    return WireTensor(name, "UINT8", (len(data),), data)


def place(size_bytes: int, name: str = "y") -> WireTensor:
    return WireTensor(name, "UINT8", (size_bytes,), b"")


def test_large_inputs_lie_in_the_arena_and_small_ones_do_not() -> None:
    bench = Bench()
    small, large = os.urandom(SMALL), os.urandom(LARGE)
    rows: list[Buffer] = [large[:10], bytearray(large[10:20_000]), memoryview(large)[20_000:]]
    texts = pack_bytes([b"a" * 20_000] * 5)
    run = bench.send(
        tensor(small, "small"),
        tensor(large, "large"),
        WireTensor("rows", "UINT8", (LARGE,), rows),
        WireTensor("texts", "BYTES", (5,), [texts[:20_004], texts[20_004:]]),
        WireTensor("empty", "UINT8", (0,), b""),
    )
    assert [bench.bytes_of(t) for t in run.inputs] == [small, large, large, texts, b""]
    assert [isinstance(t.data, Region) for t in run.inputs] == [False, True, True, True, False]
    assert bench.link.arena_bytes >= 2 * LARGE + len(texts)
    bench.answer(tensor(b"done", "y"))
    assert bench.link.arena_bytes == 0


def test_an_output_is_viewed_where_the_worker_wrote_it() -> None:
    bench = Bench()
    run = bench.send(outputs=(place(LARGE), place(SMALL, "z"), WireTensor("t", "BYTES", (9,), b"")))
    (y,) = run.places
    assert isinstance(y.data, Region)
    content = os.urandom(LARGE)
    bench.theirs[y.data.offset : y.data.offset + y.data.length] = content
    bench.answer(y, tensor(b"inline", "z"))
    assert bench.recorder.said == [("response", 1, [content, b"inline"])]
    assert bench.recorder.answers.used_bytes == LARGE
    view = bench.recorder.views.pop(0)[0][1:9]
    bench.recorder.views.clear()
    assert bench.link.arena_bytes >= LARGE, "somebody still looks at it"
    assert view == content[1:9]
    del view
    assert (bench.link.arena_bytes, bench.recorder.answers.used_bytes) == (0, 0)


def test_an_answer_that_is_asked_about_next_is_sent_as_it_is() -> None:
    bench = Bench()
    (y,) = bench.send(outputs=(place(LARGE),)).places
    assert isinstance(y.data, Region)
    bench.answer(y)
    view = bench.recorder.views.pop()[0]
    run = bench.send(tensor(view))
    assert run.inputs[0].data == y.data
    del view
    assert bench.link.arena_bytes == LARGE, "the worker reads it"
    bench.answer(tensor(b"done", "y"))
    assert bench.link.arena_bytes == 0


@pytest.mark.parametrize(
    "end",
    [
        lambda bench: bench.answer(tensor(bytes(LARGE + 1), "y")),
        lambda bench: feed(bench.link, error_frame(1, Code.INTERNAL, "broken")),
        lambda bench: feed(bench.link, error_frame(1, Code.CANCELLED, "cancelled")),
    ],
    ids=["answered inline", "failed", "cancelled"],
)
def test_a_run_has_its_slots_until_it_has_ended(end: Callable[[Bench], None]) -> None:
    bench = Bench()
    bench.send(tensor(bytes(LARGE)), outputs=(place(LARGE),))
    bench.link.send_cancel(1)
    assert bench.link.arena_bytes == 2 * LARGE
    end(bench)
    bench.recorder.views.clear()
    assert bench.link.arena_bytes == 0
    assert not bench.transport.aborted


def test_what_does_not_fit_is_inline() -> None:
    bench = Bench(3 * LARGE)
    content = os.urandom(2 * LARGE)
    run = bench.send(
        tensor(content), tensor(content, "second"), outputs=(place(2 * LARGE), place(LARGE, "fits"), place(LARGE, "no"))
    )
    assert [type(t.data) for t in run.inputs] == [Region, memoryview]
    assert [bench.bytes_of(t) for t in run.inputs] == [content, content]
    assert [t.name for t in run.places] == ["fits"]


def test_a_stream_and_an_arena_of_no_size_have_no_places() -> None:
    run = Bench().send(tensor(bytes(LARGE)), outputs=(place(LARGE),), credit=Credit(1, 1))
    assert (type(run.inputs[0].data), run.places) == (Region, ())
    run = Bench(0).send(tensor(bytes(LARGE)), outputs=(place(LARGE),))
    assert (type(run.inputs[0].data), run.places) == (memoryview, ())


def test_a_staged_input_is_sent_as_it_is() -> None:
    bench = Bench()
    content = os.urandom(LARGE)
    staged, other = bench.link.stage(LARGE), Bench().link.stage(LARGE)
    assert staged is not None
    assert other is not None
    staged[:] = other[:] = content
    x = WireTensor("x", "UINT8", (LARGE,), [staged])
    run = bench.send(x, tensor(staged[:], "y"), tensor(other, "z"), tensor(staged[:-1], "part"))
    assert [bench.bytes_of(t) for t in run.inputs] == [content, content, content, content[:-1]]
    offsets = [t.data.offset for t in run.inputs if isinstance(t.data, Region)]
    assert offsets[0] == offsets[1] != offsets[2]
    del staged, x
    assert bench.link.arena_bytes == 2 * LARGE, "the worker may still read it"
    bench.answer(tensor(b"done", "y"))
    assert bench.link.arena_bytes == 0
    assert Bench(0).link.stage(LARGE) is None
    assert Bench().link.stage(SMALL) is None


def test_where_memory_is_scarce_an_answer_does_not_stay() -> None:
    bench = Bench(4 * LARGE)
    run = bench.send(tensor(bytes(LARGE)), outputs=(place(2 * LARGE),))
    assert bench.link.stage(LARGE) is None
    content = bench.bytes_of(run.places[0])
    bench.answer(run.places[0])
    assert bench.recorder.said == [("response", 1, [content])]
    assert isinstance(bench.recorder.views[0][0].obj, AnswerMemory)
    assert (bench.link.arena_bytes, bench.recorder.answers.used_bytes) == (0, 2 * LARGE)


@pytest.mark.parametrize("size_bytes", [1 << 20, 2 * LARGE])
@pytest.mark.parametrize("final", [True, False])
def test_an_answer_over_the_budget_is_refused_and_leaves_nothing(size_bytes: int, final: bool) -> None:
    bench = Bench(size_bytes)
    bench.recorder.answers = ByteBudget(LARGE, "answers")
    run = bench.send(outputs=(place(LARGE, "first"), place(LARGE, "second")))
    bench.answer(*run.places, final=final)
    assert [said[:2] for said in bench.recorder.said] == [("error" if final else "refused", 1)]
    feed(bench.link, error_frame(1, Code.CANCELLED, "cancelled"))
    gc.collect()
    assert (bench.link.arena_bytes, bench.recorder.answers.used_bytes) == (0, 0)


@pytest.mark.parametrize("region", [Region(0, LARGE), Region(4096, LARGE - 1), Region(1 << 40, 1)])
def test_an_answer_in_a_place_that_is_not_its_own_closes_the_link(region: Region) -> None:
    bench = Bench()
    bench.send(outputs=(place(LARGE),))
    bench.answer(WireTensor("y", "UINT8", (region.length,), region))
    assert bench.transport.aborted
    assert not bench.recorder.said


def test_a_place_is_answered_once() -> None:
    bench = Bench()
    (y,) = bench.send(outputs=(place(LARGE),)).places
    bench.answer(y, final=False)
    bench.answer(y)
    assert bench.transport.aborted
    assert len(bench.recorder.said) == 1


@pytest.mark.parametrize("size_bytes", [SMALL, LARGE])
def test_outputs_of_open_shape_get_places_like_the_last_ones(size_bytes: int) -> None:
    """One run shows what is answered to large inputs; of an instance with small ones another has to be looked at."""
    bench = Bench()
    x, y, z = tensor(bytes(size_bytes)), tensor(bytes(LARGE), "y"), tensor(bytes(LARGE + 1), "z")
    texts = WireTensor("t", "BYTES", (1,), pack_bytes([bytes(LARGE)]))
    for _ in range(1 if size_bytes == LARGE else 2):
        assert bench.send(x).places == ()
        bench.answer(y, texts, tensor(b"small", "s"))
    assert [(p.name, p.shape) for p in bench.send(x).places] == [("y", (LARGE,))]
    bench.answer(tensor(bytes(LARGE + 7), "y"))
    assert [(p.name, p.shape) for p in bench.send(x).places] == [("y", (LARGE + 7,))]
    bench.answer(z)
    assert [p.name for p in bench.send(x, outputs=(place(LARGE, "z"),)).places] == ["z"], "given ones come first"
    bench.answer(z)
    sends: list[Callable[[], Run]] = [
        lambda: bench.send(x, instance=5),
        lambda: bench.send(tensor(bytes(LARGE + 2))),
        lambda: bench.send(x, wanted=("y", "z")),
    ]
    for send in sends:
        assert send().places == ()
        feed(bench.link, error_frame(1, Code.INTERNAL, "broken"))
    bench.recorder.views.clear()
    assert bench.link.arena_bytes == 0


@pytest.mark.parametrize(("instances", "kinds"), [(MAX_INSTANCES, 1), (1, MAX_KINDS)])
def test_what_is_learned_is_bounded(instances: int, kinds: int) -> None:
    bench = Bench(16 << 20)

    def places(number: int) -> Sequence[WireTensor]:
        run = bench.send(tensor(bytes(LARGE + number % kinds)), instance=number % instances)
        bench.answer(tensor(bytes(LARGE), "y"))
        return run.places

    most = instances * kinds
    assert [len(places(number)) for number in range(most)] == [0] * most
    bench.send(tensor(bytes(LARGE + kinds)), instance=instances if instances > 1 else 0)
    bench.answer(tensor(bytes(LARGE), "y"))
    assert places(0) == (), "one too many: it begins anew"


def test_answers_outlive_the_worker_and_the_table_says_what_had_begun() -> None:
    bench = Bench()
    (y,) = bench.send(outputs=(place(LARGE),)).places
    bench.answer(y)
    running_table(map_arena(bench.arena.descriptor))[3] = 7
    bench.transport.abort()
    assert [bench.link.has_started(number) for number in (1, 7)] == [False, True]
    ((view, content),) = bench.recorder.views
    del bench.arena, bench.link, bench.transport
    assert view == content


def test_a_slot_may_be_let_go_in_another_thread() -> None:
    bench = Bench()
    (y,) = bench.send(outputs=(place(LARGE),)).places
    bench.answer(y)
    thread = threading.Thread(target=bench.recorder.views.clear)
    thread.start()
    thread.join()
    assert bench.link.arena_bytes == 0


@virtual
async def test_pages_of_a_burst_are_given_back() -> None:
    bench = Bench(8 * WARM_BYTES)

    def resident_bytes() -> int:
        return os.fstat(bench.arena.descriptor).st_blocks * 512

    bench.send(tensor(b"\1" * 3 * WARM_BYTES), tensor(b"\2" * 3 * WARM_BYTES))
    assert resident_bytes() >= 6 * WARM_BYTES
    await asyncio.sleep(60)
    assert resident_bytes() >= 6 * WARM_BYTES, "it is in use"
    bench.answer(tensor(b"done"))
    await asyncio.sleep(60)
    assert resident_bytes() <= WARM_BYTES + (64 << 10)
    run = bench.send(tensor(b"\3" * 3 * WARM_BYTES))
    assert bench.bytes_of(run.inputs[0]) == b"\3" * 3 * WARM_BYTES
    bench.transport.abort()


def test_an_arena_refuses_what_the_budget_does_not_have() -> None:
    arena, budget = Arena(1 << 20), ByteBudget(10, "answers")
    offset = arena.take(11)
    assert offset is not None
    with pytest.raises(ResourceExhausted):
        arena.answer(offset, 11, budget)
    assert (arena.used_bytes, budget.used_bytes) == (0, 0)
