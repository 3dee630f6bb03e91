"""What a job leases follows from what it names and what its operation declares."""

from __future__ import annotations

from services.queue import credentials
from services.queue.credentials import ACCOUNT_KINDS, CredentialUse
from services.queue.tables import jobs
from sis.packages.manifest import Operation, parse
from sis.packages.operation import CredentialKind

MANIFEST = """
name: test
version: 1.0.0
operations:
  use:
    command: ["true"]
    inputs: {phrase: {type: string, sensitive: true}}
    credentials:
      database: {kinds: [username-password, token]}
      other: {}
      admin: {kinds: [ssh-key]}
"""
OPERATION: Operation = parse(MANIFEST).operations["use"]


def test_each_use_has_its_ref_and_what_it_may_be() -> None:
    found = credentials.uses(
        OPERATION,
        admin="root",
        run_as="web",
        references={"other": "b", "database": "a"},
        parameters={"phrase": "c"},
    )
    assert found == [
        CredentialUse("admin", "root", (CredentialKind.SSH_KEY,)),  # as the operation declares it
        CredentialUse("run_as", "web", ACCOUNT_KINDS),
        CredentialUse("credential.database", "a", (CredentialKind.USERNAME_PASSWORD, CredentialKind.TOKEN)),
        CredentialUse("credential.other", "b", ()),
        CredentialUse("param.phrase", "c", ()),
    ]


def test_a_job_that_names_nothing_leases_nothing() -> None:
    assert credentials.uses(OPERATION, admin="", run_as="", references={}, parameters={}) == []


def test_the_database_keeps_uses_as_they_are() -> None:
    found = credentials.uses(
        OPERATION, admin="root", run_as="", references={"database": "a"}, parameters={"phrase": "c"}
    )
    rows = credentials.to_rows(found)
    assert rows[1] == {"ref": "credential.database", "credential": "a", "kinds": ["USERNAME_PASSWORD", "TOKEN"]}
    assert credentials.from_rows(rows) == found
    assert jobs.c.credentials.server_default is not None
