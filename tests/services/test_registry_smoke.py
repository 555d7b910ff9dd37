from pathlib import Path
from tests.services.registry_harness import *

async def test_smoke(tmp_path: Path):
    repo = tmp_path / "repo"
    python_model(repo, "a", (1, 2))
    ensemble(repo, "e", ["a"])
    async with registry(tmp_path / "data", repositories=(repo,)) as r:
        print(await r.model("a"))
        print(await r.version("e:1"))
        import subprocess
        print(subprocess.run(["find", str(r.staging), "-ls"], capture_output=True, text=True).stdout)
        print((r.staging / "e/config.pbtxt").read_text())
