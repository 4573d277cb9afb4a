"""The samples that a configuration gives for warming up."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from roost.proto import model_config_pb2 as mc
from roost.registry_client.warmup import warmup_samples


def samples(*warmups: str) -> list[dict[str, Any]]:
    config = mc.ModelConfig()
    text_format.Parse("".join(f"model_warmup {{ name: 'w' {warmup} }}" for warmup in warmups), config)
    return list[dict[str, Any]](warmup_samples(config))


def test_every_kind() -> None:
    text = """
        inputs { key: 'a' value { data_type: TYPE_FP32 dims: [1, 4] zero_data: true } }
        inputs { key: 'b' value { data_type: TYPE_FP32 dims: [2] random_data: true } }
        inputs { key: 'c' value { data_type: TYPE_FP32 dims: [3] input_data_file: 'raw' } }
    """
    assert samples(text) == [
        {
            "a": {"shape": [1, 4], "zero": True},
            "b": {"shape": [2], "random": True},
            "c": {"shape": [3], "file": "raw"},
        }
    ]
    assert samples("") == []


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.onnx", "a/../../b"])
def test_files_stay_in_the_models_folder(name: str) -> None:
    assert samples(f"inputs {{ key: 'a' value {{ dims: [1] input_data_file: '{name}' }} }}") == []
