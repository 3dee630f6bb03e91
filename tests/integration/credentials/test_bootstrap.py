"""`sis vault bootstrap` on servers that are new, used, foreign, and not its own to command."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from services.credentials.bootstrap import policies, policy
from services.credentials.vault import Vault, VaultSettings
from services.credentials.vault_errors import ValueMissing, VaultForbidden
from tests.support.openbao import OpenBaoServer


def files(directory: Path) -> dict[str, tuple[bytes, int]]:
    """What is in each file, and who may read it."""
    return {
        path.name: (path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        for path in directory.rglob("*")
        if path.is_file()
    }


def configuration(openbao: OpenBaoServer) -> dict[str, Any]:
    """All that the bootstrap sees to."""
    paths = [
        "sys/mounts",
        "sys/auth",
        "sys/policies/acl/sis-credentials",
        "sis-kv/config",
        "sis-pki/roles/sis-agent",
        "sis-pki/roles/sis-service",
        "sis-pki/config/auto-tidy",
        "sis-pki/cert/ca_chain",
        "auth/approle/role/sis-credentials",
        "auth/approle/role/sis-credentials/role-id",
    ]
    found: dict[str, Any] = {path: openbao.root("GET", path)["data"] for path in paths}
    found["secret ids"] = openbao.root("LIST", "auth/approle/role/sis-credentials/secret-id")["data"]
    return found


async def serves(settings: VaultSettings, path: str = "credentials/bootstrapped") -> None:
    """The credential service can work with it."""
    vault = Vault(settings)
    try:
        await vault.write(path, {"secret": "x"}, await vault.current_version(path) or 0)
        assert b"BEGIN CERTIFICATE" in await vault.ca()
    finally:
        await vault.close()


def test_the_second_time_it_changes_nothing(openbao: OpenBaoServer) -> None:
    before, had = configuration(openbao), files(openbao.output)
    done = openbao.bootstrap()
    assert done.returncode == 0, done.stderr
    assert all(line.endswith(": there") for line in done.stdout.splitlines()), done.stdout
    assert len(done.stdout.splitlines()) == 12
    assert configuration(openbao) == before
    assert files(openbao.output) == had
    assert {name: mode for name, (_, mode) in had.items()} == {"ca.pem": 0o644, "role-id": 0o600, "secret-id": 0o600}
    assert stat.S_IMODE(openbao.server.keys.stat().st_mode) == 0o600


def test_what_it_prints_holds_no_secret(openbao: OpenBaoServer, tmp_path: Path) -> None:
    done = openbao.bootstrap("--output", str(tmp_path))
    assert done.returncode == 0
    keys = openbao.keys
    for secret in (keys["root_token"], *keys["unseal_keys"], (tmp_path / "secret-id").read_text().strip()):
        assert secret
        assert secret not in done.stdout + done.stderr


def test_the_ca_is_an_ec_root_for_ten_years(openbao: OpenBaoServer) -> None:
    certificate = x509.load_pem_x509_certificate((openbao.output / "ca.pem").read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=SIS CA"
    assert certificate.public_key().curve.name == "secp256r1"  # type: ignore[union-attr]
    assert 3_650 <= (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days <= 3_651
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


async def test_it_puts_right_what_was_changed(openbao: OpenBaoServer) -> None:
    before = configuration(openbao)
    openbao.root("POST", "sis-pki/roles/sis-agent", {"allow_any_name": True, "allowed_uri_sans": ["*"]})
    openbao.root("DELETE", "sis-pki/roles/sis-service")
    openbao.root("POST", "sys/policies/acl/sis-credentials", {"policy": 'path "*" {capabilities = ["sudo"]}'})
    openbao.root("POST", "auth/approle/role/sis-credentials", {"token_policies": ["default"], "token_period": 0})
    done = openbao.bootstrap()
    assert done.returncode == 0, done.stderr
    changed = {line.partition(": ")[0]: line.partition(": ")[2] for line in done.stdout.splitlines()}
    assert {thing: what for thing, what in changed.items() if what != "there"} == {
        "sis-pki/roles/sis-agent": "changed",
        "sis-pki/roles/sis-service": "made",
        "sys/policies/acl/sis-credentials": "changed",
        "auth/approle/role/sis-credentials": "changed",
    }
    after = configuration(openbao)
    for found in (before, after):  # a policy knows when it was changed
        found["sys/policies/acl/sis-credentials"] = found["sys/policies/acl/sis-credentials"]["policy"]
    assert after == before
    await serves(openbao.settings())


async def test_a_login_that_works_no_more_is_replaced(openbao: OpenBaoServer, tmp_path: Path) -> None:
    assert openbao.bootstrap("--output", str(tmp_path)).returncode == 0
    settings = openbao.settings(role_id_file=tmp_path / "role-id", secret_id_file=tmp_path / "secret-id")
    await serves(settings)
    (tmp_path / "secret-id").write_text("something-else")
    (tmp_path / "role-id").write_text("something-else")
    done = openbao.bootstrap("--output", str(tmp_path))
    assert f"{tmp_path}/secret-id: changed" in done.stdout.splitlines()
    assert f"{tmp_path}/role-id: changed" in done.stdout.splitlines()
    await serves(settings)


async def test_mounts_by_other_names(openbao: OpenBaoServer, tmp_path: Path) -> None:
    names = {"kv": "team/values", "pki": "team/pki", "auth": "team-login"}
    arguments = ("--kv-mount", names["kv"], "--pki-mount", names["pki"], "--auth-mount", names["auth"])
    before = openbao.root("GET", "sys/policies/acl/sis-credentials")["data"]["policy"]
    try:
        for _ in range(2):
            done = openbao.bootstrap(*arguments, "--ca-common-name", "Team CA", "--output", str(tmp_path))
            assert done.returncode == 0, done.stderr
        assert "made" not in done.stdout
        settings = openbao.settings(
            kv_mount=names["kv"],
            pki_mount=names["pki"],
            auth_mount=names["auth"],
            role_id_file=tmp_path / "role-id",
            secret_id_file=tmp_path / "secret-id",
        )
        await serves(settings)
        assert b"BEGIN" in (tmp_path / "ca.pem").read_bytes()
        assert (tmp_path / "ca.pem").read_bytes() != (openbao.output / "ca.pem").read_bytes()
        with pytest.raises(VaultForbidden):
            await serves(settings.model_copy(update={"kv_mount": "sis-kv"}))
    finally:
        openbao.root("POST", "sys/policies/acl/sis-credentials", {"policy": before})


async def test_in_a_namespace(openbao: OpenBaoServer, tmp_path: Path) -> None:
    openbao.root("POST", "sys/namespaces/paris", {})
    for _ in range(2):
        done = openbao.bootstrap("--namespace", "paris", "--output", str(tmp_path))
        assert done.returncode == 0, done.stderr
    assert "made" not in done.stdout
    settings = openbao.settings(
        namespace="paris", role_id_file=tmp_path / "role-id", secret_id_file=tmp_path / "secret-id"
    )
    path = "credentials/of-paris"
    await serves(settings, path)
    # It is another login, for other values.
    with pytest.raises(VaultForbidden):
        await serves(settings.model_copy(update={"namespace": ""}))
    with pytest.raises(ValueMissing):
        openbao.root("GET", f"sis-kv/data/{path}")
    assert openbao.root("GET", f"sis-kv/data/{path}", namespace="paris")["data"]["data"] == {"secret": "x"}
    done = openbao.bootstrap("--namespace", "nowhere", "--output", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")


async def test_the_policy_for_whoever_runs_it_is_enough(openbao: OpenBaoServer, tmp_path: Path) -> None:
    mounts = {"kv_mount": "least-kv", "pki_mount": "least-pki", "auth_mount": "least-login"}
    openbao.root("POST", "sys/policies/acl/operator", {"policy": policy("bootstrap", **mounts)})
    made = openbao.root("POST", "auth/token/create", {"policies": ["operator"], "no_default_policy": True, "ttl": "5m"})
    token_file = tmp_path / "token"
    token_file.write_text(made["auth"]["client_token"] + "\n")
    before = openbao.root("GET", "sys/policies/acl/sis-credentials")["data"]["policy"]
    arguments = [word for name, mount in mounts.items() for word in (f"--{name.replace('_', '-')}", mount)]
    try:
        for _ in range(2):
            done = openbao.bootstrap(
                *arguments, "--token-file", str(token_file), "--output", str(tmp_path), keys=False, VAULT_TOKEN="wrong"
            )
            assert done.returncode == 0, done.stderr
    finally:
        openbao.root("POST", "sys/policies/acl/sis-credentials", {"policy": before})
    refused = openbao.bootstrap("--token-file", str(token_file), "--output", str(tmp_path), keys=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: Vault denies ")
    assert "deploy/vault/bootstrap.hcl" in refused.stderr


@pytest.mark.parametrize("body", [{"type": "kv", "options": {"version": "1"}}, {"type": "transit"}])
def test_a_mount_of_another_kind_is_left_alone(openbao: OpenBaoServer, tmp_path: Path, body: dict[str, object]) -> None:
    openbao.root("POST", "sys/mounts/foreign", body)
    try:
        done = openbao.bootstrap("--kv-mount", "foreign", "--output", str(tmp_path))
        assert done.returncode == 1
        assert done.stderr.startswith("error: foreign is a mount of another kind")
        done = openbao.bootstrap("--pki-mount", "foreign", "--output", str(tmp_path))
        assert done.returncode == 1
    finally:
        openbao.root("DELETE", "sys/mounts/foreign")


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {}, "there is no token for Vault: give --token-file FILE, or set VAULT_TOKEN"),
        ((), {"VAULT_TOKEN": "wrong"}, "Vault denies GET auth/token/lookup-self"),
        (("--token-file", "/nonexistent"), {}, "No such file"),
        (("--kv-mount", "/sis-kv/"), {}, "give a name without slashes at its ends"),
        (("--address", "http://192.0.2.1:8200"), {}, "give https:// as the address"),
        (("--address", "https://127.0.0.1:1"), {}, "does not answer at https://127.0.0.1:1: Connection refused"),
        (("--wait", "-1"), {}, "--wait: give 0 to 3600 seconds"),
        (("--wait", "nan"), {}, "--wait: give 0 to 3600 seconds"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    openbao: OpenBaoServer, tmp_path: Path, arguments: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    done = openbao.bootstrap("--output", str(tmp_path), *arguments, keys=False, **environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_sealed_server_needs_its_keys(openbao: OpenBaoServer, tmp_path: Path) -> None:
    openbao.seal()
    done = openbao.bootstrap("--output", str(tmp_path), keys=False)
    assert done.returncode == 1
    assert "Vault is sealed; unseal it" in done.stderr
    damaged = tmp_path / "keys.json"
    damaged.write_text("[not json")
    done = openbao.bootstrap("--output", str(tmp_path), "--keys", str(damaged))
    assert "is not a file that this command has written" in done.stderr
    done = openbao.bootstrap()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("server: unsealed\n")


def test_it_waits_for_a_server_that_does_not_answer_yet(openbao: OpenBaoServer) -> None:
    openbao.stop()
    with ThreadPoolExecutor(1) as other, socket.create_server(("127.0.0.1", openbao.server.port)) as nobody:
        nobody.settimeout(30)
        running = other.submit(openbao.bootstrap, "--wait", "50")
        nobody.accept()[0].close()
        nobody.accept()[0].close()  # so the first was not the last
        nobody.close()
        openbao.start()
        done = running.result()
    assert done.returncode == 0, done.stderr


def test_by_the_command_line(openbao: OpenBaoServer) -> None:
    words = ["vault", "bootstrap", *openbao.server.bootstrap_arguments(openbao.output)]
    run = [sys.executable, "-P", "-m", "sis.cli"]
    done = subprocess.run([*run, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "sis-kv: there" in done.stdout.splitlines()
    shown = subprocess.run(
        [*run, "vault", "bootstrap", "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: sis vault bootstrap ")
    assert "--kubernetes-service-account" in shown.stdout
    wrong = subprocess.run([*run, "vault", "bootstrap"], capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2
    assert "--address" in wrong.stderr


def test_policies_name_only_mounts_that_are_filled_in() -> None:
    names = {path.stem for path in policies().glob("*.hcl")}
    assert names == {"credentials", "bootstrap"}
    for name in names:
        assert "{{" not in policy(name, kv_mount="a", pki_mount="b", auth_mount="c")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[OpenBaoServer]:
    """A server that was never initialised."""
    with OpenBaoServer(tmp_path, prepared=False) as server:
        yield server


def test_a_new_server_is_initialised_once_its_keys_have_a_place(fresh: OpenBaoServer, tmp_path: Path) -> None:
    refused = fresh.bootstrap(keys=False)
    assert refused.stderr == (
        "error: this Vault was never initialised; with --keys FILE it is done, and its keys go there\n"
    )
    (tmp_path / "file").touch()
    refused = fresh.bootstrap("--keys", str(tmp_path / "file" / "keys.json"))
    assert refused.stderr.startswith(f"error: {tmp_path}/file")
    assert fresh.connection("").request("GET", "sys/seal-status")["initialized"] is False
    done = fresh.bootstrap()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"server: initialised, its keys are in {fresh.server.keys}\nserver: unsealed\n")


def test_what_may_be_keys_of_another_vault_is_not_overwritten(fresh: OpenBaoServer, tmp_path: Path) -> None:
    """As behind a wrong address, or a node that has lost its storage."""
    keys = tmp_path / "keys.json"
    of_another = b'{"unseal_keys": ["k"], "recovery_keys": [], "root_token": "t"}\n'
    for content in (of_another, b"[not json", b"\xff", b"{}{}", b"[]", b""):
        keys.write_bytes(content)
        before = keys.stat()
        done = fresh.bootstrap("--keys", str(keys))
        assert (done.returncode, done.stdout) == (1, ""), content
        assert done.stderr == (
            f"error: the Vault at {fresh.address} was never initialised, and {keys} may hold the keys of another: "
            "check --address; if this Vault is to be initialised, give a --keys FILE that is not there yet\n"
        ), content
        assert keys.read_bytes() == content
        assert (keys.stat().st_ino, keys.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns), content
        assert fresh.connection("").request("GET", "sys/seal-status")["initialized"] is False, content
    keys.write_text("{}\n")
    assert fresh.bootstrap("--keys", str(keys)).returncode == 0


# Ended when the server has keys, and the file does not have them yet.
INTERRUPTED = """
import os, sys
from services.credentials import bootstrap, vault
real = vault.Connection.request
def request(self, method, path, *rest):
    answer = real(self, method, path, *rest)
    return os._exit(9) if path == "sys/init" else answer
