"""The identity on disk: one or the other after a crash at any point, whatever was sent before it, and never half."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.runtime.identity import pair
from services.runtime.pairing import renewal_message
from services.runtime.sealing import LeaseBinding, key_id, seal, unseal
from services.sis_agent.agent.errors import CertificateRefused, IdentityDamaged, NotEnrolled
from services.sis_agent.agent.trust import certification
from services.sis_agent.agent.trust.certification import SUPERSEDED_SECONDS, Enrolment, Hold
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.credentials.v1.certificate_pb2 import AgentKeys, IssuedCertificate
from tests.support.certificates import CertificateAuthority

ONE = "spiffe://sis/agent/local/one"
BINDING = LeaseBinding(1, 1, "one", "lease", "admin")


class Cut(BaseException):
    """The process was killed here."""


class Cutter:
    """Ends what runs in a block before the file system is changed for the n-th time, as if the process was killed."""

    EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "shutil.rmtree"})

    def __init__(self) -> None:
        self._left: int | None = None
        sys.addaudithook(self._seen)

    @contextmanager
    def __call__(self, changes: int) -> Iterator[None]:
        self._left = changes
        try:
            yield
        finally:
            self._left = None

    def _seen(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._left is None or event not in self.EVENTS:
            return
        if event == "open" and (not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        if self._left == 0:
            raise Cut
        self._left -= 1


cut_after = Cutter()


class Issuer:
    """What the credential service remembers of an agent: the next keys are taken, or the same again."""

    def __init__(self, authority: CertificateAuthority, name: str = "one") -> None:
        self.authority = authority
        self.name = name
        self.keys = b""

    def __call__(self, keys: bytes) -> IssuedCertificate:
        wanted, known = AgentKeys.FromString(keys), AgentKeys.FromString(self.keys)
        assert wanted.generation == known.generation + 1 or keys == self.keys
        self.keys = keys
        chain = self.authority.certify(wanted.csr, f"spiffe://sis/agent/local/{self.name}")
        return IssuedCertificate(certificate_chain=chain)

    def lease(self) -> tuple[str, bytes]:
        """A secret that is sealed to the agent now, with the key's id."""
        public = AgentKeys.FromString(self.keys).sealing_key
        return key_id(public), seal(b"hunter22", public, BINDING)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def issuer(authority: CertificateAuthority) -> Issuer:
    return Issuer(authority)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "identity"


def enrol(directory: Path, issuer: Issuer, code: str = "first") -> AgentIdentity:
    enrolment = Enrolment.begin(directory, code)
    if issuer.keys != enrolment.keys:
        issuer.keys = b""  # the code makes another agent of it
    return enrolment.complete(
        issuer(enrolment.keys),
        issuer.authority.ca.read_bytes(),
        time.time(),
        name=issuer.name,
        group="local",
        enrolment_endpoint="[::1]:7003",
        agent_endpoints=[":7001", "other:7001"],
    )


