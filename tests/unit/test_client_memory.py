"""Shared memory of clients: names that are not trusted, regions that shrink, and files that are closed in time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import AlreadyExists, InvalidArgument, NotFound, ResourceExhausted, RoostError, Unimplemented
from roost.core.requests import RegionSlice
from roost.server.client_memory import ClientMemory, NoGpuMemory, Region
from roost.server.data_plane_protocol import RegionStatus

SIZE = 100


def read(region: Region, part: RegionSlice) -> bytes:
    memory = bytearray(part.byte_size)
    region.read(part, memoryview(memory))
    return bytes(memory)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of shared memory with one object, ``data``, whose bytes count up; outside of it is a file ``secret``."""
    (tmp_path / "secret").write_bytes(b"secret")
    shm = tmp_path / "shm"
    shm.mkdir()
    (shm / "data").write_bytes(bytes(range(SIZE)))
    return shm


@pytest.fixture
def memory(folder: Path) -> ClientMemory:
    return ClientMemory(offered=True, folder=folder, max_regions=3)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_read_and_write(memory: ClientMemory, folder: Path) -> None:
    memory.register("r", "/data", 10, 50)
    region = memory.region("r")
    assert read(region, RegionSlice("r", 4, 2)) == bytes([12, 13, 14, 15])
    assert read(region, RegionSlice("r", 0)) == b""
    region.write(RegionSlice("r", 8, 46), memoryview(b"abc"))
    assert (folder / "data").read_bytes()[55:60] == b"7abc;"
    assert (folder / "data").stat().st_size == SIZE


def test_status(memory: ClientMemory) -> None:
    assert memory.status() == []
    memory.register("b", "/data", 0, SIZE)
    memory.register("a", "data", 99, 1)
    assert memory.status("b") == [RegionStatus("b", "/data", 0, SIZE)]
    assert [status.name for status in memory.status()] == ["a", "b"]
    memory.unregister("b")
    memory.unregister("b")
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'b'"):
        memory.status("b")
    memory.unregister()
    assert memory.status() == []


@pytest.mark.parametrize(
    ("key", "offset", "size_bytes", "error", "gist"),
    [
        ("", 0, 1, InvalidArgument, "needs a key"),
        ("/", 0, 1, InvalidArgument, "not the name of a shared memory object"),
        ("//data", 0, 1, InvalidArgument, "not the name"),
        ("..", 0, 1, InvalidArgument, "not the name"),
        (".", 0, 1, InvalidArgument, "not the name"),
        ("../secret", 0, 1, InvalidArgument, "not the name"),
        ("folder/../data", 0, 1, InvalidArgument, "not the name"),
        ("data\0", 0, 1, InvalidArgument, "not the name"),
        ("\udc80", 0, 1, InvalidArgument, "not the name"),
        ("d" * 256, 0, 1, InvalidArgument, "not the name"),
        ("é" * 128, 0, 1, InvalidArgument, "not the name"),
        ("/triton_python_backend_shm_region_1", 0, 1, InvalidArgument, "reserved prefix"),
        ("roost-arena", 0, 1, InvalidArgument, "reserved prefix"),
        ("/data", 0, 0, InvalidArgument, "byte_size"),
        ("/data", 0, -1, InvalidArgument, "byte_size"),
        ("/data", -1, 1, InvalidArgument, "Invalid offset"),
        ("/data", 1, SIZE, InvalidArgument, "Invalid offset . byte size"),
        ("/data", 2**64 - 1, 2**64 - 1, InvalidArgument, "Invalid offset . byte size"),
        ("/none", 0, 1, NotFound, "Unable to open shared memory region: 'r'"),
        ("link", 0, 1, NotFound, "Unable to open"),
        ("folder", 0, 1, NotFound, "Unable to open"),
        ("pipe", 0, 1, NotFound, "Unable to open"),
    ],
)
def test_what_can_not_be_registered(
    memory: ClientMemory, folder: Path, key: str, offset: int, size_bytes: int, error: type[RoostError], gist: str
) -> None:
    (folder / "link").symlink_to("../secret")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    before = open_files()
    with pytest.raises(error, match=gist) as caught:
        memory.register("r", key, offset, size_bytes)
    assert "secret" not in caught.value.message
    assert str(folder) not in caught.value.message
    assert memory.status() == []
    del caught
    assert open_files() == before


