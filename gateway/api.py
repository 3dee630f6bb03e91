"""The methods of the contracts at their paths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.byte_streams import Download, Upload
from gateway.errors import MethodNotAllowed, RouteNotFound
from gateway.exchange import Exchange
from gateway.negotiation import EVENTS, JSON, LINES, accepted, check_content_type
from gateway.printing import document, printed
from gateway.routes import Binding, bindings
from gateway.sessions import Sessions
from gateway.streams import Streams
from gateway.transcoding import Transcoder
from gateway.upstreams import Upstreams

JSON_BYTES = 8 * 1024 * 1024


class Endpoint(Protocol):
    """Answers the requests of one binding, whose proof has been taken; `segments` are the path's fields as they stand
    there."""

    async def __call__(self, exchange: Exchange, segments: Sequence[str]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Route:
    binding: Binding
    endpoint: Endpoint


class Api:
    """Finds the method by the path as it was sent: an escaped "/" or ":" is part of a field."""

    def __init__(self, upstreams: Upstreams, streams: Streams, sessions: Sessions) -> None:
        self._sessions = sessions
        self._routes: dict[str, dict[str, _Route]] = {}
        for binding in bindings():
            route = _Route(binding, _endpoint(binding, upstreams, streams))
            self._routes.setdefault(binding.template, {})[binding.verb] = route
        variable = [
            (template, next(iter(found.values()))) for template, found in self._routes.items() if "{" in template
        ]
        # One group for each template, which is how the match tells them apart.
        self._templates = [template for template, _ in variable]
        self._pattern = re.compile(
            "|".join(f"(?P<t{n}>{route.binding.pattern().pattern})" for n, (_, route) in enumerate(variable))
        )

    async def serve(self, exchange: Exchange) -> None:
        """Answer a request, or raise why not: RouteNotFound, MethodNotAllowed, Unauthenticated, CrossOrigin, or what
        the method is refused for."""
        routes, segments = self._find(exchange.path)
        route = routes.get("GET" if exchange.verb == "HEAD" else exchange.verb)
        if route is None:
            raise MethodNotAllowed([*routes, "HEAD"] if "GET" in routes else list(routes))
        exchange.method, exchange.route = route.binding.full_name, route.binding.template
        exchange.input_type = route.binding.method.input_type
        exchange.take_proof(self._sessions.proof(exchange))
        await route.endpoint(exchange, segments)

    def _find(self, path: str) -> tuple[Mapping[str, _Route], Sequence[str]]:
        # Who writes a template as it stands means a field with that text.
        routes = self._routes.get(path) if "{" not in path else None
        if routes is not None:
            return routes, ()
        found = self._pattern.fullmatch(path)
        if found is None or found.lastgroup is None:
            raise RouteNotFound
        routes = self._routes[self._templates[int(found.lastgroup[1:])]]
        return routes, [each for each in found.groups()[found.re.groupindex[found.lastgroup] :] if each is not None]


class _Unary:
    """A method that answers once, with JSON."""

    def __init__(self, transcoder: Transcoder, upstreams: Upstreams) -> None:
        self._transcoder = transcoder
        self._upstreams = upstreams

    async def __call__(self, exchange: Exchange, segments: Sequence[str]) -> None:
        accepted(exchange.header(b"accept"), _JSON)
        request = self._transcoder.request(segments, exchange.query, await _json_body(exchange, self._transcoder))
        call = self._upstreams.unary(self._transcoder.binding, request, exchange.metadata)
        async with exchange.watched(call.cancel):
            response = await call.response()
        await exchange.answer(200, JSON, document(printed(response)))


class _Messages:
    """A method that answers with a stream of messages."""

    def __init__(self, transcoder: Transcoder, streams: Streams) -> None:
        self._transcoder = transcoder
        self._streams = streams

    async def __call__(self, exchange: Exchange, segments: Sequence[str]) -> None:
        media_type = accepted(exchange.header(b"accept"), _STREAMED)
        body = await _json_body(exchange, self._transcoder)
        await self._streams.answer(exchange, self._transcoder, segments, body, media_type)


_JSON = (JSON,)
_STREAMED = (EVENTS, LINES)


def _endpoint(binding: Binding, upstreams: Upstreams, streams: Streams) -> Endpoint:
    transcoder, found = Transcoder(binding), binding.byte_stream
    if binding.method.client_streaming:
        if found is None or binding.body or binding.method.server_streaming:
            raise TypeError(f"{binding.full_name}: a stream of requests can be offered as the upload of a file alone")
        return Upload(transcoder, found, upstreams)
    if not binding.method.server_streaming:
        return _Unary(transcoder, upstreams)
    return Download(transcoder, found, upstreams, streams) if found else _Messages(transcoder, streams)


async def _json_body(exchange: Exchange, transcoder: Transcoder) -> bytes:
    if not exchange.has_body:
        return b""
    if not transcoder.takes_body:
        exchange.refuse_body()
    check_content_type(exchange.header(b"content-type"), _JSON)
    return await exchange.body(JSON_BYTES)
