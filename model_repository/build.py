"""Puts the model files that aren't committed into this repository.

Run it with the services' environment: the files come out of the `onnx` and `magika` packages.
What is there already is left alone, times included, so a running server sees no change.
"""

import filecmp
import importlib.util
import os
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

LIGHT = Path("backend", "test", "data", "light")
# Where each file goes, and the package and the path that it comes from.
SOURCES = {
    "alexnet_onnx/1/model.onnx": ("onnx", LIGHT / "light_bvlc_alexnet.onnx"),
    "densenet_onnx/1/model.onnx": ("onnx", LIGHT / "light_densenet121.onnx"),
    "inception_v1_onnx/1/model.onnx": ("onnx", LIGHT / "light_inception_v1.onnx"),
    "inception_v2_onnx/1/model.onnx": ("onnx", LIGHT / "light_inception_v2.onnx"),
    "resnet50_onnx/1/model.onnx": ("onnx", LIGHT / "light_resnet50.onnx"),
    "shufflenet_onnx/1/model.onnx": ("onnx", LIGHT / "light_shufflenet.onnx"),
    "squeezenet_onnx/1/model.onnx": ("onnx", LIGHT / "light_squeezenet.onnx"),
    "vgg19_onnx/1/model.onnx": ("onnx", LIGHT / "light_vgg19.onnx"),
    "zfnet512_onnx/1/model.onnx": ("onnx", LIGHT / "light_zfnet512.onnx"),
    "magika/1/model.onnx": ("magika", Path("models", "standard_v3_3", "model.onnx")),
}


def build(repository: Path = HERE) -> list[Path]:
    """Makes what is missing or differs, each file at once, and returns what it made."""
    made = []
    for name, (package, path) in SOURCES.items():
        source, target = package_folder(package) / path, repository / name
        if target.is_file() and filecmp.cmp(source, target, shallow=False):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = repository / f".{target.parts[-3]}.{os.getpid()}.part"
        shutil.copyfile(source, part)
        part.replace(target)
        made.append(target)
    return made


def package_folder(package: str) -> Path:
    """Where a package is installed, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package} isn't installed here: run this with the services' environment")
    return Path(spec.origin).parent


if __name__ == "__main__":
    for path in build():
        print(f"made {path.relative_to(HERE)} ({path.stat().st_size / 1e3:.0f} kB)")
