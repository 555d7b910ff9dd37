"""The settings of origins: addresses, limits, and what may be fetched from where."""

import ipaddress
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from services.common.units import Bytes, Seconds


def _hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    for host in hosts:
        if "/" in host:
            ipaddress.ip_network(host)  # raises ValueError, which names the network
    return tuple(host.lower() for host in hosts)


def _url(url: str) -> str:
    parts = urlsplit(url)
    if url and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc):
        raise ValueError("write http://host or https://host, without credentials")
    return url.rstrip("/")


Url = Annotated[str, AfterValidator(_url)]
Hosts = Annotated[tuple[str, ...], AfterValidator(_hosts)]


class OriginSettings(BaseModel):
    """Where [models come from](sources.md), as the object in `SHOAL_REGISTRY_ORIGINS`.

    Credentials come from the variables that each kind of storage has itself, such as
    `AWS_ACCESS_KEY_ID`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    s3_endpoint: Url = ""
    """URL of the S3 server. By default `AWS_ENDPOINT_URL`, or else Amazon's."""
    mlflow_uri: Url = ""
    """URL of the MLflow server, without credentials. By default `MLFLOW_TRACKING_URI`."""
    private_hosts: Hosts = ()
    """Hosts and networks at private or loopback addresses from which `https://` and `oci://` may
    fetch."""
    plain_hosts: Hosts = ()
    """Hosts, each with its port if it has one, that are called by HTTP without TLS."""
    tokens: dict[str, SecretStr] = Field(default_factory=dict)
    """Bearer tokens for `https://` and `oci://`: host to token."""
    max_bytes: Bytes = Field(default=2**40, gt=0)
    """The most that one file may have, or that an archive may unpack to."""
    connect_timeout: Seconds = Field(default=10.0, gt=0)
    """Time in which a host has to accept a connection."""
    idle_timeout: Seconds = Field(default=60.0, gt=0)
    """Time after which a host that sends nothing counts as lost."""
