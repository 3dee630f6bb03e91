"""An agent stays certified, and the hub can tell it from a copy: over the stream, without one, and after a refusal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from services.runtime.errors import PermissionDenied, Unavailable
from services.runtime.health import Health
from services.runtime.sealing import key_id
from services.sis_agent.agent.attempts import AttemptDirectories
from services.sis_agent.agent.connection import Connection
from services.sis_agent.agent.executor import Executor
from services.sis_agent.agent.journal import Journal
from services.sis_agent.agent.life import Site as Attempts
from services.sis_agent.agent.package_cache import PackageCache
from services.sis_agent.agent.settings import identity_in
from services.sis_agent.agent.shipping import Shipping
from services.sis_agent.agent.state_directory import StateDirectory
from services.sis_agent.agent.supervision.handle import Zygote
from services.sis_agent.agent.threads import Removals
from services.sis_agent.agent.trust.held_identity import HeldIdentity
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.credentials.v1.certificate_pb2 import AgentKeys
from sis.credentials.v1.lease_pb2 import SealedLease
from sis.queue.v1 import dispatch_service_pb2 as dispatch
from tests.fakes.hub import FakeHub
from tests.integration.agent.site import Site, key, until
from tests.support.agent_process import AgentProcess, write_identity
from tests.support.certificates import CertificateAuthority

HOUR = 3600.0
REVOKED = PermissionDenied("the certificates of agent one were revoked", reason="AGENT_REVOKED")
QUARANTINED = PermissionDenied("two programs have shown the identity of agent one", reason="AGENT_QUARANTINED")


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "tls")


@pytest.fixture
async def site(tmp_path: Path, authority: CertificateAuthority) -> AsyncIterator[Site]:
    """A hub, and an agent that has no identity yet."""
    hub = FakeHub(authority)
    await hub.start()
    agent = AgentProcess(tmp_path / "state")
    try:
        yield Site(hub, agent, tmp_path)
    finally:
        await agent.clear()
        await hub.stop()


def enrolled(
    site: Site, authority: CertificateAuthority, life: timedelta = timedelta(days=1), age: timedelta = timedelta()
) -> AgentIdentity:
    """Have the agent enrolled at the hub, some time ago, with a certificate that ends so soon."""
    identity, keys = write_identity(
        site.agent.state,
        authority,
        life=life,
        age=age,
        enrolment_endpoint=site.hub.enrolment_endpoint,
        agent_endpoints=(f":{site.hub.port}",),
    )
    site.hub.members.add("local", "one", keys)
    return identity


class Watching(Executor):
    """Notes what is on disk when the welcome is acted upon."""

    directory: Path
    persisted: list[bytes]

    def welcome(self, found: Iterable[dispatch.AttemptVerdict], limit_bytes: int) -> None:
        self.persisted.append(AgentIdentity.load(self.directory).resume_secret)
        super().welcome(found, limit_bytes)


@asynccontextmanager
async def connected(state: Path, clock: list[float]) -> AsyncIterator[Watching]:
    """An agent's connection in this process, whose clock is wrong by the one number in `clock`, in seconds."""
    held = HeldIdentity(identity_in(state), lambda: time.time() + clock[0])
    held.open()
    connection = Connection(held, (), dispatch.AgentHello(), Health().set_serving)
    directories = AttemptDirectories(state / "attempts")
    journal = Journal.open_or_create(state / "journal", directories.orphan_all)
    packages = PackageCache(state / "packages", connection.fetch, 2 << 30)
    room = StateDirectory(state)
    reading, removals = ThreadPoolExecutor(1), Removals()
    shipping = Shipping(reading)
    attempts = Attempts(journal, directories, shipping, packages, Zygote(), identity_in(state), room, removals)
    try:
        async with asyncio.TaskGroup() as group:
            executor = Watching(attempts, 4, group)
            executor.directory, executor.persisted = identity_in(state), []
            stream = group.create_task(connection.run(executor))
            yield executor
            stream.cancel()
            await executor.close()
    finally:
        await packages.close()
        journal.close()
        held.close()
        removals.close()
        reading.shutdown()


