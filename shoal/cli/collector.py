"""The embedded OTLP collector, asked over HTTP for the traces that it holds."""

import json
from http.client import HTTPConnection, HTTPException
from typing import Any


class CollectorAway(Exception):
    """Nobody answers at the address, or somebody who is no collector."""


def get(address: str, path: str, timeout: float) -> dict[str, Any] | None:
    """The answer of GET `path`; None where there is nothing of that name.

    `address`: host:port; no proxy is used. `timeout`: seconds. Raises CollectorAway.
    """
    connection = HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        content = response.read()
        if response.status == 404:
            return None
        if response.status != 200:
            raise CollectorAway(f"{address} answers {path} with HTTP {response.status}")
        document = json.loads(content)
    except (OSError, HTTPException) as error:
        raise CollectorAway(f"{address} cannot be reached: {error}") from error
    except ValueError as error:
        raise CollectorAway(f"{address} is no collector of Shoal's") from error
    finally:
        connection.close()
    if not isinstance(document, dict):
        raise CollectorAway(f"{address} is no collector of Shoal's")
    return document
