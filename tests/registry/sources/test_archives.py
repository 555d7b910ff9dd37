"""Archives that are what they should be, and those of somebody who wishes harm."""

import contextlib
import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import ShoalError
from services.registry.core.errors import ContentMismatch, SourceTooLarge, UnsafeContent
from services.registry.sources import archives
from services.registry.sources.archives import GivenUp, form_of, unpack
from services.registry.sources.origin import Archive

FILES = {"resnet/config.pbtxt": b"", "resnet/1/model.onnx": bytes(range(256)) * 9000}
PLENTY = 2**40


def tar_of(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(content) if member.isreg() else None)
    return written.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> Any:
    one = tarfile.TarInfo(name)
    one.type, one.linkname, one.size = kind, link, size
    return one


def plain_tar() -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        archive.addfile(member("./", tarfile.DIRTYPE))
        archive.addfile(member("./resnet/", tarfile.DIRTYPE))
        for name, content in FILES.items():
            archive.addfile(member(f"./{name}", size=len(content)), io.BytesIO(content))
    return written.getvalue()


def zip_of(files: dict[str, bytes], mode: int = 0) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            one = zipfile.ZipInfo(name)
            one.external_attr = mode << 16
            one.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(one, content)
    return written.getvalue()


PACKED: dict[Archive, Callable[[], bytes]] = {
    "tar": plain_tar,
    "tar+gzip": lambda: gzip.compress(plain_tar()),
    "tar+zstd": lambda: zstandard.compress(plain_tar()),
    "zip": lambda: zip_of(FILES),
}


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    """Unpack bytes, and return what is then in the folder."""

    def tried(
        packed: bytes, form: Archive = "tar", max_bytes: int = PLENTY, **more: Any
    ) -> dict[str, bytes]:
        archive = tmp_path / "archive"
        archive.write_bytes(packed)
        folder = tmp_path / "inner" / "folder"
        folder.mkdir(parents=True)
        try:
            unpack(archive, form, folder, max_bytes, **more)
        finally:
            outside = {path for path in tmp_path.rglob("*") if path.is_file()} - {archive}
            assert all(path.is_relative_to(folder) for path in outside)
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    return tried


@pytest.mark.parametrize("form", PACKED)
def test_everything_comes_out(attempt: Any, form: Archive) -> None:
    assert attempt(PACKED[form](), form) == FILES


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("m.tar", "tar"),
        ("m.tar.gz", "tar+gzip"),
        ("M.TGZ", "tar+gzip"),
        ("m.tar.zst", "tar+zstd"),
        ("m.zip", "zip"),
        ("m.onnx", ""),
        ("tar", ""),
    ],
)
def test_the_name_tells_the_form(name: str, form: Archive) -> None:
    assert form_of(name) == form


NAMES = [
    ("../evil", "leads out of its folder"),
    ("a/../../evil", "leads out of its folder"),
    ("/etc/evil", "absolute"),
    ("C:/evil", "a drive"),
    ("a\\..\\evil", "a backslash"),
    ("a//b", "an empty part"),
    ("a\x01b", "control characters"),
    ("a" * 256, "more than 255 bytes"),
    ("/".join(["abcdefghijk"] * 99), "more than 1024 bytes"),
    ("/".join(["a"] * 101), "more than 100 parts"),
]


@pytest.mark.parametrize(("name", "problem"), NAMES)
@pytest.mark.parametrize("form", ["tar", "zip"])
def test_names_that_lead_elsewhere(attempt: Any, name: str, problem: str, form: Archive) -> None:
    packed = tar_of(member(name)) if form == "tar" else zip_of({name: b""})
    with pytest.raises(UnsafeContent, match=problem):
        attempt(packed, form)


def test_a_name_in_a_zip_that_ends_early(attempt: Any) -> None:
    packed = zip_of({"evil.pbtxtX../x": b""}).replace(b"evil.pbtxtX", b"evil.pbtxt\0")
    with pytest.raises(UnsafeContent, match="control characters"):
        attempt(packed, "zip")


@pytest.mark.parametrize(
    ("name", "target", "problem"),
    [
        ("a", "/etc/passwd", "a link to /etc/passwd, outside its archive"),
        ("a", "../secret", "outside its archive"),
        ("a/b", "../../secret", "outside its archive"),
        ("a/b", "../c", "pack the file itself"),
    ],
)
def test_links(attempt: Any, name: str, target: str, problem: str) -> None:
    with pytest.raises(UnsafeContent, match=problem):
        attempt(tar_of(member(name, tarfile.SYMTYPE, target), member(f"{name}/x")))


def test_a_hard_link(attempt: Any) -> None:
    with pytest.raises(UnsafeContent, match="outside its archive"):
        attempt(tar_of(member("a", tarfile.LNKTYPE, "../../secret")))


def test_a_link_in_a_zip(attempt: Any) -> None:
    with pytest.raises(UnsafeContent, match=r"a link to \.\./\.\./secret, outside"):
        attempt(zip_of({"a": b"../../secret"}, stat.S_IFLNK | 0o777), "zip")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices(attempt: Any, kind: bytes) -> None:
    with pytest.raises(UnsafeContent, match="a device, a pipe or a socket"):
        attempt(tar_of(member("a", kind)))


def test_a_device_in_a_zip(attempt: Any) -> None:
    with pytest.raises(UnsafeContent, match="a device, a pipe or a socket"):
        attempt(zip_of({"a": b""}, stat.S_IFIFO), "zip")


