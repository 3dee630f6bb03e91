"""One trace a job, from whoever asked for it to its payload, as a receiver of OTLP gets it from the processes."""

from __future__ import annotations

import json
import secrets
import urllib.request
from typing import Any

from sis.queue.v1 import job_pb2
from sis.trace_context import TraceContext
from tests.support.otlp_receiver import OtlpReceiver, Received
from tests.support.stack import Stack

SCRIPT = 'echo "TRACEPARENT=$TRACEPARENT"; echo "traceparent=$TRACEPARENT" >> "$SIS_OUTPUT"'
OF_A_JOB = {
    ("sis-queue", "sis.queue.v1.JobService/CreateJob"),
    ("sis-queue", "job wait"),
    ("sis-queue", "job seal"),
    ("sis-hub", "job deliver"),
    ("sis-agent", "job attempt"),
    ("sis-supervisor", "job supervise"),
    ("sis-supervisor", "job run"),
}


def _one(spans: list[Received], name: str) -> Received:
    (found,) = [span for span in spans if span.name == name]
    return found


def _job_trace(receiver: OtlpReceiver, trace_id: int, expected: set[tuple[str, str]]) -> list[Received]:
    receiver.wait(lambda: expected <= {(span.service, span.name) for span in receiver.trace(trace_id)})
    return receiver.trace(trace_id)


