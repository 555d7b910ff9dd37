"""`mlflow://`: versions of models that are registered with an MLflow server.

MLflow's own client asks for the version, with the credentials of its own variables
(MLFLOW_TRACKING_USERNAME and the like). The files come through the server, or out of the bucket
that they lie in. An artifact's URI may hold credentials, so it is never shown.
"""

import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard, TypeVar
from urllib.parse import quote, urlsplit

from services.common.errors import ShoalError
from services.registry.core.errors import (
    ContentMismatch,
    ExtraMissing,
    SourceChanged,
    SourceDenied,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
    UnsafeContent,
)
from services.registry.core.mlflow import labels, servable
from services.registry.core.source import Source, checked_path, shown
from services.registry.sources.buckets import Buckets
from services.registry.sources.origin import MAX_FILES, Listing, RemoteFile
from services.registry.sources.settings import OriginSettings
from services.registry.sources.streams import CHUNK, guarded, in_thread

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

T = TypeVar("T")

_DESCRIPTION: Final = "MLmodel"
_MAX_DESCRIPTION: Final = 2**18  # bytes
_MAX_TAG: Final = 5000  # characters
_RETRIES: Final = 2
# Schemes of artifacts in buckets, and ours for them.
_BUCKETS: Final = {"s3": "s3", "gs": "gs", "wasbs": "az"}