def renew(identity: AgentIdentity, issuer: Issuer) -> AgentIdentity:
    keys, signature = certification.renewal(identity)
    key = serialization.load_pem_private_key(identity.tls.key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    key.public_key().verify(signature, renewal_message(identity.name, keys), ec.ECDSA(hashes.SHA256()))
    return certification.renewed(identity, issuer(keys), time.time())


def is_whole(directory: Path, issuer: Issuer) -> AgentIdentity:
    """The identity that is there now fits together, and whatever is sealed to it now can be opened."""
    identity = certification.opened(directory)
    pair(identity.tls.key.read_bytes(), identity.tls.certificate.read_bytes())
    leaf = x509.load_pem_x509_certificates(identity.tls.certificate.read_bytes())[0]
    assert leaf.not_valid_after_utc.timestamp() == identity.not_after
    assert identity.sealing_key(identity.sealing_key_id) is not None
    wanted, sealed = issuer.lease()
    key = identity.sealing_key(wanted)
    assert key is not None
    assert unseal(sealed, key, BINDING) == b"hunter22"
    assert not any((directory / each / "identity.json").exists() for each in ("enrolment", "renewal"))
    return identity


def test_an_enrolment_and_a_renewal(directory: Path, issuer: Issuer) -> None:
    with pytest.raises(NotEnrolled, match="sis-agent enrol"):
        certification.opened(directory)
    first = enrol(directory, issuer)
    assert is_whole(directory, issuer) == first
    assert (first.name, first.group, first.generation) == ("one", "local", 1)
    assert first.hub_endpoints == ("[::1]:7001", "other:7001")
    second = renew(first, issuer)
    assert is_whole(directory, issuer) == second
    assert second.generation == 2
    assert second.sealing_key_id != first.sealing_key_id
    assert second.sealing_key(first.sealing_key_id) is not None


def test_everything_is_private(directory: Path, issuer: Issuer) -> None:
    identity = renew(enrol(directory, issuer), issuer)
    identity.persist_resume_secret(b"secret")
    certification.renewal(identity)
    assert Hold(directory).acquire()
    for path in [directory, *directory.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    assert "secret" not in repr(identity)


def every_cut(scratch: Path, template: Path, do: Callable[[Path], object]) -> Iterator[Path]:
    """The directory after `do` was cut before its first change, before its second, and so on until it was not."""
    for changes in range(200):
        directory = scratch / str(changes) / "identity"
        if template.exists():
            shutil.copytree(template, directory)
        try:
            with cut_after(changes):
                do(directory)
        except Cut:
            yield directory
        else:
            assert changes > 10
            return
    raise AssertionError("it never came to its end")


def test_a_renewal_that_is_cut_anywhere(tmp_path: Path, directory: Path, authority: CertificateAuthority) -> None:
    first = Issuer(authority)
    enrol(directory, first)
    issuer = first

    def once(directory: Path) -> None:
        nonlocal issuer
        issuer = Issuer(authority)
        issuer.keys = first.keys
        renew(certification.opened(directory), issuer)

    for cut in every_cut(tmp_path, directory, once):
        identity = is_whole(cut, issuer)
        assert identity.generation in (1, 2)
        again = renew(identity, issuer)
        assert is_whole(cut, issuer) == again
        assert again.generation == identity.generation + 1
        assert renew(again, issuer).generation == again.generation + 1


@pytest.mark.parametrize("before", [False, True], ids=["the first", "in the place of another"])
def test_an_enrolment_that_is_cut_anywhere(
    tmp_path: Path, directory: Path, authority: CertificateAuthority, before: bool
) -> None:
    if before:
        other = Issuer(authority, "former")
        former = renew(enrol(directory, other, "former"), other)
        former.persist_resume_secret(b"former")
        certification.renewal(former)
    issuer = Issuer(authority)

    def once(directory: Path) -> None:
        nonlocal issuer
        issuer = Issuer(authority)
        enrol(directory, issuer)

    for cut in every_cut(tmp_path, directory, once):
        sent = issuer.keys
        try:
            found = certification.opened(cut)
        except NotEnrolled:
            assert not before
            found = None
        if found is None or found.name == "former":
            # The same code goes on with what was sent, if anything was.
            found = enrol(cut, issuer)
            assert sent in (b"", issuer.keys)
        assert found.pairing_id == "first"
        assert is_whole(cut, issuer) == found
        assert found.resume_secret == b""
        if before:
            assert found.sealing_key(former.sealing_key_id) is not None, "its attempts may still need it"
        assert renew(found, issuer).generation == 2


def test_another_code_makes_another_request(directory: Path, issuer: Issuer) -> None:
    first = Enrolment.begin(directory, "first").keys
    assert Enrolment.begin(directory, "first").keys == first
    assert Enrolment.begin(directory, "second").keys != first
    enrol(directory, issuer, "second")


def test_a_request_stays_the_same_until_it_is_answered(directory: Path, issuer: Issuer) -> None:
    identity = enrol(directory, issuer)
    keys, _ = certification.renewal(identity)
    assert certification.renewal(certification.opened(directory))[0] == keys
    assert AgentKeys.FromString(keys).generation == 2
    renewed = renew(identity, issuer)
    assert AgentKeys.FromString(certification.renewal(renewed)[0]).generation == 3


def test_sealing_keys_are_kept_for_a_day_and_while_they_are_needed(directory: Path, issuer: Issuer) -> None:
    first = enrol(directory, issuer)
    second = renew(first, issuer)
    for hours, kept in ((23, True), (25, False)):
        keys, _ = certification.renewal(second)
        later = time.time() + hours * 3600
        third = certification.renewed(second, issuer(keys), later, keep={second.sealing_key_id})
        assert (third.sealing_key(first.sealing_key_id) is not None) is kept
        assert third.sealing_key(second.sealing_key_id) is not None
        assert third.sealing_key(third.sealing_key_id) is not None
        second = replace(third, sealing_key_id=second.sealing_key_id)
    assert SUPERSEDED_SECONDS == 24 * 3600


def test_the_sealing_key_of_an_enrolment_that_may_be_repeated_is_kept(directory: Path, issuer: Issuer) -> None:
    identity = enrol(directory, issuer)
    begun = AgentKeys.FromString(Enrolment.begin(directory, "another").keys)
    keys, _ = certification.renewal(identity)
    renewed = certification.renewed(identity, issuer(keys), time.time() + 25 * 3600, keep=())
    assert AgentKeys.FromString(Enrolment.begin(directory, "another").keys) == begun
    assert renewed.sealing_key(key_id(begun.sealing_key)) is not None


@pytest.mark.parametrize("wanted", ["", "../key", "0" * 16, "A" * 16, "../sealing/0"])
def test_a_sealing_key_that_is_not_here(directory: Path, issuer: Issuer, wanted: str) -> None:
    assert enrol(directory, issuer).sealing_key(wanted) is None


def test_a_certificate_that_proves_nothing_is_not_taken(
    tmp_path: Path, directory: Path, issuer: Issuer, authority: CertificateAuthority
) -> None:
    identity = enrol(directory, issuer)
    with pytest.raises(CertificateRefused, match="not asked for"):
        certification.renewed(identity, issuer(issuer.keys), time.time())
    keys, _ = certification.renewal(identity)
    csr = AgentKeys.FromString(keys).csr
    other_key = authority.agent("local", "one").certificate.read_bytes()
    agent = authority.agent("local", "two")
    forged = _signed_by_an_agent(agent.key, agent.certificate, csr)
    for chain, problem in (
        (b"", "cannot be read"),
        (authority.ca.read_bytes(), "cannot be read"),
        (other_key, "another key"),
        (CertificateAuthority(tmp_path / "other").certify(csr, ONE), "the CA that this agent trusts"),
        (forged + agent.certificate.read_bytes(), "the CA that this agent trusts"),
        (authority.certify(csr, "spiffe://sis/agent/local/two"), "not for one of local"),
        (authority.certify(csr, "spiffe://sis/service/hub", ("hub",)), "not for one of local"),
    ):
        with pytest.raises(CertificateRefused, match=problem):
            certification.renewed(identity, IssuedCertificate(certificate_chain=chain), time.time())
    assert is_whole(directory, issuer) == identity
    assert renew(identity, issuer).generation == 2


def _signed_by_an_agent(key: Path, certificate: Path, csr: bytes) -> bytes:
    """A certificate for `one` that another agent has signed, which is no CA."""
    issuer = x509.load_pem_x509_certificate(certificate.read_bytes())
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(x509.load_der_x509_csr(csr).public_key())
        .serial_number(1)
        .not_valid_before(issuer.not_valid_before_utc)
        .not_valid_after(issuer.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ONE)]), critical=False)
        .sign(private, hashes.SHA256())
    )
    return forged.public_bytes(serialization.Encoding.PEM)


