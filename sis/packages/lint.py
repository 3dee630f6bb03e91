"""Looks for everything that is wrong with the directory of a package, before anybody is sent it."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sis.packages import archive, manifest, templates
from sis.packages.archive import InvalidArchive
from sis.packages.manifest import FILE_NAME, InvalidManifest, Manifest, Operation, Problem
from sis.packages.tarball import MAX_ENTRIES, clean_path
from sis.packages.templates import Reference

_PROGRAMS: Final = (b"#!", b"\x7fELF")
_HEAD_BYTES: Final = 128
_INTERPRETERS: Final = re.compile(r"(?:ba|da|k|z)?sh|python[0-9.]*|perl|ruby|node|pwsh")


def lint(directory: Path) -> tuple[Manifest | None, list[Problem]]:
    """The manifest, where it can be read, and every problem, with the path of what has it: a file of the package, or a
    place in its manifest.

    Raises:
        OSError: the directory cannot be read.
    """
    if not (directory / FILE_NAME).is_file():
        return None, [Problem(str(directory), f"has no {FILE_NAME}: name the directory of a package")]
    problems = list(_files(directory))
    if not problems:
        try:
            archive.read_manifest(archive.pack(directory))
        except InvalidArchive as error:
            problems.append(Problem("", str(error)))
        except InvalidManifest:
            pass  # said below
    try:
        read = manifest.load(directory)
    except InvalidManifest as error:
        return None, [*problems, *(Problem(_within(each.path), each.message) for each in error.problems)]
    for name, operation in read.operations.items():
        problems += (
            Problem(_within(f"operations.{name}.{where}"), said) for where, said in _command(directory, operation)
        )
    return read, problems


def _within(path: str) -> str:
    return path if path == FILE_NAME else f"{FILE_NAME}: {path}"


def _files(directory: Path) -> Iterator[Problem]:
    """What cannot be packed."""
    for count, path in enumerate(archive.walk(directory), 1):
        if count > MAX_ENTRIES:
            yield Problem("", f"it has more than {MAX_ENTRIES:,} files and directories")
            return
        name = path.relative_to(directory).as_posix()
        try:
            clean_path(name)
        except InvalidArchive as error:
            yield Problem("", str(error))
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            yield Problem(name, "is neither a file nor a directory: a package holds nothing else")


def _command(directory: Path, operation: Operation) -> Iterator[tuple[str, str]]:
    """What the command of an operation names and does not find: where, and what is wrong."""
    for index, argument in enumerate(operation.command):
        match templates.split(argument):
            case (*before, Reference("package"), str(rest)) if rest.startswith("/") and ":" not in rest:
                # The rest of an argument alone: a value may complete another path, and a colon makes a list of them.
                started = index == 0 and not before and not operation.interpreter
                if problem := _named(directory, rest.lstrip("/"), started=started):
                    yield f"command[{index}]", problem
    program, *arguments = operation.command
    interpreted = program if operation.interpreter else arguments[0] if arguments and _reads_script(program) else ""
    if interpreted and not interpreted.startswith(("/", "-")) and (directory / interpreted).is_file():
        where = "command[0]" if operation.interpreter else "command[1]"
        yield where, f"is looked for in the working directory, which is empty: write {{package}}/{interpreted}"
    elif not operation.interpreter and "/" not in program and (directory / program).is_file():
        yield "command[0]", f"is looked for on the PATH: write {{package}}/{program} for that of the package"
    elif not program.startswith(("/", "{", "-")) and "/" in program:
        yield "command[0]", f"is looked for in the working directory, which is empty: write {{package}}/{program}"


def _reads_script(program: str) -> bool:
    return _INTERPRETERS.fullmatch(program.rpartition("/")[2]) is not None


def _named(directory: Path, name: str, *, started: bool) -> str:
    """What is wrong with a path in the package that a command names; "" for nothing."""
    try:
        path = directory / clean_path(name or ".")
    except InvalidArchive:
        return f"names {name}, which is not beneath the package"
    if not path.exists():
        return f"names {name}, which is not in the package"
    if not started:
        return ""
    if not path.is_file():
        return f"starts {name}, which is no file"
    if not path.stat().st_mode & stat.S_IXUSR:
        return f"starts {name}, which is not executable: chmod +x it, or name an interpreter"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.startswith(_PROGRAMS):
        return f"starts {name}, which is no program and does not begin with #!: name an interpreter"
    if head.startswith(b"#!") and head.partition(b"\n")[0].endswith(b"\r"):
        return f"starts {name}, whose first line ends with a carriage return: save it with the line ends of Unix"
    return ""
