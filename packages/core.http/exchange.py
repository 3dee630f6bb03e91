"""One request and its answer, over as many redirects as it takes."""

from __future__ import annotations

import codecs
import http.client
import re
import socket
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, quote, urljoin, urlsplit

MAX_REDIRECTS = 10
MAX_URL_CHARACTERS = 8_000
REDIRECTS = (301, 302, 303, 307, 308)
# What a server that another one redirects to may be told. Anything else could be a secret of the first one.
HARMLESS_HEADERS = ("accept", "accept-language", "content-type", "user-agent")
# Python takes a time for these that grows with the square of the length; no body is written in them.
SLOW_CHARSETS = ("idna", "punycode")

Header = tuple[str, bytes]
Tell = Callable[[int, str], None]


class NoAnswer(Exception):
    """There is nothing to check; the message says why."""


@dataclass(frozen=True)
class Request:
    """What is asked, and how."""

    method: str
    url: str
    headers: list[Header]
    """The credential among them."""
    body: bytes | None
    follow_redirects: bool
    context: ssl.SSLContext
    connect_seconds: float
    max_bytes: int


@dataclass(frozen=True)
class Answer:
    """What came back, as far as it was read."""

    status: int
    reason: str
    content_type: str
    charset: str
    body: bytes
    whole: bool
    url: str

    @property
    def text(self) -> str:
        try:
            if codecs.lookup(self.charset).name not in SLOW_CHARSETS:
                return self.body.decode(self.charset, "replace")
        except (LookupError, ValueError):  # no character set that Python knows
            pass
        return self.body.decode("utf-8", "replace")


@dataclass(frozen=True)
class Redirect:
    """An answer that is elsewhere."""

    status: int
    target: str


def checked(url: str) -> SplitResult:
    """The parts of a URL that can be asked for. Raises NoAnswer."""
    if len(url) > MAX_URL_CHARACTERS or not re.fullmatch("[!-~]+", url):
        raise NoAnswer(f"{url[:200]!r} is too long, or has blanks or characters beyond ASCII: encode them as %XX")
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError as error:
        raise NoAnswer(f"{url!r} is not a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise NoAnswer(f"{url!r} is not a URL of http or https")
    if parts.username is not None:
        raise NoAnswer(f"a URL of {parts.hostname} holds a user name: name a credential as auth instead")
    return parts


def ask(request: Request, tell: Tell) -> Answer:
    """The answer, after redirects if those are to be followed. Raises NoAnswer."""
    for number in range(MAX_REDIRECTS + 1):
        parts = checked(request.url)
        tell(5 * number, f"asking {parts.netloc}")
        try:
            found = exchange(request, parts, tell)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise NoAnswer(f"{parts.netloc}: {cause(error)}") from None
        if isinstance(found, Answer):
            return found
        print(f"{found.status} from {request.url}: redirected to {found.target}", file=sys.stderr, flush=True)
        request = redirected(request, parts, found)
    raise NoAnswer(f"more than {MAX_REDIRECTS} redirects, the last one to {request.url}")


def redirected(request: Request, source: SplitResult, redirect: Redirect) -> Request:
    """What is asked after a redirect. Raises NoAnswer."""
    target = checked(redirect.target)
    if source.scheme == "https" and target.scheme == "http":
        raise NoAnswer(f"{source.netloc} redirects from https to http, which is not followed")
    method, body, headers = request.method, request.body, request.headers
    if (redirect.status == 303 and method != "HEAD") or (redirect.status in (301, 302) and method == "POST"):
        method, body = "GET", None
        headers = [(name, value) for name, value in headers if name.lower() != "content-type"]
    if source[:2] != target[:2]:
        # For good: who was trusted with nothing must not choose what is asked with the credential.
        headers = [(name, value) for name, value in headers if name.lower() in HARMLESS_HEADERS]
    return replace(request, method=method, url=redirect.target, body=body, headers=headers)


def exchange(request: Request, parts: SplitResult, tell: Tell) -> Answer | Redirect:
    """Asks one server. A redirect that is not to be followed is an answer."""
    host, seconds = parts.hostname or "", request.connect_seconds
    # Without one http.client looks for it in the host, and finds the end of an IPv6 address.
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection = (
        http.client.HTTPSConnection(host, port, timeout=seconds, context=request.context)
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=seconds)
    )
    try:
        connection.connect()
        connection.sock.settimeout(None)  # the time of the whole is bounded by the caller
        send(connection, request, parts)
        tell(60, f"waiting for the answer of {parts.netloc}")
        response = connection.getresponse()
        location = response.getheader("Location")
        if request.follow_redirects and response.status in REDIRECTS and location:
            return Redirect(response.status, joined(request.url, location))
        tell(80, f"reading the answer of {parts.netloc}")
        return read(response, request)
    finally:
        connection.close()


def send(connection: http.client.HTTPConnection, request: Request, parts: SplitResult) -> None:
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    names = {name.lower() for name, _ in request.headers}
    connection.putrequest(request.method, target, "host" in names, "accept-encoding" in names)
    for name, value in (("Connection", b"close"), ("User-Agent", b"SIS core.http"), ("Accept", b"*/*")):
        if name.lower() not in names:
            connection.putheader(name, value)
    for name, value in request.headers:
        connection.putheader(name, value)
    if request.body is not None or request.method in ("POST", "PUT", "PATCH"):
        connection.putheader("Content-Length", str(len(request.body or b"")))
    connection.endheaders(request.body)


def joined(url: str, location: str) -> str:
    """Where a redirect leads."""
    # Python gives bytes beyond ASCII as Latin-1; what is encoded already stays so.
    return urljoin(url, quote(location.encode("latin-1"), safe="!#$%&'()*+,/:;=?@[]~")).partition("#")[0]


def read(response: http.client.HTTPResponse, request: Request) -> Answer:
    """The answer, of whose body no more is read than it may have. Raises OSError and HTTPException."""
    body = bytearray()
    while len(body) <= request.max_bytes:
        part = response.read(min(1 << 16, request.max_bytes + 1 - len(body)))
        if not part:
            break
        body += part
    whole = len(body) <= request.max_bytes
    # Python does not mind what is missing when it reads in parts.
    if whole and response.length:
        raise http.client.IncompleteRead(bytes(body), response.length)
    return Answer(
        status=response.status,
        reason=printable(response.reason),
        content_type=printable(response.getheader("Content-Type") or ""),
        charset=response.headers.get_content_charset() or "utf-8",
        body=bytes(body[: request.max_bytes]),
        whole=whole,
        url=request.url,
    )


def printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)[:1_000]


def cause(error: Exception) -> str:
    """What went wrong with a connection, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"the name is not known: {error.strerror}"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it closed the connection without an answer"
    if isinstance(error, http.client.IncompleteRead):
        return "it closed the connection before the end of the body"
    if isinstance(error, http.client.HTTPException):
        return f"what it answers is not HTTP: {printable(repr(error))[:200]}"
    if isinstance(error, OSError):
        return f"no connection: {error.strerror or error}"
    return f"it redirects to what is no URL: {error}"