def test_names(memory: ClientMemory) -> None:
    memory.register("r", "data", 0, 1)
    with pytest.raises(AlreadyExists, match="already in manager"):
        memory.register("r", "data", 0, 2)
    for name in ("", "r" * 256):
        with pytest.raises(InvalidArgument, match="1 to 255 characters"):
            memory.register(name, "data", 0, 1)
    memory.register("s", "data", 0, 1)
    memory.register("t", "data", 0, 1)
    with pytest.raises(ResourceExhausted):
        memory.register("u", "data", 0, 1)


@pytest.mark.parametrize(
    ("part", "gist"),
    [
        (RegionSlice("r", 1, 9999), "Invalid offset for"),
        (RegionSlice("r", 0, 50), "Invalid offset for"),
        (RegionSlice("r", 1, -1), "Invalid offset for"),
        (RegionSlice("r", 11, 40), "Invalid offset . byte size"),
        (RegionSlice("r", 2**64, 0), "Invalid offset . byte size"),
        (RegionSlice("r", -1, 0), "Invalid offset . byte size"),
    ],
)
def test_parts_outside(memory: ClientMemory, part: RegionSlice, gist: str) -> None:
    memory.register("r", "data", 0, 50)
    with pytest.raises(InvalidArgument, match=gist):
        memory.region("r").check(part)


def test_a_region_that_was_truncated_is_an_error_and_grows_no_more(memory: ClientMemory, folder: Path) -> None:
    memory.register("r", "data", 0, SIZE)
    region = memory.region("r")
    part = RegionSlice("r", 50, 50)
    for left in (60, 50, 0):
        os.truncate(folder / "data", left)
        with pytest.raises(InvalidArgument, match="truncated"):
            read(region, part)
        with pytest.raises(InvalidArgument, match="truncated"):
            region.write(part, b"x" * 50)
        assert (folder / "data").stat().st_size == left


def test_who_uses_a_region_keeps_it(memory: ClientMemory, folder: Path) -> None:
    before = open_files()
    memory.register("r", "data", 0, SIZE)
    region = memory.region("r")
    memory.unregister("r")
    (folder / "data").unlink()
    assert open_files() == before + 1
    assert read(region, RegionSlice("r", 2, 1)) == b"\1\2"
    del region
    assert open_files() == before


def test_not_offered(folder: Path) -> None:
    memory = ClientMemory(offered=False, folder=folder)
    with pytest.raises(Unimplemented, match="--allow-client-shm"):
        memory.register("r", "data", 0, 1)
    with pytest.raises(Unimplemented, match="--allow-client-shm"):
        memory.unregister()
    assert memory.status() == []


def test_without_a_gpu() -> None:
    memory = NoGpuMemory()
    with pytest.raises(InvalidArgument, match="failed to register CUDA shared memory region 'r'"):
        memory.register("r", b"handle", 0, 64)
    memory.unregister("r")
    assert memory.status() == []
    with pytest.raises(NotFound, match="'r'"):
        memory.status("r")


@given(
    key=st.text(max_size=300),
    offset=st.integers(-(2**65), 2**65),
    size_bytes=st.integers(-(2**65), 2**65),
)
def test_any_key_is_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, key: str, offset: int, size_bytes: int
) -> None:
    memory = ClientMemory(offered=True, folder=tmp_path_factory.getbasetemp())
    with pytest.raises((InvalidArgument, NotFound)):
        memory.register("r", key, offset, size_bytes)
