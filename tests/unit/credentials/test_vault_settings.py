"""What the settings for Vault refuse before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.credentials.main import CredentialsSettings
from services.credentials.vault import VaultSettings

LOGIN = {"role_id_file": Path("role-id"), "secret_id_file": Path("secret-id")}


@pytest.mark.parametrize(
    "address", ["https://vault:8200", "https://[::1]:8200", "http://127.0.0.1:8200", "http://localhost:8200"]
)
def test_an_address(address: str) -> None:
    assert VaultSettings(address=address, **LOGIN).address == address


@pytest.mark.parametrize(
    ("address", "fields", "problem"),
    [
        ("http://vault:8200", LOGIN, "address\n.*give https:// as the address of Vault; without TLS only one on this"),
        ("http://10.0.0.1:8200", LOGIN, "give https:// as the address of Vault; without TLS"),
        ("vault:8200", LOGIN, "address\n.*give https://HOST:PORT"),
        ("ftp://vault", LOGIN, "give https://HOST:PORT"),
        ("https://root:hunter2@vault", LOGIN, "give https://HOST:PORT"),
        ("https://vault:8200", {}, "(?s)role_id_file\n.*secret_id_file\n.*AppRole needs it"),
        ("https://vault:8200", {"role_id_file": Path("role-id")}, "1 .*\nsecret_id_file\n.*AppRole needs it"),
        ("https://vault:8200", {**LOGIN, "timeout_seconds": 0}, "timeout_seconds\n"),
        ("https://vault:8200", {**LOGIN, "timeout_seconds": 61}, "timeout_seconds\n"),
    ],
)
def test_what_is_refused(address: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        VaultSettings(address=address, **fields)
    assert "hunter2" not in str(caught.value)


def test_kubernetes_needs_no_files_of_its_own() -> None:
    assert VaultSettings(address="https://vault:8200", auth="kubernetes").kubernetes_role == "sis-credentials"


ENVIRONMENT = {
    "DATABASE_URL": "postgresql:///sis",
    "LISTEN": "localhost:0",
    "INTERNAL_LISTEN": "localhost:0",
    "ADMIN_TOKEN_SHA256": "ab" * 32,
    "TLS_CA": "/ca.pem",
    "IDENTITY": "/identity",
    "VAULT_ADDRESS": "https://vault:8200",
    "VAULT_CA": "/vault.pem",
    "VAULT_NAMESPACE": "site",
    "VAULT_KV_MOUNT": "kv",
    "VAULT_PKI_MOUNT": "pki",
    "VAULT_AUTH": "kubernetes",
    "VAULT_AUTH_MOUNT": "cluster",
    "VAULT_ROLE_ID_FILE": "/role-id",
    "VAULT_SECRET_ID_FILE": "/secret-id",
    "VAULT_KUBERNETES_ROLE": "role",
    "VAULT_KUBERNETES_TOKEN_FILE": "/token",
    "VAULT_TIMEOUT_SECONDS": "2.5",
}


def test_each_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(f"SIS_CREDENTIALS_{name}", value)
    given = VaultSettings(
        address="https://vault:8200",
        ca=Path("/vault.pem"),
        namespace="site",
        kv_mount="kv",
        pki_mount="pki",
        auth="kubernetes",
        auth_mount="cluster",
        role_id_file=Path("/role-id"),
        secret_id_file=Path("/secret-id"),
        kubernetes_role="role",
        kubernetes_token_file=Path("/token"),
        timeout_seconds=2.5,
    )
    assert CredentialsSettings.load().vault == given
    assert all(given.model_dump()[name] != field.default for name, field in VaultSettings.model_fields.items())


def test_what_is_wrong_is_named_by_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        CredentialsSettings.load()
    assert "error: SIS_CREDENTIALS_VAULT_ADDRESS is not set" in capsys.readouterr().err.splitlines()
    monkeypatch.setenv("SIS_CREDENTIALS_VAULT_ADDRESS", "http://vault")
    monkeypatch.setenv("SIS_CREDENTIALS_VAULT_TIMEOUT_SECONDS", "0")
    with pytest.raises(SystemExit):
        CredentialsSettings.load()
    found = {line.partition(":")[2].partition(":")[0].strip() for line in capsys.readouterr().err.splitlines()}
    names = ("ADDRESS", "ROLE_ID_FILE", "SECRET_ID_FILE", "TIMEOUT_SECONDS")
    assert found >= {f"SIS_CREDENTIALS_VAULT_{name}" for name in names}
