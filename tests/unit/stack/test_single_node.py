"""What the pods of the single-node overlay prove themselves by."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from sis.stack import single_node
from sis.stack.commands import token_sha256
from sis.stack.single_node import COMPLETE, HOLDERS, JOINING


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    for holder in HOLDERS:
        (tmp_path / holder).mkdir()
    return tmp_path


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_each_holder_has_what_it_needs_and_the_digests_agree(volumes: Path) -> None:
    single_node.make(volumes)
    token = (volumes / "administrator" / "token").read_text()
    password = (volumes / "postgres" / "password").read_text()
    for service in ("credentials", "queue", "hub"):
        prefix = f"SIS_{service.upper()}_"
        assert (volumes / service / f"{prefix}ADMIN_TOKEN_SHA256").read_text() == token_sha256(token)
        url = (volumes / service / f"{prefix}DATABASE_URL").read_text()
        assert url == f"postgresql+psycopg://sis:{password}@sis-postgres:5432/sis"
    joined = {service: token_sha256((volumes / service / "join.token").read_text()) for service in JOINING}
    listed = (volumes / "credentials" / "SIS_CREDENTIALS_JOIN_TOKENS").read_text()
    assert listed == ",".join(f"{service}={digest}" for service, digest in joined.items())
    assert len((volumes / "openbao" / "unseal.key").read_bytes()) == 32
    served = (volumes / "openbao" / "certificate.pem").read_bytes()
    assert (volumes / "credentials" / "openbao.pem").read_bytes() == served
    names = x509.load_pem_x509_certificate(served).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == ["sis-openbao"]
    assert all((volumes / holder / COMPLETE).exists() for holder in HOLDERS)
    assert {path.stat().st_mode & 0o777 for path in volumes.rglob("*") if path.is_file()} == {0o600}


def test_nobody_holds_what_is_anothers(volumes: Path) -> None:
    single_node.make(volumes)
    found = everything(volumes)
    secrets = {name: found[name] for name in ("administrator/token", "postgres/password", "openbao/unseal.key")}
    secrets |= {f"{service}/join.token": found[f"{service}/join.token"] for service in JOINING}
    for name, secret in secrets.items():
        holder = name.partition("/")[0]
        others = [path for path, content in found.items() if secret in content and not path.startswith(f"{holder}/")]
        databases = [f"{service}/SIS_{service.upper()}_DATABASE_URL" for service in ("credentials", "queue", "hub")]
        assert sorted(others) == (sorted(databases) if name == "postgres/password" else []), name


def test_made_again_it_is_what_it_was(volumes: Path) -> None:
    single_node.make(volumes)
    before = everything(volumes)
    single_node.make(volumes)
    assert everything(volumes) == before


@pytest.mark.parametrize(
    "lost", ["hub/SIS_HUB_DATABASE_URL", "credentials/openbao.pem", "credentials/SIS_CREDENTIALS_JOIN_TOKENS"]
)
def test_what_an_interrupted_run_left_out_is_made_up(volumes: Path, lost: str) -> None:
    single_node.make(volumes)
    before = everything(volumes)
    (volumes / lost).unlink()
    single_node.make(volumes)
    assert everything(volumes) == before


def test_a_volume_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "administrator").write_text("a file")
    assert single_node.main([str(tmp_path)]) == 1
    assert f"{tmp_path}/administrator" in capsys.readouterr().err
    assert single_node.main([]) == 2
