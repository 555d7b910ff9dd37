"""The command line and the environment of a Triton server. Nothing is started here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.embedded.ports import LOOPBACK

# All that changes a server or shows another tenant's data, and model configurations: Triton would
# show the one that Shoal supplied, with Shoal's version policy. A client's ModelConfig is answered
# from the Registry, which also knows models that are not loaded.
RESTRICTED = (
    "model-repository",
    "model-config",
    "shared-memory",
    "statistics",
    "trace",
    "logging",
)
ADMIN_KEY = "admin-key"
ADMIN_METADATA = f"triton-grpc-protocol-{ADMIN_KEY}"

# Each stub maps a region of its own. One MiB is the least that Triton accepts, and a region grows
# in steps when tensors need more.
SHM_DEFAULT_BYTES = 1 << 20
SHM_GROWTH_BYTES = 1 << 20

# How often Triton sends spans. With its default of 5 s, a trace looks incomplete for as long.
SPAN_DELAY_MS = 500

# Triton starts stubs through `bash -c`, with every path unquoted.
_SHELL_SAFE = re.compile(r"[A-Za-z0-9_./+@%=,-]+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_SECRET = re.compile(r"[A-Za-z0-9_-]{16,}")


@dataclass(frozen=True)
class TritonSpec:
    """A Triton server to start. Ports are on loopback, and paths are absolute.

    `python` is the interpreter of Triton's own environment, whose packages the models import. The
    name of every region that the server makes in /dev/shm begins with `shm_prefix`, so that what a
    crash leaves behind can be told from other servers' regions. The `RESTRICTED` protocols ask for
    `admin_secret` in gRPC metadata. Models run as the server's own user and can read it on its
    command line, which is the only place that Triton takes it from. `auto_complete` lets the server
    complete what the models' configs leave out.
    """

    id: str
    grpc_port: int
    metrics_port: int
    repositories: tuple[Path, ...]
    backend_directory: Path
    python: Path
    shm_prefix: str
    admin_secret: str = field(repr=False)
    http_port: int | None = None
    load_threads: int = 4
    exit_timeout_s: int = 30
    trace_url: str | None = None
    log_verbose: int = 0
    auto_complete: bool = False
    extra_args: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for path in (*self.repositories, self.backend_directory):
            if not path.is_absolute() or not _SHELL_SAFE.fullmatch(str(path)):
                raise ValueError(f"Triton cannot start models below this path: {str(path)!r}")
        for word in (self.id, self.shm_prefix):
            if not _WORD.fullmatch(word):
                raise ValueError(f"not a plain word: {word!r}")
        if not _SECRET.fullmatch(self.admin_secret):
            raise ValueError("the admin secret needs 16 or more of A-Z, a-z, 0-9, _ and -")

    @property
    def site_packages(self) -> Path:
        """The site-packages of Triton's environment."""
        lib = self.python.parent.parent / "lib"
        found = sorted(lib.glob("python3.*/site-packages/pytriton"))
        if not found:
            raise FileNotFoundError(f"no Triton wheel below {lib}")
        return found[-1].parent


def command(spec: TritonSpec) -> list[str]:
    """Return the full command line, which begins with the binary's path."""
    binary = spec.site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    return [
        str(binary),
        f"--id={spec.id}",
        *(f"--model-repository={path}" for path in spec.repositories),
        "--model-control-mode=explicit",
        f"--model-load-thread-count={spec.load_threads}",
        # Models load ten times faster without it, and the Registry has completed their configs.
        *([] if spec.auto_complete else ["--disable-auto-complete-config"]),
        "--strict-readiness=false",
        f"--exit-timeout-secs={spec.exit_timeout_s}",
        f"--backend-directory={spec.backend_directory}",
        *_shared_memory(spec),
        *_endpoints(spec),
        *_tracing(spec),
        f"--log-verbose={spec.log_verbose}",
        *spec.extra_args,
    ]


def environment(spec: TritonSpec, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the process, made from `base`, commonly `os.environ`.

    Stubs inherit it, and models are other people's code. So Shoal's own variables are left out, and
    those that would change Triton's Python.
    """
    kept = {
        name: value
        for name, value in base.items()
        if not name.startswith(("SHOAL_", "PYTHON")) and name != "VIRTUAL_ENV"
    }
    site_packages = spec.site_packages
    # By default one thread for each model process, because a server has dozens of processes.
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    libraries = [str(site_packages / "nvidia_pytriton.libs"), str(_python_libraries(spec.python))]
    return {
        **threads,
        **kept,
        "LD_LIBRARY_PATH": ":".join([*libraries, *_nonempty(base.get("LD_LIBRARY_PATH"))]),
        "PYTHONPATH": str(site_packages),
        "PATH": ":".join([str(spec.python.parent), *_nonempty(base.get("PATH"))]),
    }


def _shared_memory(spec: TritonSpec) -> list[str]:
    # Python-based backends take these too, not settings under their own names.
    settings = (
        f"shm-region-prefix-name={spec.shm_prefix}",
        f"shm-default-byte-size={SHM_DEFAULT_BYTES}",
        f"shm-growth-byte-size={SHM_GROWTH_BYTES}",
    )
    return [f"--backend-config=python,{setting}" for setting in settings]


def _endpoints(spec: TritonSpec) -> list[str]:
    restricted = f"{','.join(RESTRICTED)}:{ADMIN_KEY}={spec.admin_secret}"
    http = ["--allow-http=false"]
    if spec.http_port is not None:
        http = [
            f"--http-address={LOOPBACK}",
            f"--http-port={spec.http_port}",
            f"--http-restricted-api={restricted}",
        ]
    return [
        f"--grpc-address={LOOPBACK}",
        f"--grpc-port={spec.grpc_port}",
        f"--grpc-restricted-protocol={restricted}",
        *http,
        f"--metrics-address={LOOPBACK}",
        f"--metrics-port={spec.metrics_port}",
        "--allow-gpu-metrics=false",
    ]


def _tracing(spec: TritonSpec) -> list[str]:
    if spec.trace_url is None:
        return []
    settings = (
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        # Triton samples nothing itself: it traces only requests with a traceparent.
        "rate=0",
        f"opentelemetry,url={spec.trace_url}",
        "opentelemetry,resource=service.name=triton",
        f"opentelemetry,resource=service.instance.id={spec.id}",
        f"opentelemetry,bsp_schedule_delay={SPAN_DELAY_MS}",
    )
    return [f"--trace-config={setting}" for setting in settings]


def _python_libraries(python: Path) -> Path:
    """Return the folder with libpython, of the interpreter that the environment was made from."""
    for line in python.parent.parent.joinpath("pyvenv.cfg").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "home":
            return Path(value.strip()).parent / "lib"
    raise ValueError(f"not the interpreter of a virtual environment: {python}")


def _nonempty(value: str | None) -> list[str]:
    return [value] if value else []
