"""Being logged in to Vault: blocking calls in threads of their own, with a token that is kept good."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from services.credentials.vault_errors import VaultError, VaultFailed, VaultForbidden, VaultSlow
from services.runtime.backoff import Backoff

T = TypeVar("T")

CALLS: Final = 8
"""How many calls are under way at once, those included that nobody waits for any more."""
_WAITING: Final = 1_000
# A token that is younger and alive has the rights that its role has now: logging in again would not help. One that was
# due for renewal may have expired, whatever its age, and tells nothing about the policy.
_FRESH_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 60.0

_log = logging.getLogger("vault")


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    since: float
    """When it was got, or renewed, by the monotonic clock."""
    seconds: float
    """For which it is good from then on; 0: for ever."""
    full_seconds: float
    """The same, when it was new."""
    renewable: bool

    @classmethod
    def of(cls, answer: Mapping[str, Any], before: _Token | None = None) -> _Token:
        """What a login, or the renewal of `before`, has given."""
        auth = answer["auth"]
        seconds = float(auth["lease_duration"])
        return cls(
            value=before.value if before else auth["client_token"],
            since=time.monotonic(),
            seconds=seconds,
            full_seconds=before.full_seconds if before else seconds,
            renewable=bool(auth["renewable"]),
        )

    @property
    def renew_at(self) -> float:
        return self.since + self.seconds * 2 / 3 if self.seconds else float("inf")


class Session:
    """Makes calls, each with `seconds` in all, logging in included.

    `connect` makes an hvac client, one for each thread; `log_in` answers with what Vault says to a login; both run in
    those threads. It logs in when it has to; `run` renews the token.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        log_in: Callable[[Any], Mapping[str, Any]],
        address: str,
        seconds: float,
    ) -> None:
        self._connect = connect
        self._log_in = log_in
        self._address = address
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(CALLS, thread_name_prefix="vault")
        self._slots = asyncio.Semaphore(CALLS)
        self._calls = 0
        self._thread = threading.local()
        self._clients: list[Any] = []
        self._token: _Token | None = None
        self._login: asyncio.Task[_Token] | None = None
        self._refused = ("", -float("inf"))
        """The last fresh token of which Vault would not even tell its holder, and when."""

    async def call(self, call: Callable[[Any], T]) -> T:
        """What `call` returns for a client that is logged in. Raises VaultError, and what `call` raises."""
        if self._calls >= _WAITING:
            raise VaultSlow(self._address, self._seconds)
        self._calls += 1
        try:
            async with self._deadline():
                token = self._token or await self._logged_in()
                try:
                    return await self._in_thread(call, token.value)
                except VaultForbidden:
                    # Revoked, expired, or older than what its role may do now: one more try, with another one.
                    if (another := await self._another(token)) is None:
                        raise
                return await self._in_thread(call, another.value)
        finally:
            self._calls -= 1

    async def run(self) -> None:
        """Keep the token good until cancelled: renew it when two thirds of its time are over, and log in again when
        that is not possible."""
        backoff = Backoff(1.0, 30.0)
        while True:
            try:
                async with self._deadline():
                    token = self._token or await self._logged_in()
                    if time.monotonic() >= token.renew_at:
                        token = await self._renewed(token)
            except VaultError as error:
                _log.warning("Vault gives no token, or does not renew it", extra={"problem": error.message})
                await asyncio.sleep(backoff.next_delay())
            else:
                backoff.reset()
                # Another token may take this one's place meanwhile; it is not due any sooner.
                await asyncio.sleep(max(0.0, min(token.renew_at - time.monotonic(), _LOOK_SECONDS)))

    async def close(self) -> None:
        """Wait for the calls that are under way. Nothing can be called after it."""
        if self._login is not None:
            self._login.cancel()
            await asyncio.gather(self._login, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        for client in self._clients:
            client.adapter.close()

    @contextlib.asynccontextmanager
    async def _deadline(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._seconds):
                yield
        except TimeoutError:
            raise VaultSlow(self._address, self._seconds) from None

    async def _another(self, token: _Token) -> _Token | None:
        """A token that may do more than this one, which was refused something; None: there is none."""
        if self._token is not None and self._token.value != token.value:
            return self._token
        now = time.monotonic()
        if now < min(token.since + _FRESH_SECONDS, token.renew_at):
            refused, at = self._refused
            if refused != token.value and now - at < _FRESH_SECONDS:
                return None  # one after the other is refused, so it is the policy: nobody revokes so fast
            try:
                await self._in_thread(lambda client: client.auth.token.lookup_self(), token.value)
            except VaultForbidden:
                self._refused = token.value, time.monotonic()
            else:
                return None
        return await self._logged_in()

    async def _renewed(self, token: _Token) -> _Token:
        if token.renewable:
            # Vault refuses it in several ways; where it cannot be asked, the login tells.
            with contextlib.suppress(VaultError):
                renewed = await self._in_thread(
                    lambda client: _Token.of(client.auth.token.renew_self(), token), token.value
                )
                # A token that gets less each time nears the end of what it may have.
                if renewed.seconds > renewed.full_seconds / 2:
                    self._token = renewed
                    return renewed
        return await self._logged_in()

    async def _logged_in(self) -> _Token:
        """A new token. However many wait for one, there is one login."""
        if self._login is None:
            self._login = asyncio.create_task(self._make_login(), name="vault login")
            self._login.add_done_callback(self._login_over)
        return await asyncio.shield(self._login)

    async def _make_login(self) -> _Token:
        async with self._deadline():
            self._token = await self._in_thread(lambda client: _Token.of(self._log_in(client)), "")
        _log.info("logged in to Vault", extra={"seconds": self._token.seconds})
        return self._token

    def _login_over(self, login: asyncio.Task[_Token]) -> None:
        self._login = None
        if not login.cancelled():
            login.exception()  # it may be that nobody waits for it any more

    async def _in_thread(self, call: Callable[[Any], T], token: str) -> T:
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        try:
            future = self._threads.submit(self._run_call, call, token)
        except BaseException:
            self._slots.release()
            raise
        # The slot is taken until the thread is free, whoever waits: a Vault that hangs gets no more than these calls.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._slots.release))
        return await asyncio.wrap_future(future)

    def _run_call(self, call: Callable[[Any], T], token: str) -> T:
        client = getattr(self._thread, "client", None)
        if client is None:
            client = self._thread.client = self._connect()
            self._clients.append(client)
        client.token = token
        try:
            return call(client)
        except (AttributeError, KeyError, TypeError, ValueError):
            pass
        raise VaultFailed("Vault's answer is not understood: is the mount of the right kind?")
