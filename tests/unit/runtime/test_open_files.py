"""A process that serves may have as many files open as it is allowed, not only as many as is usual."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from services.runtime import open_files

_LIMITED = """
import resource, sys
from services.runtime import open_files
soft, hard, most = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(open_files.allow(most), *resource.getrlimit(resource.RLIMIT_NOFILE))
open_files.restore(soft)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""

_SERVER = """
import resource
from pathlib import Path
from services.runtime import process

class Settings:
    database_url = database_direct_url = ""
    metrics_listen = None

    @classmethod
    def load(cls):
        return cls()

async def serve(_):
    print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
process.start("test", Settings, serve, Path(), "test", None)
"""


def python(script: str, *arguments: int) -> str:
    command = [sys.executable, "-P", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(
    ("soft", "hard", "most", "raised"),
    [(256, 512, 1_000, 512), (256, 512, 300, 300), (400, 512, 300, 400), (512, 512, 1_000, 512)],
    ids=["to the hard one", "to what is wanted", "not lowered", "not possible"],
)
def test_the_limit_is_raised_and_brought_back(soft: int, hard: int, most: int, raised: int) -> None:
    assert python(_LIMITED, soft, hard, most) == f"{soft} {raised} {hard}\n{soft} {hard}\n"


def test_without_any_limit_there_is_nothing_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.RLIM_INFINITY
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (unlimited, unlimited))
    assert open_files.allow(1_000) == unlimited
    assert set_to == []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, unlimited))
    assert open_files.allow(1_000) == 256
    assert set_to == [(1_000, unlimited)]


def test_a_server_has_it_raised() -> None:
    """A hub has one open for each agent, and 1,024 are the usual limit."""
    assert python(_SERVER) == "512\n"
