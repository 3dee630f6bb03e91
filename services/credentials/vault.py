"""Vault (or OpenBao), through hvac, which nothing else imports.

`Vault` is what the service uses: coroutines whose blocking calls run in a few threads of their own. `Connection` is one
blocking connection with a token that somebody else looks after, for `bootstrap`. What both raise is in `vault_errors`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import re
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import hvac
import requests
from cryptography import x509
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from services.credentials.vault_answers import refusal
from services.credentials.vault_errors import (
    ValueMissing,
    VaultError,
    VaultFailed,
    VaultForbidden,
    VaultSlow,
    VaultUnreachable,
)
from services.credentials.vault_session import Session
from services.runtime import metrics, tracing
from services.runtime.dependencies import Trouble
from services.runtime.tracing import Attribute

T = TypeVar("T")

_CALLS: Final = metrics.Duration("sis.vault.call.duration", "How long calls of Vault took, by operation.")
_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*/?")


def checked_address(address: str) -> str:
    """An address that secrets may be sent to. Raises ValueError for any other."""
    parts = urlsplit(address)
    if not parts.hostname or parts.username or parts.query or parts.scheme not in ("http", "https"):
        raise ValueError("give https://HOST:PORT as the address of Vault")
    if parts.scheme == "http" and not _loopback(parts.hostname):
        raise ValueError("give https:// as the address of Vault; without TLS only one on this machine is spoken to")
    return address


class VaultSettings(BaseModel):
    """Where Vault is, and how this service proves itself to it."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    address: Annotated[str, AfterValidator(checked_address)]
    # PEM; without it, what this machine trusts.
    ca: Path | None = None
    namespace: str = ""
    kv_mount: str = "sis-kv"
    pki_mount: str = "sis-pki"
    auth: Literal["approle", "kubernetes"] = "approle"
    # Called as the method unless given.
    auth_mount: str = ""
    role_id_file: Path | None = Field(None, validate_default=True)
    secret_id_file: Path | None = Field(None, validate_default=True)
    kubernetes_role: str = "sis-credentials"
    kubernetes_token_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5.0

    @field_validator("role_id_file", "secret_id_file")
    @classmethod
    def _app_role_is_whole(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file is None and info.data.get("auth") == "approle":
            raise ValueError("name the file: a login by AppRole needs it")
        return file


def _loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of what is kept at a path."""

    version: int
    values: dict[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate: the leaf, and what leads from it to the CA, in PEM. `serial` is in lower-case hexadecimal."""

    certificate_pem: bytes
    ca_chain_pem: bytes
    serial: str
    not_after: datetime


class _Adapter(hvac.adapters.RawAdapter):  # type: ignore[misc]
    """Gives hvac the document that Vault answers with, {} for none, and raises what is in `vault_errors`."""

    def get_login_token(self, response: dict[str, Any]) -> str:
        return str(response["auth"]["client_token"])

    def request(self, method: str, url: str, **kwargs: Any) -> dict[str, Any]:
        kwargs.pop("raise_exception", None)
        try:
            response = super().request(method, url, raise_exception=False, **kwargs)
        except requests.ReadTimeout:
            failure: Exception = VaultSlow(self.base_uri, self._kwargs["timeout"][1])
        except OSError as error:  # which requests' own errors are as well
            failure = VaultUnreachable(self.base_uri, _cause(error))
        else:
            if not 200 <= response.status_code < 300:
                failure = refusal(response, method.upper(), url, self.base_uri)
            else:
                try:
                    return dict(response.json()) if response.content else {}
                except (ValueError, TypeError):
                    failure = VaultFailed(f"what answers at {self.base_uri} is not Vault")
        # Raised out here, where neither request nor response hangs on it as its context.
        raise failure


def _cause(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


class Connection:
    """Blocking calls to Vault, for one thread at a time. Connecting may take half of `timeout`, and an answer may
    pause for as long as it.

    Raises:
        OSError, ValueError: the file `ca` cannot be read, or holds no certificate; or the address is not to be used.
    """

    def __init__(
        self, address: str, *, ca: Path | None = None, namespace: str = "", token: str = "", timeout: float = 5.0
    ) -> None:
        checked_address(address)
        if ca is not None:
            _check_ca(ca)  # requests would say that it cannot connect
        for name in ("urllib3", "hvac"):
            logging.getLogger(name).setLevel(logging.WARNING)  # their debug lines tell of every request
        session = requests.Session()
        session.trust_env = False  # neither a proxy nor a .netrc has anything to do with it
        system = ssl.get_default_verify_paths()
        session.verify = str(ca) if ca else (system.cafile or system.capath or True)
        self.client = hvac.Client(
            url=address.rstrip("/"),
            token=token,
            verify=session.verify,
            timeout=(timeout / 2, timeout),
            session=session,
            allow_redirects=False,  # the token would go along, to wherever it is sent
            adapter=_Adapter,
            namespace=namespace or None,
        )

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The document that Vault answers with; {} for none."""
        found: dict[str, Any] = self.client.adapter.request(method, f"/v1/{path}", json=body)
        return found

    def close(self) -> None:
        self.client.adapter.close()


class Vault:
    """What the credential service keeps in Vault, and has it sign.

    Every operation has `settings.timeout_seconds` in all, logging in included, and raises VaultError or what it names.
    Paths are below the KV mount. Everything may be repeated after an error, `write` thanks to its check-and-set.
    """

    def __init__(self, settings: VaultSettings) -> None:
        self._settings = settings
        self._session = Session(self._connect, self._log_in, settings.address, settings.timeout_seconds)

    async def read(self, path: str, version: int | None = None) -> Stored:
        """What is at the path, in this version or the current one. Raises ValueMissing."""
        _check_path(path)

        def call(client: Any) -> Stored:
            answer = client.secrets.kv.v2.read_secret_version(
                path, version, self._settings.kv_mount, raise_on_deleted_version=True
            )
            return Stored(int(answer["data"]["metadata"]["version"]), dict(answer["data"]["data"]))

        return await self._call("read", call)

    async def write(self, path: str, values: Mapping[str, str], cas: int) -> int:
        """Make `values` the next version of the path, whose current one must be `cas`, 0 for none; returns the new one.

        Raises:
            CasMismatch: the current version is another, as it is when this write was done before.
        """
        _check_path(path)

        def call(client: Any) -> int:
            answer = client.secrets.kv.v2.create_or_update_secret(path, dict(values), cas, self._settings.kv_mount)
            return int(answer["data"]["version"])

        return await self._call("write", call)

    async def destroy(self, path: str) -> None:
        """Remove every version of the path for good; of one that has none, nothing. The next version will be 1."""
        _check_path(path)
        await self._call(
            "destroy",
            lambda client: client.secrets.kv.v2.delete_metadata_and_all_versions(path, self._settings.kv_mount),
        )

    async def current_version(self, path: str) -> int | None:
        """The version to give as `cas`, without reading what it holds; None: there is none."""
        _check_path(path)

        def call(client: Any) -> int:
            answer = client.secrets.kv.v2.read_secret_metadata(path, self._settings.kv_mount)
            return int(answer["data"]["current_version"])

        try:
            return await self._call("read_metadata", call) or None
        except ValueMissing:
            return None

    async def list(self, prefix: str) -> Sequence[str]:
        """The names directly below the prefix; one that others are below ends with a slash."""
        _check_path(prefix)

        def call(client: Any) -> Sequence[str]:
            answer = client.secrets.kv.v2.list_secrets(prefix, self._settings.kv_mount)
            return tuple(answer["data"]["keys"])

        try:
            return await self._call("list", call)
        except ValueMissing:
            return ()

    async def sign(
        self,
        csr_pem: bytes,
        role: str,
        *,
        uri_sans: Sequence[str],
        dns_names: Sequence[str] = (),
        ip_addresses: Sequence[str] = (),
        ttl_seconds: int,
    ) -> Signed:
        """Certify the key of a CSR for these names; what else the CSR says is ignored. Each call makes another
        certificate. IP addresses are in their canonical form. Names that the role does not permit are VaultFailed."""
        names = {
            "uri_sans": ",".join(uri_sans),
            "alt_names": ",".join(dns_names),
            "ip_sans": ",".join(ip_addresses),
            "ttl": f"{ttl_seconds}s",
        }

        def call(client: Any) -> Signed:
            data = client.secrets.pki.sign_certificate(role, csr_pem.decode("ascii"), "", names, self._pki)["data"]
            leaf = _pem(data["certificate"])
            certificate = x509.load_pem_x509_certificate(leaf)
            if _names(certificate) != {*uri_sans, *dns_names, *ip_addresses}:
                raise VaultFailed(
                    "the certificate is not for the names that were asked for: Vault leaves out what is no name"
                )
            chain = b"".join(_pem(each) for each in data.get("ca_chain") or [data["issuing_ca"]])
            return Signed(leaf, chain, f"{certificate.serial_number:x}", certificate.not_valid_after_utc)

        return await self._call("sign", call)

    async def revoke(self, serial: str) -> None:
        """Put a certificate on the CA's list of revoked ones; again, nothing. Raises ValueMissing: it is not of this
        CA."""
        digits = serial.zfill(len(serial) + len(serial) % 2)
        colons = ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))
        await self._call("revoke", lambda client: client.secrets.pki.revoke_certificate(colons, self._pki))

    async def ca(self) -> bytes:
        """The certificate that the CA signs with, and those above it, in PEM."""
        return await self._call(
            "read_ca",
            lambda client: _pem(client.secrets.pki.read_certificate("ca_chain", self._pki)["data"]["certificate"]),
        )

    async def trouble(self) -> Trouble | None:
        """Why it is of no use now; None if it is."""
        try:
            # Whoever asks whether it is sealed need not be logged in: the answer tells nothing of what can be done.
            await self._call("look_up", lambda client: client.auth.token.lookup_self()["data"])
        except VaultError as error:
            return Trouble(error.reason, error.words)
        return None

    async def _call(self, operation: str, call: Callable[[Any], T]) -> T:
        """What `call` returns for a client that is logged in; traced and measured. Raises as `call` does."""
        began = time.monotonic()
        about: dict[Attribute, str | int] = {Attribute.VAULT_OPERATION: operation}
        with tracing.inside(f"vault {operation}", about) as said:
            try:
                return await self._session.call(call)
            except ValueMissing:
                raise  # an answer like any other
            except VaultError as error:
                said[Attribute.ERROR_TYPE] = error.reason
                raise
            finally:
                _CALLS.record(time.monotonic() - began, {**about, **said})

    async def run(self) -> None:
        """Keep this service logged in until cancelled."""
        await self._session.run()

    async def close(self) -> None:
        """Wait for the calls that are under way, at most about twice `settings.timeout_seconds`. Nothing can be called
        after it."""
        await self._session.close()

    @property
    def _pki(self) -> str:
        return self._settings.pki_mount

    def _connect(self) -> Any:
        settings = self._settings
        try:
            return Connection(
                settings.address, ca=settings.ca, namespace=settings.namespace, timeout=settings.timeout_seconds
            ).client
        except OSError as error:
            why = f"{error.filename}: {error.strerror}"
        except ValueError as error:
            why = str(error)
        raise VaultUnreachable(settings.address, why)

    def _log_in(self, client: Any) -> Mapping[str, Any]:
        settings = self._settings
        if settings.auth == "kubernetes":
            method = client.auth.kubernetes
            proof = {"role": settings.kubernetes_role, "jwt": _content(settings.kubernetes_token_file)}
        else:
            assert settings.role_id_file is not None and settings.secret_id_file is not None
            method = client.auth.approle
            proof = {"role_id": _content(settings.role_id_file), "secret_id": _content(settings.secret_id_file)}
        found: Mapping[str, Any] = method.login(
            **proof, use_token=False, mount_point=settings.auth_mount or settings.auth
        )
        return found


def _check_path(path: str) -> None:
    if not _PATH.fullmatch(path):
        raise ValueError("path: give names of letters, digits, '.', '_' and '-', separated by slashes")


def _check_ca(file: Path) -> None:
    try:
        x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError:
        raise ValueError(f"{file}: there is no certificate in it, or it is not PEM") from None


def _names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
    raise VaultForbidden(f"there is no login to Vault without {file}: {why}")


def _pem(text: str) -> bytes:
    return text.strip().encode("ascii") + b"\n"
