"""The words in which people see jobs, packages, credentials and agents: those of the user guide."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from sis.credentials.v1 import credential_pb2
from sis.queue.v1 import frame_pb2, job_pb2

NOT_APPLICABLE = "n/a"

_STATUS = {
    job_pb2.JOB_STATUS_DEFERRED: ("Deferred", "blue"),
    job_pb2.JOB_STATUS_WAITING: ("Waiting", "blue"),
    job_pb2.JOB_STATUS_STARTING: ("Starting", "cyan"),
    job_pb2.JOB_STATUS_RUNNING: ("Running", "cyan"),
    job_pb2.JOB_STATUS_PROCESSING_OUTPUT: ("Processing Output", "cyan"),
    job_pb2.JOB_STATUS_CANCEL_REQUESTED: ("Cancel Request", "yellow"),
    job_pb2.JOB_STATUS_CANCELED: ("Canceled", "yellow"),
    job_pb2.JOB_STATUS_SUCCEEDED: ("Success", "green"),
    job_pb2.JOB_STATUS_FAILED: ("Failed", "red"),
    job_pb2.JOB_STATUS_ABORTED: ("Aborted", "red"),
    job_pb2.JOB_STATUS_TIMED_OUT: ("Timed Out", "red"),
    job_pb2.JOB_STATUS_EXPIRED: ("Expired", "red"),
    job_pb2.JOB_STATUS_AWOL: ("AWOL", "magenta"),
}
_TYPE = {
    job_pb2.JOB_TYPE_DISCOVERY: "Discovery",
    job_pb2.JOB_TYPE_PACKAGE: "IT Automation",
    job_pb2.JOB_TYPE_ASSET_IMPORT: "Asset Import",
}
_ROLE = {
    job_pb2.PROCESS_ROLE_PACKAGE_EXECUTOR: "package executor",
    job_pb2.PROCESS_ROLE_RUN_AS_EXECUTOR: "run-as executor",
    job_pb2.PROCESS_ROLE_PAYLOAD: "payload",
    job_pb2.PROCESS_ROLE_DESCENDANT: "descendant",
}
_STOP = {
    job_pb2.STOP_STATE_NONE: ("nothing had to be stopped", ""),
    job_pb2.STOP_STATE_PENDING: ("pending: the evidence is not in", "yellow"),
    job_pb2.STOP_STATE_CONFIRMED: ("confirmed: the process tree is empty", "green"),
    job_pb2.STOP_STATE_UNCONFIRMED: ("not confirmed", "red"),
}
_VERDICT = {
    job_pb2.LOG_VERDICT_OPEN: ("open: more may come", ""),
    job_pb2.LOG_VERDICT_COMPLETE: ("complete: agent and server agree on every byte", "green"),
    job_pb2.LOG_VERDICT_TRUNCATED: ("truncated: output beyond the cap was discarded at the site", "yellow"),
    job_pb2.LOG_VERDICT_GAPPED: ("gapped: the end never arrived", "red"),
}
_WAIT = {
    job_pb2.WAIT_REASON_VAULT_SEALED: "Vault is sealed",
    job_pb2.WAIT_REASON_VAULT_UNREACHABLE: "Vault cannot be reached",
    job_pb2.WAIT_REASON_VAULT_SLOW: "Vault is too slow",
    job_pb2.WAIT_REASON_VAULT_FORBIDDEN: "Vault denies access",
    job_pb2.WAIT_REASON_VAULT_RATE_LIMITED: "Vault limits the rate",
    job_pb2.WAIT_REASON_VAULT_FAILED: "Vault has failed",
    job_pb2.WAIT_REASON_CREDENTIALS_UNREACHABLE: "the credential service cannot be reached",
    job_pb2.WAIT_REASON_AGENT_UNKNOWN: "its agent has no valid identity",
    job_pb2.WAIT_REASON_DECLINED: "its agent has declined it",
    job_pb2.WAIT_REASON_HELD: "it is held until somebody activates it",
    job_pb2.WAIT_REASON_NOT_BEFORE: "its earliest start has not come",
    job_pb2.WAIT_REASON_NO_AGENT_KNOWN: "no agent of its group has ever been connected",
    job_pb2.WAIT_REASON_NO_AGENT_ONLINE: "no agent that may take it is connected",
    job_pb2.WAIT_REASON_AGENTS_DRAINING: "the agents that are connected take no new work",
    job_pb2.WAIT_REASON_AT_CAPACITY: "all slots are taken",
    job_pb2.WAIT_REASON_JOBS_AHEAD: "other jobs for the same agents come first",
    job_pb2.WAIT_REASON_NOTHING: "nothing keeps it",
    job_pb2.WAIT_REASON_NO_AGENT_FITS: "the agents that are connected run on another platform",
}
_CREDENTIAL_KIND = {
    credential_pb2.CREDENTIAL_KIND_USERNAME_PASSWORD: "username and password",
    credential_pb2.CREDENTIAL_KIND_SSH_KEY: "SSH key",
    credential_pb2.CREDENTIAL_KIND_TOKEN: "token",
    credential_pb2.CREDENTIAL_KIND_DOMAIN_ACCOUNT: "domain account",
}
_CREDENTIAL_STATE = {
    credential_pb2.CREDENTIAL_STATE_READY: "ready",
    credential_pb2.CREDENTIAL_STATE_PENDING: "being stored",
    credential_pb2.CREDENTIAL_STATE_VALUE_MISSING: "its secret is missing in Vault",
    credential_pb2.CREDENTIAL_STATE_DELETING: "being deleted",
}
_CHANNEL = {
    job_pb2.CHANNEL_SYSTEM: "system",
    job_pb2.CHANNEL_STDOUT: "stdout",
    job_pb2.CHANNEL_STDERR: "stderr",
    job_pb2.CHANNEL_DEBUG: "debug",
}
_SEVERITY = {
    frame_pb2.SEVERITY_DEBUG: "debug",
    frame_pb2.SEVERITY_INFO: "info",
    frame_pb2.SEVERITY_WARNING: "warning",
    frame_pb2.SEVERITY_ERROR: "error",
}


def status(value: job_pb2.JobStatus.ValueType) -> str:
    """The status as the list shows it: "Success"."""
    return _STATUS.get(value, (_unknown(value), ""))[0]


def status_style(value: job_pb2.JobStatus.ValueType) -> str:
    """The colour of a status."""
    return _STATUS.get(value, ("", ""))[1]


def job_type(value: job_pb2.JobType.ValueType) -> str:
    """The type as the list shows it: "IT Automation"."""
    return _TYPE.get(value, _unknown(value))


def role(value: job_pb2.ProcessRole.ValueType) -> str:
    """What a process is to its job."""
    return _ROLE.get(value, _unknown(value))


def stop(value: job_pb2.StopState.ValueType) -> tuple[str, str]:
    """What is known of the end of the processes, and its colour."""
    return _STOP.get(value, (NOT_APPLICABLE, ""))


def verdict(value: job_pb2.LogVerdict.ValueType) -> tuple[str, str]:
    """How complete a log is, and its colour."""
    return _VERDICT.get(value, (NOT_APPLICABLE, ""))


def wait(reason: job_pb2.WaitReason.ValueType) -> str:
    """What keeps a job."""
    return _WAIT.get(reason, _unknown(reason))


def credential_kind(value: credential_pb2.CredentialKind.ValueType) -> str:
    """What a credential is made of."""
    return _CREDENTIAL_KIND.get(value, _unknown(value))


def credential_state(value: credential_pb2.CredentialState.ValueType) -> str:
    """Whether a credential can be used."""
    return _CREDENTIAL_STATE.get(value, _unknown(value))


def channel(value: job_pb2.Channel.ValueType) -> str:
    """The channel's name, in lower case."""
    return _CHANNEL.get(value, _unknown(value))


