"""The gateway as an ASGI application: the API, sessions, and the pages that need no token."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway import openapi, reference
from gateway.api import Api
from gateway.errors import MethodNotAllowed
from gateway.exchange import Exchange, Receive, Scope, Send
from gateway.front import EXCHANGE, Front
from gateway.negotiation import JSON
from gateway.printing import document
from gateway.sessions import Sessions
from gateway.sign_in import SignIn
from gateway.site import FILES, PAGES, Site
from gateway.streams import Streams
from gateway.upstreams import Upstreams

_PAGE_POLICY = b"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_STYLE = Path(__file__).parent / "static" / "reference.css"

_log = logging.getLogger("gateway")


class Gateway:
    """`app` is what to serve. It keeps nothing that its successor needs."""

    def __init__(
        self, upstreams: Upstreams, *, tls: bool, behind_proxy: bool, session_keys: Sequence[bytes] = ()
    ) -> None:
        self._upstreams = upstreams
        self._streams = Streams(upstreams)
        self._draining = False
        style = _STYLE.read_bytes()

        sessions = Sessions(session_keys, secure=tls or behind_proxy)
        signing_in = SignIn(sessions, upstreams)
        site = Site()

        async def alive(exchange: Exchange) -> None:
            await exchange.answer(200, JSON, document({"status": "alive"}))

        async def contract(exchange: Exchange) -> None:
            await exchange.answer(200, JSON, openapi.document())

        async def page(exchange: Exchange) -> None:
            policy = (b"content-security-policy", _PAGE_POLICY)
            await exchange.answer(200, "text/html; charset=utf-8", reference.page(), [policy])

        async def stylesheet(exchange: Exchange) -> None:
            await exchange.answer(200, "text/css; charset=utf-8", style)

        pages = {
            "/healthz": alive,
            "/readyz": self._ready,
            "/openapi.json": contract,
            "/reference": page,
            "/static/reference.css": stylesheet,
            FILES: site.file,
            **dict.fromkeys(PAGES, site.page),
        }
        session = {"GET": signing_in.show, "POST": signing_in.open, "DELETE": signing_in.close}
        self.app = Starlette(
            routes=[
                *(Route(path, _Endpoint({"GET": answer}), methods=["GET"]) for path, answer in pages.items()),
                Route("/session", _Endpoint(session), methods=list(session)),
            ],
            middleware=[Middleware(Front, tls=tls, behind_proxy=behind_proxy)],
            exception_handlers={HTTPException: _refuse},
        )
        self.app.router.redirect_slashes = False
        # Whatever is none of these; the API finds its methods by the path as it was sent, which no route has.
        api = Api(upstreams, self._streams, sessions)

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            await api.serve(scope[EXCHANGE])

        self.app.router.default = call

    async def _ready(self, exchange: Exchange) -> None:
        health = await self._upstreams.health()
        ready = not self._draining and all(each == "SERVING" for each in health.values())
        status = "draining" if self._draining else "ready" if ready else "not ready"
        await exchange.answer(200 if ready else 503, JSON, document({"status": status, "upstreams": dict(health)}))

    def drain(self) -> None:
        """Be not ready from now on, and end the streams: their clients go on elsewhere."""
        _log.info("gateway drains")
        self._draining = True
        self._streams.drain()


class _Endpoint:
    """Answers requests by their exchange, each HTTP method with a function of its own."""

    def __init__(self, answers: Mapping[str, Callable[[Exchange], Awaitable[None]]]) -> None:
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[EXCHANGE]
        await self._answers["GET" if exchange.verb == "HEAD" else exchange.verb](exchange)


async def _refuse(_: Request, error: Exception) -> Response:
    """Has the front answer what the router refuses: a method that a page does not have."""
    assert isinstance(error, HTTPException)
    raise MethodNotAllowed(sorted((error.headers or {})["Allow"].split(", "))) from None