vault.Connection.request = request
bootstrap.main(sys.argv[1:])
"""


def test_a_server_whose_initialisation_was_interrupted(fresh: OpenBaoServer) -> None:
    """Between the server's having keys and the file's having them, nobody has: the stack begins again."""
    arguments = fresh.server.bootstrap_arguments(fresh.output)
    interrupted = subprocess.run([sys.executable, "-c", INTERRUPTED, *arguments], timeout=60, check=False)
    assert interrupted.returncode == 9
    mark = fresh.keys
    assert mark
    done = fresh.bootstrap()
    assert done.returncode == 1
    assert done.stderr.startswith("error: Vault is sealed; unseal it, or give the --keys FILE that was written")
    fresh.stop()
    fresh.server.initialise()
    fresh.start()
    done = fresh.bootstrap()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"server: initialised, its keys are in {fresh.server.keys}\n")
    # The same mark, after that, is of another storage.
    keys = fresh.keys
    fresh.server.keys.write_text(json.dumps(mark))
    assert fresh.bootstrap().stderr == (
        f"error: there is no token for Vault in {fresh.server.keys}: give --token-file FILE, or set VAULT_TOKEN\n"
    )
    fresh.stop()
    fresh.server.initialise()
    fresh.start()
    assert fresh.connection("").request("GET", "sys/seal-status")["initialized"] is True
    fresh.server.keys.write_text(json.dumps(keys))
    assert fresh.bootstrap().returncode == 0
