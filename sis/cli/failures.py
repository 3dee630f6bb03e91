"""Errors as a person sees them: a line for each problem, on standard error, never a traceback."""

from __future__ import annotations

import os
import re
import sys

from sis.cli.text import visible
from sis.client import ApiError, ClientError

# The options by which people give the fields of a request.
_OPTIONS = {
    "display_name": "--name",
    "type": "--type",
    "package": "--package",
    "operation": "--operation",
    "parameters": "--param",
    "site_target": "--site",
    "priority": "--priority",
    "deferred": "--defer",
    "not_before": "--not-before",
    "latest_start": "--latest-start",
    "run_timeout": "--timeout",
    "heartbeat_timeout": "--heartbeat-timeout",
    "deferral_limit": "--deferral-limit",
    "start_timeout": "--start-timeout",
    "output_timeout": "--output-timeout",
    "cancel_grace": "--cancel-grace",
    "labels": "--label",
    "request_id": "--request-id",
    "admin": "--admin",
    "run_as": "--run-as",
    "credentials": "--credential",
    "kind": "--kind",
    "username": "--username",
    "domain": "--domain",
    "description": "--description",
    "version": "--version",
    "group": "--group",
    "reason": "--reason",
    "page_size": "--page-size",
    "page_token": "--page-token",
    "order_by": "--order",
    "types": "--type",
    "run_states": "--state",
    "statuses": "--status",
    "text": "--text",
    "complete_time_before": "--completed-before",
    "tail_bytes": "--tail",
}


def lines(error: ClientError) -> list[str]:
    """One line for each problem: each wrong field with the option that holds it and what to do."""
    if not isinstance(error, ApiError):
        return [str(error)]
    if error.violations:
        return [_field(violation.field) + violation.description for violation in error.violations]
    if error.unreachable and error.code == "UNAVAILABLE":
        if os.environ.get("SIS_QUEUE_ENDPOINT"):
            return [f"{error.message}; is the suite up at what SIS_QUEUE_ENDPOINT and the like name?"]
        return [f"{error.message}; see `sis status`, start a local stack with `sis up --detach`"]
    return [error.message.removeprefix("job_id: ").removeprefix("name: ")]


def report(error: ClientError, subject: str = "") -> None:
    """Print an error, with what it is about in front where it does not say so itself."""
    for line in lines(error):
        say(f"{subject}: {line}" if subject and subject not in line else line)


def say(problem: str) -> None:
    """Print one problem."""
    print(f"error: {visible(problem)}", file=sys.stderr)


def _field(field: str) -> str:
    if field in ("job_id", "package"):
        return ""  # an argument without a name, or several options; what is wrong with it names the job or the package
    if field == "text":
        return "TEXT: "  # of a search; that of a filter is filter.text
    if field == "value.secret":
        return "the secret: "  # there are several ways to give it
    if field == "value.passphrase":
        return "--passphrase-file: "
    name = re.split(r"[.\[]", field.removeprefix("filter."), maxsplit=1)[0]
    option = _OPTIONS.get(name)
    if option is None:
        return f"{field}: "
    return f"{option}: " if field == name else f"{option}, {field}: "
