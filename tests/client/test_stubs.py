"""Generating stubs as docs/clients.md says, with a plugin that reports what it was asked for."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.client_docs import blocks

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = """
import json, os, sys
from google.protobuf.compiler import plugin_pb2

request = plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read())
response = plugin_pb2.CodeGeneratorResponse(supported_features=1)
for file in request.proto_file:
    if file.name in request.file_to_generate:
        options = file.options
        said = [file.name, options.go_package, options.java_package, request.parameter]
        response.file.add(name=f"{os.getpid()}/{file.name}.json", content=json.dumps(said))
sys.stdout.buffer.write(response.SerializeToString())
"""


def generated(template: str, folder: Path) -> list[list[Any]]:
    """Return file, Go package, Java package and options of each file that a plugin was given."""
    (folder / "plugin.py").write_text(PLUGIN)
    plugin = json.dumps([sys.executable, str(folder / "plugin.py")])
    template = re.sub(r"(?:remote|local): \S+", f"local: {plugin}", template)
    template = template.replace("directory: shoal", f"directory: {ROOT}")
    (folder / "buf.gen.yaml").write_text(template)
    buf = Path(sys.executable).with_name("buf")
    run = subprocess.run(
        [buf, "generate"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(path.read_text()) for path in (folder / "gen").rglob("*.json")]


@pytest.mark.parametrize("template", blocks("ci:buf"), ids=["go", "java", "typescript"])
def test_every_proto_is_generated(template: str, tmp_path: Path) -> None:
    asked = generated(template, tmp_path)
    wanted = {
        str(path.relative_to(folder))
        for folder in (ROOT / "protos", ROOT / "third_party" / "triton")
        for path in folder.rglob("*.proto")
    }
    assert {one[0] for one in asked} == wanted
    of = {one[0]: one for one in asked}
    triton, ours = of["grpc_service.proto"], of["shoal/registry/v1/types.proto"]
    if "go_package" in template:
        assert triton[1] == of["model_config.proto"][1] == "example.com/you/gen/inference"
        assert ours[1] == "example.com/you/gen/shoal/registry/v1;registryv1"
        assert ours[3] == "module=example.com/you/gen"
    if "java_package" in template:
        assert (triton[2], ours[2]) == (
            "com.example.gen.inference",
            "com.example.gen.shoal.registry.v1",
        )
