"""A package's way into an archive and out of it again, and the archives that are refused."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import os
import py_compile
import tarfile
import tracemalloc
import unicodedata
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sis.packages import archive, shipped, tarball
from sis.packages.archive import InvalidArchive
from sis.packages.manifest import InvalidManifest

MANIFEST = b"name: a\nversion: 1.0.0\noperations:\n  run: {command: [/bin/true]}\n"

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", type_: bytes = tarfile.REGTYPE, **fields: object) -> Member:
    info = tarfile.TarInfo(name)
    info.type = type_
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


PACKAGE_YAML = member("package.yaml", MANIFEST)


def tar(*members: Member, format_: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_) as written:
        for info, content in members:
            written.addfile(info, io.BytesIO(content))
    return file.getvalue()


def packed(*members: Member, format_: int = tarfile.PAX_FORMAT) -> bytes:
    return gzip.compress(tar(*members, format_=format_))


def repeated(prefix: bytes, unit: bytes, times: int) -> bytes:
    """The beginning of a gzip that holds so many copies of a unit: made of one that is compressed once."""
    head = zlib.compressobj(9, wbits=31)
    block = zlib.compressobj(9, wbits=-15)
    compressed = block.compress(unit) + block.flush(zlib.Z_FULL_FLUSH)
    return head.compress(prefix) + head.flush(zlib.Z_FULL_FLUSH) + compressed * times


def refusal(data: bytes, directory: Path) -> str:
    """The same words from both readers, and nothing left behind."""
    with pytest.raises(InvalidArchive) as read:
        archive.read_manifest(data)
    (directory / "archive").write_bytes(data)
    with pytest.raises(InvalidArchive) as extracted:
        archive.extract(directory / "archive", directory / "target")
    assert str(read.value) == str(extracted.value)
    assert [path.name for path in directory.iterdir()] == ["archive"]
    return str(read.value)


def extracted(data: bytes, directory: Path) -> Path:
    (directory / "archive").write_bytes(data)
    archive.extract(directory / "archive", directory / "target")
    return directory / "target"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    directory = tmp_path / "package"
    (directory / "lib" / "empty").mkdir(parents=True)
    (directory / "package.yaml").write_bytes(MANIFEST)
    (directory / "run").write_text("#!/bin/sh\n")
    (directory / "run").chmod(0o700)
    (directory / "lib" / ("ü" * 100)).write_bytes(bytes(range(256)) * 1_000)
    return directory


def test_a_package_comes_out_as_it_went_in(package: Path, tmp_path: Path) -> None:
    data = archive.pack(package)
    assert archive.read_manifest(data).name == "a"
    umask = os.umask(0o077)
    try:
        target = extracted(data, tmp_path)
    finally:
        os.umask(umask)
    assert sorted(path.relative_to(target) for path in target.rglob("*")) == sorted(
        path.relative_to(package) for path in package.rglob("*")
    )
    assert (target / "lib" / ("ü" * 100)).read_bytes() == (package / "lib" / ("ü" * 100)).read_bytes()
    modes = {path.name: path.stat().st_mode & 0o7777 for path in (target, target / "run", target / "package.yaml")}
    assert modes == {"target": 0o755, "run": 0o755, "package.yaml": 0o644}


def test_the_same_content_makes_the_same_bytes(package: Path) -> None:
    before = archive.pack(package)
    os.utime(package / "run", (1, 1))
    (package / "run").chmod(0o711)
    assert archive.digest(archive.pack(package)) == archive.digest(before)
    (package / "run").chmod(0o600)
    assert archive.digest(archive.pack(package)) != archive.digest(before)


def test_bytecode_is_not_packed(package: Path) -> None:
    """Whoever installs the shipped packages compiles them, at another time each."""
    (package / "lib" / "module.py").write_text("answer = 42\n")
    before = archive.pack(package)
    py_compile.compile(str(package / "lib" / "module.py"), doraise=True)
    py_compile.compile(str(package / "lib" / "module.py"), str(package / "module.pyc"), doraise=True)
    assert archive.digest(archive.pack(package)) == archive.digest(before)
    assert not [path for path in archive.walk(package) if path.suffix == ".pyc" or path.name == "__pycache__"]


def test_every_shipped_package_can_be_packed() -> None:
    for directory in shipped().iterdir():
        assert archive.read_manifest(archive.pack(directory)).name == directory.name


def test_links_are_not_packed(package: Path) -> None:
    (package / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidArchive, match="link is neither a file nor a directory"):
        archive.pack(package)


def test_what_is_no_package_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(InvalidArchive, match=r"has no package\.yaml: name the directory of a package"):
        archive.pack(tmp_path)
    (tmp_path / "package.yaml").write_bytes(MANIFEST)
    (tmp_path / "a\nb").touch()
    with pytest.raises(InvalidArchive, match="characters that cannot be printed"):
        archive.pack(tmp_path)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_formats_of_other_programs_are_read(format_: int, tmp_path: Path) -> None:
    long_name = "/".join(["directory"] * 15) + "/file"
    data = packed(
        member("./", type_=tarfile.DIRTYPE),
        member("./package.yaml", MANIFEST),
        member("./lib/", type_=tarfile.DIRTYPE),
        member(f"./{long_name}", b"x"),
        format_=format_,
    )
    assert archive.read_manifest(data).name == "a"
    target = extracted(data, tmp_path)
    assert (target / long_name).read_bytes() == b"x"
    assert (target / "lib").is_dir()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (member("/etc/passwd"), "the path '/etc/passwd' is not beneath the root of the package"),
        (member("../x"), "the path '../x' is not beneath the root of the package"),
        (member("a/../../x"), "the path 'a/../../x' is not beneath the root of the package"),
        (member("./../x"), "the path './../x' is not beneath the root of the package"),
        (member("a\\..\\x"), "the path 'a\\\\..\\\\x' is not beneath the root of the package"),
        (member("..", type_=tarfile.DIRTYPE), "the path '..' is not beneath the root of the package"),
        (member("/", type_=tarfile.DIRTYPE), "the path '' is not beneath the root of the package"),
        (member("."), "it holds a file without a name"),
        (member("a\x1b[2J"), "the path 'a\\x1b[2J' has characters that cannot be printed"),
        (member("a\udcff"), "it has a name that is not UTF-8"),
        (member("x" * 256), f"the path '{'x' * 100}'… has a name of more than 255 bytes"),
        (member("/".join(["ab"] * 400)), f"the path '{'ab/' * 33}a'… is longer than 1,024 bytes"),
        (member("x" * 9_000), "it has an extension header that is too large"),
        (
            member("x", type_=tarfile.SYMTYPE, linkname="/etc"),
            "'x' is neither a plain file nor a directory: remove it",
        ),
        (
            member("x", type_=tarfile.LNKTYPE, linkname="../../etc/passwd"),
            "'x' is neither a plain file nor a directory: remove it",
        ),
        (member("x", type_=tarfile.CHRTYPE), "'x' is neither a plain file nor a directory: remove it"),
        (member("x", type_=tarfile.BLKTYPE), "'x' is neither a plain file nor a directory: remove it"),
        (member("x", type_=tarfile.FIFOTYPE), "'x' is neither a plain file nor a directory: remove it"),
        (member("x", type_=b"Z"), "'x' is neither a plain file nor a directory: remove it"),
        (member("x", type_=tarfile.GNUTYPE_SPARSE), "'x' is neither a plain file nor a directory: remove it"),
        (
            member("x", pax_headers={"GNU.sparse.realsize": "1"}),
            "it holds a sparse file: pack it as a plain one",
        ),
        (member("x", pax_headers={"size": "-1"}), "it has a malformed extension header"),
        (member("x", pax_headers={"size": "9" * 17}), "it has more than 512 MiB when unpacked"),
        (member("x", pax_headers={"size": "\u0661"}), "it has a malformed extension header"),
        (member("x", pax_headers={"path": "../x"}), "the path '../x' is not beneath the root of the package"),
        (
            member("x", pax_headers={"path": "/etc/passwd"}),
            "the path '/etc/passwd' is not beneath the root of the package",
        ),
        (member("x", pax_headers={"path": ""}), "the path '' is not beneath the root of the package"),
        (member("a\0b", pax_headers={"path": "a\0b"}), "the path 'a\\x00b' has characters that cannot be printed"),
        (member("a\u202eb"), "the path 'a\\u202eb' has characters that cannot be printed"),
        (member("../" * 100 + "x"), f"the path '{'../' * 33}.'… is not beneath the root of the package"),
        (member("x", mode=0o4755), "'x' has the setuid or the setgid bit: remove it"),
        (member("x", mode=0o2644), "'x' has the setuid or the setgid bit: remove it"),
        (member("x", type_=tarfile.CONTTYPE), "'x' is neither a plain file nor a directory: remove it"),
        (member("x", type_=b"D"), "'x' is neither a plain file nor a directory: remove it"),
        (
            member("x", type_=tarfile.SYMTYPE, linkname="package.yaml"),
            "'x' is neither a plain file nor a directory: remove it",
        ),
        (
            member("Package.yaml"),
            "it holds 'package.yaml' and 'Package.yaml', which not every file system tells apart",
        ),
        (
            member("PACKAGE.YAML/x"),
            "it holds 'package.yaml' and 'PACKAGE.YAML', which not every file system tells apart",
        ),
        (member("package.yaml"), "it holds 'package.yaml' twice"),
        (member("./package.yaml"), "it holds 'package.yaml' twice"),
        (member(".//package.yaml"), "it holds 'package.yaml' twice"),
        (member("package.yaml", type_=tarfile.DIRTYPE), "it holds 'package.yaml' twice"),
        (member("package.yaml/x"), "it holds 'package.yaml' both as a file and as a directory"),
    ],
)
def test_an_entry_that_is_not_harmless_is_refused(entry: Member, message: str, tmp_path: Path) -> None:
    assert refusal(packed(PACKAGE_YAML, entry), tmp_path) == message


def test_a_file_in_the_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    assert refusal(packed(PACKAGE_YAML, member("a/b"), member("a")), tmp_path) == "it holds 'a' twice"


def test_names_that_are_the_same_elsewhere_are_refused(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "lib/\u00fcber") for form in ("NFC", "NFD"))
    for one, other in (
        (composed, apart),
        (apart, composed.upper().replace("LIB", "lib")),
        ("lib/stra\u00dfe", "lib/STRASSE"),
    ):
        message = refusal(packed(PACKAGE_YAML, member(one), member(other)), tmp_path)
        assert message.endswith("which not every file system tells apart")
    message = refusal(packed(PACKAGE_YAML, member("lib/a"), member("Lib/b")), tmp_path)
    assert message == "it holds 'lib' and 'Lib', which not every file system tells apart"


def test_a_name_is_given_once(tmp_path: Path) -> None:
    """Of several that are put before an entry, each program takes another one."""
    long_name = tar(member("y" * 101), format_=tarfile.GNU_FORMAT)[:1024]
    twice = tar(member("x", pax_headers={"path": "z"}))
    message = "it names an entry more than once"
    assert refusal(gzip.compress(long_name + twice), tmp_path) == message
    assert refusal(gzip.compress(twice[:1024] + long_name + twice[1024:]), tmp_path) == message


def test_a_global_header_may_comment_and_nothing_else(tmp_path: Path) -> None:
    def with_global(**records: str) -> bytes:
        return gzip.compress(tarfile.TarInfo.create_pax_global_header(records) + tar(PACKAGE_YAML))

    assert archive.read_manifest(with_global(comment="0123456789abcdef")).name == "a"
    for key in ("path", "linkpath", "size"):
        message = "it has a global header that names or measures its entries"
        assert refusal(with_global(**{key: "1"}), tmp_path) == message


def test_a_directory_is_stated_once(tmp_path: Path) -> None:
    directory = member("a", type_=tarfile.DIRTYPE)
    assert extracted(packed(PACKAGE_YAML, member("a/b"), directory), tmp_path).joinpath("a/b").is_file()
    with pytest.raises(InvalidArchive, match="it holds 'a' twice"):
        archive.read_manifest(packed(PACKAGE_YAML, directory, directory))
    root = member("./", type_=tarfile.DIRTYPE)
    with pytest.raises(InvalidArchive, match=r"it holds '\.' twice"):
        archive.read_manifest(packed(root, PACKAGE_YAML, root))


def test_the_manifest_is_at_the_root(tmp_path: Path) -> None:
    message = "it has no package.yaml at its root: pack the package's directory itself"
    assert refusal(packed(member("x/package.yaml", MANIFEST)), tmp_path) == message
    assert refusal(packed(), tmp_path) == message


def test_the_manifest_is_checked() -> None:
    for content in (b"name: a\n", b"\xff", b" " * 300_000):
        with pytest.raises(InvalidManifest):
            archive.read_manifest(packed(member("package.yaml", content)))
    with pytest.raises(InvalidArchive, match=r"no package\.yaml"):
        archive.read_manifest(packed(member("package.yaml", type_=tarfile.DIRTYPE)))


def test_more_entries_than_permitted_are_refused() -> None:
    directories = [member(f"d{number}", type_=tarfile.DIRTYPE) for number in range(tarball.MAX_ENTRIES)]
    with pytest.raises(InvalidArchive, match="it has more than 10,000 files and directories"):
        archive.read_manifest(packed(PACKAGE_YAML, *directories))


def test_implied_directories_count_as_entries() -> None:
    files = [member(f"{number}/" + "d/" * 100 + "f") for number in range(100)]
    with pytest.raises(InvalidArchive, match="it has more than 10,000 files and directories"):
        archive.read_manifest(packed(PACKAGE_YAML, *files))


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    header = tarfile.TarInfo("zeros")
    header.size = 600 << 20
    data = gzip.compress(tar(PACKAGE_YAML)[:1024] + header.tobuf())
    assert refusal(data, tmp_path) == "it has more than 512 MiB when unpacked"


@functools.cache
def bombs() -> dict[str, tuple[bytes, str]]:
    """Archives of ten megabytes and less that unpack to ten gigabytes, and how they are refused."""
    header = member("zeros")[0]
    header.size = 10 << 30
    root = member("./", type_=tarfile.DIRTYPE)[0].tobuf()
    comment = tarfile.TarInfo.create_pax_global_header({"comment": "x"})
    zeros, mebibytes = bytes(1 << 20), 10 << 10
    before = tar(PACKAGE_YAML)[:1024]
    return {
        "one file": (repeated(before + header.tobuf(), zeros, mebibytes), "it has more than 512 MiB when unpacked"),
        "behind the end": (repeated(tar(PACKAGE_YAML), zeros, mebibytes), "it has data behind its end"),
        "nothing else": (repeated(b"", zeros, mebibytes), "it has data behind its end"),
        "the root again": (repeated(before, root * 2_048, mebibytes), "it holds '.' twice"),
        "comments": (repeated(before, comment * 1_024, mebibytes), "it has too many extension headers in a row"),
    }


@pytest.mark.parametrize("kind", bombs())
def test_a_bomb_of_ten_gibibytes_costs_next_to_nothing(kind: str, tmp_path: Path) -> None:
    data, message = bombs()[kind]
    tracemalloc.start()
    packed_file = io.BytesIO(data)
    with pytest.raises(InvalidArchive) as caught:
        for _ in tarball.entries(packed_file, len(data)):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(caught.value) == message == refusal(data, tmp_path)
    assert packed_file.tell() <= 128 << 10
    assert peak < 4 << 20


def test_members_without_end_are_refused(tmp_path: Path) -> None:
    """Each of them would cost the start of a decompressor, and each byte of a header or of padding a call."""
    for rest in (gzip.compress(b"") * 1_000, bytes(1 << 20), b"\0"):
        assert refusal(packed(PACKAGE_YAML) + rest, tmp_path) == "it has data behind its end"
    with_a_name = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * (8 << 20)
    assert refusal(with_a_name, tmp_path) == "it ends in the middle: send it again"


def test_a_bomb_in_an_extension_header_is_refused(tmp_path: Path) -> None:
    header = member("x", type_=tarfile.XHDTYPE)[0]
    header.size = 100 << 20
    data = gzip.compress(header.tobuf() + bytes(100 << 20))
    assert refusal(data, tmp_path) == "it has an extension header that is too large"


def test_extension_headers_without_end_are_refused(tmp_path: Path) -> None:
    data = gzip.compress(member("x", type_=tarfile.XGLTYPE)[0].tobuf() * 10_000)
    assert refusal(data, tmp_path) == "it has too many extension headers in a row"


def test_an_archive_that_is_too_large_is_refused(tmp_path: Path) -> None:
    data = gzip.compress(b"")
    data += bytes(archive.MAX_PACKED_BYTES + 1 - len(data))
    assert refusal(data, tmp_path) == "it is larger than 64 MiB"


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    assert refusal(b"", tmp_path) == "it ends in the middle: send it again"
    assert refusal(gzip.compress(b""), tmp_path) == "its tar ends in the middle"
    assert refusal(b"PK\x03\x04 a zip", tmp_path).startswith("it is not gzip-compressed, or damaged")
    assert refusal(tar(PACKAGE_YAML), tmp_path).startswith("it is not gzip-compressed, or damaged")
    assert refusal(gzip.compress(b"hello" * 1_000), tmp_path).startswith("it is not a tar, or damaged")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    data = packed(PACKAGE_YAML, member("x", os.urandom(10_000)))
    for size in range(1, len(data), 997):
        refusal(data[:size], tmp_path)
    whole = tar(PACKAGE_YAML, member("x", os.urandom(10_000)))
    for size in range(0, 12_000, 511):
        refusal(gzip.compress(whole[:size]), tmp_path)


def test_data_behind_the_end_is_refused(tmp_path: Path) -> None:
    assert refusal(packed(PACKAGE_YAML) + b"garbage", tmp_path) == "it has data behind its end"
    assert refusal(gzip.compress(tar(PACKAGE_YAML) + b"garbage"), tmp_path) == "it has data behind its end"
    assert refusal(packed(PACKAGE_YAML) + packed(member("x")), tmp_path) == "it has data behind its end"


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    whole = bytearray(tar(PACKAGE_YAML, member("x")))
    whole[1024] ^= 1
    assert refusal(gzip.compress(bytes(whole)), tmp_path).startswith("it is not a tar, or damaged")


@given(st.integers(0, 3_000), st.integers(1, 255))
def test_no_damage_breaks_the_reader(position: int, change: int) -> None:
    whole = bytearray(tar(PACKAGE_YAML, member("ü" * 80, b"x"), format_=tarfile.PAX_FORMAT))
    whole[position] ^= change
    with contextlib.suppress(InvalidArchive, InvalidManifest):
        archive.read_manifest(gzip.compress(bytes(whole), 1))


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "precious").touch()
    (tmp_path / "archive").write_bytes(packed(PACKAGE_YAML))
    with pytest.raises(FileExistsError):
        archive.extract(tmp_path / "archive", tmp_path / "target")
    assert (tmp_path / "target" / "precious").exists()
