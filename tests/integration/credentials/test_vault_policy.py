"""The credential service's own token, tried path by path: what its policy names works, and nothing else does."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from services.credentials.vault import Connection
from services.credentials.vault_errors import ValueMissing, VaultFailed, VaultForbidden
from tests.support.openbao import OpenBaoServer

VALUE = {"data": {"secret": "x"}}
NAMED = [
    ("POST", "sis-kv/data/credentials/policy"),
    ("GET", "sis-kv/data/credentials/policy"),
    ("GET", "sis-kv/metadata/credentials/policy"),
    ("LIST", "sis-kv/metadata/credentials"),
    ("DELETE", "sis-kv/metadata/credentials/policy"),
    ("POST", "sis-kv/data/pairings/policy"),
    ("GET", "sis-kv/data/pairings/policy"),
    ("DELETE", "sis-kv/metadata/pairings/policy"),
    ("POST", "sis-pki/sign/sis-agent"),
    ("POST", "sis-pki/sign/sis-service"),
    ("POST", "sis-pki/revoke"),
    ("GET", "sis-pki/cert/ca_chain"),
    ("GET", "auth/token/lookup-self"),
    ("POST", "auth/token/renew-self"),
]
BEYOND = [
    # Other values, and other things to do with its own.
    ("GET", "sis-kv/data/other/policy"),
    ("POST", "sis-kv/data/other/policy"),
    ("GET", "sis-kv/data/credentials"),
    ("POST", "sis-kv/data/credentials"),
    ("POST", "sis-kv/data/credentials-too/a"),
    ("PATCH", "sis-kv/data/credentials/policy"),
    ("DELETE", "sis-kv/data/credentials/policy"),
    ("POST", "sis-kv/delete/credentials/policy"),
    ("POST", "sis-kv/undelete/credentials/policy"),
    ("PUT", "sis-kv/destroy/credentials/policy"),
    ("POST", "sis-kv/metadata/credentials/policy"),
    ("DELETE", "sis-kv/data/pairings/policy"),
    ("GET", "sis-kv/metadata/pairings/policy"),
    ("LIST", "sis-kv/metadata/pairings"),
    ("POST", "sis-kv/metadata/pairings/policy"),
    ("PATCH", "sis-kv/metadata/pairings/policy"),
    ("LIST", "sis-kv/metadata"),
    ("LIST", "sis-kv/metadata/other"),
    ("GET", "sis-kv/metadata/other/policy"),
    ("DELETE", "sis-kv/metadata/other/policy"),
    ("GET", "sis-kv/subkeys/credentials/policy"),
    ("LIST", "sis-kv/detailed-metadata/credentials"),
    ("GET", "sis-kv/config"),
    ("POST", "sis-kv/config"),
    ("GET", "cubbyhole/a"),
    ("POST", "cubbyhole/a"),
    # Certificates beyond its two roles, and the CA itself.
    ("POST", "sis-pki/sign/web"),
    ("POST", "sis-pki/issue/sis-agent"),
    ("POST", "sis-pki/issue/sis-service"),
    ("POST", "sis-pki/sign-verbatim"),
    ("POST", "sis-pki/sign-verbatim/sis-service"),
    ("POST", "sis-pki/issuer/default/sign/sis-service"),
    ("POST", "sis-pki/root/sign-intermediate"),
    ("POST", "sis-pki/root/sign-self-issued"),
    ("POST", "sis-pki/root/generate/exported"),
    ("POST", "sis-pki/root/rotate/internal"),
    ("DELETE", "sis-pki/root"),
    ("POST", "sis-pki/intermediate/generate/internal"),
    ("POST", "sis-pki/config/ca"),
    ("POST", "sis-pki/config/issuers"),
    ("GET", "sis-pki/roles/sis-agent"),
    ("POST", "sis-pki/roles/sis-agent"),
    ("DELETE", "sis-pki/roles/sis-agent"),
    ("LIST", "sis-pki/roles"),
    ("LIST", "sis-pki/certs"),
    ("LIST", "sis-pki/keys"),
    ("POST", "sis-pki/tidy"),
    ("POST", "sis-pki/revoke-with-key"),
    # Its own rights, and other logins.
    ("GET", "sys/policies/acl/sis-credentials"),
    ("POST", "sys/policies/acl/sis-credentials"),
    ("LIST", "sys/policies/acl"),
    ("GET", "auth/approle/role/sis-credentials"),
    ("POST", "auth/approle/role/sis-credentials"),
    ("GET", "auth/approle/role/sis-credentials/role-id"),
    ("POST", "auth/approle/role/sis-credentials/secret-id"),
    ("LIST", "auth/approle/role"),
    ("POST", "auth/token/create"),
    ("POST", "auth/token/create-orphan"),
    ("LIST", "auth/token/accessors"),
    ("POST", "auth/token/lookup-accessor"),
    ("POST", "auth/token/revoke-self"),
    ("POST", "auth/token/revoke-accessor"),
    ("LIST", "identity/entity/id"),
    ("POST", "identity/entity"),
    # The server.
    ("GET", "sys/mounts"),
    ("POST", "sys/mounts/another"),
    ("DELETE", "sys/mounts/sis-kv"),
    ("GET", "sys/auth"),
    ("POST", "sys/auth/another"),
    ("GET", "sys/audit"),
    ("PUT", "sys/seal"),
    ("PUT", "sys/step-down"),
    ("POST", "sys/rotate"),
    ("GET", "sys/raw/core/keyring"),
    ("GET", "sys/storage/raft/snapshot"),
    ("GET", "sys/storage/raft/configuration"),
    ("GET", "sys/host-info"),
    ("GET", "sys/config/state/sanitized"),
    ("LIST", "sys/leases/lookup/auth"),
    ("PUT", "sys/leases/revoke"),
    ("LIST", "sys/namespaces"),
    ("POST", "sys/namespaces/another"),
    ("LIST", "sys/quotas/rate-limit"),
    ("POST", "sys/capabilities-self"),
    ("POST", "sys/tools/random/8"),
    ("POST", "sys/wrapping/wrap"),
]


@pytest.fixture(scope="module")
def token(shared_openbao: OpenBaoServer) -> str:
    """The token that the service gets when it logs in as it does."""
    shared_openbao.restore()
    connection = shared_openbao.connection("")
    role_id, secret_id = ((shared_openbao.output / name).read_text().strip() for name in ("role-id", "secret-id"))
    answer = connection.request("POST", "auth/approle/login", {"role_id": role_id, "secret_id": secret_id})
    connection.close()
    return str(answer["auth"]["client_token"])


@pytest.fixture
def service(openbao: OpenBaoServer, token: str) -> Iterator[Connection]:
    connection = openbao.connection(token)
    yield connection
    connection.close()


@pytest.mark.parametrize(("method", "path"), NAMED)
def test_what_the_policy_names_is_permitted(service: Connection, method: str, path: str) -> None:
    body = {"serial_number": "0a:bc"} if path.endswith("/revoke") else VALUE
    with contextlib.suppress(ValueMissing, VaultFailed):  # permitted, if of no use as it was asked
        service.request(method, path, body if method == "POST" else None)


@pytest.mark.parametrize(("method", "path"), BEYOND)
def test_what_it_does_not_name_is_forbidden(service: Connection, method: str, path: str) -> None:
    with pytest.raises(VaultForbidden):
        if method == "PATCH":
            kind = {"Content-Type": "application/merge-patch+json"}
            service.client.adapter.request(method, f"/v1/{path}", headers=kind, json=VALUE)
        service.request(method, path, VALUE if method in ("POST", "PUT") else None)


def test_the_key_of_a_pairing_code_is_written_once(service: Connection) -> None:
    service.request("POST", "sis-kv/data/pairings/once", VALUE)
    try:
        with pytest.raises(VaultForbidden):
            service.request("POST", "sis-kv/data/pairings/once", VALUE)
    finally:
        service.request("DELETE", "sis-kv/metadata/pairings/once")


def test_a_certificate_is_revoked_by_its_number_alone(service: Connection) -> None:
    with pytest.raises(VaultForbidden):
        service.request("POST", "sis-pki/revoke", {"certificate": "-----BEGIN CERTIFICATE-----"})


def test_the_token_has_the_one_policy(service: Connection) -> None:
    found = service.request("GET", "auth/token/lookup-self")["data"]
    assert found["policies"] == ["sis-credentials"]
    assert not found.get("identity_policies")


def test_of_every_path_that_the_server_has_it_may_use_only_those_named(openbao: OpenBaoServer, token: str) -> None:
    """The server itself lists its paths, and says what the token may do there."""
    specification = openbao.root("GET", "sys/internal/specs/openapi")
    paths = {re.sub(r"\{[^}]*\}", "x", path).lstrip("/") for path in specification["paths"]}
    paths |= {path for _, path in NAMED}
    assert len(paths) > 250
    answer = openbao.root("POST", "sys/capabilities", {"token": token, "paths": sorted(paths)})["data"]
    permitted = {path: sorted(answer[path]) for path in paths if answer[path] != ["deny"]}
    assert permitted == {
        "sis-kv/data/credentials/policy": ["create", "read", "update"],
        "sis-kv/metadata/credentials/policy": ["delete", "list", "read"],
        "sis-kv/data/pairings/policy": ["create", "read"],
        "sis-kv/metadata/pairings/policy": ["delete"],
        "sis-pki/sign/sis-agent": ["update"],
        "sis-pki/sign/sis-service": ["update"],
        "sis-pki/revoke": ["update"],
        "sis-pki/cert/ca_chain": ["read"],
        "auth/token/lookup-self": ["read"],
        "auth/token/renew-self": ["update"],
    }
