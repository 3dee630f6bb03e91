"""The pages of one thing: a job, an agent."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sis.agent.v1 import agent_admin_service_pb2 as agent_pb
from sis.cli import terminal, words
from sis.cli.terminal import block, cell
from sis.queue.v1 import job_pb2

_NONE = words.NOT_APPLICABLE


def job_page(out: Console, job: job_pb2.Job) -> None:
    """Print everything that is known of a job but its log and history."""
    terminal.section(out, f"Job {job.job_id}", terminal.facts(_summary(job)))
    terminal.section(out, "Package", terminal.facts(_package(job)))
    terminal.section(out, "Target", terminal.facts(_target(job)))
    terminal.section(out, "Execution", terminal.facts(_execution(job)))
    if job.outputs:
        terminal.section(out, "Outputs", output_table(out, job.outputs))
    # The evidence names the same processes, and how each one ended.
    processes = job.stop_evidence.processes or job.processes
    if processes:
        terminal.section(out, "Processes", process_table(out, processes))
    if job.HasField("stop_evidence"):
        evidence_section(out, job)
    if job.attempt:
        terminal.section(out, "Log", terminal.facts(_log(job.log)))


def _summary(job: job_pb2.Job) -> Iterable[tuple[str, RenderableType]]:
    yield "Name", job.display_name
    yield "Type", words.job_type(job.type)
    yield "Status", Text(words.status(job.status), style=words.status_style(job.status))
    if job.HasField("wait"):
        yield "Waits", _wait(job.wait)
        if job.wait.message:
            yield "Why", job.wait.message
    if job.failure_reason:
        yield "Reason", job.failure_reason
    if job.status_message:
        yield "Message", job.status_message
    if job.rerun_of_job_id:
        yield "Rerun of", f"job {job.rerun_of_job_id}"
    yield "Creator", job.creator or _NONE
    yield "Created On", words.local_time(job.create_time)
    yield "Started On", words.local_time(job.start_time)
    yield "Completed On", words.local_time(job.complete_time)
    if job.labels:
        yield "Labels", ", ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))


def _wait(wait: job_pb2.JobWait) -> str:
    why = words.wait(wait.reason) if wait.reason else "it was given back"
    again = f"; tried again at {words.local_time(wait.retry_time)}" if wait.HasField("retry_time") else ""
    return why + again


def _package(job: job_pb2.Job) -> Iterable[tuple[str, RenderableType]]:
    yield "Package", words.package(job.package)
    yield "Digest", job.package.digest or _NONE
    yield "Operation", job.operation
    for name, value in sorted(job.parameters.items()):
        yield name, block(_value(value))


def _value(value: job_pb2.ParameterValue) -> str:
    if value.HasField("credential_ref"):
        return f"(the secret of credential {value.credential_ref})"
    if value.HasField("file"):
        return f"(the file {value.file.name}, {words.size(value.file.size_bytes)}, SHA-256 {value.file.sha256})"
    return "\n".join(value.list.items) if value.HasField("list") else value.plain


def _target(job: job_pb2.Job) -> Iterable[tuple[str, RenderableType]]:
    yield "Site target", words.site(job.site_target)
    yield "Agent", job.agent or _NONE
    yield "Target", job.target or _NONE
    if job.admin or job.run_as:
        yield "Admin", job.admin or _NONE
        yield "Run As", job.run_as or "the Admin's account"
    for ref, name in sorted(job.credentials.items()):
        yield f"Credential {ref}", name


def _execution(job: job_pb2.Job) -> Iterable[tuple[str, RenderableType]]:
    yield "Result code", str(job.result_code) if job.HasField("result_code") else _NONE
    yield "Attempt", str(job.attempt) if job.attempt else _NONE
    yield "Priority", words.priority(job.priority)
    if job.HasField("not_before"):
        yield "Not before", words.local_time(job.not_before)
    if job.HasField("latest_start"):
        yield "Latest start", words.local_time(job.latest_start)
    if job.HasField("deferral_expire_time"):
        yield "Held until", f"{words.local_time(job.deferral_expire_time)} at the latest"
    yield "Run timeout", words.duration(job.run_timeout) if job.HasField("run_timeout") else "none"
    if job.HasField("heartbeat_timeout"):
        yield "Heartbeat timeout", words.duration(job.heartbeat_timeout)
    if job.HasField("start_timeout"):
        yield "Start timeout", words.duration(job.start_timeout)
    if job.HasField("output_timeout"):
        yield "Output timeout", words.duration(job.output_timeout)
    if job.HasField("cancel_grace"):
        yield "Cancel grace", words.duration(job.cancel_grace)
    if job.progress_percent or job.progress_text:
        yield "Progress", f"{job.progress_percent} % {job.progress_text}".rstrip()
    if job.cancel_requested:
        yield "Cancel", "was requested"
    text, style = words.stop(job.stop_state)
    yield "Stop", Text(text, style=style)


def _log(log: job_pb2.LogSummary) -> Iterable[tuple[str, RenderableType]]:
    text, style = words.verdict(log.verdict)
    yield "Verdict", Text(text, style=style)
    yield "Output", f"{words.size(log.output_bytes)} in {log.frames} frames"
    if log.discarded_bytes:
        yield "Discarded", words.size(log.discarded_bytes)
    yield "Digest", log.digest or _NONE


def output_table(out: Console, outputs: Iterable[job_pb2.OutputParameter]) -> Table:
    """The output parameters; a value that is JSON is laid out."""
    table = terminal.table(out, "Name", "Value")
    for each in outputs:
        table.add_row(cell(each.name), block(_readable(each.value)))
    return table


def _readable(value: str) -> str:
    """A list of JSON objects as a line each, else the value."""
    if not value.startswith("["):
        return value
    try:
        found = json.loads(value)
        if not found or not all(isinstance(row, dict) for row in found):
            return value
        return "\n".join("  ".join(f"{key} {_plain(item)}" for key, item in row.items()) for row in found)
    except (ValueError, RecursionError):
        return value


def _plain(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def process_table(out: Console, processes: Iterable[job_pb2.Process], *, ended: bool = True) -> Table:
    """Processes with ids, names, identities, signals and how each ended."""
    headers = ["PID", "Parent", "Name", "Runs as", "Role", "Signals"] + (["End"] if ended else [])
    table = terminal.table(out, *headers, right=("PID", "Parent"))
    for process in processes:
        row: list[RenderableType] = [
            str(process.pid),
            str(process.parent_pid) if process.parent_pid else _NONE,
            cell(process.name),
            cell(process.identity),
            words.role(process.role),
            cell(words.signals_of(process) or "none"),
        ]
        if ended:
            end = words.end_of(process)
            row.append(cell(end, "" if process.ended else "yellow"))
        table.add_row(*row)
    return table


def evidence_section(out: Console, job: job_pb2.Job) -> None:
    """Print the evidence for the end of a job's processes."""
    evidence = job.stop_evidence
    empty = Text("yes", style="green") if evidence.tree_empty else Text("no", style="red")
    terminal.section(
        out,
        "Stop evidence",
        terminal.facts(
            [
                ("Process tree empty", empty),
                ("Looked at by", evidence.method or _NONE),
                ("Verified", words.local_time(evidence.verify_time)),
            ]
        ),
    )
    if evidence.survivors:
        terminal.section(out, "Survivors", process_table(out, evidence.survivors, ended=False))


