"""Settings from flags, environment and file: what goes before what, and what is said of mistakes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from roost.core.version import __version__
from roost.server import cli
from roost.server.arguments import ConfigError
from roost.server.config import ServeConfig, read_command
from roost.server.derived import mesh_settings
from roost.server.effective_config import effective_yaml
from roost.server.layers import flag_of, variable_of
from roost.server.machine import Machine
from roost.server.settings import Settings

MACHINE = Machine(cpus=4, memory_bytes=2**30)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a repository ``models``."""
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(*argv: str, environ: dict[str, str] | None = None, machine: Machine = MACHINE) -> ServeConfig:
    environ = {"HOME": "/home/me"} if environ is None else environ
    return read_command(["--model-repository", "models", *argv], environ, machine).config


def mistake(argv: list[str], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        read_command(argv, {"HOME": "/", **(environ or {})}, MACHINE)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults(folder: Path) -> None:
    config = read()
    assert config.model_repositories == (Path("models"),)
    assert (config.http_port, config.grpc_port, config.admin_port, config.metrics_port) == (8080, 8081, 8082, None)
    assert config.host == "127.0.0.1"
    assert config.model_control == "none"
    assert config.workers == 3
    assert config.memory_budget_bytes is None
    assert config.arena_bytes == 2**27
    assert config.state_dir == Path("/home/me/.local/state/roost")
    assert (config.request_timeout_s, config.load_timeout_s, config.drain_timeout_s) == (60, 60, 30)
    assert config.body_budget_bytes == 2**27
    assert config.max_queued_bytes == 2**26
    assert not config.access_log
    assert not config.enable_dummy


def test_flag_before_variable_before_file_before_default(folder: Path) -> None:
    (folder / "roost.yaml").write_text("http_port: 1\ngrpc_port: 2\nadmin_port: 3\n")
    environ = {"ROOST_CONFIG": "roost.yaml", "ROOST_GRPC_PORT": "12", "ROOST_ADMIN_PORT": "13", "HOME": "/"}
    config = read("--admin-port", "23", environ=environ)
    assert (config.http_port, config.grpc_port, config.admin_port, config.max_queue) == (1, 12, 23, 1000)


def test_a_list_replaces_the_list_of_the_next_layer(folder: Path) -> None:
    for name in ("a", "b", "c"):
        (folder / name).mkdir()
    (folder / "roost.yaml").write_text("model_repository: [a, b]\n")
    argv = ["--config", "roost.yaml"]
    assert read_command(argv, {"HOME": "/"}, MACHINE).config.model_repositories == (Path("a"), Path("b"))
    environ = {"HOME": "/", "ROOST_MODEL_REPOSITORY": "b:c:"}
    assert read_command(argv, environ, MACHINE).config.model_repositories == (Path("b"), Path("c"))
    argv += ["--model-repository", "c", "--model-repository", "a", "--model-repository", "c"]
    assert read_command(argv, environ, MACHINE).config.model_repositories == (Path("c"), Path("a"))


def test_units(folder: Path) -> None:
    config = read("--memory-budget", "2GiB", "--request-timeout", "250ms", "--load-timeout", "5m", "--max-body", "10MB")
    assert config.memory_budget_bytes == 2**31
    assert config.request_timeout_s == 0.25
    assert config.load_timeout_s == 300
    assert config.max_body_bytes == 10**7
    assert read("--drain-timeout", "0").drain_timeout_s == 0
    assert read("--arena-size", "1GiB").arena_bytes == 2**30


def test_no_arena_at_all_is_printed_as_it_is_read(folder: Path) -> None:
    config = read("--arena-size", "0")
    assert config.arena_bytes == 0
    assert Settings(arena_size=yaml.safe_load(effective_yaml(config))["arena_size"]).arena_size == 0


def test_auto_is_what_it_is_without(folder: Path) -> None:
    automatic = read("--workers", "auto", "--memory-budget", "auto", "--body-budget=auto", "--max-queued-bytes=auto")
    assert automatic == read()


@pytest.mark.parametrize(("cpus", "workers"), [(1, 1), (2, 1), (8, 7)])
def test_workers_follow_the_cpus(folder: Path, cpus: int, workers: int) -> None:
    assert read(machine=Machine(cpus, 2**30)).workers == workers


def test_the_body_budget_holds_the_largest_request_on_a_small_machine(folder: Path) -> None:
    assert read(machine=Machine(1, 2**28)).body_budget_bytes == 64 * 2**20
    assert read(machine=Machine(1, 2**40)).body_budget_bytes == 512 * 2**20
    assert read("--max-body", "2GiB").body_budget_bytes == 2**31


@pytest.mark.parametrize(
    ("value", "expected"), [("/var/state", "/var/state/roost"), ("relative", "/h/.local/state/roost")]
)
def test_state_dir_follows_xdg(folder: Path, value: str, expected: str) -> None:
    assert read(environ={"HOME": "/h", "XDG_STATE_HOME": value}).state_dir == Path(expected)


def test_switches_can_be_turned_off_again(folder: Path) -> None:
    environ = {"HOME": "/", "ROOST_ACCESS_LOG": "true", "ROOST_ENABLE_DUMMY": "1"}
    assert read(environ=environ).access_log
    assert read(environ=environ).enable_dummy
    assert not read("--no-access-log", environ=environ).access_log


def test_empty_variables_and_null_keys_count_as_unset(folder: Path) -> None:
    (folder / "roost.yaml").write_text("metrics_port:\nmemory_budget: null\n")
    assert read("--config", "roost.yaml", environ={"HOME": "/home/me", "ROOST_HTTP_PORT": ""}) == read()


def test_what_kubernetes_says_of_services_is_ignored(folder: Path) -> None:
    links = {
        "HOME": "/home/me",
        "ROOST_SERVICE_HOST": "10.0.0.1",
        "ROOST_SERVICE_PORT": "8080",
        "ROOST_SERVICE_PORT_HTTP": "8080",
        "ROOST_PORT": "tcp://10.0.0.1:8080",
        "ROOST_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "ROOST_PORT_8080_TCP_ADDR": "10.0.0.1",
        "ROOST_HTTP_PORT": "tcp://10.0.0.2:80",
        "ROOST_HTTP_SERVICE_HOST": "10.0.0.2",
        "ROOST_HTTP_PORT_80_TCP_PROTO": "tcp",
    }
    assert read(environ=links) == read()


@pytest.mark.parametrize(
    ("argv", "environ", "expected"),
    [
        (["--http-prot", "1"], {}, "unknown flag --http-prot; did you mean --http-port?"),
        (["--http-prot=1"], {}, "unknown flag --http-prot; did you mean --http-port?"),
        (["--http", "1"], {}, "unknown flag --http"),
        (["models"], {}, "unexpected argument models"),
        (["--http-port"], {}, "--http-port: expected one argument"),
        ([], {"ROOST_HTTP_PROT": "1"}, "unknown environment variable ROOST_HTTP_PROT; did you mean ROOST_HTTP_PORT?"),
        ([], {"ROOST_XYZZY": "1"}, "unknown environment variable ROOST_XYZZY"),
        ([], {"ROOST_HTTP_PORT": "x"}, "ROOST_HTTP_PORT: 'x' is not a port from 0 to 65535"),
        (["--grpc-port", "65536"], {}, "--grpc-port: 65536 is not a port from 0 to 65535"),
        (["--workers", "0"], {}, "--workers: 0 is not a number of worker processes from 1 to 1024"),
        (["--rate-limit", "on"], {}, "--rate-limit: 'on' is not one of none, execution_count"),
        (["--rate-limit-resource", "R:1"], {}, "--rate-limit-resource: needs --rate-limit execution_count"),
        (["--rate-limit-resource", "R"], {}, "--rate-limit-resource: 'R' is not of the form name:count or"),
        (["--worker-labels", "ssd"], {}, "--worker-labels: 'ssd' is not of the form name=value"),
        (["--worker-labels", "a:disk=ssd"], {}, "--worker-labels: 'a:disk=ssd' does not begin with the number of a"),
        (["--worker-labels", "3:disk=ssd"], {}, "--worker-labels: there is no worker 3: they are numbered from 0 to 2"),
        ([], {"ROOST_WORKER_LABELS": "disk=ssd;1:,"}, "ROOST_WORKER_LABELS: '1:,' has no label of the form name=value"),
        (["--max-body", "64MX"], {}, "--max-body: '64MX' is not a size"),
        (["--max-body", "0"], {}, "--max-body: '0' is not a size of at least one byte"),
        (["--request-timeout", "1y"], {}, "--request-timeout: '1y' is not a duration"),
        (["--request-timeout", "0s"], {}, "--request-timeout: '0s' is not a duration of more than 0 seconds"),
        (["--model-control", "pol"], {}, "--model-control: 'pol' is not one of none, explicit, poll"),
        (["--repository-poll-interval", "5s"], {}, "--repository-poll-interval: needs --model-control poll"),
        (["--compat", "kserve"], {}, "--compat: 'kserve' is not one of none, triton"),
        (["--http-header-forward-pattern", "x-("], {}, "--http-header-forward-pattern: 'x-(' is not a regular expr"),
        ([], {"ROOST_GRPC_HEADER_FORWARD_PATTERN": "*"}, "ROOST_GRPC_HEADER_FORWARD_PATTERN: '*' is not a regular"),
        (["--http-restricted-api", "inference"], {}, "--http-restricted-api: expected GROUP[,GROUP...]:HEADER=VALUE"),
        (["--http-restricted-api", "inference:key="], {}, "--http-restricted-api: expected GROUP[,GROUP...]:HEADER"),
        (["--http-restricted-api", "infer:key=s"], {}, "--http-restricted-api: 'infer' is not one of health, metadata"),
        (["--grpc-restricted-protocol", "trace:a b=s"], {}, "--grpc-restricted-protocol: 'a b' is not the name of a"),
        ([], {"ROOST_HTTP_RESTRICTED_API": "trace:a=1;trace:b=2"}, "ROOST_HTTP_RESTRICTED_API: 'trace' is restricted"),
        (["--grpc-http2-max-ping-strikes", "-1"], {}, "--grpc-http2-max-ping-strikes: -1 is not a whole number of"),
        (["--grpc-max-connection-age-grace", "5s"], {}, "--grpc-max-connection-age-grace: needs --grpc-max-connection"),
        (["--log-format", "xml"], {}, "--log-format: 'xml' is not one of human, json"),
        ([], {"ROOST_ACCESS_LOG": "maybe"}, "ROOST_ACCESS_LOG: 'maybe' is neither true nor false"),
        (["--host", ""], {}, "--host: '' is not a text in one line"),
        (["--load-model", "m"], {}, "--load-model: needs --model-control explicit"),
        (
            ["--model-control", "explicit", "--load-model", "../m"],
            {},
            "--load-model: '../m' is not the name of a model",
        ),
        (["--routes", "no.yaml"], {}, "--routes: there is no such file: no.yaml"),
        (["--graphs", "no.yaml"], {}, "--graphs: there is no such file: no.yaml"),
        ([], {"ROOST_ROUTES": "no.yaml"}, "ROOST_ROUTES: there is no such file: no.yaml"),
        (["--ready-file", "no/ready"], {}, "--ready-file: there is no folder for it: no/ready"),
        (["--http-port", "9", "--grpc-port", "9"], {}, "--grpc-port: port 9 is already used for --http-port"),
        (["--body-budget", "1MiB"], {}, "--body-budget: 1 MiB is less than --max-body, 64 MiB"),
        (["--config", "no.yaml"], {}, "--config: can't read no.yaml: No such file or directory"),
        ([], {"ROOST_CONFIG": "no.yaml"}, "ROOST_CONFIG: can't read no.yaml"),
    ],
)
def test_mistakes_are_named(folder: Path, argv: list[str], environ: dict[str, str], expected: str) -> None:
    assert mistake(["--model-repository", "models", *argv], environ).startswith(expected)


def test_the_hundred_and_first_histogram_model_is_refused(folder: Path) -> None:
    names = ",".join(f"m{index}" for index in range(101))
    assert "101 models are over the limit of 100" in mistake([], {"ROOST_HISTOGRAM_MODEL": names})


def test_labels_of_one_worker_go_before_those_of_all(folder: Path) -> None:
    specs = ("zone=a:1, disk=hdd", "1:disk=ssd", " 1 : gpu=no", "zone=b")
    config = read("--workers", "2", *(word for spec in specs for word in ("--worker-labels", spec)))
    assert config.worker_labels == specs
    assert mesh_settings(config).worker_labels == (
        {"zone": "b", "disk": "hdd"},
        {"zone": "b", "disk": "ssd", "gpu": "no"},
    )


def test_workers_of_other_kinds(folder: Path) -> None:
    settings = mesh_settings(read("--workers", "6", "--workers-of", "torch=2", "--workers-of", "python=0"))
    others = {spec.kind: (count, spec.threads) for spec, count, _ in settings.other_kinds}
    threads = {count: mesh_settings(read("--workers", str(count))).spec.threads for count in (1, 2, 4)}
    assert settings.spec.kind == "onnx"
    assert others == {
        "torch": (2, threads[2]),
        "tensorflow": (4, threads[4]),
        "sklearn": (4, threads[4]),
        "python": (0, threads[1]),
    }
    assert "kinds: torch, tensorflow, sklearn, python" in mistake(["--workers-of", "onnx=3"])
    assert "'-1' is not a number of worker processes" in mistake(["--workers-of", "torch=-1"])


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ([], {}, []),
        (["--allow-code"], {}, ["models", "more"]),
        (["--allow-code=more"], {}, ["more"]),
        (["--allow-code=./more/"], {}, ["more"]),
        ([], {"ROOST_ALLOW_CODE": "more:models"}, ["more", "models"]),
        ([], {"ROOST_ALLOW_CODE": "true"}, ["models", "more"]),
    ],
)
def test_where_models_may_be_code(folder: Path, flags: list[str], environ: dict[str, str], expected: list[str]) -> None:
    (folder / "more").mkdir()
    both = ["--model-repository", "models", "--model-repository", "more"]
    config = read(*both, *flags, environ=environ)
    assert [path.name for path in config.code_repositories] == expected
    assert all(path.is_absolute() for path in config.code_repositories)
    assert "--allow-code: not one of the model repositories: other" in mistake([*both, "--allow-code=other"])


