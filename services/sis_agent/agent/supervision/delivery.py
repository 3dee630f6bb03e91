"""How the credentials of an operation reach its payload: in its environment, in files, on its standard input, as the
manifest says; never on its command line."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final

from services.sis_agent.agent.supervision.leases import Leases, Secret
from services.sis_agent.agent.supervision.private_directory import PrivateDirectory
from services.sis_agent.agent.supervision.start_failed import CREDENTIAL_UNSUITABLE, StartFailed
from sis.credentials.v1 import credential_pb2
from sis.packages.operation import CredentialKind, CredentialReference, Operation
from sis.packages.values import InvalidValue

MAX_VARIABLE_BYTES: Final = 100 << 10
"""The kernel takes 128 KiB with the name."""
MAX_VARIABLES_BYTES: Final = 512 << 10
"""Of all secrets in the environment. With the parameters, as arguments and variables both, a process can be given
them."""

_PRIVATE_KEY: Final = "PRIVATE_KEY"
# What the secret of each kind is called in the environment.
_PARTS: Final = {
    CredentialKind.USERNAME_PASSWORD: "PASSWORD",
    CredentialKind.SSH_KEY: _PRIVATE_KEY,
    CredentialKind.TOKEN: "TOKEN",
    CredentialKind.DOMAIN_ACCOUNT: "PASSWORD",
}
_KINDS: Final[dict[int, CredentialKind]] = {
    credential_pb2.CredentialKind.Value(f"CREDENTIAL_KIND_{kind.name}"): kind for kind in CredentialKind
}


@dataclass(slots=True)
class Delivery:
    """What is on its way to a payload beside the files."""

    environment: dict[str, str] = field(default_factory=dict, repr=False)
    standard_input: bytes | None = field(default=None, repr=False)


def deliver(operation: Operation, leases: Leases, directory: PrivateDirectory) -> Delivery:
    """Write the files of an operation's credentials; returns the rest. A reference without a lease is given nothing.

    Raises:
        StartFailed: a credential is of a kind that the operation does not take, or cannot be delivered as it says.
        OSError: a file cannot be written.
    """
    delivery = Delivery()
    for name, declared in operation.credentials.items():
        secret = leases.reference(name)
        if secret is not None:
            _deliver(name, declared, secret, directory, delivery)
    if sum(map(len, delivery.environment.values())) > MAX_VARIABLES_BYTES:
        names = ", ".join(operation.credentials)
        raise StartFailed(
            f"the credentials {names} are too long for an environment together: deliver some of them as files"
        )
    return delivery


def sensitive_inputs(operation: Operation, leases: Leases) -> dict[str, str]:
    """The values of the sensitive inputs that were given a credential.

    Raises:
        StartFailed: a value is not what the input takes; the message names the input.
    """
    found: dict[str, str] = {}
    for name, declared in operation.inputs.items():
        secret = leases.input(name) if declared.sensitive else None
        if secret is None:
            continue
        try:
            declared.check(secret.value.decode())
        except UnicodeDecodeError:
            raise _unsuitable(f"parameter {name}", secret, "is not valid Unicode") from None
        except InvalidValue as error:
            raise _unsuitable(f"parameter {name}", secret, str(error)) from None
        found[name] = secret.value.decode()
    if sum(map(len, found.values())) > MAX_VARIABLES_BYTES:
        raise StartFailed(f"the parameters {', '.join(found)} are too long together for an environment")
    return found


def _deliver(
    name: str, declared: CredentialReference, secret: Secret, directory: PrivateDirectory, delivery: Delivery
) -> None:
    kind = _KINDS.get(secret.kind)
    if kind is None or (declared.kinds and kind not in declared.kinds):
        wanted = ", ".join(declared.kinds or CredentialKind)
        raise _unsuitable(f"the reference {name}", secret, f"is of the kind {kind or 'unknown'}, not of {wanted}")
    part = _PARTS[kind]
    environment = delivery.environment
    prefix = f"SIS_CREDENTIAL_{name.upper()}_"

    def write(part: str, content: bytes) -> None:
        environment[f"{prefix}{part}_FILE"] = str(directory.write(f"{name}.{part.lower()}", content))

    def export(part: str, content: bytes) -> None:
        what = f"the {part.lower()} of the reference {name}"
        if len(content) > MAX_VARIABLE_BYTES:
            limit = f"is longer than {MAX_VARIABLE_BYTES >> 10} KiB, too long for a variable: deliver it as a file"
            raise _unsuitable(what, secret, limit)
        if b"\0" in content:
            raise _unsuitable(what, secret, "has a NUL character, which no variable can hold: deliver it as a file")
        environment[prefix + part] = os.fsdecode(content)

    for field_name, text in (("USERNAME", secret.username), ("DOMAIN", secret.domain)):
        if text:
            export(field_name, text.encode())
    if declared.delivery == "stdin":
        delivery.standard_input = secret.value + b"\n"
    elif part == _PRIVATE_KEY:
        # Without the line break at its end OpenSSH does not take a key.
        write(part, secret.value if secret.value.endswith(b"\n") else secret.value + b"\n")
    elif declared.delivery == "file":
        write(part, secret.value)
    else:
        export(part, secret.value)
    if secret.passphrase:
        (export if declared.delivery == "environment" else write)("PASSPHRASE", secret.passphrase)


def _unsuitable(what: str, secret: Secret, why: str) -> StartFailed:
    return StartFailed(f"{what}: the credential {secret.credential} {why}", CREDENTIAL_UNSUITABLE)