def agent_page(out: Console, agent: agent_pb.Agent) -> None:
    """Print an agent."""
    attempts = ", ".join(f"{each.job_id} (attempt {each.number})" for each in agent.attempts)
    rows: list[tuple[str, RenderableType]] = [
        ("Group", agent.group),
        ("State", agent_state(agent)),
        ("Version", agent.version or _NONE),
        ("Host", agent.hostname or _NONE),
        ("Platform", agent.platform or _NONE),
        ("Slots", f"{len(agent.attempts)} of {agent.slots} in use"),
        ("Jobs in hand", attempts or "none"),
        ("Labels", ", ".join(f"{key}={value}" for key, value in sorted(agent.labels.items())) or "none"),
        ("Hub", agent.hub or _NONE),
        ("First seen", words.local_time(agent.first_seen_time)),
        ("Connected", words.local_time(agent.connect_time)),
        ("Last seen", words.local_time(agent.last_seen_time)),
    ]
    terminal.section(out, f"Agent {agent.name}", terminal.facts(rows))


def agent_state(agent: agent_pb.Agent) -> Text:
    """Whether the agent takes jobs."""
    if agent.HasField("quarantine_time"):
        return Text("quarantined", style="red")
    if not agent.online:
        return Text("offline", style="red")
    return Text("draining", style="yellow") if agent.draining else Text("online", style="green")
