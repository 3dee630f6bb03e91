"""Agents: who becomes one, is certified anew, or is one no more. Each method may be retried.

A certificate leaves this process only after its serial was committed: of one that Vault has signed and nobody recorded,
because the process died or the agent was revoked meanwhile, nobody gets hold. A pairing is marked with the keys that
use it before anything is signed, so whatever happens then, these keys alone can go on with it.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.credentials import identity_store as store
from services.credentials.certificates import Issued, anchor, issued
from services.credentials.errors import AgentNotFound, AgentQuarantined, AgentRevoked, PairingRefused
from services.credentials.identity_store import Agent, AgentIdentity, Pairing
from services.credentials.vault import Signed, Vault
from services.credentials.vault_errors import ValueMissing
from services.runtime import paging
from services.runtime import pairing as codes
from services.runtime.database import Database

PAIRING_LIFE = timedelta(hours=1)
ROLE = "sis-agent"
"""The role of Vault's PKI by which agents are certified."""

_log = logging.getLogger("identities")


@dataclass(frozen=True, slots=True)
class AgentKeys:
    """What an agent wants certified and known; `serialised` are the bytes that its proof covers."""

    serialised: bytes
    csr: x509.CertificateSigningRequest
    sealing_key: bytes
    generation: int

    @property
    def public_key(self) -> bytes:
        """The identity key: SubjectPublicKeyInfo, DER."""
        return self.csr.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def digest(self) -> bytes:
        """The same for the same keys, however often they are written into a request."""
        return hashlib.sha256(self.public_key + self.sealing_key + b"%d" % self.generation).digest()


@dataclass(frozen=True, slots=True)
class Enrolment:
    """That whoever holds a pairing code wants to be the agent."""

    pairing_id: str
    keys: AgentKeys
    mac: bytes = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class Renewal:
    """That an agent wants to be certified anew."""

    agent: str
    keys: AgentKeys
    signature: bytes


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What an agent has become; `mac` proves it to whoever knows the code."""

    agent: str
    group: str
    mac: bytes = field(repr=False)


def pairing_path(pairing_id: str) -> str:
    """Where Vault keeps the key of a pairing's HMAC."""
    return f"pairings/{pairing_id}"


