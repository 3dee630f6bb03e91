"""How the credential service logs in to Vault, and stays so."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.credentials.vault import Vault, VaultSettings
from services.credentials.vault_errors import ValueMissing, VaultError, VaultFailed, VaultForbidden, VaultSealed
from tests.support.openbao import OpenBaoServer
from tests.support.token_review import TokenReviewServer

_numbers = itertools.count(1)


@asynccontextmanager
async def kept(settings: VaultSettings) -> AsyncIterator[Vault]:
    """A Vault whose `run` runs."""
    vault = Vault(settings)
    task = asyncio.create_task(vault.run())
    try:
        yield vault
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await vault.close()


async def works(vault: Vault) -> None:
    with pytest.raises(ValueMissing):
        await vault.read("credentials/nothing")


async def until(holds: Callable[[], Awaitable[object]], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


class Tokens:
    """The tokens that were made since this was."""

    def __init__(self, openbao: OpenBaoServer) -> None:
        self._openbao = openbao
        self._before = set(openbao.tokens())

    def made(self) -> set[str]:
        return set(self._openbao.tokens()) - self._before

    def only(self) -> dict[str, Any]:
        """What Vault says of the only one."""
        (accessor,) = self.made()
        return self._lookup(accessor)

    def living(self) -> dict[str, dict[str, Any]]:
        """What Vault says of each that has not ended meanwhile, by accessor."""
        found = {}
        for accessor in self.made():
            with contextlib.suppress(VaultError):
                found[accessor] = self._lookup(accessor)
        return found

    def _lookup(self, accessor: str) -> dict[str, Any]:
        return dict(self._openbao.root("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"])

    def revoke(self) -> None:
        for accessor in self.made():
            self._openbao.root("POST", "auth/token/revoke-accessor", {"accessor": accessor})


@pytest.fixture
def tokens(openbao: OpenBaoServer) -> Tokens:
    return Tokens(openbao)


async def test_the_services_token_is_for_an_hour_and_renewable(vault: Vault, tokens: Tokens) -> None:
    await works(vault)
    token = tokens.only()
    assert token["policies"] == ["sis-credentials"]
    assert token["period"] == 3_600
    assert token["renewable"]
    assert token["type"] == "service"


async def test_however_many_begin_there_is_one_login(openbao: OpenBaoServer, tokens: Tokens) -> None:
    vault = Vault(openbao.settings())
    await asyncio.gather(*(works(vault) for _ in range(50)))
    assert len(tokens.made()) == 1
    await vault.close()


async def test_a_token_is_renewed_again_and_again(openbao: OpenBaoServer, tokens: Tokens, tmp_path: Path) -> None:
    async with kept(openbao.role(tmp_path, token_period=2)) as vault:
        await works(vault)
        renewals: defaultdict[str, set[int]] = defaultdict(set)

        async def renewed() -> bool:
            await works(vault)
            for accessor, token in tokens.living().items():  # one that was not renewed in time is replaced
                renewals[accessor].add(token.get("last_renewal_time", 0))
            return any(len(times - {0}) >= 2 for times in renewals.values())

        await until(renewed)


@pytest.mark.parametrize("fields", [{"token_ttl": 2, "token_max_ttl": 2}, {"token_ttl": 2, "token_type": "batch"}])
async def test_a_token_that_cannot_be_renewed_for_long_is_replaced_in_time(
    openbao: OpenBaoServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, fields: dict[str, object]
) -> None:
    caplog.set_level(logging.INFO, "vault")
    async with kept(openbao.role(tmp_path, **fields)) as vault:
        await works(vault)

        async def replaced() -> bool:
            await works(vault)
            return caplog.text.count("logged in to Vault") >= 3

        await until(replaced)


async def test_after_a_revocation_it_logs_in_again_once(openbao: OpenBaoServer, vault: Vault, tokens: Tokens) -> None:
    await works(vault)
    tokens.revoke()
    assert tokens.made() == set()
    await asyncio.gather(*(works(vault) for _ in range(50)))
    assert len(tokens.made()) == 1


async def test_a_revocation_that_only_run_sees(openbao: OpenBaoServer, tokens: Tokens, tmp_path: Path) -> None:
    async with kept(openbao.role(tmp_path, token_period=2)):

        async def logged_in() -> bool:
            return bool(tokens.made())

        await until(logged_in)
        tokens.revoke()
        await until(logged_in)


async def test_tokens_that_expired_while_nobody_cared_are_not_taken_for_a_policy(
    openbao: OpenBaoServer, tokens: Tokens, tmp_path: Path
) -> None:
    vault = Vault(openbao.role(tmp_path, token_period=1))

    async def expired() -> bool:
        return not tokens.made()

    for _ in range(3):
        await works(vault)
        await until(expired)
    await vault.close()


async def test_run_waits_for_a_sealed_vault(
    openbao: OpenBaoServer, tokens: Tokens, caplog: pytest.LogCaptureFixture
) -> None:
    openbao.seal()
    async with kept(openbao.settings()) as vault:
        with pytest.raises(VaultSealed):
            await works(vault)

        async def complained() -> bool:
            return "Vault gives no token" in caplog.text

        await until(complained)
        openbao.unseal()

        async def logged_in() -> bool:
            return bool(tokens.made())

        await until(logged_in)
        await works(vault)


async def test_logins_that_do_not_work_say_why(openbao: OpenBaoServer, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("a-secret-that-is-none")
    cases = [
        (openbao.settings(secret_id_file=wrong), "does not accept the login"),
        (openbao.settings(role_id_file=wrong), "does not accept the login"),
        (openbao.settings(role_id_file=tmp_path / "gone"), "gone: No such file"),
        (openbao.settings(secret_id_file=tmp_path), "Is a directory"),
    ]
    for settings, message in cases:
        vault = Vault(settings)
        with pytest.raises(VaultForbidden, match=message) as caught:
            await vault.read("credentials/a")
        assert "a-secret" not in str(caught.value)
        await vault.close()
    vault = Vault(openbao.settings(auth_mount="elsewhere"))
    with pytest.raises(VaultError):
        await vault.read("credentials/a")
    await vault.close()


async def test_a_new_secret_id_is_used_at_the_next_login(openbao: OpenBaoServer, tmp_path: Path) -> None:
    settings = openbao.role(tmp_path, token_period=60)
    assert settings.secret_id_file is not None
    good = settings.secret_id_file.read_text()
    settings.secret_id_file.write_text("not-yet")
    vault = Vault(settings)
    with pytest.raises(VaultForbidden):
        await works(vault)
    settings.secret_id_file.write_text(good)
    await works(vault)
    await vault.close()


@pytest.fixture
def kubernetes(openbao: OpenBaoServer, tmp_path: Path) -> Iterator[tuple[TokenReviewServer, VaultSettings]]:
    """An API server that knows the service's account, and a Vault that was bootstrapped to ask it."""
    mount = f"kubernetes-{next(_numbers)}"
    with TokenReviewServer(tmp_path) as server:
        done = openbao.bootstrap(
            *("--auth", "kubernetes", "--auth-mount", mount, "--output", str(tmp_path / "output")),
            *("--kubernetes-host", server.url, "--kubernetes-ca", str(server.ca)),
        )
        assert done.returncode == 0, done.stderr
        token_file = tmp_path / "token"
        token_file.write_text(server.issue("sis", "sis-credentials"))
        settings = openbao.settings(
            auth="kubernetes",
            auth_mount=mount,
            role_id_file=None,
            secret_id_file=None,
            kubernetes_token_file=token_file,
        )
        yield server, settings


