"""The life of a token, where a real Vault cannot be made to say it in time. The rest is shown with a real one, in
tests/integration/credentials/test_vault_login.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from services.credentials.vault_errors import VaultFailed
from services.credentials.vault_session import Session


async def test_a_token_whose_renewal_fails_is_replaced() -> None:
    # "past the max TTL, cannot renew" is no 403, but a 500.
    logins = 0
    second = asyncio.Event()
    loop = asyncio.get_running_loop()

    def renew() -> None:
        raise VaultFailed("Vault answered POST auth/token/renew-self with 500: past the max TTL, cannot renew")

    def log_in(_: object) -> dict[str, Any]:
        nonlocal logins
        logins += 1
        if logins == 2:
            loop.call_soon_threadsafe(second.set)
        # The first one is due for renewal at once.
        seconds = 0.01 if logins == 1 else 3_600
        return {"auth": {"client_token": f"token {logins}", "lease_duration": seconds, "renewable": True}}

    client = SimpleNamespace(
        auth=SimpleNamespace(token=SimpleNamespace(renew_self=renew)), adapter=SimpleNamespace(close=lambda: None)
    )
    session = Session(lambda: client, log_in, "https://vault.test", 5.0)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(session.run())
        async with asyncio.timeout(20):
            await second.wait()
        running.cancel()
    await session.close()
    assert logins == 2
