"""`sis-agent enrol` against a hub with real TLS: what it makes of a program, and what it refuses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.runtime import pairing
from services.runtime.errors import Unavailable
from services.runtime.pairing import PairingCode
from services.sis_agent.agent.errors import EnrolmentFailed, NotEnrolled
from services.sis_agent.agent.settings import identity_in
from services.sis_agent.agent.trust.certification import Hold
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.agent.v1.enrolment_service_pb2 import EnrolRequest, EnrolResponse
from tests.fakes.hub import FakeHub
from tests.integration.agent.site import Site, key, until
from tests.support.agent_process import AgentProcess
from tests.support.certificates import CertificateAuthority
from tests.support.tcp_proxy import TcpProxy


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A hub, and an agent that is not enrolled."""
    hub = FakeHub(CertificateAuthority(tmp_path / "tls"))
    await hub.start()
    agent = AgentProcess(tmp_path / "state")
    try:
        yield Site(hub, agent, tmp_path)
    finally:
        await agent.clear()
        await hub.stop()


def identity(site: Site) -> AgentIdentity:
    return AgentIdentity.load(identity_in(site.agent.state))


async def test_from_nothing_to_a_job(site: Site) -> None:
    site.agent.start()
    assert await site.agent.ended() == 1
    assert "sis-agent enrol --hub HOST:PORT --code -" in site.agent.log
    assert "Traceback" not in site.agent.log
    done = await site.agent.enrol(site.hub.enrolment_endpoint, site.hub.members.pair("berlin", "rack-12"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "This is now agent rack-12 of group berlin, certified until" in done.stdout
    assert site.hub.endpoint in done.stdout
    site.agent.start()
    stream = await site.hub.stream()
    assert (stream.serial, stream.resume_secret) == (site.hub.members.serials[0], b"")
    stream.welcome()
    await stream.accept(job := site.job("true"))
    await stream.commit_all(key(job))


@pytest.mark.parametrize("code", ["", "sis1-short", "sis1-aaaaaaaa-secret"])
async def test_what_is_no_code(site: Site, code: str) -> None:
    done = await site.agent.enrol(site.hub.enrolment_endpoint, code)
    assert done.returncode == 2
    assert done.stderr == (
        "error: this is no pairing code: copy all of what `sis agents pair` printed, from sis1- on\n"
    )
    assert site.hub.enrolments == []


async def test_a_code_that_the_suite_does_not_know(site: Site) -> None:
    real = site.hub.members.pair().text().split("-")
    done = await site.agent.enrol(site.hub.enrolment_endpoint, "-".join([*real[:2], "a" * 32, real[3]]))
    assert done.returncode == 1
    assert done.stderr.startswith("error: the pairing code was refused:")
    assert real[2] not in done.stderr
    with pytest.raises(Exception, match="there is no identity"):
        identity(site)


async def test_the_code_of_another_suite(site: Site, tmp_path: Path) -> None:
    other = FakeHub(CertificateAuthority(tmp_path / "other"))
    done = await site.agent.enrol(site.hub.enrolment_endpoint, other.members.pair())
    assert done.returncode == 1
    assert "does not belong to the suite that this pairing code was made for; nothing was sent to it" in done.stderr
    assert site.hub.enrolments == []
    assert not (site.agent.state / "identity").exists()


async def test_a_server_that_shows_the_certificate_of_a_ca_that_is_not_its_own(site: Site, tmp_path: Path) -> None:
    """Anybody can show it; only the suite's hub has a certificate from it."""
    impostor = FakeHub(CertificateAuthority(tmp_path / "other"))
    impostor.shown = site.hub.shown
    await impostor.start()
    try:
        done = await site.agent.enrol(impostor.enrolment_endpoint, site.hub.members.pair())
    finally:
        await impostor.stop()
    assert done.returncode == 1
    assert "nothing was sent to it" in done.stderr
    assert impostor.enrolments == []


async def test_what_is_not_there_and_what_is_no_hub(site: Site) -> None:
    code = site.hub.members.pair()
    done = await site.agent.enrol("127.0.0.1:1", code)
    assert (done.returncode, done.stderr.startswith("error: 127.0.0.1:1 does not answer")) == (1, True)
    done = await site.agent.enrol("nowhere", code)
    assert (done.returncode, "'nowhere' is not host:port" in done.stderr) == (2, True)

    async def chatter(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com\r\n" * 100)
        writer.close()

    async with await asyncio.start_server(chatter, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        done = await site.agent.enrol(f"127.0.0.1:{port}", code)
    assert (done.returncode, "does not speak TLS: give the enrolment port of a hub" in done.stderr) == (1, True)


async def test_a_server_that_says_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from services.sis_agent.agent.trust import enrolment

    monkeypatch.setattr(enrolment, "LOOK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(EnrolmentFailed, match="does not answer within"):
            await enrolment.enrol(identity_in(site.agent.state), endpoint, site.hub.members.pair())


async def test_an_interrupted_enrolment_is_repeated_as_it_was(site: Site) -> None:
    code = site.hub.members.pair()

    def lose_the_answer() -> None:
        raise Unavailable("the hub shuts down")

    site.hub.on_enrolled = lose_the_answer
    done = await site.agent.enrol(site.hub.enrolment_endpoint, code)
    assert done.returncode == 1
    assert "did not enrol this agent, try again soon: the hub shuts down" in done.stderr
    site.hub.on_enrolled = lambda: None
    # Cut off while the answer was under way: the process is gone, the hub has granted it.
    async with TcpProxy(f"127.0.0.1:{site.hub.enrolment_port}") as proxy:
        site.hub.on_enrolled = lambda: proxy.cut()
        assert (await site.agent.enrol(proxy.endpoint, code)).returncode == 1
    site.hub.on_enrolled = lambda: None
    done = await site.agent.enrol(site.hub.enrolment_endpoint, code)
    assert (done.returncode, done.stderr) == (0, "")
    first, *others = site.hub.enrolments
    assert len(others) == 2
    assert all(other == first for other in others)
    # And once more: it is done, and nothing is sent.
    before = identity(site)
    done = await site.agent.enrol(site.hub.enrolment_endpoint, code)
    assert (done.returncode, len(site.hub.enrolments)) == (0, 3)
    assert identity(site) == before


async def test_a_hub_cannot_enrol_the_keys_under_a_pairing_of_its_own(site: Site) -> None:
    own = site.hub.members.pair("lab", "evil")

    def swap(answer: EnrolResponse) -> None:
        keys = site.hub.enrolments[-1].keys
        request = EnrolRequest(pairing_id=own.pairing_id, keys=keys, mac=pairing.mac(own.key(), keys))
        answer.MergeFrom(site.hub.members.enrol(request))

    site.hub.falsify = swap
    await refused(site, site.hub.members.pair(), "evil of group lab")


@pytest.mark.parametrize("field", ["mac", "missing", "name", "group", "certificate"])
async def test_an_answer_that_is_not_proven_is_not_taken(site: Site, field: str) -> None:
    def falsify(answer: EnrolResponse) -> None:
        match field:
            case "mac":
                answer.mac = bytes(32)
            case "missing":
                answer.mac = b""
            case "certificate":  # of the same request, asked for once more
                other = site.hub.members.enrol(site.hub.enrolments[-1]).certificate
                answer.certificate.certificate_chain = other.certificate_chain
            case _:
                setattr(answer, field, "another")

    site.hub.falsify = falsify
    code = site.hub.members.pair()
    await refused(site, code, "of group")
    site.hub.falsify = lambda _: None
    assert (await site.agent.enrol(site.hub.enrolment_endpoint, code)).returncode == 0


async def refused(site: Site, code: PairingCode, words: str) -> None:
    """The agent takes nothing, and says why."""
    done = await site.agent.enrol(site.hub.enrolment_endpoint, code)
    assert done.returncode == 1
    assert f"the hub at {site.hub.enrolment_endpoint} is not to be trusted: it does not prove" in done.stderr
    assert words in done.stderr
    with pytest.raises(NotEnrolled):
        identity(site)
    assert not list((site.agent.state / "identity").rglob("certificate.pem"))


async def test_a_code_is_good_for_one_agent(site: Site, tmp_path: Path) -> None:
    code = site.hub.members.pair()
    assert (await site.agent.enrol(site.hub.enrolment_endpoint, code)).returncode == 0
    done = await AgentProcess(tmp_path / "thief").enrol(site.hub.enrolment_endpoint, code)
    assert (done.returncode, "the pairing code was refused" in done.stderr) == (1, True)


async def test_another_enrolment_takes_the_place_of_the_first_and_keeps_the_attempts(site: Site) -> None:
    assert (await site.agent.enrol(site.hub.enrolment_endpoint, site.hub.members.pair())).returncode == 0
    site.agent.start()
    stream = await site.hub.stream()
    stream.welcome(resume_secret=b"first")
    await stream.accept(job := site.job(site.started("until [ -e $SCRATCH/go ]; do sleep 0.02; done")))
    await until(lambda: site.starts == 1)
    journal_id, key_before = stream.hello.journal_id, identity(site).tls.key.read_bytes()
    code = site.hub.members.pair()
    done = await site.agent.enrol(site.hub.enrolment_endpoint, code)
    assert (done.returncode, "an agent runs with the identity in" in done.stderr) == (1, True)
    assert await site.agent.terminate() == 0
    done = await site.agent.enrol(site.hub.enrolment_endpoint, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert identity(site).tls.key.read_bytes() != key_before
    site.agent.start()
    stream = await site.hub.stream()
    assert (stream.resume_secret, stream.hello.journal_id) == (b"", journal_id)
    assert list(stream.in_hand) == [key(job)]
    assert stream.serial == site.hub.members.serials[-1]
    stream.welcome()
    (site.scratch / "go").touch()
    await stream.commit_all(key(job))
    assert site.starts == 1


async def test_an_agent_does_not_start_in_the_middle_of_an_enrolment(site: Site) -> None:
    hold = Hold(identity_in(site.agent.state))
    assert hold.acquire()
    site.agent.start()
    assert await site.agent.ended() == 1
    assert "is under way: start again when it has ended" in site.agent.log


def test_a_code_says_nothing_of_itself(tmp_path: Path) -> None:
    code = FakeHub(CertificateAuthority(tmp_path)).members.pair()
    assert repr(code) == f"PairingCode({code.pairing_id})"
    assert PairingCode.parse(f" {code.text().upper()}\n") == code