def test_missing_repositories(folder: Path) -> None:
    assert mistake([]).startswith("no model repository")
    assert mistake(["--model-repository", "no"]) == "--model-repository: there is no such folder: no"
    assert mistake([], {"ROOST_MODEL_REPOSITORY": "models:no"}) == "ROOST_MODEL_REPOSITORY: there is no such folder: no"
    (folder / "file").touch()
    assert mistake(["--model-repository", "file"]) == "--model-repository: is not a folder: file"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http-port: 1", "c.yaml: unknown key http-port; did you mean http_port?"),
        ("8: 1", "c.yaml: unknown key 8"),
        ("[1, 2]", "c.yaml: expected keys and values at the top level"),
        ("a: b: c", "c.yaml: not valid YAML: line 1, column 5: mapping values are not allowed here"),
        ("a: 'x", "c.yaml: not valid YAML: line 1, column 6:"),
        ("http_port: [1]", "c.yaml: http_port: [1] is not a port from 0 to 65535"),
        ("http_port: true", "c.yaml: http_port: True is not a port from 0 to 65535"),
        ("max_body: 1.5", "c.yaml: max_body: 1.5 is not a size"),
        ("max_queue: .inf", "c.yaml: max_queue: inf is not a whole number of at least 1"),
        ("request_timeout: .inf", "c.yaml: request_timeout: inf is not a duration"),
        ("model_repository: {a: b}", "c.yaml: model_repository: {'a': 'b'} is not a list"),
        ("model_repository: gone", "c.yaml: model_repository: there is no such folder: gone"),
        ("[" * 5000, "c.yaml: not valid YAML"),
    ],
)
def test_mistakes_in_the_file_are_named(folder: Path, text: str, expected: str) -> None:
    (folder / "c.yaml").write_text(text)
    assert mistake(["--config", "c.yaml"]).startswith(expected)


