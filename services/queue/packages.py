"""The package library: versions that never change, kept by the digest of their archive."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import store
from services.queue.errors import InvalidPackage, PackageNotFound, PackageVersionExists
from services.queue.model import Actor
from services.queue.ranges import Window
from services.queue.tables import package_chunks, packages
from services.runtime import paging
from services.runtime.database import Database
from services.runtime.errors import FieldViolation, InvalidArgument
from sis.packages import archive
from sis.packages.manifest import InvalidManifest, Manifest, version_key

CHUNK_BYTES = 512 * 1024
_CACHED_MANIFESTS = 512


@dataclass(frozen=True, slots=True)
class Package:
    """One version of a package."""

    name: str
    version: str
    digest: str
    size_bytes: int
    pushed_at: datetime
    pusher: str
    manifest: Manifest


_manifests: OrderedDict[str, Manifest] = OrderedDict()
"""Parsed manifests by digest; content under a digest never changes, so this is never stale."""


def _package(row: Row[Any]) -> Package:
    manifest = _manifests.get(row.digest)
    if manifest is None:
        manifest = Manifest.model_validate_json(row.manifest)
        _manifests[row.digest] = manifest
        if len(_manifests) > _CACHED_MANIFESTS:
            _manifests.popitem(last=False)
    else:
        _manifests.move_to_end(row.digest)
    return Package(row.name, row.version, row.digest, row.size_bytes, row.pushed_at, row.pusher, manifest)


async def find(connection: AsyncConnection, name: str, version: str) -> Package:
    """One version of a package, the highest without a version.

    Raises:
        PackageNotFound
    """
    query = select(packages).where(packages.c.name == name).order_by(packages.c.version_key.desc()).limit(1)
    if version:
        query = query.where(packages.c.version == version)
    row = (await connection.execute(query)).first()
    if row is None:
        raise PackageNotFound(name, version)
    return _package(row)


@dataclass(frozen=True, slots=True)
class ListPackages:
    """A page of the library, or of the versions of one package, where there is a name."""

    name: str
    page_size: int
    page_token: str


async def list_page(connection: AsyncConnection, wanted: ListPackages) -> tuple[list[Package], str]:
    """A page of packages, by name, the newest version first, and the token of the next one.

    Raises:
        InvalidToken
    """
    query, request = select(packages), b"packages " + wanted.name.encode()
    if wanted.name:
        query = query.where(packages.c.name == wanted.name)
    if wanted.page_token:
        name, key = paging.decode(wanted.page_token, request, "page_token", (str, str))
        query = query.where((packages.c.name > name) | ((packages.c.name == name) & (packages.c.version_key < key)))
    ordered = query.order_by(packages.c.name, packages.c.version_key.desc()).limit(wanted.page_size + 1)
    rows = (await connection.execute(ordered)).all()
    page = rows[: wanted.page_size]
    token = paging.encode([page[-1].name, page[-1].version_key], request) if len(rows) > len(page) else ""
    return [_package(row) for row in page], token


class Upload:
    """An archive on its way in, bounded by the size that was announced, or by what an archive may have. What was not
    announced ("", 0) is not compared."""

    def __init__(self, digest: str = "", size_bytes: int = 0) -> None:
        self._digest = digest
        self._size = size_bytes
        self._received = bytearray()

    def add(self, chunk: bytes) -> None:
        """Take the next part.

        Raises:
            InvalidArgument: more came than was announced, or than is taken.
        """
        size = len(self._received) + len(chunk)
        if self._size and size > self._size:
            raise InvalidArgument.field("chunk", f"exceeds the announced upload.size_bytes {self._size}")
        if size > archive.MAX_PACKED_BYTES:
            raise InvalidArgument.field("chunk", f"exceeds the {archive.MAX_PACKED_BYTES:,} bytes of an archive")
        self._received += chunk

    async def examine(self) -> tuple[bytes, str, Manifest]:
        """The whole archive, its digest and its manifest.

        Raises:
            InvalidArgument: it is not what was announced.
            InvalidPackage: it is not a package; names each mistake.
        """
        content = bytes(self._received)
        digest = await asyncio.to_thread(archive.digest, content)
        if self._size and len(content) != self._size:
            raise InvalidArgument.field(
                "upload.size_bytes", f"announced {self._size} bytes, {len(content)} came; push again"
            )
        if self._digest and digest != self._digest:
            raise InvalidArgument.field("upload.digest", "is not the SHA-256 of what was sent; push again")
        try:
            return content, digest, await asyncio.to_thread(archive.read_manifest, content)
        except archive.InvalidArchive as error:
            raise InvalidPackage([FieldViolation("archive", str(error))]) from None
        except InvalidManifest as error:
            raise InvalidPackage([FieldViolation(p.path, p.message) for p in error.problems]) from None


async def push(database: Database, upload: Upload, by: Actor) -> tuple[Package, bool]:
    """Store an archive; also whether it was there before. Safe to repeat.

    Raises:
        InvalidArgument, InvalidPackage
        PackageVersionExists: this version has other content.
    """
    content, digest, manifest = await upload.examine()
    try:
        async with database.begin() as connection:
            return await _store(connection, content, digest, manifest, by)
    except IntegrityError:
        # Somebody else pushed the version between our look and our insert.
        async with database.begin() as connection:
            return await _store(connection, content, digest, manifest, by)


async def _store(
    connection: AsyncConnection, content: bytes, digest: str, manifest: Manifest, by: Actor
) -> tuple[Package, bool]:
    known = await connection.execute(
        select(packages).where(packages.c.name == manifest.name, packages.c.version == manifest.version)
    )
    row = known.first()
    if row is not None and row.digest != digest:
        raise PackageVersionExists(manifest.name, manifest.version)
    if row is not None:
        return _package(row), True
    values = {
        "digest": digest,
        "name": manifest.name,
        "version": manifest.version,
        "version_key": version_key(manifest.version),
        # What is as it is by itself is left out: a replica of an older release need not know of it.
        "manifest": manifest.model_dump_json(exclude_defaults=True),
        "size_bytes": len(content),
        "pushed_at": await store.now(connection),
        "pusher": by.name,
    }
    stored = (await connection.execute(insert(packages).values(values).returning(packages))).one()
    chunks = [
        {"digest": digest, "number": number, "data": content[start : start + CHUNK_BYTES]}
        for number, start in enumerate(range(0, len(content), CHUNK_BYTES))
    ]
    await connection.execute(insert(package_chunks), chunks)
    return _package(stored), False


async def archive_size(connection: AsyncConnection, digest: str) -> int:
    """The size of an archive.

    Raises:
        PackageNotFound
    """
    row = (await connection.execute(select(packages.c.size_bytes).where(packages.c.digest == digest))).first()
    if row is None:
        raise PackageNotFound(f"sha256:{digest}")
    return int(row.size_bytes)


async def archive_chunks(database: Database, digest: str, offset: int, count: int) -> AsyncGenerator[bytes, None]:
    """`count` bytes of an archive from an offset, in parts of at most CHUNK_BYTES; no connection is held meanwhile."""
    number, skip = divmod(offset, CHUNK_BYTES)
    window = Window(0, count)
    part = select(func.substr(package_chunks.c.data, text(":from"))).where(
        package_chunks.c.digest == digest, package_chunks.c.number == text(":number")
    )
    while not window.done():
        async with database.begin() as connection:
            row = (await connection.execute(part, {"from": skip + 1, "number": number})).first()
        if row is None:
            return
        if data := window.cut(bytes(row[0])):
            yield data
        number, skip = number + 1, 0
