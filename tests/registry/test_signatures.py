"""Signed models: what is not as it was signed is refused."""

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing
from pydantic import ValidationError

from services.registry.settings import RegistrySettings
from shoal.registry.v1 import registry_service_pb2 as pb
from shoal.registry.v1 import types_pb2 as types
from tests.registry.test_imports import ended, files_below, start
from tests.support.registry import PYTHON_CODE, python_model, refusal, registry


class Signer:
    """A key pair in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pub"
        self.private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def sign(self, model: Path, method: hashing.Config | None = None) -> None:
        config = signing.Config().use_elliptic_key_signer(private_key=self.private)
        if method is not None:
            config.set_hashing_config(method)
        config.sign(model, model / "model.sig")


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path, "signer")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return python_model(tmp_path / "models", "adder", (1, 2))


async def test_a_signed_model_is_registered_with_who_signed_it(
    tmp_path: Path, signer: Signer, model: Path
) -> None:
    signer.sign(model)
    keys = (Signer(tmp_path, "other").public, signer.public)
    async with registry(tmp_path / "data", signature_keys=keys, signature_required=True) as known:
        # Only one of the versions that were signed is fetched.
        last = await ended(known, await start(known, f"file://{model}"))
        assert last.state == types.IMPORT_STATE_REGISTERED, last.reason
        about = (await known.version("m:2")).provenance.about
        assert about["signature"] == "verified"
        assert about["signature.key"].startswith("signer.pub sha256:")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("changed", "2/model.py is refused: its content has the SHA-256"),
        ("added", "2/extra.py is refused: its signature does not cover it"),
        ("removed", "config.pbtxt is refused: it was signed, and is missing"),
        ("other key", "it was not made with any of the keys"),
        ("nonsense", "it was not made with any of the keys"),
        ("unsigned", "model.sig is refused: every model has to be signed"),
        ("shards", "it was not made of the SHA-256 of each file"),
    ],
)
async def test_what_is_not_as_it_was_signed_is_refused(
    tmp_path: Path, signer: Signer, model: Path, harm: str, said: str
) -> None:
    match harm:
        case "other key":
            Signer(tmp_path, "stranger").sign(model)
        case "shards":
            signer.sign(model, hashing.Config().use_shard_serialization())
        case "unsigned":
            pass
        case _:
            signer.sign(model)
    match harm:
        case "changed":
            (model / "2" / "model.py").write_text(f"{PYTHON_CODE}# changed\n")
        case "added":
            (model / "2" / "extra.py").write_text("")
        case "removed":
            (model / "config.pbtxt").unlink()
        case "nonsense":
            (model / "model.sig").write_text("{}")
    settings = {"signature_keys": (signer.public,), "signature_required": True}
    async with registry(tmp_path / "data", **settings) as known:
        last = await ended(known, await start(known, f"file://{model}"))
        assert last.state == types.IMPORT_STATE_FAILED
        assert said in last.reason
        assert files_below(known.settings.store / "blobs") == []


async def test_without_a_need_for_signatures_their_absence_is_noted(
    tmp_path: Path, signer: Signer, model: Path
) -> None:
    async with registry(tmp_path / "data", signature_keys=(signer.public,)) as known:
        await ended(known, await start(known, f"file://{model}"))
        assert (await known.version("m:2")).provenance.about["signature"] == "none"
        signer.sign(model)
        (model / "2" / "model.py").write_text("")
        last = await ended(known, await start(known, f"file://{model}", "n"))
        assert last.state == types.IMPORT_STATE_FAILED


async def test_folders_in_place_are_the_operators_alone_where_signatures_are_required(
    tmp_path: Path, signer: Signer, model: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(model, own / "served")
    settings = {"signature_keys": (signer.public,), "signature_required": True}
    async with registry(tmp_path / "data", repositories=(own,), **settings) as known:
        assert (await known.model("served")).default_version == 2
        refused = await refusal(known.register("m", model))
        assert refused.reason == "SIGNATURE_REFUSED"
        assert f"Register file://{model}" in refused.message
        request = pb.ImportRepositoryRequest(path=str(model.parent))
        refused = await refusal(known.stub.ImportRepository(request))
        assert refused.reason == "SIGNATURE_REFUSED"
        assert (await known.import_(own)).problems == []


def test_a_signature_cannot_be_required_without_a_key() -> None:
    with pytest.raises(ValidationError, match="signature_keys"):
        RegistrySettings(signature_required=True)
