"""What the credential service does with Vault, against a real one."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.credentials.vault import Vault
from services.credentials.vault_errors import CasMismatch, ValueMissing, VaultFailed
from tests.support.openbao import OpenBaoServer

_numbers = itertools.count(1)
AGENT = "spiffe://sis/agent/paris/web-1"
SERVICE = "spiffe://sis/service/queue"


@pytest.fixture
def path() -> str:
    """A path of the test's own."""
    return f"credentials/operations-{next(_numbers)}"


def request_for(*names: x509.GeneralName, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A CSR that asks for more than it should get."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    signed = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def names_of(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def usages_of(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


async def test_versions_are_written_and_read(vault: Vault, path: str) -> None:
    assert await vault.write(path, {"secret": "hunter2-first"}, 0) == 1
    assert await vault.write(path, {"secret": "hunter2-second", "user": "ünï"}, 1) == 2
    assert await vault.current_version(path) == 2
    newest = await vault.read(path)
    assert (newest.version, newest.values) == (2, {"secret": "hunter2-second", "user": "ünï"})
    assert (await vault.read(path, 1)).values == {"secret": "hunter2-first"}
    assert "hunter2" not in repr(newest)


async def test_a_write_that_supposes_another_version_is_refused(vault: Vault, path: str) -> None:
    await vault.write(path, {"secret": "first"}, 0)
    for cas in (0, 2):
        with pytest.raises(CasMismatch):
            await vault.write(path, {"secret": "second"}, cas)
    assert (await vault.read(path)).values == {"secret": "first"}


async def test_of_many_writes_for_one_version_one_is_done(vault: Vault, path: str) -> None:
    results = await asyncio.gather(
        *(vault.write(path, {"secret": str(number)}, 0) for number in range(20)), return_exceptions=True
    )
    assert results.count(1) == 1
    assert sum(isinstance(result, CasMismatch) for result in results) == 19


async def test_what_is_destroyed_is_gone_in_every_version(vault: Vault, openbao: OpenBaoServer, path: str) -> None:
    await vault.write(path, {"secret": "first"}, 0)
    await vault.write(path, {"secret": "second"}, 1)
    await vault.destroy(path)
    for version in (None, 1, 2):
        with pytest.raises(ValueMissing):
            await vault.read(path, version)
    assert await vault.current_version(path) is None
    await vault.destroy(path)
    with pytest.raises(ValueMissing):
        openbao.root("GET", f"sis-kv/metadata/{path}")
    assert await vault.write(path, {"secret": "third"}, 0) == 1


async def test_a_version_that_an_administrator_deleted_is_missing(
    vault: Vault, openbao: OpenBaoServer, path: str
) -> None:
    await vault.write(path, {"secret": "first"}, 0)
    openbao.root("DELETE", f"sis-kv/data/{path}")
    with pytest.raises(ValueMissing):
        await vault.read(path)
    assert await vault.current_version(path) == 1


async def test_nothing_is_missing_everywhere(vault: Vault) -> None:
    with pytest.raises(ValueMissing):
        await vault.read("credentials/nothing")
    with pytest.raises(ValueMissing):
        await vault.read("credentials/nothing", 3)
    assert await vault.current_version("credentials/nothing") is None
    assert await vault.list("credentials/nothing") == ()
    await vault.destroy("credentials/nothing")


async def test_names_are_listed(vault: Vault) -> None:
    for name in ("a", "b", "c/d"):
        await vault.write(f"credentials/listed/{name}", {"key": "0"}, 0)
    assert set(await vault.list("credentials/listed")) == {"a", "b", "c/"}


@pytest.mark.parametrize("wrong", ["", "/a", "a//b", "a/../b", "../a", "a/%2e%2e/b", "a?version=1", "a b", "ä"])
async def test_a_path_that_could_mean_another_is_refused(vault: Vault, wrong: str) -> None:
    with pytest.raises(ValueError, match="path"):
        await vault.read(wrong)


async def test_as_many_values_as_there_may_be(vault: Vault, path: str) -> None:
    large = "x" * 90_000  # 64 KiB in base64
    await vault.write(path, {"secret": large}, 0)
    assert (await vault.read(path)).values == {"secret": large}


async def test_an_agents_certificate_names_the_agent_alone(vault: Vault) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    csr = request_for(x509.DNSName("queue"), x509.UniformResourceIdentifier(SERVICE), key=key)
    before = datetime.now(UTC).replace(microsecond=0)
    signed = await vault.sign(csr, "sis-agent", uri_sans=[AGENT], ttl_seconds=86_400)
    certificate = x509.load_pem_x509_certificate(signed.certificate_pem)
    ca = x509.load_pem_x509_certificate(await vault.ca())
    certificate.verify_directly_issued_by(ca)
    assert certificate.public_key() == key.public_key()
    assert certificate.subject.rdns == []
    assert names_of(certificate) == {AGENT}
    assert usages_of(certificate) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert signed.serial == f"{certificate.serial_number:x}"
    assert signed.not_after == certificate.not_valid_after_utc
    assert timedelta(0) <= signed.not_after - before - timedelta(days=1) < timedelta(seconds=30)
    # Clocks that are ten minutes behind accept it, and the CA, which is as young here.
    assert certificate.not_valid_before_utc <= before - timedelta(minutes=14)
    assert ca.not_valid_before_utc <= ca.not_valid_after_utc - timedelta(days=3650, minutes=14)
    assert x509.load_pem_x509_certificate(signed.ca_chain_pem) == ca


async def test_a_services_certificate_names_what_it_is_reached_by(vault: Vault) -> None:
    signed = await vault.sign(
        request_for(),
        "sis-service",
        uri_sans=[SERVICE],
        dns_names=["queue", "localhost", "queue.example.org", "queue.sis.svc.cluster.local"],
        ip_addresses=["127.0.0.1", "10.1.2.3", "::1"],
        ttl_seconds=3_600,
    )
    certificate = x509.load_pem_x509_certificate(signed.certificate_pem)
    assert names_of(certificate) == {
        SERVICE,
        "queue",
        "localhost",
        "queue.example.org",
        "queue.sis.svc.cluster.local",
        "127.0.0.1",
        "10.1.2.3",
        "::1",
    }
    assert usages_of(certificate) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("sis-agent", {"uri_sans": [SERVICE]}),
        ("sis-agent", {"uri_sans": ["https://example.org"]}),
        ("sis-agent", {"uri_sans": [AGENT, SERVICE]}),
        ("sis-agent", {"uri_sans": [AGENT], "dns_names": ["queue"]}),
        ("sis-agent", {"uri_sans": [AGENT], "dns_names": ["localhost"]}),
        ("sis-agent", {"uri_sans": [AGENT], "ip_addresses": ["127.0.0.1"]}),
        ("sis-service", {"uri_sans": [AGENT]}),
        ("sis-service", {"uri_sans": [SERVICE], "dns_names": ["*.example.org"]}),
    ],
)
async def test_a_name_beyond_the_role_is_refused(vault: Vault, role: str, names: dict[str, list[str]]) -> None:
    with pytest.raises(VaultFailed, match=f"sign/{role} with 400"):
        await vault.sign(request_for(), role, ttl_seconds=60, **names)


