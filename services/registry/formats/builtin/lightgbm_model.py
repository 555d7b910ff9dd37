"""LightGBM's models, in their text form."""

from collections.abc import Iterator
from typing import Final

from services.registry.formats.artifact import Artifact
from services.registry.formats.content.graphs import check_tree
from services.registry.formats.content.torch_files import one_of
from services.registry.formats.format import Described
from services.registry.formats.refusal import Refusal
from services.registry.formats.tensor import Tensor

name = "lightgbm"
backend = ""
runs_code = ""

_MAX_LINE: Final = 32 * 2**20  # bytes
_MAX_TREES: Final = 1_000_000
_MAX_FEATURES: Final = 10_000_000
_HEAD: Final = b"tree\nversion=v"


def detect(artifact: Artifact) -> bool:
    return bool(_found(artifact))


def validate(artifact: Artifact) -> Described:
    file = one_of(_found(artifact), "model.txt", "LightGBM models")
    header: dict[str, str] = {}
    tree: dict[str, str] = {}
    trees, ended = 0, False
    for line in _lines(artifact, file):
        key, equals, value = line.partition("=")
        if key == "Tree" or line == "end of trees":
            if trees:
                _check(tree, f"tree {trees - 1} in {file}")
            tree = {}
            ended = line == "end of trees"
            if ended:
                break
            trees += 1
            if trees > _MAX_TREES:
                raise Refusal(f"{file} has more than {_MAX_TREES} trees")
        elif equals and trees == 0:
            header[key] = value
        elif equals:
            tree[key] = value
    said = len(header.get("tree_sizes", "").split())
    if not ended:
        raise Refusal(f"{file} is cut off after {trees} of {said} trees")
    if trees != said:
        raise Refusal(f"{file} has {trees} trees, and says that it has {said}")
    features = _number(header.get("max_feature_idx", ""), f"max_feature_idx in {file}") + 1
    if not 0 < features <= _MAX_FEATURES:
        raise Refusal(f"{file} says that it takes {features} features")
    return Described(
        inputs=(Tensor("input", "TYPE_FP32", (-1, features)),),
        batched=True,
        notes=(
            f"version {header.get('version', '')[:20]} with {trees} trees",
            f"objective {header.get('objective', 'none')[:100]}",
        ),
        file=file,
    )


def _found(artifact: Artifact) -> list[str]:
    return [one for one, head in artifact.heads(32) if head.replace(b"\r", b"").startswith(_HEAD)]


def _lines(artifact: Artifact, file: str) -> Iterator[str]:
    with artifact.stream(file) as stream:
        while line := stream.readline(_MAX_LINE):
            if len(line) == _MAX_LINE:
                raise Refusal(f"{file} has a line of more than {_MAX_LINE} bytes")
            yield line.decode(errors="replace").rstrip("\r\n")


def _check(tree: dict[str, str], what: str) -> None:
    leaves = _number(tree.get("num_leaves", ""), f"num_leaves of {what}")
    left, right = (
        [_number(word, f"a child of {what}") for word in tree.get(side, "").split()]
        for side in ("left_child", "right_child")
    )
    if leaves > 1 and len(left) != leaves - 1:
        raise Refusal(f"{what} has {leaves} leaves and {len(left)} inner nodes")
    check_tree(left, right, what)
    if any(child < -leaves for child in (*left, *right)):
        raise Refusal(f"{what} has a leaf that is not there")


def _number(text: str, what: str) -> int:
    if len(text) > 18 or not text.removeprefix("-").isdecimal() or not text.isascii():
        raise Refusal(f"{what} is {text[:50]!r}, which is no number")
    return int(text)
