"""The package library: `sis.queue.v1.PackageService`, as methods. Every one may raise ApiError."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from sis.client.aio.connection import Connection
from sis.client.aio.resuming import OnInterruption, resuming_bytes
from sis.client.aio.uploading import uploading
from sis.client.service_config import PUSH_SECONDS
from sis.queue.v1 import package_service_pb2 as pb
from sis.queue.v1 import package_service_pb2_grpc

_CHUNK_BYTES = 1024 * 1024


class Packages:
    """The packages that jobs can name."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = package_service_pb2_grpc.PackageServiceStub(connection.channel)

    async def push(self, archive: bytes) -> pb.PushPackageResponse:
        """Store an archive (see `sis.packages.archive.pack`). Pushing the same content again is safe."""

        def messages() -> Iterator[pb.PushPackageRequest]:
            digest = hashlib.sha256(archive).hexdigest()
            yield pb.PushPackageRequest(upload=pb.PackageUpload(digest=digest, size_bytes=len(archive)))
            for start in range(0, len(archive), _CHUNK_BYTES):
                yield pb.PushPackageRequest(chunk=archive[start : start + _CHUNK_BYTES])

        return await self._connection.call(uploading(self._stub.PushPackage), messages(), PUSH_SECONDS)

    async def list(self, name: str = "", *, page_size: int = 0, page_token: str = "") -> pb.ListPackagesResponse:
        """One page of the packages (of one name), without their operations."""
        request = pb.ListPackagesRequest(name=name, page_size=page_size, page_token=page_token)
        return await self._connection.call(self._stub.ListPackages, request)

    async def all(self, name: str = "") -> AsyncIterator[pb.Package]:
        """Every package (of one name), by name, then newest version first."""
        token = ""
        while True:
            page = await self.list(name, page_token=token)
            for package in page.packages:
                yield package
            token = page.next_page_token
            if not token:
                return

    async def get(self, name: str, version: str = "") -> pb.Package:
        """One version of a package (the highest without one), with its operations."""
        request = pb.GetPackageRequest(name=name, version=version)
        response = await self._connection.call(self._stub.GetPackage, request)
        return response.package

    async def delete(self, name: str, version: str) -> None:
        """Delete one version for good. The second time it is PACKAGE_NOT_FOUND, which says who deleted it and when."""
        await self._connection.call(self._stub.DeletePackage, pb.DeletePackageRequest(name=name, version=version))

    def download(
        self, name: str, version: str = "", offset: int = 0, *, on_interruption: OnInterruption | None = None
    ) -> AsyncGenerator[pb.DownloadPackageResponse]:
        """What comes, then the archive of one version of a package (the highest without one) from `offset` on; the
        digest is for the caller to check. A broken connection is tried again for a minute; each byte comes once, and
        all of them of one version."""
        request = pb.DownloadPackageRequest(name=name, version=version)

        def open_stream(offset: int, length: int) -> AsyncGenerator[pb.DownloadPackageResponse]:
            request.offset, request.length = offset, length
            return self._connection.stream(self._stub.DownloadPackage, request)

        def size(response: pb.DownloadPackageResponse) -> int:
            if response.HasField("info"):
                request.version = response.info.version  # the highest may be another one by the next time
            return len(response.chunk)

        return resuming_bytes(open_stream, size, offset, 0, on_interruption=on_interruption)
