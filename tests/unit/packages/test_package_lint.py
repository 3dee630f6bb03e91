"""What `sis packages lint` finds, and that a new package is without it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from sis.cli import creation
from sis.cli.main import run
from sis.cli.requests import JobOptions
from sis.packages import scaffold, schema, shipped
from sis.packages.lint import lint
from sis.packages.manifest import InvalidManifest


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    """Makes a package whose one operation is this."""

    def make(**operation: object) -> Path:
        directory = tmp_path / "package"
        (directory / "bin").mkdir(parents=True)
        manifest = {"name": "a", "version": "1.0.0", "operations": {"run": operation}}
        (directory / "package.yaml").write_text(json.dumps(manifest))
        for name, content, mode in (
            ("bin/run", "#!/bin/sh\n", 0o755),
            ("bin/plain", "#!/bin/sh\n", 0o644),
            ("bin/text", "echo\n", 0o755),
            ("bin/dos", "#!/bin/sh\r\n", 0o755),
            ("run.sh", "echo\n", 0o644),
        ):
            (directory / name).write_text(content, newline="")
            (directory / name).chmod(mode)
        return directory

    return make


def said(directory: Path) -> list[str]:
    return [str(problem) for problem in lint(directory)[1]]


@pytest.mark.parametrize(
    "operation",
    [
        {"command": ["{package}/bin/run"]},
        {"command": ["/bin/sh", "{package}/bin/plain", "run.sh", "--lib={package}/bin", "PATH={package}/x:/bin"]},
        {"command": ["{package}/bin/plain"], "interpreter": "/bin/sh"},
        {"command": ["-c", "echo"], "interpreter": "/bin/sh"},
        {"command": ["sh", "-c", "run.sh"]},
        {
            "command": ["ls", "{package}", "{package}/", "{work}/x", "{package}/{param.x}"],
            "inputs": {"x": {"type": "file"}},
        },
        {"command": ["true", "missing.sh"]},
    ],
)
def test_what_is_there_is_no_problem(operation: dict[str, object], package: Callable[..., Path]) -> None:
    assert said(package(**operation)) == []


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"command": ["{package}/bin/none"]}, "command[0]: names bin/none, which is not in the package"),
        ({"command": ["cat", "{package}/none"]}, "command[1]: names none, which is not in the package"),
        ({"command": ["cat", "--x={package}/none"]}, "command[1]: names none, which is not in the package"),
        ({"command": ["cat", "{package}/../x"]}, "command[1]: names ../x, which is not beneath the package"),
        ({"command": ["{package}/bin"]}, "command[0]: starts bin, which is no file"),
        (
            {"command": ["{package}/bin/plain"]},
            "command[0]: starts bin/plain, which is not executable: chmod +x it, or name an interpreter",
        ),
        (
            {"command": ["{package}/bin/text"]},
            "command[0]: starts bin/text, which is no program and does not begin with #!: name an interpreter",
        ),
        (
            {"command": ["{package}/bin/dos"]},
            "command[0]: starts bin/dos, whose first line ends with a carriage return: "
            "save it with the line ends of Unix",
        ),
        (
            {"command": ["run.sh"]},
            "command[0]: is looked for on the PATH: write {package}/run.sh for that of the package",
        ),
        (
            {"command": ["./run.sh"]},
            "command[0]: is looked for in the working directory, which is empty: write {package}/./run.sh",
        ),
        (
            {"command": ["run.sh"], "interpreter": "/bin/sh"},
            "command[0]: is looked for in the working directory, which is empty: write {package}/run.sh",
        ),
        (
            {"command": ["/bin/sh", "run.sh"]},
            "command[1]: is looked for in the working directory, which is empty: write {package}/run.sh",
        ),
        ({"command": ["go"], "colour": 1}, "colour: is not a field; the fields here are description, inputs"),
    ],
)
def test_what_a_command_names_and_does_not_find(
    operation: dict[str, object], message: str, package: Callable[..., Path]
) -> None:
    [problem] = said(package(**operation))
    assert problem.startswith(f"package.yaml: operations.run.{message}")


def test_every_problem_is_named_at_once(package: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = package(command=["{package}/none"], inputs={"x": {"type": "enum"}})
    (directory / "link").symlink_to("/etc/passwd")
    os.mkfifo(directory / "pipe")
    (directory / "a\nb").touch()
    assert run(["packages", "lint", str(directory)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: the path 'a\\nb' has characters that cannot be printed",
        "error: link: is neither a file nor a directory: a package holds nothing else",
        "error: pipe: is neither a file nor a directory: a package holds nothing else",
        "error: package.yaml: operations.run.inputs.x.choices: is missing: an enum needs the list of what it may be",
    ]


def test_what_no_archive_can_hold_is_a_problem(package: Callable[..., Path], tmp_path: Path) -> None:
    directory = package(command=["true"])
    (directory / "RUN.SH").touch()
    assert said(directory) == ["it holds 'RUN.SH' and 'run.sh', which not every file system tells apart"]
    assert said(tmp_path) == [f"{tmp_path}: has no package.yaml: name the directory of a package"]


def test_a_new_package_is_without_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made"
    assert run(["packages", "new", "disk.clean-up", "--directory", str(made)]) == 0
    assert run(["packages", "lint", str(made)]) == 0
    assert capsys.readouterr().out.endswith("disk.clean-up 0.1.0: no problems found\n")
    assert {path.name for path in made.iterdir()} == {"package.yaml", "greet.sh", "README.md"}
    # As far as the command line.
    taken: list[JobOptions] = []
    monkeypatch.setattr(creation, "create", lambda data, options, **rest: taken.append(options))
    (command,) = re.findall("^    (sis jobs create .*)$", (made / "README.md").read_text(), re.MULTILINE)
    assert run(shlex.split(command)[1:]) == 0
    assert [(each.package, each.operation) for each in taken] == [("disk.clean-up", "greet")]
    (made / "package.yaml").write_text("precious")
    assert run(["packages", "new", "disk.clean-up", "--directory", str(made)]) == 1
    assert (made / "package.yaml").read_text() == "precious"
    assert capsys.readouterr().err == f"error: {made} is there already; name another with --directory\n"


@pytest.mark.parametrize("name", ["Bad", "a b", "a # b", "../a", "", "null", "a\nversion: 1.0.0"])
def test_a_package_without_a_right_name_is_not_made(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidManifest):
        scaffold.write(name, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_what_is_shipped_is_without_problems() -> None:
    for directory in shipped().iterdir():
        assert said(directory) == []


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["packages", "schema"]) == 0
    assert capsys.readouterr().out == schema.text()
