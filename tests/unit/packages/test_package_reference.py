from __future__ import annotations

import io
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.queue.convert.packages import to_package
from services.queue.packages import Package
from sis.cli import creation, main, operations, requests, terminal
from sis.cli.package_page import package_page
from sis.packages import manifest, reference, shipped
from sis.packages.manifest import Manifest
from sis.queue.v1 import package_service_pb2 as pb
from tools import package_reference

SHIPPED = [manifest.load(path.parent) for path in sorted(shipped().glob("*/package.yaml"))]
OPERATIONS = [(each, name) for each in SHIPPED for name in each.operations]

ODD = manifest.parse(
    r"""
name: odd.package
version: 1.0.0
platforms: [linux, darwin]
description: "Does *everything* <b>at once</b> | or [nothing](x), with _emphasis_ and free_space."
operations:
  run:
    command: ["true"]
    run_timeout: 90s
    cancel_grace: 2m
    inputs:
      word: {type: string, required: true, pattern: "[a-z`|]+", hint: "lower-case, please"}
      mail: {type: string, required: true, hint: "@everybody"}
      count: {type: integer, required: true, hint: how many}
      colour: {type: enum, required: true, choices: ["light red", blue]}
      names: {type: list, default: [a, b]}
      key: {type: string, required: true, sensitive: true}
      data: {type: file, required: true, hint: a picture}
    credentials:
      run_as: {required: true}
      database: {required: true, kinds: [token], delivery: file}
      spare: {}
    outputs:
      result: {required: true, description: "First line.\nSecond line."}
"""
)


def answer(declared: Manifest) -> pb.Package:
    """The package as the server shows it."""
    return to_package(Package(declared.name, declared.version, "0" * 64, 1, datetime.now(UTC), "ada", declared))


def shown(package: pb.Package) -> str:
    file = io.StringIO()
    package_page(terminal.console(file), package)
    return file.getvalue()


def test_the_pages_of_the_shipped_packages_are_up_to_date() -> None:
    assert {path: path.read_text() for path in package_reference.pages()} == package_reference.pages()


@pytest.mark.parametrize(("declared", "name"), OPERATIONS, ids=lambda value: getattr(value, "name", value))
def test_examples_are_commands_that_work(
    declared: Manifest, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As far as the command line, which checks the values as the queue does."""
    taken: list[requests.JobOptions] = []

    def take(data: Path | None, options: requests.JobOptions, **rest: Any) -> None:
        taken.append(options)

    monkeypatch.setattr(creation, "create", take)
    monkeypatch.chdir(tmp_path)
    package = answer(declared)
    command = reference.example(
        declared.name, name, declared.operations[name].inputs, declared.operations[name].credentials
    )
    for file in declared.operations[name].inputs:
        (tmp_path / file.upper()).touch()
    assert f"\n{command}\n" in reference.page(declared)
    assert command in shown(package)
    assert main.run(shlex.split(command)[1:]) == 0
    operations.check(package, requests.job(taken[0]))


def test_an_example_gives_what_has_to_be_given() -> None:
    operation = ODD.operations["run"]
    assert reference.example("odd.package", "run", operation.inputs, operation.credentials) == (
        "sis jobs create --name 'odd.package run' --package odd.package --operation run --site group:local "
        "--param word=text --param mail=@@everybody --param count=1 --param 'colour=light red' "
        "--param-credential key=KEY --param-file data=DATA --run-as RUN_AS --credential database=DATABASE"
    )


def test_a_page_tells_everything_and_is_no_markup() -> None:
    page = reference.page(ODD)
    assert page.startswith(
        "# odd.package\n\nVersion 1.0.0, for linux, darwin. "
        r"Does \*everything\* \<b>at once\</b> \| or \[nothing](x), with \_emphasis\_ and free_space."
    )
    for part in (
        "It may run for 90s. Canceled, it has 2m to end by itself.",
        r"| `word` | string | yes |  | ``[a-z`\|]+`` | `lower-case, please` |  |",
        "| `colour` | enum | yes |  | `light red`, `blue` |  |  |",
        "| `names` | list |  | `a`, `b` |  |  |  |",
        "| `key` | string, sensitive | yes |",
        "| `database` | yes | token | file |  |",
        "| `spare` |  | any | environment |  |",
        "| `result` | yes | First line. Second line. |",
    ):
        assert part in page


def test_the_index_links_to_the_pages() -> None:
    assert r"| [odd.package](odd.package.md) | 1.0.0 | run | Does \*everything\*" in reference.index([ODD])


def test_the_command_line_shows_the_same() -> None:
    page = shown(answer(ODD))
    for part in ("linux, darwin", "[a-z`|]+", "Hint: how many", "light red | blue", "by a credential",
                 "database", "token", "file", "First line."):  # fmt: skip
        assert part in page


def test_a_package_of_tomorrow_is_shown_without_an_example() -> None:
    package = answer(ODD)
    package.operations[0].inputs[0].type = "image"
    assert "image" in shown(package)
    assert "sis jobs create" not in shown(package)


def test_a_page_does_not_obey_its_package() -> None:
    package = answer(ODD)
    package.operations[0].inputs[1].hint = package.operations[0].credentials[0].delivery = "\x1b[2J"
    assert "\x1b" not in shown(package)
