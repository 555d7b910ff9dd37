"""What is a source, and what is refused with which advice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.core.errors import InvalidSource, UnsafeContent
from services.registry.core.source import Source, checked_path, hub_parts, parse

SHA = f"sha256:{'0a' * 32}"


@pytest.mark.parametrize(
    ("text", "scheme", "locator"),
    [
        ("/srv/models/resnet/", "file", "/srv/models/resnet"),
        ("file:///srv//models/./resnet", "file", "/srv/models/resnet"),
        ("file:///srv/with space/ü@home:1", "file", "/srv/with space/ü@home:1"),
        ("upload://7f3c", "upload", "7f3c"),
        ("s3://models", "s3", "models"),
        ("S3://models/fleet/", "s3", "models/fleet"),
        ("s3://models/a b@c:d/x", "s3", "models/a b@c:d/x"),
        ("gs://my_bucket/resnet", "gs", "my_bucket/resnet"),
        ("az://container/resnet", "az", "container/resnet"),
        ("https://Host.example:443/a/m.onnx", "https", "host.example/a/m.onnx"),
        ("https://host:8443/a%20b@c.zip", "https", "host:8443/a%20b@c.zip"),
        ("https://[2001:db8::1]:8443/m.onnx", "https", "[2001:db8::1]:8443/m.onnx"),
        ("hf://gpt2", "hf", "gpt2"),
        ("hf://acme/small@main", "hf", "acme/small@main"),
        ("hf://acme/small@refs%2Fpr%2F1/onnx/", "hf", "acme/small@refs%2Fpr%2F1/onnx"),
        ("oci://Host:5000/team/small:v1.2", "oci", "host:5000/team/small:v1.2"),
        (f"oci://host/small@{SHA}", "oci", f"host/small@{SHA}"),
        (f"oci://host/small:v1@{SHA}", "oci", f"host/small:v1@{SHA}"),
        ("mlflow://fraud/3", "mlflow", "fraud/3"),
        ("mlflow://main.risk.fraud model@champion", "mlflow", "main.risk.fraud model@champion"),
    ],
)
def test_sources(text: str, scheme: str, locator: str) -> None:
    source = parse(text)
    assert source == Source(scheme, locator)
    assert parse(str(source)) == source


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "give an absolute path, or one of file:///path"),
        ("models/resnet", "give an absolute path"),
        ("s3:/models", "give an absolute path"),
        ("nfs://host/path", "give one of file:///path"),
        ("http://host/m.onnx", "write https://"),
        ("gcs://bucket/x", "write gs://"),
        ("wasbs://c@a.blob.core.windows.net/x", "write az://"),
        ("models:/fraud/3", "give an absolute path"),
        ("runs://1/model", "write mlflow://name/3"),
        ("docker://host/name:1", "write oci://"),
        ("file://host/path", "write file:///path"),
        ("file:///a/../b", r"without '\.\.'"),
        ("/", "the whole file system"),
        ("upload://a/b", "upload://name"),
        ("s3://", "write scheme://bucket/prefix"),
        ("s3://b/x", "write scheme://bucket/prefix"),
        ("s3://bucket//x", "without '//'"),
        ("s3://bucket/a/../b", "without '//'"),
        ("https://host", "name one file"),
        ("https://host/folder/", "name one file"),
        ("https://host/a/%2e%2E/b", "name one file"),
        ("https://host/m.onnx?token=abc", "leave out what follows"),
        ("https://host/m.onnx#x", "leave out what follows"),
        ("https://host:0/m.onnx", "a number from 1 to 65535"),
        ("https://host:99999/m.onnx", "a number from 1 to 65535"),
        ("https:///m.onnx", "it names no host"),
        ("https://ho st/m.onnx", "it names no host"),
        ("https://host/a b", "write spaces and special characters as %20"),
        ("hf://datasets/acme/small", "only models"),
        ("hf://acme/small@", "hf://owner/name@revision"),
        ("hf://acme/small/a/../b", "the folder without"),
        ("oci://host/small", "name a tag or a digest: oci://host/small:tag"),
        ("oci://host/Small:v1", "the name in lower case"),
        ("oci://host/small@sha256:12", "64 lower-case hexadecimal digits"),
        ("oci://host/../small:v1", "write oci://host/name:tag"),
        ("mlflow://fraud", "mlflow://name@alias"),
        ("mlflow://fraud/latest", "mlflow://name@alias"),
        ("mlflow://host:5000/fraud/3", "MLFLOW_TRACKING_URI"),
        ("s3://bucket/a\nb", "control characters"),
        ("s3://bucket/" + "a" * 5000, "more than 4096 characters"),
    ],
)
def test_what_is_no_source(text: str, advice: str) -> None:
    with pytest.raises(InvalidSource, match=advice):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://user:s3cret@bucket/x",
        "s3://s3cret@bucket/x",
        "https://user:s3cret@host/m.onnx",
        "https://s3cret@host/m.onnx",
        "https://user:s3cret/with/slash@host/m.onnx",
        "https://host/m.onnx?sig=s3cret",
        "hf://user:s3cret@acme/small",
        "oci://s3cret@host/small:v1",
        "oci://user:s3cret@host/small:v1",
        "mlflow://user:s3cret@fraud/3",
        "mlflow://host/fraud?token=s3cret",
        "user:s3cret@host/path",
        "ftp://user:s3cret@host/path",
    ],
)
def test_a_credential_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidSource) as caught:
        parse(text)
    told = str(caught.value) + repr(caught.value.metadata)
    assert "s3cret" not in told


@pytest.mark.parametrize(
    ("locator", "parts"),
    [
        ("gpt2", ("gpt2", "", "")),
        ("acme/small", ("acme/small", "", "")),
        ("acme/small/onnx/a@b", ("acme/small", "", "onnx/a@b")),
        ("acme/small@v1/onnx/m.onnx", ("acme/small", "v1", "onnx/m.onnx")),
    ],
)
def test_the_parts_of_a_hub_source(locator: str, parts: tuple[str, str, str]) -> None:
    assert hub_parts(locator) == parts


@pytest.mark.parametrize("path", ["a", "a/b", "1/model.onnx", "..a/b..", "a b/ü", ".hidden"])
def test_paths(path: str) -> None:
    assert checked_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        *("", ".", "..", "/", "/a", "a/", "a//b", "./a", "a/.", "a/..", "../a", "a/../b", "a\\b"),
        *("C:/a", "c:a", "a\0b", "a\nb", "a\x85", "\udcff", "\u2028", "a" * 256, "ü" * 128),
        "/".join(["a" * 200] * 6),
    ],
)
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(UnsafeContent):
        checked_path(path)


@given(st.text())
def test_a_text_is_a_source_or_refused(text: str) -> None:
    for whole in (text, f"s3://{text}", f"https://{text}", f"hf://{text}", f"oci://{text}"):
        try:
            source = parse(whole)
        except InvalidSource:
            continue
        assert parse(str(source)) == source