def test_a_job_of_the_command_line_is_one_trace_across_all_processes(
    traced_stack: Stack, receiver: OtlpReceiver
) -> None:
    done = traced_stack.cli(
        "jobs", "create", "--name", "traced", "--package", "core.shell", "--operation", "run",
        "--site", "group:local", "--param", f"script={SCRIPT}", "--follow",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told = next(line for line in done.stdout.splitlines() if "TRACEPARENT=" in line).partition("TRACEPARENT=")[2]
    payload = TraceContext.parse(told.strip())
    assert payload is not None

    spans = _job_trace(receiver, payload.trace_id, OF_A_JOB | {("sis", "sis jobs create")})
    root, created = _one(spans, "sis jobs create"), _one(spans, "sis.queue.v1.JobService/CreateJob")
    assert root.parent == 0
    assert root.attributes["process.exit.code"] == 0
    assert created.parent == root.context.span_id
    assert created.attributes["rpc.response.status_code"] == "OK"
    attempt, supervision = _one(spans, "job attempt"), _one(spans, "job supervise")
    for name in ("job wait", "job deliver", "job attempt", "job seal"):
        assert _one(spans, name).parent == created.context.span_id
    assert supervision.parent == attempt.context.span_id
    run = _one(spans, "job run")
    assert run.parent == supervision.context.span_id
    assert run.context == payload, "what the payload was told is its span"
    assert run.attributes["process.exit.code"] == 0
    assert attempt.attributes["sis.job.outcome"] == "SUCCEEDED"
    assert not any(span.failed for span in spans)
    assert attempt.began <= supervision.began <= run.began <= run.ended <= supervision.ended <= attempt.ended
    # Reports come for many jobs at once: they name the traces, and are in none of them.
    receiver.wait(
        lambda: any(
            created.context in span.links
            for span in receiver.spans
            if span.name == "sis.queue.v1.DispatchService/Report" and span.context.trace_id != payload.trace_id
        )
    )


def test_a_job_of_http_goes_on_with_the_trace_of_its_client(traced_stack: Stack, receiver: OtlpReceiver) -> None:
    given = TraceContext(secrets.randbits(128) | 1, secrets.randbits(64) | 1)
    job = _create(traced_stack, {"traceparent": str(given)}, script="exit 3")
    spans = _job_trace(receiver, given.trace_id, OF_A_JOB | {("sis-gateway", "POST /v1/jobs"), ("sis-gateway", CREATE)})
    served = _one(spans, "POST /v1/jobs")
    called = next(span for span in spans if (span.service, span.name) == ("sis-gateway", CREATE))
    created = next(span for span in spans if (span.service, span.name) == ("sis-queue", CREATE))
    assert served.parent == given.span_id
    assert called.parent == served.context.span_id
    assert created.parent == called.context.span_id
    attempt = _one(spans, "job attempt")
    assert attempt.failed
    assert attempt.attributes["error.type"] == "EXIT_CODE"
    assert _one(spans, "job run").attributes["process.exit.code"] == 3
    assert {span.attributes["sis.job.id"] for span in spans if span.name.startswith("job ")} == {int(job["jobId"])}


CREATE = "sis.queue.v1.JobService/CreateJob"


def test_what_is_no_traceparent_is_no_error_and_begins_a_trace(traced_stack: Stack, receiver: OtlpReceiver) -> None:
    hostile = "00-" + "f" * 32 + "-0000000000000000-01"
    job = _create(traced_stack, {"traceparent": hostile}, script="true")
    receiver.wait(
        lambda: any(s.attributes.get("sis.job.id") == int(job["jobId"]) for s in receiver.spans if s.name == "job run")
    )
    assert not receiver.trace(int("f" * 32, 16))


def test_the_leases_of_a_job_are_in_its_trace(traced_stack: Stack, receiver: OtlpReceiver) -> None:
    given = TraceContext(secrets.randbits(128) | 1, secrets.randbits(64) | 1)
    password = f"hidden-{secrets.token_hex(8)}"
    stored = traced_stack.cli(
        "credentials", "create", "--name", "traced", "--kind", "username-password", "--username", "app",
        "--secret-stdin", stdin=password,
    )  # fmt: skip
    assert stored.returncode == 0, stored.stderr
    text = f"typed-{secrets.token_hex(8)}"
    script = f'echo "{text} $SIS_CREDENTIAL_SECRET_PASSWORD"; echo "result={text}" >> "$SIS_OUTPUT"; exit 1'
    _create(traced_stack, {"traceparent": str(given)}, script=script, name=f"named {text}", credential="traced")
    taken = "sis.credentials.v1.LeaseService/TakeLeases"
    expected = {("sis-hub", taken), ("sis-credentials", taken), ("sis-credentials", "vault read")}
    _job_trace(receiver, given.trace_id, OF_A_JOB | expected)
    # Nothing that people or payloads have written is in any span, measurement or resource.
    told = b"".join(receiver.raw)
    assert password.encode() not in told
    assert text.encode() not in told


def test_measurements_come_by_otlp(traced_stack: Stack, receiver: OtlpReceiver) -> None:
    for service, name in (
        ("sis-queue", "rpc.server.call.duration"),
        ("sis-queue", "sis.job.count"),
        ("sis-queue", "sis.queue.notify.delay"),
        ("sis-hub", "sis.hub.slots"),
        ("sis-agent", "sis.agent.slots"),
        ("sis-credentials", "sis.vault.call.duration"),
    ):
        receiver.wait(lambda key=(service, name): key in receiver.metrics)


def test_what_is_logged_within_a_span_has_its_ids(traced_stack: Stack, receiver: OtlpReceiver) -> None:
    given = TraceContext(secrets.randbits(128) | 1, secrets.randbits(64) | 1)
    _create(traced_stack, {"traceparent": str(given)}, script="true")
    spans = _job_trace(receiver, given.trace_id, OF_A_JOB)
    created = next(span for span in spans if (span.service, span.name) == ("sis-queue", CREATE))
    log = traced_stack.layout.log("queue-1").read_text().splitlines(keepends=True)
    lines = [json.loads(line) for line in log if line.endswith("}\n")]  # the last may be half written
    (line,) = [line for line in lines if line.get("trace_id") == f"{given.trace_id:032x}" and "milliseconds" in line]
    assert line["span_id"] == f"{created.context.span_id:016x}"
    assert line["method"] == f"/{CREATE}"


def _create(
    stack: Stack, headers: dict[str, str], *, script: str, name: str = "traced", credential: str = ""
) -> dict[str, Any]:
    """Create a job over HTTP."""
    body = {
        "displayName": name,
        "type": job_pb2.JobType.Name(job_pb2.JOB_TYPE_PACKAGE),
        "package": {"name": "core.shell"},
        "operation": "run",
        "parameters": {"script": {"plain": script}},
        "siteTarget": {"group": "local"},
        **({"credentials": {"secret": credential}} if credential else {}),
    }
    request = urllib.request.Request(
        f"{stack.gateway}/v1/jobs",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {stack.token}", "Content-Type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.loads(answer.read())["job"]
    return found
