"""The ``roost.*`` parameters of a model, and which backend a configuration means."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.registry_client.backends import (
    BACKENDS,
    MODEL_FORMATS,
    backend_of_file,
    backend_of_files,
    backend_of_format,
    resolve_backend,
)
from roost.registry_client.policy import ModelPolicy


def test_no_parameters_is_the_default_policy() -> None:
    assert ModelPolicy.from_parameters({}) == ModelPolicy()
    assert ModelPolicy.from_parameters({"intra_op_thread_count": "x"}) == ModelPolicy()


def test_all_parameters() -> None:
    policy = ModelPolicy.from_parameters(
        {
            "roost.memory_bytes": "1.5MiB",
            "roost.pin": " True ",
            "roost.min_copies": "1",
            "roost.max_copies": "3",
            "roost.priority": "-5",
            "roost.labels": "team=vision, tier=gold,empty=",
            "roost.required_labels": "disk=ssd",
            "roost.preferred_labels": "zone=a,zone2=b",
            "roost.batching": " Off ",
            "roost.load_timeout_s": "5m",
        }
    )
    assert policy == ModelPolicy(
        memory_bytes=3 * 2**19,
        pin=True,
        min_copies=1,
        max_copies=3,
        priority=-5,
        labels={"team": "vision", "tier": "gold", "empty": ""},
        required_labels={"disk": "ssd"},
        preferred_labels={"zone": "a", "zone2": "b"},
        batching=False,
        load_timeout_s=300.0,
    )


@pytest.mark.parametrize(
    ("text", "batching"), [("on", True), ("off", False), ("auto", None), ("proven: up to 32 rows", None)]
)
def test_batching_is_said_or_found_out(text: str, batching: bool | None) -> None:
    assert ModelPolicy.from_parameters({"roost.batching": text}).batching is batching


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_bytes", "0"),
        ("memory_bytes", "-1"),
        ("memory_bytes", "lots"),
        ("memory_bytes", "9" * 400),
        ("memory_bytes", "1" + " " * 70 + "junk"),
        ("memory_bytes", "4096TiB"),
        ("load_timeout_s", "0"),
        ("load_timeout_s", "soon"),
        ("load_timeout_s", "25h"),
        ("batching", "perhaps"),
        ("batching", ""),
        ("pin", "maybe"),
        ("pin", ""),
        ("min_copies", "-1"),
        ("min_copies", "1_0"),
        ("min_copies", "٣"),
        ("max_copies", "0"),
        ("max_copies", "9" * 5000),
        ("priority", "1001"),
        ("priority", "--1"),
        ("priority", "1.5"),
        ("labels", "noequals"),
        ("labels", "=value"),
        ("labels", "a b=value"),
        ("labels", "a=1,a=2"),
        ("labels", "a=\x07"),
        ("labels", "a=" + "x" * 257),
        ("labels", ",".join(f"k{i}=v" for i in range(65))),
        ("required_labels", "ssd"),
        ("preferred_labels", "zone=a,zone=b"),
    ],
)
def test_bad_values_name_the_parameter(name: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"parameter 'roost\.{name}'") as caught:
        ModelPolicy.from_parameters({f"roost.{name}": value})
    assert len(caught.value.message) < 400


def test_unknown_parameter_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match=r"'roost\.pinned'.*roost\.pin,"):
        ModelPolicy.from_parameters({"roost.pinned": "true"})


def test_more_copies_at_least_than_at_most() -> None:
    with pytest.raises(InvalidArgument, match=r"roost\.min_copies"):
        ModelPolicy.from_parameters({"roost.min_copies": "3", "roost.max_copies": "2"})


_KEYS = st.sampled_from(["memory_bytes", "pin", "min_copies", "max_copies", "priority", "labels", "other"])


@settings(deadline=None)
@given(st.dictionaries(_KEYS.map("roost.".__add__) | st.text(), st.text()))
def test_any_text_is_a_policy_or_invalid(parameters: dict[str, str]) -> None:
    try:
        policy = ModelPolicy.from_parameters(parameters)
    except InvalidArgument:
        return
    assert policy.max_copies is None or policy.min_copies <= policy.max_copies


def test_backend_is_found_by_config_then_file_then_default() -> None:
    assert resolve_backend("dummy", "", "model.onnx", "onnxruntime") == "dummy"
    assert resolve_backend("", "onnxruntime_onnx", "", "dummy") == "onnxruntime"
    assert resolve_backend("onnxruntime", "onnxruntime_onnx", "") == "onnxruntime"
    assert resolve_backend("", "", "net.dummy", "onnxruntime") == "dummy"
    assert resolve_backend("", "", "net.bin", "dummy") == "dummy"
    assert resolve_backend("", "", "") == "onnxruntime"


@pytest.mark.parametrize(
    ("backend", "platform", "match"),
    [
        ("tensorrt", "", "backend 'tensorrt' is not supported"),
        ("", "tensorflow_graphdef", "platform 'tensorflow_graphdef' is not supported"),
        ("pytorch", "tensorflow_savedmodel", "contradicts"),
        ("dummy", "onnxruntime_onnx", "contradicts"),
    ],
)
def test_unknown_or_contradicting_backends(backend: str, platform: str, match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        resolve_backend(backend, platform, "")


def test_backend_of_files() -> None:
    with_files = {name: backend.files for name, backend in BACKENDS.items() if not backend.is_composed}
    assert [backend_of_file(files[0]) for files in with_files.values()] == list(with_files)
    assert backend_of_file("README.md") == ""
    assert backend_of_files(["a.dummy", "model.onnx", "x.txt"]) == "onnxruntime"
    assert backend_of_files(["x.txt"]) == ""
    assert backend_of_files(["labels.pkl", "net.onnx"]) == "onnxruntime"
    assert backend_of_files(["a.onnx", "model.py"]) == "python"


@pytest.mark.parametrize(
    ("format_", "backend"),
    [
        ("onnx", "onnxruntime"),
        ("pytorch", "pytorch"),
        ("tensorflow", "tensorflow"),
        ("keras", "tensorflow"),
        ("sklearn", "sklearn"),
        ("xgboost", "xgboost"),
        ("lightgbm", "lightgbm"),
        ("triton", ""),
        ("paddle", ""),
        ("", ""),
    ],
)
def test_formats_of_kserve(format_: str, backend: str) -> None:
    assert backend_of_format(format_) == backend
    assert (format_ in MODEL_FORMATS) == (format_ not in ("paddle", ""))


@pytest.mark.parametrize(
    ("files", "backend"),
    [
        (["model.onnx"], "onnxruntime"),
        (["model.pt"], "pytorch"),
        (["program.pt2"], "pytorch"),
        (["model.savedmodel"], "tensorflow"),
        (["saved_model.pb", "variables", "assets"], "tensorflow"),
        (["classifier.keras"], "tensorflow"),
        (["model.skops"], "sklearn"),
        (["model.joblib"], "sklearn"),
        (["model.pickle"], "sklearn"),
        (["model.json", "model-settings.json"], "xgboost"),
        (["model.ubj"], "xgboost"),
        (["model.bst"], "xgboost"),
        (["model.txt", "labels.txt"], "lightgbm"),
        (["model.py", "weights.onnx"], "python"),
        (["model.py", "model.onnx"], "onnxruntime"),
        (["vocabulary.json", "words.txt"], ""),
    ],
)
def test_runtimes_of_files(files: list[str], backend: str) -> None:
    assert backend_of_files(files) == backend
    assert backend_of_files(files[::-1]) == backend
