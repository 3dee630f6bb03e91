from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sis.cli import requests
from sis.cli.requests import JobOptions
from sis.cli.values import OptionError
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)


def create(**options: Any) -> pb.CreateJobRequest:
    return requests.job(JobOptions(package="core.shell", operation="run", site="group:local", **options), NOW)


def test_a_job_without_credentials_names_none() -> None:
    request = create()
    assert (request.admin, request.run_as, dict(request.credentials)) == ("", "", {})


def test_the_accounts_of_a_job() -> None:
    request = create(admin="ops", run_as="alice")
    assert (request.admin, request.run_as) == ("ops", "alice")


def test_credentials_go_by_their_references() -> None:
    request = create(credentials=["db=app", "api=token=1"])
    assert dict(request.credentials) == {"db": "app", "api": "token=1"}


def test_a_secret_input_names_its_credential_beside_plain_ones() -> None:
    request = create(parameters=["user=bob"], secret_parameters=["password=db"])
    assert request.parameters["user"].plain == "bob"
    assert request.parameters["password"].credential_ref == "db"


def test_a_file_goes_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "hosts.csv").write_bytes(b"\xff\0")
    request = create(files=[f"list={tmp_path}/hosts.csv"])
    assert request.parameters["list"].file == job_pb2.FileValue(name="hosts.csv", content=b"\xff\0")


def test_files_that_cannot_be_given(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
    for name, problem in {"none": "No such file", "large": "is too large; a file has at most 1 MiB"}.items():
        with pytest.raises(OptionError, match=f"^--param-file f: .*{problem}"):
            create(files=[f"f={tmp_path}/{name}"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"credentials": ["db"]}, "--credential: 'db' is not of the form name=value"),
        ({"credentials": ["db=a", "db=b"]}, "--credential: 'db' is given twice"),
        ({"secret_parameters": ["p"]}, "--param-credential: 'p' is not of the form name=value"),
        ({"secret_parameters": ["p=a", "p=b"]}, "--param-credential: 'p' is given twice"),
        ({"secret_parameters": ["p=a"], "parameters": ["p=1"]}, "--param-credential: 'p' is given by --param too"),
        ({"files": ["p=/dev/null"], "parameters": ["p=1"]}, "--param-file: 'p' is given by --param too"),
        ({"files": ["p=/dev/null", "p=/dev/null"]}, "--param-file: 'p' is given twice"),
        ({"typed_parameters": ["p"], "files": ["p=/dev/null"]}, "--param-secret: 'p' is given by --param-file too"),
        ({"typed_parameters": ["p", "p"]}, "--param-secret: 'p' is given by --param-secret too"),
    ],
)
def test_what_does_not_fit_together(options: dict[str, Sequence[str]], problem: str) -> None:
    with pytest.raises(OptionError, match=f"^{problem}"):
        create(**options)


def original() -> pb.CreateJobRequest:
    return create(
        name="N", parameters=["a=1", "b=2"], secret_parameters=["password=db"], labels=["team=ops", "x=1"],
        not_before="+1h", run_timeout="1m500ms", priority="high",
    )  # fmt: skip


def copied(**options: Any) -> pb.CreateJobRequest:
    request, given = original(), JobOptions(**options)
    requests.override(request, requests.job(given, NOW), given)
    return request


def test_a_copy_is_the_same_where_nothing_is_said() -> None:
    assert copied() == original()


def test_what_is_said_takes_the_place_of_what_was() -> None:
    request = copied(
        name="M", package="p", site="agent:a", parameters=["b=3", "b=4", "c=5"], labels=["x=2"], run_timeout="2s",
        typed_parameters=["password"], request_id="mine",
    )  # fmt: skip
    assert request.display_name == "M"
    assert request.package == job_pb2.PackageReference(name="p")
    assert request.site_target == job_pb2.SiteTarget(agent="a")
    assert {name: value.plain or list(value.list.items) for name, value in request.parameters.items()} == {
        "a": "1", "b": ["3", "4"], "c": "5",
    }  # fmt: skip
    assert dict(request.labels) == {"team": "ops", "x": "2"}
    assert request.run_timeout.ToNanoseconds() == 2_000_000_000
    assert (request.operation, request.priority, request.request_id) == ("run", job_pb2.PRIORITY_HIGH, "mine")


@pytest.mark.parametrize(
    ("options", "deferred", "held_until"),
    [
        ({}, False, True),
        ({"deferred": True}, True, False),
        ({"deferred": False}, False, True),
        ({"not_before": "+2h"}, False, True),
    ],
)
def test_a_copy_is_held_in_one_way(options: dict[str, Any], deferred: bool, held_until: bool) -> None:
    request = copied(**options)
    assert (request.deferred, request.HasField("not_before")) == (deferred, held_until)


def test_a_copy_of_a_held_job_is_released() -> None:
    request, given = create(deferred=True, deferral_limit="1h"), JobOptions(deferred=False)
    requests.override(request, requests.job(given, NOW), given)
    assert not request.deferred and not request.HasField("deferral_limit")


def test_no_grace_takes_the_place_of_one() -> None:
    request, given = create(cancel_grace="30s"), JobOptions(cancel_grace="0s")
    requests.override(request, requests.job(given, NOW), given)
    assert request.HasField("cancel_grace") and request.cancel_grace.seconds == 0


def test_a_filter() -> None:
    made = requests.job_filter(["package"], ["timed-out"], ["awol"], "x", "-30d", NOW)
    assert made.complete_time_before.ToDatetime(UTC) == datetime(2026, 10, 23, 15, 0, tzinfo=UTC)
    assert (list(made.types), list(made.run_states)) == ([job_pb2.JOB_TYPE_PACKAGE], [job_pb2.RUN_STATE_TIMED_OUT])
    assert (list(made.statuses), made.text) == ([job_pb2.JOB_STATUS_AWOL], "x")
    assert requests.job_filter(None, None, None, "", None) == pb.JobFilter()
