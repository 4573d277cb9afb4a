"""Models in Python in a real worker, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from roost.core.errors import (
    Cancelled,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    RoostError,
    Unavailable,
)
from roost.core.frames import Credit, Response
from roost.core.tensors import Tensor, from_array

from tests.python_models import DECOUPLED, ONE_TO_ONE, options_of, write_python
from tests.server import wait_for
from tests.worker_client import WorkerClient, arrays_of

ENDLESS = Credit(2**31, 2**40)
HELLO = Path(__file__).parents[2] / "examples" / "hello" / "1" / "model.py"

Load = Callable[[Path], int]


@pytest.fixture(scope="module")
def worker() -> Iterator[WorkerClient]:
    with WorkerClient(kind="python", slots=4) as client:
        yield client


@pytest.fixture
def load(worker: WorkerClient) -> Iterator[Load]:
    """Loads a file; all that were loaded go in the end."""
    loaded: list[int] = []

    def do(file: Path) -> int:
        instance: int = max([*worker.status()["instances"], 0]) + 1
        worker.load(instance, file, options_of(file), backend="python")
        loaded.append(instance)
        return instance

    yield do
    for instance in loaded:
        worker.unload(instance)


def x(*values: float) -> list[Tensor]:
    return [from_array("x", "FP32", np.array(values, np.float32))]


def text(*values: str) -> list[Tensor]:
    return [from_array("do", "BYTES", np.array(values, object))]


def y_of(response: Response) -> list[Any]:
    found: list[Any] = arrays_of(response)["y"].tolist()
    return found


def test_the_example_says_hello(worker: WorkerClient, load: Load) -> None:
    hello = load(HELLO)
    names = from_array("name", "BYTES", np.array([b"Ada", b"Alan"], object))
    assert arrays_of(worker.run(hello, [names]))["greeting"].tolist() == [b"Hello, Ada!", b"Hello, Alan!"]


PLAIN = """
    import asyncio, numpy as np
    from roost.runtimes import Model

    class Twice(Model):
        {kind} predict(self, request):
            {body}