def severity(value: frame_pb2.Severity.ValueType) -> str:
    """The severity's name, in lower case."""
    return _SEVERITY.get(value, _unknown(value))


def priority(value: job_pb2.Priority.ValueType) -> str:
    """The priority, in lower case."""
    return job_pb2.Priority.Name(value).removeprefix("PRIORITY_").lower() if value in range(5) else _unknown(value)


def site(target: job_pb2.SiteTarget) -> str:
    """The site target as the command line takes it: "agent:web-1"."""
    kind = target.WhichOneof("target")
    if kind is None:
        return NOT_APPLICABLE
    return f"agent:{target.agent}" if kind == "agent" else f"group:{target.group}"


def package(reference: job_pb2.PackageReference) -> str:
    """A package as the command line takes it: "core.shell@1.0.0"."""
    return f"{reference.name}@{reference.version}" if reference.version else reference.name


def signals_of(process: job_pb2.Process) -> str:
    """What was sent to a process, and when where that is known: "TERM 14:03:07, KILL 14:03:17"."""
    times = [f" {clock(time)}" for time in process.signal_times]
    return ", ".join(name + at for name, at in itertools.zip_longest(process.signals, times, fillvalue=""))


def end_of(process: job_pb2.Process) -> str:
    """How a process ended: "exit code 0", "killed by KILL"."""
    if process.end_signal:
        return f"ended by {process.end_signal}"
    if process.HasField("exit_code"):
        return f"exit code {process.exit_code}"
    return "ended" if process.ended else "still there"


def local_time(time: Timestamp) -> str:
    """A time in the local zone, for a table: "2026-11-22 15:04:05"; n/a where there is none."""
    return _local(time, "%Y-%m-%d %H:%M:%S")


def short_time(time: Timestamp) -> str:
    """The same for a narrow table: the time of a moment today, the date of any other."""
    day, today = _local(time, "%Y-%m-%d"), datetime.now().astimezone().strftime("%Y-%m-%d")
    return _local(time, "%H:%M:%S") if day == today else day


def _local(time: Timestamp, form: str) -> str:
    if not (time.seconds or time.nanos):
        return NOT_APPLICABLE
    return _moment(time).astimezone().strftime(form)


def clock(time: Timestamp) -> str:
    """The time of day in the local zone: "15:04:05"."""
    return _moment(time).astimezone().strftime("%H:%M:%S")


def utc(time: Timestamp) -> str:
    """A time in UTC, to the millisecond: "2026-11-22T15:04:05.123Z"."""
    return _moment(time).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.nanos // 1_000_000:03d}Z"


def _moment(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)


def duration(value: Duration | float) -> str:
    """A duration for a person: "350 ms", "4.2 s", "3 min 20 s", "2 h 5 min"."""
    seconds = value.ToTimedelta().total_seconds() if isinstance(value, Duration) else value
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")]
    parts = []
    for size, name in units:
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def size(count: int) -> str:
    """A number of bytes for a person: "512 B", "1.5 MiB"."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def _unknown(number: int) -> str:
    """The word for a value that this program is too old to know."""
    return f"unknown ({number})"
