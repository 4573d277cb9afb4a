"""Routes: how traffic is split, and what a routes file may not say."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.core.names import is_name
from roost.router.traffic import Route, Target, Traffic, load_routes, parse_routes

BELOW_ONE = 1 - 2**-53  # the largest draw


def routes_of(tmp_path: Path, text: str) -> Traffic:
    path = tmp_path / "routes.yaml"
    path.write_text(text)
    return load_routes(path)


def test_shares_follow_the_weights() -> None:
    weights = {"1": 1.0, "2": 3.0, "3": 6.0, "4": 0.0}
    route = Route("m", [Target("m", version, weight) for version, weight in weights.items()])
    draws = random.Random(20240601)
    total = 20_000
    seen = Counter(route.pick(draws.random()).version for _ in range(total))
    assert seen["4"] == 0
    expected = {version: total * weight / 10 for version, weight in weights.items() if weight}
    chi_square = sum((seen[version] - count) ** 2 / count for version, count in expected.items())
    assert chi_square < 13.8  # 2 degrees of freedom, p = 0.001


@given(
    st.lists(st.floats(0, 1e6) | st.sampled_from([0.0, 5e-324, 1e-300]), min_size=1, max_size=6).filter(any),
    st.floats(0, BELOW_ONE),
)
@example([5e-324, 0.0], BELOW_ONE)
@example([0.0, 1.0, 0.0], 0.0)
def test_every_draw_hits_a_target_with_weight(weights: list[float], draw: float) -> None:
    route = Route("m", [Target("m", str(i), weight) for i, weight in enumerate(weights)])
    assert route.pick(draw).weight > 0
    assert route.main().weight == max(weights)


def test_the_ends_of_the_draw_are_the_first_and_the_last_branch() -> None:
    route = Route("m", [Target("m", "1", 1), Target("m", "2", 1)])
    assert [route.pick(draw).version for draw in (0.0, 0.499, 0.5, BELOW_ONE)] == ["1", "1", "2", "2"]


def test_a_route_needs_weight() -> None:
    for targets in ([], [Target("m", "1", 0.0)]):
        with pytest.raises(InvalidArgument, match="weight above 0"):
            Route("m", targets)


TRAFFIC = Traffic({"m": Route("m", [Target("m", "1", 0), Target("m", "2", 1), Target("other", "7", 3)])})


def test_names_that_are_no_route_pass_through() -> None:
    assert TRAFFIC.resolve("x", "", 0.5) == ("x", "")
    assert TRAFFIC.resolve("x", "3", 0.5) == ("x", "3")
    assert TRAFFIC.resolve_main("x", "") == ("x", "")


def test_a_route_named_like_a_model_takes_requests_without_version() -> None:
    assert TRAFFIC.resolve("m", "", 0.1) == ("m", "2")
    assert TRAFFIC.resolve("m", "", 0.9) == ("other", "7")


def test_an_exact_version_is_a_target_without_weight_or_of_another_model_or_the_models_own() -> None:
    assert TRAFFIC.resolve("m", "1", 0.9) == ("m", "1")
    assert TRAFFIC.resolve("m", "7", 0.1) == ("other", "7")
    assert TRAFFIC.resolve("m", "9", 0.1) == ("m", "9")


def test_metadata_answers_for_the_branch_with_the_most_weight() -> None:
    assert TRAFFIC.resolve_main("m", "") == ("other", "7")
    assert TRAFFIC.resolve_main("m", "1") == ("m", "1")


def test_a_routes_file(tmp_path: Path) -> None:
    text = """
    routes:
      - name: resnet
        targets:
          - {version: 1, weight: 95}
          - {version: "2", weight: 5}
      - name: best
        targets: [{model: resnet}]
    """
    traffic = routes_of(tmp_path, text)
    assert traffic.routes["resnet"].targets == (Target("resnet", "1", 95.0), Target("resnet", "2", 5.0))
    assert traffic.routes["best"].targets == (Target("resnet", "", 1.0),)


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "routes: []"])
def test_a_file_without_routes(tmp_path: Path, text: str) -> None:
    assert not routes_of(tmp_path, text).routes


MALFORMED = [
    ("routes: [", "line"),
    ("routes: {a: 1}", "must be a list"),
    ("- a", "expected a mapping, got list"),
    ("just text", "expected a mapping, got str"),
    ("route: []", "unknown key 'route'"),
    ("routes: []\nextra: 1", "unknown key 'extra'"),
    ("routes: [3]", "route 1: expected a mapping"),
    ("routes: [{name: a}]", "route 1: 'targets' is missing"),
    ("routes: [{targets: []}]", "route 1: 'name' is missing"),
    ("routes: [{name: a, targets: 1}]", "route 1: 'targets' must be a list"),
    ("routes: [{name: a, targets: []}]", "route 'a' needs at least one target"),
    ("routes: [{name: a, targets: [x]}]", "route 1: expected a mapping"),
    ("routes: [{name: a, targets: [{weigth: 1}]}]", "unknown key 'weigth'"),
    ("routes: [{name: a, targets: [{1: 1}]}]", "unknown key 1"),
    ("routes: [{name: a, targets: [{weight: -1}]}]", "weight -1 "),
    ("routes: [{name: a, targets: [{weight: .nan}]}]", "weight nan"),
    ("routes: [{name: a, targets: [{weight: .inf}]}]", "weight inf"),
    ("routes: [{name: a, targets: [{weight: yes}]}]", "weight True"),
    ("routes: [{name: a, targets: [{weight: '5'}]}]", "weight '5'"),
    ("routes: [{name: a, targets: [{weight: [5]}]}]", "that is a list"),
    ("routes: [{name: a, targets: [{weight: 0}]}]", "weight above 0"),
    (f"routes: [{{name: a, targets: [{{weight: 0x{'f' * 300}}}]}}]", "not a number of 0 or more"),
    ("routes: [{name: a, targets: [{weight: 1.0e+308}, {weight: 1.0e+308}]}]", "beyond all numbers"),
    ("routes: [{name: a, targets: [{version: }]}]", "version None"),
    ("routes: [{name: a, targets: [{version: 1.0}]}]", "version 1.0 is not a text: write it in quotes"),
    ("routes: [{name: a, targets: [{version: ''}]}]", "invalid version"),
    ("routes: [{name: a, targets: [{version: a/b}]}]", "invalid version"),
    ("routes: [{name: a, targets: [{model: }]}]", "model name None"),
    ("routes: [{name: a, targets: [{model: ../etc}]}]", "invalid model name"),
    ("routes: [{name: , targets: [{}]}]", "route name None"),
    ("routes: [{name: no, targets: [{}]}]", "route name False"),
    ("routes: [{name: 'a b', targets: [{}]}]", "invalid route name"),
    ("routes: [{name: a, targets: [{}]}, {name: a, targets: [{}]}]", "route 2: there is a route 'a' already"),
    ("routes: 2024-13-45", "month"),
    ("routes: !!python/object:os.system {}", "could not determine a constructor"),
    ("a: " + "[" * 20_000, "nested too deeply"),
    ("{[a]: 1}", "unhashable"),
    ("a: *b", "undefined alias"),
    ("routes: []\0", "special characters"),
    ("a: " + "9" * 5000, "digits"),
]


@pytest.mark.parametrize(("text", "said"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_file_says_where(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        routes_of(tmp_path, text)
    assert said in caught.value.message
    assert "routes.yaml" in caught.value.message
    assert len(caught.value.message) < 1000


def test_a_small_file_can_not_become_a_huge_message(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    bomb = "\n".join(levels)
    with pytest.raises(InvalidArgument, match="unknown key 'a0'"):
        routes_of(tmp_path, bomb)
    content = yaml.safe_load(bomb)
    with pytest.raises(InvalidArgument, match="that is a list"):
        parse_routes({"routes": [{"name": content["a11"], "targets": [{}]}]}, "file")


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "routes.yaml"
    with pytest.raises(InvalidArgument, match="No such file"):
        load_routes(path)
    path.write_bytes(b"routes: [\xff\xfe]")
    with pytest.raises(InvalidArgument, match=str(path)):
        load_routes(path)
    with pytest.raises(InvalidArgument, match="directory"):
        load_routes(tmp_path)


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**5000), 10**5000), st.floats(), st.text(), st.dates()
)
KEYS = st.sampled_from(["name", "targets", "model", "version", "weight", "routes"]) | SCALARS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)
TARGETS = st.fixed_dictionaries({}, optional={"model": VALUES, "version": VALUES, "weight": st.floats() | VALUES})
ROUTES = st.fixed_dictionaries({"name": st.text("ab1") | VALUES, "targets": st.lists(TARGETS, max_size=3) | VALUES})
FILES = st.fixed_dictionaries({"routes": st.lists(ROUTES, max_size=3) | VALUES}) | VALUES


@given(FILES)
@example({"routes": [{"name": -(10**5000), "targets": [{"model": None}]}]})
def test_arbitrary_content_is_routes_or_an_invalid_argument(content: Any) -> None:
    traffic = Traffic()
    with contextlib.suppress(InvalidArgument):
        traffic = parse_routes(content, "file")
    for name, route in traffic.routes.items():
        assert is_name(name)
        assert all(is_name(target.model) and 0 <= target.weight < float("inf") for target in route.targets)
        assert route.pick(0.3).weight > 0


@given(st.text())
def test_arbitrary_text_is_routes_or_an_invalid_argument(text: str) -> None:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return
    with contextlib.suppress(InvalidArgument):
        parse_routes(content, "file")
