"""locust scenarios: users of REST and of gRPC, whose requests go to many models by Zipf's law.

For people who want to watch a server under load in a browser. locust waits for answers before it sends more (a closed
loop) and is written in Python; for figures take ``make bench`` and ``make bench-open``::

    make locust ARGS="--host http://127.0.0.1:8080 --grpc-address 127.0.0.1:8081"
    make locust ARGS="--headless --users 50 --spawn-rate 10 --run-time 1m RestUser"

The models are those that the server's index names, or those of ``--models``.
"""

from __future__ import annotations

import random
import time
from typing import Any

import grpc
import grpc.experimental.gevent
import numpy as np
from locust import FastHttpUser, events, task
from locust.exception import StopUser

from loadtests.traffic import Zipf, grpc_message, inputs_of, rest_body

METHOD = "/inference.GRPCInferenceService/ModelInfer"
DEADLINE_S = 60.0
INDEX_STATES = ("READY", "")

# Otherwise a call blocks all users of the process, not only its own.
grpc.experimental.gevent.init_gevent()


@events.init_command_line_parser.add_listener
def _add_options(parser: Any) -> None:
    options = parser.add_argument_group("Roost")
    options.add_argument("--grpc-address", default="127.0.0.1:8081", help="host:port of gRPC")
    options.add_argument("--models", default="", help="comma-separated, most wanted first; none: what the index names")
    options.add_argument("--zipf", type=float, default=1.0, help="exponent of Zipf's law; 0: all models alike")
    options.add_argument("--rows", type=int, default=1, help="rows in a request, where models leave that open")
    options.add_argument("--pause", type=float, default=0.1, help="mean pause of a user between requests, seconds")


class _Wishes:
    """What one user asks for: models, and for each of them one request, made when it is first wanted."""

    def __init__(self, client: Any, options: Any) -> None:
        self._client = client
        self._rows = options.rows
        self._rng = np.random.default_rng()
        names = [name for name in options.models.split(",") if name] or self._index()
        if not names:
            raise StopUser("the server has no models")
        self._zipf = Zipf(names, options.zipf)
        self._inputs: dict[str, Any] = {}

    def next(self) -> tuple[str, Any]:
        """A model and inputs for it."""
        model = self._zipf.draw()
        if model not in self._inputs:
            metadata = self._client.get(f"/v2/models/{model}", name="metadata").json()
            self._inputs[model] = inputs_of(metadata, self._rows, self._rng)
        return model, self._inputs[model]

    def _index(self) -> list[str]:
        rows = self._client.post("/v2/repository/index", json={}, name="index").json()
        return sorted({row["name"] for row in rows if row.get("state", "") in INDEX_STATES})


class _ModelUser(FastHttpUser):
    """What both kinds of users have in common: REST for what models there are, and pauses."""

    abstract = True

    def on_start(self) -> None:
        """Learns which models there are."""
        self.wishes = _Wishes(self.client, self.environment.parsed_options)

    def wait_time(self) -> float:
        """Pauses are random, so that users do not march in step."""
        mean_s = self.environment.parsed_options.pause
        return random.expovariate(1 / mean_s) if mean_s > 0 else 0.0


class RestUser(_ModelUser):
    """Sends binary tensors over REST."""

    @task
    def infer(self) -> None:
        """One request to a model that Zipf's law names."""
        model, inputs = self.wishes.next()
        body, headers = rest_body(inputs)
        self.client.post(f"/v2/models/{model}/infer", data=body, headers=headers, name="infer")


class GrpcUser(_ModelUser):
    """Sends raw tensors over gRPC, on a connection of its own."""

    def on_start(self) -> None:
        """Connects."""
        super().on_start()
        address = self.environment.parsed_options.grpc_address
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self._call = self._channel.unary_unary(METHOD)

    def on_stop(self) -> None:
        """Disconnects."""
        self._channel.close()

    @task
    def infer(self) -> None:
        """One request to a model that Zipf's law names."""
        message = grpc_message(*self.wishes.next())
        answer, failure = b"", None
        began = time.perf_counter()
        try:
            answer = self._call(message, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="gRPC",
            name="infer",
            response_time=(time.perf_counter() - began) * 1e3,
            response_length=len(answer),
            exception=failure,
            context={},
        )
