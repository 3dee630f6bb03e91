"""Prepares a Vault (or OpenBao) for the credential service: `sis vault bootstrap`.

    python -m services.credentials.bootstrap --address https://HOST:8200 --output DIR [--keys FILE] ...

It makes what is missing, puts right what differs, and leaves the rest alone, so it can be run again at any time; a line
says of each thing whether it was made, changed or there. A server that was never initialised is initialised if there is
a file for its keys. What it needs to be permitted is in deploy/vault/bootstrap.hcl; what it permits to the credential
service, in deploy/vault/credentials.hcl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NoReturn

from services.credentials.vault import Connection
from services.credentials.vault_errors import (
    ValueMissing,
    VaultError,
    VaultFailed,
    VaultForbidden,
    VaultSealed,
    VaultUnreachable,
)
from sis.private_files import write_private

POLICY: Final = "sis-credentials"
"""Also what the role of the login is called."""
INITIALISING: Final = "initialising"
"""All that the file for the keys holds while the server is initialised, if anything: the id of its storage."""
CA_HOURS: Final = 87_600
TOKEN_SECONDS: Final = 3_600
_READY_SECONDS: Final = 60.0
_LONGEST_WAIT_SECONDS: Final = 3_600.0

_CERTIFICATE: Mapping[str, Any] = MappingProxyType(
    {
        "key_type": "ec",
        "key_bits": 256,
        "key_usage": ["DigitalSignature"],
        "ext_key_usage": [],
        "client_flag": True,
        "code_signing_flag": False,
        "email_protection_flag": False,
        # A machine whose clock is a little behind must still accept what was just made.
        "not_before_duration": 900,
        "max_ttl": 30 * 86_400,
        # Who is named is for the credential service to say; of a request it takes the key alone.
        "require_cn": False,
        "use_csr_common_name": False,
        "use_csr_sans": False,
        "enforce_hostnames": True,
        "allow_bare_domains": False,
        "allow_glob_domains": False,
        "allow_subdomains": False,
        "allow_wildcard_certificates": False,
        "allowed_domains": [],
        "allowed_other_sans": [],
        "allowed_serial_numbers": [],
        "allowed_user_ids": [],
        "basic_constraints_valid_for_non_ca": True,
        "generate_lease": False,
        "no_store": False,
    }
)
ROLES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "sis-agent": {
            **_CERTIFICATE,
            "server_flag": False,
            "allow_any_name": False,
            "allow_localhost": False,
            "allow_ip_sans": False,
            "allowed_uri_sans": ["spiffe://sis/agent/*"],
        },
        "sis-service": {
            **_CERTIFICATE,
            "server_flag": True,
            "allow_any_name": True,
            "allow_localhost": True,
            "allow_ip_sans": True,
            "allowed_uri_sans": ["spiffe://sis/service/*"],
        },
    }
)
_TIDY: Mapping[str, Any] = MappingProxyType(
    # Certificates live for days and are renewed by the hundred: what has expired three days ago is nobody's.
    {"enabled": True, "tidy_cert_store": True, "tidy_revoked_certs": True, "safety_buffer": 3 * 86_400}
)
_LOGIN: Mapping[str, Any] = MappingProxyType(
    {"token_policies": [POLICY], "token_no_default_policy": True, "token_period": TOKEN_SECONDS, "token_num_uses": 0}
)

Say = Callable[[str], None]


class Refused(Exception):
    """It cannot go on; the message says why and what to do."""


def policies() -> Path:
    """The directory of the policies."""
    here = Path(__file__).resolve().parent
    installed = here / "policies"
    return installed if installed.is_dir() else here.parents[1] / "deploy" / "vault"


def policy(name: str, **mounts: str) -> str:
    """A policy for these mounts (`kv_mount`, `pki_mount`, `auth_mount`)."""
    text = (policies() / f"{name}.hcl").read_text(encoding="utf-8")
    for placeholder, mount in mounts.items():
        text = text.replace("{{" + placeholder + "}}", mount)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code: 0 done, 1 refused, 2 not understood."""
    options = _parser().parse_args(arguments)
    options.auth_mount = options.auth_mount or options.auth
    try:
        _run(options, lambda line: print(line, flush=True))
    except VaultForbidden as error:
        problem = f"{error.what}: deploy/vault/bootstrap.hcl says what its token has to permit"
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except (Refused, VaultError, ValueError) as error:
        problem = str(error)
    else:
        return 0
    print(f"error: {problem}", file=sys.stderr)
    return 1


