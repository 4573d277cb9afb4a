"""Files of inference graphs: KServe's InferenceGraph resources in YAML or JSON, checked as they are read."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from roost.core.errors import InvalidArgument
from roost.core.names import check_name, shorten
from roost.router.graph_conditions import Condition
from roost.router.graphs import ROOT, Graph, Node, Routing, Step

log = logging.getLogger(__name__)

MAX_ASKED = 1000
"""How many times one request may ask models at most: nodes that lead to others twice over double it each time."""

MAX_DEPTH = 200
"""How many nodes a way may lead through: a request has each of them on its stack."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts of URLs that lead to this machine."""

_GROUP = "serving.kserve.io/"
_HTTP_PORT = 80
_PREDICT = re.compile(r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>[0-9]+))?:predict\Z")
_INFER = re.compile(r"/v2/models/(?P<model>[^/:]+)(?:/versions/(?P<version>[0-9]+))?/infer\Z")


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """What URLs of this server begin with; port 0 is one that nobody knows yet."""

    hosts: frozenset[str] = frozenset()
    port: int = 0


Seconds: TypeAlias = Annotated[int, Field(gt=0, le=2**31)]


class _Read(BaseModel):
    """Keys are written as in KServe, values are not made others of."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Step(_Read):
    name: str = ""
    node: str = Field(default="", alias="nodeName")
    service: str = Field(default="", alias="serviceName")
    url: str = Field(default="", alias="serviceUrl")
    data: Literal["$request", "$response"] = "$request"
    maps_predictions: bool = Field(default=False, alias="mapPredictionsToInstances")  # which is done anyway
    weight: Annotated[int, Field(ge=0, le=100)] | None = None
    condition: str = ""
    dependency: Literal["Soft", "Hard"] = "Soft"


class _Node(_Read):
    routing: Literal["Sequence", "Splitter", "Ensemble", "Switch"] = Field(alias="routerType")
    steps: tuple[_Step, ...] = Field(min_length=1, strict=False)


class _Timeouts(BaseModel):
    """The others are about connections, which are this server's own."""

    client_s: Seconds | None = Field(default=None, alias="serviceClient")


class _Spec(BaseModel):
    """Unknown keys say where and how often KServe's router runs, or are new; they are named in the log."""

    model_config = ConfigDict(extra="allow", frozen=True)
    nodes: dict[str, _Node]
    timeout_s: Seconds | None = Field(default=None, alias="timeout")
    timeouts: _Timeouts = Field(default=_Timeouts(), alias="routerTimeouts")


class _Metadata(BaseModel):
    name: str


class _Resource(BaseModel):
    api_version: str = Field(alias="apiVersion")
    kind: Literal["InferenceGraph"]
    metadata: _Metadata
    spec: _Spec


def load_graphs(paths: Sequence[Path], own: OwnAddress) -> dict[str, Graph]:
    """Reads files of graphs; ``docs/operations.md`` has an example.

    Args:
        paths: The files; each may hold several graphs.
        own: What steps with a URL may lead to.

    Returns:
        The graphs by name.

    Raises:
        InvalidArgument: If a file is not what it should be; the message says where.
    """
    graphs: dict[str, Graph] = {}
    for path in paths:
        for resource in _resources(path):
            graph = parse_graph(resource, f"graphs file {path}", own)
            if graph.name in graphs:
                raise InvalidArgument(f"graphs file {path}: there is a graph '{graph.name}' already")
            graphs[graph.name] = graph
    for graph in graphs.values():
        for model, _ in graph.models():
            if model in graphs:
                raise InvalidArgument(
                    f"graph '{graph.name}': '{model}' is a graph, which can't be a step: make it a node of this one"
                )
    return graphs


def _resources(path: Path) -> Iterator[Any]:
    """The resources in a file, those in lists one by one."""
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except RecursionError:
        raise InvalidArgument(f"graphs file {path}: it is nested too deeply") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date or number that is none
        raise InvalidArgument(f"graphs file {path}: {' '.join(str(error).split())}") from None
    for document in documents:
        if isinstance(document, dict) and str(document.get("kind")).endswith("List"):
            items = document.get("items")
            yield from items if isinstance(items, list) else [items]
        elif document is not None:
            yield document


def parse_graph(resource: Any, where: str, own: OwnAddress) -> Graph:
    """Makes a graph of a parsed resource.

    Raises:
        InvalidArgument: If it is not what it should be; the message says where.
    """
    try:
        read = _Resource.model_validate(resource)
    except ValidationError as error:
        raise InvalidArgument(f"{where}: {_first_of(error)}") from None
    if not read.api_version.startswith(_GROUP):
        raise InvalidArgument(f"{where}: apiVersion {shorten(read.api_version)!r} is not one of {_GROUP}")
    name = check_name(read.metadata.name, f"graph name in {where}:")
    where = f"{where}, graph '{name}'"
    nodes = {key: _node(node, f"{where}, node '{shorten(key)}'", own) for key, node in read.spec.nodes.items()}
    if ROOT not in nodes:
        raise InvalidArgument(f"{where}: there is no node '{ROOT}'")
    _check_ways(nodes, where)
    for key in read.spec.model_extra or ():
        log.warning("graph '%s': '%s' of its spec has no effect in this server", name, shorten(key))
    spec = read.spec
    return Graph(name, nodes, spec.timeout_s or math.inf, spec.timeouts.client_s or math.inf)


