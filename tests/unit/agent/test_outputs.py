"""What payloads write into their output and progress files, and what is made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.sis_agent.agent.outputs import (
    MAX_NAMES,
    Outputs,
    ProgressReport,
    check,
    parse_outputs,
    parse_progress,
    read_outputs,
    read_progress,
)


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
    assert parse_outputs(content) == Outputs(values, ())


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
    (found,) = parse_outputs(content).problems[:1]
    assert found.startswith(problem)


def test_the_mistakes_named_are_bounded() -> None:
    assert len(parse_outputs(b"rubbish\n" * 10_000).problems) == 20


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
    outputs = read_outputs(path)
    assert outputs.values == {}
    assert len(outputs.problems) == 1
    assert read_progress(path) is None


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
    assert parse_progress(content) == report
    (tmp_path / "progress").write_bytes(b"1 before\n" * 5000 + content)
    if report is not None:
        assert read_progress(tmp_path / "progress") == report
