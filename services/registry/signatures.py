"""Signatures of models, checked by the library `model-signing` with the keys that are trusted."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

from services.registry.core.errors import SignatureRefused
from services.registry.core.manifest import TreeManifest
from services.registry.core.signatures import SIGNATURE_FILE, check_statement
from services.registry.storage.blobs import Blobs

_MAX_SIGNATURE = 64 * 2**20  # bytes


class Signatures:
    """Checks what comes into the store.

    `keys` are files with public keys. Without any, no signature is looked at. `trusted` are the
    repositories of the operator, which are served in place even where a signature is `required`.
    """

    def __init__(
        self, keys: Sequence[Path], trusted: Sequence[Path], blobs: Blobs, *, required: bool
    ) -> None:
        self._keys = tuple(keys)
        self._trusted = frozenset(trusted)
        self._blobs = blobs
        self._required = required

    def check_in_place(self, path: Path) -> None:
        """Raises SignatureRefused for a folder that cannot be served in place."""
        if self._required and path not in self._trusted:
            raise SignatureRefused(
                path=path,
                problem="every model has to be signed, and a folder that is served in place may "
                f"change at any time. Register file://{path}, which is copied and checked",
            )

    async def check(self, manifest: TreeManifest) -> dict[str, str]:
        """Check the signature of files in the store; return what it says, as provenance.

        Raises SignatureRefused.
        """
        if not self._keys:
            return {}
        found = [item for item in manifest.items if item.path == SIGNATURE_FILE]
        if not found:
            if self._required:
                raise SignatureRefused(
                    path=SIGNATURE_FILE,
                    problem="every model has to be signed, and there is no such file beside its "
                    "config.pbtxt",
                )
            return {"signature": "none"}
        if found[0].size > _MAX_SIGNATURE:
            raise SignatureRefused(path=SIGNATURE_FILE, problem="it is too large for a signature")
        path = self._blobs.path(found[0].sha256)
        return await asyncio.to_thread(self._checked, path, manifest)

    def _checked(self, path: Path, manifest: TreeManifest) -> dict[str, str]:
        for key in self._keys:
            if _is_authentic(path, key):
                check_statement(path.read_bytes(), manifest.items)
                fingerprint = hashlib.sha256(key.read_bytes()).hexdigest()
                return {
                    "signature": "verified",
                    "signature.key": f"{key.name} sha256:{fingerprint}",
                }
        raise SignatureRefused(
            path=SIGNATURE_FILE,
            problem="it was not made with any of the keys in SHOAL_REGISTRY_SIGNATURE_KEYS",
        )


def _is_authentic(signature: Path, key: Path) -> bool:
    """Return whether a signature was made with the private key of this public one.

    The library asks for digests of the files once it knows that. They are known already, so it
    gets no further.
    """
    try:
        from model_signing import hashing, verifying
    except ImportError:
        raise SignatureRefused(
            path=signature.name,
            problem="the package that checks signatures is not in the Registry's environment: "
            "pip install 'shoal[signing]', then start the Registry again",
        ) from None

    class Authentic(Exception):
        pass

    class NoFiles(hashing.Config):  # type: ignore[misc]  # the library is not read by mypy
        def hash(self, model_path: object, *, files_to_hash: object = None) -> object:
            raise Authentic

    config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    try:
        config.set_hashing_config(NoFiles()).verify(signature.parent, signature)
    except Authentic:
        return True
    except Exception:  # whatever the library makes of a file that somebody else has written
        return False
    return False
