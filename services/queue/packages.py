"""The package library: versions that never change, kept by the digest of their archive."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, delete, func, insert, literal, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.queue import store
from services.queue.errors import InvalidPackage, PackageInUse, PackageNotFound, PackageVersionExists
from services.queue.model import Actor
from services.queue.ranges import Window
from services.queue.states import TERMINAL, Status
from services.queue.tables import package_chunks, package_removals, packages
from services.runtime import paging
from services.runtime.database import Database
from services.runtime.errors import FieldViolation, InvalidArgument
from sis.packages import archive
from sis.packages.manifest import InvalidManifest, Manifest, version_key

CHUNK_BYTES = 512 * 1024
_CHUNKS_AT_ONCE = 8
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


async def find(connection: AsyncConnection, name: str, version: str, *, hold: bool = False) -> Package:
    """One version of a package, the highest without a version; with `hold`, held as `hold` does it.

    Raises:
        PackageNotFound
    """
    query = select(packages).where(packages.c.name == name).order_by(packages.c.version_key.desc()).limit(1)
    if version:
        query = query.where(packages.c.version == version)
    if hold:
        found = query.subquery()
        query = select(found, _held(found.c.digest))
    row = (await connection.execute(query)).first()
    if row is None:
        raise await not_found(connection, name, version)
    return _package(row)


async def not_found(connection: AsyncConnection, name: str, version: str) -> PackageNotFound:
    """The error for whoever asks for a version that is not there (any more)."""
    removals = package_removals.c
    query = select(package_removals).where(removals.name == name, removals.version == version)
    gone = (await connection.execute(query)).first()
    if gone is None:
        return PackageNotFound(name, version)
    return PackageNotFound(name, version, deleted_by=gone.actor, deleted_at=gone.removed_at)


async def hold(connection: AsyncConnection, digest: str) -> None:
    """Keep a package from being deleted until the transaction ends. Whether it is there has to be looked at afterwards.

    The lock is advisory: one on the row would be written to it by each of many creations at once.
    """
    await connection.execute(select(_held(literal(digest))))


def _held(digest: ColumnElement[str]) -> ColumnElement[Any]:
    return func.pg_advisory_xact_lock_shared(func.hashtext("package"), func.hashtext(digest))


_HOLD_ALONE = text("SELECT pg_advisory_xact_lock(hashtext('package'), hashtext(:digest))")


async def remove(connection: AsyncConnection, name: str, version: str, by: Actor) -> None:
    """Delete a version for good, and record who did. It waits for those who are creating jobs of it.

    Raises:
        PackageNotFound
        PackageInUse: jobs that have not ended need it.
    """
    package = await find(connection, name, version)
    # Also before the lock, so that a deletion that is refused holds nobody up.
    await _check_unneeded(connection, package)
    await connection.execute(_HOLD_ALONE, {"digest": package.digest})
    await _check_unneeded(connection, package)
    if not (await connection.execute(delete(packages).where(packages.c.digest == package.digest))).rowcount:
        raise await not_found(connection, name, version)
    removal = {
        "digest": package.digest,
        "removed_at": await store.now(connection),
        "actor": by.name,
        "origin": by.origin,
    }
    record = upsert(package_removals).values(name=name, version=version, **removal)
    await connection.execute(record.on_conflict_do_update(index_elements=["name", "version"], set_=removal))


async def _check_unneeded(connection: AsyncConnection, package: Package) -> None:
    found = (await connection.execute(_NEEDED, {"digest": package.digest})).all()
    if found:
        raise PackageInUse(package.name, package.version, found[0].jobs, [row.job_id for row in found])


# One that is hidden will not start any more.
_NEEDED = text("""
    SELECT job_id, count(*) OVER () AS jobs FROM queue.jobs
    WHERE status = ANY(:live) AND hidden_at IS NULL AND package_digest = :digest
    ORDER BY job_id LIMIT 5
""").bindparams(live=sorted(set(Status) - TERMINAL))


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
        self._received = io.BytesIO()

    def add(self, chunk: bytes) -> None:
        """Take the next part.

        Raises:
            InvalidArgument: more came than was announced, or than is taken.
        """
        size = self._received.tell() + len(chunk)
        if self._size and size > self._size:
            raise InvalidArgument.field("chunk", f"exceeds the announced upload.size_bytes {self._size}")
        if size > archive.MAX_PACKED_BYTES:
            raise InvalidArgument.field("chunk", f"exceeds the {archive.MAX_PACKED_BYTES:,} bytes of an archive")
        self._received.write(chunk)

    async def examine(self) -> tuple[bytes, str, Manifest]:
        """The whole archive, its digest and its manifest.

        Raises:
            InvalidArgument: it is not what was announced.
            InvalidPackage: it is not a package; names each mistake.
        """
        content = self._received.getvalue()  # no copy of what may be 64 MiB
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
    # The lock makes a push that is repeated wait for the standby as the first one did, where one has to have it.
    known = await connection.execute(
        select(packages)
        .where(packages.c.name == manifest.name, packages.c.version == manifest.version)
        .with_for_update(key_share=True, read=True)
    )
    row = known.first()
    if row is not None and row.digest != digest:
        raise PackageVersionExists(manifest.name, manifest.version)
    if row is not None:
        return _package(row), True
    # Looked at second: whatever has been deleted by now is there.
    former = await connection.execute(
        select(package_removals.c.digest).where(
            package_removals.c.name == manifest.name, package_removals.c.version == manifest.version
        )
    )
    if former.scalar_one_or_none() not in (None, digest):
        raise PackageVersionExists(manifest.name, manifest.version, deleted=True)
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
    starts = enumerate(range(0, len(content), CHUNK_BYTES))
    # A few at a time, as all of them would be another copy of it.
    while chunks := [
        {"digest": digest, "number": number, "data": content[start : start + CHUNK_BYTES]}
        for number, start in itertools.islice(starts, _CHUNKS_AT_ONCE)
    ]:
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
    """`count` bytes of an archive from an offset, in parts of at most CHUNK_BYTES; no connection is held meanwhile.

    Raises:
        PackageNotFound: it was deleted meanwhile.
    """
    number, skip = divmod(offset, CHUNK_BYTES)
    window = Window(0, count)
    part = select(func.substr(package_chunks.c.data, text(":from"))).where(
        package_chunks.c.digest == digest, package_chunks.c.number == text(":number")
    )
    while not window.done():
        async with database.begin() as connection:
            row = (await connection.execute(part, {"from": skip + 1, "number": number})).first()
        if row is None:
            raise PackageNotFound(f"sha256:{digest}")
        if data := window.cut(bytes(row[0])):
            yield data
        number, skip = number + 1, 0
