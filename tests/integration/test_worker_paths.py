"""The short ways through a real worker process: runs in the thread that reads, and tensors in shared memory."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from roost.core.arena import RUNNING_BYTES
from roost.core.errors import Cancelled, Unimplemented
from roost.core.frames import FrameType, Region, Run, WireTensor

from tests.models import write_dummy, write_simple
from tests.worker_client import TIMEOUT_S, WorkerClient, arrays_of, rows, simple_inputs


@pytest.fixture
def worker() -> Iterator[WorkerClient]:
    with WorkerClient() as client:
        yield client


def test_pings_status_and_loads_are_answered_during_a_run_that_was_to_be_quick(
    worker: WorkerClient, tmp_path: Path
) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy"))
    worker.make_quick(1, rows())
    request = worker.begin_run(1, rows(7), parameters={"run_s": TIMEOUT_S})
    assert worker.control(FrameType.PING) == {}
    assert worker.status()["running"] == 1
    worker.load(2, write_simple(tmp_path / "model.onnx"))
    assert worker.run(2, simple_inputs()).final
    unload = worker.begin(FrameType.UNLOAD, instance=1)
    worker.unload(2)
    worker.cancel(request)
    with pytest.raises(Cancelled):
        worker.end_run(request)
    assert worker.end(unload)["instance"] == 1


def test_a_hung_run_that_was_to_be_quick_hangs_nobody_else(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy"))
    worker.make_quick(1, rows())
    worker.begin_run(1, rows(), parameters={"hang": True})
    for count in range(1, 20):
        assert arrays_of(worker.run(1, rows(count)))["OUTPUT0"].shape == (count, 4)
    worker.sock.shutdown(socket.SHUT_WR)
    assert worker.process.wait(TIMEOUT_S) == 0


def test_an_idle_worker_sleeps(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy"))
    worker.make_quick(1, rows())

    def times_woken() -> int:
        threads = Path(f"/proc/{worker.process.pid}/task").iterdir()
        return sum(
            int((thread / "status").read_text().split("\nvoluntary_ctxt_switches:")[1].split()[0]) for thread in threads
        )

    woken = -1
    while woken != times_woken():  # it ends once the worker does not look out for slow runs any more
        woken = times_woken()
        time.sleep(0.2)


def test_tensors_in_shared_memory(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_simple(tmp_path / "model.onnx", -1))
    shape = (2**15, 16)
    size = 2**15 * 64
    regions = [Region(RUNNING_BYTES + i * size, size) for i in range(4)]
    arrays = [np.random.default_rng(i).integers(0, 9, shape, np.int32) for i in range(2)]
    for array, region in zip(arrays, regions, strict=False):
        worker.arena[region.offset : region.offset + size] = array.tobytes()
    inputs = [WireTensor(f"INPUT{i}", "INT32", shape, regions[i]) for i in range(2)]
    for expected in (shape, (2**15 - 1, 16)):
        places = [
            WireTensor("OUTPUT0", "INT32", shape, regions[2]),
            WireTensor("OUTPUT1", "INT32", expected, regions[3]),
        ]
        response = worker.end_run(worker.send_run(Run(1, 0, inputs, places=places)))
        first, second = response.outputs
        assert first.data == regions[2]
        assert np.array_equal(array_at(worker, regions[2], shape), arrays[0] + arrays[1])
        if expected == shape:
            assert second.data == regions[3]
            assert np.array_equal(array_at(worker, regions[3], shape), arrays[0] - arrays[1])
        else:  # it is none that its place was made for
            assert isinstance(second.data, memoryview)
            assert np.array_equal(np.frombuffer(second.data, np.int32).reshape(shape), arrays[0] - arrays[1])
    assert worker.stderr() == ""


def array_at(worker: WorkerClient, region: Region, shape: tuple[int, ...]) -> npt.NDArray[np.int32]:
    return np.frombuffer(worker.arena, np.int32, region.length // 4, region.offset).reshape(shape)


def test_a_worker_without_shared_memory(tmp_path: Path) -> None:
    with WorkerClient(has_arena=False) as worker:
        worker.load(1, write_simple(tmp_path / "model.onnx"))
        assert arrays_of(worker.run(1, simple_inputs(3, 4)))["OUTPUT0"].tolist() == [[7] * 16]
        region = WireTensor("INPUT0", "INT32", (1, 16), Region(RUNNING_BYTES, 64))
        with pytest.raises(Unimplemented):
            worker.end_run(worker.send_run(Run(1, 0, [region])))
