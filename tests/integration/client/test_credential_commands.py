"""`sis credentials` and the secrets of `sis jobs create` against a scripted server: what is sent, and that no secret
is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from services.queue.errors import RequestIdReused
from services.runtime import errors
from sis.cli import secrets
from sis.credentials.v1 import credential_pb2
from sis.credentials.v1 import credential_service_pb2 as pb
from sis.queue.v1 import job_pb2, job_service_pb2, package_service_pb2
from tests.fakes.job_service import Cut, Script
from tests.integration.client.conftest import Ran, Sis

SECRET = "correct horse battery"


class CredentialNotFound(errors.NotFound):
    reason = "CREDENTIAL_NOT_FOUND"


class Away(errors.Unavailable):
    reason = "DEPENDENCY_UNAVAILABLE"


def credential(name: str = "db", **changes: object) -> credential_pb2.Credential:
    fields: dict[str, object] = {
        "name": name,
        "kind": credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD,
        "username": "app",
        "version": 3,
        "state": credential_pb2.CREDENTIAL_STATE_READY,
        "creator": "administrator",
        **changes,
    }
    return credential_pb2.Credential(**fields)  # type: ignore[arg-type]


def silent(ran: Ran) -> Ran:
    """What a command did, which was not to print the secret."""
    assert SECRET not in ran.out + ran.err
    return ran


# sis credentials


def test_create_from_standard_input(sis: Sis, script: Script) -> None:
    script.answer("CreateCredential", pb.CreateCredentialResponse(credential=credential(version=1)))
    ran = silent(
        sis(
            "credentials", "create", "--name", "db", "--kind", "domain-account", "--username", "alice",
            "--domain", "CORP", "--description", "of the app", "--request-id", "mine", "--secret-stdin",
            stdin=SECRET.encode() + b"\r\n",
        )
    )  # fmt: skip
    assert (ran.code, ran.out) == (0, "Credential db stored, version 1\n")
    assert script.asked("CreateCredential") == [
        pb.CreateCredentialRequest(
            name="db",
            kind=credential_pb2.CREDENTIAL_KIND_DOMAIN_ACCOUNT,
            username="alice",
            domain="CORP",
            description="of the app",
            value=credential_pb2.SecretValue(secret=SECRET.encode()),
            request_id="mine",
        )
    ]


def test_create_from_files(sis: Sis, script: Script, tmp_path: Path) -> None:
    script.answer("CreateCredential", pb.CreateCredentialResponse(credential=credential(version=1)))
    (tmp_path / "key").write_text(f"BEGIN\n{SECRET}\nEND\n")
    (tmp_path / "phrase").write_text(SECRET)
    options = ("--secret-file", str(tmp_path / "key"), "--passphrase-file", str(tmp_path / "phrase"))
    ran = silent(
        sis("credentials", "create", "--name", "k", "--kind", "ssh-key", "--username", "o", *options, "--json")
    )
    assert json.loads(ran.out)["version"] == "1"
    (request,) = script.asked("CreateCredential")
    assert request.value.secret == f"BEGIN\n{SECRET}\nEND".encode()
    assert request.value.passphrase == SECRET.encode()
    assert request.request_id


def test_replace_sends_what_was_given(sis: Sis, script: Script) -> None:
    script.answer("ReplaceCredential", pb.ReplaceCredentialResponse(credential=credential()))
    options = ("--username", "", "--version", "2", "--secret-stdin")
    ran = silent(sis("credentials", "replace", "db", *options, stdin=SECRET.encode()))
    assert (ran.code, ran.out) == (0, "Credential db replaced, version 3\n")
    (request,) = script.asked("ReplaceCredential")
    assert (request.name, request.version, request.value.secret) == ("db", 2, SECRET.encode())
    assert (request.HasField("username"), request.HasField("domain")) == (True, False)


def nowhere(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("SIS_QUEUE_ENDPOINT")
    return "no stack is up"


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("SIS_CREDENTIALS_ENDPOINT")
    return "SIS_CREDENTIALS_ENDPOINT"


@pytest.mark.parametrize("missing", [nowhere, elsewhere])
@pytest.mark.parametrize(
    "command",
    [
        ("credentials", "create", "--name", "db", "--kind", "token"),
        ("credentials", "replace", "db"),
        (
            "jobs", "create", "--name", "N", "--package", "p", "--operation", "o", "--site", "group:g",
            "--param-secret", "password",
        ),
    ],
    ids=["create", "replace", "job"],
)  # fmt: skip
def test_nobody_is_asked_for_a_secret_that_cannot_be_sent(
    sis: Sis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    command: tuple[str, ...],
    missing: Callable[[pytest.MonkeyPatch], str],
) -> None:
    monkeypatch.setenv("SIS_DATA", str(tmp_path / "none"))
    problem = missing(monkeypatch)
    ran = sis(*command)  # with a standard input that is empty and no terminal, which would be refused as well
    assert ran.code == 1
    assert problem in ran.err


def test_the_table(sis: Sis, script: Script) -> None:
    for_one_job = credential("typed-1", kind=credential_pb2.CREDENTIAL_KIND_TOKEN, username="", job_id=42)
    unbound = credential("typed-2", kind=credential_pb2.CREDENTIAL_KIND_TOKEN, username="")
    unbound.expire_time.FromSeconds(1_000_000_000)
    found = [credential(domain="CORP", username="al\x1b[2Jice"), for_one_job, unbound]
    script.answer(
        "ListCredentials",
        pb.ListCredentialsResponse(credentials=found[:1], next_page_token="more"),
        pb.ListCredentialsResponse(credentials=found[1:]),
        pb.ListCredentialsResponse(credentials=found[:1]),
    )
    header, first, second, third = sis("credentials", "list", "--all").out.splitlines()
    assert " ".join(header.split()) == "Name Kind Account Version State Created On Last Used Made For"
    assert first.split("  ")[0] == "db"
    assert r"CORP\al\x1b[2Jice" in first
    assert second.rstrip().endswith("job 42")
    assert "one job, until 2001-09-09" in third
    assert all(request.include_for_one_job for request in script.asked("ListCredentials"))
    assert "Made For" not in sis("credentials", "list").out
    assert not script.asked("ListCredentials")[2].include_for_one_job


def test_the_json_of_a_list(sis: Sis, script: Script) -> None:
    script.answer("ListCredentials", pb.ListCredentialsResponse(credentials=[credential()]))
    found = json.loads(sis("credentials", "list", "--json").out)["credentials"]
    assert [each["name"] for each in found] == ["db"]
    assert not {"secret", "value", "passphrase"} & set(found[0])


def test_one_credential(sis: Sis, script: Script) -> None:
    script.answer("GetCredential", pb.GetCredentialResponse(credential=credential(updater="eve", job_id=42)))
    page = sis("credentials", "show", "db").out
    for part in (
        "Credential db",
        "username and password",
        "app",
        "ready",
        "by eve",
        "job 42, with which it is deleted",
    ):
        assert part in page


def test_usage(sis: Sis, script: Script) -> None:
    use = credential_pb2.CredentialUsage(
        job_id=42, attempt=1, agent="web-1", ref="run_as", requester="administrator", version=3
    )
    use.take_time.FromSeconds(1_000_000_000)
    answer = pb.ListCredentialUsageResponse(usage=[use])
    script.answer("ListCredentialUsage", answer, answer, pb.ListCredentialUsageResponse())
    header, row = sis("credentials", "usage", "db").out.splitlines()
    assert header.split() == ["Taken", "Ended", "Job", "Attempt", "Agent", "As", "Asked", "by", "Version"]
    assert row.split()[2:] == ["in", "use", "42", "1", "web-1", "run_as", "administrator", "3"]
    assert json.loads(sis("credentials", "usage", "db", "--json").out)["usage"][0]["ref"] == "run_as"
    assert sis("credentials", "usage", "db").out == "Never used\n"


def test_one_that_is_not_there_does_not_stop_the_rest(sis: Sis, script: Script) -> None:
    script.answer(
        "DeleteCredential", CredentialNotFound("name: there is no credential 'x'"), pb.DeleteCredentialResponse()
    )
    ran = sis("credentials", "delete", "x", "db")
    assert (ran.code, ran.out, ran.err) == (1, "Credential db deleted\n", "error: there is no credential 'x'\n")


def test_a_secret_that_is_refused_is_not_repeated(sis: Sis, script: Script) -> None:
    violations = [errors.FieldViolation("value.secret", "must have 8 bytes"), errors.FieldViolation("username", "no")]
    script.answer("CreateCredential", errors.InvalidArgument.fields(violations))
    ran = silent(
        sis("credentials", "create", "--name", "db", "--kind", "token", "--secret-stdin", stdin=SECRET.encode())
    )
    assert ran.code == 1
    assert ran.err.splitlines() == ["error: the secret: must have 8 bytes", "error: --username: no"]


# sis jobs create

ONCE = ("jobs", "create", "--name", "N", "--package", "p", "--operation", "o", "--site", "agent:a")
CREATE = (*ONCE, "--request-id", "mine")


@pytest.fixture
def offered(script: Script) -> None:
    """The library holds the package that CREATE names."""
    package = package_service_pb2.Package(name="p", version="1.0.0")
    package.operations.add(name="o").inputs.add(name="password", type="string", sensitive=True)
    script.answer("GetPackage", *[package_service_pb2.GetPackageResponse(package=package)] * 2)


def job() -> job_pb2.Job:
    return job_pb2.Job(job_id=42, status=job_pb2.JOB_STATUS_WAITING)


@pytest.mark.usefixtures("offered")
def test_credentials_by_name(sis: Sis, script: Script) -> None:
    script.answer("CreateJob", job_service_pb2.CreateJobResponse(job=job()))
    options = ("--admin", "ops", "--run-as", "alice", "--credential", "db=app", "--param-credential", "password=db")
    assert sis(*CREATE, *options).code == 0
    (request,) = script.asked("CreateJob")
    assert (request.admin, request.run_as, dict(request.credentials)) == ("ops", "alice", {"db": "app"})
    assert request.parameters["password"].credential_ref == "db"
    assert [method for method, _ in script.requests] == ["GetPackage", "CreateJob"]


def stored(script: Script) -> None:
    script.answer("CreateCredential", pb.CreateCredentialResponse(credential=credential("typed-x")))


@pytest.mark.usefixtures("offered")
def test_a_typed_secret_is_stored_for_the_job_and_tied_to_it(sis: Sis, script: Script) -> None:
    stored(script)
    script.answer("CreateJob", job_service_pb2.CreateJobResponse(job=job()))
    script.answer("BindCredential", pb.BindCredentialResponse())
    ran = silent(sis(*CREATE, "--param-secret", "password", stdin=SECRET.encode() + b"\n"))
    assert (ran.code, ran.out, ran.err) == (0, "Job 42 created: Waiting\n", "")
    (made,) = script.asked("CreateCredential")
    assert (made.value.secret, made.for_one_job) == (SECRET.encode(), True)
    assert (made.kind, made.description) == (credential_pb2.CREDENTIAL_KIND_TOKEN, "Typed for password of N")
    (request,) = script.asked("CreateJob")
    assert request.parameters["password"].credential_ref == "typed-x"
    assert SECRET.encode() not in request.SerializeToString()
    assert script.asked("BindCredential") == [pb.BindCredentialRequest(name="typed-x", job_id=42)]


@pytest.mark.usefixtures("offered")
def test_repeating_the_command_makes_one_credential(sis: Sis, script: Script) -> None:
    for _ in range(2):
        stored(script)
        script.answer("CreateJob", job_service_pb2.CreateJobResponse(job=job()))
        script.answer("BindCredential", pb.BindCredentialResponse())
        assert sis(*CREATE, "--param-secret", "password", stdin=SECRET.encode()).code == 0
    first, second = script.asked("CreateCredential")
    assert first == second
    assert first.name == first.request_id


@pytest.mark.usefixtures("offered")
def test_it_is_deleted_when_the_job_is_refused(sis: Sis, script: Script) -> None:
    stored(script)
    violation = errors.FieldViolation("parameters.password", "is not an input of this operation")
    script.answer("CreateJob", errors.InvalidArgument.fields([violation]))
    script.answer("DeleteCredential", Away("Vault is away"))
    ran = silent(sis(*ONCE, "--param-secret", "password", stdin=SECRET.encode()))
    assert ran.code == 1
    assert ran.err == "error: --param, parameters.password: is not an input of this operation\n"
    assert script.asked("DeleteCredential") == [pb.DeleteCredentialRequest(name="typed-x")]
    assert script.asked("BindCredential") == []


@pytest.mark.usefixtures("offered")
def test_it_is_left_where_a_job_of_the_same_request_id_may_need_it(sis: Sis, script: Script) -> None:
    """An earlier run of the command created a job with it; this one has another option."""
    stored(script)
    script.answer("CreateJob", RequestIdReused("mine"))
    ran = silent(sis(*CREATE, "--admin", "ops", "--param-secret", "password", stdin=SECRET.encode()))
    assert ran.code == 1
    assert script.asked("DeleteCredential") == []


@pytest.mark.usefixtures("offered")
def test_it_is_left_where_the_job_may_have_been_created(sis: Sis, script: Script) -> None:
    stored(script)
    script.answer("CreateJob", *[Cut()] * 5)
    ran = silent(sis(*CREATE, "--param-secret", "password", stdin=SECRET.encode()))
    assert ran.code == 1
    assert script.asked("DeleteCredential") == []


@pytest.mark.usefixtures("offered")
def test_a_job_whose_secret_is_not_tied_to_it_is_named(sis: Sis, script: Script) -> None:
    stored(script)
    script.answer("CreateJob", job_service_pb2.CreateJobResponse(job=job()))
    script.answer("BindCredential", CredentialNotFound("name: there is no credential 'typed-x'"))
    ran = sis(*CREATE, "--param-secret", "password", stdin=SECRET.encode())
    assert (ran.code, ran.out) == (0, "Job 42 created: Waiting\n")
    assert "job 42 is created, but has its secret only if it starts within the hour" in ran.err


@pytest.mark.usefixtures("offered")
def test_nobody_is_asked_for_the_secret_of_an_input_that_is_none(sis: Sis, script: Script) -> None:
    ran = sis(*CREATE, "--param-secret", "passphrase")  # and standard input is empty
    assert ran.code == 1
    assert ran.err.startswith("error: --param, parameters.passphrase: is not an input of this operation")
    assert [method for method, _ in script.requests] == ["GetPackage"]


TWICE = "--param-secret: 'password' is given by"


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("options", "stdin", "problem"),
    [
        ((), b"", "--param-secret: standard input is empty"),
        ((), b"x" * (secrets.MAX_BYTES + 1), "is longer than 64 KiB"),
        (("--param-secret", "password"), SECRET.encode(), f"{TWICE} --param-secret too"),
        (("--param", "password=1"), SECRET.encode(), f"{TWICE} --param too"),
    ],
)
def test_secrets_that_cannot_be_had(
    sis: Sis, script: Script, options: tuple[str, ...], stdin: bytes, problem: str
) -> None:
    ran = silent(sis(*CREATE, "--param-secret", "password", *options, stdin=stdin))
    assert ran.code == 2
    assert problem in ran.err
    assert len(ran.err.splitlines()) == 1
    assert {method for method, _ in script.requests} <= {"GetPackage"}


def test_standard_input_takes_one_secret(sis: Sis, script: Script) -> None:
    package = package_service_pb2.Package(name="p", version="1.0.0")
    operation = package.operations.add(name="o")
    for name in "ab":
        operation.inputs.add(name=name, type="string", sensitive=True)
    script.answer("GetPackage", package_service_pb2.GetPackageResponse(package=package))
    ran = silent(sis(*CREATE, "--param-secret", "a", "--param-secret", "b", stdin=SECRET.encode()))
    assert ran.code == 2
    assert "no terminal on which several secrets" in ran.err