@pytest.mark.parametrize("form", PACKED)
def test_more_than_allowed(attempt: Any, form: Archive) -> None:
    with pytest.raises(SourceTooLarge, match="unpacks to more than 1000000 bytes"):
        attempt(PACKED[form](), form, max_bytes=1_000_000)


def test_a_bomb(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_ALWAYS", 2**20)
    packed = zip_of({"a": bytes(2**24)})
    with pytest.raises(UnsafeContent, match="more than 200 times its own size"):
        attempt(packed, "zip")


def test_too_many_members(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    with pytest.raises(UnsafeContent, match="more than 3 members"):
        attempt(tar_of(*(member(f"f{number}") for number in range(4))))


def test_folders_count_as_members(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 8)
    assert attempt(tar_of(member("a/b/c/d/e/f"))) == {"a/b/c/d/e/f": b""}


def test_too_many_folders(attempt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_FILES", 5)
    with pytest.raises(UnsafeContent, match="more than 5 members"):
        attempt(tar_of(member("a/b/c/d/e/f")))


def test_a_zip_packed_by_another_method(attempt: Any) -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a", b"x")
    with pytest.raises(UnsafeContent, match="another method than deflate"):
        attempt(written.getvalue(), "zip")


def test_a_header_as_large_as_memory(attempt: Any) -> None:
    header = member("x", tarfile.XHDTYPE, size=2**33)
    packed = gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(2**22))
    with pytest.raises(UnsafeContent, match="a header of 8589934592 bytes"):
        attempt(packed, "tar+gzip")


def test_a_sparse_file(attempt: Any) -> None:
    with pytest.raises(UnsafeContent, match="a sparse file"):
        attempt(tar_of(member("x", tarfile.GNUTYPE_SPARSE)))


def test_a_sparse_file_of_the_newer_kind(attempt: Any) -> None:
    one = tarfile.TarInfo("x")
    one.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    with pytest.raises(UnsafeContent, match="a sparse file"):
        attempt(tar_of(one))


def test_a_size_that_lies_in_a_tar(attempt: Any) -> None:
    with pytest.raises(ContentMismatch, match="damaged archive"):
        attempt(member("a", size=5000).tobuf() + b"short")


def test_a_size_that_lies_in_a_zip(attempt: Any) -> None:
    packed = zip_of({"a": bytes(1000)})
    right, wrong = (size.to_bytes(4, "little") for size in (1000, 10))
    assert packed.count(right) == 2
    with pytest.raises(ContentMismatch, match="damaged archive"):
        attempt(packed.replace(right, wrong), "zip")


def test_a_tar_that_ends_between_its_members(attempt: Any) -> None:
    with pytest.raises(ContentMismatch, match="damaged archive"):
        attempt(member("a").tobuf())


def test_a_header_that_is_damaged(attempt: Any) -> None:
    packed = bytearray(tar_of(member("a"), member("b")))
    packed[512] ^= 1
    with pytest.raises(ContentMismatch, match="damaged archive"):
        attempt(bytes(packed))


def test_a_negative_size(attempt: Any) -> None:
    one = tarfile.TarInfo("x")
    one.pax_headers = {"size": "-512"}
    with pytest.raises(ContentMismatch):
        attempt(tar_of(one))


def test_two_members_of_one_name(attempt: Any) -> None:
    with pytest.raises(UnsafeContent, match="two members of that name"):
        attempt(tar_of(member("a"), member("./a")))


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_that_is_a_folder_too(attempt: Any, names: tuple[str, str]) -> None:
    with pytest.raises(UnsafeContent, match="of that name"):
        attempt(tar_of(*map(member, names)))


def test_an_encrypted_zip(attempt: Any) -> None:
    packed = bytearray(zip_of({"a": b"x"}))
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    packed[6] |= 1
    with pytest.raises(UnsafeContent, match="encrypted"):
        attempt(bytes(packed), "zip")


@pytest.mark.parametrize("form", PACKED)
def test_half_an_archive(attempt: Any, form: Archive) -> None:
    packed = PACKED[form]()
    with pytest.raises(ContentMismatch, match="damaged archive"):
        attempt(packed[: len(packed) // 2], form)


@pytest.mark.parametrize("form", PACKED)
def test_what_is_no_archive(attempt: Any, form: Archive) -> None:
    with pytest.raises(ContentMismatch, match="damaged archive"):
        attempt(b"<html>Sign in</html>" * 100, form)


def test_it_can_be_given_up(attempt: Any) -> None:
    with pytest.raises(GivenUp):
        attempt(plain_tar(), going_on=lambda: False)


@given(
    form=st.sampled_from(list(PACKED)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), max_size=6),
)
def test_whatever_comes_is_unpacked_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    form: Archive,
    changes: list[tuple[float, bytes]],
) -> None:
    packed = bytearray(PACKED[form]())
    for place, change in changes:
        at = int(place * len(packed))
        packed[at : at + len(change)] = change
    top = tmp_path_factory.mktemp("any")
    archive, folder = top / "archive", top / "folder"
    archive.write_bytes(packed)
    folder.mkdir()
    with contextlib.suppress(ShoalError):
        unpack(archive, form, folder, PLENTY)
    assert sorted(path.name for path in top.iterdir()) == ["archive", "folder"]
    assert not any(path.is_symlink() for path in folder.rglob("*"))
