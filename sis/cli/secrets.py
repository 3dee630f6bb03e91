"""How a secret comes in: typed without an echo, from standard input, or from a file; never as an argument."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from sis.cli.values import OptionError
from sis.paths import expanded

MAX_BYTES = 64 * 1024


def read(prompt: str, *, from_stdin: bool, file: Path | None) -> bytes:
    """The secret, from where the options --secret-stdin and --secret-file say, else typed.

    Without the one line break that ends what was echoed or edited, wherever it comes from. This and the other readers:

    Raises:
        OptionError: there is none, it is too long, or it cannot be read; the text never holds any of it.
    """
    if from_stdin and file is not None:
        raise OptionError("--secret-stdin does not go together with --secret-file; give one of the two")
    if file is not None:
        return read_file("--secret-file", file)
    if from_stdin:
        return read_stdin("--secret-stdin")
    if not sys.stdin.isatty():
        raise OptionError(
            "--secret-stdin or --secret-file is missing: there is no terminal on which the secret could be typed"
        )
    return ask(prompt)


def ask(prompt: str) -> bytes:
    """What a person types, twice."""
    typed = getpass.getpass(f"{prompt}: ")
    if getpass.getpass(f"{prompt}, again: ") != typed:
        raise OptionError("the two that were typed differ; nothing was stored")
    return _checked(typed.encode("utf-8", "surrogateescape"), "the secret")


def read_stdin(option: str) -> bytes:
    """All of standard input."""
    return _checked(sys.stdin.buffer.read(MAX_BYTES + 3), f"{option}: standard input")


def read_file(option: str, path: Path) -> bytes:
    """All of a file."""
    try:
        with expanded(path).open("rb") as file:
            data = file.read(MAX_BYTES + 3)
    except OSError as error:
        raise OptionError(f"{option}: {path} cannot be read: {os.strerror(error.errno or 0)}") from None
    return _checked(data, f"{option}: {path}")


def _checked(data: bytes, what: str) -> bytes:
    secret = data.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise OptionError(f"{what} is empty")
    if len(secret) > MAX_BYTES:
        raise OptionError(f"{what} is longer than {MAX_BYTES // 1024} KiB")
    return secret
