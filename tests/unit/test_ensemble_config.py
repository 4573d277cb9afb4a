"""Ensembles as configurations have them: what is refused, which steps wait for which, and what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from roost.core.errors import InvalidArgument
from roost.core.tensors import Signature
from roost.proto import model_config_pb2 as mc
from roost.registry_client.ensemble import Ensemble
from roost.registry_client.model_config import (
    ModelDescription,
    complete_config,
    parse_config_text,
    signature_from_config,
)
from roost.registry_client.model_folder import ModelFolder

from tests.ensembles import ensemble, step

X = {"x": ("FP32", [4])}
Y = {"y": ("FP32", [4])}
FIRST = step("first", {"a": "x"}, {"b": "t"})
SECOND = step("second", {"a": "t"}, {"b": "y"})


def described(text: str) -> ModelDescription:
    return parse_config_text(text, "whole")


def steps_of(text: str) -> Ensemble:
    found = described(text).ensemble
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('platform: "ensemble"', "ensemble_scheduling must be specified"),
        (ensemble(X, Y, FIRST, SECOND).replace('platform: "ensemble"', ""), "whose platform is not 'ensemble'"),
        (ensemble(X, Y), "must specify 'step'"),
        (ensemble({}, Y, FIRST, SECOND), "must specify its inputs"),
        (ensemble(X, {}, FIRST, SECOND), "must specify its outputs"),
        (ensemble(X, Y, FIRST, SECOND).replace("data_type: TYPE_FP32", "", 1), "input 'x' .* must specify 'data_type'"),
        (ensemble(X, {"y": ("FP32", [])}, FIRST, SECOND), "output 'y' .* must specify 'dims'"),
        (ensemble(X, Y, FIRST, SECOND, more="instance_group { count: 2 }"), "instance_group can't be specified"),
        (ensemble(X, Y, FIRST, SECOND, more="optimization { priority: PRIORITY_MAX }"), "optimization can't be"),
        (ensemble(X, Y, FIRST, SECOND, more='default_model_filename: "m.onnx"'), "default_model_filename can't be"),
        (ensemble(X, Y, FIRST, step("", {"a": "t"}, {"b": "y"})), "step 1 .*must specify 'model_name'"),
        (ensemble(X, Y, FIRST, step("../up", {"a": "t"}, {"b": "y"})), "invalid model_name in step 1"),
        (ensemble(X, Y, FIRST, step("second", {}, {"b": "y"})), "step 1 .model 'second'.* must specify 'input_map'"),
        (ensemble(X, Y, FIRST, step("second", {"a": "t"}, {})), "step 1 .model 'second'.* must specify 'output_map'"),
        (ensemble(X, Y, FIRST, step("second", {"a": ""}, {"b": "y"})), "'input_map' is empty"),
        (ensemble(X, Y, FIRST, step("second", {"a": "t"}, {"b": "y"}, version=-2)), "model_version must be positive"),
        (
            ensemble(X, Y, FIRST, SECOND.replace("model_name", 'model_namespace: "n" model_name')),
            "model_namespace is not supported",
        ),
        (
            ensemble(X, Y, FIRST, SECOND, step("third", {"a": "x"}, {"b": "t"})),
            "tensor 't' can appear in an output map only once: step 0 .model 'first'. and step 2 .model 'third'.",
        ),
        (ensemble(X, Y, step("first", {"a": "x"}, {"b": "x"})), "step 0 .* maps output 'b' to 'x', which is an input"),
        (
            ensemble(X, Y, step("first", {"a": "x"}, {"b": "other"}), SECOND),
            "step 1 .model 'second'. takes ensemble tensor 't' as input 'a'.* no step produces it",
        ),
        (ensemble(X, {"z": ("FP32", [4])}, FIRST, SECOND), "output 'z' is not produced by any step"),
        (ensemble(X, X, FIRST), "output 'x' is not produced by any step"),
        (ensemble({**X, "z": ("FP32", [1])}, Y, FIRST, SECOND), "input 'z' is not used"),
        (
            ensemble(X, Y, FIRST, step("second", {"a": "t"}, {"b": "y", "c": "spare"})),
            "tensor 'spare' is unused: step 1 .model 'second'. produces it",
        ),
        (ensemble(X, Y, step("self", {"a": "x", "c": "y"}, {"b": "y"})), "wait for one another: step 0 .* -> step 0"),
        (
            ensemble(
                X,
                {"b": ("FP32", [4])},
                step("one", {"x": "x", "in": "c"}, {"out": "a"}),
                step("two", {"in": "a"}, {"out": "b"}),
                step("three", {"in": "b"}, {"out": "c"}),
            ),
            "step 0 .model 'one'. -> step 1 .model 'two'. -> step 2 .model 'three'. -> step 0",
        ),
        (ensemble(X, Y, *([FIRST] * 1001)), "over the limit of 1000"),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        described(text)


DIAMOND = ensemble(
    X,
    {"y": ("FP32", [4]), "side": ("FP32", [4])},
    step("join", {"a": "l", "b": "r"}, {"c": "y"}),
    step("left", {"a": "t"}, {"b": "l"}, version=3),
    step("right", {"a": "t", "b": "x"}, {"b": "r"}, version=0),
    step("first", {"a": "x"}, {"b": "t"}),
    step("left", {"a": "x"}, {"b": "side"}),
)


def test_steps_wait_for_those_that_produce_what_they_take() -> None:
    diamond = steps_of(DIAMOND)
    assert diamond.models == ("join", "left", "right", "first")
    assert [part.version for part in diamond.steps] == ["", "3", "", "", ""]
    assert [set(before) for before in diamond.before] == [{1, 2}, {3}, {3}, set(), set()]
    assert [set(behind) for behind in diamond.behind] == [set(), {0}, {0}, {1, 2}, set()]
    assert diamond.needed_for(["y"]) == {0, 1, 2, 3}
    assert diamond.needed_for(["side"]) == {4}
    assert diamond.depending_on(3) == {0, 1, 2}
    assert diamond.depending_on(0) == set()


def test_what_is_shown_describes_the_same_ensemble() -> None:
    parameters = 'parameters { key: "roost.pin" value { string_value: "true" } } version_policy { all { } }'
    description = described(ensemble(X, Y, FIRST, SECOND, more=parameters))
    signature = signature_from_config(description)
    assert isinstance(signature, Signature)
    shown = complete_config(description, signature)
    assert (shown.platform, shown.backend, len(shown.instance_group)) == ("ensemble", "", 0)
    assert not shown.HasField("optimization")
    assert described(str(shown)).ensemble == description.ensemble
    assert description.without_effect == ("parameters.roost.pin",)
    assert not mc.ModelConfig.FromString(shown.SerializeToString()).default_model_filename


def test_an_ensemble_needs_no_files(tmp_path: Path) -> None:
    folder = ModelFolder("whole", tmp_path / "whole")
    folder.path.mkdir()
    (folder.path / "config.pbtxt").write_text(ensemble(X, Y, FIRST, SECOND))
    assert folder.versions_of(folder.load_config()) == ["1"]
    for version in ("2", "10"):
        (folder.path / version).mkdir()
    assert folder.versions_of(folder.load_config()) == ["2", "10"]
    assert folder.stamp("2", folder.load_config()) == ()
