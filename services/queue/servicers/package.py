"""PackageService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from services.queue import packages, ranges
from services.queue.convert import packages as convert
from services.queue.model import Actor
from services.runtime.access import current_caller
from services.runtime.database import Database
from services.runtime.errors import InvalidArgument
from services.runtime.interceptors import Context
from sis.queue.v1 import package_service_pb2, package_service_pb2_grpc


class PackageServicer(package_service_pb2_grpc.PackageServiceServicer):
    """Adapts PackageService to `packages`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def PushPackage(
        self,
        request_iterator: AsyncIterator[package_service_pb2.PushPackageRequest],
        context: Context,
    ) -> package_service_pb2.PushPackageResponse:
        upload: packages.Upload | None = None
        async for request in request_iterator:
            if upload is None:
                upload = convert.upload(request)
            else:
                upload.add(convert.chunk(request))
        if upload is None:
            raise InvalidArgument.field("upload", "is required: the first message announces what comes")
        caller = current_caller()
        package, existed = await packages.push(self._database, upload, Actor(caller.name, caller.origin))
        return package_service_pb2.PushPackageResponse(package=convert.to_package(package), existed=existed)

    async def ListPackages(
        self, request: package_service_pb2.ListPackagesRequest, context: Context
    ) -> package_service_pb2.ListPackagesResponse:
        query = convert.list_packages(request)
        async with self._database.begin() as connection:
            found, token = await packages.list_page(connection, query)
        return package_service_pb2.ListPackagesResponse(
            packages=[convert.to_package(package, operations=False) for package in found],
            next_page_token=token,
        )

    async def GetPackage(
        self, request: package_service_pb2.GetPackageRequest, context: Context
    ) -> package_service_pb2.GetPackageResponse:
        name, version = convert.package_name(request)
        async with self._database.begin() as connection:
            package = await packages.find(connection, name, version)
        return package_service_pb2.GetPackageResponse(package=convert.to_package(package))

    async def DownloadPackage(
        self, request: package_service_pb2.DownloadPackageRequest, context: Context
    ) -> AsyncIterator[package_service_pb2.DownloadPackageResponse]:
        name, version = convert.package_name(request)
        wanted = ranges.requested(request.offset, request.length)
        async with self._database.begin() as connection:
            package = await packages.find(connection, name, version)
        count = wanted.count(package.size_bytes)
        yield package_service_pb2.DownloadPackageResponse(info=convert.to_archive(package))
        async with aclosing(packages.archive_chunks(self._database, package.digest, wanted.offset, count)) as chunks:
            async for chunk in chunks:
                yield package_service_pb2.DownloadPackageResponse(chunk=chunk)

    async def DeletePackage(
        self, request: package_service_pb2.DeletePackageRequest, context: Context
    ) -> package_service_pb2.DeletePackageResponse:
        name, version = convert.package_version(request)
        caller = current_caller()
        async with self._database.begin() as connection:
            await packages.remove(connection, name, version, Actor(caller.name, caller.origin))
        return package_service_pb2.DeletePackageResponse()
