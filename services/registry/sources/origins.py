"""The origin of each scheme. What an origin needs is imported when it is first asked for."""

from services.registry.core.errors import InvalidSource
from services.registry.core.source import Source
from services.registry.sources.origin import Origin
from services.registry.sources.settings import OriginSettings


def origin_of(source: Source, settings: OriginSettings) -> Origin:
    """Return where the files of a source come from.

    Raises ExtraMissing if a package that it needs is not installed, and InvalidSource for an
    upload: nobody can fetch it again.
    """
    match source.scheme:
        case "file":
            from services.registry.sources.folder import Folder

            return Folder(settings)
        case "s3" | "gs" | "az":
            from services.registry.sources.buckets import Buckets

            return Buckets(source.scheme, settings)
        case "https":
            from services.registry.sources.https import Https

            return Https(settings)
        case "hf":
            from services.registry.sources.hub import Hub

            return Hub(settings)
        case "mlflow":
            from services.registry.sources.mlflow_server import Mlflow

            return Mlflow(settings)
        case "oci":
            from services.registry.sources.oci_registry import Oci

            return Oci(settings)
    raise InvalidSource(source=source, problem="it was uploaded, so it cannot be fetched")
