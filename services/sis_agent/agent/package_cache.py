"""The packages that this site has, unpacked, by the digest of their archive."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Final, Protocol

from services.runtime import faults
from services.runtime.backoff import Backoff
from services.runtime.errors import NotFound, SisError
from services.sis_agent.agent.errors import PackageUnavailable
from services.sis_agent.agent.linux.removal import remove_tree
from sis.packages import archive
from sis.private_files import sync_directory

log = logging.getLogger(__name__)

# So many packages are kept, no larger together than the cache may be; the ones used least recently go first.
KEPT: Final = 100
# A fetch outlives the attempts that wait for it, but not for longer than this.
FETCH_SECONDS: Final = 600.0

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether the text is a SHA-256 in lower-case hexadecimal, and so also safe as the name of a directory."""
    return _DIGEST.fullmatch(text) is not None


class Fetch(Protocol):
    """Where archives come from."""

    def __call__(self, digest: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of an archive from an offset on. Raises NotFound when there is none and never will be, any
        other SisError when it is worth another try."""
        ...


class PackageCache:
    """`packages/<digest>/`: unpacked packages, each complete or not there at all.

    Together they have at most so many bytes when nobody holds any; the last one that was fetched comes on top until
    the next look.
    """

    def __init__(self, root: Path, fetch: Fetch, max_bytes: int) -> None:
        self._root = root
        self._fetch = fetch
        self._max_bytes = max_bytes
        self._sizes: dict[str, int] = {}
        # Until the first look nobody knows; afterwards because of what is held.
        self._too_large = True
        self._trimming = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: Counter[str] = Counter()
        self._fetching: dict[str, asyncio.Task[Path]] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in root.iterdir():
            if not is_digest(path.name):
                remove_tree(path)

    def find(self, digest: str) -> Path | None:
        """The directory of a package that is here."""
        path = self._root / digest
        try:
            os.utime(path)  # when it was used last
        except OSError:
            return None
        return path

    @contextlib.contextmanager
    def holding(self, digest: str) -> Iterator[None]:
        """While it is held, a package is not removed once it is here."""
        self._held[digest] += 1
        try:
            yield
        finally:
            self._held[digest] -= 1
            self._held = +self._held  # without those at zero
            if self._too_large and digest not in self._held:
                task = asyncio.create_task(self._trim(), name="trim packages")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def get(self, digest: str) -> Path:
        """The directory of a package, fetched if it is not here; several callers share one fetch.

        Raises:
            PackageUnavailable: the server has no such package, or what it gave is none.
            OSError: it cannot be stored here.
        """
        path = self.find(digest)
        if path is not None:
            return path
        task = self._fetching.get(digest)
        if task is None:
            task = self._fetching[digest] = asyncio.create_task(self._bring(digest), name=f"fetch {digest}")
            task.add_done_callback(lambda done: self._fetched(digest, done))
        # A caller that gives up does not take the package from the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Stop what is being fetched and removed. Repeatable."""
        tasks = [*self._fetching.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fetched(self, digest: str, task: asyncio.Task[Path]) -> None:
        del self._fetching[digest]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Said here, for there may be no caller left.
            log.warning("package %s is not available: %s", digest, error)

    async def _bring(self, digest: str) -> Path:
        packed = self._root / f"{digest}.archive"
        unpacked = self._root / f"{digest}.unpacked"
        try:
            faults.point("agent.package.fetching")
            async with asyncio.timeout(FETCH_SECONDS):
                await self._download(digest, packed)
            await asyncio.to_thread(archive.extract, packed, unpacked)
            faults.point("agent.package.unpacked")
            unpacked.rename(self._root / digest)
            sync_directory(self._root)
            faults.point("agent.package.kept")
        except TimeoutError:
            raise PackageUnavailable(f"package {digest} did not arrive within {FETCH_SECONDS:.0f} s") from None
        except archive.InvalidArchive as error:
            raise PackageUnavailable(f"package {digest} cannot be unpacked: {error}") from error
        finally:
            await asyncio.to_thread(remove_tree, packed)
            await asyncio.to_thread(remove_tree, unpacked)
        await self._trim(digest)
        return self._root / digest

    async def _download(self, digest: str, packed: Path) -> None:
        """Fetch the archive, resuming after each failure that may pass, and check what arrived."""
        backoff = Backoff()
        content = hashlib.sha256()
        size = 0
        with packed.open("wb") as file:
            while True:
                try:
                    async for chunk in self._fetch(digest, size):
                        size += len(chunk)
                        if size > archive.MAX_PACKED_BYTES:
                            raise PackageUnavailable(f"package {digest} is larger than a package can be")
                        content.update(chunk)
                        file.write(chunk)
                        backoff.reset()
                    break
                except NotFound as error:
                    raise PackageUnavailable(f"the server has no package {digest}") from error
                except SisError as error:
                    log.warning("fetching package %s goes on at byte %d: %s", digest, size, error)
                    await asyncio.sleep(backoff.next_delay())
        if content.hexdigest() != digest:
            raise PackageUnavailable(f"what arrived as package {digest} has the digest {content.hexdigest()}")

    async def _trim(self, fresh: str = "") -> None:
        """Remove what is neither held nor fresh, used least recently first, until the rest is within the limits."""
        async with self._trimming:
            try:
                await asyncio.to_thread(self._measure)
                for path in self._make_way({fresh, *self._held}):
                    await asyncio.to_thread(remove_tree, path)
            except OSError as error:
                log.warning("packages could not be removed: %s", error)

    def _measure(self) -> None:
        for path in self._root.iterdir():
            if is_digest(path.name) and path.name not in self._sizes:
                self._sizes[path.name] = sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())

    def _make_way(self, kept: Collection[str]) -> list[Path]:
        """Move away what has to go; returns where it is to be removed. A package is complete or not there, and nobody
        can begin to hold one meanwhile, for nothing is awaited here."""
        found = [path for path in self._root.iterdir() if path.name in self._sizes]
        found.sort(key=lambda path: path.stat().st_mtime)
        count, size = len(found), sum(self._sizes.values())
        leaving: list[Path] = []
        for path in found:
            if count <= KEPT and size <= self._max_bytes:
                break
            if path.name not in kept:
                log.info("package %s makes room", path.name)
                leaving.append(path.rename(path.with_name(f"{path.name}.leaving-{time.monotonic_ns()}")))
                count -= 1
                size -= self._sizes.pop(path.name)
        self._too_large = count > KEPT or size > self._max_bytes
        return leaving