def test_what_cannot_be_read_is_named(directory: Path, issuer: Issuer) -> None:
    identity = enrol(directory, issuer)
    (directory / "sealing" / f"{identity.sealing_key_id}.key").write_bytes(b"short")
    with pytest.raises(IdentityDamaged, match=r"\.key cannot be read: enrol again"):
        identity.sealing_key(identity.sealing_key_id)
    (directory / "key.pem").write_bytes(b"")
    with pytest.raises(IdentityDamaged, match=r"key\.pem cannot be read: enrol again"):
        certification.renewal(identity)
    (directory / "identity.json").write_text("{}")
    with pytest.raises(IdentityDamaged, match=r"identity\.json cannot be read"):
        AgentIdentity.load(directory)
    assert enrol(directory, issuer, "again").pairing_id == "again"


def test_a_resume_secret_that_cannot_be_written_leaves_the_last_one(directory: Path, issuer: Issuer) -> None:
    identity = enrol(directory, issuer)
    assert identity.resume_secret == b""
    identity.persist_resume_secret(b"first")
    (directory / ".resume.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        identity.persist_resume_secret(b"second")
    assert identity.resume_secret == b"first"


MINUTE, HOUR = 60.0, 3600.0


@pytest.mark.parametrize("skew", [-10 * MINUTE, 0.0, 10 * MINUTE])
@pytest.mark.parametrize("backdated", [30.0, HOUR])
def test_two_thirds_of_its_life_whatever_the_clock_says(
    directory: Path, issuer: Issuer, skew: float, backdated: float
) -> None:
    now = 1e9  # of the server
    identity = replace(
        enrol(directory, issuer), not_before=now - backdated, not_after=now + 24 * HOUR, certified_at=now + skew
    )
    hours = [hour / 10 for hour in range(300) if identity.due(now + skew + hour * HOUR / 10)]
    assert 15.8 <= hours[0] <= 16.2
    assert hours[-1] == 29.9
    assert identity.worn(now + skew + 24 * HOUR)


@pytest.mark.parametrize("skew", [-10 * MINUTE, 10 * MINUTE])
def test_a_life_that_is_shorter_than_the_clock_is_wrong(directory: Path, issuer: Issuer, skew: float) -> None:
    now = 1e9
    identity = replace(
        enrol(directory, issuer), not_before=now - 30, not_after=now + 5 * MINUTE, certified_at=now + skew
    )
    assert not identity.due(now + skew)
    assert identity.due(now + skew + 4 * MINUTE)
    assert identity.worn(now + skew) is (skew > 0)


def test_a_clock_that_was_set_back(directory: Path, issuer: Issuer) -> None:
    identity = enrol(directory, issuer)
    assert not identity.due(identity.certified_at - 9 * MINUTE)
    assert identity.due(identity.certified_at - 11 * MINUTE)


def test_one_process_at_a_time_may_change_it(directory: Path) -> None:
    first, second = Hold(directory), Hold(directory)
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    first.release()
    first.release()
    assert second.acquire()
    assert not first.acquire()
