"""What payloads write into their output and progress files, and what is made of it."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from services.sis_agent.agent.recording.outputs import (
    MAX_NAMES,
    Outputs,
    ProgressReport,
    check,
    parse_outputs,
    parse_progress,
    read_outputs,
    read_progress,
)
from services.sis_agent.agent.secrecy.masking import Masker

NO_SECRETS = Masker()


@pytest.mark.parametrize(
    ("content", "values"),
    [
        (b"", {}),
        (b"a=1\n", {"a": "1"}),
        (b"a=1", {"a": "1"}),
        (b"a=\n", {"a": ""}),
        (b"\n  \na=1\n\n", {"a": "1"}),
        (b"a= x = y << z \n", {"a": " x = y << z "}),
        (b"a=1\na=2\n", {"a": "2"}),
        (b"a<<END\none\n\ntwo\nEND\nb=3\n", {"a": "one\n\ntwo", "b": "3"}),
        (b"a<<END\nEND\n", {"a": ""}),
        (b"a<<END\nEND", {"a": ""}),
        (b"a<<E=F\nb=1\n END\nE=F\n", {"a": "b=1\n END"}),
        (b"_x.y-z=1\n", {"_x.y-z": "1"}),
        ("a=ü€😀\n".encode(), {"a": "ü€😀"}),
    ],
)
def test_what_is_understood(content: bytes, values: dict[str, str]) -> None:
    assert parse_outputs(content, NO_SECRETS) == Outputs(values, ())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a=1\nrubbish\n", "line 2 of the output is neither"),
        (b"=1\n", "line 1 of the output is neither"),
        (b"1a=1\n", "line 1 of the output is neither"),
        (b" a=1\n", "line 1 of the output is neither"),
        (b"a<1\n", "line 1 of the output is neither"),
        (b"x" * 101 + b"=1\n", "line 1 of the output is neither"),
        (b"a<<\nx\n\n", "line 1: the mark of the output a must be"),
        (b"a<<E F\nx\nE F\n", "line 1: the mark of the output a must be"),
        (b"a=1\nb<<END\nx\nEND \n", "line 2: the block of the output b is not ended by its mark"),
        (b"a=\xff\n", "line 1: the output a is not valid UTF-8"),
        (b"a=x\0y\n", "line 1: the output a has a NUL character"),
        (b"a=" + b"x" * 65_537, "line 1: the output a is longer than 64 KiB"),
        (b"".join(b"n%d=1\n" % i for i in range(MAX_NAMES + 1)), "line 201: there are more than 200 outputs"),
    ],
)
def test_what_is_not(content: bytes, problem: str) -> None:
    (found,) = parse_outputs(content, NO_SECRETS).problems[:1]
    assert found.startswith(problem)


def test_the_mistakes_named_are_bounded() -> None:
    assert len(parse_outputs(b"rubbish\n" * 10_000, NO_SECRETS).problems) == 20


def test_outputs_are_compared_with_the_declared_ones() -> None:
    checked = check({"a": "1", "x": "2"}, {"a": True, "b": True, "c": False})
    assert (checked.values, checked.missing, checked.undeclared) == ({"a": "1"}, ("b",), ("x",))


@pytest.mark.parametrize("kind", ["absent", "directory", "link", "pipe", "large"])
def test_a_file_that_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "output"
    match kind:
        case "directory":
            path.mkdir()
        case "link":
            path.symlink_to("/etc/passwd")
        case "pipe":
            os.mkfifo(path)
        case "large":
            with path.open("wb") as file:
                file.truncate(1 << 40)
    outputs = read_outputs(path, NO_SECRETS)
    assert outputs.values == {}
    assert len(outputs.problems) == 1
    assert read_progress(path, NO_SECRETS) is None


@pytest.mark.parametrize(
    ("content", "report"),
    [
        (b"42\n", ProgressReport(42, "")),
        (b"42", ProgressReport(42, "")),
        (b"0\n50 half way\n", ProgressReport(50, "half way")),
        (b" 7 %  a  b \n\n", ProgressReport(7, "a  b")),
        (b"100 \x1b[31mred\xff\n", ProgressReport(100, "[31mred\ufffd")),
        (b"1 " + b"x" * 500, ProgressReport(1, "x" * 200)),
        (b"", None),
        (b"101\n", None),
        (b"-1\n", None),
        (b"half\n", None),
        (b"50half\n", None),
        (b"4000000000\n", None),
    ],
)
def test_progress(tmp_path: Path, content: bytes, report: ProgressReport | None) -> None:
    assert parse_progress(content, NO_SECRETS) == report
    (tmp_path / "progress").write_bytes(b"1 before\n" * 5000 + content)
    if report is not None:
        assert read_progress(tmp_path / "progress", NO_SECRETS) == report


WORD = b"Tr0ub4dor&3-correct-horse"
KEY = b"-----BEGIN KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp\nK06/nwoy/HU\n-----END KEY-----\n"


@pytest.mark.parametrize(
    ("secret", "content", "text"),
    [
        (WORD, b"42 " + WORD, "***"),
        (WORD, b"42 " + WORD.decode().encode("utf-16-le"), "***"),
        (b"Tr0ub4dor\t3-correct", b"42 Tr0ub4dor\t3-correct at\n", "*** at"),
        (b"Tr0ub4dor3 ", b"42 is Tr0ub4dor3 \n", "is ***"),
        (b" Tr0ub4dor3", b"42 Tr0ub4dor3", None),
        (b"Tr0ub4dor\xff3-correct", b"42 Tr0ub4dor\xff3-correct \xff", "*** \ufffd"),
        (WORD, b"42 " + b"x" * 190 + WORD, "x" * 190 + "***"),
        (WORD, b"42 being written: " + WORD[:6], "being written: ***"),
        (WORD, b"42 " + WORD[:6] + b"\n", "Tr0ub4"),
        (b"first line\n42 end", b"first line\n42 end", None),
        (b"first line\n42 end", b"\n42 end", "end"),
    ],
)
def test_progress_is_masked_before_it_is_changed_or_cut(secret: bytes, content: bytes, text: str | None) -> None:
    assert parse_progress(content, Masker([secret])) == (None if text is None else ProgressReport(42, text))


def test_a_secret_that_ends_within_the_tail_of_the_progress_file_is_masked(tmp_path: Path) -> None:
    lines = [b"%04d short" % number for number in range(600)]
    secret = b"\n".join(lines) + b"\n42 end"
    (tmp_path / "progress").write_bytes(b"1 before\n" * 5000 + secret)
    assert read_progress(tmp_path / "progress", Masker([secret])) is None
    # Nor is the rest of a line whose beginning is too far away taken for one.
    (tmp_path / "progress").write_bytes(b"1 " + b"x" * 5000 + b" 42 end")
    assert read_progress(tmp_path / "progress", NO_SECRETS) is None


@pytest.mark.parametrize(
    ("secret", "content", "values"),
    [
        (WORD, b"a=<" + WORD + b">\n", {"a": "<***>"}),
        (WORD, b"a=" + WORD.decode().encode("utf-16-le") + b"\n", {"a": "***"}),
        (KEY, b"a<<END\n" + KEY + b"END\nb=1\n", {"a": "***", "b": "1"}),
        (KEY, b"a<<END\n" + KEY.replace(b"\n", b"\r\n") + b"END\n", {"a": "***"}),
        (KEY, b"a<<END\n" + KEY.decode().encode("utf-16-le") + b"\nEND\n", {"a": "***"}),
        (KEY, b"a<<END\n" + base64.encodebytes(b"it is: " + KEY) + b"END\n", {"a": "aXQgaXM6IC***"}),
        (b"Server=db;Password=x", b"Server=db;Password=x\n", {"***": "***"}),
        (b"caf\xc3\xa9-secret", b"a=caf\xc3\xa9-secret caf\xc3\xa9\n", {"a": "*** caf\xe9"}),
        (b"\xa9-secret", b"a=caf\xc3\xa9-secret\n", {"a": "caf\ufffd***"}),
        (b"Tr0ub4dor\xff3-correct", b"a=Tr0ub4dor\xff3-correct\n", {"a": "***"}),
    ],
)
def test_outputs_are_masked_before_they_are_decoded(secret: bytes, content: bytes, values: dict[str, str]) -> None:
    assert parse_outputs(content, Masker([secret])) == Outputs(values, ())


def test_what_is_said_of_outputs_is_masked() -> None:
    masker = Masker([b"the_secret_word"])
    problems = parse_outputs(b"the_secret_word<<\nthe_secret_word<<END\n", masker).problems
    assert [problem.rpartition(" the output ")[2].split()[0] for problem in problems] == ["***", "***"]
    assert check(parse_outputs(b"the_secret_word=1\n", masker).values, {"a": True}).undeclared == ("***",)
