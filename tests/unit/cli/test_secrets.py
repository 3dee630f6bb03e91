"""How a secret comes in. What is typed is typed at a real terminal."""

from __future__ import annotations

import io
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sis.cli import secrets
from sis.cli.values import OptionError


def read(stdin: bytes = b"", *, from_stdin: bool = False, file: Path | None = None) -> bytes:
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin))
    try:
        return secrets.read("Secret", from_stdin=from_stdin, file=file)
    finally:
        sys.stdin = before


CONTENTS = [
    (b"secret", b"secret"),
    (b"secret\n", b"secret"),
    (b"secret\r\n", b"secret"),
    (b"secret\n\n", b"secret\n"),
    (b" caf\xe9 \n", b" caf\xe9 "),
    (b"x" * secrets.MAX_BYTES + b"\r\n", b"x" * secrets.MAX_BYTES),
]


@pytest.mark.parametrize(("given", "secret"), CONTENTS)
def test_one_line_break_at_the_end_is_not_part_of_it(given: bytes, secret: bytes, tmp_path: Path) -> None:
    assert read(given, from_stdin=True) == secret
    (tmp_path / "file").write_bytes(given)
    assert read(file=tmp_path / "file") == secret


@pytest.mark.parametrize(
    ("given", "problem"),
    [(b"", "is empty"), (b"\n", "is empty"), (b"hush" * 16_385, "is longer than 64 KiB")],
    ids=["empty", "line break", "long"],
)
def test_what_is_no_secret(given: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(given)
    with pytest.raises(OptionError, match=f"^--secret-stdin: standard input {problem}$"):
        read(given, from_stdin=True)
    with pytest.raises(OptionError, match=f"^--secret-file: {tmp_path}/file {problem}$"):
        read(file=tmp_path / "file")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^--secret-file: .*/none cannot be read: No such file"):
        read(file=tmp_path / "none")
    with pytest.raises(OptionError, match=r"^--passphrase-file: .* cannot be read: Is a directory"):
        secrets.read_file("--passphrase-file", tmp_path)


def test_one_of_the_ways(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="give one of the two"):
        read(from_stdin=True, file=tmp_path)
    with pytest.raises(OptionError, match="--secret-stdin or --secret-file is missing"):
        read(b"secret")


_PROGRAM = """
import sys
from sis.cli import secrets
from sis.cli.values import OptionError
try:
    found = secrets.read("Secret of db", from_stdin=False, file=None)
except OptionError as error:
    print("refused:", error)
else:
    print("read", len(found), sum(found))
"""


def typing(*lines: str) -> str:
    """All that a terminal shows while somebody types these lines, each when he is asked for it."""
    master, slave = pty.openpty()
    # A session of its own: else the question would go to the terminal of whoever runs the tests.
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        shown, waiting, deadline = "", list(lines), time.monotonic() + 20
        while process.poll() is None or select.select([master], [], [], 0)[0]:
            assert time.monotonic() < deadline, shown
            if select.select([master], [], [], 0.05)[0]:
                try:
                    shown += os.read(master, 4096).decode()
                except OSError:  # the other end is closed
                    break
            if waiting and shown.count(": ") > len(lines) - len(waiting):
                os.write(master, waiting.pop(0).encode() + b"\n")
        process.wait(10)
    os.close(master)
    return shown


def test_it_is_typed_twice_and_not_shown() -> None:
    secret = "hus\u0127 hush"
    shown = typing(secret, secret)
    assert shown.splitlines()[-1] == f"read {len(secret.encode())} {sum(secret.encode())}"
    assert "Secret of db: " in shown
    assert "Secret of db, again: " in shown
    assert "hush" not in shown


def test_two_that_differ_are_refused() -> None:
    shown = typing("hush hush", "hush hash")
    assert "refused: the two that were typed differ; nothing was stored" in shown
    assert "hush" not in shown


def test_nothing_typed_is_refused() -> None:
    assert "refused: the secret is empty" in typing("", "")
