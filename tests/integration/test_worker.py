"""A real worker process on a socket pair, with the test in the router's place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from roost.core.errors import (
    AlreadyExists,
    Cancelled,
    Code,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    RoostError,
    Unimplemented,
)
from roost.core.frames import (
    VERSION,
    Credit,
    FrameType,
    Region,
    Run,
    WireTensor,
    control_frame,
    credit_frame,
    pack_header,
    parse_error,
)
from roost.core.tensors import Parameters, Tensor, from_array
from roost.runtimes.protocol import NOT_LOADED

from tests.models import write_dummy, write_garbage, write_loop, write_mlp, write_simple
from tests.worker_client import TIMEOUT_S, WorkerClient, arrays_of, rows, simple_inputs

MIB = 1 << 20
ENDLESS = Credit(2**31, 2**40)


@pytest.fixture
def worker() -> Iterator[WorkerClient]:
    with WorkerClient() as client:
        yield client


def long_run(worker: WorkerClient, tmp_path: Path) -> int:
    """Starts an ONNX run that only a cancellation ends, and waits until it has begun."""
    worker.load(90, write_loop(tmp_path / "loop" / "model.onnx"))
    request = worker.begin_run(90, [from_array("n", "INT64", np.array(2**60))])
    worker.wait_until_begun(request)
    return request


def test_hello() -> None:
    with WorkerClient(slots=3, epoch=7, dummy=False) as worker:
        assert worker.hello == {
            "version": VERSION,
            "kind": "onnx",
            "epoch": 7,
            "pid": worker.process.pid,
            "slots": 3,
            "runtimes": ["onnxruntime"],
        }


def test_the_worker_imports_no_network_stack() -> None:
    code = (
        "import sys, roost.runtimes.worker, roost.runtimes.executor, roost.runtimes.onnx, roost.runtimes.dummy\n"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('google', 'grpc', 'aiohttp') or m == 'roost.proto']\n"
        "sys.exit(' '.join(bad) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_load_run_unload(worker: WorkerClient, tmp_path: Path) -> None:
    loaded = worker.load(1, write_simple(tmp_path / "model.onnx"))
    assert loaded["instance"] == 1
    assert loaded["load_ns"] > 0
    assert loaded["private_bytes"] > 0
    assert loaded["signature"]["inputs"][0] == ["INPUT0", "INT32", [1, 16], False]
    response = worker.run(1, simple_inputs(3, 4))
    assert response.final
    assert arrays_of(response)["OUTPUT0"].tolist() == [[7] * 16]
    assert response.times.infer_end >= response.times.infer_start > 0
    assert worker.status()["instances"] == [1]
    assert worker.unload(1)["instance"] == 1
    assert worker.status()["instances"] == []
    with pytest.raises(FailedPrecondition, match=NOT_LOADED):
        worker.run(1, simple_inputs())
    assert worker.stderr() == ""


def test_a_run_of_an_unknown_instance_is_not_started(worker: WorkerClient) -> None:
    frame = worker.wait_for(worker.begin_run(5, simple_inputs()))
    assert frame.type is FrameType.ERROR
    assert parse_error(frame.payload) == (Code.FAILED_PRECONDITION, NOT_LOADED)


def test_ids_are_used_once(worker: WorkerClient, tmp_path: Path) -> None:
    path = write_simple(tmp_path / "model.onnx")
    worker.load(1, path)
    with pytest.raises(AlreadyExists):
        worker.load(1, path)
    worker.unload(1)
    with pytest.raises(NotFound):
        worker.unload(1)
    worker.load(1, path)


def test_an_id_that_is_being_loaded_exists(worker: WorkerClient, tmp_path: Path) -> None:
    path = write_dummy(tmp_path / "model.dummy", load_s=TIMEOUT_S)
    first = worker.begin_load(1, path)
    with pytest.raises(AlreadyExists):
        worker.load(1, path)
    worker.cancel(first)
    with pytest.raises(Cancelled):
        worker.end(first)
    with pytest.raises(NotFound):
        worker.unload(1)


def test_a_broken_model_is_reported_and_the_worker_goes_on(worker: WorkerClient, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="Protobuf parsing failed") as caught:
        worker.load(1, write_garbage(tmp_path / "bad" / "model.onnx"))
    assert str(tmp_path) not in caught.value.message
    worker.load(1, write_simple(tmp_path / "good" / "model.onnx"))
    assert worker.stderr() == ""


def test_bad_requests_leave_the_worker_and_its_log_alone(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_simple(tmp_path / "model.onnx"))
    with pytest.raises(InvalidArgument):
        worker.run(1, simple_inputs()[:1])
    with pytest.raises(InvalidArgument):
        worker.run(1, [from_array(f"INPUT{i}", "INT32", np.zeros((2, 2), np.int32)) for i in (0, 1)])
    for fields in ({}, {"instance": "x"}, {"instance": 2, "backend": "onnxruntime", "path": "p"}):
        with pytest.raises(InvalidArgument):
            worker.control(FrameType.LOAD, **fields)
    with pytest.raises(Internal, match="no runtime 'torch'"):
        worker.control(FrameType.LOAD, instance=2, backend="torch", path="p", root="r")
    with pytest.raises(Unimplemented):
        worker.control(FrameType.REGION_ADD)
    region = WireTensor("INPUT0", "INT32", (1, 16), Region(2**63, 64))
    with pytest.raises(Internal, match="'INPUT0' is not in the memory"):
        worker.end_run(worker.send_run(Run(1, 0, [region])))
    assert worker.run(1, simple_inputs()).final
    assert worker.stderr() == ""


def test_errors_of_models(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy"))
    with pytest.raises(ResourceExhausted, match="too much"):
        worker.run(1, rows(), parameters={"fail": "too much", "fail_code": "RESOURCE_EXHAUSTED"})
    with pytest.raises(Internal, match=r"error [0-9a-f]{8} in the log"):
        worker.run(1, rows(), parameters={"run_s": "no number"})
    assert "could not convert string to float" in worker.stderr()
    with pytest.raises(InvalidArgument, match="not today"):
        worker.load(2, write_dummy(tmp_path / "2" / "model.dummy", fail_load="not today"))


def test_a_late_run_is_not_started(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_simple(tmp_path / "model.onnx"))
    request = worker.begin_run(1, simple_inputs(), deadline_ns=time.monotonic_ns() - 1)
    frame = worker.wait_for(request)
    assert frame.type is FrameType.ERROR
    assert parse_error(frame.payload)[0] is Code.DEADLINE_EXCEEDED
    assert worker.run(1, simple_inputs(), deadline_ns=time.monotonic_ns() + 10**12).final


def test_a_deadline_that_passes_in_the_queue(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy"))
    first = worker.begin_run(1, rows(), parameters={"run_s": TIMEOUT_S})
    worker.wait_until_begun(first)
    deadline_ns = time.monotonic_ns() + 10**6
    second = worker.begin_run(1, rows(), deadline_ns=deadline_ns)
    while time.monotonic_ns() <= deadline_ns:
        worker.control(FrameType.PING)
    worker.cancel(first)
    with pytest.raises(DeadlineExceeded):
        worker.end_run(second)


def test_a_cancelled_run_ends_and_frees_its_slot(worker: WorkerClient, tmp_path: Path) -> None:
    request = long_run(worker, tmp_path)
    worker.cancel(request)
    with pytest.raises(Cancelled):
        worker.end_run(request)
    worker.load(1, write_simple(tmp_path / "model.onnx"))
    assert worker.run(1, simple_inputs()).final
    worker.cancel(request)  # too late, and harmless
    assert worker.status()["running"] == 0


def test_a_run_cancelled_in_the_queue_never_starts(worker: WorkerClient, tmp_path: Path) -> None:
    first = long_run(worker, tmp_path)
    worker.load(1, write_simple(tmp_path / "model.onnx"))
    second = worker.begin_run(1, simple_inputs())
    third = worker.begin_run(1, simple_inputs(1, 1))
    worker.cancel(second)
    worker.cancel(first)
    frame = worker.wait_for(second)
    assert frame.type is FrameType.ERROR
    assert parse_error(frame.payload)[0] is Code.CANCELLED
    assert arrays_of(worker.end_run(third))["OUTPUT0"].tolist() == [[2] * 16]


def test_pings_status_and_loads_are_answered_during_runs(worker: WorkerClient, tmp_path: Path) -> None:
    request = long_run(worker, tmp_path)
    assert worker.control(FrameType.PING) == {}
    assert worker.status()["running"] == 1
    worker.load(1, write_simple(tmp_path / "model.onnx"))
    worker.unload(1)
    worker.cancel(request)


def test_runs_and_pings_are_answered_during_a_load(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_simple(tmp_path / "model.onnx"))
    load = worker.begin_load(2, write_dummy(tmp_path / "model.dummy", load_s=TIMEOUT_S))
    assert worker.control(FrameType.PING) == {}
    assert worker.run(1, simple_inputs()).final
    worker.cancel(load)
    with pytest.raises(Cancelled):
        worker.end(load)


def test_a_cancelled_load_of_a_session_ends_one_way_or_the_other(worker: WorkerClient, tmp_path: Path) -> None:
    load = worker.begin_load(1, write_mlp(tmp_path / "model.onnx", (2000, 2000, 2000)))
    worker.cancel(load)
    try:
        worker.end(load)
    except Cancelled:
        assert worker.status()["instances"] == []
    else:
        worker.unload(1)


def test_as_many_runs_at_a_time_as_slots(tmp_path: Path) -> None:
    with WorkerClient(slots=2) as worker:
        worker.load(1, write_dummy(tmp_path / "model.dummy"))
        first = worker.begin_run(1, rows(), parameters={"run_s": TIMEOUT_S})
        worker.wait_until_begun(first)
        assert worker.run(1, rows()).final
        worker.cancel(first)


def test_an_instance_that_is_unloaded_finishes_its_runs(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy"))
    runs = [worker.begin_run(1, rows(), parameters={"run_s": 0.05}) for _ in range(2)]
    unload = worker.begin(FrameType.UNLOAD, instance=1)
    with pytest.raises(FailedPrecondition, match=NOT_LOADED):
        worker.run(1, rows())
    frames = [worker.wait_for(request, FrameType.RESPONSE) for request in runs]
    assert len(frames) == 2
    assert worker.end(unload)["instance"] == 1


def test_unloading_gives_memory_back(worker: WorkerClient, tmp_path: Path) -> None:
    path = write_mlp(tmp_path / "model.onnx", (1500, 1500, 1500, 10))
    inputs = [from_array("x", "FP32", np.ones((64, 1500), np.float32))]
    worker.load(0, path)
    worker.run(0, inputs)
    before = worker.unload(0)["private_bytes"]
    loaded = [worker.load(instance, path)["private_bytes"] for instance in (1, 2, 3, 4)][-1]
    for instance in (1, 2, 3, 4):
        worker.run(instance, inputs)
    after = [worker.unload(instance)["private_bytes"] for instance in (1, 2, 3, 4)][-1]
    assert loaded > before + 60 * MIB
    assert after < before + 8 * MIB


def test_the_ballast_of_a_dummy_counts(worker: WorkerClient, tmp_path: Path) -> None:
    before = worker.status()["private_bytes"]
    path = write_dummy(tmp_path / "model.dummy", load_bytes=64 * MIB)
    assert worker.load(1, path)["private_bytes"] > before + 60 * MIB
    assert worker.unload(1)["private_bytes"] < before + 8 * MIB


def test_dummy_models(worker: WorkerClient, tmp_path: Path) -> None:
    outputs = [("OUTPUT0", "FP32", (-1, 4))] + [(n, "INT64", (-1, 1)) for n in ("count", "pid", "batch", "sequence")]
    worker.load(1, write_dummy(tmp_path / "model.dummy", outputs=outputs, state=True))
    arrays = [arrays_of(worker.run(1, rows(3))) for _ in range(2)]
    assert arrays[1]["OUTPUT0"].tolist() == np.ones((3, 4)).tolist()
    assert [a["count"].tolist() for a in arrays] == [[[1]] * 3, [[2]] * 3]
    assert arrays[0]["pid"][0, 0] == worker.process.pid
    assert arrays[0]["batch"][0, 0] == 3
    request = worker.begin_run(1, rows(), parameters={"stream": 3}, outputs=["sequence"], credit=ENDLESS)
    responses = [worker.end_run(request) for _ in range(3)]
    assert [(r.sequence, r.final) for r in responses] == [(0, False), (1, False), (2, True)]
    assert [arrays_of(r)["sequence"].tolist() for r in responses] == [[[0]], [[1]], [[2]]]


@pytest.mark.parametrize(
    ("credit", "then", "sent"),
    [(Credit(2, MIB), Credit(1, 1), [2, 3]), (Credit(9, 20), Credit(9, 28), [2, 3]), (Credit(9, 1), ENDLESS, [1, 5])],
    ids=["responses", "bytes", "one that is larger than all credit"],
)
def test_a_stream_sends_as_much_as_it_has_credit_for(
    worker: WorkerClient, tmp_path: Path, credit: Credit, then: Credit, sent: list[int]
) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy", stream=5, close_empty=True))
    request = worker.begin_run(1, rows(), credit=credit)
    came = 0
    for count in sent:
        while came < count:
            assert worker.end_run(request).sequence == came
            came += 1
        if count < 5:
            ping = worker.begin(FrameType.PING)
            assert worker.read().request == ping, "a response came for which there was no credit"
            assert worker.status()["running"] == 1
            worker.send([credit_frame(request, then)])
    worker.cancel(request)
    worker.load(2, write_simple(tmp_path / "model.onnx"))
    assert worker.run(2, simple_inputs()).final


def test_how_dummy_streams_end(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy", [("n", "INT32", (1,))], [("n", "INT32", (1,))]))
    cases: list[tuple[Parameters, int, int | None]] = [
        ({"stream": 2}, 1, 1),
        ({"stream": 0}, 0, 0),
        ({"stream": 2, "close_empty": True, "interval_s": 0.001}, 2, 0),
        ({"stream_from_input": True}, 2, 1),
        ({"stream": 5, "fail_after": 2, "fail": "enough"}, 2, None),
    ]
    for parameters, count, last in cases:
        inputs = [from_array("n", "INT32", np.array([3]))]
        request = worker.begin_run(1, inputs, parameters=parameters, credit=ENDLESS)
        assert [worker.end_run(request).final for _ in range(count)] == [False] * count
        if last is None:
            with pytest.raises(Internal, match="enough"):
                worker.end_run(request)
        else:
            response = worker.end_run(request)
            assert (response.final, len(response.outputs)) == (True, last)


@pytest.mark.parametrize("stream", [0, 2, 3])
def test_a_model_that_is_not_decoupled_answers_exactly_once(worker: WorkerClient, tmp_path: Path, stream: int) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy", stream=stream))
    with pytest.raises(Internal, match="did not answer exactly once"):
        worker.run(1, rows())
    assert worker.run(1, rows(), parameters={"stream": 1}).final
    assert worker.status()["running"] == 0


@pytest.mark.parametrize("interval_s", [0, TIMEOUT_S], ids=["without credit", "between two responses"])
def test_a_stream_that_waits_is_cancelled(worker: WorkerClient, tmp_path: Path, interval_s: float) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy", stream=10, interval_s=interval_s))
    request = worker.begin_run(1, rows(), credit=Credit(1, MIB))
    assert not worker.end_run(request).final
    worker.cancel(request)
    with pytest.raises(Cancelled):
        worker.end_run(request)
    worker.send([credit_frame(request, ENDLESS)])  # too late, and harmless
    assert worker.run(1, rows(), parameters={"stream": 1}).final


def test_large_tensors_arrive_whole(worker: WorkerClient, tmp_path: Path) -> None:
    shape = (-1, 1 << 20)
    worker.load(1, write_dummy(tmp_path / "model.dummy", [("a", "FP32", shape)], [("b", "FP32", shape)]))
    array = np.random.default_rng(0).random((16, 1 << 20), dtype=np.float32)
    assert np.array_equal(arrays_of(worker.run(1, [from_array("a", "FP32", array)]))["b"], array)


def test_many_runs_in_flight_are_all_answered(tmp_path: Path) -> None:
    with WorkerClient(slots=4) as worker:
        worker.load(1, write_simple(tmp_path / "model.onnx"))
        runs = {worker.begin_run(1, simple_inputs(i, 1)): i for i in range(200)}
        for request, i in runs.items():
            assert arrays_of(worker.end_run(request))["OUTPUT0"][0, 0] == i + 1
        assert worker.status()["running"] == 0


def test_what_does_not_fit_into_memory_is_refused(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_simple(tmp_path / "simple" / "model.onnx"))
    path = write_mlp(tmp_path / "large" / "model.onnx", (4000, 4000, 4000, 4000))
    process = psutil.Process(worker.process.pid)
    limit = process.memory_info().vms + 96 * MIB
    process.rlimit(psutil.RLIMIT_AS, (limit, limit))
    request = worker.begin_run(1, [Tensor("INPUT0", "UINT8", (256 * MIB,), bytes(256 * MIB))])
    with pytest.raises(ResourceExhausted, match="no memory"):
        worker.end_run(request)
    with pytest.raises(ResourceExhausted, match="not enough memory"):
        worker.load(2, path)
    assert worker.run(1, simple_inputs()).final


def test_want_of_descriptors_is_no_fault_of_the_model(worker: WorkerClient, tmp_path: Path) -> None:
    model = write_simple(tmp_path / "model.onnx")
    process = psutil.Process(worker.process.pid)
    before = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (3, before[1]))  # it has those
    with pytest.raises(ResourceExhausted, match="not enough file descriptors"):
        worker.load(1, model)
    process.rlimit(psutil.RLIMIT_NOFILE, before)
    worker.load(1, model)
    assert worker.run(1, simple_inputs()).final


@pytest.mark.parametrize("when", ["load", "run"])
def test_a_crash_closes_the_link(tmp_path: Path, when: str) -> None:
    runs: list[int] = []
    with WorkerClient() as worker:
        load = worker.begin_load(1, write_dummy(tmp_path / "model.dummy", crash=when))
        if when == "run":
            worker.end(load)
            runs = worker.begin_runs(2, 1, rows())
        with pytest.raises((EOFError, ConnectionResetError)):
            worker.read()
        assert [worker.has_begun(request) for request in runs] == [True, False][: len(runs)]
        assert worker.process.wait(TIMEOUT_S) == -signal.SIGABRT


def test_end_of_file_ends_the_worker_in_mid_run(worker: WorkerClient, tmp_path: Path) -> None:
    worker.load(1, write_dummy(tmp_path / "model.dummy", hang="run"))
    worker.wait_until_begun(worker.begin_run(1, rows()))
    worker.begin_load(2, write_dummy(tmp_path / "2" / "model.dummy", hang="load"))
    worker.sock.shutdown(socket.SHUT_WR)
    assert worker.process.wait(TIMEOUT_S) == 0
    assert worker.stderr() == ""


@pytest.mark.parametrize(
    "data",
    [
        pack_header(FrameType.RUN, 1, 100)[:10],
        pack_header(FrameType.RUN, 1, 100) + b"half",
        pack_header(FrameType.RUN, 1, 4) + b"\xff\xff\xff\xff",
        pack_header(FrameType.LOAD, 1, 1) + b"{",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        control_frame(FrameType.PING, 1)[:2] + b"\x09" + control_frame(FrameType.PING, 1)[3:],
    ],
    ids=["half a header", "half a payload", "no run", "no JSON", "no frame", "another version"],
)
def test_broken_frames_end_the_worker(worker: WorkerClient, data: bytes) -> None:
    worker.sock.sendall(data)
    worker.sock.shutdown(socket.SHUT_WR)
    assert worker.process.wait(TIMEOUT_S) == 1
    assert "the link is broken" in worker.stderr()
    assert "Traceback" not in worker.stderr()


def test_a_router_that_does_not_read_and_goes_leaves_no_worker(worker: WorkerClient, tmp_path: Path) -> None:
    shape = (1 << 22,)
    worker.load(1, write_dummy(tmp_path / "model.dummy", [("a", "UINT8", shape)], [("b", "UINT8", shape)]))
    request = worker.begin_run(1, [Tensor("a", "UINT8", shape, bytes(1 << 22))])
    worker.wait_until_begun(request)
    worker.sock.close()
    assert worker.process.wait(TIMEOUT_S) == 0
    assert worker.stderr() == ""


def test_interrupts_are_for_the_router(worker: WorkerClient) -> None:
    worker.process.send_signal(signal.SIGINT)
    assert worker.control(FrameType.PING) == {}
    assert worker.process.poll() is None


def test_children_of_models_do_not_see_the_link(worker: WorkerClient) -> None:
    process = Path(f"/proc/{worker.process.pid}")
    sockets = [link.name for link in (process / "fd").iterdir() if os.readlink(link).startswith("socket:")]
    assert len(sockets) == 1
    info = dict(line.split(":", 1) for line in (process / "fdinfo" / sockets[0]).read_text().splitlines())
    assert int(info["flags"], 8) & os.O_CLOEXEC


def test_errors_are_neutral(worker: WorkerClient, tmp_path: Path) -> None:
    with pytest.raises(RoostError) as caught:
        worker.load(1, tmp_path / "missing.onnx")
    assert caught.value.code is Code.INVALID_ARGUMENT
