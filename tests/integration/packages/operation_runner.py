"""Runs the operations of the shipped packages as an agent does: unpacked, in a clean environment."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.sis_agent.agent.recording.outputs import read_outputs
from services.sis_agent.agent.secrecy.masking import Masker
from sis.packages import archive, arguments, manifest, parameters, shipped
from sis.packages.values import File, Given


@dataclass(frozen=True)
class Run:
    """What an operation did."""

    exit_code: int
    stdout: str
    stderr: str
    outputs: dict[str, str]
    progress: list[str]
    work: Path


Runner = Callable[..., Run]


def run(
    parent: Path,
    package: str,
    operation: str,
    credentials: Mapping[str, str] | None = None,
    enter: Sequence[str] = (),
    /,
    **values: Given,
) -> Run:
    """Runs an operation with these values, and variables of its credentials; it must give the outputs that it
    declares. `enter` is put before the command, to have it run on another machine that shares `parent`."""
    directory = Path(tempfile.mkdtemp(dir=parent))
    (directory / "archive").write_bytes(archive.pack(shipped() / package))
    unpacked = directory / "unpacked"
    archive.extract(directory / "archive", unpacked)
    work = directory / "work"
    work.mkdir(mode=0o700)
    outputs, progress = directory / "outputs", directory / "progress"
    outputs.touch()
    progress.touch()
    declared = manifest.load(unpacked).operations[operation]
    resolved, problems = parameters.check(declared, values)
    assert problems == []
    private = directory / "private"
    private.mkdir(mode=0o700)

    def place(file: File) -> Path:
        path = private / file.name
        path.write_bytes(file.content)
        return path

    placed = arguments.with_paths(resolved, place)
    ended = subprocess.run(
        [*enter, *arguments.command_line(declared, placed, unpacked, work)],
        cwd=work,
        env={
            # A Python last, where the machine has none of its own.
            "PATH": f"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:{Path(sys.executable).parent}",
            "LANG": "C.UTF-8",
            "SIS_PACKAGE_DIR": str(unpacked),
            "SIS_WORK_DIR": str(work),
            "SIS_OUTPUT": str(outputs),
            "SIS_PROGRESS": str(progress),
            **arguments.environment(placed),
            **(credentials or {}),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="backslashreplace",
        timeout=60,
        check=False,
    )
    parsed = read_outputs(outputs, Masker([]))
    assert parsed.problems == ()
    given = dict(parsed.values)
    assert given.keys() <= declared.outputs.keys()
    if ended.returncode == 0:
        assert given.keys() >= {name for name, output in declared.outputs.items() if output.required}
    return Run(
        exit_code=ended.returncode,
        stdout=ended.stdout,
        stderr=ended.stderr,
        outputs=given,
        progress=progress.read_text().splitlines(),
        work=work,
    )
