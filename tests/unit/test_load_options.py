"""What a runtime is told of the configuration of the model that it loads."""

from __future__ import annotations

import json

import pytest
from roost.registry_client.load_options import load_options, said_under
from roost.registry_client.model_config import parse_config_text

TENSORS = """
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [3, -1] }
input { name: "flat" data_type: TYPE_INT64 dims: [4] reshape { shape: [2, 2] } }
output { name: "y" }
parameters { key: "roost.pin" value { string_value: "true" } }
parameters { key: "mine" value { string_value: "5" } }
"""


def options(text: str, *, allow_code: bool = False) -> dict[str, str]:
    return load_options(parse_config_text(text, "m"), "3", allow_code=allow_code)


def test_declared_tensors_are_as_the_model_sees_them() -> None:
    given = options(f'backend: "pytorch" {TENSORS}')
    assert json.loads(given["roost.inputs"]) == [["x", "FP32", [-1, 3, -1]], ["flat", "INT64", [-1, 2, 2]]]
    assert json.loads(given["roost.outputs"]) == [["y", "", [-1]]]
    assert (given["roost.max_batch_size"], given["roost.model_name"], given["roost.model_version"]) == ("8", "m", "3")
    assert "roost.model_config" not in given


@pytest.mark.parametrize("allowed", [False, True])
def test_code_has_to_be_allowed(allowed: bool) -> None:
    given = options('backend: "sklearn"', allow_code=allowed)
    assert given.get("roost.allow_code") == ("true" if allowed else None)


def test_python_models_get_all_of_the_configuration() -> None:
    given = options(f'backend: "python" {TENSORS}', allow_code=True)
    assert given["mine"] == "5"
    assert "roost.pin" not in given
    config = json.loads(given["roost.model_config"])
    assert config["max_batch_size"] == 8
    assert config["parameters"]["mine"] == {"string_value": "5"}
    assert config["input"][0]["data_type"] == "TYPE_FP32"


def test_onnx_models_say_all_that_themselves() -> None:
    text = TENSORS + 'parameters { key: "intra_op_thread_count" value { string_value: "2" } }'
    assert options(f'backend: "onnxruntime" {text}', allow_code=True) == {"intra_op_thread_count": "2"}


def test_what_a_runtime_says_depends_on_what_is_declared_but_for_onnx_models() -> None:
    def under(text: str) -> str:
        return said_under(parse_config_text(text, "m"))

    plain = 'backend: "sklearn"'
    declared = f'{plain} output {{ name: "output-0" data_type: TYPE_INT64 dims: [1] }}'
    assert under(plain) == under(f"{plain} instance_group {{ count: 2 }}")
    assert len({under(plain), under(declared), under('backend: "xgboost"')}) == 3
    assert under('backend: "onnxruntime"') == under(f'backend: "onnxruntime" {TENSORS}') == "onnxruntime"
