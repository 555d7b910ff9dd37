"""HTTP requests to the embedded OTLP collector, which keeps the latest traces."""

import json
from http.client import HTTPConnection, HTTPException
from typing import Any


class CollectorAway(Exception):
    """Nobody answers at the address, or what answers is not the collector."""


def get(address: str, path: str, timeout: float) -> dict[str, Any] | None:
    """Return the JSON document at `path`, or None where it does not exist (HTTP 404).

    `address` is HOST:PORT, reached without a proxy. `timeout` is in seconds. Raises CollectorAway.
    """
    connection = HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read()
        if response.status == 404:
            return None
        if response.status != 200:
            raise CollectorAway(f"{address} answered {path} with HTTP {response.status}")
        document = json.loads(content)
    except (OSError, HTTPException) as error:
        raise CollectorAway(f"{address} cannot be reached: {error}") from error
    except ValueError as error:
        raise CollectorAway(f"{address} is not Shoal's collector") from error
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise CollectorAway(f"{address} is not Shoal's collector")
    return document
