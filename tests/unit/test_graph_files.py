"""Files of inference graphs: what is read, and what is refused."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from roost.core.errors import InvalidArgument
from roost.router.graph_files import MAX_DEPTH, OwnAddress, load_graphs, parse_graph
from roost.router.graphs import Graph, Routing, Step

OWN = OwnAddress(frozenset({"localhost", "10.0.0.7"}), 8080)

GRAPHS = """
apiVersion: serving.kserve.io/v1alpha1
kind: InferenceGraph
metadata:
  name: pets
  namespace: zoo
  labels: {team: a}
spec:
  timeout: 5
  minReplicas: 1
  routerTimeouts: {serviceClient: 2, serverRead: 60}
  nodes:
    root:
      routerType: Sequence
      steps:
        - {name: kind, serviceName: pet-or-not, dependency: Hard}
        - {nodeName: breed, data: $response, condition: '[@this].#(predictions.0=="pet")'}
    breed:
      routerType: Ensemble
      steps:
        - {name: cat, serviceUrl: /v2/models/cats/versions/03/infer}
        - {serviceUrl: "http://localhost:8080/v1/models/dogs:predict"}
---
# nothing here
---
kind: List
apiVersion: v1
items:
  - apiVersion: serving.kserve.io/v1alpha1
    kind: InferenceGraph
    metadata: {name: split}
    spec:
      nodes:
        root:
          routerType: Splitter
          steps: [{serviceName: a, weight: 20}, {serviceName: b, weight: 80}]