def test_the_printed_configuration_reads_back_to_the_same(folder: Path) -> None:
    (folder / "routes.yaml").touch()
    argv = ["--model-control", "explicit", "--load-model", "*", "--routes", "routes.yaml", "--metrics-port", "0"]
    argv += ["--graphs", "routes.yaml"]
    argv += ["--histogram-model", "m", "--max-body", "1000001", "--request-timeout", "0.3s"]
    argv += ["--http-header-forward-pattern", "^x-a", "--grpc-header-forward-pattern", "(?-i)^x-B"]
    argv += ["--http-restricted-api", "trace,logging:Key=a;b", "--http-restricted-api", "health:other=1"]
    argv += ["--compat", "triton", "--allow-client-shm", "--grpc-max-connection-age", "1h"]
    argv += ["--rate-limit", "execution_count", "--rate-limit-resource", "R:2:0", "--response-cache-size", "0"]
    config = read(*argv)
    (folder / "printed.yaml").write_text(effective_yaml(config))
    assert read_command(["--config", "printed.yaml"], {}, MACHINE).config == config
    polling = read("--model-control", "poll")
    (folder / "printed.yaml").write_text(effective_yaml(polling))
    assert read_command(["--config", "printed.yaml"], {}, MACHINE).config == polling
    assert polling.poll_interval_s == 15


