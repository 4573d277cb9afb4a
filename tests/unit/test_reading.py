"""The worker's reading of its link: frames in pieces, quick runs in the reading thread, and who reads if one lasts."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import Cancelled, Code
from roost.core.frames import (
    ALIGNMENT,
    HEADER_BYTES,
    Credit,
    FrameError,
    FrameType,
    Header,
    Run,
    WireTensor,
    control_frame,
    pack_header,
    parse_error,
    parse_response,
    run_frame,
    unpack_header,
)
from roost.core.tensors import Buffer, Parameters, Signature, Tensor
from roost.runtimes.instances import Instance, InstanceTable
from roost.runtimes.link import Frame, Link
from roost.runtimes.protocol import RunHandle
from roost.runtimes.reading import Reading
from roost.runtimes.runs import Runs
from roost.runtimes.shared import Shared

TIMEOUT_S = 30.0
ENDLESS = Credit(1000, 1 << 40)


class Wire:
    """Stands in for a socket; the test is at the other end."""

    def __init__(self) -> None:
        self._incoming: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._left = b""
        self._sent = bytearray()
        self._changed = threading.Condition()
        self.writes = 0

    def recv_into(self, view: memoryview) -> int:
        self._left = self._left or self._incoming.get()
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def sendall(self, data: bytes) -> None:
        with self._changed:
            self._sent += data
            self.writes += 1
            self._changed.notify_all()

    def sendmsg(self, buffers: Sequence[Buffer]) -> int:
        self.sendall(b"".join(buffers))
        return sum(map(len, buffers))

    def feed(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self._incoming.put(chunk)

    def frame(self) -> tuple[Header, bytes]:
        """Waits for the next frame that was sent."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._sent) >= HEADER_BYTES, TIMEOUT_S)
            header = unpack_header(self._sent)
            end = HEADER_BYTES + header.length
            assert self._changed.wait_for(lambda: len(self._sent) >= end, TIMEOUT_S)
            payload = bytes(self._sent[HEADER_BYTES:end])
            del self._sent[:end]
            return header, payload


def link_of(wire: Wire) -> Link:
    return Link(cast(socket.socket, wire))


class Model:
    """Echoes its input, from the thread that it says; with the parameter ``wait`` when ``go`` is set or it is over."""

    signature = Signature((), ())

    def __init__(self) -> None:
        self.thread = ""
        self.waits = threading.Event()
        self.go = threading.Event()

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[str], run: RunHandle) -> Sequence[Tensor]:
        self.thread = threading.current_thread().name
        if run.parameters.get("wait"):
            run.on_cancel(self.go.set)
            self.waits.set()
            assert self.go.wait(TIMEOUT_S)
            if run.cancelled:
                raise Cancelled("cancelled")
        return [Tensor("y", "UINT8", tensor.shape, bytes(tensor.data)) for tensor in inputs]

    def close(self) -> None:
        pass


class Worker:
    """A worker without a process: instances 1 and 2 are loaded, and the runs of 1 are known to be quick."""

    def __init__(self, threads: int = 1) -> None:
        self.wire = Wire()
        self.models = {1: Model(), 2: Model()}
        self.instances = InstanceTable()
        for number, model in self.models.items():
            self.instances.reserve(number)
            self.instances.put(number, model)
        self.link = link_of(self.wire)
        self.runs = Runs(self.link, self.instances, Shared(None), 2, threads)
        self.expect(1, 1000)
        self.failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def expect(self, number: int, duration_ns: int) -> Instance:
        instance = self.instances.get(number)
        assert instance is not None
        for _ in range(3):
            instance.ran(duration_ns, self.runs.quick_ns)
        return instance

    def forget(self, number: int) -> None:
        """Lets an instance's runs be quick again that was found to be slow."""
        self.instances.remove(number)
        self.instances.reserve(number)
        self.instances.put(number, self.models[number])
        self.expect(number, 1000)

    def start(self) -> None:
        self.runs.start()
        self._thread.start()

    def stop(self) -> None:
        self.wire.feed(b"")
        for model in self.models.values():
            model.go.set()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def answer(self, request: int) -> bytes:
        """Waits for a frame, which has to be this run's answer, and gives what it says."""
        header, payload = self.wire.frame()
        assert (header.type, header.request) == (FrameType.RESPONSE, request)
        (output,) = parse_response(payload).outputs
        assert isinstance(output.data, memoryview)
        return bytes(output.data)

    def expect_pong(self) -> None:
        self.wire.feed(control_frame(FrameType.PING, 99))
        header, _ = self.wire.frame()
        assert (header.type, header.request) == (FrameType.PONG, 99)

    def _serve(self) -> None:
        reading = Reading(self.link, self.runs, self._control)
        reading.start()
        try:
            reading.wait()
        except FrameError as error:
            self.failures.append(error)

    def _control(self, header: Header, payload: memoryview) -> None:
        if header.type is FrameType.CANCEL:
            self.runs.cancel(header.request)
        else:
            self.link.send([control_frame(FrameType.PONG, header.request)])


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    made.start()
    yield made
    made.stop()
    assert not made.failures