"""


def resource(*steps: dict[str, Any], routing: str = "Sequence", **nodes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "InferenceGraph",
        "metadata": {"name": "g"},
        "spec": {"nodes": {"root": {"routerType": routing, "steps": list(steps)}, **nodes}},
    }


def parse(document: Any) -> Graph:
    return parse_graph(document, "here", OWN)


def refusal(document: Any) -> str:
    with pytest.raises(InvalidArgument) as caught:
        parse(document)
    return caught.value.message


def test_a_file_of_graphs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "graphs.yaml"
    path.write_text(GRAPHS)
    graphs = load_graphs([path], OWN)
    assert list(graphs) == ["pets", "split"]
    pets = graphs["pets"]
    assert (pets.timeout_s, pets.step_timeout_s) == (5, 2)
    assert pets.models() == [("cats", "3"), ("dogs", ""), ("pet-or-not", "")]
    first, second = pets.nodes["root"].steps
    assert first == Step("kind", model="pet-or-not", hard=True)
    assert (second.key, second.node, second.takes_response, second.hard) == ("1", "breed", True, False)
    assert second.condition is not None
    assert [step.key for step in pets.nodes["breed"].steps] == ["cat", "1"]
    assert graphs["split"].timeout_s == math.inf
    assert [step.weight for step in graphs["split"].nodes["root"].steps] == [20, 80]
    assert [record.message for record in caplog.records] == [
        "graph 'pets': 'minReplicas' of its spec has no effect in this server"
    ]


def test_json_is_yaml(tmp_path: Path) -> None:
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(resource({"serviceName": "m"})))
    assert load_graphs([path], OWN)["g"].models() == [("m", "")]


@pytest.mark.parametrize(
    ("text", "gist"),
    [
        ("nodes: [", "expected the node content"),
        ("[" * 1200, "nested too deeply"),
        ("kind: List", "Input should be"),
        ("just a text", "Input should be"),
        (
            "kind: Model\napiVersion: x\nmetadata: {name: a}\nspec: {nodes: {}}",
            "kind: Input should be 'InferenceGraph'",
        ),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, gist: str) -> None:
    path = tmp_path / "graphs.yaml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match="graphs file ") as caught:
        load_graphs([path], OWN)
    assert gist in caught.value.message


def test_a_name_is_there_once_and_no_graph_is_a_step(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(yaml.safe_dump(resource({"serviceName": "m"})))
    second.write_text(first.read_text())
    with pytest.raises(InvalidArgument, match="there is a graph 'g' already"):
        load_graphs([first, second], OWN)
    second.write_text(first.read_text().replace("name: g", "name: h").replace("serviceName: m", "serviceName: g"))
    with pytest.raises(InvalidArgument, match="'g' is a graph, which can't be a step"):
        load_graphs([first, second], OWN)


M = {"serviceName": "m"}
DOUBLING: dict[str, Any] = {
    **{f"n{i}": {"routerType": "Sequence", "steps": [{"nodeName": f"n{i + 1}"}] * 2} for i in range(100)},
    "n100": {"routerType": "Sequence", "steps": [M]},
}
"""Each node leads to the next one twice."""


@pytest.mark.parametrize(
    ("document", "gist"),
    [
        ({**resource(M), "apiVersion": "v1"}, "apiVersion 'v1' is not one of serving.kserve.io/"),
        ({**resource(M), "metadata": {"name": "no/name"}}, "invalid graph name in here: 'no/name'"),
        ({**resource(M), "spec": {"nodes": {}}}, "there is no node 'root'"),
        (resource(), "spec.nodes.root.steps: Tuple should have at least 1 item"),
        (resource(M, routing="Loop"), "spec.nodes.root.routerType: Input should be 'Sequence', 'Splitter'"),
        (resource({**M, "wieght": 1}), "spec.nodes.root.steps.0.wieght: Extra inputs are not permitted"),
        (resource({**M, "data": "$response.predictions"}), "steps.0.data: Input should be '$request' or '$response'"),
        (resource({**M, "dependency": "hard"}), "steps.0.dependency: Input should be 'Soft' or 'Hard'"),
        (resource({**M, "weight": "1"}), "steps.0.weight: Input should be a valid integer"),
        (resource({**M, "weight": 101}, routing="Splitter"), "less than or equal to 100"),
        (resource({"name": "x"}), "step 0 ('x'): needs exactly one of nodeName, serviceName, serviceUrl, has none"),
        (resource({**M, "nodeName": "n"}), "has nodeName and serviceName"),
        (resource({"serviceName": "no name"}), "invalid model name in here, graph 'g', node 'root', step 0:"),
        (resource({**M, "name": "1"}, M), "step 1: there is a step '1' already"),
        (resource({**M, "name": "a"}, {**M, "name": "a"}), "there is a step 'a' already"),
        (resource(M, {**M, "condition": "a.{"}), "step 1: condition 'a.{': objects of paths"),
        (resource({**M, "condition": "a"}), "looks at the answer of the step before, and there is none"),
        (resource(M, routing="Switch"), "a step of a Switch needs a condition"),
        (resource(M, routing="Splitter"), "a step of a Splitter needs a weight"),
        ({**resource(M), "spec": {**resource(M)["spec"], "timeout": 10**400}}, "timeout: Input should be less than"),
        (resource({"nodeName": "n"}), "node 'root': there is no node 'n'"),
        (resource({"nodeName": "root"}), "nodes lead in a circle: root -> root"),
        (
            resource(
                M,
                a={"routerType": "Sequence", "steps": [{"nodeName": "b"}]},
                b={"routerType": "Ensemble", "steps": [M, {"nodeName": "a"}]},
            ),
            "nodes lead in a circle: a -> b -> a",
        ),
        (
            resource({"nodeName": "n0"}, **DOUBLING),
            "one request may ask models more than 1000 times",
        ),
    ],
)
def test_mistakes_are_named(document: Any, gist: str) -> None:
    message = refusal(document)
    assert "here" in message
    assert gist in message


@pytest.mark.parametrize("from_the_root", [True, False])
def test_a_way_leads_through_so_many_nodes_and_no_more(from_the_root: bool) -> None:
    last = MAX_DEPTH - 2
    steps: list[dict[str, Any]] = [*({"nodeName": f"n{i + 1}"} for i in range(last)), M]
    chain: dict[str, Any] = {f"n{i}": {"routerType": "Sequence", "steps": [step]} for i, step in enumerate(steps)}
    nodes = dict(chain if from_the_root else reversed(chain.items()))
    parse(resource({"nodeName": "n0"}, **nodes))
    nodes["more"] = {"routerType": "Sequence", "steps": [{"nodeName": "root"}]}
    assert f"a way leads through more than {MAX_DEPTH} nodes" in refusal(resource({"nodeName": "n0"}, **nodes))


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("/v1/models/m:predict", ("m", "")),
        ("/v1/models/m/versions/2:predict", ("m", "2")),
        ("/v2/models/m/infer", ("m", "")),
        ("/v2/models/m%2Dx/versions/007/infer", ("m-x", "7")),
        ("http://localhost:8080/v2/models/m/infer", ("m", "")),
        ("http://10.0.0.7:8080/v2/models/m/infer", ("m", "")),
        ("http://localhost/v2/models/m/infer", None),
        ("https://localhost:8080/v2/models/m/infer", None),
        ("http://me@localhost:8080/v2/models/m/infer", None),
        ("http://localhost:8080@evil/v2/models/m/infer", None),
        ("http://169.254.169.254/v2/models/m/infer", None),
        ("//evil:8080/v2/models/m/infer", None),
        ("http://localhost.evil:8080/v2/models/m/infer", None),
        ("http://m.zoo.svc.cluster.local/v1/models/m:predict", None),
        ("file:///v2/models/m/infer", None),
        ("http://[::1/v2/models/m/infer", None),
        ("http://localhost:x/v2/models/m/infer", None),
    ],
)
def test_urls_lead_to_this_server_or_are_refused(url: str, model: tuple[str, str] | None) -> None:
    document = resource({"serviceUrl": url})
    if model is None:
        assert "serviceUrl" in refusal(document)
    else:
        assert parse(document).models() == [model]


@pytest.mark.parametrize("path", ["/v2/models/m", "/v2/models/m/infer?x=1", "/v1/models/m:explain", "/graphs/g", "m"])
def test_paths_of_urls_are_those_of_models(path: str) -> None:
    assert "is neither /v1/models/MODEL:predict nor /v2/models/MODEL/infer" in refusal(resource({"serviceUrl": path}))


def test_nobody_knows_the_port_that_is_picked() -> None:
    with pytest.raises(InvalidArgument, match="does not lead to this server"):
        parse_graph(resource({"serviceUrl": "http://localhost:0/v2/models/m/infer"}), "here", OwnAddress(OWN.hosts, 0))


def test_what_is_without_effect_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    parse(resource({**M, "weight": 100, "condition": "a"}, routing="Splitter"))
    parse(resource({**M, "weight": 1}))
    assert [record.message.split("the ")[1] for record in caplog.records] == [
        "condition has no effect in a node of type Splitter",
        "weight has no effect in a node of type Sequence",
    ]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_weights_add_up_to_a_hundred(weights: list[int]) -> None:
    document = resource(*({**M, "name": f"s{i}", "weight": w} for i, w in enumerate(weights)), routing="Splitter")
    if sum(weights) == 100:
        assert parse(document).nodes["root"].routing is Routing.SPLITTER
    else:
        assert f"must add up to 100, these come to {sum(weights)}" in refusal(document)


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text(encoding="utf-8")
    path = tmp_path / "graphs.yaml"
    path.write_text(page.split("## Inference graphs")[1].split("```yaml\n")[1].split("```")[0])
    (graph,) = load_graphs([path], OWN).values()
    assert graph.models() == [("cats", ""), ("dogs", ""), ("dogs", "2"), ("pet-or-not", "")]
