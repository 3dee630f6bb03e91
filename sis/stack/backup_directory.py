"""A backup of a stack: one private directory, whole or not there at all.

manifest.json     what it is, and of each other file its size and SHA-256; written last
postgresql.dump   the database, in pg_dump's custom format
vault.snapshot    OpenBao's storage, in the format of its raft snapshots
files/            of the data directory, as it is there: choices, tokens, the keys of OpenBao, the CA
"""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from sis.private_files import sync_directory, write_private
from sis.stack.errors import StackError
from sis.stack.layout import JOINING

MANIFEST: Final = "manifest.json"
DUMP: Final = "postgresql.dump"
SNAPSHOT: Final = "vault.snapshot"
FILES: Final = (
    "settings.json",
    "admin.token",
    "session.key",
    *(f"join/{service}" for service in JOINING),
    "tls/ca.pem",
    "tls/role-id",
    "tls/secret-id",
    "vault/unseal.key",
    "vault/keys.json",
    "vault/storage/id",
)
"""Of the data directory. The rest of it comes anew by itself, or is an agent's."""


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What a backup says of itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    version: str
    """Of the suite that made it."""
    postgresql: int
    """The major version of PostgreSQL that made the dump; an older one cannot read it."""
    begun_at: AwareDatetime
    """What was acknowledged before is in it."""
    files: dict[str, _File]


class BackupDirectory:
    """A backup at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def dump(self) -> Path:
        return self.path / DUMP

    @property
    def snapshot(self) -> Path:
        return self.path / SNAPSHOT

    def file(self, name: str) -> Path:
        """Where one of FILES is."""
        return self.path / "files" / name

    def seal(self, *, version: str, postgresql: int, begun_at: datetime) -> None:
        """Write the manifest, and see to it that all is on disk."""
        found = {name: _measured(self.path / name, durable=True) for name in self._names()}
        for directory in (self.path, *(path for path in self.path.rglob("*") if path.is_dir())):
            sync_directory(directory)
        manifest = Manifest(version=version, postgresql=postgresql, begun_at=begun_at, files=found)
        write_private(self.path / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")

    def check(self) -> Manifest:
        """The manifest, once every file has turned out to be what it says.

        Raises:
            StackError: it is no backup, of another format, or damaged; names the file.
        """
        try:
            manifest = Manifest.model_validate_json((self.path / MANIFEST).read_bytes())
        except FileNotFoundError:
            raise StackError(f"{self.path} is no backup: it has no {MANIFEST}, which is written last") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise StackError(f"{self.path / MANIFEST}: {where}: {first['msg']}; another version may read it") from None
        if missing := sorted(set(self._names()) - manifest.files.keys()):
            raise StackError(f"{self.path / MANIFEST}: does not name {', '.join(missing)}")
        for name in self._names():
            if not (path := self.path / name).is_file() or _measured(path) != manifest.files[name]:
                raise StackError(f"{path} is damaged: it is not what {MANIFEST} says; take another backup")
        return manifest

    def _names(self) -> list[str]:
        return [DUMP, SNAPSHOT, *(f"files/{name}" for name in FILES)]


def copy_private(source: Path, target: Path) -> None:
    """Copy a file, for good, so that nobody else can read it."""
    write_private(target, source.read_bytes())


def _measured(path: Path, *, durable: bool = False) -> _File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if durable:
            os.fsync(file.fileno())
        return _File(size=file.tell(), sha256=digest)
