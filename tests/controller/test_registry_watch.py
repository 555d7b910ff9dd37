"""The Controller's watch on a real Registry's catalogue."""

import asyncio
from pathlib import Path

from services.controller.registry.catalogue import Catalogue
from services.controller.registry.watch import RegistryWatch
from tests.support.registry import python_model, registry
from tests.support.waiting import until


async def test_everybody_who_listens_hears_what_changed(tmp_path: Path) -> None:
    python_model(tmp_path / "repo", "m")
    heard: list[tuple[str, frozenset[str]]] = []
    async with registry(tmp_path / "data", repositories=(tmp_path / "repo",)) as known:
        catalogue = Catalogue()
        watch = RegistryWatch(known.stub, catalogue)
        for name in ("first", "second"):
            watch.listen(lambda models, name=name: heard.append((name, models)))  # type: ignore[misc]
        running = asyncio.create_task(watch.run())
        try:
            await until(lambda: len(heard) == 2)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert heard == [("first", frozenset({"m"})), ("second", frozenset({"m"}))]
    assert watch.synchronized.is_set()
    assert catalogue.entries.keys() == {"m"}
