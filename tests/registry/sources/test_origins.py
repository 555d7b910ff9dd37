"""Which origin a scheme has, what is imported for it, and its settings."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from services.registry.core.errors import ExtraMissing, InvalidSource, UnsafeContent
from services.registry.core.source import Source, parse
from services.registry.settings import RegistrySettings
from services.registry.sources import origin
from services.registry.sources.origin import Listing, RemoteFile
from services.registry.sources.origins import origin_of
from services.registry.sources.settings import OriginSettings

SOURCES = {
    "s3": "s3://bucket/x",
    "gs": "gs://bucket/x",
    "az": "az://bucket/x",
    "https": "https://host/x",
    "hf": "hf://acme/small",
    "oci": "oci://host/small:v1",
    "mlflow": "mlflow://fraud/1",
}
PACKAGES = ("aiohttp", "huggingface_hub", "mlflow", "obstore", "requests", "yaml", "zstandard")


@pytest.mark.parametrize("scheme", SOURCES)
async def test_a_package_that_is_not_installed(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host")
    for package in (*PACKAGES, "obstore.store"):
        monkeypatch.setitem(sys.modules, package, None)
    source = parse(SOURCES[scheme])
    with pytest.raises(ExtraMissing, match=rf"pip install 'shoal\[{scheme}\]'"):
        await origin_of(source, OriginSettings()).resolve(source)


def test_the_registry_imports_no_package_before_it_is_needed() -> None:
    program = (
        "import sys, services.registry.assembly, services.registry.settings\n"
        "import services.registry.sources.origins, services.registry.sources.archives\n"
        f"print([name for name in {PACKAGES!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_an_upload_has_no_origin() -> None:
    with pytest.raises(InvalidSource, match="it was uploaded"):
        origin_of(parse("upload://1"), OriginSettings())


def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_REGISTRY_ORIGINS", '{"tokens": {"host": "s3cret"}, "max_bytes": 10}')
    settings = RegistrySettings().origins
    assert settings.max_bytes == 10
    assert settings.tokens["host"].get_secret_value() == "s3cret"
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    "origins",
    [
        '{"mlflow_uri": "https://user:s3cret@host"}',
        '{"s3_endpoint": "host:s3cret"}',
        '{"private_hosts": ["s3cret/8"]}',
        '{"s3cret": 1}',
    ],
)
def test_settings_that_are_refused(origins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_REGISTRY_ORIGINS", origins)
    with pytest.raises(ValidationError) as caught:
        RegistrySettings()
    assert "s3cret@" not in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["a", "a"], "two files of that name"),
        (["a", "a/b"], "both a file and a folder"),
        (["a/b/c", "a"], "both a file and a folder"),
    ],
)
def test_files_that_cannot_lie_together(paths: list[str], problem: str) -> None:
    with pytest.raises(UnsafeContent, match=problem):
        Listing(Source("s3", "b"), tuple(RemoteFile(path, 1) for path in paths))


def test_more_files_than_a_listing_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "MAX_FILES", 2)
    with pytest.raises(UnsafeContent, match="more than 2 files and folders"):
        Listing(Source("s3", "b"), tuple(RemoteFile(f"f{number}", 1) for number in range(3)))