@cache
def _any_config() -> ServeConfig:
    return read_command(["--model-repository", "/"], {"HOME": "/"}, MACHINE).config


@given(size_bytes=st.integers(1, 2**60), duration_s=st.floats(1e-6, 1e6).map(lambda value: round(value, 6)))
def test_printed_sizes_and_durations_lose_nothing(size_bytes: int, duration_s: float) -> None:
    config = replace(_any_config(), memory_budget_bytes=size_bytes, request_timeout_s=duration_s)
    printed = yaml.safe_load(effective_yaml(config))
    read = Settings(memory_budget=printed["memory_budget"], request_timeout=printed["request_timeout"])
    assert read.memory_budget == size_bytes
    assert read.request_timeout == duration_s


def test_every_setting_is_printed_and_can_be_a_variable(folder: Path) -> None:
    printed = yaml.safe_load(effective_yaml(read("--enable-dummy", "--fake-gpus")))
    assert set(printed) == set(Settings.model_fields)
    assert variable_of("http_port") == "ROOST_HTTP_PORT"
    assert flag_of("http_port") == "--http-port"


def test_print_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--model-repository", "models", "--print-config", "--http-port", "5"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["http_port"] == 5


def test_a_mistake_is_one_line_and_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--model-repository", "no\nsuch"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("roost: error: --model-repository: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("serv", "unknown command serv; did you mean serve?"),
        ("xyz", "unknown command xyz; see roost --help"),
        ("--verison", "unknown flag --verison; did you mean --version?"),
    ],
)
def test_unknown_commands(capsys: pytest.CaptureFixture[str], word: str, expected: str) -> None:
    assert cli.main([word]) == 2
    assert capsys.readouterr().err == f"roost: error: {expected}\n"


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"roost {__version__}\n"
    assert cli.main(["--help"]) == 0
    assert "serve" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--max-body SIZE" in shown
    assert "dummy" not in shown


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli.main(["serve"]) == 2
    assert capsys.readouterr().err == "roost: error: Roost runs on Linux only, this is darwin\n"


def test_version_and_help_import_nothing_heavy() -> None:
    script = (
        "import sys; from roost.server.cli import main; main(['--version']); main(['--help']);"
        "heavy = {'aiohttp', 'grpc', 'numpy', 'pydantic', 'yaml', 'rich', 'uvloop'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
