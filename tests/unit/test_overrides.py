"""What load calls bring: which paths are taken, what is left on the disk, and what is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from roost.core.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from roost.registry_client.model_folder import ModelFolder
from roost.registry_client.overrides import OverrideFolders, Overrides, read_overrides

CONFIG = "{}"


def test_a_plain_load_has_no_overrides() -> None:
    assert read_overrides("m", {}) is None


def test_config_and_files() -> None:
    given = read_overrides("m", {"config": CONFIG, "file:1/model.onnx": b"x", "file:labels.txt": b"cat"})
    assert given == Overrides(CONFIG, {"1/model.onnx": b"x", "labels.txt": b"cat"})
    assert read_overrides("m", {"config": CONFIG}) == Overrides(CONFIG, {})


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("", "must be relative"),
        ("/1/model.onnx", "must be relative"),
        ("../1/model.onnx", "must be relative"),
        ("1/../../model.onnx", "must be relative"),
        ("1/./model.onnx", "hidden or empty"),
        ("1//model.onnx", "hidden or empty"),
        ("1/", "hidden or empty"),
        ("1/.hidden", "hidden or empty"),
        ("1/a\0b", "must be relative"),
        ("1/a\nb", "must be relative"),
        ("1/" + "a" * 255, "longer than 256"),
        ("1/" + "é" * 200, "must be relative"),
        ("1/\ud800", "must be relative|not valid Unicode"),
        ("1/" + "a/" * 20 + "b", "deeper than"),
        ("one/model.onnx", "must be a version"),
        ("01/model.onnx", "must be a version"),
        ("0/model.onnx", "must be a version"),
        ("1", "go below a version"),
        ("model.onnx", "go below a version"),
        ("config.pbtxt", "into the parameter 'config'"),
        ("model-settings.json", "into the parameter 'config'"),
        ("1/model.onnx/data", "below another file"),
    ],
)
def test_paths_that_are_refused(path: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match) as caught:
        read_overrides("m", {"config": CONFIG, "file:1/model.onnx": b"x", f"file:{path}": b"y"})
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"file:1/model.onnx": b"x"}, "failed to load 'm', failed to poll from model repository: .* need a 'config'"),
        ({"config": 5}, "'config' must be a text"),
        ({"config": b"{}"}, "'config' must be a text"),
        ({"config": "\ud800"}, "'config' is not valid Unicode"),
        ({"config": CONFIG, "file:1/model.onnx": "text"}, "must be the content of a file"),
        ({"config": CONFIG, "file:labels.txt": b"x"}, "need a version"),
        ({"config": CONFIG, **{f"file:1/{i}": b"" for i in range(1001)}}, "1001 files are over the limit"),
    ],
)
def test_parameters_that_are_refused(parameters: dict[str, bool | int | str | bytes], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        read_overrides("m", parameters)


def test_digests_tell_contents_paths_and_configs_apart() -> None:
    different = [
        Overrides("{}", {"1/a": b"x"}),
        Overrides("{} ", {"1/a": b"x"}),
        Overrides("{}", {"1/b": b"x"}),
        Overrides("{}", {"1/a": b"y"}),
        Overrides("{}", {"1/a": b"", "1/b": b"x"}),
        Overrides("{}", {"1/a": b"x", "1/b": b""}),
    ]
    assert len({overrides.digest() for overrides in different}) == len(different)
    assert Overrides("", {"a": b"1", "b": b"2"}).digest() == Overrides("", {"b": b"2", "a": b"1"}).digest()


def files_below(path: Path) -> list[str]:
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


def test_folders_are_private_and_go_when_they_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "overrides"
    (path / "left").mkdir(parents=True)
    (path / "left" / "behind").write_bytes(b"x")
    folders = OverrideFolders(path)
    assert files_below(tmp_path) == []
    first = folders.write("m", {"1/model.onnx": b"one", "1/a/b/data": b"", "labels.txt": b"cat\ndog\r\n"})
    second = folders.write("m", {"2/model.onnx": b"two"})
    assert first.versions() == ["1"]
    assert first.read_labels("labels.txt") == ("cat", "dog")
    assert (first.path / "1" / "model.onnx").read_bytes() == b"one"
    assert [oct(p.stat().st_mode & 0o777) for p in (path, first.path, first.path / "1")] == ["0o700"] * 3
    assert oct((first.path / "1" / "model.onnx").stat().st_mode & 0o777) == "0o600"
    folders.remove(first)
    folders.remove(first)
    folders.remove(ModelFolder("m", tmp_path))
    assert files_below(path) == [f"{second.path.name}/2/model.onnx"]
    folders.clear()
    assert not path.exists()


def test_all_files_together_are_bounded(tmp_path: Path) -> None:
    folders = OverrideFolders(tmp_path / "o", limit_bytes=20_000)
    first = folders.write("m", {"1/model.onnx": bytes(10_000)})
    for _ in range(3):
        with pytest.raises(ResourceExhausted, match="20000 bytes in all"):
            folders.write("m", {"1/model.onnx": bytes(10_000)})
    assert len(files_below(tmp_path)) == 1
    folders.remove(first)
    folders.write("m", {"1/model.onnx": bytes(10_000)})


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, ResourceExhausted), (errno.EDQUOT, ResourceExhausted), (errno.EIO, FailedPrecondition)],
)
def test_a_disk_that_fails_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    folders = OverrideFolders(tmp_path / "o", limit_bytes=20_000)
    write = os.write

    def fail(descriptor: int, data: memoryview) -> int:
        if len(data) > 100:
            return write(descriptor, data[:100])
        raise OSError(code, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(kind) as caught:
            folders.write("m", {"1/model.onnx": bytes(1000), "1/other": b""})
    assert str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "o").iterdir()) == []
    folders.write("m", {"1/model.onnx": bytes(10_000)})