async def test_at_two_thirds_of_its_life_over_the_stream_which_goes_on(
    site: Site, authority: CertificateAuthority
) -> None:
    # It begins long enough before its certificate ends, when it would have to ask for another one without a stream.
    before = enrolled(site, authority, timedelta(seconds=25), age=timedelta(seconds=35))
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome()
    request = await stream.certificate_request()
    assert time.time() >= before.renew_at >= before.certified_at + 39
    assert AgentKeys.FromString(request.keys).generation == 2
    stream.certify(request)
    beats = len(stream.beats)
    await until(lambda: identity(site).generation == 2, "the certificate is taken")
    await stream.beat(lambda _: len(stream.beats) > beats + 3)
    assert stream.certificate_requests_waiting() == 0
    now = identity(site)
    assert now.sealing_key_id == key_id(site.hub.members.keys().sealing_key) != before.sealing_key_id
    assert now.sealing_key(before.sealing_key_id) is not None
    stream.end()
    assert (await site.hub.stream()).serial == site.hub.members.serials[-1]


def identity(site: Site) -> AgentIdentity:
    return AgentIdentity.load(identity_in(site.agent.state))


@pytest.mark.parametrize("skew", [-600.0, 600.0])
async def test_a_clock_that_is_wrong_changes_nothing(site: Site, authority: CertificateAuthority, skew: float) -> None:
    enrolled(site, authority)
    clock = [skew]
    async with connected(site.agent.state, clock):
        stream = await site.hub.stream()
        for generation in (2, 3):
            stream.welcome()
            await stream.beat(lambda _: len(stream.beats) > 3)  # noqa: B023  (awaited here)
            clock[0] += 15.5 * HOUR
            beats = len(stream.beats)
            await stream.beat(lambda _: len(stream.beats) > beats + 3)  # noqa: B023
            assert stream.certificate_requests_waiting() == 0
            clock[0] += 0.8 * HOUR
            request = await stream.certificate_request()
            site.hub.members.life = timedelta(days=1, seconds=clock[0] - skew)
            stream.certify(request)
            await until(lambda: identity(site).generation == generation)  # noqa: B023
            stream.end()
            stream = await site.hub.stream()


async def test_a_refused_renewal_is_asked_for_again_with_the_same_keys(
    site: Site, authority: CertificateAuthority
) -> None:
    enrolled(site, authority)
    async with connected(site.agent.state, [17 * HOUR]):
        stream = await site.hub.stream()
        stream.welcome()
        first = await stream.certificate_request()
        stream.refuse_certificate(Unavailable("Vault is sealed", reason="VAULT_SEALED", retry_after=0.1))
        second = await stream.certificate_request()
        stream.end()
        (stream := await site.hub.stream()).welcome()
        assert second.keys == first.keys
        # The hub has granted it, and the answer was lost with the stream.
        site.hub.members.renew("one", second.keys, second.signature)
    async with connected(site.agent.state, [17 * HOUR]):
        stream = await site.hub.stream()
        stream.welcome()
        third = await stream.certificate_request()
        assert third.keys == first.keys
        stream.certify(third)
        await until(lambda: identity(site).generation == 2)


async def test_a_sealing_key_stays_while_an_attempt_in_hand_may_need_it(
    site: Site, authority: CertificateAuthority
) -> None:
    before = enrolled(site, authority)
    job = site.job("true", leases=[SealedLease(lease_id="1", ref="admin", sealing_key_id=before.sealing_key_id)])
    clock = [0.0]
    async with connected(site.agent.state, clock) as executor:
        stream = await site.hub.stream()
        stream.welcome()
        stream.assign(job)
        await stream.report()
        assert executor.sealing_keys == {before.sealing_key_id}
        used = []
        for generation in (2, 3, 4):
            clock[0] += 20 * HOUR
            site.hub.members.life = timedelta(days=1, seconds=clock[0])
            stream.certify(await stream.certificate_request())
            await until(lambda: identity(site).generation == generation)  # noqa: B023
            used.append(identity(site).sealing_key_id)
        clock[0] += 25 * HOUR
        stream.certify(await stream.certificate_request())
        await until(lambda: identity(site).generation == 5)
        kept = [identity(site).sealing_key(each) is not None for each in (before.sealing_key_id, *used)]
        assert kept == [True, False, False, True]


async def test_expired_it_rejoins_and_goes_on(site: Site, authority: CertificateAuthority) -> None:
    enrolled(site, authority, timedelta(minutes=-1))
    site.agent.start()
    stream = await site.hub.stream()
    assert stream.serial == site.hub.members.serials[-1]
    assert [AgentKeys.FromString(request.keys).generation for request in site.hub.rejoins] == [2]
    stream.welcome()
    await stream.beat(lambda _: True)
    assert identity(site).generation == 2
    assert identity(site).hub_endpoints == (site.hub.endpoint,)


