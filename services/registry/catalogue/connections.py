"""Connections to the database, which may not answer."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.common.errors import NotReady

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def connected(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Connect. Raises NotReady if the database does not answer, or is busy for too long."""
    async with AsyncExitStack() as stack:
        try:
            connection = await stack.enter_async_context(engine.connect())
        except (OSError, SQLAlchemyError) as error:
            raise _not_ready(error) from error
        try:
            yield connection
        except (OperationalError, InterfaceError) as error:
            raise _not_ready(error) from error


def _not_ready(error: Exception) -> NotReady:
    _log.error("the database does not answer", error=repr(error))
    return NotReady(service="the Registry", cause="its database does not answer", retry_after=1.0)
