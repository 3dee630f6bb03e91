"""Agents that enrol, are certified anew and are revoked: with a real PostgreSQL and a real OpenBao."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from services.credentials import recovery
from services.credentials.certificates import Issued
from services.credentials.errors import AgentNotFound, AgentQuarantined, AgentRevoked, PairingRefused
from services.credentials.identities import Identities, pairing_path
from services.credentials.vault import Signed, Vault
from services.credentials.vault_errors import VaultUnreachable
from services.runtime import pairing as codes
from services.runtime.pairing import PairingCode
from tests.integration.credentials.agent_side import AgentSide
from tests.integration.credentials.identity_rig import IdentityRig, identity_template, identity_url, rig

__all__ = ["identity_template", "identity_url", "rig"]  # fixtures

SKEW = timedelta(minutes=10)


def verify(issued: Issued, at: datetime) -> x509.Certificate:
    """The leaf, if a server whose clock shows this time accepts it from a client."""
    leaf, *chain = x509.load_pem_x509_certificates(issued.chain)
    store = Store(x509.load_pem_x509_certificates(issued.ca))
    PolicyBuilder().store(store).time(at).build_client_verifier().verify(leaf, chain)
    return leaf


def now() -> datetime:
    return datetime.now(UTC)


# --- pairing and enrolment ---


async def test_an_agent_enrols_with_its_code(rig: IdentityRig) -> None:
    code, expires_at = await rig.identities.pair(rig.name, "paris", "alice")
    assert timedelta(minutes=59) < expires_at - now() <= timedelta(minutes=60, seconds=1)
    side = AgentSide()
    issued, pairing = await rig.identities.enrol(side.enrolment(code))

    assert (pairing.agent, pairing.group) == (rig.name, "paris")
    leaf = verify(issued, now())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [f"spiffe://sis/agent/paris/{rig.name}"]
    assert leaf.subject.rdns == []
    assert _spki(leaf) == side.public_key()
    assert issued.serial == f"{leaf.serial_number:x}"
    assert issued.not_after == leaf.not_valid_after_utc
    # Whoever relays the answer can put no other pairing's in its place.
    assert pairing.mac == codes.enrolled_mac(PairingCode.parse(code).key(), rig.name, "paris", issued.serial)
    assert "mac" not in repr(pairing)
    # Whoever only knows the code can find the CA in the chain.
    ders = [each.public_bytes(serialization.Encoding.DER) for each in x509.load_pem_x509_certificates(issued.chain)]
    assert PairingCode.parse(code).trusts(ders[-1])

    (found,), _ = await rig.identities.list_page(50, "")
    assert (found.name, found.group, found.pairer, found.revoked_at) == (rig.name, "paris", "alice", None)
    assert (found.serial, found.not_after) == (issued.serial, issued.not_after)
    assert await rig.sealing_key() == side.sealing_key()


def _spki(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


async def test_postgresql_never_knows_what_proves_a_code(rig: IdentityRig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    text = await rig.pair()
    code = PairingCode.parse(text)
    await rig.identities.enrol(AgentSide().enrolment(text))
    dump = await rig.dump()
    assert code.pairing_id in dump
    for form in (text.split("-")[2], code.key().hex(), code.text()):
        assert form not in dump
        assert form not in caplog.text
    assert (await rig.vault.read(pairing_path(code.pairing_id))).values == {"key": code.key().hex()}


async def test_the_same_request_again_is_answered_with_another_certificate(rig: IdentityRig) -> None:
    code, side = await rig.pair(), AgentSide()
    request = side.enrolment(code)
    first, _ = await rig.identities.enrol(request)
    second, _ = await rig.identities.enrol(request)
    assert first.serial != second.serial
    assert await rig.certificates() == {first.serial: False, second.serial: False}


async def test_a_code_is_good_for_one_agent(rig: IdentityRig, caplog: pytest.LogCaptureFixture) -> None:
    code, side = await rig.pair(), AgentSide()
    await rig.identities.enrol(side.enrolment(code))
    for other in (AgentSide().enrolment(code), side.enrolment(code, generation=2)):
        with pytest.raises(PairingRefused):
            await rig.identities.enrol(other)
    assert "it was used with other keys" in caplog.text
    assert await rig.sealing_key() == side.sealing_key()


async def test_of_many_that_race_for_a_code_one_gets_it(rig: IdentityRig) -> None:
    code = await rig.pair()
    sides = [AgentSide() for _ in range(6)]
    found = await asyncio.gather(
        *(rig.identities.enrol(side.enrolment(code)) for side in sides), return_exceptions=True
    )
    assert [type(each) for each in found].count(PairingRefused) == 5
    (winner,) = [side for side, each in zip(sides, found, strict=True) if not isinstance(each, BaseException)]
    assert await rig.sealing_key() == winner.sealing_key()
    assert len(await rig.certificates()) == 1


async def test_the_same_request_many_times_at_once_is_one_enrolment(rig: IdentityRig) -> None:
    request = AgentSide().enrolment(await rig.pair())
    found = await asyncio.gather(*(rig.identities.enrol(request) for _ in range(5)))
    assert await rig.certificates() == {issued.serial: False for issued, _ in found}


async def test_a_wrong_proof_is_refused_and_leaves_the_code(rig: IdentityRig, caplog: pytest.LogCaptureFixture) -> None:
    code, side = await rig.pair(), AgentSide()
    other = await rig.identities.pair(f"{rig.name}-2", "g", "alice")
    wrong = side.enrolment(code)
    for mac in (bytes(32), side.enrolment(other[0]).mac, AgentSide().enrolment(code).mac):
        with pytest.raises(PairingRefused) as caught:
            await rig.identities.enrol(type(wrong)(wrong.pairing_id, wrong.keys, mac, wrong.origin))
        assert "10.0.0.7" not in str(caught.value)
    assert caplog.text.count("the proof sent from 10.0.0.7 is wrong") == 3
    await rig.identities.enrol(wrong)


@pytest.mark.parametrize("how", ["unknown", "expired", "without a key"])
async def test_a_code_that_is_no_good_is_refused(rig: IdentityRig, how: str, caplog: pytest.LogCaptureFixture) -> None:
    code, side = await rig.pair(), AgentSide()
    pairing_id = PairingCode.parse(code).pairing_id
    match how:
        case "unknown":
            code = PairingCode.mint(b"a CA").text()
        case "expired":
            await rig.execute(
                "UPDATE credentials.pairings SET expires_at = now() WHERE pairing_id = :id", id=pairing_id
            )
        case "without a key":
            await rig.vault.destroy(pairing_path(pairing_id))
    with pytest.raises(PairingRefused) as caught:
        await rig.identities.enrol(side.enrolment(code))
    assert str(caught.value) == str(PairingRefused())
    assert "is refused" in caplog.text
    assert await rig.certificates() == {}


async def test_a_new_agent_of_the_name_replaces_the_former_one(rig: IdentityRig) -> None:
    early, former = await rig.pair(), AgentSide()
    early_request = former.enrolment(early)
    first, _ = await rig.identities.enrol(early_request)
    spare, code = await rig.pair(), await rig.pair(group="rome")
    new = AgentSide()
    second, _ = await rig.identities.enrol(new.enrolment(code))
    assert await rig.certificates() == {first.serial: True, second.serial: False}
    with pytest.raises(PairingRefused):
        await rig.identities.renew(former.renewal(rig.name, 2))
    # Neither the code that the former one used, nor another that was made before, undoes it.
    for request in (early_request, AgentSide().enrolment(spare)):
        with pytest.raises(PairingRefused):
            await rig.identities.enrol(request)
    assert await rig.sealing_key() == new.sealing_key()
    (found,), _ = await rig.identities.list_page(50, "")
    assert (found.group, found.serial) == ("rome", second.serial)


async def test_a_repeated_enrolment_brings_no_old_key_back(rig: IdentityRig) -> None:
    side = AgentSide()
    request = side.enrolment(await rig.pair())
    await rig.identities.enrol(request)
    await rig.identities.renew(side.renewal(rig.name, 2))
    await rig.identities.enrol(request)
    assert await rig.sealing_key() == side.sealing_key(2)
    assert list((await rig.certificates()).values()) == [False] * 3


# --- interruptions ---


class Interrupted(Vault):
    """Does something when it has signed, before anybody hears of it."""

    meanwhile: Callable[[], Any]

    async def sign(self, *args: Any, **more: Any) -> Signed:
        signed = await super().sign(*args, **more)
        await self.meanwhile()
        return signed


@pytest.fixture
async def interrupted(rig: IdentityRig) -> Any:
    vault = Interrupted(rig.openbao.settings())
    rig.identities = Identities(rig.database, vault, life=timedelta(hours=1))
    yield vault
    await vault.close()


async def test_an_enrolment_that_was_cut_off_goes_on_with_the_same_keys_alone(
    rig: IdentityRig, interrupted: Interrupted
) -> None:
    code, side = await rig.pair(), AgentSide()

    async def die() -> None:
        raise asyncio.CancelledError

    interrupted.meanwhile = die
    with pytest.raises(asyncio.CancelledError):
        await rig.identities.enrol(side.enrolment(code))
    assert await rig.certificates() == {}
    other = Identities(rig.database, rig.vault, life=timedelta(hours=1))
    with pytest.raises(PairingRefused):
        await other.enrol(AgentSide().enrolment(code))
    issued, _ = await other.enrol(side.enrolment(code))
    assert await rig.certificates() == {issued.serial: False}


async def test_a_revocation_during_a_renewal_wins(rig: IdentityRig, interrupted: Interrupted) -> None:
    side = AgentSide()
    plain = Identities(rig.database, rig.vault, life=timedelta(hours=1))
    first, _ = await plain.enrol(side.enrolment(await rig.pair()))

    async def revoke() -> None:
        await plain.revoke(rig.name, "", "bob")

    interrupted.meanwhile = revoke
    with pytest.raises(AgentRevoked):
        await rig.identities.renew(side.renewal(rig.name, 2))
    assert await rig.certificates() == {first.serial: True}


async def test_a_revocation_during_an_enrolment_wins(rig: IdentityRig, interrupted: Interrupted) -> None:
    plain = Identities(rig.database, rig.vault, life=timedelta(hours=1))
    await plain.enrol(AgentSide().enrolment(await rig.pair()))
    code = await rig.pair()

    async def revoke() -> None:
        await plain.revoke(rig.name, "", "bob")

    interrupted.meanwhile = revoke
    with pytest.raises(PairingRefused):
        await rig.identities.enrol(AgentSide().enrolment(code))
    assert list((await rig.certificates()).values()) == [True]


async def test_a_replacement_during_a_renewal_wins(rig: IdentityRig, interrupted: Interrupted) -> None:
    plain = Identities(rig.database, rig.vault, life=timedelta(hours=1))
    former, new = AgentSide(), AgentSide()
    first, _ = await plain.enrol(former.enrolment(await rig.pair()))
    found: list[str] = []

    async def replace() -> None:
        issued, _ = await plain.enrol(new.enrolment(await rig.pair()))
        found.append(issued.serial)

    interrupted.meanwhile = replace
    with pytest.raises(PairingRefused):
        await rig.identities.renew(former.renewal(rig.name, 2))
    assert await rig.certificates() == {first.serial: True, found[0]: False}


async def test_without_vault_nothing_is_used_up(rig: IdentityRig) -> None:
    code, side = await rig.pair(), AgentSide()
    nowhere = Vault(rig.openbao.settings(address="https://127.0.0.1:1"))
    away = Identities(rig.database, nowhere, life=timedelta(hours=1))
    try:
        with pytest.raises(VaultUnreachable):
            await away.enrol(side.enrolment(code))
        with pytest.raises(VaultUnreachable):
            await away.pair(rig.name, "g", "alice")
    finally:
        await nowhere.close()
    await rig.identities.enrol(AgentSide().enrolment(code))


# --- renewal ---


async def test_an_agent_is_certified_anew_with_another_sealing_key(rig: IdentityRig) -> None:
    side = await rig.enrolled()
    request = side.renewal(rig.name, 2)
    second = await rig.identities.renew(request)
    assert await rig.sealing_key() == side.sealing_key(2)
    # A lost answer is asked for again.
    third = await rig.identities.renew(request)
    assert second.serial != third.serial
    assert _spki(verify(third, now())) == side.public_key()
    assert list((await rig.certificates()).values()) == [False] * 3
    (found,), _ = await rig.identities.list_page(50, "")
    assert found.serial == third.serial


@pytest.mark.parametrize("generation", [1, 2, 4, 2**63 - 1])
async def test_a_generation_that_does_not_follow_shows_two_programs_with_the_key(
    rig: IdentityRig, caplog: pytest.LogCaptureFixture, generation: int
) -> None:
    side = await rig.enrolled()
    await rig.identities.renew(side.renewal(rig.name, 2))
    certificates = await rig.certificates()
    twin = AgentSide()
    twin.key = side.key
    with pytest.raises(AgentQuarantined):
        await rig.identities.renew(twin.renewal(rig.name, generation))
    (told,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert told.getMessage() == (
        f"two programs have the identity key of agent {rig.name}: generation {generation} was asked for with keys that"
        " do not follow generation 2"
    )
    assert await rig.sealing_key() == side.sealing_key(2)
    assert await rig.certificates() == certificates


async def test_after_a_restore_an_agent_goes_on_with_the_keys_that_it_has_by_now(rig: IdentityRig) -> None:
    """It has renewed three times since the backup."""
    side = await rig.enrolled()
    await recovery.recover(rig.database)
    await rig.identities.renew(side.renewal(rig.name, 5))
    assert await rig.sealing_key() == side.sealing_key(5)
    # Once: then they follow each other again.
    twin = AgentSide()
    twin.key = side.key
    for generation in (4, 5, 7):
        with pytest.raises(AgentQuarantined):
            await rig.identities.renew(twin.renewal(rig.name, generation))
    await rig.identities.renew(side.renewal(rig.name, 6))


async def test_a_restore_brings_no_old_keys_back(rig: IdentityRig) -> None:
    side = await rig.enrolled()
    await rig.identities.renew(side.renewal(rig.name, 2))
    await recovery.recover(rig.database)
    twin = AgentSide()
    twin.key = side.key
    for generation in (1, 2):
        with pytest.raises(AgentQuarantined):
            await rig.identities.renew(twin.renewal(rig.name, generation))
    assert await rig.sealing_key() == side.sealing_key(2)


async def test_a_copy_that_asks_first_is_found_out_by_the_agent(rig: IdentityRig) -> None:
    side = await rig.enrolled()
    twin = AgentSide()
    twin.key = side.key
    await rig.identities.renew(twin.renewal(rig.name, 2))
    with pytest.raises(AgentQuarantined):
        await rig.identities.renew(side.renewal(rig.name, 2))


async def test_a_copy_that_is_certified_meanwhile_wins_nothing(rig: IdentityRig, interrupted: Interrupted) -> None:
    plain = Identities(rig.database, rig.vault, life=timedelta(hours=1))
    side, twin = AgentSide(), AgentSide()
    twin.key = side.key
    await plain.enrol(side.enrolment(await rig.pair()))

    async def renew() -> None:
        await plain.renew(twin.renewal(rig.name, 2))

    interrupted.meanwhile = renew
    with pytest.raises(AgentQuarantined):
        await rig.identities.renew(side.renewal(rig.name, 2))
    assert len(await rig.certificates()) == 2


async def test_a_renewal_needs_the_identity_key(rig: IdentityRig, caplog: pytest.LogCaptureFixture) -> None:
    side, thief = await rig.enrolled(), AgentSide()
    for wrong, why in (
        (thief.renewal(rig.name, 2), "its identity key is another"),
        (side.renewal(rig.name, 2, signer=thief), "the signature is wrong"),
        (side.renewal(rig.name, 2, signed_name="another"), "the signature is wrong"),
        (side.renewal("nobody", 2), "there is no such agent"),
    ):
        with pytest.raises(PairingRefused) as caught:
            await rig.identities.renew(wrong)
        assert why in caplog.text
        assert why not in str(caught.value)
    assert await rig.sealing_key() == side.sealing_key()


# --- revocation ---


async def test_a_revoked_agent_gets_nothing_more(rig: IdentityRig) -> None:
    side = AgentSide()
    used = side.enrolment(await rig.pair())
    await rig.identities.enrol(used)
    await rig.identities.renew(side.renewal(rig.name, 2))
    spare = await rig.pair()
    found = await rig.identities.revoke(rig.name, "stolen", "bob")
    assert (found.revoker, found.revoke_reason) == ("bob", "stolen")
    assert found.revoked_at is not None
    assert list((await rig.certificates()).values()) == [True, True]
    for generation in (2, 3):
        with pytest.raises(AgentRevoked):
            await rig.identities.renew(side.renewal(rig.name, generation))
        # Whoever does not hold the key does not even hear that it was revoked.
        for thief in (
            AgentSide().renewal(rig.name, generation),
            side.renewal(rig.name, generation, signer=AgentSide()),
        ):
            with pytest.raises(PairingRefused):
                await rig.identities.renew(thief)
    for request in (used, AgentSide().enrolment(spare)):
        with pytest.raises(PairingRefused):
            await rig.identities.enrol(request)
    again = await rig.identities.revoke(rig.name, "again", "carol")
    assert again == found


async def test_a_revoked_agent_may_enrol_again(rig: IdentityRig) -> None:
    side = await rig.enrolled()
    await rig.identities.revoke(rig.name, "", "bob")
    issued, _ = await rig.identities.enrol(side.enrolment(await rig.pair()))
    assert sorted((await rig.certificates()).values()) == [False, True]
    (found,), _ = await rig.identities.list_page(50, "")
    assert (found.revoked_at, found.revoker, found.serial) == (None, "", issued.serial)


async def test_a_second_revocation_withdraws_the_codes_since(rig: IdentityRig) -> None:
    await rig.enrolled()
    await rig.identities.revoke(rig.name, "", "bob")
    leaked = await rig.pair()
    await rig.identities.revoke(rig.name, "the new code has leaked", "bob")
    with pytest.raises(PairingRefused):
        await rig.identities.enrol(AgentSide().enrolment(leaked))


async def test_a_revocation_withdraws_the_codes_of_a_name_that_never_enrolled(rig: IdentityRig) -> None:
    leaked = await rig.pair()
    with pytest.raises(AgentNotFound):
        await rig.identities.revoke(rig.name, "", "bob")
    with pytest.raises(PairingRefused):
        await rig.identities.enrol(AgentSide().enrolment(leaked))
    assert await rig.certificates() == {}


async def test_identities_are_listed_in_pages(rig: IdentityRig) -> None:
    names = [f"{rig.name}-{letter}" for letter in "cab"]
    for name in names:
        code, _ = await rig.identities.pair(name, "g", "alice")
        await rig.identities.enrol(AgentSide().enrolment(code))
    first, token = await rig.identities.list_page(2, "")
    rest, end = await rig.identities.list_page(2, token)
    assert [each.name for each in (*first, *rest)] == sorted(names)
    assert end == ""


# --- clocks ---


@pytest.mark.parametrize("skew", [-SKEW, timedelta(0), SKEW])
async def test_a_fresh_certificate_is_accepted_by_clocks_that_are_off(rig: IdentityRig, skew: timedelta) -> None:
    issued, _ = await rig.identities.enrol(AgentSide().enrolment(await rig.pair()))
    verify(issued, now() + skew)


async def test_a_certificate_is_not_accepted_outside_of_its_window(rig: IdentityRig) -> None:
    issued, _ = await rig.identities.enrol(AgentSide().enrolment(await rig.pair()))
    for at in (now() - timedelta(minutes=16), issued.not_after + timedelta(seconds=1)):
        with pytest.raises(VerificationError):
            verify(issued, at)


async def test_an_agent_rejoins_after_its_certificate_has_expired(rig: IdentityRig) -> None:
    side = await rig.enrolled()
    # As it is found when an hour and a day have passed.
    await rig.execute("UPDATE credentials.certificates SET not_after = now() - INTERVAL '1 day'")
    verify(await rig.identities.renew(side.renewal(rig.name, 2)), now())
    assert await rig.sealing_key() == side.sealing_key(2)