class Identities:
    """The agents' identities. `life` is that of their certificates. Every method may raise VaultError."""

    def __init__(self, database: Database, vault: Vault, *, life: timedelta) -> None:
        self._database = database
        self._vault = vault
        self._life = life

    async def pair(self, agent: str, group: str, creator: str) -> tuple[str, datetime]:
        """A pairing code, which is a secret, and when it expires."""
        code = codes.PairingCode.mint(anchor(await self._vault.ca()).public_bytes(serialization.Encoding.DER))
        # The row first: what it leads to is removed with it, whether the write was done or not.
        async with self._database.begin() as connection:
            expires_at = await store.insert_pairing(connection, code.pairing_id, agent, group, creator, PAIRING_LIFE)
        await self._vault.write(pairing_path(code.pairing_id), {"key": code.key().hex()}, cas=0)
        _log.info("pairing %s was made for agent %s by %s", code.pairing_id, agent, creator)
        return code.text(), expires_at

    async def enrol(self, enrolment: Enrolment) -> tuple[Issued, Enrolled]:
        """Make an agent of whoever proves that it holds the code. A former agent of the name is replaced.

        Raises:
            PairingRefused: the log says why.
        """
        keys = enrolment.keys
        found, key = await self._proven(enrolment)
        digest = keys.digest()
        async with self._database.begin() as connection:
            now = await store.lock_agent(connection, found.agent)
            current = await store.pairing(connection, found.pairing_id)
            if current is not None and current.keys_sha256 is None:
                await store.use_pairing(connection, found.pairing_id, digest, enrolment.origin, now)
                await store.withdraw_pairings(connection, found.agent, now, but=found.pairing_id)
            else:
                _check_use(found.pairing_id, current, digest)

        signed = await self._sign(keys, found.agent, found.group)
        async with self._database.begin() as connection:
            now = await store.lock_agent(connection, found.agent)
            _check_use(found.pairing_id, await store.pairing(connection, found.pairing_id), digest)
            agent = await store.agent(connection, found.agent)
            # Asked a second time, it is this agent already, and may have other keys by now.
            if agent is None or agent.pairing_id != found.pairing_id:
                await store.revoke_certificates(connection, found.agent, now)
                enrolled = Agent(
                    found.agent,
                    found.group,
                    keys.public_key,
                    keys.sealing_key,
                    keys.generation,
                    found.pairing_id,
                    revoked=False,
                )
                await store.put_agent(connection, enrolled, found.creator, now)
            await store.record_certificate(connection, signed.serial, found.agent, signed.not_after, now)
        _log.info("agent %s enrolled from %s by pairing %s", found.agent, enrolment.origin, found.pairing_id)
        proof = codes.enrolled_mac(key, found.agent, found.group, signed.serial)
        return issued(signed), Enrolled(found.agent, found.group, proof)

    async def _proven(self, enrolment: Enrolment) -> tuple[Pairing, bytes]:
        """The pairing, and the key by which both sides prove themselves."""
        async with self._database.begin() as connection:
            found = await store.pairing(connection, enrolment.pairing_id)
        if found is None:
            raise _refused(enrolment.pairing_id, "there is no such code, or it has expired or was withdrawn")
        try:
            key = bytes.fromhex((await self._vault.read(pairing_path(found.pairing_id))).values["key"])
        except ValueMissing:
            raise _refused(found.pairing_id, "Vault has no key for it") from None
        if not hmac.compare_digest(codes.mac(key, enrolment.keys.serialised), enrolment.mac):
            raise _refused(found.pairing_id, f"the proof sent from {enrolment.origin} is wrong")
        return found, key

    async def renew(self, renewal: Renewal) -> Issued:
        """Certify an agent anew, whether its last certificate is still valid or not.

        Raises:
            PairingRefused: the log says why.
            AgentRevoked, AgentQuarantined: said only to whoever has the agent's key.
        """
        async with self._database.begin() as connection:
            agent = _check_renewal(renewal, await store.agent(connection, renewal.agent))
        signed = await self._sign(renewal.keys, agent.name, agent.group)
        async with self._database.begin() as connection:
            now = await store.lock_agent(connection, renewal.agent)
            _check_renewal(renewal, await store.agent(connection, renewal.agent))
            await store.put_keys(connection, agent.name, renewal.keys.sealing_key, renewal.keys.generation)
            await store.record_certificate(connection, signed.serial, agent.name, signed.not_after, now)
        return issued(signed)

    async def _sign(self, keys: AgentKeys, agent: str, group: str) -> Signed:
        return await self._vault.sign(
            keys.csr.public_bytes(serialization.Encoding.PEM),
            ROLE,
            uri_sans=[f"spiffe://sis/agent/{group}/{agent}"],
            ttl_seconds=int(self._life.total_seconds()),
        )

    async def revoke(self, name: str, reason: str, revoker: str) -> AgentIdentity:
        """Revoke an agent's certificates, and withdraw the pairing codes that were made for its name until now; the
        codes also where it is revoked already, or never enrolled.

        Raises:
            AgentNotFound: it never enrolled.
        """
        async with self._database.begin() as connection:
            now = await store.lock_agent(connection, name)
            agent = await store.agent(connection, name)
            if agent is not None and not agent.revoked:
                await store.revoke_agent(connection, name, revoker, reason, now)
                await store.revoke_certificates(connection, name, now)
                _log.info("agent %s was revoked by %s", name, revoker)
            await store.withdraw_pairings(connection, name, now)
            found = await store.identity(connection, name)
        if found is None:
            raise AgentNotFound(name)
        return found

    async def list_page(self, page_size: int, page_token: str) -> tuple[Sequence[AgentIdentity], str]:
        """A page of the identities, by name, and the token of the next one.

        Raises:
            InvalidToken
        """
        after = str(paging.decode(page_token, b"identities", "page_token", (str,))[0]) if page_token else ""
        async with self._database.begin() as connection:
            found = await store.identities(connection, after, page_size + 1)
        page = found[:page_size]
        return page, paging.encode([page[-1].name], b"identities") if len(found) > page_size else ""


def _check_use(pairing_id: str, current: Pairing | None, digest: bytes) -> None:
    if current is None:
        raise _refused(pairing_id, "it has expired or was withdrawn meanwhile")
    if current.keys_sha256 is None or not hmac.compare_digest(current.keys_sha256, digest):
        raise _refused(pairing_id, "it was used with other keys")


def _check_renewal(renewal: Renewal, agent: Agent | None) -> Agent:
    # The proof first: whoever has no key learns neither which agents there are nor what became of them.
    if agent is None:
        raise _refused(renewal.agent, "there is no such agent")
    keys = renewal.keys
    if agent.public_key != keys.public_key:
        raise _refused(renewal.agent, "its identity key is another")
    public_key = keys.csr.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    try:
        message = codes.renewal_message(renewal.agent, keys.serialised)
        public_key.verify(renewal.signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise _refused(renewal.agent, "the signature is wrong") from None
    if agent.revoked:
        raise AgentRevoked(renewal.agent)
    repeated = keys.generation == agent.generation and keys.sealing_key == agent.sealing_key
    follows = keys.generation > agent.generation if agent.ahead else keys.generation == agent.generation + 1
    if not follows and not repeated:
        # One program counts up by one, and repeats what was not answered.
        _log.error(
            "two programs have the identity key of agent %s: generation %d was asked for with keys that do not follow"
            " generation %d",
            agent.name,
            keys.generation,
            agent.generation,
        )
        raise AgentQuarantined(agent.name)
    return agent


def _refused(subject: str, why: str) -> PairingRefused:
    _log.warning("%s is refused: %s", subject, why)
    return PairingRefused()
