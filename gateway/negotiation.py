"""Which media type a request takes, and which one it brings (RFC 9110, sections 8.3 and 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gateway.errors import NotAcceptable, UnsupportedMediaType

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
BYTES = "application/octet-stream"

_MAX_RANGES = 50
_QUALITY = re.compile(r"q=([01](?:\.[0-9]{0,3})?)", re.IGNORECASE)


def accepted(accept: bytes | None, offered: Sequence[str]) -> str:
    """The one of `offered` that Accept prefers, of equals the first.

    Raises:
        NotAcceptable: it takes none of them.
    """
    if accept is None or accept in (b"*/*", b""):
        return offered[0]
    ranges = [_range(each) for each in accept.decode("latin-1").lower().split(",")[:_MAX_RANGES]]
    best, chosen = 0.0, ""
    for media_type in offered:
        quality = _quality(media_type, ranges)
        if quality > best:
            best, chosen = quality, media_type
    if not chosen:
        raise NotAcceptable(offered)
    return chosen


def _range(text: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in text.split(";"))
    found = [match for each in parameters if (match := _QUALITY.fullmatch(each))]
    return name, float(found[0][1]) if found else 1.0


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """By the most specific range that matches."""
    for name in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        found = [quality for each, quality in ranges if each == name]
        if found:
            return max(found)
    return 0.0


def check_content_type(content_type: bytes | None, taken: Sequence[str]) -> None:
    """Raises UnsupportedMediaType unless a body is of one of the types, in UTF-8 if it is said."""
    name, *parameters = (part.strip() for part in (content_type or b"").decode("latin-1").lower().split(";"))
    for each in parameters:
        key, _, value = each.partition("=")
        if key == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            raise UnsupportedMediaType([f"{type_}; charset=utf-8" for type_ in taken])
    if name not in taken:
        raise UnsupportedMediaType(taken)
