"""What a job names of the KeySafe: which credentials each of its attempts leases, and for what. Pure.

The queue knows names alone. Whether there is a credential of a name turns out when the leases are taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sis.packages.manifest import Operation
from sis.packages.operation import ADMIN, INPUT_PREFIX, REFERENCE_PREFIX, RUN_AS, CredentialKind

ACCOUNT_KINDS = (CredentialKind.USERNAME_PASSWORD, CredentialKind.SSH_KEY, CredentialKind.DOMAIN_ACCOUNT)
"""What can be an account."""


@dataclass(frozen=True, slots=True)
class CredentialUse:
    """That a job wants a credential, by its name, and what for: one of these kinds, or any where none is given."""

    ref: str
    credential: str
    kinds: tuple[CredentialKind, ...]


def uses(
    operation: Operation, *, admin: str, run_as: str, references: Mapping[str, str], parameters: Mapping[str, str]
) -> list[CredentialUse]:
    """Everything that a job of this operation leases, given the names of credentials, "" for none."""
    found = []
    for ref, credential in ((ADMIN, admin), (RUN_AS, run_as)):
        if credential:
            found.append(CredentialUse(ref, credential, _declared(operation, ref) or ACCOUNT_KINDS))
    for name, credential in sorted(references.items()):
        found.append(CredentialUse(REFERENCE_PREFIX + name, credential, _declared(operation, name)))
    found += [CredentialUse(INPUT_PREFIX + name, credential, ()) for name, credential in sorted(parameters.items())]
    return found


def _declared(operation: Operation, name: str) -> tuple[CredentialKind, ...]:
    reference = operation.credentials.get(name)
    return tuple(reference.kinds) if reference is not None else ()


def references(found: Iterable[CredentialUse]) -> dict[str, str]:
    """The credentials by the references of the operation."""
    return _named(found, REFERENCE_PREFIX)


def parameters(found: Iterable[CredentialUse]) -> dict[str, str]:
    """The credentials by the sensitive inputs."""
    return _named(found, INPUT_PREFIX)


def _named(found: Iterable[CredentialUse], prefix: str) -> dict[str, str]:
    return {use.ref.removeprefix(prefix): use.credential for use in found if use.ref.startswith(prefix)}


def to_rows(found: Iterable[CredentialUse]) -> list[dict[str, Any]]:
    """The uses as the database keeps them."""
    return [{"ref": use.ref, "credential": use.credential, "kinds": [kind.name for kind in use.kinds]} for use in found]


def from_rows(rows: Iterable[Mapping[str, Any]]) -> list[CredentialUse]:
    """What `to_rows` has made of them."""
    return [CredentialUse(r["ref"], r["credential"], tuple(CredentialKind[k] for k in r["kinds"])) for r in rows]