async def test_login_by_kubernetes(kubernetes: tuple[TokenReviewServer, VaultSettings], tokens: Tokens) -> None:
    server, settings = kubernetes
    vault = Vault(settings)
    assert await vault.write(f"credentials/kubernetes-{next(_numbers)}", {"secret": "x"}, 0) == 1
    token = tokens.only()
    assert (token["policies"], token["period"], token["renewable"]) == (["sis-credentials"], 3_600, True)
    assert server.reviews == 1
    await vault.close()


async def test_the_accounts_token_is_read_at_each_login(
    kubernetes: tuple[TokenReviewServer, VaultSettings], tokens: Tokens
) -> None:
    server, settings = kubernetes
    vault = Vault(settings)
    await works(vault)
    # As kubelet does it.
    old = settings.kubernetes_token_file.read_text()
    settings.kubernetes_token_file.write_text(server.issue("sis", "sis-credentials"))
    server.withdraw(old)
    tokens.revoke()
    await works(vault)
    await vault.close()


@pytest.mark.parametrize("account", [("sis", "default"), ("default", "sis-credentials")])
async def test_another_account_is_refused(
    kubernetes: tuple[TokenReviewServer, VaultSettings], account: tuple[str, str]
) -> None:
    server, settings = kubernetes
    settings.kubernetes_token_file.write_text(server.issue(*account))
    vault = Vault(settings)
    with pytest.raises(VaultForbidden):
        await works(vault)
    await vault.close()


async def test_a_token_that_kubernetes_does_not_know_is_refused(
    kubernetes: tuple[TokenReviewServer, VaultSettings],
) -> None:
    server, settings = kubernetes
    server.withdraw(settings.kubernetes_token_file.read_text())
    vault = Vault(settings)
    with pytest.raises(VaultForbidden):
        await works(vault)
    await vault.close()


async def test_an_unknown_role_or_an_absent_token_file(
    kubernetes: tuple[TokenReviewServer, VaultSettings], tmp_path: Path
) -> None:
    _, settings = kubernetes
    for wrong in (
        settings.model_copy(update={"kubernetes_role": "other"}),
        settings.model_copy(update={"kubernetes_token_file": tmp_path / "no"}),
    ):
        vault = Vault(wrong)
        with pytest.raises(VaultForbidden):
            await works(vault)
        await vault.close()


async def test_kubernetes_is_away(openbao: OpenBaoServer, tmp_path: Path) -> None:
    mount = f"kubernetes-{next(_numbers)}"
    with TokenReviewServer(tmp_path) as server:
        done = openbao.bootstrap(
            *("--auth", "kubernetes", "--auth-mount", mount, "--output", str(tmp_path / "output")),
            *("--kubernetes-host", server.url, "--kubernetes-ca", str(server.ca)),
        )
        assert done.returncode == 0, done.stderr
        token_file = tmp_path / "token"
        token_file.write_text(server.issue("sis", "sis-credentials"))
    settings = openbao.settings(auth="kubernetes", auth_mount=mount, kubernetes_token_file=token_file)
    vault = Vault(settings)
    with pytest.raises((VaultFailed, VaultForbidden)):
        await works(vault)
    await vault.close()
