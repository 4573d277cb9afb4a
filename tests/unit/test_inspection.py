"""``roost inspect``: what it sees in folders and files, of which it runs nothing."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from roost.core.figures import Figures
from roost.registry_client.model_folder import ModelFolder
from roost.router.learned import Learned, Measured
from roost.router.measured import measured_conditions
from roost.router.proof import Proof, conditions_of
from roost.router.store_sqlite import SqliteStore
from roost.server import cli
from roost.server.inspection.archives import Entry, problems_of
from roost.server.inspection.pickles import names_in, suspects
from roost.server.known_sizes import STORE_FILE

from tests.graphs import one, write_text
from tests.models import tensor_info, write_garbage, write_graph, write_mlp, write_policy, write_simple

Look = Callable[..., tuple[int, dict[str, Any]]]
IO = 'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 4 }'
MODEL = "from roost.runtimes import Model\nclass M(Model):\n"


@pytest.fixture
def look(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Look:
    """Runs the command for a path below ``tmp_path``; returns its exit code and what it says."""
    for name in [name for name in os.environ if name.startswith("ROOST_")]:
        monkeypatch.delenv(name)

    def run(path: str, *flags: str) -> tuple[int, dict[str, Any]]:
        folders = ["--state-dir", str(tmp_path / "state"), "--cache-dir", str(tmp_path / "cache")]
        code = cli.main(["inspect", str(tmp_path / path), "--json", *flags, *folders])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else {"error": said.err}

    return run


def put(tmp_path: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return target.getvalue()


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o120777 << 16
    return info


def problems(document: Mapping[str, Any]) -> str:
    return "\n".join(
        [*document["problems"], *(text for version in document["versions"] for text in version["problems"])]
    )


@pytest.mark.parametrize(
    ("files", "flags", "runtime", "reason"),
    [
        ({"1/model.onnx": "", "config.pbtxt": 'backend: "python"'}, (), "python", 'config.pbtxt says backend: "p'),
        ({"1/model.onnx": "", "config.pbtxt": 'platform: "pytorch_libtorch"'}, (), "pytorch", "says platform: "),
        ({"1/a.pt2": "", "config.pbtxt": 'default_model_filename: "a.pt2"'}, (), "pytorch", "names the file 'a.pt2'"),
        ({"1/model.onnx": ""}, ("--model-format", "xgboost"), "xgboost", "--model-format is 'xgboost'"),
        ({"1/model.onnx": "", "config.pbtxt": 'backend: "python"'}, ("--model-format=onnx",), "python", "says back"),
        ({"1/model.onnx": "", "2/model.skops": ""}, (), "sklearn", "there is 'model.skops'"),
        ({"1/labels.pkl": "", "1/net.onnx": ""}, (), "onnxruntime", "there is 'net.onnx'"),
        ({"saved_model.pb": ""}, (), "tensorflow", "there is 'saved_model.pb'"),
        ({"model.txt": ""}, (), "lightgbm", "there is 'model.txt'"),
        (
            {"m.json": "", "model-settings.json": '{"implementation": "mlserver_xgboost.XGBoostModel"}'},
            (),
            "xgboost",
            "model-settings.json names an implementation of it",
        ),
        ({"1/readme": ""}, (), "onnxruntime", "nothing says which, and this is the default"),
    ],
)  # fmt: skip
def test_which_runtime_and_why(
    look: Look, tmp_path: Path, files: Mapping[str, str], flags: tuple[str, ...], runtime: str, reason: str
) -> None:
    put(tmp_path / "m", files)
    _, document = look("m", *flags)
    assert document["runtime"] == runtime
    assert reason in document["reason"]


def test_a_model_that_is_served_as_it_is(look: Look, tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_simple(tmp_path / "m" / version / "model.onnx", batch=-1)
    write_policy(tmp_path / "m", "max_batch_size: 8", memory_bytes="3MiB")
    code, document = look("m")
    assert (code, document["ready"], document["unserved"]) == (0, True, ["1"])
    (version,) = document["versions"]
    assert (version["version"], version["file"], version["files"]) == ("2", "model.onnx", 1)
    assert [(t["name"], t["datatype"], t["shape"]) for t in version["inputs"]] == [
        ("INPUT0", "INT32", [-1, 16]),
        ("INPUT1", "INT32", [-1, 16]),
    ]
    assert version["tensors_from"] == "file"
    assert version["memory"]["private_bytes"] == 3 << 20
    assert version["memory"]["source"] == "declared"
    assert (version["batch_rows"], version["batching"]) == (8, "config")
    code, document = look("m/1")
    assert (code, document["model"], document["versions"][0]["version"]) == (0, "m", "1")
    code, document = look("m/1/model.onnx")
    assert (code, document["runtime"], len(document["notes"])) == (0, "onnxruntime", 1)


def test_people_get_lines(look: Look, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_simple(tmp_path / "m" / "1" / "model.onnx")
    assert cli.main(["inspect", str(tmp_path / "m"), "--state-dir", str(tmp_path / "state")]) == 0
    said = capsys.readouterr().out
    assert "input     INPUT0   INT32  [1, 16]\n" in said
    assert "at most 4 MiB, estimated" in said
    assert said.endswith("\nready to be served\n")


def test_names_in_files_play_no_tricks_on_terminals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.dumps({"__module__": "\x1b[2J", "__class__": "a\nit is served" * 1000})
    put(tmp_path / "m" / "1", {"model.skops": zipped(("schema.json", schema.encode()))})
    cli.main(["inspect", str(tmp_path / "m"), "--state-dir", str(tmp_path / "state")])
    said = capsys.readouterr().out
    assert "skops file of a ?[2J.a?it is served" in said
    assert said.isascii()
    assert "\x1b" not in said
    assert max(map(len, said.splitlines())) < 3000


@pytest.mark.parametrize(
    ("graph", "rows", "says"),
    [
        (one("y = Relu(x)"), None, "tried after its first load"),
        (one("y = Softmax<axis = 0>(x)"), 0, "not proven: operator Softmax"),
        (one("y = Relu(x)", "float[2,4]", "float[2,4]"), 0, "not proven: input 'x' has a fixed first dimension"),
    ],
)
def test_whether_it_batches(look: Look, tmp_path: Path, graph: str, rows: int | None, says: str) -> None:
    write_text(tmp_path / "m" / "1" / "model.onnx", graph)
    code, document = look("m")
    (version,) = document["versions"]
    assert (code, version["batch_rows"]) == (0, rows)
    assert says in version["batching"]


def test_what_a_server_has_found_out_counts(look: Look, tmp_path: Path) -> None:
    write_mlp(tmp_path / "m" / "1" / "model.onnx", (4, 4))
    folder = ModelFolder("m", tmp_path / "m")
    description = folder.load_config()
    (tmp_path / "state").mkdir()
    learned = Learned(SqliteStore(tmp_path / "state" / STORE_FILE))
    digest = folder.artifact("1", description, learned).digest
    measured = Measured(Figures(77 << 10), run_bytes=3 << 10)
    learned.put_measured(digest, measured_conditions(description), measured)
    learned.put_proof(digest, conditions_of(description), Proof(16))
    learned.close()
    _, document = look("m")
    (version,) = document["versions"]
    assert version["memory"]["source"] == "measured"
    assert version["memory"]["run_bytes"] == 16 * (3 << 10)
    assert (version["batch_rows"], version["batching"]) == (16, "proven: up to 16 rows")


@pytest.mark.parametrize(
    ("files", "path", "says"),
    [
        ({"m/1/model.py": "class TritonPythonModel: pass"}, "m", "are code: it needs --allow-code"),
        ({"m/1/model.onnx": b"\x80\x04]."}, "m", "'model.onnx' is a pickle, whatever it is called"),
        ({"m/1/model.skops": b"\x80\x04]."}, "m", "'model.skops' is called a skops file, but is none"),
        ({"m/1/model.skops": zipped(("a", b""))}, "m", "an archive, but not what skops writes"),
        ({"m/1/model.pkl": pickle.dumps(os.system)}, "m", "reading the pickle would call posix.system"),
        ({"m/1/model.joblib": b"\x80\x04]."}, "m", "save the model with skops.io.dump"),
        ({"m/1/model.pt": b"\x80\x02]."}, "m", "written by torch.save of old"),
        ({"m/1/model.pt": zipped(("a/data.pkl", b""))}, "m", "a state dict or a pickled module"),
        ({"m/1/model.pt2": zipped(("a/x", b""), ("../out", b""))}, "m", "leads out of it: '../out'"),
        ({"m/1/model.keras": zipped((link("a"), b"/etc"))}, "m", "a link or a device: 'a'"),
        ({"m/1/model.keras": zipped(("config.json", b"{}"))}, "m", "it needs --allow-code"),
        ({"m/1/model.json": "binf"}, "m", "no model of XGBoost"),
        ({"m/1/model.bst": "tree\nversion=v4"}, "m", 'say backend: "lightgbm"'),
        ({"m/1/model.txt": "{}"}, "m", "not LightGBM's text"),
        ({"m/1/saved_model.pb": b"\x08"}, "m", ""),
        ({"m/1/net.onnx": b""}, "m", "rename it or set default_model_filename"),
        ({"m/1/model.onnx": b"", "m/config.pbtxt": "max_batch_size: x"}, "m", "config.pbtxt line 1"),
        ({"m/1/model.plan": b""}, "m", "a TensorRT engine"),
        ({"m/model.h5": b""}, "m", "save it with model.export"),
        ({"m/MLmodel": ""}, "m", "a model of MLflow"),
        ({"m/readme.md": ""}, "m", "neither version folders nor a file that some runtime reads"),
        ({"m/1/weights.safetensors": b""}, "m/1/weights.safetensors", "weights without a program"),
        ({"m.tar.gz": b""}, "m.tar.gz", "'m.tar.gz' is an archive"),
        ({"notes.xyz": b""}, "notes.xyz", "nothing says what 'notes.xyz' is"),
        ({".hidden/1/model.onnx": b""}, ".hidden", "can't be a model's name"),
        ({"m\udcff/1/model.onnx": b""}, "m\udcff", "'m\\xff' can't be a model's name"),
        ({"\udcff.onnx": b""}, "\udcff.onnx", "it has no graph"),
        (
            {"m/1/model.onnx": b"", "m/config.pbtxt": "version_policy { specific { versions: 7 } }"},
            "m",
            "its version_policy serves none of its versions",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong(look: Look, tmp_path: Path, files: Mapping[str, str | bytes], path: str, says: str) -> None:
    put(tmp_path, files)
    code, document = look(path)
    assert code == 1
    assert says in problems(document)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (MODEL + "    inputs = {'x': ('FP32', [-1, 2])}\n    outputs = {'y': ('BYTES', [-1])}\n", ""),
        ("import json, roost\nfrom .helper import x\nimport beside\nclass TritonPythonModel: ...\n", ""),
        ("try:\n    import tensorrt_llm\nexcept ImportError:\n    pass\n" + MODEL + "    pass\n", ""),
        ("import nobody_has_this.at_all\n" + MODEL + "    pass\n", "it imports nobody_has_this"),
        ("def f(:\n", "is no Python program: invalid syntax in line 1"),
        ("\0", "is no Python program"),
    ],
)
def test_python_models_are_read_as_text(look: Look, tmp_path: Path, source: str, says: str) -> None:
    put(tmp_path / "m" / "1", {"model.py": source, "beside.py": "raise SystemExit"})
    code, document = look("m", "--allow-code")
    assert (code, says in problems(document)) == (1 if says else 0, True)
    if "inputs" in source:
        assert document["versions"][0]["inputs"] == [
            {"name": "x", "datatype": "FP32", "shape": [-1, 2], "optional": False}
        ]
    (tmp_path / "m" / "venv").mkdir()
    code, document = look("m", "--allow-code")
    assert "imports" not in problems(document)


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("weights.bin", ""),
        ("missing.bin", "'missing.bin', which is missing"),
        ("../weights.bin", "'../weights.bin', which is not in the model's folder"),
        ("/etc/hostname", "'/etc/hostname', which is not in the model's folder"),
        ("link.bin", "'link.bin', which is not in the model's folder"),
    ],
)
def test_where_weights_are(look: Look, tmp_path: Path, location: str, says: str) -> None:
    path = write_mlp(tmp_path / "m" / "1" / "model.onnx", (4, 4))
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    onnx.save(model, path)
    put(tmp_path / "m", {"weights.bin": b"0" * 64, "1/weights.bin": b"0" * 64})
    (path.parent / "link.bin").symlink_to(tmp_path / "m" / "weights.bin")
    code, document = look("m")
    assert (code, says in problems(document)) == (1 if says else 0, True)


@pytest.mark.parametrize(
    ("config", "flags", "says"),
    [
        (IO, (), ""),
        (IO.replace("dims: 4", "dims: 5", 1), (), "input 'x': the config says dims [5]"),
        (f"max_batch_size: 4 {IO}", (), "has no variable first dimension"),
        (IO.replace("dims: 4 }", 'dims: 4 label_filename: "names.txt" }').replace("}", "}", 1), (), "names.txt"),
        (IO, ("--memory-budget", "1MiB"), "more than the 1 MiB that there are for models"),
        (IO, ("--workers-of", "torch=0"), ""),
        ('backend: "pytorch"', ("--workers-of", "torch=0"), "--workers-of torch=0 says that such models"),
    ],
)
def test_what_contradicts_the_file_or_the_server(
    look: Look, tmp_path: Path, config: str, flags: tuple[str, ...], says: str
) -> None:
    write_graph(
        tmp_path / "m" / "1" / "model.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [tensor_info("x", "FP32", [4])],
        [tensor_info("y", "FP32", [4])],
    )
    if "label" in config:
        config = config.replace('dims: 4 label_filename: "names.txt" }', "dims: 4 }", 1)
    put(tmp_path / "m", {"config.pbtxt": config})
    code, document = look("m", *flags)
    assert (code, says in problems(document)) == (1 if says else 0, True), document


def test_operators_and_types_that_there_are_not(look: Look, tmp_path: Path) -> None:
    node = helper.make_node("Strange", ["x"], ["y"], domain="my.company")
    write_graph(
        tmp_path / "m" / "1" / "model.onnx",
        [node],
        [tensor_info("x", "FP32", [4])],
        [helper.make_value_info("y", helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, [1])))],
    )
    _, document = look("m")
    assert "operators that ONNX Runtime does not have, of my.company" in problems(document)
    assert "output 'y' is a sequence, which can't be served" in problems(document)
    write_garbage(tmp_path / "m" / "1" / "model.onnx")
    _, document = look("m")
    assert "no ONNX model, or damaged" in problems(document)


@pytest.mark.parametrize("what", [b"named", b"Identity", b"maker"])
def test_damaged_texts_in_an_onnx_file(look: Look, tmp_path: Path, what: bytes) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["named"], ["y"])],
        "g",
        [tensor_info("named", "FP32", [-1])],
        [tensor_info("y", "FP32", [-1])],
    )
    data = helper.make_model(graph, producer_name="maker").SerializeToString()
    put(tmp_path, {"m/1/model.onnx": data.replace(what, b"\xff" * len(what))})
    for flags in ((), ("--batching", "proven")):
        code, document = look("m", *flags)
        assert code == 1 or document["versions"][0]["batching"].startswith("not proven: ")


def test_a_damaged_weight_proves_nothing(look: Look, tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=0, dims=[1], raw_data=b"1234")
    inputs, outputs = [tensor_info("x", "FP32", [-1, 1])], [tensor_info("y", "FP32", [-1, 1])]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    write_graph(tmp_path / "m" / "1" / "model.onnx", nodes, inputs, outputs, [weight])
    assert "its graph can't be read" in look("m")[1]["versions"][0]["batching"]


def test_an_ensemble_is_as_well_as_its_models(look: Look, tmp_path: Path) -> None:
    maps = 'input_map { key: "x" value: "x" } output_map { key: "y" value: "y" }'
    step = f'step {{ model_name: "one" model_version: -1 {maps} }}'
    (tmp_path / "models" / "both" / "1").mkdir(parents=True)
    put(
        tmp_path / "models" / "both",
        {"config.pbtxt": f'platform: "ensemble" {IO} ensemble_scheduling {{ {step} }}'},
    )
    code, document = look("models/both")
    assert (code, document["runtime"]) == (1, "ensemble")
    assert "model 'one', which it is made of, is not beside it" in problems(document)
    write_garbage(tmp_path / "models" / "one" / "1" / "model.onnx")
    _, document = look("models/both")
    assert "model 'one', which it is made of, is not ready: the file is no ONNX model" in problems(document)
    write_simple(tmp_path / "models" / "one" / "1" / "model.onnx")
    code, document = look("models/both")
    assert (code, document["versions"][0]["what"]) == (0, "an ensemble of one")


@pytest.mark.parametrize(
    ("path", "flags", "says"),
    [
        ("nothing", (), "there is no "),
        ("n" * 300, (), "can't be read: File name too long"),
        ("", (), "is a repository of models, a, b: name one of their folders"),
        ("a", ("--lod",), "unknown flag --lod; did you mean"),
        ("a", ("--model-format",), "--model-format: expected one argument"),
        ("a", ("--model-format", "paddle"), "--model-format: 'paddle' is not one of keras, lightgbm, onnx, "),
    ],
)
def test_mistakes_are_told_in_one_line(
    look: Look, tmp_path: Path, path: str, flags: tuple[str, ...], says: str
) -> None:
    for name in ("a", "b"):
        write_simple(tmp_path / name / "1" / "model.onnx")
    code, document = look(path, *flags)
    assert code == 2
    assert says in document["error"]
    assert document["error"].count("\n") == 1


def test_an_archive_is_looked_through_and_not_unpacked(look: Look, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as archive:
        for name, type_ in (("m/1/model.onnx", tarfile.REGTYPE), ("../up", tarfile.REGTYPE), ("l", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type = type_
            archive.addfile(info, io.BytesIO())
    _, document = look("m.tar.gz")
    assert "leads out of it: '../up'" in problems(document)
    assert "a link or a device: 'l'" in problems(document)
    assert {path.name for path in tmp_path.iterdir()} == {"m.tar.gz"}


@pytest.mark.parametrize("name", ["model.onnx", "model.pt", "model.skops", "model.zip", "model.tar.gz"])
def test_nobody_waits_for_what_comes_out_of_a_pipe(look: Look, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    code, document = look(name)
    assert (code, problems(document)) == (1, f"'{name}' is not a regular file")


def test_what_is_too_large_is_not_read(look: Look, tmp_path: Path) -> None:
    put(tmp_path, dict.fromkeys(("m/1/model.onnx", "s/1/saved_model.pb", "p/1/model.py", "m.zip"), b""))
    for name in ("m/1/model.onnx", "s/1/saved_model.pb", "p/1/model.py", "m.zip"):
        os.truncate(tmp_path / name, 1 << 40)
    assert "larger than 2 GiB, which no ONNX file can be" in problems(look("m")[1])
    assert "larger than 2 GiB, which TensorFlow does not read" in problems(look("s")[1])
    assert look("p", "--allow-code")[1]["versions"][0]["notes"] == ["it is too large to be looked into"]
    assert problems(look("m.zip")[1]).startswith("'m.zip' is an archive")


@pytest.mark.parametrize("type_", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_archives_are_small(look: Look, tmp_path: Path, type_: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = type_, 1 << 40
    header = info.tobuf(tarfile.GNU_FORMAT)
    put(tmp_path, {"m.tar.gz": gzip.compress(header), "m.tar": header})
    for name in ("m.tar.gz", "m.tar"):
        assert "it has a header that is too large" in problems(look(name)[1])


@pytest.mark.parametrize("how", ["gz", "bz2", "xz"])
def test_archives_are_known_by_how_they_begin(look: Look, tmp_path: Path, how: Literal["gz", "bz2", "xz"]) -> None:
    with tarfile.open(tmp_path / "m.tar", f"w:{how}") as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("../up"), io.BytesIO())
    assert "leads out of it: '../up'" in problems(look("m.tar")[1])


def test_a_bomb_weighs_little() -> None:
    assert "would become more than 100 MiB" in "".join(problems_of([Entry("a", 1 << 40, True)], 1 << 20))
    assert not list(problems_of([Entry("a", 1 << 30, True)], 1 << 29))


names = st.text("ab./\\:", min_size=1, max_size=8)


@given(names)
def test_what_leads_out_of_an_archive_is_found(name: str) -> None:
    says = any("leads out" in text for text in problems_of([Entry(name, 1, True)], 1))
    inside = Path("/archive")
    is_outside = not Path(os.path.normpath(inside / name)).is_relative_to(inside)
    assert says or not is_outside


trees = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.builds(Fraction, st.integers(1, 9)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(trees, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_a_pickle_hides_no_class(tmp_path_factory: pytest.TempPathFactory, tree: Any, protocol: int) -> None:
    path = tmp_path_factory.getbasetemp() / "pickle"
    path.write_bytes(pickle.dumps([Decimal(1), tree, OrderedDict, [Decimal(2), tree]], protocol))
    assert {"decimal.Decimal", "collections.OrderedDict"} <= names_in(path)
    assert suspects(names_in(path)) == []
    path.write_bytes(pickle.dumps([tree, OrderedDict, eval, tree], protocol))
    assert [name.rpartition(".")[2] for name in suspects(names_in(path))] == ["eval"]


@given(st.binary(max_size=200))
def test_garbage_is_no_pickle(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage"
    path.write_bytes(data)
    names_in(path)
