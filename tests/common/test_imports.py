"""What a service's process imports when it starts."""

import subprocess
import sys

import pytest

# Each would take as long as a good part of the rest of the start.
HEAVY = ("numpy", "onnx", "rich", "alembic", "ml_dtypes", "tritonclient.grpc._client", "pandas")


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("service", ["registry", "controller"])
def test_a_service_starts_without_what_it_may_never_use(service: str) -> None:
    code = (
        f"import sys, services.{service}.__main__\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_the_router_starts_without_what_it_never_uses() -> None:
    code = (
        "import sys, services.router.__main__\n"
        f"print([name for name in {HEAVY} if name != 'numpy' and name in sys.modules])"
    )
    assert run(code) == "[]"


def test_whoever_uses_tritons_client_has_it() -> None:
    code = (
        "import services, sys\n"
        "from tritonclient.grpc import service_pb2\n"
        "assert 'numpy' not in sys.modules\n"
        "import tritonclient.grpc as triton, tritonclient.grpc.aio as aio\n"
        "assert triton.service_pb2 is service_pb2\n"
        "print(triton.InferInput.__name__, aio.InferenceServerClient.__name__)\n"
        "try: triton.no_such_name\n"
        "except AttributeError as error: print(error)"
    )
    assert run(code).splitlines() == [
        "InferInput InferenceServerClient",
        "module 'tritonclient.grpc' has no attribute 'no_such_name'",
    ]


def test_rich_is_there_for_whoever_wants_it() -> None:
    assert run("import services, rich.console; print(rich.console.__name__)") == "rich.console"
