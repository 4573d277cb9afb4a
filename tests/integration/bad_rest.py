"""Malformed requests over REST: bodies, headers, paths, and what is no HTTP at all."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any

from roost.core.tensors import pack_bytes

from tests.integration.bad_requests import HEADER_LENGTH, INFER, BadRequest, Http, Raw

MIB = 1 << 20
ONES = [1] * 16
LOAD = "/v2/repository/models/simple/load"
CONFIG = '{"backend": "onnxruntime"}'


def tensor(name: str = "INPUT1", **changes: Any) -> dict[str, Any]:
    """An input of ``simple``; ``...`` leaves a key out."""
    item = {"name": name, "datatype": "INT32", "shape": [1, 16], "data": ONES, **changes}
    return {key: value for key, value in item.items() if value is not ...}


def with_second(**changes: Any) -> dict[str, Any]:
    """A request to ``simple`` whose second input is changed."""
    return {"inputs": [tensor("INPUT0"), tensor(**changes)]}


def valid(**more: Any) -> dict[str, Any]:
    """A request to ``simple`` with more keys."""
    return {**with_second(), **more}


def output(name: str = "OUTPUT0", **parameters: Any) -> dict[str, Any]:
    """A request to ``simple`` for one output."""
    return valid(outputs=[{"name": name, "parameters": parameters}])


def echo(datatype: str, data: Any, shape: tuple[int, ...] = (1, 1)) -> dict[str, Any]:
    """A request to one of the models that give their input back."""
    return {"inputs": [{"name": "INPUT0", "datatype": datatype, "shape": shape, "data": data}]}


def binary(
    status: int, words: tuple[str, ...], data: bytes, *sizes: Any, length: str | None = None, path: str = INFER
) -> Http:
    """A request whose inputs announce these sizes and are followed by this data."""
    inputs = [tensor(f"INPUT{i}", data=..., parameters={"binary_data_size": size}) for i, size in enumerate(sizes)]
    head = json.dumps({"inputs": inputs}).encode()
    return Http(status, words, head + data, path, {HEADER_LENGTH: length or str(len(head))})


def _words(data: bytes, shape: tuple[int, ...]) -> Http:
    item = {"name": "INPUT0", "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [item]}).encode()
    return Http(400, ("INPUT0",), head + data, "/v2/models/words/infer", {HEADER_LENGTH: str(len(head))})


def load(status: int, words: tuple[str, ...], **parameters: Any) -> Http:
    """A load call."""
    return Http(status, words, {"parameters": parameters}, LOAD)


DOCUMENTS: dict[str, BadRequest] = {
    "no JSON": Http(400, ("failed to parse the request JSON",), b"{inputs"),
    "no body": Http(400, ("parse",), b""),
    "JSON cut off": Http(400, ("failed to parse the request JSON",), json.dumps(valid()).encode()[:-3]),
    "invalid UTF-8": Http(400, ("failed to parse the request JSON",), json.dumps(valid()).encode() + b"\xff"),
    "lone surrogate": Http(400, ("failed to parse the request JSON",), b'{"id": "\\ud800", "inputs": []}'),
    "a form": Http(400, ("failed to parse the request JSON",), b"inputs=1&id=2", headers={"Content-Type": "application/x-www-form-urlencoded"}),
    "a multipart body": Http(400, ("failed to parse the request JSON",), b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n{}\r\n--x--", headers={"Content-Type": "multipart/form-data; boundary=x"}),
    # Content types are looked at by nobody, as in Triton: curl sends forms if it is not told else.
    "another content type": Http(200, ("OUTPUT0",), valid(), headers={"Content-Type": "application/x-www-form-urlencoded"}),
    "an array": Http(400, ("expected an object",), []),
    "inputs missing": Http(400, ("'inputs'",), {}),
    "inputs an object": Http(400, ("'inputs'", "an array"), {"inputs": {}}),
    "inputs of numbers": Http(400, ("'inputs'",), {"inputs": [5]}),
    "inputs empty": Http(400, ("expected 2 inputs but got 0", "INPUT0", "INPUT1"), {"inputs": []}),
    "outputs an object": Http(400, ("'outputs'",), valid(outputs={})),
    "output twice": Http(400, ("'OUTPUT0'", "already"), valid(outputs=[{"name": "OUTPUT0"}, {"name": "OUTPUT0"}])),
    "output unknown": Http(400, ("unexpected inference output 'NOPE'", "'simple'"), output("NOPE")),
    "output without a name": Http(400, ("'name'", "'outputs'"), valid(outputs=[{}])),
    "id a number": Http(400, ("'id'",), valid(id=5)),
    "parameters a list": Http(400, ("parameters",), valid(parameters=[])),
    "parameter null": Http(400, ("'k'", "invalid type"), valid(parameters={"k": None})),
    "parameter a list": Http(400, ("'k'", "invalid type"), valid(parameters={"k": [1]})),
    "parameter reserved": Http(400, ("'triton_x'", "reserved"), valid(parameters={"triton_x": 1})),
    "parameter headers": Http(400, ("'headers'", "reserved"), valid(parameters={"headers": "x"})),
    "timeout a text": Http(400, ("'timeout'",), valid(parameters={"timeout": "x"})),
    "timeout over 64 bits": Http(400, (), valid(parameters={"timeout": 2**64})),
    "priority negative": Http(400, ("'priority'",), valid(parameters={"priority": -1})),
    "binary_data_output a number": Http(400, ("binary_data_output",), valid(parameters={"binary_data_output": 1})),
    "nested 100,000 deep": Http(400, (), b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "nested 1,000 deep in data": Http(400, (), b'{"inputs": [{"name": "INPUT0", "datatype": "INT32", "shape": [1], "data": ' + b"[" * 1000 + b"]" * 1000 + b"}]}"),
    "nested 200 deep where nobody looks": Http(400, ("deep",), b'{"x": ' + b"[" * 200 + b"]" * 200 + b', "inputs": []}'),
    "a number of 100,000 digits": Http(400, (), b'{"inputs": [' + b"9" * 100_000 + b"]}"),
}  # fmt: skip

TENSORS: dict[str, BadRequest] = {
    "name missing": Http(400, ("'name'",), with_second(name=...)),
    "name a number": Http(400, ("'name'",), with_second(name=5)),
    "name empty": Http(400, ("'name'",), with_second(name="")),
    "name unknown": Http(400, ("unexpected inference input 'NOPE'", "'simple'"), with_second(name="NOPE")),
    "name twice": Http(400, ("'INPUT0'", "already exists"), with_second(name="INPUT0")),
    "datatype missing": Http(400, ("'INPUT1'", "datatype"), with_second(datatype=...)),
    "datatype unknown": Http(400, ("'INPUT1'", "'FLOAT'"), with_second(datatype="FLOAT")),
    "shape missing": Http(400, ("'shape'", "'INPUT1'"), with_second(shape=...)),
    "shape a text": Http(400, ("'shape'", "'INPUT1'"), with_second(shape="16")),
    "dim a fraction": Http(400, ("'shape'", "'INPUT1'"), with_second(shape=[1, 16.0])),
    "dim a boolean": Http(400, ("'shape'", "'INPUT1'"), with_second(shape=[True, 16])),
    "dim negative": Http(400, ("'INPUT1'", "negative"), with_second(shape=[1, -16])),
    "dim zero": Http(400, ("'INPUT1'",), with_second(shape=[1, 0])),
    "dim 2^62": Http(400, ("'INPUT1'",), with_second(shape=[1, 2**62])),
    "dim over 64 bits": Http(400, (), with_second(shape=[1, 2**64])),
    "product of dims over 64 bits": Http(400, ("'INPUT1'",), with_second(shape=[2**40, 2**40])),
    "zero times 2^62": Http(400, ("'INPUT1'",), with_second(shape=[0, 2**62], data=[])),
    "rank 40": Http(400, ("'INPUT1'",), with_second(shape=[1] * 40, data=[1])),
    "batch dimension forgotten": Http(400, ("'INPUT1'", "got [16]", "batch"), with_second(shape=[16])),
    "rank 0": Http(400, ("'INPUT1'",), with_second(shape=[], data=[1])),
    "data missing": Http(400, ("'INPUT1'", "no field is set"), with_second(data=...)),
    "data in two places": Http(400, ("'INPUT1'", "only one"), with_second(parameters={"binary_data_size": 64})),
    "data a number": Http(400, ("'INPUT1'", "'data'"), with_second(data=5)),
    "data an object": Http(400, ("'INPUT1'", "'data'"), with_second(data={})),
    "15 elements": Http(400, ("'INPUT1'", "16", "15"), with_second(data=[1] * 15)),
    "17 elements": Http(400, ("'INPUT1'", "16", "17"), with_second(data=[1] * 17)),
    "nested unevenly": Http(400, ("'INPUT1'",), with_second(data=[[1] * 15, [1]])),
    "texts for integers": Http(400, ("'INPUT1'",), with_second(data=["1"] * 16)),
    "fractions for integers": Http(400, ("'INPUT1'",), with_second(data=[1.0] * 16)),
    "nulls for integers": Http(400, ("'INPUT1'",), with_second(data=[None] * 16)),
    "booleans for integers": Http(400, ("'INPUT1'",), with_second(data=[True] * 16)),
    "NaN for an integer": Http(400, ("'INPUT1'",), with_second(data=[float("nan")] * 16)),
    "2^31 for INT32": Http(400, ("'INPUT1'", "2147483648"), with_second(data=[2**31] * 16)),
    "2^64 for UINT64": Http(400, (), echo("UINT64", [2**64]), "/v2/models/identity_UINT64/infer"),
    "-1 for UINT8": Http(400, ("'INPUT0'", "-1"), echo("UINT8", [-1]), "/v2/models/identity_UINT8/infer"),
    "1 for BOOL": Http(400, ("'INPUT0'",), echo("BOOL", [1]), "/v2/models/identity_BOOL/infer"),
    "a text for FP32": Http(400, ("'INPUT0'",), echo("FP32", ["1"]), "/v2/models/identity_FP32/infer"),
    "a number for BYTES": Http(400, ("'INPUT0'",), echo("BYTES", [1]), "/v2/models/words/infer"),
    "binary_data a text": Http(400, ("binary_data", "'OUTPUT0'"), output(binary_data="yes")),
    "classification a text": Http(400, ("classification",), output(classification="x")),
    "classification negative": Http(400, ("classification",), output(classification=-1)),
    "classification of BYTES": Http(400, ("OUTPUT0", "BYTES"), {**echo("BYTES", ["a"]), "outputs": [{"name": "OUTPUT0", "parameters": {"classification": 1}}]}, "/v2/models/words/infer"),
    "classification in shared memory": Http(400, ("OUTPUT0",), output(classification=1, shared_memory_region="r", shared_memory_byte_size=64)),
    "BYTES that are no text": Http(400, ("OUTPUT0", "binary"), _words(pack_bytes([b"\xff"]), (1, 1)).body, "/v2/models/echo_BYTES/infer", _words(pack_bytes([b"\xff"]), (1, 1)).headers),
    "decoupled model": Http(501, ("decoupled",), echo("FP32", [[1, 2, 3, 4]], (1, 4)), "/v2/models/many/infer"),
}  # fmt: skip

BINARY: dict[str, BadRequest] = {
    "header length a text": binary(400, ("should be in range", "'abc'"), bytes(128), 64, 64, length="abc"),
    "header length negative": binary(400, ("should be in range",), bytes(128), 64, 64, length="-1"),
    "header length beyond the body": binary(400, ("should be in range", "99999"), bytes(128), 64, 64, length="99999"),
    "header length of 5,000 digits": binary(400, ("should be in range",), bytes(128), 64, 64, length="9" * 5000),
    "header length a list": binary(400, (), bytes(128), 64, 64, length="10, 10"),
    "header length cuts the JSON": binary(400, ("failed to parse the request JSON",), bytes(128), 64, 64, length="50"),
    "4 bytes missing": binary(400, ("'INPUT1'", "4 additional bytes"), bytes(124), 64, 64),
    "2 bytes too many": binary(400, ("additional input data", "'simple'"), bytes(130), 64, 64),
    "size unlike the shape": binary(400, ("'INPUT0'", "64", "68"), bytes(132), 68, 64),
    "both inputs want the whole body": binary(400, ("'INPUT1'", "additional bytes"), bytes(64), 64, 64),
    "size a text": binary(400, ("binary_data_size", "'INPUT0'"), bytes(128), "64", 64),
    "size negative": binary(400, ("binary_data_size", "'INPUT0'"), bytes(128), -64, 64),
    "size 2^63": binary(400, ("'INPUT0'",), bytes(128), 2**63 - 1, 64),
    "raw request to two inputs": Http(400, ("only have 1 input",), bytes(64), headers={HEADER_LENGTH: "0"}),
    "raw request of 17 bytes": Http(400, ("mismatch",), bytes(17), "/v2/models/numbers/infer", {HEADER_LENGTH: "0"}),
    "fewer strings than the shape says": _words(pack_bytes([b"a"]), (1, 2)),
    "more strings than the shape says": _words(pack_bytes([b"a", b"b"]), (1, 1)),
    "half a string length": _words(b"\x01\0", (1, 1)),
    "half a string": _words(b"\x09\0\0\0abc", (1, 1)),
    "a string of 4 GiB": _words(b"\xff\xff\xff\xffabc", (1, 1)),
    "gzip that is none": Http(400, (), valid(), headers={"Content-Encoding": "gzip"}),
    "gzip cut off": Http(400, (), gzip.compress(json.dumps(valid()).encode())[:-9], headers={"Content-Encoding": "gzip"}),
    "deflate without its header": Http(400, (), zlib.compress(b"{}")[2:-4], headers={"Content-Encoding": "deflate"}),
    "brotli": Http(501, ("Unsupported compression type",), valid(), headers={"Content-Encoding": "br"}),
    "compression bomb": Http(413, ("limit",), gzip.compress(bytes(64 * MIB)), headers={"Content-Encoding": "gzip"}),
    "bomb in a bomb": Http(400, (), gzip.compress(gzip.compress(bytes(64 * MIB))), headers={"Content-Encoding": "gzip"}),
    "body over the limit": Http(413, ("limit",), bytes(33 * MIB)),
}  # fmt: skip

PATHS: dict[str, BadRequest] = {
    "no such route": Http(404, ("Not Found",), path="/v2/nope", method="GET"),
    "trailing slash": Http(404, ("Not Found",), path="/v2/", method="GET"),
    "GET infer": Http(405, ("Method Not Allowed",), method="GET"),
    "HEAD": Http(405, (), path="/v2", method="HEAD"),
    "version a text": Http(404, (), path="/v2/models/simple/versions/x", method="GET"),
    "version negative": Http(404, (), valid(), "/v2/models/simple/versions/-1/infer"),
    "version over 64 bits": Http(400, ("out of range",), valid(), f"/v2/models/simple/versions/{2**64}/infer"),
    "version unknown": Http(404, ("'simple'", "9"), valid(), "/v2/models/simple/versions/9/infer"),
    "version of 256 digits": Http(400, ("out of range",), valid(), f"/v2/models/simple/versions/{'9' * 256}/infer"),
    "version that leads elsewhere": Http(404, (), valid(), "/v2/models/simple/versions/..%2f1/infer"),
    "name of 256 characters": Http(404, ("a" * 32,), valid(), f"/v2/models/{'a' * 256}/infer"),
    "name that leads elsewhere": Http(404, (), valid(), "/v2/models/..%2f..%2fetc%2fpasswd/infer"),
    "name with NUL": Http(404, (), valid(), "/v2/models/%00/infer"),
    "name that is no UTF-8": Http(404, (), valid(), "/v2/models/%ff%fe/infer"),
    "load with an unknown parameter": load(400, ("unrecognized load parameter 'foo'",), foo="x"),
    "load with files and no config": load(400, (), **{"file:1/model.onnx": "AAAA"}),
    "load with bad base64": load(400, ("file:1/model.onnx", "base64"), config=CONFIG, **{"file:1/model.onnx": "A*=="}),
    "load with a file that leads elsewhere": load(400, (), config=CONFIG, **{"file:../../x": "AAAA"}),
    "load with an absolute file": load(400, (), config=CONFIG, **{"file:/etc/x": "AAAA"}),
    "load with a file of 256 characters": load(400, (), config=CONFIG, **{f"file:1/{'a' * 256}": "AAAA"}),
    "load with a file that is no model": load(400, (), config=CONFIG, **{"file:1/model.onnx": base64.b64encode(b"no").decode()}),
    "load with a config that is no JSON": load(400, (), config="{"),
    "load with a config of unknown fields": load(400, ("nope",), config='{"nope": 1}'),
    "load with a config for another model": load(400, ("other",), config='{"name": "other", "backend": "onnxruntime"}'),
    "load with a config that is a number": load(400, ("config",), config=5),
    "load with parameters that are a list": Http(400, ("'parameters'",), {"parameters": []}, LOAD),
    "load a name that leads elsewhere": Http(400, (), {}, "/v2/repository/models/..%2f..%2fetc/load"),
    "load an unknown model": Http(400, ("failed to load 'nope'",), {}, "/v2/repository/models/nope/load"),
    "load from a repository": Http(501, ("repository",), {}, "/v2/repository/r/models/simple/load"),
    "unload with a text": Http(400, ("unload_dependents",), {"parameters": {"unload_dependents": "x"}}, "/v2/repository/models/simple/unload"),
    "load with a million parameters": Http(400, ("1000000 parameters", "limit of 1001"), {"parameters": {str(i): 1 for i in range(1_000_000)}}, LOAD),
    "index with a body over the limit": Http(413, ("1 MiB",), {"ready": "x" * MIB}, "/v2/repository/index"),
    "index with a text": Http(400, ("'ready'",), {"ready": "yes"}, "/v2/repository/index"),
    "index with GET": Http(405, (), path="/v2/repository/index", method="GET"),
    "statistics of an unknown model": Http(404, ("'nope'",), path="/v2/models/nope/stats", method="GET"),
    "trace rate a number": Http(400, ("trace_rate",), {"trace_rate": 5}, "/v2/trace/setting"),
    "trace rate a word": Http(400, ("trace_rate",), {"trace_rate": "x"}, "/v2/trace/setting"),
    "trace to a file": Http(501, (), {"trace_file": "/tmp/x"}, "/v2/trace/setting"),
    "trace switched on": Http(400, ("trac",), {"trace_level": ["TIMESTAMPS"]}, "/v2/trace/setting"),
    "trace of an unknown model": Http(404, ("nope",), path="/v2/models/nope/trace/setting", method="GET"),
    "log to a file": Http(501, (), {"log_file": "/tmp/x"}, "/v2/logging"),
    "log in an unknown format": Http(400, ("log_format",), {"log_format": "x"}, "/v2/logging"),
    "log level a list": Http(400, ("log_verbose_level",), {"log_verbose_level": []}, "/v2/logging"),
    "generate a list": Http(400, (), [], "/v2/models/words/generate"),
    "generate with a wrong type": Http(400, ("INPUT0",), {"INPUT0": 5}, "/v2/models/words/generate"),
    "generate on an unknown model": Http(404, ("nope",), {}, "/v2/models/nope/generate"),
    "v1 with a number": Http(400, ("instances",), {"instances": 5}, "/v1/models/simple:predict"),
    "v1 with rows and columns": Http(400, ("both",), {"instances": [], "inputs": {}}, "/v1/models/simple:predict"),
    "v1 of an unknown model": Http(404, ("nope",), {"instances": []}, "/v1/models/nope:predict"),
    "v1 explain": Http(501, (), {"instances": []}, "/v1/models/simple:explain"),
}  # fmt: skip

_LINE = b"POST /v2/models/simple/infer HTTP/1.1\r\nHost: x\r\n"
_CHUNKED = _LINE + b"Transfer-Encoding: chunked\r\n\r\n"
_HIDDEN = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"

RAW: dict[str, BadRequest] = {
    "no HTTP": Raw(400, (), b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(64)),
    "HTTP/9.9": Raw(400, (), b"GET /v2 HTTP/9.9\r\n\r\n"),
    "length and chunks": Raw(400, (), _LINE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _HIDDEN),
    "chunks and length": Raw(400, (), _LINE + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + _HIDDEN),
    "two lengths": Raw(400, (), _LINE + b"Content-Length: 2\r\nContent-Length: 40\r\n\r\n{}" + _HIDDEN),
    "length with a sign": Raw(400, (), _LINE + b"Content-Length: +2\r\n\r\n{}" + _HIDDEN),
    "length negative": Raw(400, (), _LINE + b"Content-Length: -2\r\n\r\n{}" + _HIDDEN),
    "length of 100 digits": Raw(400, (), _LINE + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n{}"),
    "unknown transfer coding": Raw(400, (), _LINE + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + _HIDDEN),
    "folded header": Raw(400, (), _LINE + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n" + _HIDDEN),
    "space before the colon": Raw(400, (), _LINE + b"Content-Length : 2\r\n\r\n{}" + _HIDDEN),
    "NUL in a header": Raw(400, (), _LINE + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}"),
    "bare line feeds": Raw(400, (), _LINE.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}" + _HIDDEN),
    "chunk size a word": Raw(400, (), _CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n" + _HIDDEN),
    "chunk size negative": Raw(400, (), _CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n" + _HIDDEN),
    "chunk size of 40 digits": Raw(400, (), _CHUNKED + b"f" * 40 + b"\r\n{}\r\n0\r\n\r\n" + _HIDDEN),
    "chunk longer than it says": Raw(400, (), _CHUNKED + b"1\r\n{}{}\r\n0\r\n\r\n" + _HIDDEN),
    "header length twice": Raw(400, (HEADER_LENGTH,), _LINE + f"{HEADER_LENGTH}: 2\r\n{HEADER_LENGTH}: 1\r\nContent-Length: 2\r\n\r\n{{}}".encode()),
    # Larger ones end the same, but leave holes in the server's heap that look like a leak for the first thousand.
    "a header of 64 KiB": Raw(431, (), _LINE + b"X: " + b"a" * 65_536 + b"\r\n\r\n"),
    "a path of 64 KiB": Raw(431, (), b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\n\r\n"),
    "10,000 headers": Raw(400, (), _LINE + b"".join(b"X-%d: a\r\n" % i for i in range(10_000)) + b"\r\n"),
    "1 MiB in chunks of 6 bytes": Raw(400, ("parse",), _LINE + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n[\r\n" * (MIB // 6) + b"0\r\n\r\n"),
}  # fmt: skip

CASES = {**DOCUMENTS, **TENSORS, **BINARY, **PATHS, **RAW}
