"""The package library: `sis.queue.v1.PackageService`, as methods. Every one may raise ApiError."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from sis.client.connection import Connection
from sis.queue.v1 import package_service_pb2 as pb
from sis.queue.v1 import package_service_pb2_grpc

_CHUNK_BYTES = 1024 * 1024
_PUSH_SECONDS = 120.0


class Packages:
    """The packages that jobs can name."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = package_service_pb2_grpc.PackageServiceStub(connection.channel)

    def push(self, archive: bytes) -> pb.PushPackageResponse:
        """Store an archive (see `sis.packages.archive.pack`). Pushing the same content again is safe."""

        def messages() -> Iterator[pb.PushPackageRequest]:
            digest = hashlib.sha256(archive).hexdigest()
            yield pb.PushPackageRequest(upload=pb.PackageUpload(digest=digest, size_bytes=len(archive)))
            for start in range(0, len(archive), _CHUNK_BYTES):
                yield pb.PushPackageRequest(chunk=archive[start : start + _CHUNK_BYTES])

        return self._connection.call(self._stub.PushPackage, messages(), _PUSH_SECONDS)

    def list(self, *, page_size: int = 0, page_token: str = "") -> pb.ListPackagesResponse:
        """One page of the packages, without their operations."""
        request = pb.ListPackagesRequest(page_size=page_size, page_token=page_token)
        return self._connection.call(self._stub.ListPackages, request)

    def all(self) -> Iterator[pb.Package]:
        """Every package, by name, then newest version first."""
        token = ""
        while True:
            page = self.list(page_token=token)
            yield from page.packages
            token = page.next_page_token
            if not token:
                return

    def get(self, name: str, version: str = "") -> pb.Package:
        """One version of a package (the highest without one), with its operations."""
        return self._connection.call(self._stub.GetPackage, pb.GetPackageRequest(name=name, version=version)).package