def _run(options: argparse.Namespace, say: Say) -> None:
    if not 0 <= options.wait <= _LONGEST_WAIT_SECONDS:
        raise Refused(f"--wait: give 0 to {_LONGEST_WAIT_SECONDS:.0f} seconds")
    mounts = {"kv_mount": options.kv_mount, "pki_mount": options.pki_mount}
    for mount in (*mounts.values(), options.auth_mount):
        if not mount or mount != mount.strip("/ "):
            raise Refused(f"a mount is called {mount!r}: give a name without slashes at its ends")
    server = Connection(options.address, ca=options.ca, timeout=options.timeout)
    try:
        _eventually(lambda: server.request("GET", "sys/seal-status"), options.wait)
        _open(server, options, say)
        # One that only stands by reads, but does not write.
        _eventually(lambda: _expect_active(server))
    finally:
        server.close()
    vault = Connection(
        options.address, ca=options.ca, namespace=options.namespace, token=_token(options), timeout=options.timeout
    )
    try:
        vault.request("GET", "auth/token/lookup-self")
        _mount(vault, options.kv_mount, "kv", {"options": {"version": "2"}}, say)
        # Vault readies a new mount of this kind in the background.
        _eventually(lambda: vault.request("GET", f"{options.kv_mount}/config"))
        _mount(vault, options.pki_mount, "pki", {"config": {"max_lease_ttl": f"{CA_HOURS}h"}}, say)
        _authority(vault, options, say)
        for role, wanted in ROLES.items():
            _put(vault, f"{options.pki_mount}/roles/{role}", wanted, say)
        _put(vault, f"{options.pki_mount}/config/auto-tidy", dict(_TIDY), say)
        _put(vault, f"sys/policies/acl/{POLICY}", {"policy": policy("credentials", **mounts)}, say)
        _auth(vault, options, say)
    finally:
        vault.close()


def _open(server: Connection, options: argparse.Namespace, say: Say) -> None:
    """See that the server is initialised and unsealed. A namespace knows nothing of that."""
    status = server.request("GET", "sys/seal-status")
    if not status["initialized"]:
        if options.keys is None:
            raise Refused("this Vault was never initialised; with --keys FILE it is done, and its keys go there")
        _expect_no_keys(options)
        mark = {INITIALISING: options.storage} if options.storage else {}
        # What cannot be written should turn out before there is something to lose.
        write_private(options.keys, json.dumps(mark).encode() + b"\n")
        automatic = status.get("recovery_seal", False)
        kind = "recovery" if automatic else "secret"
        made = server.request("PUT", "sys/init", {f"{kind}_shares": 1, f"{kind}_threshold": 1})
        keys = {
            "unseal_keys": made.get("keys_base64") or [],
            "recovery_keys": made.get("recovery_keys_base64") or [],
            "root_token": made["root_token"],
        }
        write_private(options.keys, json.dumps(keys).encode() + b"\n")
        say(f"server: initialised, its keys are in {options.keys}")
        status = server.request("GET", "sys/seal-status")
    if status["sealed"] and not status.get("recovery_seal", False):
        unseal_keys = _keys(options).get("unseal_keys") or []
        if not unseal_keys:
            raise Refused(
                "Vault is sealed; unseal it, or give the --keys FILE that was written when it was initialised"
            )
        for key in unseal_keys:
            status = server.request("PUT", "sys/unseal", {"key": key})
        if status["sealed"]:
            raise Refused(f"Vault stays sealed: {options.keys} does not hold enough of its keys")
        say("server: unsealed")


