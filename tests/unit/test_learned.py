"""What is remembered comes back as it was, from files of former versions too, and a store that fails stops nothing."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roost.core.figures import Figures
from roost.core.names import VersionKey
from roost.core.tensors import DATATYPES, Signature, TensorSpec
from roost.router.learned import RECENT_SIGNATURES, Learned, Measured
from roost.router.proof import Proof
from roost.router.store import Store
from roost.router.store_sqlite import SqliteStore

from tests.memory_store import MemoryStore

SIGNATURE = Signature(
    (TensorSpec("in", "FP32", (-1, 3)), TensorSpec("größe", "BYTES", (), optional=True)),
    (TensorSpec("out", "INT64", (-1,)),),
)
CONDITIONS = "1/onnxruntime/1.31/abc"
MEASURED = Measured(Figures(3 << 20, 1 << 30, 216), 0.207, 5 << 20, 3 << 20)
A, B, C = (VersionKey("default", name, "1") for name in "abc")


def forgotten(store: Store) -> Learned:
    """What another process would know."""
    return Learned(store)


def test_what_was_never_put_is_not_there() -> None:
    learned = Learned(MemoryStore())
    assert learned.get_file_digest("/a", 1, 2, 3) is None
    assert learned.get_signature("d", "onnxruntime") is None
    assert learned.get_proof("d", CONDITIONS) is None
    assert learned.get_measured("d", CONDITIONS) is None
    assert learned.get_prepared("d", CONDITIONS) is None
    assert learned.last_uses() == []


def test_a_digest_holds_while_the_file_is_the_same() -> None:
    learned = Learned(store := MemoryStore())
    learned.put_file_digest("/ä b'\"", 2**63 - 1, 2**40, 2**62, "digest")
    for known in (learned, forgotten(store)):
        assert known.get_file_digest("/ä b'\"", 2**63 - 1, 2**40, 2**62) == "digest"
    learned.put_file_digest("/a", 1, 2, 3, "old")
    learned.put_file_digest("/a", 1, 2, 4, "new")
    for known in (learned, forgotten(store)):
        assert known.get_file_digest("/a", 1, 2, 4) == "new"
        for other in (("/a", 1, 2, 3), ("/b", 1, 2, 4), ("/a", 9, 2, 4), ("/a", 1, 9, 4), ("/a", 1, 2, 40)):
            assert known.get_file_digest(*other) is None


def test_a_signature_that_was_put_or_asked_for_lately_is_known_without_the_store() -> None:
    learned = Learned(store := MemoryStore())
    assert not learned.has_signature("d", "onnxruntime", SIGNATURE)
    learned.put_signature("d", "onnxruntime", SIGNATURE)
    other = forgotten(store)
    assert not other.has_signature("d", "onnxruntime", SIGNATURE)
    other.get_signature("d", "onnxruntime")
    for known in (learned, other):
        assert known.has_signature("d", "onnxruntime", SIGNATURE)
        assert not known.has_signature("d", "onnxruntime", Signature((), ()))
        assert not known.has_signature("e", "onnxruntime", SIGNATURE)


def test_what_is_known_of_an_artifact_is_kept_by_digest_and_conditions() -> None:
    learned = Learned(store := MemoryStore())
    learned.put_signature("d", "onnxruntime", SIGNATURE)
    learned.put_proof("d", CONDITIONS, Proof(0, "why", 2))
    learned.put_measured("d", CONDITIONS, MEASURED)
    learned.put_prepared("d", CONDITIONS, {"copy": "é", "bytes": 2**40})
    for known in (learned, forgotten(store)):
        assert known.get_signature("d", "onnxruntime") == SIGNATURE
        assert known.get_proof("d", CONDITIONS) == Proof(0, "why", 2)
        assert known.get_measured("d", CONDITIONS) == MEASURED
        assert known.get_prepared("d", CONDITIONS) == {"copy": "é", "bytes": 2**40}
        for digest, conditions in (("d", "dummy"), ("e", CONDITIONS)):
            assert known.get_signature(digest, conditions) is None
            assert known.get_proof(digest, conditions) is None
            assert known.get_measured(digest, conditions) is None
            assert known.get_prepared(digest, conditions) is None
    learned.put_signature("d", "onnxruntime", Signature((), ()))
    learned.put_measured("d", CONDITIONS, Measured(Figures(1)))
    learned.forget_prepared("d", CONDITIONS)
    for known in (learned, forgotten(store)):
        assert known.get_signature("d", "onnxruntime") == Signature((), ())
        assert known.get_measured("d", CONDITIONS) == Measured(Figures(1))
        assert known.get_prepared("d", CONDITIONS) is None


def test_what_was_measured_without_runs_is_still_known() -> None:
    store = MemoryStore()
    store.put(f"measured/d/{CONDITIONS}", b"[1,2,3,0.5,4]")
    assert Learned(store).get_measured("d", CONDITIONS) == Measured(Figures(1, 2, 3), 0.5, 4)


def test_uses_come_in_the_order_of_the_last_ones() -> None:
    learned = Learned(MemoryStore())
    assert learned.put_last_uses({A: 1000.0, B: 3000.5})
    assert learned.put_last_uses({C: 2000.0, A: 1_763_810_000.25})
    assert learned.last_uses() == [(A, 1_763_810_000.25), (B, 3000.5), (C, 2000.0)]
    learned.forget_uses([A, C])
    assert learned.last_uses() == [(B, 3000.5)]


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b"{}", b'{"inputs": [[1]]}', b"3", b"\xff\x00", b"[1]"])
def test_what_can_not_be_read_is_learned_again(value: bytes) -> None:
    store = MemoryStore()
    for kind in ("files", "signatures", "proofs", "measured", "prepared"):
        store.put(f"{kind}/d/c", value)
    store.put("used/default/a/1", value)
    store.put("used/default", b"1")
    learned = Learned(store)
    assert learned.get_file_digest("d/c", 1, 2, 3) is None
    assert learned.get_signature("d", "c") is None
    assert learned.get_proof("d", "c") is None
    assert learned.get_measured("d", "c") is None
    assert isinstance(learned.get_prepared("d", "c"), dict | None)
    assert learned.last_uses() in ([], [(A, 3.0)])
    learned.put_signature("d", "c", SIGNATURE)
    assert forgotten(store).get_signature("d", "c") == SIGNATURE


def test_a_store_that_fails_stops_nothing_and_is_complained_of_once(caplog: pytest.LogCaptureFixture) -> None:
    learned = Learned(store := MemoryStore())
    store.failing = True
    for _ in range(3):
        learned.put_signature("d", "onnxruntime", SIGNATURE)
        learned.put_file_digest("/a", 1, 2, 3, "digest")
        assert learned.get_signature("d", "onnxruntime") == SIGNATURE, "from memory"
        assert learned.get_file_digest("/a", 1, 2, 3) == "digest"
        assert learned.get_signature("f", "onnxruntime") is None
        assert not learned.put_last_uses({A: 1.0})
        assert learned.last_uses() == []
        learned.put_prepared("d", CONDITIONS, {})
        learned.forget_prepared("d", CONDITIONS)
        learned.forget_uses([A])
    assert caplog.text.count("the store fails") == 1, "not for every request"


def test_it_answers_as_if_empty_once_closed(tmp_path: Path) -> None:
    learned = Learned(SqliteStore(tmp_path / "roost.sqlite"))
    learned.put_file_digest("/a", 1, 2, 3, "digest")
    learned.close()
    assert learned.get_file_digest("/a", 1, 2, 3) is None
    assert learned.last_uses() == []


def test_threads_may_share_it(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for i in range(RECENT_SIGNATURES // 4 + 1):
            learned.put_signature(f"{number}-{i}", "onnxruntime", SIGNATURE)
            found.append(learned.get_signature(f"{number}-{i}", "onnxruntime") == SIGNATURE)

    found: list[bool] = []
    with closing(Learned(SqliteStore(tmp_path / "roost.sqlite"))) as learned:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(found)
    assert len(found) > RECENT_SIGNATURES


_FORMER = """
CREATE TABLE file_digests (path TEXT NOT NULL PRIMARY KEY, inode INTEGER NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE signatures (digest TEXT NOT NULL, backend TEXT NOT NULL, signature TEXT NOT NULL,
    PRIMARY KEY (digest, backend)) WITHOUT ROWID;
INSERT INTO file_digests VALUES ('/ä', 9223372036854775807, 2, 3, 'digest');
INSERT INTO signatures VALUES ('d', 'onnxruntime', '{"inputs": [], "outputs": []}');
INSERT INTO signatures VALUES ('blob', 'onnxruntime', CAST(x'ff00fe' AS TEXT));
"""
_FORMER_PROOFS = """
CREATE TABLE proofs (digest TEXT NOT NULL, conditions TEXT NOT NULL, max_rows INTEGER NOT NULL, reason TEXT NOT NULL,
    failures INTEGER NOT NULL, PRIMARY KEY (digest, conditions)) WITHOUT ROWID;
INSERT INTO proofs VALUES ('d', '1/onnxruntime', 0, 'a "reason"', 2);
"""


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_a_former_version_is_used_further(tmp_path: Path, version: int) -> None:
    path = tmp_path / "roost.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        proofs = _FORMER_PROOFS if version > 1 else ""
        connection.executescript(f"PRAGMA journal_mode=WAL; {_FORMER} {proofs} PRAGMA user_version={version};")
    for _ in range(2):
        with closing(Learned(SqliteStore(path))) as learned:
            assert learned.get_file_digest("/ä", 2**63 - 1, 2, 3) == "digest"
            assert learned.get_signature("d", "onnxruntime") == Signature((), ())
            assert learned.get_signature("blob", "onnxruntime") is None
            assert learned.get_proof("d", "1/onnxruntime") == (Proof(0, 'a "reason"', 2) if version > 1 else None)
            learned.put_proof("e", "1/onnxruntime", Proof(32))
    assert not (tmp_path / "roost.damaged").exists()


def test_a_file_that_can_not_be_brought_up_to_date_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "roost.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"{_FORMER} CREATE TABLE proofs (digest); PRAGMA user_version=2;")
    with closing(Learned(SqliteStore(path))) as learned:
        learned.put_proof("d", "c", Proof(32))
        assert learned.get_proof("d", "c") == Proof(32), "from memory"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
        assert connection.execute("SELECT digest FROM file_digests").fetchall() == [("digest",)]


SPECS = st.lists(
    st.builds(
        TensorSpec,
        st.text(st.characters(exclude_categories=["Cs"])),
        st.sampled_from(sorted(DATATYPES)),
        st.lists(st.integers(-1, 2**40)).map(tuple),
        st.booleans(),
        lenient=st.booleans(),
    ),
    max_size=4,
).map(tuple)


@given(st.builds(Signature, SPECS, SPECS))
def test_any_signature_comes_back_as_it_was(signature: Signature) -> None:
    store = MemoryStore()
    Learned(store).put_signature("d", "onnxruntime", signature)
    assert forgotten(store).get_signature("d", "onnxruntime") == signature
