"""Looks for secrets where none may be: in a database, in files, in the memory of processes, in what was recorded."""

from __future__ import annotations

import base64
import json
import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psycopg
from ahocorasick_rs import BytesAhoCorasick, Implementation
from psycopg import sql

from services.sis_agent.agent.secrecy.secret_forms import forms

_CHUNK_BYTES = 16 << 20


class LeakSearch:
    """Searches for every form of some secrets: those that the masker knows, and those that are made here anew, so that
    a form which the masker forgot is looked for all the same."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        """`secrets` by a name for the messages of a failure."""
        names: dict[bytes, str] = {}
        for name, secret in secrets.items():
            for form in forms(secret) | _own_forms(secret):
                names.setdefault(form, name)
        self._patterns = list(names)
        self._names = list(names.values())
        self._longest = max(map(len, self._patterns))
        self._automaton = BytesAhoCorasick(self._patterns, implementation=Implementation.ContiguousNFA)

    def find(self, data: bytes, where: str = "") -> set[str]:
        """Which secrets are in the data: "name as form, where"; see `named`."""
        return {
            f"{self._names[number]} as {self._patterns[number]!r}{f', {where}' if where else ''}"
            for number, _, _ in self._automaton.find_matches_as_indexes(data)
        }

    @staticmethod
    def named(found: Iterable[str]) -> set[str]:
        """The names alone of what was found."""
        return {each.partition(" as ")[0] for each in found}

    def files(self, *directories: Path, excluding: Iterable[Path] = ()) -> set[str]:
        """In every file, with its name and path, below the directories."""
        left_out = set(excluding)
        found: set[str] = set()
        for root in directories:
            for folder, folders, names in os.walk(root):
                folders[:] = [each for each in folders if Path(folder, each) not in left_out]
                for name in names:
                    path = Path(folder, name)
                    found |= self.find(os.fsencode(path), f"the path {path}")
                    found |= self._file(path)
        return found

    def _file(self, path: Path) -> set[str]:
        found: set[str] = set()
        try:
            with path.open("rb") as file:
                if not path.is_file():
                    return found
                tail = b""
                while data := file.read(_CHUNK_BYTES):
                    found |= self.find(tail + data, str(path))
                    tail = data[-self._longest :]
        except OSError:  # it went away, or is a socket
            pass
        return found

    def database(self, connection: psycopg.Connection[tuple[Any, ...]]) -> set[str]:
        """In every row of every table, as PostgreSQL sends it in binary."""
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        assert tables
        found: set[str] = set()
        for schema, table in tables:
            statement = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(sql.Identifier(str(schema), str(table)))
            with connection.cursor().copy(statement) as rows:
                data = b"".join(bytes(row) for row in rows)
            found |= self.find(data, f"table {schema}.{table}")
        return found

    def memory(self, pid: int) -> set[str]:
        """In everything that a process can read of its own memory."""
        found: set[str] = set()
        total = 0
        with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            for line in maps.read().splitlines():
                span, permissions, *rest = line.split()
                if not permissions.startswith("r") or rest[-1:] in (["[vvar]"], ["[vsyscall]"]):
                    continue
                start, end = (int(each, 16) for each in span.split("-"))
                tail = b""
                while start < end:
                    try:
                        memory.seek(start)
                        data = memory.read(min(_CHUNK_BYTES, end - start))
                    except OSError:
                        break
                    if not data:
                        break
                    total += len(data)
                    found |= self.find(tail + data, f"memory of PID {pid}")
                    tail = data[-self._longest :]
                    start += len(data)
        assert total > 1 << 20, f"the memory of PID {pid} could not be read"
        return found


def _own_forms(secret: bytes) -> set[bytes]:
    text = secret.decode()
    wide = text.encode("utf-16-le")
    found = {secret, wide, secret.hex().encode(), secret.hex().upper().encode(), quote(text, safe="").encode()}
    found |= {quote_plus(text).encode(), json.dumps(text)[1:-1].encode(), shlex.quote(text).strip("'").encode()}
    for raw in (secret, wide):
        for shift in range(3):
            # What comes before and after the secret spoils the characters at the ends.
            encoded = base64.b64encode(b"\0" * shift + raw)
            inner = encoded[-(-shift * 8 // 6) : (shift + len(raw)) * 8 // 6]
            found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found
