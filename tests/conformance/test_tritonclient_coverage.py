"""No public method of tritonclient's clients and their values is left out of the tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.conformance import test_real_models as real
from tests.conformance import test_tritonclient as base
from tests.conformance import test_tritonclient_extensions as extensions
from tests.conformance import test_tritonclient_streams as streams
from tests.conformance.triton import MODULES, Triton, triton

Test = Callable[..., Any]

# By method: the test that calls it, with all clients that have it.
COVERED: dict[str, Test] = {
    "is_server_live": base.test_health,
    "is_server_ready": base.test_health,
    "is_model_ready": base.test_health,
    "get_server_metadata": base.test_server_metadata,
    "get_model_metadata": base.test_model_metadata,
    "get_model_config": base.test_model_config,
    "get_model_repository_index": base.test_repository_index,
    "load_model": extensions.test_load_with_config_and_files,
    "unload_model": extensions.test_load_with_config_and_files,
    "infer": real.test_real_models,
    "async_infer": base.test_asynchronous_calls_of_the_blocking_clients,
    "start_stream": streams.streamed,
    "stop_stream": streams.streamed,
    "async_stream_infer": streams.streamed,
    "stream_infer": streams.streamed,
    "get_inference_statistics": extensions.test_statistics,
    "get_trace_settings": extensions.test_trace_settings,
    "update_trace_settings": extensions.test_trace_settings,
    "get_log_settings": extensions.test_log_settings,
    "update_log_settings": extensions.test_log_settings,
    "get_system_shared_memory_status": extensions.test_system_shared_memory,
    "register_system_shared_memory": extensions.test_system_shared_memory,
    "unregister_system_shared_memory": extensions.test_system_shared_memory,
    "get_cuda_shared_memory_status": extensions.test_cuda_shared_memory_without_a_gpu,
    "register_cuda_shared_memory": extensions.test_cuda_shared_memory_without_a_gpu,
    "unregister_cuda_shared_memory": extensions.test_cuda_shared_memory_without_a_gpu,
    "plugin": extensions.test_plugins,
    "register_plugin": extensions.test_plugins,
    "unregister_plugin": extensions.test_plugins,
    "generate_request_body": extensions.test_bodies_made_and_read_without_a_connection,
    "parse_response_body": extensions.test_bodies_made_and_read_without_a_connection,
    "from_response_body": extensions.test_bodies_made_and_read_without_a_connection,
    "as_numpy": base.test_infer,
    "get_response": base._response,
    "get_output": extensions.test_system_shared_memory,
    "get_result": base.test_asynchronous_calls_of_the_blocking_clients,
    "set_shared_memory": extensions.test_system_shared_memory,
    "unset_shared_memory": extensions.test_system_shared_memory,
    "set_data_from_numpy": Triton.input,
    "set_shape": extensions.test_inputs_describe_themselves,
    "shape": extensions.test_inputs_describe_themselves,
    "datatype": extensions.test_inputs_describe_themselves,
    "name": extensions.test_inputs_describe_themselves,
    "close": triton,
}
VALUES = ("InferInput", "InferRequestedOutput", "InferResult", "InferAsyncRequest")


def _public(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, callable) if not name.startswith("_")}


@pytest.mark.parametrize("kind", tuple(MODULES))
def test_every_public_method_has_its_test(kind: str) -> None:
    module: ModuleType = MODULES[kind]
    found = _public(module.InferenceServerClient)
    for name in VALUES:
        found |= _public(getattr(module, name, object))
    assert found - COVERED.keys() == set()
    for name in found:
        assert name in inspect.getsource(COVERED[name]), f"{COVERED[name].__name__} does not call {name}"


def test_no_row_is_out_of_date() -> None:
    found: set[str] = set()
    for module in MODULES.values():
        for name in ("InferenceServerClient", *VALUES):
            found |= _public(getattr(module, name, object))
    assert COVERED.keys() - found == set()