"""
STREAM = "for i in range(int(request['x'][0])):\n                yield {'y': np.float32([i])}"


def plain(folder: Path, kind: str, body: str, config: str = ONE_TO_ONE) -> Path:
    return write_python(folder, PLAIN.format(kind=kind, body=body), config)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("def", "return {'y': request['x'] * 2}"),
        ("def", "yield {'y': request['x'] * 2}"),
        ("async def", "await asyncio.sleep(0); return {'y': request['x'] * 2}"),
        ("async def", "yield {'y': request['x'] * 2}"),
    ],
)
def test_ways_to_answer_once(worker: WorkerClient, load: Load, tmp_path: Path, kind: str, body: str) -> None:
    model = load(plain(tmp_path / "m", kind, body))
    assert y_of(worker.run(model, x(1, 2))) == [2, 4]
    large = np.random.default_rng(0).random(1 << 20, np.float32)
    assert np.array_equal(arrays_of(worker.run(model, x(*large)))["y"], large * 2)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_streams(worker: WorkerClient, load: Load, tmp_path: Path, kind: str) -> None:
    model = load(plain(tmp_path / "m", kind, STREAM, ONE_TO_ONE + DECOUPLED))
    for count in (0, 1, 30):  # more than the credit between worker and process
        request = worker.begin_run(model, x(count), credit=ENDLESS)
        assert [y_of(worker.end_run(request)) for _ in range(count)] == [[i] for i in range(count)]
        last = worker.end_run(request)
        assert (last.final, list(last.outputs)) == (True, [])
    request = worker.begin_run(model, x(1e9), credit=Credit(3, 2**20))
    assert [y_of(worker.end_run(request)) for _ in range(3)] == [[0], [1], [2]]
    worker.cancel(request)
    with pytest.raises(Cancelled):
        worker.end_run(request)
    assert worker.end_run(worker.begin_run(model, x(0), credit=ENDLESS)).final


def test_async_models_answer_several_at_a_time(worker: WorkerClient, load: Load, tmp_path: Path) -> None:
    both = "self.here = getattr(self, 'here', None) or asyncio.Barrier(2); await self.here.wait()"
    model = load(plain(tmp_path / "m", "async def", f"{both}; return {{'y': request['x']}}"))
    requests = [worker.begin_run(model, x(i)) for i in range(2)]
    assert [y_of(worker.end_run(request)) for request in requests] == [[0], [1]]


def test_what_a_model_knows(worker: WorkerClient, load: Load, tmp_path: Path) -> None:
    config = 'output { name: "said" data_type: TYPE_STRING dims: [ -1 ] }\n'
    config += 'parameters { key: "word" value { string_value: "hi" } }\n'
    code = """
        from .beside import WORD
        from roost.runtimes import Model

        class Knows(Model):
            inputs = {"x": ("FP32", [-1])}

            def predict(self, request):
                print("asked", request.parameters)
                known = [self.name, self.version, self.folder.name, self.parameters["word"], WORD]
                return {"said": [*known, str(request.parameters["a"]), *request.outputs, str(request.cancelled)]}
    """
    file = write_python(tmp_path / "knows", code, config)
    (file.parent / "beside.py").write_text("WORD = 'beside'")
    response = worker.run(load(file), x(1), outputs=["said"], parameters={"a": 7})
    said = [element.decode() for element in arrays_of(response)["said"]]
    assert said == ["knows", "1", "1", "hi", "beside", "7", "said", "False"]
    wait_for(lambda: "model: asked {'a': 7} model=knows version=1 worker=0" in worker.stderr(), "what it printed")


TRITON = """
    import json, threading
    import numpy as np
    import triton_python_backend_utils as pb_utils

    class TritonPythonModel:
        def initialize(self, args):
            self.config = json.loads(args["model_config"])
            assert args["model_instance_kind"] == "CPU"
            assert pb_utils.get_model_dir().endswith(args["model_name"] + "/" + args["model_version"])
            y = pb_utils.get_output_config_by_name(self.config, "y")
            assert y["dims"] == [-1]
            self.dtype = pb_utils.triton_string_to_numpy(y["data_type"])
            self.decoupled = pb_utils.using_decoupled_model_transaction_policy(self.config)

        def execute(self, requests):
            return [self.answer(request) for request in requests] if not self.decoupled else self.begin(requests)

        def answer(self, request):
            asked = json.loads(request.parameters())
            if "fail" in asked:
                error = pb_utils.TritonError("not today", pb_utils.TritonError.NOT_FOUND)
                return pb_utils.InferenceResponse(output_tensors=[], error=error)
            pb_utils.Logger.log_warn("asked for " + ",".join(request.requested_output_names()))
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            y = x * asked.get("factor", 1) + request.correlation_id()
            return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("y", y.astype(self.dtype))])

        def begin(self, requests):
            for request in requests:
                threading.Thread(target=self.stream, args=(request,)).start()

        def stream(self, request):
            sender = request.get_response_sender()
            for i in range(int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy()[0])):
                y = pb_utils.Tensor("y", np.array([i], self.dtype))
                sender.send(pb_utils.InferenceResponse([y]))
            if "fail" in request.parameters():
                return  # the sender is dropped
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        def finalize(self):
            pb_utils.Logger.log_info("that was it")
