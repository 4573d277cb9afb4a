"""A process that writes to the store is killed again and again: whatever it had been told is stored is there."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from roost.router.store import ABSENT
from roost.router.store_sqlite import SqliteStore

ROUNDS = 8
MOST_ACKNOWLEDGED = 400

# Says with one line each what it was told is stored: puts under keys of their own, and a counter.
_WRITER = """
import os, sys
from pathlib import Path
from roost.router.store_sqlite import SqliteStore

store, begin = SqliteStore(Path(sys.argv[1])), int(sys.argv[2])
seen = store.get("counter")
value, version = (int(seen.value), seen.version) if seen is not None else (0, 0)
for number in range(begin, begin + 1_000_000):
    store.put(f"put/{number:08}", b"%d" % number * 50)
    value += 1
    version = store.compare_and_set("counter", version, b"%d" % value)
    store.put_all({f"pair/{number:08}/{half}": b"%d" % number for half in "ab"})
    if number % 3 == 0:
        store.delete(f"put/{number:08}")
    os.write(1, b"%d %d\\n" % (number, value))
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "roost.sqlite"
    chance = random.Random(1)
    acknowledged: list[int] = []
    counted = 0
    for round_number in range(ROUNDS):
        begin = (round_number + 1) * 1_000_000
        numbers, last_count = _write_until_killed(path, begin, chance.randrange(1, MOST_ACKNOWLEDGED))
        acknowledged += numbers
        assert last_count - counted == len(numbers), "the counter goes on where it was"
        with closing(SqliteStore(path)) as store:
            _check(store, acknowledged)
            entry = store.get("counter")
            assert entry is not None
            assert last_count <= int(entry.value) <= last_count + 1, "one more may have been under way"
            counted = int(entry.value)
            assert store.compare_and_set("counter", ABSENT, b"0") is None
    assert not (tmp_path / "roost.damaged").exists()


def _write_until_killed(path: Path, begin: int, lines: int) -> tuple[list[int], int]:
    """What the writer was told until it was killed in the midst of its work."""
    command = [sys.executable, "-c", _WRITER, str(path), str(begin)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        output = b""
        while output.count(b"\n") < lines:
            output += os.read(writer.stdout.fileno(), 1 << 16)
        writer.kill()
        output += writer.stdout.read()
    said = [line.split() for line in output.decode().splitlines(keepends=True) if line.endswith("\n")]
    return [int(number) for number, _ in said], int(said[-1][1])


def _check(store: SqliteStore, acknowledged: list[int]) -> None:
    puts = {key: entry.value for key, entry in store.scan("put/").items()}
    for number in acknowledged:
        expected = None if number % 3 == 0 else b"%d" % number * 50
        assert puts.get(f"put/{number:08}") == expected
    assert all(value == key.removeprefix("put/").lstrip("0").encode() * 50 for key, value in puts.items())
    pairs = store.scan("pair/")
    assert {int(key[5:13]) for key in pairs} >= set(acknowledged)
    versions = [entry.version for entry in pairs.values()]
    assert versions == sorted(versions)