def run_bytes(
    request: int,
    instance: int = 1,
    data: bytes = b"data",
    parameters: Parameters | None = None,
    credit: Credit | None = None,
) -> bytes:
    tensor = WireTensor("x", "UINT8", (len(data),), data)
    return b"".join(run_frame(request, Run(instance, 0, [tensor], (), parameters or {}, credit)))


def waiting(request: int, data: bytes = b"data") -> bytes:
    return run_bytes(request, 1, data, {"wait": True})


def test_what_is_known_to_be_quick_runs_in_the_thread_that_reads(worker: Worker) -> None:
    threads: list[str] = []
    while "read" not in threads:  # each run may have been held up
        request = len(threads) + 1
        worker.wire.feed(run_bytes(request, 2, b"%d" % request))
        assert worker.answer(request) == b"%d" % request
        threads.append(worker.models[2].thread[:4])
    assert threads[0] == "run-"


@pytest.mark.parametrize(
    ("slow", "quick"),
    [
        ("", False),
        ("-", True),
        ("+", False),
        ("+-", True),
        ("++-", False),
        ("-------+", True),
        ("-+-------+", True),
        ("-+-----+", False),
        ("+-+-+-+-", False),
        ("++-------", True),
    ],
)
def test_which_instances_are_quick(slow: str, quick: bool) -> None:
    instance = Instance(Model())
    for mark in slow:
        instance.ran(1001 if mark == "+" else 1000, 1000)
    assert instance.is_quick == quick


def slow(worker: Worker) -> None:
    worker.expect(1, 50_000_000)


def busy(worker: Worker) -> None:
    held = worker.instances.hold(1)
    assert held is not None


@pytest.mark.parametrize("make", [slow, busy])
def test_what_is_slow_or_busy_is_handed_over(worker: Worker, make: Callable[[Worker], None]) -> None:
    make(worker)
    worker.wire.feed(run_bytes(1))
    worker.answer(1)
    assert worker.models[1].thread.startswith("run-")


def test_streams_are_handed_over(worker: Worker) -> None:
    worker.wire.feed(run_bytes(1, credit=ENDLESS))
    worker.answer(1)
    assert worker.models[1].thread.startswith("run-")


@pytest.mark.parametrize(("threads", "thread"), [(1, "read"), (4, "run-")])
def test_a_worker_with_cpus_to_spare_has_less_patience(threads: int, thread: str) -> None:
    worker = Worker(threads)
    worker.expect(1, 1_000_000)
    worker.start()
    worker.wire.feed(run_bytes(1))
    worker.answer(1)
    assert worker.models[1].thread.startswith(thread)
    worker.stop()


def test_runs_that_come_together_are_answered_together(worker: Worker) -> None:
    worker.wire.feed(b"".join(run_bytes(request, data=b"%d" % request) for request in range(1, 4)))
    for request in range(1, 4):
        assert worker.answer(request) == b"%d" % request
    assert worker.wire.writes < 3


