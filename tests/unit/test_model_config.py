"""Model configurations: parsing, what is refused, merging with a model's own signature, completion."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.tensors import DATATYPES, Signature, TensorSpec
from roost.proto import model_config_pb2 as mc
from roost.registry_client.config_fields import FIELDS
from roost.registry_client.model_config import (
    ModelDescription,
    complete_config,
    effective_signature,
    parse_config_json,
    parse_config_text,
    served_versions,
    signature_from_config,
)
from roost.registry_client.reshape import check_reshape, reshaped

FULL = """
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [ { name: "y" data_type: TYPE_STRING dims: [ -1, 2 ] label_filename: "labels.txt" } ]
"""


def parse(text: str) -> ModelDescription:
    return parse_config_text(text, "m")


def spec(name: str, *shape: int, datatype: str = "FP32", optional: bool = False) -> TensorSpec:
    return TensorSpec(name, datatype, shape, optional)


SCALAR_ROWS = TensorSpec("z", "FP32", (-1, 1), inner=(-1,))  # clients of a batching model see rows of one element
MODEL = Signature((spec("x", -1, 3),), (spec("y", -1, -1, 2, datatype="BYTES"), spec("z", -1)))


class TestParsing:
    def test_empty_text(self) -> None:
        description = parse("")
        assert description.config == mc.ModelConfig(name="m")
        assert (description.backend, description.max_batch_size) == ("onnxruntime", 0)
        assert description.model_files == ("model.onnx",)

    def test_backend_and_policy(self) -> None:
        text = 'name: "m" parameters { key: "roost.pin" value { string_value: "true" } }'
        description = parse_config_text(text, "m", detected_backend="dummy")
        assert description.backend == "dummy"
        assert description.model_files == ("model.dummy",)
        assert description.policy.pin
        assert parse('platform: "onnxruntime_onnx"').config.backend == ""

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("max_batch_size: 'x'", r"config\.pbtxt line 1, column 17: Couldn't parse integer: 'x'$"),
            ("\n  foo: 3", r'config\.pbtxt line 2, column 3: .*no field named "foo"'),
            ("input { dims: [1", r'config\.pbtxt line 1, column \d+: Expected ","'),
            ("max_batch_size: 1\n{", "line 2"),
            ("input {\r\n  data_type: TYPE_FP3\r\n}", "line 2, column 14: .*no value named TYPE_FP3"),
            ("version_policy { latest {} all {} }", "another member of oneof"),
            ("x" * 5000 + ": 1", "no field named"),
            ("max_batch_size: 1" + "0" * 5000, "integer: 10000"),
            ("#" * (2**20 + 1), "larger than the limit"),
        ],
    )
    def test_syntax_errors_have_the_line(self, text: str, match: str) -> None:
        with pytest.raises(InvalidArgument, match=match) as caught:
            parse(text)
        assert len(caught.value.message) < 400
        assert "\n" not in caught.value.message

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ('name: "other"', "name 'other' is not the model's name 'm'"),
            ("max_batch_size: -1", "max_batch_size is -1"),
            ("sequence_batching { iterative_sequence: true }", "iterative_sequence is not supported"),
            ("batch_input { }", "batch_input is not supported"),
            ("batch_output { }", "batch_output is not supported"),
            ('input { name: "x" reshape { } }', "input 'x': a reshape needs dims"),
            ('output { name: "y" dims: 2 reshape { shape: 1 } }', r"output 'y': reshape \[1\] does not fit dims \[2\]"),
            ('input { name: "x" dims: 0 reshape { } }', "must be positive or -1, not 0"),
            ('input { name: "x" dims: 4 reshape { shape: [0, 4] } }', "its reshape must be positive or -1, not 0"),
            ('input { name: "x" dims: [-1, 4] reshape { shape: [4, -1] } }', "does not fit"),
            ('input { name: "x" dims: [-1, 4] reshape { shape: 4 } }', "does not fit"),
            ('output { name: "y" label_filename: "../labels" }', "label_filename of output 'y' must be the plain name"),
            ('parameters { key: "intra_op_thread_count" value { string_value: "x" } }', "'intra_op_thread_count': 'x'"),
            ('parameters { key: "inter_op_thread_count" value { string_value: "9999" } }', "threads from 0 to 1024"),
            ('parameters { key: "execution_mode" value { string_value: "2" } }', "'execution_mode': '2' is not 0"),
            ("model_transaction_policy { decoupled: true }", "decoupled"),
            (
                'backend: "tensorrt"',
                "backend 'tensorrt' is not supported; known backends: lightgbm, onnxruntime, python",
            ),
            ('platform: "tensorrt_plan"', "platform 'tensorrt_plan' is not supported"),
            ("input { dims: 1 }", "an input has no name"),
            ('input { name: "x" } input { name: "x" }', "input 'x' is listed twice"),
            ('output { name: "x" dims: [ 1, 0 ] }', "output 'x': dims must be positive or -1, not 0"),
            ('input { name: "x" dims: -2 }', "input 'x': dims must be positive or -1, not -2"),
            ('input { name: "x" dims: [' + ",".join("1" * 33) + "] }", "over the limit of 32"),
            ("version_policy { specific { } }", "specific lists no versions"),
            ("version_policy { specific { versions: [1, 0] } }", "versions must be positive, not 0"),
            (
                "dynamic_batching { preferred_batch_size: 2 }",
                "preferred size must be <= max batch size 0, not 2",
            ),
            (
                "max_batch_size: 2 dynamic_batching { preferred_batch_size: 0 }",
                "preferred size must be positive, not 0",
            ),
            ("dynamic_batching { priority_levels: 2 }", r"default priority level must be in range \[1, 2\], not 0"),
            (
                "dynamic_batching { priority_levels: 2 default_priority_level: 1 preserve_ordering: true }",
                "Only one priority level is allowed when 'preserve_ordering' is true",
            ),
            (
                "dynamic_batching { preserve_ordering: true "
                "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 } }",
                "can not have DELAY as timeout action when 'preserve_ordering' is true",
            ),
            (
                "dynamic_batching { priority_queue_policy { key: 3 value { } } }",
                r"priority queue policy must have priority level in range \[1, 0\], not 3",
            ),
            ("instance_group { count: -1 }", "count is -1"),
            (
                "instance_group { } instance_group { kind: KIND_CPU gpus: 0 }",
                "instance group m_1 of model m has kind KIND_CPU but specifies one or more GPUs",
            ),
            ("instance_group { name: 'g' kind: KIND_MODEL gpus: 0 }", "group g of model m has kind KIND_MODEL but"),
            ("instance_group { kind: KIND_GPU gpus: [0, 1, 0] }", "invalid or repeated gpu id 0"),
            ("instance_group { kind: KIND_GPU gpus: -1 }", "invalid or repeated gpu id -1"),
            ("instance_group { rate_limiter { resources { count: 1 } } }", "a resource of rate_limiter has no name"),
            (
                "instance_group { rate_limiter { resources [ { name: 'R' }, { name: 'R' global: true } ] } }",
                "resource 'R' of rate_limiter is listed twice",
            ),
            (
                "response_cache { enable: true } model_transaction_policy { decoupled: true } backend: 'dummy'",
                "response_cache is not supported for models with decoupled transaction policy",
            ),
            (
                "response_cache { enable: true } sequence_batching { }",
                "response_cache is not supported for models with sequence_batching",
            ),
            ("model_warmup { name: 'w' batch_size: 3 } max_batch_size: 2", "batch_size 3 is over max_batch_size 2"),
            (
                "model_warmup { name: 'w' inputs { key: 'x' value { dims: [1, -1] zero_data: true } } }",
                "model_warmup 'w': warmup setting expects all variable-size dimensions are specified for input 'x'",
            ),
            (
                "model_warmup { name: 'w' inputs { key: 'x' value { dims: 1 } } }",
                "model_warmup 'w': warmup setting expects input 'x' to have input_data_type set",
            ),
            (
                "model_warmup { inputs { key: 'x' value { dims: 1 input_data_file: '../secret' } } }",
                "the file of input 'x' is not in the model's folder 'warmup'",
            ),
            (
                "model_warmup { inputs { key: 'x' value { dims: [1000000, 1000000] random_data: true } } }",
                "input 'x' takes more than 256 MiB",
            ),
            ("parameters { key: 'roost.threads' value { string_value: '0' } }", "'0' is not an integer from 1 to 1024"),
            ('default_model_filename: "../secret"', "default_model_filename"),
            ('default_model_filename: ".."', "default_model_filename"),
            ('parameters { key: "roost.pin" value { string_value: "x" } }', "'roost.pin'"),
            ('parameters { key: "roost.x" value { string_value: "x" } }', "unknown parameter 'roost.x'"),
        ],
    )
    def test_refused(self, text: str, match: str) -> None:
        with pytest.raises(InvalidArgument, match=match) as caught:
            parse(text)
        assert caught.value.message.startswith("config.pbtxt: ")

    def test_decoupled_is_for_the_dummy(self) -> None:
        assert parse('backend: "dummy" model_transaction_policy { decoupled: true }').backend == "dummy"

    def test_json_takes_strings_for_integers_and_names_of_enumerations(self) -> None:
        value = {
            "max_batch_size": "8",
            "backend": "onnxruntime",
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["3"]}],
            "output": [{"name": "y", "data_type": "TYPE_STRING", "dims": [-1, 2], "labelFilename": "labels.txt"}],
        }
        assert parse_config_json(json.dumps(value), "m") == parse(FULL)
        assert parse_config_json(" \n{}", "m", detected_backend="dummy").backend == "dummy"

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("{", "Failed to load JSON"),
            ('{"max_batch_size": 4, "foo": 1}', 'no field named "foo"'),
            ('{"max_batch_size": 1.5}', "max_batch_size"),
            ('{"input": [{"name": "x", "data_type": 99}]}', "data_type has no value 99"),
            ('{"instance_group": [{"kind": 7}]}', "kind has no value 7"),
            ('{"name": "a", "name": "b"}', "duplicate key"),
            ('{"input":' + "[" * 100_000, "recursion"),
            ('{"name": "other"}', "name 'other'"),
        ],
    )
    def test_json_errors(self, text: str, match: str) -> None:
        with pytest.raises(InvalidArgument, match=match) as caught:
            parse_config_json(text, "m")
        assert caught.value.message.startswith("model config: ")
        assert len(caught.value.message) < 400


class TestFields:
    def test_every_field_is_decided(self) -> None:
        def decided(descriptor: Any, prefix: str) -> None:
            for field in descriptor.fields:
                if prefix + field.name not in FIELDS:
                    assert any(path.startswith(f"{prefix}{field.name}.") for path in FIELDS), prefix + field.name
                    decided(field.message_type, f"{prefix}{field.name}.")

        decided(mc.ModelConfig.DESCRIPTOR, "")
        paths = {path.split(".")[0] for path in FIELDS}
        assert paths == set(mc.ModelConfig.DESCRIPTOR.fields_by_name)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (FULL, ()),
            ("optimization { graph { level: 1 } input_pinned_memory { enable: true } }", ()),
            (
                "optimization { cuda { graphs: true } priority: PRIORITY_MAX }",
                ("optimization.cuda", "optimization.priority"),
            ),
            ("instance_group { count: 1 kind: KIND_CPU }", ()),
            (
                "instance_group { count: 2 } instance_group { count: 3 profile: '1' }",
                ("instance_group.profile",),
            ),
            ("instance_group { kind: KIND_GPU gpus: 1 }", ()),
            ("instance_group { rate_limiter { resources { name: 'R' count: 2 } priority: 3 } }", ()),
            ("response_cache { enable: true } model_warmup { name: 'w' }", ()),
            ("cc_model_filenames { key: '7' value: 'x' }", ("cc_model_filenames",)),
            ("model_operations { op_library_filename: 'evil.so' }", ("model_operations",)),
            ("model_repository_agents { agents { name: 'a' } }", ("model_repository_agents",)),
            ("input { name: 'x' is_shape_tensor: true format: FORMAT_NHWC }", ("input.is_shape_tensor",)),
            (
                "parameters { key: 'foo' value { } } parameters { key: 'roost.pin' value { string_value: '1' } }",
                ("parameters.foo",),
            ),
            ("parameters { key: 'execution_mode' value { string_value: '1' } }", ()),
            (
                "backend: 'tensorflow' parameters { key: 'roost.threads' value { string_value: '1' } }",
                ("parameters.roost.threads",),
            ),
        ],
    )
    def test_what_has_no_effect_is_known(self, text: str, expected: tuple[str, ...]) -> None:
        assert parse(text).without_effect == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", {}),
            ("optimization { graph { level: -1 } }", {"graph_level": "basic"}),
            ("optimization { graph { level: 1 } }", {"graph_level": "extended"}),
            ("optimization { graph { level: 2 } }", {"graph_level": "off"}),
            ("optimization { graph { } }", {"graph_level": "all"}),
            (
                'parameters { key: "intra_op_thread_count" value { string_value: "2" } } '
                'parameters { key: "execution_mode" value { string_value: "1" } }',
                {"intra_op_thread_count": "2", "execution_mode": "1"},
            ),
        ],
    )
    def test_options_for_the_runtime(self, text: str, expected: dict[str, str]) -> None:
        assert parse(text).options == expected
        assert parse(f'backend: "dummy" {text}').options == {}

    @pytest.mark.parametrize(
        ("other", "same"),
        [
            ("", True),
            ("version_policy { all { } }", True),
            ("instance_group { count: 2 }", True),
            ("instance_group { count: 2 } instance_group { kind: KIND_CPU }", False),
            ("instance_group { gpus: 1 }", False),
            ("max_batch_size: 4", False),
            ("optimization { graph { level: 2 } }", False),
            ('parameters { key: "roost.pin" value { string_value: "true" } }', False),
            ('backend: "dummy"', False),
        ],
    )
    def test_what_needs_no_new_load(self, other: str, same: bool) -> None:
        assert parse("").loads_like(parse(other)) is same


class TestReshape:
    @pytest.mark.parametrize(
        ("dims", "shape"),
        [([1], []), ([4], [2, 2]), ([-1, 6], [-1, 2, 3]), ([2, -1, -1, 3], [1, 2, -1, -1, 3]), ([-1], [-1, 1])],
    )
    def test_what_fits(self, dims: list[int], shape: list[int]) -> None:
        check_reshape("x", dims, shape)
        check_reshape("x", shape or [1], dims)
        given = tuple(7 if dim == -1 else dim for dim in dims)
        wanted = tuple(7 if dim == -1 else dim for dim in shape)
        assert reshaped(given, dims, shape) == wanted
        assert reshaped(wanted, shape, dims) == given

    def test_a_shape_that_is_not_the_specified_one(self) -> None:
        assert reshaped((3,), (4,), (2, 2)) is None
        assert reshaped((4, 1), (4,), (2, 2)) is None

    def test_clients_see_dims_and_the_model_its_own_shape(self) -> None:
        model = Signature((spec("x", -1, 2, 3),), (spec("y", -1),))
        text = """max_batch_size: 2 input { name: "x" dims: 6 reshape { shape: [2, 3] } }
                  output { name: "y" data_type: TYPE_FP32 dims: 1 reshape { } }"""
        merged = effective_signature(parse(text), model)
        assert [(s.shape, s.inner) for s in (*merged.inputs, *merged.outputs)] == [
            ((-1, 6), (-1, 2, 3)),
            ((-1, 1), (-1,)),
        ]
        with pytest.raises(InvalidArgument, match=r"input 'x': the config says reshape \[2, 3\] .* shape \[-1, 3, 2\]"):
            effective_signature(parse(text), Signature((spec("x", -1, 3, 2),), model.outputs))


_WORDS = st.sampled_from(
    [
        *(
            "input",
            "output",
            "name",
            "dims",
            "data_type",
            "max_batch_size",
            "parameters",
            "key",
            "value",
            "string_value",
        ),
        *("version_policy", "latest", "specific", "versions", "dynamic_batching", "priority_levels", "TYPE_FP32"),
        *("{", "}", "[", "]", ":", ",", "'", "#", "\\", "\n", "\ud800", "\x00"),
        *('"m"', '"roost.pin"', '"true"', "-1", "9" * 30, "1e999"),
    ]
)
_SOUP = st.lists(_WORDS, max_size=30).map(" ".join) | st.text()
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*mc.ModelConfig.DESCRIPTOR.fields_by_name, "latest", "dims", "key", "kind"]) | st.text(),
            inner,
            max_size=4,
        )
    ),
)


def outcome(parse_config: Callable[[str, str], ModelDescription], text: str) -> str:
    """The model's name, or the reason why the text is invalid; any other error is the test's failure."""
    try:
        return parse_config(text, "m").config.name
    except InvalidArgument as error:
        return error.message


class TestArbitraryText:
    @settings(deadline=None)
    @given(_SOUP)
    def test_text_is_a_description_or_invalid(self, text: str) -> None:
        result = outcome(parse_config_text, text)
        assert result.isprintable()
        assert result == "m" or result.startswith("config.pbtxt")

    @settings(deadline=None)
    @given(_SOUP | _JSON.map(json.dumps))
    def test_json_is_a_description_or_invalid(self, text: str) -> None:
        result = outcome(parse_config_json, text)
        assert result.isprintable()
        assert result == "m" or result.startswith("model config: ")


class TestVersionPolicy:
    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            ("", ["10"]),
            ("version_policy { }", ["10"]),
            ("version_policy { latest { } }", ["10"]),
            ("version_policy { latest { num_versions: 2 } }", ["9", "10"]),
            ("version_policy { latest { num_versions: 99 } }", ["1", "9", "10"]),
            ("version_policy { all { } }", ["1", "9", "10"]),
            ("version_policy { specific { versions: [9, 1, 7] } }", ["1", "9"]),
        ],
    )
    def test_served_versions(self, policy: str, expected: list[str]) -> None:
        assert served_versions(parse(policy), ["10", "9", "1"]) == expected
        assert served_versions(parse(policy), []) == []


class TestSignatures:
    def test_a_complete_config_is_a_signature(self) -> None:
        expected = Signature((spec("x", -1, 3),), (spec("y", -1, -1, 2, datatype="BYTES"),))
        assert signature_from_config(parse(FULL)) == expected
        assert effective_signature(parse(FULL), MODEL) == expected

    @pytest.mark.parametrize(
        "text",
        [
            "",
            'input { name: "x" data_type: TYPE_FP32 dims: 1 }',
            'input { name: "x" data_type: TYPE_FP32 } output { name: "y" data_type: TYPE_FP32 dims: 1 }',
            'input { name: "x" dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }',
        ],
    )
    def test_an_incomplete_config_is_none(self, text: str) -> None:
        assert signature_from_config(parse(text)) is None

    def test_missing_sides_datatypes_and_dims_come_from_the_model(self) -> None:
        assert effective_signature(parse(""), MODEL) == MODEL
        batched = effective_signature(parse("max_batch_size: 4"), MODEL)
        assert batched == Signature(MODEL.inputs, (MODEL.outputs[0], SCALAR_ROWS))
        assert effective_signature(parse('input { name: "x" }'), MODEL) == MODEL
        only_z = effective_signature(parse('max_batch_size: 4 output { name: "y" }'), MODEL)
        assert only_z == Signature(MODEL.inputs, MODEL.outputs[:1])

    def test_the_config_decides_order_narrower_dims_and_optional(self) -> None:
        model = Signature((spec("a", -1, -1), spec("b", 2), spec("c", 3, optional=True)), (spec("y", -1),))
        text = 'input { name: "b" optional: true } input { name: "a" dims: [ -1, 5 ] }'
        merged = effective_signature(parse(text), model)
        assert merged.inputs == (spec("b", 2, optional=True), spec("a", -1, 5))

    def test_an_output_of_unknown_rank_takes_the_configs_dims(self) -> None:
        model = Signature((spec("x", -1, 3),), (spec("y"),))
        text = 'max_batch_size: 2 output { name: "y" dims: 7 }'
        assert effective_signature(parse(text), model).outputs == (spec("y", -1, 7),)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ('input { name: "w" }', "input 'w' is in the config, but not in the model; its inputs: 'x'"),
            ('output { name: "w" }', "output 'w' is in the config, but not in the model; its outputs: 'y', 'z'"),
            (
                'input { name: "x" data_type: TYPE_INT64 }',
                "input 'x': the config says data_type TYPE_INT64, the model has TYPE_FP32",
            ),
            ('input { name: "x" dims: [ -1, 4 ] }', r"input 'x': the config says dims \[-1, 4\], .* shape \[-1, 3\]"),
            ('input { name: "x" dims: [ -1, -1 ] }', r"dims \[-1, -1\], the model has shape \[-1, 3\]"),
            ('input { name: "x" dims: 3 }', r"dims \[3\], the model"),
            ('max_batch_size: 2 input { name: "x" dims: 4 }', r"dims \[4\] behind the batch dimension"),
        ],
    )
    def test_contradictions_say_what_both_have(self, text: str, match: str) -> None:
        with pytest.raises(InvalidArgument, match=match):
            effective_signature(parse(text), MODEL)

    def test_an_input_that_the_model_needs_must_be_listed(self) -> None:
        model = Signature((spec("a", -1), spec("b", -1)), (spec("y", -1),))
        with pytest.raises(InvalidArgument, match="input 'b' is needed by the model"):
            effective_signature(parse('input { name: "a" }'), model)

    @pytest.mark.parametrize("shape", [(), (1, 3), (0,)])
    def test_batching_needs_a_variable_first_dimension(self, shape: tuple[int, ...]) -> None:
        for model in (
            Signature((spec("x", *shape),), (spec("y", -1),)),
            Signature((spec("x", -1),), (spec("y", *shape),)),
        ):
            assert effective_signature(parse(""), model) == model
            with pytest.raises(InvalidArgument, match=r"max_batch_size is 2, but .* no variable first dimension"):
                effective_signature(parse("max_batch_size: 2"), model)
        hidden = Signature((spec("x", -1),), (spec("y", -1), spec("z", *shape)))
        (shown,) = effective_signature(parse('max_batch_size: 2 output { name: "y" }'), hidden).outputs
        assert (shown.name, shown.shape, shown.inner) == ("y", (-1, 1), (-1,))


class TestCompletion:
    def test_defaults(self) -> None:
        description = parse("max_batch_size: 4")
        config = complete_config(description, effective_signature(description, MODEL))
        expected = """
            name: "m" platform: "onnxruntime_onnx" backend: "onnxruntime" max_batch_size: 4
            version_policy { latest { num_versions: 1 } }
            input { name: "x" data_type: TYPE_FP32 dims: 3 }
            output { name: "y" data_type: TYPE_STRING dims: [ -1, 2 ] }
            output { name: "z" data_type: TYPE_FP32 dims: 1 reshape { } }
            optimization { input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
            instance_group { name: "m" kind: KIND_CPU count: 1 }
            default_model_filename: "model.onnx"
        """
        assert config == text_format.Parse(expected, mc.ModelConfig())

    def test_what_is_written_stays(self) -> None:
        text = (
            FULL
            + """
            version_policy { specific { versions: [ 2 ] } }
            parameters { key: "intra_op_thread_count" value { string_value: "2" } }
            metric_tags { key: "team" value: "vision" }
            default_model_filename: "net.onnx"
            instance_group [ { count: 3 }, { name: "big" kind: KIND_MODEL count: 2 } ]
            optimization { graph { level: 1 } input_pinned_memory { enable: false } }
            dynamic_batching { }
            """
        )
        description = parse(text)
        written = mc.ModelConfig()
        written.CopyFrom(description.config)
        config = complete_config(description, effective_signature(description, MODEL))
        assert description.config == written
        assert config.version_policy == written.version_policy
        assert config.parameters["intra_op_thread_count"].string_value == "2"
        assert config.metric_tags["team"] == "vision"
        assert config.default_model_filename == "net.onnx"
        assert config.output[0].label_filename == "labels.txt"
        groups = [(group.name, group.kind, group.count) for group in config.instance_group]
        kinds = mc.ModelInstanceGroup
        assert groups == [("m_0", kinds.KIND_CPU, 3), ("big", kinds.KIND_MODEL, 2)]
        assert not config.optimization.input_pinned_memory.enable
        assert config.optimization.output_pinned_memory.enable
        assert config.optimization.graph.level == 1
        assert list(config.dynamic_batching.preferred_batch_size) == [8]

    def test_max_batch_size_is_never_raised(self) -> None:
        config = complete_config(parse("dynamic_batching { }"), MODEL)
        assert config.max_batch_size == 0
        assert list(config.input[0].dims) == [-1, 3]
        assert not config.dynamic_batching.preferred_batch_size

    def test_dummy_has_no_platform(self) -> None:
        config = complete_config(parse('backend: "dummy"'), MODEL)
        assert (config.platform, config.backend, config.default_model_filename) == ("", "dummy", "model.dummy")


_DIMS = st.integers(1, 9) | st.just(-1)


@st.composite
def _signatures(draw: st.DrawFn) -> Signature:
    def side(kind: str) -> tuple[TensorSpec, ...]:
        names = draw(st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=3, unique=True))
        datatypes = st.sampled_from(sorted(DATATYPES))
        return tuple(
            TensorSpec(
                name, draw(datatypes), (-1, *draw(st.lists(_DIMS, max_size=2))), kind == "input" and draw(st.booleans())
            )
            for name in names
        )

    return Signature(side("input"), side("output"))


@st.composite
def _cases(draw: st.DrawFn) -> tuple[ModelDescription, Signature]:
    """A model and a configuration that says a part of what the model is."""
    model = draw(_signatures())
    batched = draw(st.booleans())

    def declare(own: TensorSpec) -> dict[str, Any]:
        item: dict[str, Any] = {"name": own.name}
        if draw(st.booleans()):
            item["data_type"] = DATATYPES[own.datatype].config_name
        if draw(st.booleans()):
            item["dims"] = [draw(_DIMS) if dim == -1 else dim for dim in own.shape[batched:]]
        return item

    inputs = [item for item in model.inputs if not item.optional or draw(st.booleans())] if draw(st.booleans()) else []
    outputs = [item for item in model.outputs if draw(st.booleans())]
    config = {
        "max_batch_size": 4 if batched else 0,
        "input": [declare(item) for item in inputs],
        "output": [declare(item) for item in draw(st.permutations(outputs))],
    }
    return parse_config_json(json.dumps(config), "m"), model


class TestProperties:
    @settings(deadline=None)
    @given(_cases())
    def test_merging_keeps_what_the_model_has_and_is_idempotent(self, case: tuple[ModelDescription, Signature]) -> None:
        description, model = case
        merged = effective_signature(description, model)
        own = {item.name: item for item in model.inputs}
        for item in merged.inputs:
            assert item.datatype == own[item.name].datatype
            assert all(dim in (-1, new) for dim, new in zip(own[item.name].shape, item.own_shape, strict=True))
        assert {item.name for item in model.inputs if not item.optional} <= {item.name for item in merged.inputs}
        listed = [item.name for item in description.config.output]
        assert [item.name for item in merged.outputs] == (listed or [item.name for item in model.outputs])
        assert effective_signature(description, merged) == merged

    @settings(deadline=None)
    @given(_cases())
    def test_a_config_that_is_a_signature_agrees_with_the_merged_one(
        self, case: tuple[ModelDescription, Signature]
    ) -> None:
        description, model = case
        alone = signature_from_config(description)
        if alone is not None:
            merged = effective_signature(description, model)
            assert alone.outputs == merged.outputs
            assert [(i.name, i.datatype, i.shape) for i in alone.inputs] == [
                (i.name, i.datatype, i.shape) for i in merged.inputs
            ]

    @settings(deadline=None)
    @given(_cases())
    def test_the_completed_config_describes_the_same_model(self, case: tuple[ModelDescription, Signature]) -> None:
        description, model = case
        merged = effective_signature(description, model)
        config = complete_config(description, merged)
        again = parse_config_json(json_format.MessageToJson(config, preserving_proto_field_name=True), "m")
        assert again.max_batch_size == description.max_batch_size
        assert effective_signature(again, model) == merged
        assert complete_config(again, merged) == config

    @settings(deadline=None)
    @given(_signatures(), st.data())
    def test_a_contradiction_is_always_found(self, model: Signature, data: st.DataObject) -> None:
        own = data.draw(st.sampled_from(model.inputs))
        wrong_type = data.draw(st.sampled_from(sorted(DATATYPES)).filter(lambda name: name != own.datatype))
        wrong: dict[str, Any] = data.draw(
            st.sampled_from(
                [
                    {"data_type": DATATYPES[wrong_type].config_name},
                    {"dims": [*own.shape, 1]},
                    {"name": own.name + "?"},
                ]
            )
        )
        inputs = [{"name": item.name} | (wrong if item is own else {}) for item in model.inputs]
        description = parse_config_json(json.dumps({"input": inputs}), "m")
        with pytest.raises(InvalidArgument, match="the model"):
            effective_signature(description, model)
