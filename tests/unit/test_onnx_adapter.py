"""The ONNX Runtime adapter: signatures, runs of every datatype, and whose fault an error is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from roost.core.errors import Cancelled, InvalidArgument, ResourceExhausted, RoostError
from roost.core.tensors import DATATYPES, Tensor, TensorSpec, from_array, pack_bytes, to_array, unpack_bytes
from roost.runtimes.link import aligned_buffer
from roost.runtimes.onnx import OnnxModel, OnnxRuntime
from roost.runtimes.protocol import Cancellation, LoadSpec, Place, RunHandle

from tests.models import (
    tensor_info,
    write_garbage,
    write_graph,
    write_identity,
    write_loop,
    write_mlp,
    write_simple,
)
from tests.scarcity import no_descriptors
from tests.worker_client import simple_inputs


def load(path: Path) -> OnnxModel:
    return OnnxRuntime().load(LoadSpec(str(path), str(path.parent)))


def run(model: OnnxModel, *inputs: Tensor, outputs: tuple[str, ...] = ()) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in model.run(inputs, outputs, RunHandle())}


def test_simple_adds_and_subtracts(tmp_path: Path) -> None:
    outputs = run(load(write_simple(tmp_path / "model.onnx")), *simple_inputs(3, 5))
    assert to_array(outputs["OUTPUT0"]).tolist() == [[8] * 16]
    assert to_array(outputs["OUTPUT1"]).tolist() == [[-2] * 16]


def test_only_the_outputs_asked_for_come_back(tmp_path: Path) -> None:
    model = load(write_simple(tmp_path / "model.onnx"))
    assert list(run(model, *simple_inputs(), outputs=("OUTPUT1",))) == ["OUTPUT1"]


def test_signature_says_what_the_model_says(tmp_path: Path) -> None:
    model = load(write_identity(tmp_path / "model.onnx", "FP16", ("n", 3, None)))
    assert model.signature.inputs == (TensorSpec("INPUT0", "FP16", (-1, 3, -1)),)
    assert model.signature.outputs[0].datatype == "FP16"


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
@pytest.mark.parametrize("shape", [(2, 3), (0, 3)])
def test_identity_of_every_datatype(tmp_path: Path, datatype: str, shape: tuple[int, ...]) -> None:
    model = load(write_identity(tmp_path / "model.onnx", datatype))
    size = int(np.prod(shape)) * DATATYPES[datatype].itemsize
    data = bytes(size) if datatype == "BOOL" else bytes(range(1, size + 1))
    output = run(model, Tensor("INPUT0", datatype, shape, data))["OUTPUT0"]
    assert (output.datatype, output.shape, bytes(output.data)) == (datatype, shape, data)


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BOOL"])
def test_scalars(tmp_path: Path, datatype: str) -> None:
    model = load(write_identity(tmp_path / "model.onnx", datatype, ()))
    assert model.signature.inputs[0].shape == ()
    data = b"\x01" * DATATYPES[datatype].itemsize
    output = run(model, Tensor("INPUT0", datatype, (), data))["OUTPUT0"]
    assert (output.shape, bytes(output.data)) == ((), data)


@pytest.mark.parametrize("elements", [[b"", b"a\x00b", "ü".encode(), b"x" * 1000], []])
def test_strings(tmp_path: Path, elements: list[bytes]) -> None:
    model = load(write_identity(tmp_path / "model.onnx", "BYTES", (-1,)))
    output = run(model, Tensor("INPUT0", "BYTES", (len(elements),), pack_bytes(elements)))["OUTPUT0"]
    assert unpack_bytes(output.data) == elements


def test_strings_that_are_not_utf8_are_the_callers_fault(tmp_path: Path) -> None:
    model = load(write_identity(tmp_path / "model.onnx", "BYTES", (-1,)))
    with pytest.raises(InvalidArgument, match=r"'INPUT0'.*UTF-8"):
        run(model, Tensor("INPUT0", "BYTES", (1,), pack_bytes([b"\xff"])))


def test_received_memory_is_used_in_place(tmp_path: Path) -> None:
    block = aligned_buffer(64)
    block[:] = bytes(64)
    array = to_array(Tensor("x", "FP32", (16,), block.toreadonly()))
    assert array.ctypes.data == np.frombuffer(block, np.uint8).ctypes.data
    assert array.ctypes.data % 64 == 0


def handle_with(**places: Place) -> RunHandle:
    handle = RunHandle()
    handle.places = places
    return handle


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
@pytest.mark.parametrize("rows", [0, 1, 2**18])
def test_an_output_with_a_place_is_what_it_is_without(tmp_path: Path, datatype: str, rows: int) -> None:
    model = load(write_identity(tmp_path / "model.onnx", datatype))
    size = rows * 8 * DATATYPES[datatype].itemsize
    pattern = b"\x00\x01" if datatype == "BOOL" else bytes(range(1, 117))
    data = (pattern * (size // len(pattern) + 1))[:size]
    x = Tensor("INPUT0", datatype, (rows, 8), data)
    memory = aligned_buffer(size)
    (output,) = model.run([x], (), handle_with(OUTPUT0=Place(datatype, (rows, 8), memory)))
    assert (output.datatype, output.shape, bytes(output.data)) == (datatype, (rows, 8), data)
    if datatype != "BF16" and rows == 2**18:
        assert output.data is memory


@pytest.mark.parametrize(
    ("datatype", "shape"), [("FP32", (1024, 512)), ("FP32", (512 * 1024,)), ("FP64", (512, 512))], ids=str
)
def test_outputs_that_do_not_fit_their_places_come_without(
    tmp_path: Path, datatype: str, shape: tuple[int, ...]
) -> None:
    model = load(write_identity(tmp_path / "model.onnx", "FP32"))
    array = np.random.default_rng(0).random((512, 1024), np.float32)
    memory = aligned_buffer(array.nbytes)
    handle = handle_with(OUTPUT0=Place(datatype, shape, memory))
    (output,) = model.run([from_array("INPUT0", "FP32", array)], (), handle)
    assert output.data is not memory
    assert np.array_equal(to_array(output), array)


def test_some_outputs_have_places_and_some_do_not(tmp_path: Path) -> None:
    rows = 2**15
    model = load(write_simple(tmp_path / "model.onnx", -1))
    memory = aligned_buffer(rows * 64)
    handle = handle_with(OUTPUT1=Place("INT32", (rows, 16), memory))
    outputs = {tensor.name: tensor for tensor in model.run(simple_inputs(3, 5, rows), (), handle)}
    assert outputs["OUTPUT1"].data is memory
    assert (to_array(outputs["OUTPUT0"]) == 8).all()
    assert (to_array(outputs["OUTPUT1"]) == -2).all()


def test_an_input_that_is_an_output_goes_to_its_place(tmp_path: Path) -> None:
    info = tensor_info("x", "FP32", ("n", 1024))
    model = load(write_graph(tmp_path / "model.onnx", [], [info], [info]))
    array = np.random.default_rng(0).random((512, 1024), np.float32)
    handle = handle_with(x=Place("FP32", array.shape, aligned_buffer(array.nbytes)))
    (output,) = model.run([from_array("x", "FP32", array)], (), handle)
    assert np.array_equal(to_array(output), array)


def test_a_cancelled_run_with_places_ends(tmp_path: Path) -> None:
    model = load(write_loop(tmp_path / "model.onnx"))
    handle = handle_with(**{model.signature.outputs[0].name: Place("INT64", (2**18,), aligned_buffer(2**21))})
    handle.cancel()
    with pytest.raises(Cancelled):
        model.run([from_array("n", "INT64", np.array(2**60))], (), handle)


BAD_INPUTS: dict[str, tuple[Callable[[], list[Tensor]], str]] = {
    "missing": (lambda: simple_inputs()[:1], "'INPUT1' is missing"),
    "unknown": (lambda: [*simple_inputs(), Tensor("X", "INT32", (0,), b"")], "unexpected input 'X'"),
    "shape": (lambda: [from_array(f"INPUT{i}", "INT32", np.zeros((1, 3), np.int32)) for i in (0, 1)], "INPUT"),
    "rank": (lambda: [from_array(f"INPUT{i}", "INT32", np.zeros(16, np.int32)) for i in (0, 1)], "[Rr]ank"),
    "datatype": (lambda: [from_array(f"INPUT{i}", "FP32", np.zeros((1, 16), np.float32)) for i in (0, 1)], "type"),
    "bytes": (lambda: [Tensor(f"INPUT{i}", "INT32", (1, 16), b"123") for i in (0, 1)], "Expected 64, got 3"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_the_callers_fault(tmp_path: Path, case: str) -> None:
    model = load(write_simple(tmp_path / "model.onnx"))
    inputs, message = BAD_INPUTS[case]
    with pytest.raises(InvalidArgument, match=message):
        run(model, *inputs())


def test_unknown_output_is_the_callers_fault(tmp_path: Path) -> None:
    model = load(write_simple(tmp_path / "model.onnx"))
    with pytest.raises(InvalidArgument, match="'NOPE'"):
        run(model, *simple_inputs(), outputs=("NOPE",))


def test_shapes_that_do_not_go_together_are_the_callers_fault(tmp_path: Path) -> None:
    infos = [tensor_info(name, "FP32", [name]) for name in ("a", "b", "c")]
    path = write_graph(tmp_path / "model.onnx", [helper.make_node("Add", ["a", "b"], ["c"])], infos[:2], infos[2:])
    with pytest.raises(InvalidArgument, match="3 by 4"):
        run(load(path), *(from_array(n, "FP32", np.zeros(size, np.float32)) for n, size in (("a", 3), ("b", 4))))


def write_unknown_operator(path: Path) -> Path:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    return write_graph(path, [node], [tensor_info("x", "FP32", [1])], [tensor_info("y", "FP32", [1])])


def write_sequence(path: Path) -> Path:
    sequence: Any = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
    return write_graph(
        path, [helper.make_node("SequenceLength", ["x"], ["n"])], [sequence], [tensor_info("n", "INT64", [])]
    )


def write_future(path: Path) -> Path:
    model = onnx.load(str(write_simple(path)))
    model.ir_version = 99
    onnx.save(model, str(path))
    return path


def write_names_that_are_no_text(path: Path) -> Path:
    write_identity(path, "FP32", ["one"])
    path.write_bytes(path.read_bytes().replace(b"INPUT0", b"\xff" * 6))
    return path


def write_without_its_data(path: Path) -> Path:
    write_mlp(path, (16, 64, 4), save_as_external_data=True, location="weights.bin", size_threshold=10)
    (path.parent / "weights.bin").unlink()
    return path


def write_with_data_outside(path: Path) -> Path:
    write_mlp(path, (16, 64, 4), save_as_external_data=True, location="weights.bin", size_threshold=10)
    (path.parent / "weights.bin").rename(path.parent.parent / "weights.bin")
    model = onnx.load(str(path), load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            entry.value = "../weights.bin" if entry.key == "location" else entry.value
    onnx.save(model, str(path))
    return path


def write_empty(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    return path


def write_nothing(path: Path) -> Path:
    return path


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (write_garbage, "Protobuf parsing failed"),
        (write_empty, "No graph"),
        (write_nothing, "doesn't exist"),
        (write_unknown_operator, "NoSuchOperator"),
        (write_sequence, r"'x' is a seq\(tensor\(float\)\)"),
        (write_future, "IR version: 99"),
        (write_names_that_are_no_text, "an input of the model has names that are not UTF-8"),
        (write_without_its_data, "does not exist"),
        (write_with_data_outside, "escapes"),
    ],
)
def test_broken_models_say_why_and_show_no_paths(tmp_path: Path, write: Callable[[Path], Path], reason: str) -> None:
    path = write(tmp_path / "a folder" / "1" / "model.onnx")
    with pytest.raises(InvalidArgument, match=reason) as caught:
        load(path)
    message = caught.value.message
    assert str(tmp_path) not in message
    assert str(tmp_path.parent) not in message
    assert "onnxruntime_src" not in message
    assert "ONNXRuntimeError" not in message
    assert "\n" not in message


def test_external_data_in_the_models_folder_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_mlp(path, (16, 64, 4), save_as_external_data=True, location="weights.bin", size_threshold=10)
    output = run(load(path), from_array("x", "FP32", np.ones((2, 16), np.float32)))["y"]
    assert output.shape == (2, 4)


def test_want_of_descriptors_is_no_fault_of_the_model(tmp_path: Path) -> None:
    path = write_simple(tmp_path / "model.onnx")
    with no_descriptors(), pytest.raises(ResourceExhausted, match="not enough file descriptors"):
        load(path)
    load(path)


def test_a_cancelled_run_ends(tmp_path: Path) -> None:
    model = load(write_loop(tmp_path / "model.onnx"))
    handle = RunHandle()
    handle.cancel()
    with pytest.raises(Cancelled):
        model.run([from_array("n", "INT64", np.array(2**60))], (), handle)


def test_a_cancelled_load_ends(tmp_path: Path) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    path = write_simple(tmp_path / "model.onnx")
    with pytest.raises(Cancelled):
        OnnxRuntime().load(LoadSpec(str(path), str(tmp_path), cancellation=cancellation))


def test_bf16_beside_strings_is_refused(tmp_path: Path) -> None:
    infos = [tensor_info("a", "BF16", [1]), tensor_info("s", "BYTES", [1])]
    outs = [tensor_info("b", "BF16", [1]), tensor_info("t", "BYTES", [1])]
    nodes = [helper.make_node("Identity", ["a"], ["b"]), helper.make_node("Identity", ["s"], ["t"])]
    with pytest.raises(RoostError, match="BF16"):
        load(write_graph(tmp_path / "model.onnx", nodes, infos, outs))


def test_times_are_in_order(tmp_path: Path) -> None:
    model = load(write_simple(tmp_path / "model.onnx"))
    handle = RunHandle()
    handle.begin()
    model.run(simple_inputs(), (), handle)
    times = handle.times()
    steps = [
        times.input_start,
        times.input_end,
        times.infer_start,
        times.infer_end,
        times.output_start,
        times.output_end,
    ]
    assert steps == sorted(steps)
    assert steps[0] > 0


def _shape_taking(path: Path, op: str) -> OnnxModel:
    return load(
        write_graph(
            path,
            [helper.make_node(op, ["x", "shape"], ["y"])],
            [tensor_info("x", "FP32", ["n"]), tensor_info("shape", "INT64", ["rank"])],
            [tensor_info("y", "FP32", None)],
        )
    )


@pytest.mark.parametrize(
    ("op", "shape", "sentence"),
    [
        ("Expand", [2**31] * 3, "overflow"),
        ("Expand", [-5], "must be >= 0"),
        ("Reshape", [4, 2], "cannot be reshaped"),
        ("Reshape", [-5], "cannot be less than -1"),
    ],
)
def test_reasons_are_sentences_without_sources(tmp_path: Path, op: str, shape: list[int], sentence: str) -> None:
    model = _shape_taking(tmp_path / "model.onnx", op)
    x = from_array("x", "FP32", np.ones(1, np.float32))
    with pytest.raises(InvalidArgument, match=sentence) as caught:
        run(model, x, from_array("shape", "INT64", np.array(shape)))
    for leak in ("::", ".h:", ".cc:", "onnxruntime", "ONNXRuntimeError", "const "):
        assert leak not in caught.value.message


@pytest.mark.parametrize(
    "options",
    [
        {"intra_op_thread_count": "1024", "inter_op_thread_count": "2", "execution_mode": "1"},
        {"intra_op_thread_count": "0", "execution_mode": "0"},
        *({"graph_level": level} for level in ("off", "basic", "extended", "all")),
    ],
)
def test_options_of_a_configuration(tmp_path: Path, options: dict[str, str]) -> None:
    path = write_simple(tmp_path / "model.onnx")
    model = OnnxRuntime().load(LoadSpec(str(path), str(path.parent), options=options))
    assert to_array(run(model, *simple_inputs(3, 5))["OUTPUT0"]).tolist() == [[8] * 16]
