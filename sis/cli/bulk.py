"""The verbs of `sis jobs`, for jobs that are named one by one and for all that options choose."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import typer

from sis.cli import failures, terminal, words
from sis.cli.values import OptionError
from sis.client import ApiError, Client, from_status
from sis.queue.v1 import job_pb2
from sis.queue.v1 import job_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Verb:
    """What can be done to jobs: to one by a call of its own, to many by ApplyVerb."""

    number: job_pb2.JobVerb.ValueType
    word: str
    participle: str
    one: Callable[[Client, int, str], job_pb2.Job | None]
    """Does it to one job, for a reason; the job after it, None where there is none any more."""
    force: bool = False


def _activate(client: Client, job_id: int, reason: str) -> job_pb2.Job:
    return client.jobs.activate(job_id, reason)


def _cancel(client: Client, job_id: int, reason: str) -> job_pb2.Job:
    return client.jobs.cancel(job_id, reason)


def _abort(client: Client, job_id: int, reason: str) -> job_pb2.Job:
    return client.jobs.abort(job_id, reason)


def _force(client: Client, job_id: int, reason: str) -> job_pb2.Job:
    return client.jobs.abort(job_id, reason, force=True)


def _delete(client: Client, job_id: int, reason: str) -> None:
    client.jobs.delete(job_id, reason)


def _rerun(client: Client, job_id: int, reason: str) -> job_pb2.Job:
    return client.jobs.rerun(job_id, reason=reason)


VERBS = {
    "ACTIVATE": Verb(job_pb2.JOB_VERB_ACTIVATE, "activate", "activated", _activate),
    "CANCEL": Verb(job_pb2.JOB_VERB_CANCEL, "cancel", "canceled", _cancel),
    "ABORT": Verb(job_pb2.JOB_VERB_ABORT, "abort", "aborted", _abort),
    "FORCE": Verb(job_pb2.JOB_VERB_ABORT, "abort", "aborted", _force, force=True),
    "DELETE": Verb(job_pb2.JOB_VERB_DELETE, "delete", "deleted", _delete),
    "RERUN": Verb(job_pb2.JOB_VERB_RERUN, "rerun", "rerun", _rerun),
}


def apply(
    data: Path | None,
    verb: Verb,
    job_ids: Sequence[int],
    job_filter: pb.JobFilter,
    *,
    reason: str,
    dry_run: bool,
    yes: bool,
    json: bool,
) -> None:
    """Do it to each job, whatever becomes of the others; exit 1 in the end if one was refused."""
    by_filter = job_filter != pb.JobFilter()
    if by_filter == bool(job_ids):
        raise OptionError(
            f"give the ids of the jobs to {verb.word}, or options that choose them (--type, --state, --status, "
            "--text, --completed-before); not both"
        )
    unique = list(dict.fromkeys(job_ids))
    with Client.find(data) as client:
        if unique and not dry_run:
            _one_by_one(client, verb, unique, reason, json)
            return
        expected = None
        if by_filter and not dry_run and not yes:
            expected = _confirmed_count(client, verb, job_filter)
        responses = client.jobs.apply(
            verb.number,
            job_ids=unique,
            filter=job_filter if by_filter else None,
            expected_count=expected,
            validate_only=dry_run,
            reason=reason,
            force=verb.force,
        )
        _report(verb, responses, dry_run, json)


def _one_by_one(client: Client, verb: Verb, job_ids: Sequence[int], reason: str, json: bool) -> None:
    failed = False
    for job_id in job_ids:
        try:
            job = verb.one(client, job_id, reason)
        except ApiError as error:
            failed = True
            failures.report(error, f"job {job_id}")
            continue
        if json:
            print(terminal.line(job or pb.DeleteJobResponse()))
        else:
            print(_said(verb, job_id, job))
    if failed:
        raise typer.Exit(1)


def _confirmed_count(client: Client, verb: Verb, job_filter: pb.JobFilter) -> int:
    """How many jobs match, which somebody has agreed to."""
    if not sys.stdin.isatty():
        raise OptionError("--yes is missing: there is no terminal on which you could be asked")
    count = 0
    with closing(client.jobs.apply(verb.number, filter=job_filter, validate_only=True, force=verb.force)) as responses:
        for response in responses:
            count = response.total
            break
    if count == 0:
        print("No jobs match", file=sys.stderr)
        raise typer.Exit
    if not typer.confirm(f"{verb.word.capitalize()} {_jobs(count)}?", err=True):
        print("Nothing was done", file=sys.stderr)
        raise typer.Exit(1)
    return count


def _report(verb: Verb, responses: Iterable[pb.ApplyVerbResponse], dry_run: bool, json: bool) -> None:
    total = done = refused = 0
    try:
        for response in responses:
            if json:
                print(terminal.line(response), flush=True)
            if response.WhichOneof("content") == "total":
                total = response.total
                continue
            result = response.result
            if result.HasField("error"):
                refused += 1
                if not json:
                    failures.report(from_status(result.error), f"job {result.job_id}")
                continue
            done += 1
            if not json and dry_run:
                print(f"Job {result.job_id}: would be {verb.participle}")
            elif not json:
                print(_said(verb, result.job_id, result.job if result.HasField("job") else None))
    except (ApiError, KeyboardInterrupt):
        if total and not dry_run:
            failures.say(
                f"{done + refused} of {_jobs(total)} were answered for; others may have been {verb.participle}"
            )
        raise
    if not json:
        would = f"would be {verb.participle}" if dry_run else "done"
        print(f"{_jobs(total)}: {done} {would}, {refused} refused")
    if refused:
        raise typer.Exit(1)


def _said(verb: Verb, job_id: int, job: job_pb2.Job | None) -> str:
    """What became of one job."""
    if job is None:
        return f"Job {job_id}: {verb.participle}"
    if verb.number == job_pb2.JOB_VERB_RERUN:
        return f"Job {job_id}: rerun as job {job.job_id}, {words.status(job.status)}"
    return f"Job {job_id}: {words.status(job.status)}"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
