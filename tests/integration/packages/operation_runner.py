"""Runs the operations of the shipped packages as an agent does: unpacked, in a clean environment."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sis.packages import archive, arguments, manifest, parameters, shipped


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


def run(directory: Path, package: str, operation: str, **values: str | list[str]) -> Run:
    """Runs an operation with these values; it must give the outputs that it declares."""
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
    ended = subprocess.run(
        arguments.command_line(declared, resolved, unpacked, work),
        cwd=work,
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "SIS_PACKAGE_DIR": str(unpacked),
            "SIS_WORK_DIR": str(work),
            "SIS_OUTPUT": str(outputs),
            "SIS_PROGRESS": str(progress),
            **arguments.environment(resolved),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    given = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
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
