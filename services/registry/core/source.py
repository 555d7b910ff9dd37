"""Where a model comes from: a scheme, what stands after it, and the content that was found there.

Reading a source never touches what it names. A source holds no credential: those come from the
Registry's environment or settings, and a text that carries one is refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from services.registry.core.errors import InvalidSource, UnsafeContent

_MAX_SOURCE: Final = 4096  # characters
_MAX_PATH: Final = 1024  # bytes of a relative path; a file system's own limit is 4096 in all
_MAX_DEPTH: Final = 100  # parts of a path
_MAX_PART: Final = 255  # bytes between two slashes

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")
_UPLOAD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HUB_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB: Final = re.compile(
    rf"(?P<name>{_HUB_NAME}(?:/{_HUB_NAME})?)(?:@(?P<revision>[A-Za-z0-9._%-]+))?(?:/(?P<path>.+))?"
)
_OCI_NAME: Final = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_OCI_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MLFLOW: Final = re.compile(r"[^/:@%]+(?:/[1-9][0-9]*|@[A-Za-z_-][A-Za-z0-9_-]*)")

#: Schemes of other programs, and what to write instead.
_OTHER: Final[Mapping[str, str]] = {
    "http": "plain HTTP can be changed on its way: write https://",
    "ftp": "files come by https://",
    "s3a": "write s3://bucket/prefix",
    "s3n": "write s3://bucket/prefix",
    "gcs": "write gs://bucket/prefix",
    "azure": "write az://container/prefix, with the account in AZURE_STORAGE_ACCOUNT_NAME",
    "abfs": "write az://container/prefix, with the account in AZURE_STORAGE_ACCOUNT_NAME",
    "abfss": "write az://container/prefix, with the account in AZURE_STORAGE_ACCOUNT_NAME",
    "wasbs": "write az://container/prefix, with the account in AZURE_STORAGE_ACCOUNT_NAME",
    "models": "write mlflow://name/3 or mlflow://name@alias",
    "runs": "register the run's model in MLflow, then write mlflow://name/3 or mlflow://name@alias",
    "docker": "write oci://host/name:tag",
    "oras": "write oci://host/name:tag",
    "huggingface": "write hf://owner/name@revision",
}


@dataclass(frozen=True, slots=True)
class Source:
    """A place that files can be fetched from.

    The scheme is one of file, upload, s3, gs, az, https, hf, oci and mlflow. The locator is what
    follows "scheme://", normalised. It names no content: a tag, a branch or an alias in it may
    move. The revision does, in the words of the scheme (a hub's commit, a manifest's digest,
    MLflow's version and run, a digest of ETags). It is empty until the source has been resolved,
    and with it the same content is found again or none.
    """

    scheme: str
    locator: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.locator}"


def parse(text: str) -> Source:
    """Read a source as a user writes it. An absolute path means `file://`.

    Raises InvalidSource, whose text says what to write instead.
    """
    if len(text) > _MAX_SOURCE:
        raise _invalid(text[:64], f"it has more than {_MAX_SOURCE} characters")
    if _CONTROL.search(text):
        raise _invalid(text, "it contains control characters")
    if text.startswith("/"):
        return Source("file", _folder(text, text))
    scheme, mark, rest = text.partition("://")
    scheme = scheme.lower()
    if not mark:
        raise _invalid(text, f"give an absolute path, or one of {_forms()}")
    if scheme not in _LOCATORS:
        raise _invalid(text, _OTHER.get(scheme, f"give one of {_forms()}"))
    if re.match(r"[^/@]*:[^/@]*@", rest) and scheme != "oci":
        raise _invalid(text, _NO_CREDENTIALS)
    return Source(scheme, _LOCATORS[scheme](text, rest))


def checked_path(path: str) -> str:
    """Return a relative path in which "/" stands between the parts, as it was given.

    Raises UnsafeContent for one that could lead out of its folder, or that no file can have.
    """
    problem = ""
    if not path:
        problem = "it is empty"
    elif _CONTROL.search(path):
        problem = "it contains control characters"
    elif path.startswith("/"):
        problem = "it is absolute"
    elif "\\" in path:
        problem = "it contains a backslash"
    elif re.match(r"[A-Za-z]:", path):
        problem = "it begins with a drive"
    elif ".." in (parts := path.split("/")):
        problem = "it leads out of its folder"
    elif "" in parts or "." in parts:
        problem = "it has an empty part or '.' between its slashes"
    elif len(parts) > _MAX_DEPTH:
        problem = f"it has more than {_MAX_DEPTH} parts"
    elif len(path.encode()) > _MAX_PATH:
        problem = f"it has more than {_MAX_PATH} bytes"
    elif any(len(part.encode()) > _MAX_PART for part in parts):
        problem = f"one of its parts has more than {_MAX_PART} bytes"
    if problem:
        raise UnsafeContent(path=shown(path), problem=f"its path is not allowed: {problem}")
    return path


def hub_parts(locator: str) -> tuple[str, str, str]:
    """Return the repository, the revision ("" if there is none) and the path of an hf:// source."""
    found = _HUB.fullmatch(locator)
    assert found is not None, locator
    return found["name"], found["revision"] or "", found["path"] or ""


def shown(text: str) -> str:
    """Return a text for messages: short, and without characters that a line cannot hold."""
    clean = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    return clean if len(clean) <= 200 else f"{clean[:200]}…"


# --- locators, by scheme --------------------------------------------------------------------------

_NO_CREDENTIALS: Final = (
    "it carries a user or a password, which would be kept with the model. Leave them out, and give "
    "the Registry credentials by its environment or settings"
)


def _folder(text: str, rest: str) -> str:
    if not rest.startswith("/"):
        raise _invalid(text, "write file:///path: a file lies on the Registry's own host")
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _invalid(text, "write the path without '..'")
    if not parts:
        raise _invalid(text, "the whole file system is not a model: name a folder or a file")
    return "/" + "/".join(parts)


def _upload(text: str, rest: str) -> str:
    if not _UPLOAD.fullmatch(rest):
        raise _invalid(text, "name an upload as its answer did: upload://name")
    return rest


def _bucket(text: str, rest: str) -> str:
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise _invalid(text, _NO_CREDENTIALS)
    if not _BUCKET.fullmatch(bucket):
        raise _invalid(text, "its bucket has no possible name: write scheme://bucket/prefix")
    prefix = prefix.removesuffix("/")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise _invalid(text, "write its prefix without '//', '.' and '..'")
    return f"{bucket}/{prefix}" if prefix else bucket


def _https(text: str, rest: str) -> str:
    authority, _, path = rest.partition("/")
    if "?" in rest or "#" in rest:
        raise _invalid(
            text,
            "leave out what follows '?' or '#': it may be a credential and would be kept with the "
            "model. Credentials for a host belong in the Registry's settings",
        )
    host = _authority(text, authority).removesuffix(":443")
    parts = re.sub("%2e", ".", path, flags=re.IGNORECASE).split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise _invalid(text, "name one file: https://host/folder/model.onnx, without '//' and '..'")
    if not re.fullmatch(r"[A-Za-z0-9/._~%!$&'()*+,;=:@-]+", path):
        raise _invalid(text, "write spaces and special characters as %20 and the like")
    return f"{host}/{path}"


def _hub(text: str, rest: str) -> str:
    found = _HUB.fullmatch(rest.removesuffix("/"))
    if rest.startswith(("datasets/", "spaces/")):
        raise _invalid(text, "only models can be registered: write hf://owner/name@revision")
    if found is None or (found["path"] and "/" not in found["name"]):
        raise _invalid(
            text, "write hf://owner/name, hf://owner/name@revision, or …/folder after it"
        )
    if found["path"] and any(part in ("", ".", "..") for part in found["path"].split("/")):
        raise _invalid(text, "write the folder without '//', '.' and '..'")
    return rest.removesuffix("/")


def _oci(text: str, rest: str) -> str:
    authority, _, name = rest.partition("/")
    host = _authority(text, authority)
    name, at, digest = name.partition("@")
    name, colon, tag = name.partition(":")
    if at and not _DIGEST.fullmatch(digest):
        raise _invalid(text, "a digest is sha256: and 64 lower-case hexadecimal digits")
    if not (at or colon):
        raise _invalid(text, f"name a tag or a digest: oci://{host}/{shown(name)}:tag")
    if not _OCI_NAME.fullmatch(name) or (colon and not _OCI_TAG.fullmatch(tag)):
        raise _invalid(text, "write oci://host/name:tag, the name in lower case")
    return f"{host}/{name}{colon}{tag}{at}{digest}"


def _mlflow(text: str, rest: str) -> str:
    if not _MLFLOW.fullmatch(rest):
        raise _invalid(
            text,
            "write mlflow://name/3 or mlflow://name@alias. The server's address belongs in "
            "MLFLOW_TRACKING_URI or the Registry's settings",
        )
    return rest


def _authority(text: str, authority: str) -> str:
    """Return host and port in lower case."""
    if "@" in authority:
        raise _invalid(text, _NO_CREDENTIALS)
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", authority)
    if found is None or not _HOST.fullmatch(found[1]):
        raise _invalid(text, "it names no host, or none that there can be")
    if found[2] is not None and not (_PORT.fullmatch(found[2]) and int(found[2]) < 65536):
        raise _invalid(text, "its port is not a number from 1 to 65535")
    return authority.lower()


_LOCATORS: Final[Mapping[str, Callable[[str, str], str]]] = {
    "file": _folder,
    "upload": _upload,
    "s3": _bucket,
    "gs": _bucket,
    "az": _bucket,
    "https": _https,
    "hf": _hub,
    "oci": _oci,
    "mlflow": _mlflow,
}


def _forms() -> str:
    return (
        "file:///path, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, "
        "https://host/file, hf://owner/name@revision, oci://host/name:tag, mlflow://name/3 and "
        "mlflow://name@alias"
    )


def _invalid(text: str, problem: str) -> InvalidSource:
    """Return the error; its text repeats nothing that may be a credential."""
    secret = r"[^@]*" if problem is _NO_CREDENTIALS else r"[^@]*:.*"
    masked = re.sub(rf"(?s)^([^:/]*://|){secret}@", r"\1…@", text)
    return InvalidSource(source=shown(re.sub(r"(?s)[?#].*", "?…", masked)), problem=problem)
