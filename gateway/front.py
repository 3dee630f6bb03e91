"""What happens around every request: its id, its limits, its headers, its errors, its line in the log."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Final

from gateway.errors import Headers, Refused, failure, fault
from gateway.exchange import Buffers, Exchange, Gone, Receive, Scope, Send
from gateway.negotiation import JSON
from services.runtime import metrics, tracing
from services.runtime.errors import ResourceExhausted, SisError
from services.runtime.tracing import Attribute, Attributes
from sis.trace_context import TraceContext

REQUEST_LIMIT = 1_500
"""How many requests may be in flight in a process; most of them streams that are idle."""

STRICT_HEADERS: Headers = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_HSTS = (b"strict-transport-security", b"max-age=31536000")

EXCHANGE: Final = "sis.exchange"
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_QUIET: Final = frozenset({"/healthz", "/readyz"})

_VERBS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_OTHER: Final = "other"
"""The route of what is no method: pages, files, and what is not there."""

_log = logging.getLogger("http")


class Front:
    """Middleware around `app`, which finds the exchange in the scope, under EXCHANGE. With `tls`, browsers are told to
    come back by TLS alone; with `behind_proxy`, the right-most address of X-Forwarded-For is the caller's."""

    def __init__(self, app: Application, *, tls: bool, behind_proxy: bool) -> None:
        self._app = app
        self._headers = (*STRICT_HEADERS, _HSTS) if tls else STRICT_HEADERS
        self._behind_proxy = behind_proxy
        self._buffers = Buffers()
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(
            scope,
            receive,
            send,
            request_id=_request_id(scope),
            origin=_origin(scope, self._behind_proxy),
            headers=self._headers,
            buffers=self._buffers,
        )
        began = time.monotonic()
        self._in_flight += 1
        about: dict[Attribute, str | int] = {
            Attribute.HTTP_METHOD: exchange.verb if exchange.verb in _VERBS else "_OTHER"
        }
        with tracing.served(str(about[Attribute.HTTP_METHOD]), _trace_context(exchange), about) as said:
            try:
                await self._answer(exchange, scope, receive, send)
            finally:
                self._in_flight -= 1
                _report(exchange, began)
                said |= _said(exchange)
                metrics.HTTP.record(time.monotonic() - began, {**about, **said})

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._in_flight > REQUEST_LIMIT:
                raise ResourceExhausted(
                    f"this gateway has {REQUEST_LIMIT:,} requests in flight, which is its limit; try again",
                    retry_after=1.0,
                )
            scope[EXCHANGE] = exchange
            await self._app(scope, receive, send)
        except Gone:
            exchange.gone = True
        except Exception as error:
            await _refuse(exchange, error)


async def _refuse(exchange: Exchange, error: Exception) -> None:
    known = isinstance(error, SisError | Refused)
    if exchange.gone:
        return
    if exchange.status:
        # Too late to say so; the server closes the connection, so that the client sees that something is missing.
        if not known:
            fault(error, exchange.method or exchange.path[:200], exchange.request_id)
        return
    if not isinstance(error, SisError | Refused):
        error = fault(error, exchange.method or exchange.path[:200], exchange.request_id)
    found = failure(error, exchange.input_type)
    await exchange.answer(found.http, JSON, found.document, found.headers)


def _said(exchange: Exchange) -> Attributes:
    """How a request was answered: its route stands for its path, which may hold anything."""
    status = _status(exchange)
    failed = {Attribute.ERROR_TYPE: str(status)} if status >= 500 or status == 0 else {}
    return {Attribute.HTTP_ROUTE: exchange.route or _OTHER, Attribute.HTTP_STATUS: status, **failed}


def _status(exchange: Exchange) -> int:
    """What was answered; 499 where the client went away before it had all of it."""
    return 499 if exchange.gone and not exchange.finished else exchange.status


def _trace_context(exchange: Exchange) -> TraceContext | None:
    """The trace that the client is in; None where it says nothing of one, or nothing that can be true."""
    return TraceContext.parse(exchange.text(tracing.HEADER.encode()))


def _report(exchange: Exchange, began: float) -> None:
    _log.log(
        logging.DEBUG if exchange.path in _QUIET else logging.INFO,
        "request",
        extra={
            "verb": exchange.verb[:20],
            "method": exchange.method or exchange.path[:200],
            "status": _status(exchange),
            "milliseconds": round((time.monotonic() - began) * 1000, 1),
            "origin": exchange.origin,
            "request_id": exchange.request_id,
        },
    )


def _request_id(scope: Scope) -> str:
    """The client's where it is fit for a log, else a random one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            found: str = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(found):
                return found
    return secrets.token_hex(8)


def _origin(scope: Scope, behind_proxy: bool) -> str:
    """The caller's address; "" if it has none."""
    found: str = scope["client"][0] if scope.get("client") else ""
    if behind_proxy:
        forwarded = [value for name, value in scope["headers"] if name == b"x-forwarded-for"]
        if forwarded:
            # Proxies append, and only the last one is known.
            return _address(forwarded[-1].decode("latin-1").rpartition(",")[2].strip()) or found
    return found


def _address(text: str) -> str:
    """Without port and scope; "" if it is none."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::[0-9]+)?", text)
    bare = bracketed[1] if bracketed else text.partition(":")[0] if text.count(":") == 1 else text
    try:
        return str(ip_address(bare.partition("%")[0]))
    except ValueError:
        return ""
