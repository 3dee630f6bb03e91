from __future__ import annotations

from collections.abc import Sequence

import pytest

from sis.cli import requests
from sis.cli.values import OptionError
from sis.queue.v1 import job_service_pb2 as pb


def create(
    *,
    admin: str = "",
    run_as: str = "",
    credentials: Sequence[str] = (),
    secret_parameters: Sequence[str] = (),
    parameters: Sequence[str] = (),
) -> pb.CreateJobRequest:
    return requests.create_job(
        name="N",
        type_name="package",
        package="core.shell",
        operation="run",
        site="group:local",
        parameters=parameters,
        deferred=False,
        not_before=None,
        latest_start=None,
        run_timeout=None,
        heartbeat_timeout=None,
        priority="unspecified",
        labels=(),
        request_id="",
        admin=admin,
        run_as=run_as,
        credentials=credentials,
        secret_parameters=secret_parameters,
    )


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


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"credentials": ["db"]}, "--credential: 'db' is not of the form name=value"),
        ({"credentials": ["db=a", "db=b"]}, "--credential: 'db' is given twice"),
        ({"secret_parameters": ["p"]}, "--param-credential: 'p' is not of the form name=value"),
        ({"secret_parameters": ["p=a", "p=b"]}, "--param-credential: 'p' is given twice"),
        ({"secret_parameters": ["p=a"], "parameters": ["p=1"]}, "--param-credential: 'p' is given by --param too"),
    ],
)
def test_what_does_not_fit_together(options: dict[str, list[str]], problem: str) -> None:
    with pytest.raises(OptionError, match=f"^{problem}"):
        create(**options)  # type: ignore[arg-type]