def _first_of(error: ValidationError) -> str:
    """The first mistake, with the way to it."""
    first = error.errors()[0]
    way = ".".join(str(part) for part in first["loc"])
    return f"{shorten(way, 200)}: {first['msg']}" if way else str(first["msg"])


def _node(read: _Node, where: str, own: OwnAddress) -> Node:
    routing = Routing(read.routing)
    steps: list[Step] = []
    for index, row in enumerate(read.steps):
        place = f"{where}, step {index}" + (f" ('{shorten(row.name)}')" if row.name else "")
        step = _step(row, index, routing, place, own)
        if any(step.key == other.key for other in steps):
            raise InvalidArgument(f"{place}: there is a step '{shorten(step.key)}' already")
        steps.append(step)
    total = sum(step.weight for step in steps)
    if routing is Routing.SPLITTER and total != 100:
        raise InvalidArgument(f"{where}: the weights of a Splitter must add up to 100, these come to {total}")
    return Node(routing, tuple(steps))


def _step(read: _Step, index: int, routing: Routing, place: str, own: OwnAddress) -> Step:
    targets = {"nodeName": read.node, "serviceName": read.service, "serviceUrl": read.url}
    given = [key for key, target in targets.items() if target]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise InvalidArgument(f"{place}: needs exactly one of {', '.join(targets)}, has {got}")
    _check_routing(read, index, routing, place)
    model, version = _model_of(read.url, place, own) if read.url else (read.service, "")
    if model:
        check_name(model, f"model name in {place}:")
    try:
        condition = Condition(read.condition) if read.condition else None
    except InvalidArgument as error:
        raise InvalidArgument(f"{place}: {error.message}") from None
    return Step(
        key=read.name or str(index),
        node=read.node,
        model=model,
        version=version,
        takes_response=read.data == "$response",
        condition=condition,
        weight=read.weight or 0,
        hard=read.dependency == "Hard",
    )


def _check_routing(read: _Step, index: int, routing: Routing, place: str) -> None:
    """Refuses what could never work, and says what is without effect."""
    if routing is Routing.SPLITTER and read.weight is None:
        raise InvalidArgument(f"{place}: a step of a Splitter needs a weight")
    if routing is Routing.SWITCH and not read.condition:
        raise InvalidArgument(f"{place}: a step of a Switch needs a condition, without one it would never be taken")
    if routing is Routing.SEQUENCE and read.condition and not index:
        raise InvalidArgument(f"{place}: a condition looks at the answer of the step before, and there is none")
    if read.condition and routing in (Routing.SPLITTER, Routing.ENSEMBLE):
        log.warning("%s: the condition has no effect in a node of type %s", place, routing)
    if read.weight is not None and routing is not Routing.SPLITTER:
        log.warning("%s: the weight has no effect in a node of type %s", place, routing)


def _model_of(url: str, place: str, own: OwnAddress) -> tuple[str, str]:
    """The model and version that a URL asks for."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _HTTP_PORT
    except ValueError:
        raise InvalidArgument(f"{place}: serviceUrl {shorten(url)!r} is not a URL") from None
    is_own = parts.scheme == "http" and host in own.hosts and port == own.port and parts.username is None
    if (parts.scheme or parts.netloc) and not is_own:
        # A request to the server must not make it send requests to whatever it can reach.
        raise InvalidArgument(
            f"{place}: serviceUrl {shorten(url)!r} does not lead to this server, and graphs ask no other: "
            "name the model with serviceName, or give the path alone"
        )
    found = _PREDICT.match(parts.path) or _INFER.match(parts.path)
    if found is None or parts.query or parts.fragment:
        raise InvalidArgument(
            f"{place}: the path of serviceUrl {shorten(url)!r} is neither /v1/models/MODEL:predict nor "
            "/v2/models/MODEL/infer"
        )
    version = found["version"]
    return unquote(found["model"]), "" if version is None else version.lstrip("0") or "0"


def _check_ways(nodes: Mapping[str, Node], where: str) -> None:
    """Follows all ways through the graph.

    Raises:
        InvalidArgument: If one leads to no node, back to where it was, or to more steps than a request may take.
    """
    asked: dict[str, int] = {}
    depths: dict[str, int] = {}
    too_deep = InvalidArgument(f"{where}: a way leads through more than {MAX_DEPTH} nodes")

    def count(name: str, way: tuple[str, ...]) -> int:
        if name in way:
            raise InvalidArgument(f"{where}: nodes lead in a circle: {' -> '.join((*way[way.index(name) :], name))}")
        if name not in asked:
            if len(way) >= MAX_DEPTH:
                raise too_deep
            node = nodes[name]
            counts = []
            for step in node.steps:
                if step.node and step.node not in nodes:
                    raise InvalidArgument(f"{where}, node '{name}': there is no node '{shorten(step.node)}'")
                counts.append(count(step.node, (*way, name)) if step.node else 1)
            takes_all = node.routing in (Routing.SEQUENCE, Routing.ENSEMBLE)
            asked[name] = min(sum(counts) if takes_all else max(counts), MAX_ASKED + 1)
            depths[name] = 1 + max((depths[step.node] for step in node.steps if step.node), default=0)
        return asked[name]

    for name in nodes:
        count(name, ())
    if max(depths.values()) > MAX_DEPTH:
        raise too_deep
    if asked[ROOT] > MAX_ASKED:
        raise InvalidArgument(f"{where}: one request may ask models more than {MAX_ASKED} times")