async def test_a_hub_that_is_away_is_no_reason_to_rejoin(site: Site, authority: CertificateAuthority) -> None:
    enrolled(site, authority)
    await site.hub.stop()
    site.agent.start()
    await until(lambda: "this agent waits for a hub" in site.agent.log)
    await site.hub.start()
    (await site.hub.stream()).welcome()
    assert site.hub.rejoins == []


async def test_the_resume_secret_is_persisted_before_anything_else(site: Site, authority: CertificateAuthority) -> None:
    enrolled(site, authority)
    async with connected(site.agent.state, [0.0]) as executor:
        stream = await site.hub.stream()
        assert stream.resume_secret == b""
        stream.welcome(resume_secret=b"first")
        await stream.beat(lambda _: True)
        assert executor.persisted == [b"first"]
        stream.end()
        # Two welcomes in a row are lost: what was persisted last is shown until another one was.
        for _ in range(2):
            stream = await site.hub.stream()
            assert stream.resume_secret == b"first"
            stream.end()
        stream = await site.hub.stream()
        stream.welcome(resume_secret=b"second")
        await stream.beat(lambda _: True)
        assert executor.persisted == [b"first", b"second"]
        # Where it cannot be written, the agent is heard all the same, and shows the last one again.
        obstacle = identity_in(site.agent.state) / ".resume.new"
        obstacle.mkdir()
        for _ in range(2):
            stream.end()
            stream = await site.hub.stream()
            assert stream.resume_secret == b"second"
            stream.welcome(resume_secret=b"third")
            await stream.beat(lambda _: True)
        obstacle.rmdir()


async def test_killed_after_the_welcome_it_shows_the_new_secret(site: Site, authority: CertificateAuthority) -> None:
    enrolled(site, authority)
    for shown, offered in ((b"", b"first"), (b"first", b"second"), (b"second", b"third")):
        site.agent.start()
        stream = await site.hub.stream()
        assert stream.resume_secret == shown
        stream.welcome(resume_secret=offered)
        await stream.beat(lambda _: True)
        site.agent.kill()


@pytest.mark.parametrize("refusal", [REVOKED, QUARANTINED], ids=["revoked", "quarantined"])
async def test_refused_it_stands_aside_and_goes_on_after_an_enrolment_without_a_restart(
    site: Site,
    authority: CertificateAuthority,
    refusal: PermissionDenied,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("services.sis_agent.agent.connection.REFUSED_SECONDS", (HOUR, HOUR))
    enrolled(site, authority)
    async with connected(site.agent.state, [0.0]):
        stream = await site.hub.stream()
        stream.welcome(resume_secret=b"former")
        stream.assign(job := site.job(site.started()))  # in hand, and not begun
        await stream.report()
        site.hub.refusals[stream.serial] = refusal
        stream.end(refusal)
        await until(lambda: "this agent is refused" in caplog.text)
        assert "have `sis agents pair` print a code and run `sis-agent enrol` with it here" in caplog.text
        refused = site.hub.refused
        done = await site.agent.enrol(site.hub.enrolment_endpoint, site.hub.members.pair())
        assert (done.returncode, done.stderr) == (0, "")
        # An hour before it would have asked again for itself.
        stream = await site.hub.stream()
        assert site.hub.refused == refused
        assert (stream.serial, stream.resume_secret) == (site.hub.members.serials[-1], b"")
        assert list(stream.in_hand) == [key(job)]
        assert site.hub.rejoins == []
        done = await site.agent.enrol(site.hub.enrolment_endpoint, site.hub.members.pair())
        assert (done.returncode, "an agent runs with the identity in" in done.stderr) == (1, True)


async def test_refused_it_asks_again(
    site: Site, authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.sis_agent.agent.connection.REFUSED_SECONDS", (0.2, 0.2))
    enrolled(site, authority)
    async with connected(site.agent.state, [0.0]):
        stream = await site.hub.stream()
        site.hub.refusals[stream.serial] = REVOKED
        stream.end(REVOKED)
        await until(lambda: site.hub.refused > 2)
        site.hub.refusals.clear()
        (await site.hub.stream()).welcome()


async def test_expired_and_not_known_any_more_it_waits_for_an_enrolment(
    site: Site, authority: CertificateAuthority
) -> None:
    enrolled(site, authority, timedelta(minutes=-1))
    site.hub.members.forget("one")
    site.agent.start()
    await until(lambda: "the suite does not know it for a new one" in site.agent.log)
    done = await site.agent.enrol(site.hub.enrolment_endpoint, site.hub.members.pair())
    assert (done.returncode, done.stderr) == (0, "")
    assert (await site.hub.stream()).serial == site.hub.members.serials[-1]