def _expect_no_keys(options: argparse.Namespace) -> None:
    """Raises Refused unless the file for the keys can be replaced without a loss."""
    try:
        found = json.loads(options.keys.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found.keys() <= {INITIALISING}:
        raise Refused(
            f"the Vault at {options.address} was never initialised, and {options.keys} may hold the keys of another: "
            "check --address; if this Vault is to be initialised, give a --keys FILE that is not there yet"
        )


def _keys(options: argparse.Namespace) -> dict[str, Any]:
    try:
        return dict(json.loads(options.keys.read_bytes())) if options.keys and options.keys.exists() else {}
    except (ValueError, TypeError):
        pass
    raise Refused(f"{options.keys} is not a file that this command has written")


def _token(options: argparse.Namespace) -> str:
    if options.token_file:
        token = options.token_file.read_text(encoding="ascii").strip()
    else:
        token = os.environ.get("VAULT_TOKEN") or _keys(options).get("root_token", "")
    if not token:
        where = f" in {options.keys}" if options.keys else ""
        raise Refused(f"there is no token for Vault{where}: give --token-file FILE, or set VAULT_TOKEN")
    return str(token)


def _eventually(call: Callable[[], object], seconds: float = _READY_SECONDS) -> None:
    """Wait until a server that has just been started or opened does its work."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            call()
        except (VaultSealed, VaultUnreachable, VaultFailed):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _expect_active(server: Connection) -> None:
    found = server.request("GET", "sys/leader")
    if found["ha_enabled"] and not found.get("is_self") and not found.get("leader_address"):
        raise VaultUnreachable(server.client.url, "it has no active node")


def _mount(vault: Connection, mount: str, kind: str, how: Mapping[str, Any], say: Say) -> None:
    found = vault.request("GET", "sys/mounts")["data"].get(f"{mount}/")
    if found is None:
        vault.request("POST", f"sys/mounts/{mount}", {"type": kind, "description": "SIS", **how})
        say(f"{mount}: made")
        return
    version = (found.get("options") or {}).get("version", "1")
    if found["type"] != kind or (kind == "kv" and version != "2"):
        raise Refused(f"{mount} is a mount of another kind ({found['type']}, version {version}); choose another name")
    say(f"{mount}: there")


def _authority(vault: Connection, options: argparse.Namespace, say: Say) -> None:
    try:
        vault.request("LIST", f"{options.pki_mount}/issuers")
    except ValueMissing:
        vault.request(
            "POST",
            f"{options.pki_mount}/root/generate/internal",
            {
                "common_name": options.ca_common_name,
                "exclude_cn_from_sans": True,
                "key_type": "ec",
                "key_bits": 256,
                "max_path_length": 0,
                "not_before_duration": _CERTIFICATE["not_before_duration"],
                "ttl": f"{CA_HOURS}h",
            },
        )
        say(f"{options.pki_mount} CA: made")
    else:
        say(f"{options.pki_mount} CA: there")
    chain = vault.request("GET", f"{options.pki_mount}/cert/ca_chain")["data"]["certificate"]
    _keep(options.output / "ca.pem", chain.strip() + "\n", say, mode=0o644)


def _auth(vault: Connection, options: argparse.Namespace, say: Say) -> None:
    mount = f"auth/{options.auth_mount}"
    found = vault.request("GET", "sys/auth")["data"].get(f"{options.auth_mount}/")
    if found is None:
        vault.request("POST", f"sys/{mount}", {"type": options.auth, "description": "SIS"})
    elif found["type"] != options.auth:
        raise Refused(f"{mount} is of another kind ({found['type']}); choose another name with --auth-mount")
    say(f"{mount}: {'made' if found is None else 'there'}")
    role = f"{mount}/role/{POLICY}"
    if options.auth == "approle":
        _put(vault, role, {**_LOGIN, "bind_secret_id": True, "secret_id_num_uses": 0, "secret_id_ttl": 0}, say)
        _approle_files(vault, role, options, say)
        return
    wanted = {}
    if options.kubernetes_host or not _read(vault, f"{mount}/config"):
        wanted["kubernetes_host"] = options.kubernetes_host or "https://kubernetes.default.svc"
    if options.kubernetes_ca:
        wanted["kubernetes_ca_cert"] = options.kubernetes_ca.read_text(encoding="ascii")
    _put(vault, f"{mount}/config", wanted, say)
    accounts = {
        "bound_service_account_names": [options.kubernetes_service_account],
        "bound_service_account_namespaces": [options.kubernetes_namespace],
    }
    _put(vault, role, {**_LOGIN, **accounts}, say)


def _approle_files(vault: Connection, role: str, options: argparse.Namespace, say: Say) -> None:
    _keep(options.output / "role-id", vault.request("GET", f"{role}/role-id")["data"]["role_id"], say)
    file = options.output / "secret-id"
    if file.exists():
        known = {}
        with contextlib.suppress(ValueMissing):
            known = vault.request("POST", f"{role}/secret-id/lookup", {"secret_id": file.read_text().strip()})
        if known:
            say(f"{file}: there")
            return
    _keep(file, vault.request("POST", f"{role}/secret-id")["data"]["secret_id"], say)


def _read(vault: Connection, path: str) -> dict[str, Any]:
    """What is there; {} for nothing."""
    try:
        return dict(vault.request("GET", path).get("data") or {})
    except ValueMissing:
        return {}


def _put(vault: Connection, path: str, wanted: Mapping[str, Any], say: Say) -> None:
    """Write what differs from `wanted`, as far as the server knows of it."""
    found = _read(vault, path)
    if found and all(_same(found.get(name, value), value) for name, value in wanted.items()):
        say(f"{path}: there")
        return
    vault.request("POST", path, wanted)
    say(f"{path}: {'changed' if found else 'made'}")


def _same(found: object, wanted: object) -> bool:
    if isinstance(wanted, list):
        return isinstance(found, list) and sorted(found) == sorted(wanted)
    return found == wanted


def _keep(file: Path, content: str, say: Say, mode: int = 0o600) -> None:
    data = content.encode("ascii")
    had = file.exists()
    if had and file.read_bytes() == data:
        say(f"{file}: there")
        return
    write_private(file, data, mode=mode)
    say(f"{file}: {'changed' if had else 'made'}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sis vault bootstrap",
        description="Prepare a Vault or OpenBao server for the credential service. It can be run again at any time.",
    )
    add = parser.add_argument
    add("--address", required=True, metavar="URL", help="https://HOST:PORT")
    add("--ca", type=Path, metavar="FILE", help="the CA of the server, PEM (what this machine trusts)")
    add("--storage", default="", metavar="ID", help="the server's storage, as --keys names it until it has keys")
    add("--namespace", default="", help="a namespace, which must be there (the root one)")
    add("--kv-mount", default="sis-kv", metavar="NAME", help="where the values go, kv v2 (sis-kv)")
    add("--pki-mount", default="sis-pki", metavar="NAME", help="where certificates come from, pki (sis-pki)")
    add("--auth", choices=("approle", "kubernetes"), default="approle", help="how the service logs in (approle)")
    add("--auth-mount", metavar="NAME", help="where (called as the method)")
    add("--token-file", type=Path, metavar="FILE", help="the token to work with (VAULT_TOKEN, else that in --keys)")
    add(
        "--keys",
        type=Path,
        metavar="FILE",
        help="initialise a new server and keep its keys and root token here; unseal it with them",
    )
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="for ca.pem, the certificates of the PKI's CA, and the login by approle: role-id, secret-id",
    )
    add("--ca-common-name", default="SIS CA", metavar="NAME", help="of a CA that has to be made (SIS CA)")
    add("--kubernetes-host", default="", metavar="URL", help="of the API server, as Vault reaches it")
    add("--kubernetes-ca", type=Path, metavar="FILE", help="of the API server, PEM")
    add("--kubernetes-namespace", default="sis", metavar="NAME", help="of the service (sis)")
    add("--kubernetes-service-account", default="sis-credentials", metavar="NAME", help="its own (sis-credentials)")
    add("--wait", type=float, default=0.0, metavar="SECONDS", help="for a server that does not answer yet (0)")
    add("--timeout", type=float, default=10.0, metavar="SECONDS", help="for each answer of the server (10)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
