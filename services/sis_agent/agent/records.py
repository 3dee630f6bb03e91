"""Records on disk that say themselves whether they are what was written: one JSON object a line, after its checksum.

<CRC-32 of the rest, eight lower-case hexadecimal digits> <the object>\\n
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping


def sealed(record: Mapping[str, object]) -> bytes:
    """The line of a record, its end included."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def unsealed(line: bytes) -> dict[str, object] | None:
    """The record of a line without its end; None where it is not one, or not what was written."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def checksum(values: Mapping[str, object]) -> str:
    """Of an object without its own, however it is written."""
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