class Mlflow:
    """Reads versions of registered models."""

    def __init__(self, settings: OriginSettings) -> None:
        # MLflow is not to report its use, and leaves the log to the process that it runs in.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        self._settings = settings
        self._server = settings.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI", "")

    async def resolve(self, source: Source) -> Listing:
        if urlsplit(self._server).scheme not in ("http", "https"):
            raise SourceNotFound(
                source=source,
                problem="no MLflow server is named. Set MLFLOW_TRACKING_URI to its URL, which "
                "begins with https:// or http://",
            )
        version, uri = await self._asked(source, lambda: _version(source, self._server))
        artifacts = self._artifacts(source, uri)
        found = {file.path: file for file in await artifacts.files()}
        if _DESCRIPTION not in found:
            raise SourceNotFound(source=source, problem="its artifacts hold no MLmodel")
        text = await _text(artifacts, found[_DESCRIPTION])
        description = await in_thread(lambda: _description(text))
        flavors = description.get("flavors")
        folder, paths = servable(flavors if isinstance(flavors, Mapping) else {}, found)
        revision = _revision(version, found, text)
        if source.revision not in ("", revision):
            raise SourceChanged(source=source, problem="its version has other artifacts now")
        files = tuple(
            replace(found[path], path=path.removeprefix(f"{folder}/") if folder else path)
            for path in sorted(paths)
        )
        return Listing(replace(source, revision=revision), files, _about(version, description))

    def read(
        self, listing: Listing, file: RemoteFile, start: int = 0
    ) -> AsyncGenerator[bytes, None]:
        chunks = self._chunks(listing.source, file, start)
        return guarded(chunks, listing, file, start, self._settings)

    async def _chunks(
        self, source: Source, file: RemoteFile, start: int
    ) -> AsyncGenerator[bytes, None]:
        _, uri = await self._asked(source, lambda: _version(source, self._server))
        async with aclosing(self._artifacts(source, uri).read(file, start)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _asked(self, source: Source, question: Callable[[], T]) -> T:
        try:
            return await in_thread(question, 2 * self._settings.idle_timeout)
        except ImportError:
            raise ExtraMissing(scheme="mlflow", extra="mlflow") from None
        except TimeoutError:
            raise SourceUnavailable(
                source=source, problem="the MLflow server does not answer in time"
            ) from None
        except Exception as error:
            raise _told(error, source) from None

    def _artifacts(self, source: Source, uri: str) -> "_Artifacts":
        parts = urlsplit(uri)
        if parts.scheme == "mlflow-artifacts":
            own = urlsplit(self._server).hostname
            if parts.hostname not in (None, own):
                raise SourceForbidden(
                    source=source, problem="its files lie behind another server than MLflow's own"
                )
            return _Served(source, self._server, parts.path.strip("/"), self._settings)
        if parts.scheme in _BUCKETS:
            # wasbs://container@account.blob.core.windows.net/path
            bucket = parts.username if parts.scheme == "wasbs" else parts.hostname
            place = f"{bucket}/{parts.path.strip('/')}".removesuffix("/")
            return _InBucket(Source(_BUCKETS[parts.scheme], place), self._settings)
        raise SourceForbidden(
            source=source,
            problem="its files lie neither behind the MLflow server nor in a bucket, but at "
            f"{shown(parts.scheme) or 'file'}://. Start the server with --serve-artifacts, and "
            "register the model again",
        )


class _Artifacts(Protocol):
    """The files of one model, wherever MLflow keeps them."""

    async def files(self) -> list[RemoteFile]: ...

    def read(self, file: RemoteFile, start: int) -> AsyncGenerator[bytes, None]: ...


class _InBucket:
    """Files in a bucket, read past the MLflow server."""

    def __init__(self, place: Source, settings: OriginSettings) -> None:
        self._place = place
        self._buckets = Buckets(place.scheme, settings)

    async def files(self) -> list[RemoteFile]:
        return list((await self._buckets.resolve(self._place)).files)

    def read(self, file: RemoteFile, start: int) -> AsyncGenerator[bytes, None]:
        return self._buckets.read(Listing(self._place, (file,)), file, start)


class _Served:
    """Files that the MLflow server passes on, by its REST API."""

    def __init__(self, source: Source, server: str, root: str, settings: OriginSettings) -> None:
        self._source = source
        self._server = server
        self._root = root
        self._timeout = settings.idle_timeout

    async def files(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []
        folders = [""]
        seen = 0
        while folders:
            folder = folders.pop()
            path = "/".join(filter(None, (self._root, folder)))
            answer = await self._get("", params={"path": path})
            for one in (await self._blocking(answer.json)).get("files", ()):
                inside = "/".join(filter(None, (folder, one["path"])))
                if one.get("is_dir"):
                    folders.append(checked_path(inside))
                else:
                    size = one.get("file_size")
                    found.append(
                        RemoteFile(inside, None if size is None else int(size), key=inside)
                    )
            seen += 1
            if seen + len(found) + len(folders) > MAX_FILES:
                raise UnsafeContent(
                    path=self._source, problem=f"it has more than {MAX_FILES} files"
                )
        return found

    async def read(self, file: RemoteFile, start: int) -> AsyncGenerator[bytes, None]:
        if start == file.size:
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        path = quote(f"/{self._root}/{file.key}")
        answer = await self._get(path, stream=True, extra_headers=headers)
        try:
            skip = 0 if answer.status_code == 206 else start
            chunks = answer.iter_content(CHUNK)
            while chunk := await self._blocking(lambda: next(chunks, b"")):
                if skip < len(chunk):
                    yield chunk[skip:] if skip else chunk
                skip = max(0, skip - len(chunk))
        finally:
            answer.close()

    async def _get(self, path: str, **more: Any) -> Any:
        def asked() -> Any:
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request

            answer = http_request(
                get_default_host_creds(self._server),
                f"/api/2.0/mlflow-artifacts/artifacts{path}",
                "GET",
                max_retries=_RETRIES,
                timeout=self._timeout,
                raise_on_status=False,
                **more,
            )
            answer.raise_for_status()
            return answer

        return await self._blocking(asked)

    async def _blocking(self, work: Callable[[], T]) -> T:
        try:
            return await in_thread(work)
        except Exception as error:
            raise _told(error, self._source) from None


def _version(source: Source, server: str) -> tuple["ModelVersion", str]:
    """Return the version that a source means, and where its artifacts are."""
    # It would have its log lines look otherwise than ours, and silence other libraries'.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server)
    name, at, alias = source.locator.partition("@")
    name, _, number = name.partition("/")
    if source.revision:
        version = client.get_model_version(name, source.revision.partition(":")[0])
    elif at:
        version = client.get_model_version_by_alias(name, alias)
    else:
        version = client.get_model_version(name, number)
    return version, client.get_model_version_download_uri(name, version.version)


async def _text(artifacts: _Artifacts, file: RemoteFile) -> bytes:
    text = b""
    async with aclosing(artifacts.read(file, 0)) as chunks:
        async for chunk in chunks:
            text += chunk
            if len(text) > _MAX_DESCRIPTION:
                raise UnsafeContent(
                    path=file.path, problem=f"it has more than {_MAX_DESCRIPTION} bytes"
                )
    return text


def _description(text: bytes) -> Mapping[str, Any]:
    """Read an MLmodel."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # its stubs are not read
        """YAML without merge keys, which make a few lines as large as memory."""

        def flatten_mapping(self, node: Any) -> None:
            pass

    try:
        read = yaml.load(text, Loader)  # noqa: S506  # a safe loader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        read = None
    if not isinstance(read, Mapping):
        raise ContentMismatch(path=_DESCRIPTION, problem="it is not the YAML that MLflow writes")
    return read


def _revision(version: "ModelVersion", files: Mapping[str, RemoteFile], text: bytes) -> str:
    digest = hashlib.sha256(text)
    for path, file in sorted(files.items()):
        digest.update(f"{path}\0{file.size}\0{file.etag}\n".encode())
    return f"{version.version}:{version.run_id or ''}:{digest.hexdigest()[:32]}"


def _about(version: "ModelVersion", description: Mapping[str, Any]) -> dict[str, str]:
    signature = description.get("signature")
    signature = signature if isinstance(signature, Mapping) else {}
    flavors = description.get("flavors")
    said = {
        "name": version.name,
        "version": str(version.version),
        "run_id": version.run_id,
        "description": (version.description or "")[:_MAX_TAG],
        "flavors": ",".join(filter(_is_text, flavors)) if isinstance(flavors, Mapping) else "",
        "mlflow_version": description.get("mlflow_version"),
        "inputs": signature.get("inputs"),
        "outputs": signature.get("outputs"),
        **labels((key, value[:_MAX_TAG]) for key, value in (version.tags or {}).items()),
    }
    return {key: value for key, value in said.items() if value and _is_text(value)}


def _is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is a text. YAML can hold what grows without end as one."""
    return isinstance(value, str)


def _told(error: Exception, source: Source) -> ShoalError:
    """Return an error of ours. The texts of MLflow may hold URIs of artifacts: they stay here."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException

    if isinstance(error, ShoalError):
        return error
    if isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
        said = f"the MLflow server answers {status}"
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()
        said = f"the MLflow server says {shown(error.error_code)}"
        if error.error_code == "INVALID_PARAMETER_VALUE":  # an alias that is not there
            status = 404
    elif isinstance(error, RequestException | OSError):
        return SourceUnavailable(source=source, problem="the connection to the MLflow server fails")
    else:
        return SourceUnavailable(
            source=source, problem=f"MLflow's client fails ({type(error).__name__})"
        )
    if status == 404:
        return SourceNotFound(source=source, problem=said)
    if status in (401, 403):
        return SourceDenied(source=source, problem=said)
    return SourceUnavailable(source=source, problem=said)
