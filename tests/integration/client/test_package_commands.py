"""`sis packages` against a scripted server."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from services.runtime import errors
from sis.queue.v1 import package_service_pb2 as package_pb
from tests.fakes.job_service import Cut, Script
from tests.integration.client.conftest import Sis


def test_a_package_with_mistakes_is_not_sent(sis: Sis, script: Script, tmp_path: Path) -> None:
    (tmp_path / "package.yaml").write_text("name: Bad Name\nversion: one\n")
    ran = sis("packages", "push", str(tmp_path))
    assert ran.code == 1
    assert len(ran.err.splitlines()) >= 2
    assert all(line.startswith(f"error: {tmp_path}/package.yaml: ") for line in ran.err.splitlines())
    assert script.requests == []


def test_packages(sis: Sis, script: Script) -> None:
    shell = package_pb.Package(name="core.shell", version="1.0.0", digest="ab" * 32)
    shell.operations.add(name="run").inputs.add(name="script", type="string", required=True)
    script.answer("ListPackages", package_pb.ListPackagesResponse(packages=[shell]))
    script.answer("GetPackage", package_pb.GetPackageResponse(package=shell))
    assert "core.shell" in sis("packages", "list").out
    assert script.asked("ListPackages")[0].name == ""
    page = sis("packages", "show", "core.shell@1.0.0").out
    assert "Operation run" in page
    assert "script" in page
    assert script.asked("GetPackage")[0].version == "1.0.0"


def test_a_version_is_deleted(sis: Sis, script: Script) -> None:
    script.answer(
        "DeletePackage", package_pb.DeletePackageResponse(), errors.NotFound("it is gone", reason="PACKAGE_NOT_FOUND")
    )
    ran = sis("packages", "delete", "own.tool", "1.0.0")
    assert (ran.code, ran.out) == (0, "Package own.tool 1.0.0 deleted\n")
    ran = sis("packages", "delete", "own.tool", "1.0.0")
    assert (ran.code, ran.out, ran.err) == (1, "", "error: it is gone\n")
    wanted = package_pb.DeletePackageRequest(name="own.tool", version="1.0.0")
    assert script.asked("DeletePackage") == [wanted, wanted]


def test_which_version_is_deleted_has_to_be_said(sis: Sis, script: Script) -> None:
    assert sis("packages", "delete", "own.tool").code == 2
    assert script.requests == []


def archive_of(content: bytes, *, digest: str = "") -> list[package_pb.DownloadPackageResponse]:
    info = package_pb.PackageArchive(
        name="p", version="1.0.0", digest=digest or hashlib.sha256(content).hexdigest(), size_bytes=len(content)
    )
    return [
        package_pb.DownloadPackageResponse(info=info),
        *(package_pb.DownloadPackageResponse(chunk=content[at : at + 2]) for at in range(0, len(content), 2)),
    ]


def test_a_download(sis: Sis, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    head, first, *rest = archive_of(b"archive")
    script.answer("DownloadPackage", [head, first, Cut()], [head, *rest], archive_of(b"archive"))
    ran = sis("packages", "download", "p")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"p 1.0.0 is in p-1.0.0.tar.gz: 7 B, SHA-256 {head.info.digest}\n"
    assert (tmp_path / "p-1.0.0.tar.gz").read_bytes() == b"archive"
    ran = sis("packages", "download", "p@1.0.0", "--output", "x", "--json")
    assert json.loads(ran.out)["sizeBytes"] == "7"
    assert script.asked("DownloadPackage")[2].version == "1.0.0"


@pytest.mark.parametrize(
    "answer", [archive_of(b"archive", digest="ab" * 32), archive_of(b"archive")[:-1], archive_of(b"archive") * 2]
)
def test_a_download_that_is_not_what_was_announced(
    sis: Sis, script: Script, tmp_path: Path, answer: list[package_pb.DownloadPackageResponse]
) -> None:
    script.answer("DownloadPackage", answer)
    ran = sis("packages", "download", "p", "--output", str(tmp_path / "p"))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: what came is not p 1.0.0 with the SHA-256")
    assert [each.name for each in tmp_path.iterdir()] == ["token"]
