"""What the embedded stack raises; every message is one sentence for the person who typed the command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class StackError(Exception):
    """The stack, or a part of it, cannot do what was asked; the message says why and what to do."""


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Raise what the operating system refuses as a StackError that names the file."""
    try:
        yield
    except OSError as error:
        subject = f"{error.filename}: " if error.filename else ""
        raise StackError(f"{subject}{error.strerror or error}") from error
