"""`/session`: signing in with a token, asking for how long it lasts, signing out."""

from __future__ import annotations

from typing import Any

from gateway import parsing
from gateway.exchange import Exchange
from gateway.negotiation import JSON, check_content_type
from gateway.printing import document
from gateway.routes import bindings
from gateway.sessions import Session, Sessions
from gateway.upstreams import Upstreams
from services.runtime.errors import InvalidArgument, Unauthenticated
from sis.queue.v1 import job_service_pb2

_BODY_BYTES = 16 * 1024


class SignIn:
    """Answers requests for `/session`."""

    def __init__(self, sessions: Sessions, upstreams: Upstreams) -> None:
        self._sessions = sessions
        self._upstreams = upstreams
        self._asked = next(each for each in bindings() if each.method.name == "ListJobs")

    async def show(self, exchange: Exchange) -> None:
        """GET: until when the session lasts. Raises Unauthenticated where there is none."""
        await self._tell(exchange, self._sessions.find(exchange))

    async def open(self, exchange: Exchange) -> None:
        """POST {"token": …}: a session, if a service knows the token.

        Raises:
            CrossOrigin, InvalidArgument
            Refused: Unauthenticated, of the service.
        """
        self._sessions.check_origin(exchange)
        check_content_type(exchange.header(b"content-type"), (JSON,))
        token = _token(parsing.read(await exchange.body(_BODY_BYTES)))
        try:
            exchange.take_proof(b"Bearer " + token.encode(errors="surrogatepass"))
        except Unauthenticated:
            raise InvalidArgument.field("token", "cannot be one; copy it whole, and nothing else") from None
        call = self._upstreams.unary(self._asked, job_service_pb2.ListJobsRequest(page_size=1), exchange.metadata)
        async with exchange.watched(call.cancel):
            await call.response()
        await self._tell(exchange, self._sessions.open(exchange, token))

    async def close(self, exchange: Exchange) -> None:
        """DELETE: sign out. Repeatable."""
        self._sessions.check_origin(exchange)
        self._sessions.end(exchange)
        await exchange.answer(200, JSON, document({}))

    async def _tell(self, exchange: Exchange, session: Session) -> None:
        until = session.ends_at().strftime("%Y-%m-%dT%H:%M:%SZ")
        await exchange.answer(200, JSON, document({"expireTime": until}))


def _token(body: dict[str, Any]) -> str:
    for name in body:
        if name != "token":
            raise InvalidArgument.field(parsing.shown(name), "is not known")
    token = body.get("token")
    if not isinstance(token, str) or not token.strip():
        raise InvalidArgument.field("token", "is required: the token that proves who you are")
    return token.strip()
