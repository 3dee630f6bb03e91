"""Checks the values and the credentials that a job gives to its operation."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sis.packages import values
from sis.packages.manifest import MAX_PROBLEMS, Operation, Problem
from sis.packages.operation import ADMIN, RUN_AS
from sis.packages.values import MAX_FILES_BYTES, File, Given, InvalidValue, Value

MAX_TOTAL_BYTES = 512 * 1024
"""Of all values but files together: even as arguments and environment both, a process can be given them."""


def check(
    operation: Operation, given: Mapping[str, Given], credential_refs: Collection[str] = ()
) -> tuple[dict[str, Value], list[Problem]]:
    """The values with which the operation would run, and every mistake in those given.

    `credential_refs` names the inputs that are given by a credential, as all sensitive ones are and no other is: they
    have no value here. Defaults are applied; an optional input that has neither value nor default is absent. Values
    are canonical: checking them again changes nothing. With problems, the values are not to be used.
    """
    resolved: dict[str, Value] = {}
    problems: list[Problem] = []
    for name in dict.fromkeys((*given, *credential_refs)):
        if name not in operation.inputs:
            known = values.shortened(operation.inputs) or "none"
            problems.append(Problem(name[:100], f"is not an input of this operation; its inputs: {known}"))
    for name, declared in operation.inputs.items():
        if declared.sensitive:
            if name in given:
                problems.append(Problem(name, "is sensitive: it takes a credential, never a plain value"))
            elif declared.required and name not in credential_refs:
                problems.append(Problem(name, "is required: name a credential"))
            continue
        if name in credential_refs:
            problems.append(Problem(name, "is not sensitive: it takes a value, not a credential"))
            continue
        if name not in given:
            if declared.default is not None:
                resolved[name] = declared.default
            elif declared.required:
                problems.append(Problem(name, "is required: give a value"))
            continue
        try:
            value = declared.check(given[name])
        except InvalidValue as error:
            problems.append(Problem(name, str(error)))
            continue
        if declared.required and not value:
            problems.append(Problem(name, "is required: give a value that is not empty"))
        resolved[name] = value
    sizes = {n: len(values.text(value).encode()) for n, value in resolved.items() if not isinstance(value, File)}
    if sum(sizes.values()) > MAX_TOTAL_BYTES:
        message = f"all values together are longer than {MAX_TOTAL_BYTES // 1024} KiB: shorten this one or others"
        problems.append(Problem(max(sizes, key=sizes.__getitem__), message))
    sizes = {name: len(value.content) for name, value in resolved.items() if isinstance(value, File)}
    if sum(sizes.values()) > MAX_FILES_BYTES:
        message = f"all files together are longer than {MAX_FILES_BYTES >> 20} MiB: shorten this one or others"
        problems.append(Problem(max(sizes, key=sizes.__getitem__), message))
    return resolved, problems[:MAX_PROBLEMS]


def check_credentials(operation: Operation, given: Mapping[str, str], *, admin: str, run_as: str) -> list[Problem]:
    """Every mistake in the credentials that are named for the references of an operation; `admin` and `run_as` are
    those of the job, "" for none."""
    # References of these names take the accounts of the job itself, of which Run As defaults to Admin.
    accounts = {ADMIN: admin, RUN_AS: run_as or admin}
    problems: list[Problem] = []
    for name, credential in given.items():
        if name in accounts:
            problems.append(Problem(name, f"is no reference: give it as the {name} of the job"))
        elif name not in operation.credentials:
            known = values.shortened(ref for ref in operation.credentials if ref not in accounts) or "none"
            problems.append(Problem(name[:100], f"is not a reference of this operation; its references: {known}"))
        elif not credential:
            problems.append(Problem(name, "must name a credential"))
    for name, declared in operation.credentials.items():
        if declared.required and name in accounts and not accounts[name]:
            problems.append(Problem(name, f"is required: give the {name} of the job"))
        elif declared.required and name not in accounts and name not in given:
            problems.append(Problem(name, "is required: name a credential"))
    return problems[:MAX_PROBLEMS]
