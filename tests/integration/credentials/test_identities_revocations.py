"""What follows from a revocation: every replica's watchers hear of it, and Vault is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial

import pytest
from cryptography import x509

from services.credentials.identities import pairing_path
from services.credentials.identity_store import Revocation
from services.credentials.revocations import Revocations
from services.credentials.vault import Vault
from services.credentials.vault_errors import ValueMissing, VaultUnreachable
from services.credentials.vault_outbox import VaultOutbox
from services.runtime.database import Database
from services.runtime.errors import Unavailable
from services.runtime.pairing import PairingCode
from tests.integration.credentials.agent_side import AgentSide
from tests.integration.credentials.identity_rig import IdentityRig, identity_template, identity_url, rig
from tests.support.tcp_proxy import TcpProxy

__all__ = ["identity_template", "identity_url", "rig"]  # fixtures

News = AsyncGenerator[Sequence[Revocation], None]
WAIT_SECONDS = 20.0


@asynccontextmanager
async def replica(url: str) -> AsyncIterator[Revocations]:
    """The watchers of one more process, listening."""
    database = Database(url, application_name="test", pool_size=2)
    revocations = Revocations(database)
    listening = asyncio.create_task(revocations.listen())
    try:
        yield revocations
    finally:
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        await database.dispose()


async def told(news: News, seconds: float = WAIT_SECONDS) -> set[str]:
    async with asyncio.timeout(seconds):
        return {each.serial for each in await anext(news)}


async def test_every_replica_hears_of_a_revocation_at_once(rig: IdentityRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.credentials.revocations.POLL_SECONDS", 3_600.0)
    await rig.enrolled()
    await rig.identities.revoke(rig.name, "", "bob")
    first = set(await rig.certificates())
    names = [f"{rig.name}-{n}" for n in range(3)]
    for name in names:
        code, _ = await rig.identities.pair(name, "g", "alice")
        await rig.identities.enrol(AgentSide().enrolment(code))
    async with (
        replica(rig.url) as one,
        replica(rig.url) as other,
        aclosing(one.watch()) as news_of_one,
        aclosing(other.watch()) as news_of_other,
    ):
        for news in (news_of_one, news_of_other):
            assert await told(news) == first
        for name in names:
            found = await rig.identities.revoke(name, "", "bob")
            for news in (news_of_one, news_of_other):
                assert await told(news) == {found.serial}


async def test_the_first_answer_comes_even_if_nobody_is_revoked(rig: IdentityRig) -> None:
    side = await rig.enrolled()
    second = await rig.identities.renew(side.renewal(rig.name, 2))
    async with replica(rig.url) as one, aclosing(one.watch()) as news:
        assert await told(news) == set()
        await rig.identities.revoke(rig.name, "", "bob")
        found = await anext(news)
        assert {each.serial for each in found} == set(await rig.certificates())
        assert {each.agent for each in found} == {rig.name}
        assert second.not_after in {each.not_after for each in found}


async def test_a_replacement_is_a_revocation_too(rig: IdentityRig) -> None:
    await rig.enrolled()
    former = set(await rig.certificates())
    async with replica(rig.url) as one, aclosing(one.watch()) as news:
        assert await told(news) == set()
        await rig.enrolled()
        assert await told(news) == former


async def test_a_lost_notification_is_made_up_for(rig: IdentityRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.credentials.revocations.POLL_SECONDS", 0.1)
    await rig.enrolled()
    # Nobody listens.
    async with aclosing(Revocations(rig.database).watch()) as news:
        assert await told(news) == set()
        await rig.identities.revoke(rig.name, "", "bob")
        assert await told(news) == set(await rig.certificates())


async def test_what_has_expired_long_ago_is_not_told(rig: IdentityRig) -> None:
    await rig.enrolled()
    await rig.identities.revoke(rig.name, "", "bob")
    # A hub's clock may be behind.
    for ago, expected in (("10 minutes", 1), ("2 hours", 0)):
        await rig.execute(f"UPDATE credentials.certificates SET not_after = now() - INTERVAL '{ago}'")
        async with aclosing(Revocations(rig.database).watch()) as news:
            assert len(await told(news)) == expected


async def test_draining_sends_the_watchers_elsewhere(rig: IdentityRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.credentials.revocations.POLL_SECONDS", 3_600.0)
    async with replica(rig.url) as one, aclosing(one.watch()) as news, aclosing(one.watch()) as late:
        await anext(news)
        waiting = asyncio.ensure_future(anext(news))
        await asyncio.sleep(0)
        await one.drain()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, WAIT_SECONDS)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(anext(late), WAIT_SECONDS)


# --- Vault ---


def revoked_in_vault(rig: IdentityRig) -> set[str]:
    """The serials on the CA's list."""
    pem = rig.openbao.root("GET", "sis-pki/cert/crl")["data"]["certificate"]
    crl = x509.load_pem_x509_crl(pem.encode())
    return {f"{each.serial_number:x}" for each in crl}


