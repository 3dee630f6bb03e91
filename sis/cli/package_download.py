"""Fetching the archive of a package into a file."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path

from sis.cli import files
from sis.client import Client, ClientError
from sis.paths import expanded
from sis.queue.v1 import package_service_pb2 as pb


class ArchiveDamaged(ClientError):
    """What came is not what the library announced."""


def download(client: Client, name: str, version: str, output: Path | None) -> tuple[pb.PackageArchive, Path]:
    """Write an archive to `output`, or to NAME-VERSION.tar.gz here; what it is, and where.

    Raises:
        ApiError: it cannot be had.
        ArchiveDamaged: it is not what was announced; nothing is written.
    """
    with closing(client.packages.download(name, version)) as responses:
        archive = next(responses, pb.DownloadPackageResponse()).info
        # The name is the server's word: it must not lead out of this directory.
        path = expanded(output) if output else Path(Path(f"{archive.name}-{archive.version}.tar.gz").name)
        digest, size = hashlib.sha256(), 0
        with files.replaced("--output", path) as file:
            for response in responses:
                digest.update(response.chunk)
                size += len(response.chunk)
                if size > archive.size_bytes:
                    break
                file.write(response.chunk)
            if (digest.hexdigest(), size) != (archive.digest, archive.size_bytes):
                raise ArchiveDamaged(
                    f"what came is not {archive.name} {archive.version} with the SHA-256 {archive.digest}; try again"
                )
    return archive, path
