"""PyTorch's weights alone, with Python code beside them that builds the module.

`model.py` defines `build()`, which returns the module that the weights go into.
"""

import ast
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content import pickles, safetensors, torch_files, zip_archive
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal

name = "state-dict"
backend = ""
runs_code = "the class that its weights belong to is Python code that came with it"

CODE: Final = "model.py"
FUNCTION: Final = "build"
_MAX_CODE: Final = 2**20  # bytes


def detect(artifact: Artifact) -> bool:
    return bool(_archives(artifact) or _legacy(artifact) or (_tensors(artifact) and _has(artifact)))


def validate(artifact: Artifact) -> Described:
    if legacy := _legacy(artifact):
        raise Refusal(
            f"{legacy[0]} was saved by torch before 1.6, or in that form: save it again with "
            "torch.save"
        )
    found = _archives(artifact) or _tensors(artifact)
    file = torch_files.one_of(found, "model.pt", "files of weights")
    notes: tuple[str, ...] = ()
    if file.endswith(".safetensors"):
        notes = (f"{len(safetensors.check(artifact, file))} tensors",)
    else:
        with zip_archive.opened(artifact, file) as archive:
            read = torch_files.pickled(archive, f"{archive.root()}data.pkl")
        if not torch_files.tensors_only(read):
            raise Refusal(
                f"{file} is a pickled object and not only weights (it imports "
                f"{pickles.shown(torch_files.others(read))}): save its state_dict(), or better "
                "export it to ONNX or with torch.export"
            )
    _check_code(artifact, file)
    return Described(notes=notes, file=file)


def _check_code(artifact: Artifact, file: str) -> None:
    if CODE not in artifact.files:
        raise Refusal(
            f"{file} holds weights and nothing that computes: put a {CODE} with a function "
            f"{FUNCTION}() beside it, which returns the module, or export the module to ONNX"
        )
    try:
        tree = ast.parse(artifact.text(CODE, _MAX_CODE))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", 0)
        raise Refusal(f"{CODE} is not Python{f': see line {line}' if line else ''}") from None
    if not any(isinstance(one, ast.FunctionDef) and one.name == FUNCTION for one in tree.body):
        raise Refusal(f"{CODE} beside {file} defines no function {FUNCTION}()")


def _has(artifact: Artifact) -> bool:
    return f"def {FUNCTION}".encode() in artifact.read(CODE, _MAX_CODE)


def _archives(artifact: Artifact) -> list[str]:
    plain = torch_files.with_entry(artifact, "data.pkl", "version", without="code/")
    return [one for one in plain if "constants.pkl" not in zip_archive.listed(artifact, one)]


def _tensors(artifact: Artifact) -> list[str]:
    return [
        one
        for one, head in artifact.heads(9)
        if one.endswith(".safetensors") and safetensors.is_safetensors(head)
    ]


def _legacy(artifact: Artifact) -> list[str]:
    size = len(torch_files.LEGACY)
    return [one for one, head in artifact.heads(size) if head == torch_files.LEGACY]
