"""Where the stack's settings come from, and what is said about those that cannot be used."""

from pathlib import Path

import pytest

from services.embedded import parts, tracing, triton_options
from services.embedded.errors import BadSettings
from services.embedded.settings import StackSettings, load
from services.embedded.tritonserver import TritonSpec, command
from shoal.sizes import format_size, parse_size
from tests.support.triton_direct import triton_python


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "shoal.toml"
    path.write_text('servers = 2\nmemory-budget = "3GiB"\nmax_models = 4\nregistry-port = 7001\n')
    return path


def test_flags_come_before_environment_before_file_before_defaults(config: Path) -> None:
    environment = {"SHOAL_MEMORY_BUDGET": "2GiB", "SHOAL_MAX_MODELS": "5", "SHOAL_DATA": ""}
    settings = load({"max_models": 6}, environment, config)
    assert settings.max_models == 6
    assert settings.memory_budget == 2 << 30
    assert (settings.servers, settings.registry_port) == (2, 7001)
    assert (settings.router_grpc_port, settings.data) == (8001, None)


def test_folders_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    config = tmp_path / "shoal.toml"
    config.write_text('repository = ["models", "/"]\ndata = "kept"\n')
    settings = load({}, {}, config)
    assert settings.repository == (tmp_path / "models", Path("/"))
    assert settings.data == tmp_path / "kept"


def test_repositories_in_the_environment_are_a_path_list(tmp_path: Path) -> None:
    settings = load({}, {"SHOAL_REPOSITORY": f"{tmp_path}:/"}, None)
    assert settings.repository == (tmp_path, Path("/"))


FORWARD = "--grpc-header-forward-pattern=x-.*"


def test_options_for_triton_are_a_list_or_a_shells_words(tmp_path: Path) -> None:
    flags = load({"triton_option": [FORWARD, "--log-verbose=1"]}, {}, None)
    assert flags.triton_option == (FORWARD, "--log-verbose=1")
    environment = {"SHOAL_TRITON_OPTION": f"'{FORWARD}' --cache-config=local,size=1048576"}
    assert load({}, environment, None).triton_option == (
        FORWARD,
        "--cache-config=local,size=1048576",
    )
    config = tmp_path / "shoal.toml"
    for value in (f'"{FORWARD}"', f'["{FORWARD}"]'):
        config.write_text(f"triton-option = {value}")
        assert load({}, {}, config).triton_option == (FORWARD,)


@pytest.mark.triton
def test_options_that_shoal_itself_sets_are_refused_with_the_reason() -> None:
    for word in tritonserver_words():
        name = word.removeprefix("--").partition("=")[0]
        several = name == "backend-config"  # of which one setting alone is refused
        assert several or name in triton_options.DEFAULTS or triton_options.refusal(name), word


def tritonserver_words() -> list[str]:
    """Every option on the command line of a server."""
    found = []
    for http_port in (1, None):
        spec = TritonSpec(
            id="any",
            grpc_port=1,
            metrics_port=1,
            repositories=(Path("/models"),),
            backend_directory=Path("/backends"),
            python=triton_python(),
            shm_prefix="any",
            admin_secret="x" * 16,
            http_port=http_port,
            trace_url="http://any",
        )
        found += command(spec)[1:]
    return found


def test_a_model_is_not_taken_for_a_repository(tmp_path: Path) -> None:
    (tmp_path / "models" / "one" / "1").mkdir(parents=True)
    (tmp_path / "models" / "one" / "config.pbtxt").touch()
    (tmp_path / "models" / "config.pbtxt").touch()  # a stray file changes nothing
    load({"repository": (tmp_path / "models",)}, {}, None)
    with pytest.raises(BadSettings, match=f"one is a model, and .* give {tmp_path}/models, or"):
        load({"repository": (tmp_path / "models" / "one",)}, {}, None)


def test_an_unknown_key_names_the_nearest_one(tmp_path: Path) -> None:
    config = tmp_path / "shoal.toml"
    config.write_text('memory-buget = "1GiB"\n')
    with pytest.raises(BadSettings, match="no key 'memory-buget'; the nearest is 'memory-budget'"):
        load({}, {}, config)


