"""Asks the proxy's worker which revision of the routes it goes by."""

import asyncio
import contextlib
from typing import Final

HOST: Final = "revision.lane.shoal"
_HEAD_BYTES: Final = 1 << 14


class NoProxy(Exception):
    """Nothing listens where the proxy would."""


class Probe:
    """A connection to one of the proxy's probes, which ask about the routes of one public port.

    `address` is `host:port`. The answer comes from the worker that serves the public port, by the
    routes that it has."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, name: str) -> str:
        """Return the revision, or "" if the proxy has no routes yet. `name` is noted in the
        journal. Raises NoProxy."""
        try:
            return await self._ask(name)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.close()
        try:  # the connection was that of a proxy which has ended
            return await self._ask(name)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self.close()
            raise NoProxy from error
        except BaseException:
            self.close()
            raise

    async def _ask(self, name: str) -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=_HEAD_BYTES)
        reader, writer = self._streams
        writer.write(f"GET /{name} HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *headers = head.split("\r\n")
        length = 0
        for header in headers:
            key, _, value = header.partition(":")
            if key.lower() == "content-length":
                length = int(value)
        body = await reader.readexactly(length)
        return body.decode() if " 200 " in status else ""

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            _, writer = self._streams
            self._streams = None
            with contextlib.suppress(OSError):
                writer.close()