"""


def test_a_model_written_for_triton(worker: WorkerClient, tmp_path: Path) -> None:
    file = write_python(tmp_path / "triton", TRITON)
    worker.load(1, file, options_of(file), backend="python")
    assert y_of(worker.run(1, x(1, 2))) == [1, 2]
    assert y_of(worker.run(1, x(1, 2), parameters={"factor": 3, "sequence_id": 5})) == [8, 11]
    with pytest.raises(NotFound, match="not today"):
        worker.run(1, x(1), parameters={"fail": True})
    worker.unload(1)
    log = worker.stderr()
    assert "WARNING model: asked for y" in log
    assert "INFO    model: that was it" in log


def test_a_decoupled_model_written_for_triton(worker: WorkerClient, load: Load, tmp_path: Path) -> None:
    model = load(write_python(tmp_path / "triton", TRITON, ONE_TO_ONE + DECOUPLED))
    requests = [worker.begin_run(model, x(count), credit=ENDLESS) for count in (20, 0, 3)]
    for request, count in zip(requests, (20, 0, 3), strict=True):
        assert [y_of(worker.end_run(request)) for _ in range(count)] == [[i] for i in range(count)]
        assert worker.end_run(request).final
    request = worker.begin_run(model, x(1), parameters={"fail": 1}, credit=ENDLESS)
    assert y_of(worker.end_run(request)) == [0]
    with pytest.raises(Internal, match="through its response sender"):
        worker.end_run(request)


def test_a_triton_model_that_says_what_it_takes(worker: WorkerClient, load: Load, tmp_path: Path) -> None:
    code = """
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            @staticmethod
            def auto_complete_config(config):
                config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [2]})
                config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [2]})
                config.set_max_batch_size(4)
                return config

            async def execute(self, requests):
                return [pb_utils.InferenceResponse([pb_utils.Tensor("y", r.inputs()[0].as_numpy())]) for r in requests]
    """
    file = write_python(tmp_path / "m", code, "")
    found = worker.load(99, file, options_of(file), backend="python")["signature"]
    assert (found["inputs"], found["outputs"]) == ([["x", "FP32", [-1, 2], False]], [["y", "FP32", [-1, 2], False]])
    worker.unload(99)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import not_there", "the module 'not_there' is not installed"),
        ("def f(:\n  pass", "model.py, line 1: invalid syntax"),
        ("import sys; sys.exit(3)", "model.py: it called sys.exit"),
        ("import os; os._exit(3)", "its process ended with exit code 3 while it was loaded"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV while it was loaded"),
        ("raise RuntimeError(__file__)", "model.py: RuntimeError: model.py"),
        ("x = 1", "neither a class derived from roost.runtimes.Model nor a TritonPythonModel"),
        ("import os; os.closerange(3, 99)", "while it was loaded"),
        (PLAIN.format(kind="def", body="pass\n        def load(self): raise ValueError('no luck')"), "no luck"),
        (
            "class TritonPythonModel:\n  def execute(self, r): pass\n  def initialize(self, a): 1 / 0",
            "ZeroDivisionError",
        ),
    ],
)
def test_bad_models_are_refused(worker: WorkerClient, tmp_path: Path, code: str, message: str) -> None:
    file = write_python(tmp_path / "bad", code)
    with pytest.raises(InvalidArgument, match=message) as caught:
        worker.load(50, file, options_of(file), backend="python")
    assert str(tmp_path) not in caught.value.message


def test_what_a_class_says_of_itself_is_checked(worker: WorkerClient, tmp_path: Path) -> None:
    outputs = 'inputs = {"x": ("FP32", [-1])}; outputs = {"y" * 70_000: ("FP32", [-1])}'
    file = write_python(tmp_path / "bad", f"from roost.runtimes import Model\nclass Bad(Model):\n    {outputs}", "")
    with pytest.raises(InvalidArgument, match="a name of 70000 bytes"):
        worker.load(50, file, options_of(file), backend="python")


def test_code_has_to_be_allowed(worker: WorkerClient, tmp_path: Path) -> None:
    file = write_python(tmp_path / "m", "import os; os.abort()")
    with pytest.raises(FailedPrecondition, match="--allow-code"):
        worker.load(50, file, {}, backend="python")


DOES = """
    import os, re, subprocess, sys, time
    import numpy as np
    from roost.core.errors import InvalidArgument
    from roost.runtimes import Model

    class Strange(Exception):
        def __init__(self):
            self.lock = __import__("threading").Lock()

        def __str__(self):
            raise ValueError

    class Does(Model):
        def load(self):
            self.count = 0

        def predict(self, request):
            what = request["do"][0].decode()
            self.count += 1
            return getattr(self, what)() or {"y": np.float32([self.count])}

        def fine(self): pass
        def names(self): return {"z": 1}
        def dtype(self): return {"y": np.zeros(1)}
        def shape(self): return {"y": np.zeros((1, 1), np.float32)}
        def strange(self): raise Strange
        def exit(self): sys.exit(1)
        def forked(self): os.fork()
        def chdir(self): os.chdir("/"); os.environ.clear()
        def blames(self): raise InvalidArgument("no such thing")
        def segfault(self): __import__("ctypes").string_at(0)
        def leaves(self): os._exit(7)
        def prints(self): sys.stdout.write(("spam " * 20 + "\\n") * 200_000); print("last words")
        def spins(self): re.match(r"(a+)+$", "a" * 64 + "b")
        def moves(self): os.setpgid(0, os.getpgid(os.getppid())); self.spins()
        def child(self): subprocess.Popen(["sleep", "1000"], process_group=None)
        def daemon(self): return {"y": np.float32([subprocess.Popen(["sleep", "1000"], start_new_session=True).pid])}
        def spams(self):
            subprocess.Popen(["yes", "spam"], start_new_session=True)
            os._exit(5)
        def signals(self): os.kill(os.getpid(), 40)
        def interrupts(self): raise KeyboardInterrupt
        def closes(self): os.close(1); os.close(2); raise ValueError("and goes on")
