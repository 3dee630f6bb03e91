"""The options of `sis jobs` that several commands share. Imports nothing heavy: `sis --help` must be quick."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from sis.cli.options import MAX_JOB_ID


class JobType(StrEnum):
    PACKAGE = "package"
    DISCOVERY = "discovery"
    ASSET_IMPORT = "asset-import"


class RunState(StrEnum):
    READY = "ready"
    ACTIVE = "active"
    CANCELING = "canceling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed-out"
    HALTED = "halted"


class Status(StrEnum):
    DEFERRED = "deferred"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    PROCESSING_OUTPUT = "processing-output"
    CANCEL_REQUESTED = "cancel-requested"
    CANCELED = "canceled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABORTED = "aborted"
    TIMED_OUT = "timed-out"
    EXPIRED = "expired"
    AWOL = "awol"


class Priority(StrEnum):
    IDLE = "idle"
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


# Which jobs: ids …
SomeJobIds = Annotated[list[int] | None, typer.Argument(metavar="JOB_ID", min=1, max=MAX_JOB_ID)]
# … or what they have in common.
Types = Annotated[list[JobType] | None, typer.Option("--type")]
States = Annotated[list[RunState] | None, typer.Option("--state", help="A run state, such as active.")]
Statuses = Annotated[list[Status] | None, typer.Option("--status")]
Containing = Annotated[
    str, typer.Option("--text", metavar="TEXT", help="Part of the name, the operation or the target.")
]
CompletedBefore = Annotated[
    str | None, typer.Option("--completed-before", metavar="TIME", help="RFC 3339, or before now: -30d, -12h.")
]

# What a job is made of.
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        metavar="K=V",
        help="An input. Given again, K becomes a list; K=@FILE reads a file, K=@@TEXT means @TEXT.",
    ),
]
ParamFiles = Annotated[
    list[str] | None, typer.Option("--param-file", metavar="K=PATH", help="The file for an input of type file.")
]
ParamCredentials = Annotated[
    list[str] | None,
    typer.Option("--param-credential", metavar="K=CREDENTIAL", help="The secret for a sensitive input."),
]
ParamSecrets = Annotated[
    list[str] | None,
    typer.Option(
        "--param-secret",
        metavar="K",
        help="Ask for the secret of a sensitive input, or read the only one from standard input; it is kept in "
        "Vault for this job alone.",
    ),
]
Admin = Annotated[
    str, typer.Option("--admin", metavar="CREDENTIAL", help="With whose rights it is deployed; else the agent's own.")
]
RunAs = Annotated[
    str, typer.Option("--run-as", metavar="CREDENTIAL", help="As whom the payload runs; else as the admin.")
]
Credentials = Annotated[
    list[str] | None,
    typer.Option("--credential", metavar="REF=CREDENTIAL", help="One that the operation declares."),
]
NotBefore = Annotated[str | None, typer.Option("--not-before", metavar="TIME", help="RFC 3339, or from now: +5m, +2h.")]
LatestStart = Annotated[
    str | None, typer.Option("--latest-start", metavar="TIME", help="It expires if not started by then.")
]
Timeout = Annotated[str | None, typer.Option("--timeout", metavar="DURATION", help="How long it may run: 30s, 5m, 2h.")]
HeartbeatTimeout = Annotated[
    str | None, typer.Option("--heartbeat-timeout", metavar="DURATION", help="How long its agent may be silent (120s).")
]
DeferralLimit = Annotated[
    str | None,
    typer.Option("--deferral-limit", metavar="DURATION", help="With --defer: it expires if held for longer (30 days)."),
]
StartTimeout = Annotated[
    str | None,
    typer.Option("--start-timeout", metavar="DURATION", help="How long from the claim to its first process (5m)."),
]
OutputTimeout = Annotated[
    str | None,
    typer.Option("--output-timeout", metavar="DURATION", help="How long from its payload's end to its own (60s)."),
]
CancelGrace = Annotated[
    str | None,
    typer.Option("--cancel-grace", metavar="DURATION", help="Between TERM and KILL; else as its package says (10s)."),
]
JobPriority = Annotated[Priority | None, typer.Option("--priority", help="normal unless given.")]
Labels = Annotated[list[str] | None, typer.Option("--label", metavar="K=V")]
RequestId = Annotated[
    str, typer.Option("--request-id", metavar="ID", help="Repeating the command with it makes one job.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Show the monitor; exit 0 on Success, 1 otherwise.")]