async def test_vault_is_told_of_revocations(rig: IdentityRig) -> None:
    side = await rig.enrolled()
    await rig.identities.revoke(rig.name, "", "bob")
    gone = set(await rig.certificates())
    new, _ = await rig.identities.enrol(side.enrolment(await rig.pair()))
    outbox = VaultOutbox(rig.database, rig.vault)
    await outbox.deliver()
    assert revoked_in_vault(rig) >= gone
    assert new.serial not in revoked_in_vault(rig)
    untold = "SELECT 1 FROM credentials.certificates WHERE revoked_at IS NOT NULL AND vault_revoked_at IS NULL"
    assert await rig.execute(untold) == []
    await outbox.deliver()


async def told_once_mended(
    outbox: VaultOutbox, rig: IdentityRig, caplog: pytest.LogCaptureFixture, mend: Callable[[], Awaitable[object]]
) -> None:
    """It complains, goes on, and once what kept it is mended Vault knows every certificate as revoked."""
    running = asyncio.create_task(outbox.run())
    async with asyncio.timeout(20):
        while "Vault is not told of everything" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await mend()
    serials = set(await rig.certificates())
    async with asyncio.timeout(20):
        while not serials <= await asyncio.to_thread(revoked_in_vault, rig):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()


async def test_vault_is_told_once_it_is_back(
    rig: IdentityRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.credentials.vault_outbox.TELL_SECONDS", 0.05)
    await rig.enrolled()
    await rig.identities.revoke(rig.name, "", "bob")
    async with TcpProxy(rig.openbao.address.removeprefix("https://")) as proxy:
        vault = Vault(rig.openbao.settings(address=f"https://{proxy.endpoint}"))
        outbox = VaultOutbox(rig.database, vault)
        await proxy.refuse()
        with pytest.raises(VaultUnreachable):
            await outbox.deliver()
        await told_once_mended(outbox, rig, caplog, proxy.accept)
        await vault.close()


async def test_a_fault_of_the_database_does_not_end_the_service(
    rig: IdentityRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("services.credentials.vault_outbox.TELL_SECONDS", 0.05)
    await rig.enrolled()
    await rig.identities.revoke(rig.name, "", "bob")
    await rig.execute("ALTER TABLE credentials.certificates RENAME TO damaged")
    mend = partial(rig.execute, "ALTER TABLE credentials.damaged RENAME TO certificates")
    await told_once_mended(VaultOutbox(rig.database, rig.vault), rig, caplog, mend)


async def test_a_certificate_of_another_ca_does_not_hold_the_others_up(rig: IdentityRig) -> None:
    await rig.enrolled()
    await rig.identities.revoke(rig.name, "", "bob")
    (serial,) = await rig.certificates()
    await rig.execute(
        "INSERT INTO credentials.certificates VALUES ('abcdef', 'x', now(), now() + INTERVAL '1 hour', '-infinity')"
    )
    await VaultOutbox(rig.database, rig.vault).deliver()
    assert serial in revoked_in_vault(rig)
    assert await rig.execute("SELECT 1 FROM credentials.certificates WHERE vault_revoked_at IS NULL") == []


async def test_an_expired_pairing_is_removed_from_both(rig: IdentityRig) -> None:
    old, used, young = await rig.pair(), await rig.pair(), None
    await rig.identities.enrol(AgentSide().enrolment(used))
    young = await rig.pair()
    old_id, used_id, young_id = (PairingCode.parse(code).pairing_id for code in (old, used, young))
    await rig.execute("UPDATE credentials.pairings SET expires_at = now() WHERE pairing_id = :id", id=used_id)
    await VaultOutbox(rig.database, rig.vault).deliver()
    # `old` was withdrawn when `used` was used.
    for pairing_id in (old_id, used_id):
        with pytest.raises(ValueMissing):
            await rig.vault.read(pairing_path(pairing_id))
    await rig.vault.read(pairing_path(young_id))
    rows = await rig.execute("SELECT pairing_id FROM credentials.pairings")
    assert [row[0] for row in rows] == [young_id]


async def test_old_certificates_are_forgotten_but_the_newest(rig: IdentityRig) -> None:
    side = await rig.enrolled()
    for generation in (2, 3):
        newest = await rig.identities.renew(side.renewal(rig.name, generation))
    await rig.execute("UPDATE credentials.certificates SET not_after = now() - INTERVAL '31 days'")
    await VaultOutbox(rig.database, rig.vault).deliver()
    assert list(await rig.certificates()) == [newest.serial]