"""
DO = """
input { name: "do" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
parameters { key: "cancel_grace_s" value { string_value: "0.05" } }
"""


def test_bad_runs_harm_nobody_else(worker: WorkerClient, load: Load, tmp_path: Path) -> None:
    model = load(write_python(tmp_path / "does", DOES, DO))
    expected: list[tuple[str, type[RoostError], str]] = [
        ("names", Internal, "gave an output 'z'"),
        ("dtype", Internal, "'y' should be FP32: it is float64"),
        ("shape", Internal, r"shape \[1\], it has \[1, 1\]"),
        ("strange", Internal, "the model failed: Strange"),
        ("exit", Internal, "the model failed: it called sys.exit"),
        ("missing", Internal, "AttributeError"),
        ("blames", InvalidArgument, "no such thing"),
        ("interrupts", Internal, "the model failed: KeyboardInterrupt"),
    ]
    for what, error, message in expected:
        with pytest.raises(error, match=message):
            worker.run(model, text(what))
    for what in ("forked", "chdir", "child", "prints"):
        worker.run(model, text(what))
    assert y_of(worker.run(model, text("fine"))) == [13]  # all in the same process
    wait_for(lambda: "lines were left out" in worker.stderr(), "the end of the flood")
    assert len(worker.stderr()) < 1 << 20
    with pytest.raises(Internal, match="and goes on"):
        worker.run(model, text("closes"))
    ends = {
        "segfault": "was ended by SIGSEGV",
        "leaves": "ended with exit code 7",
        "signals": "was ended by signal 40",
        "spams": "ended with exit code 5",
    }
    for what, message in ends.items():
        with pytest.raises(Unavailable, match=f"the model's process {message}"):
            worker.run(model, text(what))
        assert y_of(worker.run(model, text("fine"))) == [1]  # a new one


@pytest.mark.parametrize("what", ["spins", "moves"])
def test_a_model_that_spins_is_ended(worker: WorkerClient, load: Load, tmp_path: Path, what: str) -> None:
    model = load(write_python(tmp_path / "does", DOES, DO))
    request = worker.begin_run(model, text(what))
    worker.wait_until_begun(request)
    worker.cancel(request)
    with pytest.raises(Cancelled):
        worker.end_run(request)
    assert y_of(worker.run(model, text("fine"))) == [1]


def test_a_load_that_spins_is_given_up(worker: WorkerClient, tmp_path: Path) -> None:
    file = write_python(tmp_path / "m", "import re\nre.match(r'(a+)+$', 'a' * 64 + 'b')")
    request = worker.begin_load(60, file, options_of(file), backend="python")
    worker.cancel(request)
    with pytest.raises(Cancelled):
        worker.end(request)


def test_processes_end_with_their_worker_and_model(tmp_path: Path) -> None:
    file = write_python(tmp_path / "does", DOES, DO)
    with WorkerClient(kind="python") as worker:
        for instance in (1, 2):
            worker.load(instance, file, options_of(file), backend="python")
            worker.run(instance, text("child"))
        parent = psutil.Process(worker.process.pid)
        assert len(parent.children(recursive=True)) == 4
        worker.unload(1)
        hosts = parent.children()
        assert (len(hosts), len(parent.children(recursive=True))) == (1, 2)
        (sleeper,) = hosts[0].children()
        os.kill(worker.process.pid, signal.SIGKILL)
        hosts[0].wait(30)
        sleeper.kill()  # what it has started lives on


def test_daemons_end_with_their_model_and_with_a_worker_that_ends_well(tmp_path: Path) -> None:
    file = write_python(tmp_path / "does", DOES, DO)
    with WorkerClient(kind="python") as worker:
        daemons = []
        for instance in (1, 2):
            worker.load(instance, file, options_of(file), backend="python")
            daemons.append(psutil.Process(int(y_of(worker.run(instance, text("daemon")))[0])))
        worker.unload(1)
        daemons[0].wait(30)
        assert daemons[1].is_running()
    daemons[1].wait(30)


@pytest.mark.parametrize(
    "body", ["raise asyncio.CancelledError", "asyncio.get_running_loop().stop(); await asyncio.sleep(9)"]
)
def test_who_cancels_himself_was_not_cancelled(worker: WorkerClient, load: Load, tmp_path: Path, body: str) -> None:
    model = load(plain(tmp_path / "m", "async def", body))
    with pytest.raises(Internal, match="the model failed: CancelledError"):
        worker.run(model, x(1))


def test_a_model_has_its_own_environment(worker: WorkerClient, load: Load, tmp_path: Path) -> None:
    code = """
        import sys, only_here
        from roost.runtimes import Model

        class Own(Model):
            def predict(self, request):
                assert sys.prefix.endswith("venv"), sys.prefix
                return {"y": request["x"] + only_here.ONE}
    """
    file = write_python(tmp_path / "own", code)
    venv = file.parent.parent / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "only_here.py").write_text("ONE = 1")
    (packages / "numpy.pth").write_text(str(Path(np.__file__).parents[1]))
    assert y_of(worker.run(load(file), x(1))) == [2]


def test_instance_groups_are_processes(worker: WorkerClient, load: Load, tmp_path: Path) -> None:
    code = """
        import os
        from roost.runtimes import Model

        class Who(Model):
            outputs = {"pid": ("INT64", [])}

            def predict(self, request):
                for path in (f"{request['x'][0]:.0f}", f"{1 - request['x'][0]:.0f}"):
                    here = self.folder.parent / path
                    here.touch() if path == f"{request['x'][0]:.0f}" else None
                    while not here.exists():
                        pass
                return {"pid": os.getpid()}
    """
    config = 'input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }\ninstance_group { count: 2 kind: KIND_CPU }'
    model = load(write_python(tmp_path / "who", code, config))
    requests = [worker.begin_run(model, x(i)) for i in range(2)]  # each waits for the other
    assert len({arrays_of(worker.end_run(request))["pid"].item() for request in requests}) == 2