@pytest.mark.parametrize("name", ["not a host", "a,b"])
async def test_no_certificate_for_other_names_than_those_asked_for(vault: Vault, name: str) -> None:
    with pytest.raises(VaultFailed, match="is not for the names"):
        await vault.sign(request_for(), "sis-service", uri_sans=[SERVICE], dns_names=[name], ttl_seconds=60)


async def test_a_key_of_another_kind_is_refused(vault: Vault) -> None:
    key = rsa.generate_private_key(65_537, 2_048)
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with pytest.raises(VaultFailed, match="requires keys of type ec"):
        await vault.sign(csr.public_bytes(serialization.Encoding.PEM), "sis-agent", uri_sans=[AGENT], ttl_seconds=60)


async def test_no_certificate_lives_longer_than_thirty_days(vault: Vault) -> None:
    signed = await vault.sign(request_for(), "sis-agent", uri_sans=[AGENT], ttl_seconds=90 * 86_400)
    assert signed.not_after - datetime.now(UTC) < timedelta(days=30, minutes=1)


async def test_a_revoked_certificate_is_on_the_list(vault: Vault, openbao: OpenBaoServer) -> None:
    signed = await vault.sign(request_for(), "sis-agent", uri_sans=[AGENT], ttl_seconds=3_600)
    await vault.revoke(signed.serial)
    await vault.revoke(signed.serial)
    crl = openbao.root("GET", "sis-pki/cert/crl")["data"]["certificate"]
    revoked = x509.load_pem_x509_crl(crl.encode()).get_revoked_certificate_by_serial_number(int(signed.serial, 16))
    assert revoked is not None
    with pytest.raises(ValueMissing):
        await vault.revoke("abc")
