"""Generate stubs from the protos, and call the Registry and the Router with nothing else.

    pip install grpcio-tools                             # part of `make setup`
    make up                                              # in another terminal
    .venv/bin/python examples/generated_stubs.py

It needs neither `shoal.client` nor tritonclient, as in any language with a protobuf compiler.
Prints the models with their default versions, then one answer:

    models/multiplier: default version 2
    ...
    (2.0, 4.0, 6.0) by version 1
"""

import argparse
import importlib
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import grpc_tools  # type: ignore[import-untyped]
from grpc_tools import protoc

CHECKOUT = Path(__file__).resolve().parents[1]
PROTOS = CHECKOUT / "protos"  # Shoal's own: what exists, where it lives
TRITON = CHECKOUT / "third_party" / "triton"  # Triton's protocol: inference


def generate(folder: Path) -> None:
    """Write the stubs of all protos to `folder`, as importable packages."""
    files = [str(path) for root in (PROTOS, TRITON) for path in root.rglob("*.proto")]
    well_known = Path(grpc_tools.__file__).with_name("_proto")
    roots = [f"-I{root}" for root in (PROTOS, TRITON, well_known)]
    outputs = [f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if status := protoc.main(["protoc", *roots, *outputs, *files]):
        raise SystemExit(f"protoc ended with {status}")
    for package in [path for path in folder.rglob("*") if path.is_dir()]:
        (package / "__init__.py").touch()


def main(registry: str, router: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        sys.path.insert(0, folder)
        list_models(registry)
        infer(router)


def list_models(address: str) -> None:
    messages: Any = importlib.import_module("shoal.registry.v1.registry_service_pb2")
    stubs: Any = importlib.import_module("shoal.registry.v1.registry_service_pb2_grpc")
    with grpc.insecure_channel(address) as channel:
        registry = stubs.RegistryServiceStub(channel)
        for model in registry.ListModels(messages.ListModelsRequest(), timeout=10).models:
            print(f"{model.name}: default version {model.default_version}")


def infer(address: str) -> None:
    messages: Any = importlib.import_module("grpc_service_pb2")
    stubs: Any = importlib.import_module("grpc_service_pb2_grpc")
    request = messages.ModelInferRequest(model_name="multiplier", model_version="1")
    request.inputs.add(name="INPUT", datatype="FP32", shape=[1, 3])
    request.raw_input_contents.append(struct.pack("<3f", 1, 2, 3))
    with grpc.insecure_channel(address) as channel:
        # The deadline includes the load of a model that is not in memory.
        answer = stubs.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=60)
    numbers = struct.unpack("<3f", answer.raw_output_contents[0])
    print(f"{numbers} by version {answer.model_version}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Call Shoal with freshly generated stubs.")
    parser.add_argument("--registry", default="localhost:9101", metavar="HOST:PORT")
    parser.add_argument("--router", default="localhost:8001", metavar="HOST:PORT")
    arguments = parser.parse_args()
    main(arguments.registry, arguments.router)
