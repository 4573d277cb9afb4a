"""Local model repositories: what is a model, a version, a configuration, an artifact, and what is refused."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from roost.registry_client.model_folder import ModelFolder, is_version
from roost.registry_client.overrides import OverrideFolders
from roost.registry_client.repository import LocalRepository
from roost.router.models import Opener

from tests.scarcity import no_descriptors


class NoCache:
    def get_file_digest(self, path: str, inode: int, size: int, mtime_ns: int) -> str | None:
        return None

    def put_file_digest(self, path: str, inode: int, size: int, mtime_ns: int, digest: str) -> None:
        pass


def write(root: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def folder(root: Path, *names: str) -> ModelFolder:
    write(root / "m", *names)
    return LocalRepository(root).open_model("m")


def test_missing_or_wrong_repository(tmp_path: Path) -> None:
    write(tmp_path, "file")
    with pytest.raises(FailedPrecondition, match="'gone' does not exist"):
        LocalRepository(tmp_path / "gone")
    with pytest.raises(FailedPrecondition, match="'file' is not a folder"):
        LocalRepository(tmp_path / "file")


def test_scan_lists_model_folders_sorted_and_logs_others_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("zeta", "alpha", "A.b_c-1", "bad name", "_bad", ".hidden", "x" * 129, "é"):
        (tmp_path / name).mkdir()
    write(tmp_path, "README.md")
    (tmp_path / "linked").symlink_to(tmp_path / "alpha")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    repository = LocalRepository(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert repository.scan() == ["A.b_c-1", "alpha", "linked", "zeta"]
        assert repository.scan() == ["A.b_c-1", "alpha", "linked", "zeta"]
    assert len(caplog.records) == 4
    assert "'bad name'" in caplog.text


def test_scan_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        write(tmp_path, f"m{number}/1/model.onnx")
    repository = LocalRepository(tmp_path)
    scanned: list[object] = []
    scandir = os.scandir

    def count(path: Path) -> object:
        scanned.append(path)
        return scandir(path)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a scan must not look into anything")

    monkeypatch.setattr(os, "scandir", count)
    for call in ("open", "stat", "listdir"):
        monkeypatch.setattr(os, call, refuse)
    names = repository.scan()
    monkeypatch.undo()
    assert len(names) == 50
    assert scanned == [tmp_path]


def test_want_of_descriptors_is_no_fault_of_the_files(tmp_path: Path) -> None:
    write(tmp_path, "m/1/model.onnx", "m/config.pbtxt", content=b"")
    repository, model = LocalRepository(tmp_path), ModelFolder("m", tmp_path / "m")
    description = model.load_config()
    for look in (
        repository.scan,
        model.load_config,
        model.versions,
        model.detect_backend,
        partial(model.stamp, "1", description),
        partial(model.artifact, "1", description, NoCache()),
    ):
        with no_descriptors(), pytest.raises(ResourceExhausted, match="Too many open files"):
            look()
    with no_descriptors():
        assert not model.mentions(b"")
        opened = Opener(explicit=False).open(model)
    assert not opened.was_readable


def test_scan_of_a_repository_that_vanished(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    repository = LocalRepository(tmp_path / "r")
    (tmp_path / "r").rmdir()
    with pytest.raises(FailedPrecondition, match="'r' can't be read") as caught:
        repository.scan()
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("name", ["gone", "", ".", "..", "../r", "m/1", "/etc", "m\0", "m\n", "file"])
def test_unknown_and_dangerous_names_are_not_found(tmp_path: Path, name: str) -> None:
    write(tmp_path / "r", "m/1/model.onnx", "file")
    with pytest.raises(NotFound, match="is not in the model repository"):
        LocalRepository(tmp_path / "r").open_model(name)


def test_versions_are_positive_integers_in_numeric_order(tmp_path: Path) -> None:
    model = folder(
        tmp_path, "10/model.onnx", "9/model.onnx", "1/model.onnx", "0/f", "01/f", "-1/f", "v1/f", "1.5/f", "7"
    )
    for name in ("٣", str(2**63)):
        (model.path / name).mkdir()
    (model.path / "11").symlink_to(model.path / "10")
    (model.path / "12").symlink_to(model.path / "nowhere")
    assert model.versions() == ["1", "9", "10", "11"]


@settings(deadline=None)
@given(st.integers(min_value=-10, max_value=2**64) | st.text())
def test_is_version(value: int | str) -> None:
    expected = isinstance(value, int) and 1 <= value < 2**63
    if isinstance(value, int) or not value.isascii() or not value.isdigit():
        assert is_version(str(value)) == expected
    assert not is_version(f"0{value}")


def test_plain_layout_is_version_one(tmp_path: Path) -> None:
    model = folder(tmp_path, "model.onnx", "weights.bin", "config.pbtxt", ".hidden")
    (model.path / "config.pbtxt").write_text("max_batch_size: 2")
    assert model.versions() == ["1"]
    description = model.load_config()
    artifact = model.artifact("1", description, NoCache())
    assert artifact.path == str(model.path / "model.onnx")
    assert artifact.root == str(model.path)
    assert artifact.size_bytes == 2
    assert [file.name for file in artifact.stamp] == ["model.onnx", "weights.bin"]
    assert artifact.stamp == model.stamp("1", description)
    with pytest.raises(NotFound, match="no version '2'"):
        model.artifact("2", description, NoCache())


def test_version_folders_win_over_a_plain_file(tmp_path: Path) -> None:
    model = folder(tmp_path, "model.onnx", "3/model.onnx")
    assert model.versions() == ["3"]
    with pytest.raises(NotFound):
        model.stamp("1", model.load_config())


def test_both_layouts_have_the_same_digest(tmp_path: Path) -> None:
    write(tmp_path, "a/model.onnx", "b/1/model.onnx", "b/2/model.onnx", "b/config.pbtxt", content=b"")
    write(tmp_path, "b/2/model.onnx", content=b"2")
    a, b = (LocalRepository(tmp_path).open_model(name) for name in "ab")
    plain = a.artifact("1", a.load_config(), NoCache())
    first, second = (b.artifact(version, b.load_config(), NoCache()) for version in ("1", "2"))
    assert plain.digest == first.digest != second.digest
    assert first.root == str(b.path / "1")


def test_a_folder_without_models_has_no_versions(tmp_path: Path) -> None:
    model = folder(tmp_path, "README.md")
    assert model.versions() == []
    assert model.load_config().backend == "onnxruntime"


@pytest.mark.parametrize("version", ["..", "../m/1", "", "/", "1/../1", "01", "1\n", "9"])
def test_dangerous_and_unknown_versions_are_not_found(tmp_path: Path, version: str) -> None:
    model = folder(tmp_path, "1/model.onnx")
    with pytest.raises(NotFound, match="model 'm' has no version"):
        model.artifact(version, model.load_config(), NoCache())


def test_mounted_config_map(tmp_path: Path) -> None:
    """Kubernetes mounts files as links through a hidden folder link that is swapped at once."""
    write(tmp_path / "m" / "..2024", "model.onnx", content=b"one")
    write(tmp_path / "m" / "..2025", "model.onnx", content=b"two")
    model = folder(tmp_path)
    (model.path / "..data").symlink_to("..2024")
    (model.path / "model.onnx").symlink_to("..data/model.onnx")
    description = model.load_config()
    before = model.artifact("1", description, NoCache())
    (model.path / "..data").unlink()
    (model.path / "..data").symlink_to("..2025")
    assert model.stamp("1", description) != before.stamp
    assert model.artifact("1", description, NoCache()).digest != before.digest


def test_stamp_changes_with_files(tmp_path: Path) -> None:
    model = folder(tmp_path, "1/model.onnx")
    description = model.load_config()
    stamp = model.stamp("1", description)
    assert model.stamp("1", description) == stamp
    write(model.path, "1/more.bin")
    assert model.stamp("1", description) != stamp
    (model.path / "1" / "more.bin").unlink()
    assert model.stamp("1", description) == stamp
    os.utime(model.path / "1" / "model.onnx", ns=(5, 5))
    assert model.stamp("1", description) != stamp


def test_missing_model_file_says_what_is_expected_and_what_is_there(tmp_path: Path) -> None:
    model = folder(tmp_path, "1/net.onnx", "2/readme.txt")
    description = model.load_config()
    with pytest.raises(FailedPrecondition, match=r"version 1 .* no file 'model\.onnx'; found 'net\.onnx'"):
        model.artifact("1", description, NoCache())
    with pytest.raises(FailedPrecondition, match=r"version 2 of model 'm' has no file 'model\.onnx'$"):
        model.stamp("2", description)


def test_default_model_filename_and_model_in_a_folder(tmp_path: Path) -> None:
    model = folder(tmp_path, "1/net.onnx", "2/net.onnx/net.onnx", "2/net.onnx/data", "config.pbtxt")
    (model.path / "config.pbtxt").write_text('default_model_filename: "net.onnx"')
    description = model.load_config()
    assert model.artifact("1", description, NoCache()).path.endswith("/1/net.onnx")
    second = model.artifact("2", description, NoCache())
    assert second.path.endswith("/2/net.onnx/net.onnx")
    assert second.root.endswith("/2")


def test_backend_is_detected_from_the_newest_version(tmp_path: Path) -> None:
    model = folder(tmp_path, "1/model.onnx", "2/model.dummy")
    assert model.load_config().backend == "dummy"
    write(model.path, "config.pbtxt", content=b'backend: "onnxruntime"')
    assert model.load_config().backend == "onnxruntime"


def test_config_is_read_with_the_folders_name(tmp_path: Path) -> None:
    model = folder(tmp_path, "1/model.onnx")
    assert model.load_config().config.name == "m"
    write(model.path, "config.pbtxt", content='\ufeffname: "m"\r\nmax_batch_size: 4\r\n'.encode())
    assert model.load_config().max_batch_size == 4


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"max_batch_size: 4\nfoo: 3\n", r"config\.pbtxt line 2, column 1: .*no field named \"foo\""),
        (b"# fine\n\n\xff\n", r"config\.pbtxt line 3: not UTF-8"),
        (b"#" * (2**20 + 1), r"'config\.pbtxt' is larger than the limit of 1048576 bytes"),
        (b'name: "other"', r"name 'other' is not the model's name 'm'"),
    ],
)
def test_broken_configs_say_why(tmp_path: Path, content: bytes, match: str) -> None:
    model = folder(tmp_path, "1/model.onnx")
    write(model.path, "config.pbtxt", content=content)
    with pytest.raises(InvalidArgument, match=match) as caught:
        model.load_config()
    assert str(tmp_path) not in caught.value.message


def test_configs_that_are_no_files(tmp_path: Path) -> None:
    model = folder(tmp_path, "1/model.onnx")
    path = model.path / "config.pbtxt"
    path.symlink_to("nowhere")
    with pytest.raises(InvalidArgument, match=r"'config\.pbtxt' can't be read: No such file"):
        model.load_config()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InvalidArgument, match="not a regular file"):
        model.load_config()
    path.unlink()
    path.mkdir()
    with pytest.raises(InvalidArgument, match="not a regular file"):
        model.load_config()


def test_a_model_that_went_away(tmp_path: Path) -> None:
    model = folder(tmp_path, "1/model.onnx")
    description = model.load_config()
    model.path.rename(tmp_path / "elsewhere")
    for call in (model.versions, model.load_config, lambda: model.artifact("1", description, NoCache())):
        with pytest.raises(NotFound, match="not in the model repository any more"):
            call()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", ()), (b"cat\ndog", ("cat", "dog")), ("\ufeffchat\r\n\r\né\r\n".encode(), ("chat", "", "é"))],
)
def test_labels_are_lines_of_a_file_of_the_model(tmp_path: Path, content: bytes, expected: tuple[str, ...]) -> None:
    model = folder(tmp_path, "1/model.onnx")
    write(model.path, "labels.txt", content=content)
    assert model.read_labels("labels.txt") == expected


@pytest.mark.parametrize(
    "name", ["", "..", "../labels.txt", "/etc/passwd", ".labels", "1/labels.txt", "gone", "1", "bad"]
)
def test_labels_that_can_not_be_read(tmp_path: Path, name: str) -> None:
    model = folder(tmp_path, "1/model.onnx", "1/labels.txt")
    write(model.path, ".labels", "../labels.txt", "bad", content=b"\xff")
    with pytest.raises(InvalidArgument) as caught:
        model.read_labels(name)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    ("file", "match"),
    [
        (
            "1/model.plan",
            "'model.plan' is a TensorRT engine, which no runtime here loads: there is no TensorRT runtime: serve",
        ),
        ("1/model.xml", "no OpenVINO runtime"),
        ("1/model.graphdef/x", "'model.graphdef' is a graph of TensorFlow 1, .*: save it as a SavedModel"),
    ],
)
def test_formats_without_a_runtime_are_named(tmp_path: Path, file: str, match: str) -> None:
    model = folder(tmp_path, file)
    with pytest.raises(FailedPrecondition, match=match):
        model.stamp("1", model.load_config())


@pytest.mark.parametrize(
    ("file", "backend", "found"),
    [
        ("1/model.onnx", "onnxruntime", "1/model.onnx"),
        ("1/model.pt2", "pytorch", "1/model.pt2"),
        ("1/model.savedmodel/saved_model.pb", "tensorflow", "1/model.savedmodel"),
        ("1/saved_model.pb", "tensorflow", "1"),
        ("saved_model.pb", "tensorflow", "."),
        ("model.skops", "sklearn", "model.skops"),
        ("1/model.json", "xgboost", "1/model.json"),
        ("1/model.txt", "lightgbm", "1/model.txt"),
        ("1/model.py", "python", "1/model.py"),
    ],
)
def test_files_say_which_runtime_reads_them(tmp_path: Path, file: str, backend: str, found: str) -> None:
    model = folder(tmp_path, file)
    description = model.load_config()
    assert description.backend == backend
    assert Path(model.artifact("1", description, NoCache()).path) == model.path / found


def test_a_file_of_another_runtime_is_named(tmp_path: Path) -> None:
    model = folder(tmp_path, "1/model.pt")
    write(model.path, "config.pbtxt", content=b'backend: "onnxruntime"')
    with pytest.raises(FailedPrecondition, match=r"found 'model\.pt', which is for backend 'pytorch'"):
        model.stamp("1", model.load_config())


def test_model_settings_are_read_where_there_is_no_config(tmp_path: Path) -> None:
    model = folder(tmp_path, "net.onnx", "artifacts/other.onnx")
    write(
        model.path, "model-settings.json", content=b'{"parameters": {"uri": "./artifacts/other.onnx", "version": "v2"}}'
    )
    description = model.load_config()
    assert model.versions_of(description) == ["v2"]
    assert model.artifact("v2", description, NoCache()).path == str(model.path / "artifacts" / "other.onnx")
    with pytest.raises(NotFound, match="has no version '1'"):
        model.artifact("1", description, NoCache())
    before = model.folder_stamp()
    write(model.path, "config.pbtxt", content=b'default_model_filename: "net.onnx"')
    description = model.load_config()
    assert model.versions_of(description) == ["1"]
    assert model.artifact("1", description, NoCache()).path == str(model.path / "net.onnx")
    assert model.folder_stamp() != before


@pytest.mark.parametrize(
    ("model_format", "config", "backend"),
    [
        ("", "", "xgboost"),
        ("lightgbm", "", "lightgbm"),
        ("lightgbm", 'backend: "onnxruntime"', "onnxruntime"),
        ("triton", "", "xgboost"),
    ],
)
def test_a_format_says_what_a_model_is_whose_configuration_does_not(
    tmp_path: Path, model_format: str, config: str, backend: str
) -> None:
    write(tmp_path / "r", "m/1/model.bst")
    write(tmp_path / "r", "m/config.pbtxt", content=config.encode())
    repository = LocalRepository(tmp_path / "r", model_format)
    assert repository.open_model("m").load_config().backend == backend
    assert repository.folder_of("m").load_config().backend == backend
    brought = OverrideFolders(tmp_path / "o", model_format=model_format).write("m", {"1/model.bst": b"x"})
    assert brought.detect_backend() == (model_format if model_format == "lightgbm" else "xgboost")


def test_files_that_contradict_a_format_are_told_so(tmp_path: Path) -> None:
    write(tmp_path, "m/1/model.onnx")
    model = LocalRepository(tmp_path, "lightgbm").open_model("m")
    with pytest.raises(FailedPrecondition, match=r"for backend 'onnxruntime': --model-format says 'lightgbm'"):
        model.find("1", model.load_config())


def test_a_folder_without_versions_that_holds_what_no_runtime_reads_says_so(tmp_path: Path) -> None:
    opened = Opener(explicit=False).open(folder(tmp_path, "model.h5"))
    assert opened.error is not None
    assert "has no version to serve: 'model.h5' is a Keras model" in opened.error.message
