"""The folder of prepared copies: what is kept, found, checked and removed, whatever is done to it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.runtimes.prepared.cache import Busy, CopyCache, TooLarge
from roost.runtimes.prepared.folders import file_sha256
from roost.runtimes.prepared.identity import copy_key
from roost.runtimes.prepared.manifest import FileRecord, Manifest, Measured, parse_manifest

from tests.scarcity import no_descriptors

KEYS = [f"{number:064x}" for number in range(6)]
LIMIT_BYTES = 1 << 20
SIZE_BYTES = 100_000
ENTRY = "model.onnx"
DATA = "model.data"


def keep(cache: CopyCache, key: str, size_bytes: int = SIZE_BYTES, used_at: float | None = None) -> Path:
    """Keeps a copy; returns its folder."""
    with cache.making(key) as folder:
        (folder / ENTRY).write_bytes(b"graph")
        (folder / DATA).write_bytes(key.encode() * (size_bytes // len(key)))
        cache.keep(key, folder, Manifest("d", "onnxruntime", "", ENTRY, cache.records(folder)))
    if used_at is not None:
        os.utime(cache.folder / key / "manifest.json", (used_at, used_at))
    return cache.folder / key


def refuse(cache: CopyCache, key: str) -> None:
    with cache.making(key) as folder:
        cache.keep(key, folder, Manifest("d", "onnxruntime", reason="no better"))


def names(cache: CopyCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()} - {"lock", "users", "suspect"}


@pytest.fixture
def cache(tmp_path: Path) -> CopyCache:
    return CopyCache(tmp_path / "cache", LIMIT_BYTES)


def test_a_kept_copy_is_found_read_only_and_by_others(cache: CopyCache) -> None:
    home = keep(cache, KEYS[0])
    for other in (cache, CopyCache(cache.folder, LIMIT_BYTES)):
        found = other.find(KEYS[0])
        assert found is not None
        assert (found.path, found.root) == (str(home / ENTRY), str(home))
        assert found.manifest.files[DATA] == FileRecord((home / DATA).stat().st_size, file_sha256(home / DATA))
    assert {path.stat().st_mode & 0o777 for path in home.iterdir()} == {0o400}
    assert cache.folder.stat().st_mode & 0o777 == home.stat().st_mode & 0o777 == 0o700
    assert cache.find(KEYS[1]) is None
    assert names(cache) == {KEYS[0]}


def test_a_refusal_is_remembered_and_is_no_copy(cache: CopyCache) -> None:
    refuse(cache, KEYS[0])
    known = cache.look_up(KEYS[0])
    assert known is not None
    assert known.reason == "no better"
    assert cache.find(KEYS[0]) is None
    assert cache.check(KEYS[0])


def test_a_copy_that_is_not_kept_leaves_nothing(cache: CopyCache) -> None:
    with cache.making(KEYS[0]) as folder:
        (folder / ENTRY).write_bytes(b"graph")
    assert names(cache) == set()


def test_only_one_makes_a_copy_at_a_time(cache: CopyCache) -> None:
    other = CopyCache(cache.folder, LIMIT_BYTES)
    with cache.making(KEYS[0]) as folder:
        with pytest.raises(Busy), other.making(KEYS[0]):
            pass
        with other.making(KEYS[1]):
            pass
        other.trim()
        assert folder.is_dir(), "what is in the making was swept away"
    with other.making(KEYS[0]):
        pass


def test_what_a_dead_maker_left_is_made_anew(cache: CopyCache) -> None:
    left = cache.folder / f"making-{KEYS[0]}"
    left.mkdir()
    (left / DATA).write_bytes(b"half")
    with cache.making(KEYS[0]) as folder:
        assert list(folder.iterdir()) == []
    left.mkdir()
    (cache.folder / "gone-1").mkdir()
    cache.trim()
    assert names(cache) == set()


def test_the_least_recently_used_go_first(cache: CopyCache) -> None:
    cache.limit_bytes = 3 * (SIZE_BYTES + 4 * 4096)
    for number, key in enumerate(KEYS[:3]):
        keep(cache, key, used_at=1000.0 + number)
    assert cache.find(KEYS[0]) is not None, "the first one is used"
    keep(cache, KEYS[3])
    assert names(cache) == {KEYS[0], KEYS[2], KEYS[3]}
    with pytest.raises(TooLarge):
        keep(cache, KEYS[4], size_bytes=LIMIT_BYTES)
    assert names(cache) == {KEYS[0], KEYS[2], KEYS[3]}, "what can't be kept must not cost another"
    assert cache.used_bytes() <= cache.limit_bytes


def shorten_file(home: Path) -> None:
    (home / DATA).chmod(0o600)
    os.truncate(home / DATA, 10)


def remove_file(home: Path) -> None:
    (home / DATA).unlink()


def link_file(home: Path) -> None:
    (home / DATA).rename(home / "elsewhere")
    (home / DATA).symlink_to("elsewhere")


def garble_manifest(home: Path) -> None:
    text = (home / "manifest.json").read_text()
    (home / "manifest.json").chmod(0o600)
    (home / "manifest.json").write_text(text.replace("onnxruntime", "onnxruntimf"))


def empty_manifest(home: Path) -> None:
    (home / "manifest.json").chmod(0o600)
    (home / "manifest.json").write_text("{}")


@pytest.mark.parametrize("damage", [shorten_file, remove_file, link_file, garble_manifest, empty_manifest])
def test_a_copy_that_is_not_whole_is_removed_and_can_be_made_again(
    cache: CopyCache, damage: Callable[[Path], None]
) -> None:
    damage(keep(cache, KEYS[0]))
    assert cache.find(KEYS[0]) is None
    assert names(cache) == set()
    keep(cache, KEYS[0])
    assert cache.find(KEYS[0]) is not None


def test_a_copy_stays_if_there_is_no_descriptor_to_look_at_it(cache: CopyCache) -> None:
    home = keep(cache, KEYS[0])
    with no_descriptors():
        assert cache.find(KEYS[0]) is None
        with pytest.raises(OSError, match="Too many open files"):
            cache.check(KEYS[0])
    assert cache.find(KEYS[0]) is not None
    assert cache.check(KEYS[0])
    assert home.is_dir()


def test_what_the_disk_can_not_read_any_more_is_damaged(cache: CopyCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    keep(cache, KEYS[0])
    monkeypatch.setattr("roost.runtimes.prepared.cache.file_sha256", broken)
    assert not cache.check(KEYS[0])
    assert names(cache) == set()


def test_garbage_of_the_right_size_is_found_by_checking(cache: CopyCache) -> None:
    good, bad = keep(cache, KEYS[0]), keep(cache, KEYS[1])
    (bad / DATA).chmod(0o600)
    with (bad / DATA).open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff" * 4096)
    assert cache.find(KEYS[1]) is not None, "sizes alone do not tell"
    assert cache.check(KEYS[0])
    assert not cache.check(KEYS[1])
    assert good.is_dir()
    assert not bad.exists()


def test_copies_are_checked_once_a_boot(cache: CopyCache) -> None:
    home = keep(cache, KEYS[0])
    assert cache.unchecked() == [], "what was just made was just summed"
    (home / "checked").unlink()
    assert cache.unchecked() == [KEYS[0]]
    assert cache.find(KEYS[0]) is not None, "after an orderly shutdown it may be used before"
    assert cache.check(KEYS[0])
    assert cache.unchecked() == []


def test_after_a_crash_of_the_machine_nothing_is_used_unchecked(cache: CopyCache) -> None:
    (keep(cache, KEYS[0]) / "checked").unlink()
    users = cache.folder / "users"
    with cache.in_use():
        pass
    assert list(users.iterdir()) == []
    (users / "left").write_text("another boot")
    with cache.in_use(), CopyCache(cache.folder, LIMIT_BYTES).in_use():
        assert cache.find(KEYS[0]) is None
        assert cache.check(KEYS[0])
        assert cache.find(KEYS[0]) is not None


def test_a_server_that_was_killed_makes_nothing_suspect(cache: CopyCache) -> None:
    (keep(cache, KEYS[0]) / "checked").unlink()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with cache.in_use():
        pass
    (cache.folder / "users" / "left").write_text(boot)
    with cache.in_use():
        assert cache.find(KEYS[0]) is not None
        assert len(list((cache.folder / "users").iterdir())) == 1


def test_a_wiped_folder_is_no_copy_and_comes_back(cache: CopyCache) -> None:
    keep(cache, KEYS[0])
    with cache.in_use():
        os.rename(cache.folder, cache.folder.with_name("wiped"))
        assert cache.find(KEYS[0]) is None
        assert (cache.used_bytes(), cache.unchecked()) == (0, [])
        assert not cache.check(KEYS[0])
        keep(cache, KEYS[0])
        assert cache.find(KEYS[0]) is not None


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PermissionError):
        CopyCache(tmp_path / "open", LIMIT_BYTES)


def test_many_threads_make_and_use_the_same_copies(cache: CopyCache) -> None:
    cache.limit_bytes = 3 * (SIZE_BYTES + 4 * 4096)
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        mine = CopyCache(cache.folder, cache.limit_bytes)
        try:
            for turn in range(20):
                key = KEYS[(seed + turn) % len(KEYS)]
                try:
                    keep(mine, key)
                except Busy:
                    continue
                mine.find(key)
                mine.check(key)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    cache.trim()
    assert cache.used_bytes() <= cache.limit_bytes
    assert all(cache.check(key) for key in names(cache))


measured = st.builds(Measured, *[st.floats(0, 1e3)] * 2, *[st.integers(0, 2**40)] * 3)
manifests = st.builds(
    Manifest,
    st.text(),
    st.text(),
    st.text(),
    st.text(),
    st.dictionaries(st.text(), st.builds(FileRecord, st.integers(0, 2**50), st.text())),
    st.none() | measured,
    st.none() | measured,
)


@given(manifests)
def test_a_manifest_is_read_as_it_was_written(manifest: Manifest) -> None:
    assert parse_manifest(manifest.dump()) == manifest


@given(manifests, st.data())
def test_a_damaged_manifest_is_refused_or_says_the_same(manifest: Manifest, data: st.DataObject) -> None:
    text = bytearray(manifest.dump())
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        assert parse_manifest(bytes(text)) == manifest


def test_the_key_changes_with_what_the_graph_depends_on() -> None:
    base = copy_key("a", "onnxruntime", {})
    assert copy_key("a", "onnxruntime", {"intra_op_thread_count": "2", "execution_mode": "1"}) == base
    others = [
        copy_key("b", "onnxruntime", {}),
        copy_key("a", "onnxruntime", {"graph_level": "basic"}),
        copy_key("a", "onnxruntime", {"unheard_of": "1"}),
        copy_key("a", "tensorflow", {}),
        copy_key("a", "tensorflow", {"roost.allow_code": "true"}),
    ]
    assert len({base, *others}) == 6
    named = {"roost.model_name": "m", "roost.model_version": "2"}
    assert copy_key("a", "sklearn", named) == copy_key("a", "sklearn", {})


def test_files_in_folders_are_kept_counted_and_checked(cache: CopyCache) -> None:
    with cache.making(KEYS[0]) as folder:
        (folder / "variables" / "more").mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"graph")
        (folder / "variables" / "more" / "data").write_bytes(b"w" * SIZE_BYTES)
        records = cache.records(folder)
        cache.keep(KEYS[0], folder, Manifest("d", "tensorflow", "", "saved_model.pb", records))
    assert set(records) == {"saved_model.pb", "variables/more/data"}
    assert cache.used_bytes() > SIZE_BYTES
    assert cache.find(KEYS[0]) is not None
    assert cache.check(KEYS[0])
    data = cache.folder / KEYS[0] / "variables" / "more" / "data"
    data.chmod(0o600)
    data.write_bytes(b"x" * SIZE_BYTES)
    assert not cache.check(KEYS[0])
    assert cache.find(KEYS[0]) is None
    assert names(cache) == set()
