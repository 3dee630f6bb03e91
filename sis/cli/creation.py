"""`sis jobs create` and `copy`: a job is put together, checked on this machine, and sent with its secrets apart."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import typer

from sis.cli import failures, operations, requests, secrets, terminal, values, words
from sis.cli.job_actions import follow_to_end, say_detached
from sis.cli.requests import JobOptions
from sis.client import ApiError, Client, ClientError
from sis.credentials.v1 import credential_pb2, credential_service_pb2
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb


def create(data: Path | None, options: JobOptions, *, follow: bool, json: bool) -> None:
    """Put a job on the queue and say which, or follow it to its end."""
    request = requests.job(options)
    with Client.find(data) as client:
        _put(client, request, options.typed_parameters, follow=follow, json=json)


def copy(data: Path | None, job_id: int, options: JobOptions, *, show: bool, follow: bool, json: bool) -> None:
    """As `create`, of a job like another one but for the options; or print the request and make nothing."""
    changes = requests.job(options)
    with Client.find(data) as client:
        request = client.jobs.copy(job_id)
        requests.override(request, changes, options)
        if show:
            print(terminal.document(request))
        else:
            _put(client, request, options.typed_parameters, follow=follow, json=json)


def _put(client: Client, request: pb.CreateJobRequest, typed: Sequence[str], *, follow: bool, json: bool) -> None:
    """The secrets of the inputs `typed` are asked for, and stored as credentials for this job alone."""
    _check(client, request, typed)
    job = _create_with_secrets(client, request, typed) if typed else client.jobs.create(request)
    if not follow:
        print(terminal.document(job) if json else f"Job {job.job_id} created: {words.status(job.status)}")
        return
    try:
        ended = follow_to_end(client, job.job_id, json=json, hint="Ctrl-C detaches")
    except KeyboardInterrupt:
        say_detached(job.job_id)
        raise typer.Exit(130) from None
    except ClientError:
        say_detached(job.job_id)
        raise
    if ended.status != job_pb2.JOB_STATUS_SUCCEEDED:
        raise typer.Exit(1)


def _check(client: Client, request: pb.CreateJobRequest, typed: Sequence[str]) -> None:
    if typed:
        _ = client.credentials  # before anything else: there must be a place to which the secrets can be sent
    package = client.packages.get(request.package.name, request.package.version)
    operations.check(package, request, typed)
    if not request.request_id:
        # The version that was checked. With a request id, the same command must stay the same request.
        request.package.version = package.version


def _typed(names: Sequence[str]) -> dict[str, bytes]:
    """The secrets that a person types, by the name of the input."""
    if sys.stdin.isatty():
        return {name: secrets.ask(f"Secret for {name}") for name in names}
    if len(names) > 1:
        raise values.OptionError(
            "--param-secret: there is no terminal on which several secrets could be typed, and standard input takes "
            "one; store the others with `sis credentials create` and give them by --param-credential"
        )
    return {name: secrets.read_stdin("--param-secret") for name in names}


def _create_with_secrets(client: Client, request: pb.CreateJobRequest, typed: Sequence[str]) -> job_pb2.Job:
    credentials = client.credentials
    made: list[str] = []
    asked = False
    # With the same request id the same names, so that repeating the command makes one of each.
    token = request.request_id or str(uuid.uuid4())
    try:
        for name, secret in _typed(typed).items():
            unique = f"typed-{uuid.uuid5(uuid.NAMESPACE_OID, f'{token} {name}')}"
            credential = credentials.create(
                credential_service_pb2.CreateCredentialRequest(
                    name=unique,
                    kind=credential_pb2.CREDENTIAL_KIND_TOKEN,
                    description=f"Typed for {name} of {request.display_name}"[:500],
                    value=credential_pb2.SecretValue(secret=secret),
                    for_one_job=True,
                    request_id=unique,
                )
            )
            made.append(credential.name)
            request.parameters[name].credential_ref = credential.name
        asked = True
        job = client.jobs.create(request)
    except BaseException as error:
        # Where the answer was lost there may be a job, which needs them; and one that an earlier run of the command has
        # created may have them, with a request id. What nobody binds expires within the hour.
        refused = not asked or (isinstance(error, ApiError) and not error.passing)
        if refused and not request.request_id:
            for each in made:
                with contextlib.suppress(ClientError):
                    credentials.delete(each)
        raise
    for each in made:
        try:
            credentials.bind(each, job.job_id)
        except ApiError as error:
            failures.report(error, f"job {job.job_id} is created, but has its secret only if it starts within the hour")
    return job
