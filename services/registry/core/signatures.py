"""What a signature says of files, compared with the files that there are.

A signature is a bundle of Sigstore whose statement lists the files of a model with their digests,
as the library `model-signing` writes it.
"""

import base64
import json
from collections.abc import Collection, Mapping
from typing import Any, Final

from services.registry.core.errors import SignatureRefused
from services.registry.core.manifest import Item
from services.registry.core.source import shown
from shoal import names

SIGNATURE_FILE: Final = "model.sig"

_PREDICATE: Final = "https://model_signing/signature/v1.0"


def check_statement(bundle: bytes, items: Collection[Item]) -> None:
    """Check that a signature, which is authentic, is one of these files.

    The folders of other versions may be missing. Raises SignatureRefused.
    """
    signed = _signed(bundle)
    present = {item.path: item.sha256 for item in items if item.path != SIGNATURE_FILE}
    for path, sha256 in sorted(present.items()):
        if path not in signed:
            raise SignatureRefused(path=shown(path), problem="its signature does not cover it")
        if signed[path] != sha256:
            raise SignatureRefused(
                path=shown(path),
                problem=f"its content has the SHA-256 {sha256}, and {signed[path]} was signed",
            )
    here = {number for path in present if (number := _version_folder(path))}
    for path in sorted(signed.keys() - present.keys()):
        number = _version_folder(path)
        if number is None or number in here:
            raise SignatureRefused(path=shown(path), problem="it was signed, and is missing")


def _signed(bundle: bytes) -> dict[str, str]:
    """Return the SHA-256 of each file that a signature lists. Raises SignatureRefused."""
    try:
        envelope: Mapping[str, Any] = json.loads(bundle)["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        predicate = statement["predicate"]
        method = predicate["serialization"]["method"], predicate["serialization"]["hash_type"]
        if statement["predicateType"] != _PREDICATE or method != ("files", "sha256"):
            raise SignatureRefused(
                path=SIGNATURE_FILE,
                problem="it was not made of the SHA-256 of each file. Sign the model with "
                "model-signing 1.0 or newer and its default method",
            )
        return {str(one["name"]): str(one["digest"]) for one in predicate["resources"]}
    except (ValueError, KeyError, TypeError) as error:
        raise SignatureRefused(
            path=SIGNATURE_FILE, problem="it is not a signature that model-signing has written"
        ) from error


def _version_folder(path: str) -> int | None:
    folder, slash, _ = path.partition("/")
    return names.parse_version(folder) if slash else None
