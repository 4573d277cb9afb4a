"""``model-settings.json``: what of it is understood, and what errors name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.registry_client.description import ModelDescription, Place
from roost.registry_client.model_settings import IMPLEMENTATIONS, parse_settings


def parse(value: dict[str, Any], **options: Any) -> ModelDescription:
    return parse_settings(json.dumps(value), "m", **options)


def tensor(*shape: Any, **changes: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": list(shape), **changes}


def test_all_of_it() -> None:
    description = parse(
        {
            "name": "m",
            "implementation": "mlserver_onnx.OnnxModel",
            "parameters": {"uri": "./artifacts/net.onnx", "version": "v0.1.0", "content_type": "np", "extra": {"a": 1}},
            "inputs": [tensor(-1, 3)],
            "outputs": [tensor(-1, name="y", datatype="BYTES", parameters=None)],
            "max_batch_size": 8,
            "max_batch_time": 0.25,
            "parallel_workers": 2,
        }
    )
    assert (description.backend, description.max_batch_size, description.model_files) == (
        "onnxruntime",
        8,
        ("net.onnx",),
    )
    assert description.place == Place("v0.1.0", "artifacts")
    config = description.config
    assert [(t.name, list(t.dims)) for t in config.input] == [("x", [3])]
    assert [(t.name, list(t.dims)) for t in config.output] == [("y", [])]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250_000
    assert [key.partition(": ")[2] for key in description.without_effect] == [
        "parallel_workers",
        "parameters.content_type",
        "parameters.extra",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, Place("1")),
        ({"parameters": {"uri": "."}}, Place("1")),
        ({"parameters": {"uri": "./"}}, Place("1")),
        ({"parameters": {"uri": "net.onnx"}}, Place("1")),
        ({"parameters": {"uri": "a/b/"}}, Place("1", "a/b")),
        ({"parameters": {"version": "7", "uri": None}}, Place("7")),
    ],
)
def test_where_the_files_are(value: dict[str, Any], expected: Place) -> None:
    assert parse(value).place == expected


@pytest.mark.parametrize(
    ("implementation", "uri", "backend", "file"),
    [
        ("mlserver_sklearn.SKLearnModel", "./model.joblib", "sklearn", "model.joblib"),
        ("mlserver_xgboost.XGBoostModel", "./artifacts/trees.json", "xgboost", "trees.json"),
        ("mlserver_lightgbm.LightGBMModel", "model.bst", "lightgbm", "model.bst"),
        ("mlserver_sklearn.sklearn.SKLearnModel", "m.pkl", "sklearn", "m.pkl"),
        ("mlserver_xgboost.xgboost.XGBoostModel", "m.ubj", "xgboost", "m.ubj"),
        ("roost.pytorch", "net.pt2", "pytorch", "net.pt2"),
        ("roost.onnx", "net.onnx", "onnxruntime", "net.onnx"),
    ],
)
def test_implementations_are_runtimes(implementation: str, uri: str, backend: str, file: str) -> None:
    description = parse({"implementation": implementation, "parameters": {"uri": uri}})
    assert (description.backend, description.model_files) == (backend, (file,))


def test_version_folders_are_served_unless_a_path_is_given() -> None:
    assert parse({}, version_folders=True).place is None
    assert parse({"parameters": {"uri": "net.onnx"}}, version_folders=True).place == Place("1")


def test_batching_is_off_without_a_size_over_one() -> None:
    for size in (0, 1):
        description = parse({"max_batch_size": size, "max_batch_time": 1, "inputs": [tensor(2, 3)]})
        assert description.max_batch_size == 0
        assert not description.config.HasField("dynamic_batching")
        assert list(description.config.input[0].dims) == [2, 3]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({"name": "other"}, "name 'other' is not the model's name"),
        ({"name": 5}, "name: not a text"),
        ({"implementation": "models.Mine"}, "implementation: 'models.Mine' is not known; custom Python"),
        (
            {"implementation": "mlserver_catboost.CatboostModel"},
            "needs the runtime 'catboost', which this server",
        ),
        ({"parameters": []}, "parameters: not an object"),
        ({"parameters": {"uri": "/etc/passwd"}}, "parameters.uri: '/etc/passwd' is not a relative path"),
        ({"parameters": {"uri": "../m.onnx"}}, "parameters.uri"),
        ({"parameters": {"uri": "s3://bucket/m.onnx"}}, "parameters.uri"),
        ({"parameters": {"uri": "a/.hidden"}}, "parameters.uri"),
        ({"parameters": {"uri": "a" * 300}}, "parameters.uri: longer than 256"),
        ({"parameters": {"uri": "\ud800"}}, "parameters.uri: not valid Unicode"),
        ({"parameters": {"version": "a b"}}, "parameters.version: 'a b' is not a name"),
        ({"max_batch_size": -1}, "max_batch_size: -1"),
        ({"max_batch_size": True}, "max_batch_size: not an integer"),
        ({"max_batch_size": 10**30}, "max_batch_size"),
        ({"max_batch_time": -0.1}, "max_batch_time: -0.1"),
        ({"max_batch_time": float("nan")}, "max_batch_time"),
        ({"max_batch_time": "1"}, "max_batch_time: not a number"),
        ({"inputs": {}}, "inputs: not a list"),
        ({"inputs": [3]}, r"inputs\[0\]: not an object"),
        ({"outputs": [{"name": "x", "datatype": "FP32"}]}, r"outputs\[0\]: 'shape' is missing"),
        ({"inputs": [tensor(datatype="FLOAT")]}, r"inputs\[0\].datatype: 'FLOAT' is not one of"),
        ({"inputs": [tensor(0)]}, r"inputs\[0\].shape: dimensions must be"),
        ({"inputs": [tensor(2**70)]}, r"inputs\[0\].shape: dimensions must be"),
        ({"inputs": [tensor("3")]}, r"inputs\[0\].shape: dimensions must be"),
        ({"inputs": [tensor(*[1] * 33)]}, r"inputs\[0\].shape: 33 dimensions"),
        ({"inputs": [tensor(4, 3)], "max_batch_size": 2}, "the first dimension must be -1"),
        ({"inputs": [tensor(1), tensor(1)]}, "input 'x' is listed twice"),
    ],
)
def test_errors_name_the_key(value: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match) as caught:
        parse(value)
    assert caught.value.message.startswith("model-settings.json: ")
    assert len(caught.value.message) < 500


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "nonsense"])
def test_texts_that_are_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^model-settings\.json: "):
        parse_settings(text, "m")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*IMPLEMENTATIONS, "FP32"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "datatype", "shape", "uri", "version"]) | st.text(), inner, max_size=4
        )
    ),
)
_KEYS = ["name", "implementation", "parameters", "inputs", "outputs", "max_batch_size", "max_batch_time", "other"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES))
def test_any_json_is_a_description_or_invalid(value: dict[str, Any]) -> None:
    try:
        result = parse(value).config.name
    except InvalidArgument as error:
        result = error.message
    assert result.isprintable()
    assert result == "m" or result.startswith("model-settings.json: ")
