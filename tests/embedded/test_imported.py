"""What `shoal up` says of the models that it has imported, and which it imports."""

from pathlib import Path

import pytest

from services.embedded import stack
from services.embedded.imported import Imported, imported
from services.embedded.settings import StackSettings
from tests.support.cli import NO_REGISTRY, registry_alone, shoal
from tests.support.registry import python_model


async def test_models_and_the_first_reasons_are_told(tmp_path: Path) -> None:
    repository = tmp_path / "repo"
    python_model(repository, "good", (1, 2))
    python_model(repository, "bad", config="backend: 'python' # \x1b[2J")
    for number in range(3):
        (repository / f"empty{number}").mkdir()
    async with registry_alone(tmp_path / "data", repositories=(repository,)) as shell:
        found = await imported(shell.registry)
    assert found is not None
    first, second, *others, last = found.lines()
    assert first == "1 model can be served, 4 refused:"
    assert second.startswith("  bad:1: config.pbtxt lists no output")
    assert [line.partition(": ")[0] for line in others] == [
        f"  {repository / f'empty{number}'}" for number in range(2)
    ]
    assert last == "  and 1 more: see `shoal models`"


def test_reasons_do_not_control_the_terminal() -> None:
    assert Imported(2, []).lines() == ["2 models can be served"]
    assert Imported(0, ["m:1: \x1b[2J"]).lines()[1] == "  m:1: ·[2J"


async def test_a_registry_that_does_not_answer_is_passed_over() -> None:
    assert await imported(NO_REGISTRY) is None


@pytest.mark.parametrize(("flags", "examples"), [((), True), (("--data", "kept"), False)])
def test_the_examples_are_served_where_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], examples: bool
) -> None:
    seen: list[StackSettings] = []

    def run(settings: StackSettings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(stack, "run", run)
    assert shoal("up", *flags, "--poll", "2.5").status == 0
    (settings,) = seen
    assert (bool(settings.repository), settings.poll) == (examples, 2.5)
