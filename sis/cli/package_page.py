"""The page of a package: what it can do, what that takes and gives back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sis.cli import operations, terminal, words
from sis.cli.terminal import block, cell
from sis.packages import reference
from sis.packages.operation import CredentialReference
from sis.queue.v1 import package_service_pb2 as pb

_NONE = words.NOT_APPLICABLE


def package_table(out: Console, packages: Sequence[pb.Package]) -> Table:
    """The packages, a row each, with the first sentence of what each is for. A narrow terminal gets what fits."""
    narrow = out.width < terminal.NARROW
    time = words.short_time if narrow else words.local_time
    fixed = ("Name", "Version", "Pushed On")
    more = () if narrow else ("Publisher", "Digest")
    table = terminal.table(out, "Name", "Version", "Description", "Pushed On", *more, fixed=fixed)
    for each in packages:
        sentence, stop, _ = each.description.partition(". ")
        row = [each.name, each.version, sentence + stop.rstrip(), time(each.push_time)]
        table.add_row(*map(cell, row if narrow else [*row, each.publisher, each.digest[:12]]))
    return table


def package_page(out: Console, package: pb.Package) -> None:
    """Print a package and its operations."""
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
        _operation(out, package.name, operation)


def _operation(out: Console, package: str, operation: pb.Operation) -> None:
    rows: list[tuple[str, RenderableType]] = [
        ("Description", operation.description or _NONE),
        ("Run timeout", words.duration(operation.run_timeout) if operation.HasField("run_timeout") else "none"),
        ("Cancel grace", words.duration(operation.cancel_grace)),
    ]
    command = _example(package, operation)
    if command:
        rows.append(("Example", command))
    title = f"Operation {operation.name}"
    terminal.section(out, title, terminal.facts(rows))
    for what, parts in (
        ("inputs", [(each.name, _input(each)) for each in operation.inputs]),
        ("credentials", [(each.ref, _credential(each)) for each in operation.credentials]),
        ("outputs", [(each.name, _output(each)) for each in operation.outputs]),
    ):
        if parts:
            terminal.section(out, f"{title}: {what}", terminal.facts(parts))


def _example(package: str, operation: pb.Operation) -> str:
    """The command for a job; "" where an input is of a type that this program is too old to know."""
    try:
        inputs = {each.name: operations.declared_input(each) for each in operation.inputs}
    except ValueError:
        return ""
    credentials = {each.ref: CredentialReference(required=each.required) for each in operation.credentials}
    return reference.example(package, operation.name, inputs, credentials)


def _input(declared: pb.Input) -> Text:
    return _lines(
        [
            " | ".join(declared.choices) or declared.type,
            "required" if declared.required else "",
            "by a credential" if declared.sensitive else "",
            f"{', '.join(declared.default_value.splitlines())} unless given" if declared.default_value else "",
        ],
        declared.description,
        f"Hint: {declared.hint}" if declared.hint else "",
        f"Pattern: {declared.pattern}" if declared.pattern else "",
    )


def _credential(wanted: pb.CredentialReference) -> Text:
    kinds = " or ".join(map(words.credential_kind, wanted.kinds)) or "any kind"
    return _lines([kinds, "required" if wanted.required else "", f"by {wanted.delivery}"], wanted.description)


def _output(output: pb.Output) -> Text:
    return _lines(["always there" if output.required else "where there is one"], output.description)


def _lines(facts: Iterable[str], *lines: str) -> Text:
    """What is short on one line, and each sentence on its own."""
    return block("\n".join(line for line in (", ".join(filter(None, facts)), *lines) if line))