@pytest.mark.parametrize(
    ("flags", "environment", "told"),
    [
        ({"memory_budget": "2 bananas"}, {}, "--memory-budget: '2 bananas' is not a size: write"),
        ({}, {"SHOAL_SERVERS": "0"}, "SHOAL_SERVERS: Input should be greater than or equal to 1"),
        ({"otlp": "localhost:4318"}, {}, "--otlp: "),
        ({"otlp": "http://a:4318", "no_otlp": True}, {}, "give one of them"),
        ({"repository": ("/nowhere",)}, {}, "--repository: there is no /nowhere"),
        ({"repository": (__file__,)}, {}, "test_settings.py is not a folder"),
        ({"router_grpc_port": 70000}, {}, "--router-grpc-port: "),
        (
            {"triton_option": ["--grpc-port=1"]},
            {},
            "--triton-option: --grpc-port cannot be given to the servers: Shoal picks the servers'",
        ),
        (
            {"triton_option": ["--http-header-forward-pattern=.*"]},
            {},
            "get every request over gRPC",
        ),
        (
            {"triton_option": ["--backend-config=python,shm-region-prefix-name=a"]},
            {},
            "--backend-config cannot be given to the servers: the prefix tells",
        ),
        ({"triton_option": ["log-verbose=1"]}, {}, "'log-verbose=1' is not an option of triton"),
        ({}, {"SHOAL_TRITON_OPTION": "--log-verbose 1"}, "--log-verbose lacks its value: write"),
        ({}, {"SHOAL_TRITON_OPTION": "'--log-verbose=1"}, "SHOAL_TRITON_OPTION: No closing quot"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_place(
    flags: dict[str, object], environment: dict[str, str], told: str
) -> None:
    with pytest.raises(BadSettings) as caught:
        load(flags, environment, None)
    assert told in str(caught.value)


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    config = tmp_path / "shoal.toml"
    config.write_text("servers: 2")
    with pytest.raises(BadSettings, match=r"shoal\.toml cannot be read: Expected '='"):
        load({}, {}, config)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("2GiB", 2 << 30),
        ("512MiB", 512 << 20),
        ("2Gi", 2 << 30),
        ("2G", 2_000_000_000),
        ("1.5 kB", 1500),
        ("1tib", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "2XiB", "2iB", "1e9", "two"])
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(ValueError, match="such as 2GiB, 512MiB"):
        parse_size(text)


def test_sizes_are_shown_in_binary_units() -> None:
    assert [format_size(size) for size in (12, 2048, 3 << 29, 1 << 40)] == [
        "12 B",
        "2 KiB",
        "1.5 GiB",
        "1 TiB",
    ]


def test_traces_go_to_the_embedded_collector() -> None:
    settings = StackSettings(trace_ratio=0.25)
    assert tracing.wants_collector(settings, {})
    planned = tracing.plan(settings, {}, "127.0.0.1:4318")
    assert planned.triton_url == "http://127.0.0.1:4318/v1/traces"
    assert planned.variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:4318"
    assert planned.variables["OTEL_TRACES_SAMPLER"] == "parentbased_traceidratio"
    assert planned.variables["OTEL_TRACES_SAMPLER_ARG"] == "0.25"


def test_traces_go_where_a_flag_or_the_user_s_own_variables_say() -> None:
    named = StackSettings.model_validate({"otlp": "http://viewer:4318/"})
    own = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://mine:4318", "OTEL_TRACES_SAMPLER": "always_on"}
    assert not tracing.wants_collector(named, own)
    planned = tracing.plan(named, own, None)
    assert planned.triton_url == "http://viewer:4318/v1/traces"
    assert planned.variables["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://viewer:4318"
    assert "OTEL_TRACES_SAMPLER" not in planned.variables

    assert not tracing.wants_collector(StackSettings(), own)
    # The variables themselves reach the services unchanged; Triton speaks OTLP over HTTP only.
    assert tracing.plan(StackSettings(), own, None) == tracing.Tracing({}, None)
    assert "Triton's own spans" in tracing.notes(StackSettings(), own, tracing.Tracing({}, None))[0]
    http = {**own, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    assert tracing.plan(StackSettings(), http, None).triton_url == "http://mine:4318/v1/traces"


def test_no_traces_at_all() -> None:
    settings = StackSettings(no_otlp=True)
    assert not tracing.wants_collector(settings, {})
    planned = tracing.plan(settings, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://mine:4318"}, None)
    assert planned == tracing.Tracing({"OTEL_SDK_DISABLED": "true"}, None)


@pytest.mark.parametrize(
    ("base", "workers", "on"),
    [
        ({}, 1, True),
        ({}, 2, False),
        ({"SHOAL_ROUTER_SHARED_MEMORY": "false"}, 1, False),
        ({"SHOAL_ROUTER_HEDGE_AFTER": "0.1"}, 1, False),
        ({"SHOAL_ROUTER_HOST": "0.0.0.0"}, 1, False),
    ],
)
def test_shared_memory_is_on_where_it_can_be(base: dict[str, str], workers: int, on: bool) -> None:
    given = parts.shared_memory(base, StackSettings(router_workers=workers))
    assert given == ({"SHOAL_ROUTER_SHARED_MEMORY": "true"} if on else {})
