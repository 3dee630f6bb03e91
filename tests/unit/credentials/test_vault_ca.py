"""The file with the CA of Vault is looked at before anything is sent: requests would say that Vault does not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.credentials.bootstrap import main
from services.credentials.vault import Vault, VaultSettings
from services.credentials.vault_errors import VaultUnreachable

ADDRESS = "https://127.0.0.1:1"
PROBLEMS = [
    ("missing.pem", "No such file or directory"),
    (".", "Is a directory"),
    ("wrong.pem", "there is no certificate in it, or it is not PEM"),
]


@pytest.fixture(autouse=True)
def _wrong(tmp_path: Path) -> None:
    (tmp_path / "wrong.pem").write_text("-----BEGIN NONSENSE-----")


@pytest.mark.parametrize(("file", "problem"), PROBLEMS)
def test_the_bootstrap_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, problem: str) -> None:
    ca = tmp_path / file
    assert main(["--address", ADDRESS, "--ca", str(ca), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"error: {ca}: {problem}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("file", "problem"), PROBLEMS)
async def test_the_service_names_it_and_tries_again(tmp_path: Path, file: str, problem: str) -> None:
    ca = tmp_path / file
    settings = VaultSettings(address=ADDRESS, ca=ca, role_id_file=tmp_path / "role", secret_id_file=tmp_path / "secret")
    vault = Vault(settings)
    try:
        for _ in range(2):
            with pytest.raises(VaultUnreachable, match=problem) as caught:
                await vault.ca()
            assert str(ca) in str(caught.value)
    finally:
        await vault.close()
