"""The web console's files, as they are served: read once, compressed once, under names that change when they do.

Whatever a page loads is below /console/DIGEST/, where DIGEST is of all files together: a browser keeps it for ever, and
a new version is another address. Every address of a page is answered with the same document, whose script does the
rest.
"""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway import ranges
from gateway.errors import RouteNotFound
from gateway.exchange import Exchange
from gateway.ranges import Conditions, File

DIRECTORY: Final = Path(__file__).parent / "console"
PAGES: Final = ("/", "/jobs", "/jobs/{rest:path}", "/credentials", "/credentials/{rest:path}", "/packages",
                "/packages/{rest:path}", "/agents", "/agents/{rest:path}")  # fmt: skip
FILES: Final = "/console/{rest:path}"

# No script but the files' own, no text that becomes markup, no connection to anybody else.
POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
_IMPORT: Final = re.compile(r'^import [^;]*?from "(\.[^"]+)";', re.MULTILINE)
_KEPT: Final = b"public, max-age=31536000, immutable"
_ASKED: Final = b"no-cache"


@dataclass(frozen=True, slots=True)
class _File:
    content_type: str
    body: bytes
    compressed: bytes
    tag: str
    """Quoted."""


class Site:
    """Answers requests for pages and for what they load."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        sources = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.suffix in _TYPES
        }
        digest = hashlib.sha256()
        for name, body in sources.items():
            digest.update(b"%b\0%d\0%b" % (name.encode(), len(body), body))
        self._digest = digest.hexdigest()[:16]
        page = _page(sources.pop("index.html").decode(), f"/console/{self._digest}", _needed(sources))
        self._page = _file("index.html", page.encode())
        self._files = {name: _file(name, body) for name, body in sources.items()}

    async def page(self, exchange: Exchange) -> None:
        """Answer with the document."""
        await self._answer(exchange, self._page, _ASKED)

    async def file(self, exchange: Exchange) -> None:
        """Answer with a file. Raises RouteNotFound."""
        digest, _, name = exchange.path.removeprefix("/console/").partition("/")
        file = self._files.get(name)
        if file is None:
            raise RouteNotFound
        # While replicas of two versions serve, one is asked for the other's files. Its own will mostly do.
        await self._answer(exchange, file, _KEPT if digest == self._digest else _ASKED)

    @staticmethod
    async def _answer(exchange: Exchange, file: _File, cache: bytes) -> None:
        headers = [
            (b"cache-control", cache),
            # Weak, since the compressed bytes have the same.
            (b"etag", f"W/{file.tag}".encode()),
            (b"vary", b"accept-encoding"),
        ]
        if file.content_type == _TYPES[".html"]:
            headers.append((b"content-security-policy", POLICY))
        known = Conditions(if_none_match=exchange.text(b"if-none-match"))
        if ranges.part(known, File(len(file.body), file.tag)).status == 304:
            await exchange.begin(304, headers)
            await exchange.finish()
            return
        body = file.body
        if exchange.takes_gzip:
            headers.append((b"content-encoding", b"gzip"))
            body = file.compressed
        headers += [(b"content-type", file.content_type.encode()), (b"content-length", b"%d" % len(body))]
        await exchange.begin(200, headers)
        await exchange.finish(body)


def _file(name: str, body: bytes) -> _File:
    tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return _File(_TYPES[Path(name).suffix], body, gzip.compress(body, 9, mtime=0), tag)


def _needed(sources: Mapping[str, bytes], first: str = "main.js") -> list[str]:
    """The modules without which the first one does not run. What it imports later by itself is not among them."""
    found = [first]
    for name in found:
        for path in _IMPORT.findall(sources[name].decode()):
            module = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
            if module not in found:
                found.append(module)
    return sorted(found)


def _page(text: str, base: str, modules: Iterable[str]) -> str:
    """The document, with the address of its files; modules are announced, so that a browser need not find one in the
    other."""
    announced = "\n".join(f'    <link rel="modulepreload" href="{base}/{name}">' for name in modules)
    return re.sub("{{(base|modules)}}", lambda match: {"base": base, "modules": announced}[match[1]], text)
