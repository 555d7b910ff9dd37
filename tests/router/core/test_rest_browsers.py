"""Requests that a web page of another site caused."""

import pytest

from services.router.core.errors import ForeignPage, UnknownHost
from services.router.core.rest.browsers import ANY, BrowserPolicy

POLICY = BrowserPolicy(frozenset({"https://app.example"}), frozenset({"gpu.example"}))


def refusal(method: str, policy: BrowserPolicy = POLICY, **headers: str) -> str:
    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    try:
        policy.check(method, given)
    except (ForeignPage, UnknownHost) as refused:
        return f"{refused.reason}: {refused.message}"
    return ""


@pytest.mark.parametrize(
    "host",
    [
        *(
            "localhost",
            "localhost:8000",
            "LocalHost.",
            "a.localhost:1",
            "127.0.0.1:8000",
            "[::1]:80",
        ),
        *("10.0.0.7", "[fe80::1]", "router", "router:8000", "gpu.example", "GPU.example:8000", ""),
    ],
)
def test_this_machine_is_known_by(host: str) -> None:
    assert refusal("GET", host=host) == ""
    assert refusal("POST", host=host) == ""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"])
def test_a_page_cannot_give_this_machine_its_own_name(host: str) -> None:
    for method in ("GET", "POST"):
        text = refusal(method, host=host, origin=f"http://{host}")
        assert text.startswith("UNKNOWN_HOST: ")
        assert f"not known as {host!r}" in text
        assert "SHOAL_ROUTER_HTTP_HOSTS" in text


@pytest.mark.parametrize(
    "origin",
    [
        *("http://localhost:8000", "http://localhost:3000", "http://127.0.0.1", "http://[::1]:9"),
        *("http://10.0.0.7:8000", "http://10.0.0.7", "https://app.example", "http://gpu.example"),
    ],
)
def test_pages_that_may_change_something(origin: str) -> None:
    assert refusal("POST", host="10.0.0.7:8000", origin=origin) == ""


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "null", "http://app.example", "https://app.example:444", "://"),
        *("http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://[", "x", "//"),
    ],
)
def test_pages_of_other_sites_may_only_read(origin: str) -> None:
    text = refusal("POST", host="10.0.0.7:8000", origin=origin)
    assert "SHOAL_ROUTER_CORS_ORIGINS" in text
    assert origin in text
    for method in ("GET", "HEAD", "OPTIONS"):
        assert refusal(method, host="10.0.0.7:8000", origin=origin) == ""
    anybody = BrowserPolicy(frozenset({ANY}))
    assert refusal("POST", anybody, host="10.0.0.7:8000", origin=origin) == ""


def test_a_browser_that_names_no_origin_says_whether_it_is_another() -> None:
    assert "another site" in refusal("POST", host="localhost", sec_fetch_site="cross-site")
    for site in ("same-origin", "same-site", "none"):
        assert refusal("POST", host="localhost", sec_fetch_site=site) == ""
    assert refusal("POST", host="localhost") == "", "no browser"
