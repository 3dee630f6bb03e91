"""How credentials reach a payload: by environment, file and standard input, as the manifest says."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.sis_agent.agent.supervision import delivery
from services.sis_agent.agent.supervision.delivery import Delivery
from services.sis_agent.agent.supervision.leases import Leases, Secret
from services.sis_agent.agent.supervision.private_directory import PrivateDirectory
from services.sis_agent.agent.supervision.start_failed import StartFailed
from sis.packages.operation import Operation
from tests.support.sealed import DOMAIN_ACCOUNT, PASSWORD, SSH_KEY, TOKEN

KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n-----END OPENSSH PRIVATE KEY-----"
_numbers = itertools.count()


@pytest.fixture
def directory() -> Iterator[PrivateDirectory]:
    made = PrivateDirectory.make(f"test.{os.getpid()}.{next(_numbers)}", Path("/nowhere"), None)
    yield made
    made.remove()


def secret(kind: int, value: bytes, **fields: str) -> Secret:
    passphrase = fields.pop("passphrase", "").encode()
    username, domain = fields.get("username", ""), fields.get("domain", "")
    return Secret(credential="c", kind=kind, username=username, domain=domain, value=value, passphrase=passphrase)


def operation(**credentials: dict[str, object]) -> Operation:
    return Operation.model_validate({"command": ["go"], "credentials": credentials})


def deliver(declared: Operation, directory: PrivateDirectory, **secrets: Secret) -> Delivery:
    refs = {name if name in ("admin", "run_as") else f"credential.{name}": each for name, each in secrets.items()}
    return delivery.deliver(declared, Leases(refs), directory)


def test_by_environment(directory: PrivateDirectory) -> None:
    found = deliver(
        operation(db={}, api={"delivery": "environment"}, desk={}, repo={}, absent={"delivery": "stdin"}),
        directory,
        db=secret(PASSWORD, b"hunter22", username="reader"),
        api=secret(TOKEN, b"tok-123456"),
        desk=secret(DOMAIN_ACCOUNT, "pässword".encode(), username="bob", domain="CORP"),
        repo=secret(SSH_KEY, KEY, username="git", passphrase="open sesame"),
    )
    key_file = found.environment.pop("SIS_CREDENTIAL_REPO_PRIVATE_KEY_FILE")
    assert found.environment == {
        "SIS_CREDENTIAL_DB_USERNAME": "reader",
        "SIS_CREDENTIAL_DB_PASSWORD": "hunter22",
        "SIS_CREDENTIAL_API_TOKEN": "tok-123456",
        "SIS_CREDENTIAL_DESK_USERNAME": "bob",
        "SIS_CREDENTIAL_DESK_DOMAIN": "CORP",
        "SIS_CREDENTIAL_DESK_PASSWORD": "pässword",
        "SIS_CREDENTIAL_REPO_USERNAME": "git",
        "SIS_CREDENTIAL_REPO_PASSPHRASE": "open sesame",
    }
    assert found.standard_input is None
    # OpenSSH takes no key without the line break at its end.
    assert Path(key_file).read_bytes() == KEY + b"\n"
    assert stat.S_IMODE(os.stat(key_file).st_mode) == 0o600
    assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
    assert "hunter22" not in repr(found)


def test_by_file(directory: PrivateDirectory) -> None:
    found = deliver(
        operation(db={"delivery": "file"}, api={"delivery": "file"}, repo={"delivery": "file"}),
        directory,
        db=secret(PASSWORD, b"hunter\0\xff22", username="reader"),
        api=secret(TOKEN, b"t" * 200_000),
        repo=secret(SSH_KEY, KEY + b"\n", passphrase="open sesame"),
    )
    assert found.environment.pop("SIS_CREDENTIAL_DB_USERNAME") == "reader"
    assert {name: Path(path).read_bytes() for name, path in found.environment.items()} == {
        "SIS_CREDENTIAL_DB_PASSWORD_FILE": b"hunter\0\xff22",
        "SIS_CREDENTIAL_API_TOKEN_FILE": b"t" * 200_000,
        "SIS_CREDENTIAL_REPO_PRIVATE_KEY_FILE": KEY + b"\n",
        "SIS_CREDENTIAL_REPO_PASSPHRASE_FILE": b"open sesame",
    }


def test_by_standard_input(directory: PrivateDirectory) -> None:
    found = deliver(
        operation(db={"delivery": "stdin"}), directory, db=secret(PASSWORD, b"hunter22\n", username="reader")
    )
    assert found.standard_input == b"hunter22\n\n"
    assert found.environment == {"SIS_CREDENTIAL_DB_USERNAME": "reader"}
    found = deliver(operation(repo={"delivery": "stdin"}), directory, repo=secret(SSH_KEY, KEY, passphrase="sesame 12"))
    assert found.standard_input == KEY + b"\n"
    assert list(found.environment) == ["SIS_CREDENTIAL_REPO_PASSPHRASE_FILE"]


def test_the_accounts_of_the_job(directory: PrivateDirectory) -> None:
    declared = operation(admin={}, run_as={})
    root = secret(PASSWORD, b"of the admin", username="root")
    found = deliver(declared, directory, admin=root)
    assert found.environment == {
        "SIS_CREDENTIAL_ADMIN_USERNAME": "root",
        "SIS_CREDENTIAL_ADMIN_PASSWORD": "of the admin",
        "SIS_CREDENTIAL_RUN_AS_USERNAME": "root",
        "SIS_CREDENTIAL_RUN_AS_PASSWORD": "of the admin",
    }
    found = deliver(declared, directory, admin=root, run_as=secret(PASSWORD, b"of alice", username="alice"))
    assert found.environment["SIS_CREDENTIAL_RUN_AS_PASSWORD"] == "of alice"
    assert deliver(declared, directory).environment == {}


@pytest.mark.parametrize(
    ("declared", "given", "message"),
    [
        (
            {"kinds": ["token", "ssh-key"]},
            secret(PASSWORD, b"hunter22"),
            "is of the kind username-password, not of token",
        ),
        ({}, secret(9, b"hunter22"), "the reference db: the credential c is of the kind unknown"),
        ({}, secret(PASSWORD, b"hunter22" * 20_000), "the password of the reference db: .* is longer than 100 KiB"),
        ({}, secret(TOKEN, b"hunter\x0022"), "the token of the reference db: .* has a NUL character"),
        ({}, secret(SSH_KEY, KEY, passphrase="hunter\x0022"), "the passphrase of the reference db"),
        ({}, secret(PASSWORD, b"hunter22", username="a\0b"), "the username of the reference db"),
    ],
)
def test_what_cannot_be_delivered_is_named(
    directory: PrivateDirectory, declared: dict[str, object], given: Secret, message: str
) -> None:
    with pytest.raises(StartFailed, match=message) as caught:
        deliver(operation(db=declared), directory, db=given)
    assert caught.value.reason == "CREDENTIAL_UNSUITABLE"
    assert "hunter" not in str(caught.value)


def test_an_environment_has_an_end(directory: PrivateDirectory) -> None:
    names = [f"r{number}" for number in range(9)]
    with pytest.raises(StartFailed, match="too long for an environment together: deliver some of them as files"):
        deliver(
            operation(**{name: {} for name in names}),
            directory,
            **{name: secret(TOKEN, b"t" * 65_536) for name in names},
        )


def sensitive(value: bytes, **fields: object) -> dict[str, str]:
    declared = Operation.model_validate(
        {
            "command": ["go"],
            "inputs": {"pin": {"type": "string", "sensitive": True, **fields}, "other": {"type": "list"}},
        }
    )
    return delivery.sensitive_inputs(declared, Leases({"param.pin": secret(PASSWORD, value)}))


def test_sensitive_inputs() -> None:
    assert sensitive("pässword".encode()) == {"pin": "pässword"}
    assert sensitive(b"12345678", pattern="[0-9]+") == {"pin": "12345678"}
    for value, fields, message in (
        (b"hunter22", {"pattern": "[0-9]+"}, r"parameter pin: the credential c must match the pattern \[0-9\]\+"),
        (b"\xffhunter22", {}, "is not valid Unicode"),
        (b"hunter\0", {}, "has a NUL character"),
    ):
        with pytest.raises(StartFailed, match=message) as caught:
            sensitive(value, **fields)
        assert "hunter" not in str(caught.value)
