"""What HTTP headers say."""

import pytest

from services.common.caller import LOCAL, CallerPolicy
from services.router.core.rest import headers
from services.router.core.rest.values import WrongRequest


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, None),
        ({b"x-request-timeout": b"2.5"}, 2.5),
        ({b"grpc-timeout": b"250m"}, 0.25),
        ({b"grpc-timeout": b"2H"}, 7200.0),
        ({b"x-envoy-expected-rq-timeout-ms": b"1500"}, 1.5),
        ({b"x-envoy-expected-rq-timeout-ms": b"0"}, None),
        ({b"x-request-timeout": b"3", b"grpc-timeout": b"1S"}, 1.0),
    ],
)
def test_the_shortest_timeout_counts(given: dict[bytes, bytes], seconds: float | None) -> None:
    assert headers.timeout(given) == seconds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-request-timeout", b"soon"),
        (b"x-request-timeout", b"0"),
        (b"x-request-timeout", b"-1"),
        (b"x-request-timeout", b"nan"),
        (b"grpc-timeout", b"5"),
        (b"grpc-timeout", b"0S"),
        (b"grpc-timeout", b"123456789S"),
        (b"x-envoy-expected-rq-timeout-ms", b"1s"),
    ],
)
def test_a_timeout_that_is_none_is_refused(name: bytes, value: bytes) -> None:
    with pytest.raises(WrongRequest, match=rf"header '{name.decode()}' is .*: give ") as caught:
        headers.timeout({name: value})
    assert headers.status(caught.value.code) == 400


@pytest.mark.parametrize(
    ("accepted", "best"),
    [
        (None, "identity"),
        (b"", "identity"),
        (b"gzip", "gzip"),
        (b"gzip, deflate", "gzip"),
        (b"deflate, gzip", "deflate"),
        (b"gzip;q=0.5, deflate;q=0.8", "deflate"),
        (b"br, gzip;q=0.1", "gzip"),
        (b"gzip;q=0", "identity"),
        (b"gzip;q=much", "identity"),
        (b"identity, gzip;q=0.9", "identity"),
        (b"*", "identity"),
    ],
)
def test_the_encoding_that_is_liked_best(accepted: bytes | None, best: str) -> None:
    assert headers.encoding(accepted) == best


@pytest.mark.parametrize(
    ("header", "size"), [(None, 90), (b"90", 90), (b" 12 ", 12), (b"0", 0), (b"words", 0)]
)
def test_the_size_of_the_json(header: bytes | None, size: int) -> None:
    assert headers.json_size(header, 90) == size


@pytest.mark.parametrize("header", [b"91", b"-1", b"99999999999999999999"])
def test_a_size_beyond_the_body_is_refused(header: bytes) -> None:
    with pytest.raises(WrongRequest) as caught:
        headers.json_size(header, 90)
    assert caught.value.text == (
        f"inference header size should be in range (0, 90), got: {header.decode()}"
    )


def test_peers_are_spelled_as_grpc_spells_them() -> None:
    policy = CallerPolicy()
    for client in (("127.0.0.1", 4711), ("::1", 4711), ("::ffff:127.0.0.1", 4711)):
        assert policy.caller(headers.peer(client), ()) == LOCAL
    for other in (("10.0.0.1", 4711), ("2001:db8::1", 4711), None, ("", 0)):
        assert policy.caller(headers.peer(other), ()).roles == {"user"}, other


def test_only_what_gRPC_would_bring_goes_on() -> None:
    found = headers.metadata(
        [
            (b"host", b"localhost"),
            (b"accept", b"*/*"),
            (b"connection", b"keep-alive"),
            (b"x-shoal-subject", b"ann"),
            (b"x-thing-bin", b"AAAA"),
            (b"x-odd!", b"gRPC knows no such name"),
            (b"x-umlaut", "ü".encode()),
            (b"traceparent", b"00-1-1-01"),
            (b"authorization", b"Bearer t"),
        ]
    )
    assert found == (
        ("x-shoal-subject", "ann"),
        ("traceparent", "00-1-1-01"),
        ("authorization", "Bearer t"),
    )


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        ("INVALID_ARGUMENT", "", 400),
        ("NOT_FOUND", "MODEL_NOT_FOUND", 404),
        ("UNAVAILABLE", "NO_ROOM", 503),
        ("UNIMPLEMENTED", "", 501),
        ("INTERNAL", "", 500),
        ("RESOURCE_EXHAUSTED", "", 429),
        ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE", 413),
        ("RESOURCE_EXHAUSTED", "METADATA_TOO_LARGE", 431),
        ("RESOURCE_EXHAUSTED", "NEVER_FITS", 507),
        ("FAILED_PRECONDITION", "LOAD_FAILED", 503),
        ("DEADLINE_EXCEEDED", "", 504),
        ("PERMISSION_DENIED", "", 403),
        ("whatever comes", "", 500),
    ],
)
def test_the_status_of_an_error(code: str, reason: str, status: int) -> None:
    assert headers.status(code, reason) == status
