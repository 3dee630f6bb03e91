"""What the settings for Vault refuse before anything is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.credentials.vault import VaultSettings

LOGIN = {"role_id_file": Path("role-id"), "secret_id_file": Path("secret-id")}


@pytest.mark.parametrize(
    "address", ["https://vault:8200", "https://[::1]:8200", "http://127.0.0.1:8200", "http://localhost:8200"]
)
def test_an_address(address: str) -> None:
    assert VaultSettings(address, **LOGIN).address == address


@pytest.mark.parametrize(
    ("address", "fields", "problem"),
    [
        ("http://vault:8200", LOGIN, "address: give https://; without TLS only a Vault on this machine"),
        ("http://10.0.0.1:8200", LOGIN, "address: give https://; without TLS"),
        ("vault:8200", LOGIN, "address: give https://HOST:PORT"),
        ("ftp://vault", LOGIN, "address: give https://HOST:PORT"),
        ("https://root:hunter2@vault", LOGIN, "address: give https://HOST:PORT"),
        ("https://vault:8200", {}, "role_id_file, secret_id_file: AppRole needs both"),
        ("https://vault:8200", {"role_id_file": Path("role-id")}, "AppRole needs both"),
        ("https://vault:8200", {**LOGIN, "timeout": 0}, "timeout: give seconds"),
        ("https://vault:8200", {**LOGIN, "timeout": 61}, "timeout: give seconds"),
    ],
)
def test_what_is_refused(address: str, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        VaultSettings(address, **fields)
    assert "hunter2" not in str(caught.value)


def test_kubernetes_needs_no_files_of_its_own() -> None:
    assert VaultSettings("https://vault:8200", auth="kubernetes").kubernetes_role == "sis-credentials"
