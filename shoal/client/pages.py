"""Lists that come in pages."""

from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from shoal.client.operations import Call, Operation

_Request = TypeVar("_Request", bound=Message)


def all_pages(
    service: str, method: str, request: Message, timeout: float | None
) -> Operation[list[Any]]:
    """Return every page of a List call. `timeout` is in seconds, for each page."""
    found: list[Any] = []
    asked: Message | None = request
    while asked is not None:
        found.append((yield Call(service, method, asked, timeout)))
        asked = next_page(asked, found[-1])
    return found


def next_page(request: _Request, page: Any) -> _Request | None:
    """Return the request for the page that follows `page`, or None after the last one."""
    if not page.next_page_token:
        return None
    following: Any = type(request)()
    following.CopyFrom(request)
    following.page_token = page.next_page_token
    return cast("_Request", following)
