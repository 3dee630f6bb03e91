"""Tables on terminals of several widths."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console, RenderableType

from sis.cli import terminal
from sis.cli.job_list import job_table
from sis.cli.package_page import package_page, package_table
from sis.queue.v1 import job_pb2
from sis.queue.v1 import package_service_pb2 as package_pb

DIGEST = "ab" * 32
PACKAGE = package_pb.Package(
    name="linux.package", version="1.0.0", publisher="SIS", digest=DIGEST,
    description="Asks web servers, and checks what they answer. The target needs Python 3.9 or later (python3).",
)  # fmt: skip


def shown(width: int, draw: Callable[[Console], RenderableType | None]) -> list[str]:
    out = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    with out.capture() as capture:
        drawn = draw(out)
        if drawn is not None:
            out.print(drawn)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    return lines


@pytest.mark.parametrize("width", [80, 120, 200])
def test_packages_are_told_by_their_first_sentence(width: int) -> None:
    _, _, row, *rest = shown(width, lambda out: package_table(out, [PACKAGE] * 2))
    assert row.startswith("linux.package  1.0.0    Asks web servers, and checks what they")
    assert len(rest) == (3 if width == 80 else 1)
    assert "Python" not in "".join(rest)


def test_a_job_in_a_narrow_terminal_is_a_line() -> None:
    job = job_pb2.Job(
        job_id=123, display_name="Nightly update", type=job_pb2.JOB_TYPE_PACKAGE,
        status=job_pb2.JOB_STATUS_PROCESSING_OUTPUT, target="web-1",
    )  # fmt: skip
    assert len(shown(80, lambda out: job_table(out, [job]))) == 4  # two of headers, and the rule
    assert "IT Automation" in "".join(shown(100, lambda out: job_table(out, [job])))


def test_what_an_input_takes_is_whole_in_a_narrow_terminal() -> None:
    package = package_pb.Package(name="p", version="1.0.0")
    package.operations.add(name="use").inputs.add(
        name="follow_redirects", type="string", default_value="", required=True, description="Where it is.",
        hint="https://intranet.example/health", pattern="https?://[^/]+(/.*)?",
    )  # fmt: skip
    page = "\n".join(shown(80, lambda out: package_page(out, package)))
    for part in ("string, required ", "Where it is.", "Hint: https://intranet.example/health", "https?://[^/]+(/.*)?"):
        assert part in page


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_what_is_piped_is_plain_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    out = io.StringIO()
    console = terminal.console(out)
    console.print("plain", style="red")
    assert not console.is_terminal
    assert out.getvalue() == "plain\n"
