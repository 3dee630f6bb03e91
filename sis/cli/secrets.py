"""How a secret comes in: typed without an echo, from standard input, or from a file; never as an argument."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

from sis.cli.values import OptionError

MAX_BYTES = 64 * 1024


def read(prompt: str, *, from_stdin: bool, file: Path | None, option: str = "--secret") -> bytes:
    """The secret, without the one line break that ends it when it was typed or echoed. `option` is the stem of the
    options by which people choose.

    Raises:
        OptionError: there is none, it is too long, or it cannot be read; the text never holds any of it.
    """
    if from_stdin and file is not None:
        raise OptionError(f"{option}-stdin does not go together with {option}-file; give one of the two")
    if file is not None:
        return _file(file, option)
    if from_stdin:
        return _checked(sys.stdin.buffer.read(MAX_BYTES + 3), f"{option}-stdin")
    if not sys.stdin.isatty():
        raise OptionError(
            f"{option}-stdin or {option}-file is missing: there is no terminal on which the secret could be typed"
        )
    typed = getpass.getpass(f"{prompt}: ")
    if getpass.getpass(f"{prompt}, again: ") != typed:
        raise OptionError("the two that were typed differ; nothing was stored")
    return _checked(typed.encode("utf-8", "surrogateescape"), "the secret")


def _file(path: Path, option: str) -> bytes:
    try:
        with path.expanduser().open("rb") as file:
            return _checked(file.read(MAX_BYTES + 3), f"{option}-file: {path}")
    except OSError as error:
        raise OptionError(f"{option}-file: {path} cannot be read: {os.strerror(error.errno or 0)}") from None


def _checked(data: bytes, what: str) -> bytes:
    secret = data.removesuffix(b"\n").removesuffix(b"\r")
    if not secret:
        raise OptionError(f"{what} is empty")
    if len(secret) > MAX_BYTES:
        raise OptionError(f"{what} is longer than {MAX_BYTES // 1024} KiB")
    return secret
