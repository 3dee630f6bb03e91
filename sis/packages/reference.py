"""The reference of a package, in Markdown, from its manifest; and the command that puts an operation on the queue."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from sis.packages import values
from sis.packages.manifest import Manifest
from sis.packages.operation import ADMIN, CANCEL_GRACE_SECONDS, RUN_AS, CredentialReference, Input, Operation, Output
from sis.packages.values import InputType, InvalidValue

_SAMPLES = {InputType.STRING: "text", InputType.INTEGER: "1", InputType.BOOLEAN: "true", InputType.LIST: "item"}
# An underscore within a word is no emphasis.
_MARKUP = re.compile(r"[\\|*<\[`]|(?<!\w)_|_(?!\w)")
_INPUT_HEADERS = ("input", "type", "required", "default", "may be", "hint", "meaning")
_CREDENTIAL_HEADERS = ("credential", "required", "kinds", "comes by", "meaning")
_OUTPUT_HEADERS = ("output", "always", "meaning")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"))


def example(
    package: str, operation: str, inputs: Mapping[str, Input], credentials: Mapping[str, CredentialReference]
) -> str:
    """The command that puts the operation on the queue with no more than it needs. A value that nothing in the manifest
    shows is the input's name in capitals, as the names of credentials are."""
    words = ["--name", f"{package} {operation}", "--package", package, "--operation", operation]
    words += ["--site", "group:local"]
    for name, declared in inputs.items():
        if not declared.required:
            continue
        if declared.sensitive:
            words += ["--param-credential", f"{name}={name.upper()}"]
        elif declared.type is InputType.FILE:
            words += ["--param-file", f"{name}={name.upper()}"]
        else:
            words += ["--param", f"{name}={_sample(name, declared)}"]
    for name, reference in credentials.items():
        if reference.required and name in (ADMIN, RUN_AS):
            words += [f"--{name.replace('_', '-')}", name.upper()]
        elif reference.required:
            words += ["--credential", f"{name}={name.upper()}"]
    return f"sis jobs create {shlex.join(words)}"


def page(manifest: Manifest) -> str:
    """All that a package can do."""
    publisher = f", by {_plain(manifest.publisher)}" if manifest.publisher else ""
    about = f"Version {_plain(manifest.version)}{publisher}, for {', '.join(manifest.platforms)}."
    lines = [f"# {_plain(manifest.name)}", "", f"{about} {_plain(manifest.description)}".rstrip()]
    for name, operation in manifest.operations.items():
        lines += ["", *_operation(manifest.name, name, operation)]
    return "\n".join(lines) + "\n"


def index(manifests: Iterable[Manifest]) -> str:
    """The packages, each with a link to its page."""
    rows = (
        (
            f"[{_plain(each.name)}]({each.name}.md)",
            _plain(each.version),
            ", ".join(map(_plain, each.operations)),
            _plain(each.description),
        )
        for each in manifests
    )
    return "\n".join(_table(("package", "version", "operations", "what it is for"), rows)) + "\n"


def _sample(name: str, declared: Input) -> str:
    for candidate in (declared.hint, *declared.choices, _SAMPLES.get(declared.type, "")):
        try:
            if candidate.isprintable() and declared.check(candidate):
                # As the command line takes a value that begins with @.
                return f"@{candidate}" if candidate.startswith("@") else candidate
        except InvalidValue:
            continue
    return name.upper()


def _operation(package: str, name: str, operation: Operation) -> Iterator[str]:
    yield f"## {_plain(name)}"
    yield ""
    said = [_plain(operation.description)]
    if operation.run_timeout:
        said.append(f"It may run for {_duration(operation.run_timeout)}.")
    if operation.cancel_grace != CANCEL_GRACE_SECONDS:
        grace = operation.cancel_grace
        said.append(f"Canceled, it has {_duration(grace)} to end by itself." if grace else "Canceled, it is killed.")
    yield " ".join(filter(None, said))
    yield ""
    yield "```sh"
    yield example(package, name, operation.inputs, operation.credentials)
    yield "```"
    if operation.inputs:
        yield ""
        yield from _table(_INPUT_HEADERS, (_input(*each) for each in operation.inputs.items()))
    if operation.credentials:
        yield ""
        yield from _table(_CREDENTIAL_HEADERS, (_credential(*each) for each in operation.credentials.items()))
    if operation.outputs:
        yield ""
        yield from _table(_OUTPUT_HEADERS, (_output(*each) for each in operation.outputs.items()))


def _input(name: str, declared: Input) -> tuple[str, ...]:
    default = values.text(declared.default).splitlines() if declared.default is not None else []
    return (
        _code(name),
        f"{declared.type}, sensitive" if declared.sensitive else declared.type,
        _yes(declared.required),
        ", ".join(map(_code, default)),
        _code(declared.pattern) if declared.pattern else ", ".join(map(_code, declared.choices)),
        _code(declared.hint),
        _plain(declared.description),
    )


def _credential(name: str, declared: CredentialReference) -> tuple[str, ...]:
    kinds = ", ".join(declared.kinds) or "any"
    return _code(name), _yes(declared.required), kinds, declared.delivery, _plain(declared.description)


def _output(name: str, declared: Output) -> tuple[str, ...]:
    return _code(name), _yes(declared.required), _plain(declared.description)


def _table(headers: Sequence[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headers)} |"
    yield "|---" * len(headers) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _yes(value: bool) -> str:
    return "yes" if value else ""


def _duration(seconds: int) -> str:
    for size, unit in _UNITS:
        if seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _plain(text: str) -> str:
    """The text on one line, without anything that Markdown would take for its own."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _code(text: str) -> str:
    if not text:
        return ""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{space}{' '.join(text.split())}{space}{fence}".replace("|", "\\|")
