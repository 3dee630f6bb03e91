"""The pages of one thing: a job, a package, an agent."""

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
from sis.queue.v1 import package_service_pb2 as package_pb

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
    yield "Run timeout", words.duration(job.run_timeout) if job.HasField("run_timeout") else "none"
    if job.HasField("heartbeat_timeout"):
        yield "Heartbeat timeout", words.duration(job.heartbeat_timeout)
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
    if not value.startswith(("[", "{")):
        return value
    try:
        found = json.loads(value)
    except ValueError:
        return value
    rows = found if isinstance(found, list) else [found]
    if not rows or not all(isinstance(row, dict) for row in rows):
        return value
    return "\n".join("  ".join(f"{key} {_plain(item)}" for key, item in row.items()) for row in rows)


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


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
            cell(", ".join(process.signals) or "none"),
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


def package_page(out: Console, package: package_pb.Package) -> None:
    """Print a package and what it can do."""
    rows: list[tuple[str, RenderableType]] = [
        ("Description", package.description or _NONE),
        ("Publisher", package.publisher or _NONE),
        ("Platforms", ", ".join(package.platforms) or "any"),
        ("Digest", package.digest),
        ("Size", words.size(package.size_bytes)),
        ("Pushed", f"{words.local_time(package.push_time)} by {package.pusher or 'unknown'}"),
    ]
    terminal.section(out, f"{package.name} {package.version}", terminal.facts(rows))
    for operation in package.operations:
        timeout = words.duration(operation.run_timeout) if operation.HasField("run_timeout") else "none"
        terminal.section(
            out,
            f"Operation {operation.name}",
            terminal.facts([("Description", operation.description or _NONE), ("Run timeout", timeout)]),
        )
        if operation.inputs:
            table = terminal.table(out, "Input", "Type", "Required", "Default", "Description")
            for each in operation.inputs:
                default = each.default_value if each.HasField("default_value") else _NONE
                table.add_row(
                    cell(each.name),
                    cell(_type(each)),
                    "yes" if each.required else "no",
                    cell(default),
                    cell(f"{each.description} (hint: {each.hint})" if each.hint else each.description),
                )
            out.print(table)
            out.print()
        if operation.credentials:
            table = terminal.table(out, "Credential", "Kinds", "Required", "Reaches it by", "Description")
            for reference in operation.credentials:
                kinds = ", ".join(map(words.credential_kind, reference.kinds)) or "any"
                required = "yes" if reference.required else "no"
                table.add_row(cell(reference.ref), kinds, required, reference.delivery, cell(reference.description))
            out.print(table)
            out.print()
        if operation.outputs:
            table = terminal.table(out, "Output", "Required", "Description")
            for each_output in operation.outputs:
                required = "yes" if each_output.required else "no"
                table.add_row(cell(each_output.name), required, cell(each_output.description))
            out.print(table)
            out.print()


def _type(field: package_pb.Input) -> str:
    if field.choices:
        return " | ".join(field.choices)
    return f"{field.type} matching {field.pattern}" if field.pattern else field.type


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
