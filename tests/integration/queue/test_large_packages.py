"""A package of nearly the largest size on its way into the library."""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

from services.queue import packages
from services.queue.model import Actor
from services.runtime.database import Database
from sis.packages import archive

MANIFEST = """\
name: large
version: 1.0.0
description: It has much in it.
publisher: SIS
platforms: [linux]
operations:
  run:
    description: Does nothing.
    command: ["true"]
"""
PIECE = 64 << 10


async def test_it_is_in_memory_once(database: Database, tmp_path: Path) -> None:
    (tmp_path / "package.yaml").write_text(MANIFEST)
    (tmp_path / "much").write_bytes(random.Random(1).randbytes(32 << 20))
    content = archive.pack(tmp_path)
    tracemalloc.start()
    try:
        upload = packages.Upload(archive.digest(content), len(content))
        for start in range(0, len(content), PIECE):
            upload.add(content[start : start + PIECE])
        package, known = await packages.push(database, upload, Actor("alice", "10.0.0.1"))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (package.size_bytes, known) == (len(content), False)
    assert most < 1.6 * len(content), f"{most / len(content):.1f} times its size"