def test_a_quick_run_that_lasts_keeps_nobody_waiting(worker: Worker) -> None:
    model = worker.models[1]
    # What came with it is answered first, and what follows it is read by somebody else, into other memory.
    worker.wire.feed(run_bytes(1) + waiting(2, b"long") + run_bytes(3, 2, b"other"))
    assert worker.answer(1) == b"data"
    assert worker.answer(3) == b"other"
    worker.expect_pong()
    worker.wire.feed(control_frame(FrameType.PING, 5) * 200)
    for _ in range(200):
        assert worker.wire.frame()[0].type is FrameType.PONG
    assert worker.runs.running() == 1
    model.go.set()
    assert worker.answer(2) == b"long"
    assert worker.runs.running() == 0


def test_a_quick_run_that_lasts_can_be_cancelled(worker: Worker) -> None:
    worker.wire.feed(waiting(1))
    assert worker.models[1].waits.wait(TIMEOUT_S)
    worker.wire.feed(control_frame(FrameType.CANCEL, 1))
    header, payload = worker.wire.frame()
    assert (header.type, header.request) == (FrameType.ERROR, 1)
    assert parse_error(payload)[0] is Code.CANCELLED


def test_a_quick_run_that_lasts_keeps_its_instance(worker: Worker) -> None:
    worker.wire.feed(waiting(1))
    worker.expect_pong()
    instance = worker.instances.remove(1)
    assert instance.runs == 1
    worker.models[1].go.set()
    worker.answer(1)
    worker.instances.wait_idle(instance)


def test_the_threads_take_turns(worker: Worker) -> None:
    lasting, other = worker.models.values()
    readers = []
    for request in (1, 2):
        worker.expect(2, 1000)
        worker.wire.feed(waiting(request))
        assert lasting.waits.wait(TIMEOUT_S)
        readers.append(lasting.thread)
        worker.expect_pong()
        worker.wire.feed(run_bytes(100, 2))  # nobody watches, so it must not keep the thread that reads
        worker.answer(100)
        assert other.thread.startswith("run-")
        lasting.go.set()
        worker.answer(request)
        while other.thread.startswith("run-"):  # until the thread that has lost its run watches
            worker.wire.feed(run_bytes(100, 2))
            worker.answer(100)
        lasting.go.clear()
        lasting.waits.clear()
        worker.forget(1)
    assert set(readers) == {"read-0", "read-1"}


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n......", pack_header(FrameType.RUN, 1, 4) + b"\xff" * 4, b"RO"], ids=repr
)
def test_garbage_ends_it(garbage: bytes) -> None:
    worker = Worker()
    worker.start()
    worker.wire.feed(garbage)
    worker.stop()
    assert [type(error) for error in worker.failures] == [FrameError]


FRAMES = st.one_of(
    st.builds(run_bytes, st.integers(1, 9), st.integers(1, 2), st.binary(max_size=300)),
    st.builds(lambda size: run_bytes(1, 1, bytes(range(256)) * size), st.sampled_from([100, 255, 300, 600, 1200])),
    st.builds(lambda request: control_frame(FrameType.PING, request, {"a": 1}), st.integers(1, 9)),
)


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 200_000), max_size=30), st.booleans())
def test_frames_come_whole_however_they_are_cut(frames: list[bytes], cuts: list[int], detaches: bool) -> None:
    data = b"".join(frames)
    wire = Wire()
    at = 0
    for cut in (*cuts, len(data)):
        if data[at : at + cut]:
            wire.feed(data[at : at + cut])
        at += cut
    wire.feed(b"")
    link = link_of(wire)
    came: list[tuple[Frame, bytes]] = []
    while True:
        frame = link.take()
        if frame is None:
            if not link.fill():
                break
            continue
        if frame.header.type is FrameType.RUN:
            address = np.frombuffer(frame.payload, np.uint8).ctypes.data
            assert (address - HEADER_BYTES) % ALIGNMENT == 0
        kept = frame.keep()
        whole = pack_header(frame.header.type, frame.header.request, frame.header.length) + bytes(kept)
        came.append((frame, whole))
        if frame.header.type is FrameType.RUN:
            address = np.frombuffer(kept, np.uint8).ctypes.data
            assert (address - HEADER_BYTES) % ALIGNMENT == 0
        if detaches:
            link.detach()
    assert [whole for _, whole in came] == frames
    if detaches:  # then what was lent stays as it was, too
        assert [bytes(frame.payload) for frame, _ in came] == [whole[HEADER_BYTES:] for whole in frames]
