"""What PostgreSQL, PgBouncer and the driver say, and what it means."""

from __future__ import annotations

import logging

import grpc
import pytest

from services.runtime.channels import from_status, grpc_error
from services.runtime.dependencies import Complaints, ShuttingDown, Trouble, of_peer, unavailable
from services.runtime.errors import Internal, PermissionDenied, Unavailable, to_status
from services.runtime.postgres_failures import PARTIAL, WORDS, Cause, cause_of, trouble

REFUSED = 'connection to server at "127.0.0.1", port 1 failed: Connection refused\n\tIs the server running?'


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (REFUSED, Cause.CONNECTION_REFUSED),
        ('socket "/run/.s.PGSQL.5432" failed: No such file or directory', Cause.CONNECTION_REFUSED),
        ("connection timeout expired", Cause.NO_ANSWER),
        ('connection to server at "10.0.0.1", port 5432 failed: Connection timed out', Cause.NO_ANSWER),
        ("could not receive data from server: Connection timed out", Cause.NO_ANSWER),
        ("failed to resolve host 'db': [Errno -2] Name or service not known", Cause.UNKNOWN_HOST),
        ("FATAL:  the database system is starting up", Cause.STARTING),
        ("FATAL:  the database system is not yet accepting connections", Cause.STARTING),
        ("FATAL:  the database system is in recovery mode", Cause.STARTING),
        ("FATAL:  the database system is shutting down", Cause.SHUTTING_DOWN),
        ("FATAL:  sorry, too many clients already", Cause.CONNECTION_LIMIT),
        ('FATAL:  too many connections for role "sis"', Cause.CONNECTION_LIMIT),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER", Cause.CONNECTION_LIMIT),
        ("FATAL:  no more connections allowed (max_client_conn)", Cause.CONNECTION_LIMIT),
        ("FATAL:  query_wait_timeout", Cause.CONNECTION_LIMIT),
        ("session is read-only", Cause.READ_ONLY),
        ('FATAL:  password authentication failed for user "sis"', Cause.LOGIN_REFUSED),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1"', Cause.LOGIN_REFUSED),
        ('FATAL:  role "sis" does not exist', Cause.LOGIN_REFUSED),
        ('FATAL:  database "sis" does not exist', Cause.NO_DATABASE),
        ("server closed the connection unexpectedly", Cause.CONNECTION_LOST),
        # Of several hosts, the one that tells most.
        (f"{REFUSED}\n- host: 'h2': session is read-only", Cause.READ_ONLY),
    ],
)
def test_a_connection_that_is_not_made(message: str, cause: Cause) -> None:
    assert cause_of("", message, lost=True) is cause


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("53100", Cause.DISK_FULL),
        ("53300", Cause.CONNECTION_LIMIT),
        ("53200", Cause.OUT_OF_MEMORY),
        ("25006", Cause.READ_ONLY),
        ("57P01", Cause.CONNECTION_LOST),
        ("57P02", Cause.CONNECTION_LOST),
        ("57P03", Cause.STARTING),
        ("28P01", Cause.LOGIN_REFUSED),
        ("3D000", Cause.NO_DATABASE),
        ("42501", Cause.PERMISSION_DENIED),
        ("58030", Cause.STORAGE_FAILED),
        ("08P01", Cause.CONNECTION_LOST),
        ("42P01", None),
        ("22P02", None),
        ("23505", None),
    ],
)
def test_a_statement_that_fails(state: str, cause: Cause | None) -> None:
    assert cause_of(state, "whatever", lost=False) is cause


def test_every_cause_has_words_and_only_some_stop_nothing() -> None:
    assert WORDS.keys() == set(Cause)
    assert {cause for cause in Cause if not trouble(cause).stops} == PARTIAL


def test_the_trouble_of_another_process_is_told_in_its_own_words() -> None:
    error = unavailable("postgresql", "PostgreSQL", trouble(Cause.CONNECTION_LIMIT))
    assert error.message == "waiting for PostgreSQL: it takes no more connections; try again"
    found = of_peer(error)
    assert found == Trouble("CONNECTION_LIMIT", "it waits for PostgreSQL: it takes no more connections")
    assert of_peer(PermissionDenied("secret@10.0.0.1")).words == "it refuses (PERMISSION_DENIED)"
    assert of_peer(Internal("the server failed: fault 12")).words == "it fails; see its log"


def test_one_that_shuts_down_says_so_over_the_wire() -> None:
    error = from_status(to_status(ShuttingDown()))
    assert of_peer(error) == Trouble("RESTARTING", "it shuts down")


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_an_error_that_no_server_of_the_suite_has_made_is_no_answer(code: grpc.StatusCode) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "secret@10.0.0.1")
    assert of_peer(grpc_error(error)) == Trouble("UNREACHABLE", "it does not answer")


def test_one_that_answers_that_it_cannot_now_does_answer() -> None:
    found = of_peer(from_status(to_status(Unavailable("the change lost against another one; try again"))))
    assert found == Trouble("DEPENDENCY_UNAVAILABLE", "it refuses (DEPENDENCY_UNAVAILABLE)")


def test_complaints_are_made_once_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    complaints = Complaints(logging.getLogger("test"), "nothing is swept")
    full, away = (unavailable("postgresql", "PostgreSQL", trouble(c)) for c in (Cause.DISK_FULL, Cause.NO_ANSWER))
    for error in (full, full, away, away, full):
        complaints.note(error)
    for _ in range(2):
        complaints.over()
    assert [record.getMessage().split("; try")[0] for record in caplog.records] == [
        "nothing is swept: waiting for PostgreSQL: its disk is full",
        "nothing is swept: waiting for PostgreSQL: it does not answer",
        "nothing is swept: waiting for PostgreSQL: its disk is full",
        "over: nothing is swept",
    ]
