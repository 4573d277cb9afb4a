"""Files that claim what is not so: sizes of archives and tensors, and what models say of themselves."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence

import pytest
from roost.core.errors import Code, FailedPrecondition, InvalidArgument, RoostError
from roost.core.frames import HEADER_BYTES, error_frame, parse_error
from roost.core.tensors import Signature, TensorSpec
from roost.runtimes.archive_limits import FREE_BYTES, MAX_ENTRIES, MAX_RATIO, check_sizes
from roost.runtimes.failures import without_paths, without_source
from roost.runtimes.pytorch.storages import check_tensors
from roost.runtimes.signatures import check_signature

from tests.torch_archive import Entries

MIB = 1 << 20


@pytest.mark.parametrize(
    ("entries", "archive_bytes", "message"),
    [
        ([FREE_BYTES], 100, ""),
        ([FREE_BYTES, 1], 100, "100 B would become more than 64 MiB"),
        ([MAX_RATIO * 2 * MIB], 2 * MIB, ""),
        ([MAX_RATIO * 2 * MIB + 1], 2 * MIB, "2 MiB would become more than 200 MiB"),
        ([0] * (MAX_ENTRIES + 1), MIB, "more than 100000 entries"),
    ],
)
def test_what_an_archive_may_become(entries: Sequence[int], archive_bytes: int, message: str) -> None:
    if not message:
        check_sizes(entries, archive_bytes)
        return
    with pytest.raises(InvalidArgument, match=message):
        check_sizes(entries, archive_bytes)


GOOD = TensorSpec("x", "FP32", (-1, 4))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GOOD, ""),
        (TensorSpec("", "FP32", ()), "a name of 0 bytes"),
        (TensorSpec("y" * 5000, "FP32", ()), "a name of 5000 bytes"),
        (TensorSpec("\ud800", "FP32", ()), "not valid Unicode"),
        (TensorSpec("y", "FP7", ()), "'y' of the model has no datatype"),
        (TensorSpec("y", "FP32", (1,) * 33), "'y' of the model has 33 dimensions"),
        (TensorSpec("y", "FP32", (-2,)), "'y' of the model has a dimension"),
        (TensorSpec("y", "FP32", (2**63,)), "'y' of the model has a dimension"),
        (GOOD, "two outputs called 'x'"),
    ],
)
def test_what_a_model_may_say_of_itself(spec: TensorSpec, message: str) -> None:
    outputs = (GOOD, spec) if message.startswith("two") else (spec,)
    if not message:
        check_signature(Signature((GOOD,), outputs))
        return
    with pytest.raises(InvalidArgument, match=message) as caught:
        check_signature(Signature((GOOD,), outputs))
    json.dumps(caught.value.message).encode()


def value(*items: object) -> bytes:
    """A pickle's opcodes for a tuple of numbers, texts and opcodes."""
    parts = [item if isinstance(item, bytes) else pickle.dumps(item, 2)[2:-1] for item in items]
    return b"(" + b"".join(parts) + b"t"


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tensor(
    count: object = 6,
    offset: object = 0,
    size: Sequence[object] = (2, 3),
    stride: Sequence[object] = (3, 1),
    key: object = "0",
    type_: bytes = named("torch", "FloatStorage"),
    view: bytes = named("torch._utils", "_rebuild_tensor_v2"),
) -> bytes:
    """A pickle of a tensor as PyTorch writes it."""
    storage = value("storage", type_, key, "cpu", count) + b"Q"
    arguments = value(storage, offset, value(*size), value(*stride), False, named("collections", "OrderedDict") + b")R")
    return b"\x80\x02" + view + arguments + b"R."


LARGER = "a tensor is larger than what the archive has of it"


@pytest.mark.parametrize("part", ["data", "constants"])
@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (tensor(), None, ""),
        (tensor(size=(3, 2), stride=(1, 3)), None, ""),
        (tensor(size=(1000, 6), stride=(0, 1)), None, ""),
        (tensor(size=(0, 9), stride=(99, 99)), None, ""),
        (tensor(size=(), stride=()), None, ""),
        (named("__torch__.Net", "Module") + b")\x81}b.", None, ""),
        (tensor(count=7), InvalidArgument, LARGER),
        (tensor(type_=named("torch", "DoubleStorage")), InvalidArgument, LARGER),
        (tensor(key="1"), InvalidArgument, LARGER),
        (tensor(offset=1), InvalidArgument, LARGER),
        (tensor(offset=-1), InvalidArgument, LARGER),
        (tensor(size=(2, 4)), InvalidArgument, LARGER),
        (tensor(size=(2, 3), stride=(4, 1)), InvalidArgument, LARGER),
        (tensor(size=(2, 3), stride=(-3, 1)), InvalidArgument, LARGER),
        (tensor(size=(2, 3), stride=(1,)), InvalidArgument, LARGER),
        (tensor(size=(2**64, 3)), InvalidArgument, LARGER),
        (tensor(size=(True, 3)), InvalidArgument, LARGER),
        (tensor(view=named("torch._utils", "_rebuild_sparse_tensor")), FailedPrecondition, "_rebuild_sparse_tensor"),
        (named("os", "system") + value("true") + b"R.", FailedPrecondition, r"'os.system'; it needs --allow-code"),
        (tensor(type_=named("torch", "StrangeStorage")), FailedPrecondition, "torch.StrangeStorage"),
        (tensor()[:-9], InvalidArgument, "can't be read"),
        (b"r\xff\xff\xff\xff.", InvalidArgument, "can't be read"),
        (b"not a pickle", InvalidArgument, "can't be read"),
    ],
)
def test_tensors_lie_within_their_entries(part: str, data: bytes, error: type[RoostError] | None, message: str) -> None:
    archive = Entries({f"{part}.pkl": data, f"{part}/0": bytes(24)})
    if error is None:
        check_tensors(archive)
        return
    with pytest.raises(error, match=message):
        check_tensors(archive)


def test_an_error_of_a_model_can_always_be_shown() -> None:
    frame = error_frame(1, Code.INTERNAL, "bad \udc80 " + "x" * 10_000_000)
    assert len(frame) < 5000
    code, message = parse_error(frame[HEADER_BYTES:])
    assert (code, message.startswith("bad \\udc80 xxx")) == (Code.INTERNAL, True)
    message.encode()


@pytest.mark.parametrize("text", ["/a" * 1_000_000, "/a.h" * 500_000, "[with " * 300_000, "a" * 5_000_000])
def test_a_long_text_is_not_looked_through(text: str) -> None:
    assert len(without_paths(without_source(f"first {text} last"), "/models/m")) < 1100
