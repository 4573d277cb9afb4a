"""The worker's end of the arena: how it is mapped, and where a run's inputs and outputs are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import numpy as np
import pytest
from roost.core.arena import (
    RUNNING_BYTES,
    RUNNING_THREADS,
    ArenaError,
    create_arena,
    map_arena,
    running_table,
)
from roost.core.errors import Internal, Unimplemented
from roost.core.frames import Region, WireTensor
from roost.core.tensors import Tensor
from roost.runtimes.shared import Shared

SIZE = RUNNING_BYTES + 4096


@pytest.fixture
def descriptor() -> Iterator[int]:
    made = create_arena(SIZE)
    yield made
    os.close(made)


def test_both_ends_see_the_same_memory(descriptor: int) -> None:
    ours, theirs = map_arena(descriptor), map_arena(descriptor)
    assert len(ours) == len(theirs) == SIZE
    running_table(theirs)[RUNNING_THREADS - 1] = 2**64 - 1
    theirs[RUNNING_BYTES] = 7
    assert [running_table(ours)[i] for i in range(RUNNING_THREADS)] == [0] * (RUNNING_THREADS - 1) + [2**64 - 1]
    assert ours[RUNNING_BYTES] == 7


def test_its_size_is_for_good(descriptor: int) -> None:
    for size in (0, 2 * SIZE):
        with pytest.raises(OSError, match="permitted"):
            os.ftruncate(descriptor, size)
    assert not os.get_inheritable(descriptor)


def test_it_takes_no_memory_that_is_not_written() -> None:
    made = create_arena(1 << 40)
    map_arena(made)[RUNNING_BYTES] = 1
    assert os.fstat(made).st_blocks * 512 <= 1 << 21
    os.close(made)


def test_too_small_to_have_a_table() -> None:
    with pytest.raises(ValueError, match="4096"):
        create_arena(RUNNING_BYTES - 1)


def test_memory_that_could_be_cut_off_is_no_arena() -> None:
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        with pytest.raises(ArenaError):
            map_arena(file.fileno())
    unsealed = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, SIZE)
    with pytest.raises(ArenaError):
        map_arena(unsealed)
    os.close(unsealed)


def test_inputs_are_views(descriptor: int) -> None:
    ours = map_arena(descriptor)
    shared = Shared(map_arena(descriptor))
    ours[RUNNING_BYTES + 64 : RUNNING_BYTES + 68] = b"abcd"
    inline = memoryview(b"inline")
    near, far = shared.tensors(
        [
            WireTensor("a", "UINT8", (6,), inline),
            WireTensor("b", "UINT8", (4,), Region(RUNNING_BYTES + 64, 4)),
        ]
    )
    assert near.data is inline
    assert bytes(far.data) == b"abcd"
    ours[RUNNING_BYTES + 64] = ord("x")
    assert bytes(far.data) == b"xbcd"
    assert np.frombuffer(far.data, np.uint8).ctypes.data % 64 == 0


@pytest.mark.parametrize(
    "region", [Region(RUNNING_BYTES - 1, 8), Region(SIZE - 8, 9), Region(2**64 - 1, 1), Region(0, 0)], ids=str
)
def test_regions_that_are_not_the_routers_to_give(descriptor: int, region: Region) -> None:
    shared = Shared(map_arena(descriptor))
    with pytest.raises(Internal, match="'a'"):
        shared.tensors([WireTensor("a", "UINT8", (1,), region)])
    with pytest.raises(Internal, match="'a'"):
        shared.places([WireTensor("a", "UINT8", (1,), region)])


def test_without_an_arena_all_is_inline() -> None:
    shared = Shared(None)
    assert len([shared.running[i] for i in range(RUNNING_THREADS)]) == RUNNING_THREADS
    with pytest.raises(Unimplemented):
        shared.tensors([WireTensor("a", "UINT8", (1,), Region(RUNNING_BYTES, 1))])


def test_outputs_end_up_where_they_are_wanted_if_they_are_as_expected(descriptor: int) -> None:
    ours = map_arena(descriptor)
    shared = Shared(map_arena(descriptor))
    regions = [Region(RUNNING_BYTES + 64 * i, 4) for i in range(5)]
    wanted = [WireTensor(name, "UINT8", (4,), region) for name, region in zip("abcde", regions, strict=True)]
    places = shared.places(wanted)
    written = places["b"].memory
    written[:] = b"bbbb"
    outputs = [
        Tensor("a", "UINT8", (4,), b"aaaa"),  # copied
        Tensor("b", "UINT8", (4,), written),  # already there
        Tensor("c", "UINT8", (5,), b"ccccc"),  # another shape
        Tensor("d", "INT8", (4,), b"dddd"),  # another datatype
        Tensor("e", "UINT8", (4,), b"ee"),  # a model that is wrong about itself
        Tensor("f", "UINT8", (4,), b"ffff"),  # not known beforehand
    ]
    sent = shared.placed(outputs, wanted, places)
    assert [tensor.name for tensor in sent] == list("abcdef")
    assert [tensor.data for tensor in sent] == [*regions[:2], b"ccccc", b"dddd", b"ee", b"ffff"]
    assert ours[RUNNING_BYTES : RUNNING_BYTES + 4] == b"aaaa"
    assert ours[RUNNING_BYTES + 64 : RUNNING_BYTES + 68] == b"bbbb"
