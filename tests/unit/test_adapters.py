"""Which runtimes there are, in which kind of worker, and which of them can work."""

from __future__ import annotations

from importlib.machinery import ModuleSpec

from roost.registry_client.backends import BACKENDS
from roost.runtimes.adapters import (
    ADAPTERS,
    DEFAULT_KIND,
    KINDS,
    installed_runtimes,
    kind_of,
    runtime_names,
)

WITH_FRAMEWORK = [name for name, adapter in ADAPTERS.items() if adapter.framework]


def test_the_dummy_is_only_for_those_who_want_it() -> None:
    assert runtime_names(DEFAULT_KIND) == ["onnxruntime"]
    assert runtime_names(DEFAULT_KIND, enable_dummy=True) == ["onnxruntime", "dummy"]
    assert "dummy" not in runtime_names("torch", enable_dummy=True)


def test_each_backend_has_its_runtime_in_one_kind_of_worker() -> None:
    assert set(ADAPTERS) == {name for name, backend in BACKENDS.items() if not backend.is_composed}
    offered = [name for kind in KINDS for name in runtime_names(kind, enable_dummy=True)]
    assert sorted(offered) == sorted(ADAPTERS)
    assert all(name in runtime_names(kind_of(name), enable_dummy=True) for name in ADAPTERS)
    assert KINDS[0] == DEFAULT_KIND


def test_what_is_installed_can_be_used() -> None:
    assert installed_runtimes(ADAPTERS, lambda name: ModuleSpec(name, None, origin=f"{name}.py")) == list(ADAPTERS)
    assert "onnxruntime" in installed_runtimes(ADAPTERS)


def test_what_is_not_installed_can_not() -> None:
    assert set(installed_runtimes(ADAPTERS, lambda name: None)) == ADAPTERS.keys() - set(WITH_FRAMEWORK)
    assert installed_runtimes(["onnxruntime"], lambda name: None) == []


def test_a_folder_left_behind_is_no_framework() -> None:
    assert installed_runtimes(["onnxruntime"], lambda name: ModuleSpec(name, None, is_package=True)) == []
