"""Digests of a version's files: what they depend on, what is cached, what is refused."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import FailedPrecondition
from roost.registry_client.digest import MAX_DEPTH, digest_files, stamp_files
from roost.registry_client.files import open_regular, read_small_file, shown


class MemoryCache:
    """A cache that counts; ``on_get`` runs at each lookup."""

    def __init__(self, on_get: Callable[[str], object] = lambda path: None) -> None:
        self.digests: dict[tuple[str, int, int, int], str] = {}
        self.on_get = on_get

    def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
        self.on_get(path)
        return self.digests.get((path, inode, size, mtime_ns))

    def put_file_digest(self, path: str, inode: int, size: int, mtime_ns: int, digest: str) -> None:
        assert (path, inode, size, mtime_ns) not in self.digests, "hashed twice"
        self.digests[path, inode, size, mtime_ns] = digest


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def digest(root: Path, cache: MemoryCache | None = None) -> str:
    return digest_files(str(root), stamp_files(str(root)), cache or MemoryCache())


BASE = {"model.onnx": b"graph", "data/weights.bin": b"w" * 100}


def test_same_files_same_digest_wherever_they_are(tmp_path: Path) -> None:
    first = digest(write(tmp_path / "a", BASE))
    assert first == digest(write(tmp_path / "b" / "c", dict(reversed(BASE.items()))))
    assert len(bytes.fromhex(first)) == 32


@pytest.mark.parametrize(
    "changed",
    [
        {**BASE, "model.onnx": b"GRAPH"},
        {**BASE, "extra": b""},
        {"model.onnx": b"graph"},
        {"model.onnx": b"graph", "data/weights.bin2": b"w" * 100},
        {"model.onnx": b"graph", "weights.bin": b"w" * 100},
        {"model.onnx": b"w" * 100, "data/weights.bin": b"graph"},
    ],
)
def test_names_and_contents_count(tmp_path: Path, changed: dict[str, bytes]) -> None:
    assert digest(write(tmp_path / "a", BASE)) != digest(write(tmp_path / "b", changed))


def test_hidden_files_and_the_config_do_not_count(tmp_path: Path) -> None:
    more = {**BASE, "config.pbtxt": b"x", ".hidden": b"x", ".git/HEAD": b"x"}
    assert digest(write(tmp_path / "a", BASE)) == digest(write(tmp_path / "b", more))
    deeper = {**BASE, "data/config.pbtxt": b"x"}
    assert digest(write(tmp_path / "a", BASE)) != digest(write(tmp_path / "c", deeper))


def test_nothing_is_hashed_twice(tmp_path: Path) -> None:
    cache = MemoryCache()
    root = write(tmp_path / "a", BASE)
    first = digest(root, cache)
    assert len(cache.digests) == 2
    assert digest(root, cache) == first  # the cache refuses a second put
    replacement = write(tmp_path / "b", {"model.onnx": b"other"})
    (replacement / "model.onnx").replace(root / "model.onnx")
    assert digest(root, cache) != first
    assert len(cache.digests) == 3


def test_cached_digest_is_used_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    root = write(tmp_path / "a", {"model.onnx": b"graph"})
    expected = digest(root)
    cache = MemoryCache()
    digest(root, cache)
    (key,) = cache.digests
    assert cache.digests[key] == hashlib.sha256(b"graph").hexdigest()
    cache.digests[key] = "0" * 64
    assert digest(root, cache) != expected

    class Damaged(MemoryCache):
        def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
            return "not a digest"

    assert digest(root, Damaged()) == expected


def test_large_files_are_read_in_chunks(tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 17)
    root = write(tmp_path, {"model.onnx": content})
    cache = MemoryCache()
    digest(root, cache)
    assert list(cache.digests.values()) == [hashlib.sha256(content).hexdigest()]


@pytest.mark.parametrize("content", [b"longer than before", b"x", b"GRAPH"])
def test_a_file_that_changes_before_it_is_read_is_noticed(tmp_path: Path, content: bytes) -> None:
    root = write(tmp_path, {"model.onnx": b"graph"})
    os.utime(root / "model.onnx", ns=(1, 1))
    cache = MemoryCache(lambda path: (root / "model.onnx").write_bytes(content))
    with pytest.raises(FailedPrecondition, match=r"'model\.onnx' changed while it was read"):
        digest(root, cache)
    assert not cache.digests


def test_a_file_that_appears_or_goes_meanwhile_is_noticed(tmp_path: Path) -> None:
    root = write(tmp_path / "a", BASE)
    with pytest.raises(FailedPrecondition, match="changed while they were read"):
        digest(root, MemoryCache(lambda path: (root / "late").write_bytes(b"")))
    root = write(tmp_path / "b", BASE)
    with pytest.raises(FailedPrecondition, match="can't be read: No such file"):
        digest(root, MemoryCache(lambda path: (root / "model.onnx").unlink(missing_ok=True)))


def test_links_are_followed(tmp_path: Path) -> None:
    target = write(tmp_path / "store", {"blob": b"graph", "data/weights.bin": b"w" * 100})
    linked = tmp_path / "a"
    linked.mkdir()
    (linked / "model.onnx").symlink_to(target / "blob")
    (linked / "data").symlink_to(target / "data")
    assert digest(linked) == digest(write(tmp_path / "b", BASE))


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "a", BASE)
    (root / "data" / "again").symlink_to(root)
    with pytest.raises(FailedPrecondition, match="'data/again' links to a folder that contains it"):
        stamp_files(str(root))


def test_a_broken_link_is_refused_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "a", BASE)
    (root / "broken").symlink_to("nowhere")
    with pytest.raises(FailedPrecondition, match="'broken' can't be read") as caught:
        stamp_files(str(root))
    assert str(tmp_path) not in caught.value.message


def test_too_deep_and_too_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "deep", {"/".join(["d"] * MAX_DEPTH) + "/f": b""})
    with pytest.raises(FailedPrecondition, match="deeper"):
        stamp_files(str(tmp_path / "deep"))
    monkeypatch.setattr("roost.registry_client.digest.MAX_FILES", 3)
    with pytest.raises(FailedPrecondition, match="more than 3"):
        stamp_files(str(write(tmp_path / "full", {f"empty{i}/f": b"" for i in range(2)})))


def test_special_files_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FailedPrecondition, match="'fifo' is not a regular file"):
        stamp_files(str(tmp_path))
    with pytest.raises(FailedPrecondition, match="not a regular file"), open_regular(str(tmp_path / "fifo"), "fifo"):
        pass
    (tmp_path / "fifo").unlink()
    (tmp_path / "null").symlink_to("/dev/null")
    with pytest.raises(FailedPrecondition, match="'null' is not a regular file"):
        stamp_files(str(tmp_path))
    (tmp_path / "null").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(FailedPrecondition, match="'s' is not a regular file"):
            stamp_files(str(tmp_path))


def test_a_fifo_that_takes_a_files_place_does_not_hang(tmp_path: Path) -> None:
    root = write(tmp_path, {"model.onnx": b"graph"})

    def swap(path: str) -> None:
        os.unlink(path)
        os.mkfifo(path)

    with pytest.raises(FailedPrecondition, match="not a regular file"):
        digest(root, MemoryCache(swap))


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.bin", "wb") as file:
        file.write(b"x")
    cache = MemoryCache()
    digest(tmp_path, cache)
    (key,) = cache.digests
    assert key[0].encode().endswith(b"/\\xff.bin")
    assert shown("\udcff\n") == "\\xff?"


def test_small_files_have_a_limit(tmp_path: Path) -> None:
    path = write(tmp_path, {"f": b"12345"}) / "f"
    assert read_small_file(str(path), "f", 5) == b"12345"
    with pytest.raises(FailedPrecondition, match="'f' is larger than the limit of 4 bytes"):
        read_small_file(str(path), "f", 4)
    with pytest.raises(FailedPrecondition, match="'gone' can't be read") as caught:
        read_small_file(str(tmp_path / "gone"), "gone", 4)
    assert str(tmp_path) not in caught.value.message
    with pytest.raises(FailedPrecondition, match="not a regular file"):
        read_small_file("/dev/zero", "zero", 4)


_NAMES = st.sampled_from(["a", "b", "c.bin", "d/a", "d/b"])


@settings(max_examples=25, deadline=None)
@given(first=st.dictionaries(_NAMES, st.binary(max_size=3)), second=st.dictionaries(_NAMES, st.binary(max_size=3)))
def test_digests_are_equal_exactly_for_equal_files(
    tmp_path_factory: pytest.TempPathFactory, first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    folders = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    digests = [digest(write(folder, files)) for folder, files in zip(folders, (first, second), strict=True)]
    assert (digests[0] == digests[1]) == (first == second)
