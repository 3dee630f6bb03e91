"""Sessions of browsers: a caller's token, sealed into a cookie that no script can read.

The gateway keeps none of them. Whoever has the key, which replicas share, can read the cookie's token; the service that
is called judges the token at every call, as it judges any. A session ends when it was not used for IDLE, at the latest
LONGEST after the sign-in, and when its cookie is removed by signing out.

A cookie comes with whatever a browser sends here, whoever had it do so. So a request that is proven by one must say
that it comes from a page of this gateway: by Sec-Fetch-Site, which no page can set, or by Origin where there is none.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from gateway.errors import CrossOrigin
from gateway.exchange import Exchange
from services.runtime.errors import InvalidArgument, Unauthenticated

IDLE: Final = timedelta(hours=1)
LONGEST: Final = timedelta(hours=12)
_RENEWED_AFTER: Final = timedelta(minutes=1)
# Of name and value together; browsers drop what is larger without a word.
_COOKIE_BYTES: Final = 4096
# Fernet itself passes over what is no base64, so that two headers, joined, would be one cookie.
_SEALED: Final = re.compile(rb"[A-Za-z0-9_-]+={0,2}")
_PORT: Final = re.compile(r".*:([0-9]{1,5})")
_SAFE: Final = frozenset({"GET", "HEAD"})


class Session(NamedTuple):
    """What a cookie says; times in seconds of the epoch."""

    token: str
    signed_in: int
    used: int

    def ends_at(self) -> datetime:
        """When it ends if nobody uses it."""
        seconds = min(self.used + IDLE.total_seconds(), self.signed_in + LONGEST.total_seconds())
        return datetime.fromtimestamp(seconds, UTC)


class Sessions:
    """Opens, finds and ends sessions. The first key seals, every one opens, so that keys can be changed; without any, a
    random one lasts as long as this process. With `secure`, browsers send the cookie over TLS alone. `clock` tells the
    seconds of the epoch; one that is set back by more than a minute ends the sessions that it knows nothing of yet."""

    def __init__(self, keys: Sequence[bytes] = (), *, secure: bool, clock: Callable[[], float] = time.time) -> None:
        self._keys = MultiFernet([Fernet(key) for key in keys or [Fernet.generate_key()]])
        self._secure = secure
        self._attributes = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")
        self._clock = clock

    def open(self, exchange: Exchange, token: str) -> Session:
        """Begin a session with a token that was found to be good: the answer will carry it.

        Raises:
            InvalidArgument: it is longer than a cookie can be.
        """
        now = int(self._clock())
        return self._give(exchange, Session(token, now, now))

    def find(self, exchange: Exchange) -> Session:
        """The session of a request. The answer to one that only reads renews it, where it has been a while.

        Raises:
            CrossOrigin: a page of somebody else may have made the request.
            Unauthenticated: there is none, or it has ended.
        """
        sealed = self._cookie(exchange)
        if not sealed:
            raise Unauthenticated("sign in, or send one header, `Authorization: Bearer <token>`")
        self.check_origin(exchange)
        session = self._opened(sealed)
        now = self._clock()
        # An upload is answered minutes later: its answer would bring a session back that has been ended meanwhile.
        if exchange.verb not in _SAFE or now - session.used < _RENEWED_AFTER.total_seconds():
            return session
        return self._give(exchange, session._replace(used=int(now)))

    def end(self, exchange: Exchange) -> None:
        """Have the browser forget its session."""
        exchange.set_cookie(f"{self._name(exchange)}={self._attributes}; Max-Age=0")

    def check_origin(self, exchange: Exchange) -> None:
        """Raises CrossOrigin unless a browser says that a page of this gateway makes the request. A page that was
        opened by hand may be read."""
        site, origin = exchange.text(b"sec-fetch-site"), exchange.text(b"origin")
        reads = exchange.verb in _SAFE
        if site:
            # It decides alone: Host, which Origin is compared with, is often not what the browser asked a proxy for.
            own = site == "same-origin" or (reads and site == "none")
        elif origin:
            own = origin == f"{'https' if self._secure else 'http'}://{exchange.text(b'host')}"
        else:
            # Older browsers say nothing of what reads; the cookie's SameSite holds for them too.
            own = reads
        if not own:
            raise CrossOrigin

    def proof(self, exchange: Exchange) -> bytes:
        """What proves who calls, as an Authorization header has it: that header, or else the session.

        Raises: as `find`.
        """
        shown = exchange.header(b"authorization")
        return b"Bearer " + self.find(exchange).token.encode() if shown is None else shown

    def _give(self, exchange: Exchange, session: Session) -> Session:
        content = json.dumps([session.token, session.signed_in]).encode()
        cookie = f"{self._name(exchange)}={self._keys.encrypt_at_time(content, session.used).decode()}"
        if len(cookie) > _COOKIE_BYTES:
            raise InvalidArgument.field(
                "token", "is too long for a session; send it in an Authorization header instead"
            )
        left = int(session.ends_at().timestamp() - self._clock())
        exchange.set_cookie(f"{cookie}{self._attributes}; Max-Age={left}")
        return session

    def _name(self, exchange: Exchange) -> str:
        """Of the cookie. Nobody but this origin can have set one that begins with `__Host-`, which takes TLS. Without,
        all ports of a host have their cookies in common, so that two stacks would sign each other out."""
        if self._secure:
            return "__Host-sis-session"
        port = _PORT.fullmatch(exchange.text(b"host"))
        return f"sis-session-{port[1]}" if port else "sis-session"

    def _cookie(self, exchange: Exchange) -> bytes:
        """What is sealed, b"" if there is none.

        Only a semicolon parts two cookies, and only a blank or a tab is around one. `http.cookies` takes more for that,
        so that what others may set for this host (`a=b __Host-…`) becomes two, and loses whatever follows a cookie that
        it cannot read.
        """
        name = self._name(exchange).encode()
        pairs = [each.strip(b" \t").partition(b"=") for each in (exchange.header(b"cookie") or b"").split(b";")]
        found = [value for key, _, value in pairs if key == name]
        if len(found) > 1:
            # One of them is not of this gateway, and nothing tells which.
            raise Unauthenticated(f"there are {len(found)} cookies {name.decode()}; remove them and sign in again")
        return found[0] if found else b""

    def _opened(self, sealed: bytes) -> Session:
        now = self._clock()
        try:
            if _SEALED.fullmatch(sealed) is None:
                raise InvalidToken
            content = self._keys.decrypt_at_time(sealed, int(IDLE.total_seconds()), int(now))
            token, signed_in = json.loads(content)
            session = Session(token, signed_in, self._keys.extract_timestamp(sealed))
        except (InvalidToken, ValueError):
            raise Unauthenticated("the session has ended; sign in again") from None
        if session.ends_at().timestamp() <= now:
            raise Unauthenticated("the session has ended; sign in again")
        return session
