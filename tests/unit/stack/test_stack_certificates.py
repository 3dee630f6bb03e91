"""The bootstrap CA: who a certificate names, when it is made anew, and who may read the keys."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from sis.stack.certificates import Authority
from sis.stack.errors import StackError

SERVER = ("queue", "spiffe://sis/service/queue", ["queue"])


def _in(days: int) -> Callable[[], datetime.datetime]:
    """A clock that is ahead."""
    return lambda: datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_a_server_is_named_by_its_identity_and_its_hosts(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue(*SERVER)
    certificate = _load(files.certificate)
    certificate.verify_directly_issued_by(_load(authority.certificate_file))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://sis/service/queue"]
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "queue"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_an_agent_serves_nobody(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue("local-1", "spiffe://sis/agent/local/local-1")
    usages = _load(files.certificate).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_only_the_owner_reads_the_files(tmp_path: Path) -> None:
    Authority(tmp_path).issue(*SERVER)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_the_same_certificate_is_given_again(tmp_path: Path) -> None:
    before = _load(Authority(tmp_path).issue(*SERVER).certificate)
    assert _load(Authority(tmp_path).issue(*SERVER).certificate) == before


def test_it_is_renewed_before_a_third_of_its_life_is_left(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue(*SERVER)
    before, key = _load(files.certificate), files.key.read_bytes()
    assert _load(Authority(tmp_path, _in(240)).issue(*SERVER).certificate) == before
    assert _load(Authority(tmp_path, _in(250)).issue(*SERVER).certificate) != before
    assert files.key.read_bytes() != key


def test_it_is_made_anew_when_it_names_somebody_else_or_another_ca_signed_it(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue(*SERVER)
    before = _load(files.certificate)
    Authority(tmp_path).issue("queue", "spiffe://sis/service/other", ["queue"])
    renamed = _load(files.certificate)
    assert renamed != before
    (tmp_path / "ca.pem").unlink()
    authority = Authority(tmp_path)
    certificate = _load(authority.issue("queue", "spiffe://sis/service/other", ["queue"]).certificate)
    certificate.verify_directly_issued_by(_load(authority.certificate_file))


def test_a_torn_key_is_replaced(tmp_path: Path) -> None:
    files = Authority(tmp_path).issue(*SERVER)
    files.key.write_bytes(files.key.read_bytes()[:40])
    Authority(tmp_path).issue(*SERVER)
    assert files.key.read_bytes().endswith(b"-----END PRIVATE KEY-----\n")


def test_an_expiring_ca_is_refused_in_words(tmp_path: Path) -> None:
    Authority(tmp_path)
    with pytest.raises(StackError, match=r"expires on .*: remove that directory"):
        Authority(tmp_path, _in(3600))


def test_a_ca_with_another_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Authority(tmp_path / "a")
    (tmp_path / "b").mkdir()
    Authority(tmp_path / "b")
    (tmp_path / "b" / "ca.key").replace(tmp_path / "a" / "ca.key")
    with pytest.raises(StackError, match="is not the key of"):
        Authority(tmp_path / "a")
