"""A model repository with everything that repositories have: written by code, model by model."""

from collections.abc import Iterator
from pathlib import Path

from tests.conformance.generated import broken, folders, tensors
from tests.conformance.generated.model import CALLER, ECHO, ONE, PYTHON, Model


def models(*, light: bool) -> list[Model]:
    """Return all models, or the light ones alone."""
    made = (
        *(tensors.identities(), tensors.onnx_identities(), tensors.features()),
        *(tensors.onnx_features(), tensors.sequences(), folders.versions(), folders.folders()),
        *(folders.configs(), folders.links(), broken.broken(), broken.backends()),
        *(ensembles(), callers()),
    )
    return [model for kind in made for model in kind if model.light or not light]


def write(repository: Path, made: list[Model]) -> None:
    """Write the models, and what else lies about in repositories and beside them."""
    outside = repository.parent / "outside"
    outside.mkdir()
    (outside / "model.py").write_text(ECHO)
    for model in made:
        model.write(repository)
    (repository / "README.md").write_text("# Models\n")
    (repository / "model.py").write_text(ECHO)
    (repository / "config.pbtxt").write_text(PYTHON)
    (repository / ".gitattributes").write_text("*.onnx filter=lfs\n")
    (repository / ".git").mkdir()
    (repository / "nowhere").symlink_to("never")
    (repository / "scripts").mkdir()
    (repository / "scripts" / "export.py").write_text("raise SystemExit(1)\n")


def callers() -> Iterator[Model]:
    """Return Python models that call others."""
    for name, callee, light in (
        ("caller", "with-dash", True),
        ("caller_of_versions", "specific", False),
        ("caller_of_ensemble", "ensemble_one", False),
        ("caller_of_nobody", "nobody", False),
    ):
        code = {"1/model.py": CALLER.replace("CALLEE", callee)}
        yield Model(name, PYTHON, code, light=light)


def ensembles() -> Iterator[Model]:
    """Return ensembles of other models, right and wrong ones."""
    step = 'input_map {{ key: "IN" value: "{}" }} output_map {{ key: "OUT" value: "{}" }}'

    def ensemble(*parts: str, more: str = "") -> str:
        names = ["IN", *(f"t{number}" for number in range(len(parts) - 1)), "OUT"]
        steps = ", ".join(
            f'{{ model_name: "{part}" model_version: -1 {step.format(names[at], names[at + 1])} }}'
            for at, part in enumerate(parts)
        )
        return f'platform: "ensemble" {ONE} ensemble_scheduling {{ step [{steps}] }} {more}'

    yield Model("ensemble_one", ensemble("with-dash"), {"1/": ""}, light=True)
    yield Model("ensemble_two", ensemble("with-dash", "onnx_backend"), {"1/": ""}, light=True)
    yield Model("ensemble_of_version", ensemble("no_policy"), {"1/": ""})
    yield Model("ensemble_nested", ensemble("ensemble_one", "with.dot"), {"1/": ""})
    yield Model("ensemble_without_part", ensemble("nowhere"), {"1/": ""}, light=True)
    yield Model("ensemble_of_broken", ensemble("raises_at_import"), {"1/": ""})
    yield Model("ensemble_without_version", ensemble("with-dash"), {})
    yield Model(
        "ensemble_with_group",
        ensemble("with-dash", more="instance_group [{ count: 1 }]"),
        {"1/": ""},
    )
    yield Model(
        "ensemble_empty", f'platform: "ensemble" {ONE} ensemble_scheduling {{ }}', {"1/": ""}
    )
