"""The values of a job's inputs: from requests, to jobs that are shown, and whole to those who work with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from services.queue import credentials
from services.queue.credentials import CredentialUse
from services.queue.parameters import from_rows
from services.runtime.fields import Violations
from sis.packages import values
from sis.packages.values import File, Given, InputType, InvalidValue
from sis.queue.v1 import job_pb2

PARAMETER_BYTES = 64 * 1024
_CREDENTIAL = re.compile(r"[A-Za-z0-9._-]{1,63}")


def credential_name(wrong: Violations, field: str, name: str) -> None:
    """Note it unless it can be that of a credential."""
    if not _CREDENTIAL.fullmatch(name):
        wrong.add(field, "must name a credential: 1 to 63 letters, digits, '.', '_' or '-'")


def given(
    wrong: Violations, parameters: Mapping[str, job_pb2.ParameterValue]
) -> tuple[dict[str, Given], dict[str, str]]:
    """The values, and the names of credentials where they are given instead."""
    found: dict[str, Given] = {}
    named: dict[str, str] = {}
    for name, value in sorted(parameters.items()):
        field = f"parameters.{name[:100]}"
        match value.WhichOneof("value"):
            case "plain":
                _check_items(wrong, field, [value.plain])
                found[name] = value.plain
            case "list":
                _check_items(wrong, field, value.list.items)
                found[name] = list(value.list.items)
            case "file":
                found[name] = _file(wrong, field, value.file)
            case "credential_ref":
                credential_name(wrong, field, value.credential_ref)
                named[name] = value.credential_ref
            case _:
                wrong.add(field, "has no value: give plain, list, file or credential_ref")
    return found, named


def _check_items(wrong: Violations, field: str, items: Iterable[str]) -> None:
    size = sum(len(item.encode()) for item in items)
    if size > PARAMETER_BYTES:
        wrong.add(field, f"has {size:,} bytes; at most {PARAMETER_BYTES:,} are taken")
    if any("\0" in item for item in items):
        wrong.add(field, "has a NUL character, which no process can be given; remove it")


def _file(wrong: Violations, field: str, message: job_pb2.FileValue) -> File:
    found = File(message.name, message.content)
    try:
        values.check(InputType.FILE, found)
    except InvalidValue as error:
        wrong.add(field, str(error))
    if message.size_bytes and not message.content:
        # Taken for an empty file, what a job shows of one would be another file without a word.
        wrong.add(field, "comes without its content, as jobs are shown; CopyJob gives it")
    return found


def shown(rows: Mapping[str, Any], uses: Iterable[CredentialUse]) -> dict[str, job_pb2.ParameterValue]:
    """The parameters of a job, its files without their contents."""
    found = {}
    for name, row in sorted(rows.items()):
        if isinstance(row, dict):
            file = {key: row["file"][key] for key in ("name", "size_bytes", "sha256")}
            found[name] = job_pb2.ParameterValue(file=job_pb2.FileValue(**file))
        else:
            found[name] = _plain(row)
    return found | _named(uses)


def whole(rows: Mapping[str, Any], uses: Iterable[CredentialUse]) -> dict[str, job_pb2.ParameterValue]:
    """The parameters of a job, its files with their contents."""
    found = {}
    for name, value in from_rows(rows).items():
        if isinstance(value, File):
            found[name] = job_pb2.ParameterValue(file=job_pb2.FileValue(name=value.name, content=value.content))
        else:
            found[name] = _plain(value)
    return found | _named(uses)


def _plain(value: str | list[str]) -> job_pb2.ParameterValue:
    if isinstance(value, str):
        return job_pb2.ParameterValue(plain=value)
    return job_pb2.ParameterValue(list=job_pb2.StringList(items=value))


def _named(uses: Iterable[CredentialUse]) -> dict[str, job_pb2.ParameterValue]:
    return {
        name: job_pb2.ParameterValue(credential_ref=credential)
        for name, credential in credentials.parameters(uses).items()
    }
