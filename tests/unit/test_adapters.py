"""Which runtimes there are, and which of them can work."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

from roost.runtimes.adapters import ADAPTERS, installed_runtimes, runtime_names


def test_the_dummy_is_only_for_those_who_want_it() -> None:
    assert runtime_names(enable_dummy=False) == ["onnxruntime"]
    assert set(runtime_names(enable_dummy=True)) == set(ADAPTERS)


def test_what_is_installed_can_be_used() -> None:
    assert installed_runtimes(ADAPTERS, lambda name: ModuleSpec(name, None, origin=f"{name}.py")) == list(ADAPTERS)
    assert installed_runtimes(ADAPTERS) == list(ADAPTERS)


def test_what_is_not_installed_can_not() -> None:
    assert installed_runtimes(ADAPTERS, lambda name: None) == ["dummy"]
    assert installed_runtimes(["onnxruntime"], lambda name: None) == []


def test_a_folder_left_behind_is_no_framework() -> None:
    assert installed_runtimes(["onnxruntime"], lambda name: ModuleSpec(name, None, is_package=True)) == []
