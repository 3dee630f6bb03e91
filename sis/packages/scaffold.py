"""Writes the beginning of a package: small, working, and to be changed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sis.packages import manifest
from sis.packages.manifest import FILE_NAME, InvalidManifest, Problem

_MANIFEST: Final = """\
# yaml-language-server: $schema=../package.schema.json
name: NAME
version: 0.1.0
description: Greets somebody.
platforms: [linux]

operations:
  greet:
    description: Says hello, and fails when there is nobody to say it to.
    command: [/bin/sh, "{package}/greet.sh", "{param.name}"]
    run_timeout: 1m
    inputs:
      name:
        type: string
        required: true
        description: Who is greeted.
        hint: World
    outputs:
      greeting: {required: true, description: What was said.}
"""
_SCRIPT: Final = """\
#!/bin/sh
set -eu
echo "50 greeting $1" >> "$SIS_PROGRESS"
echo "Hello, $1!"
echo "greeting=Hello, $1!" >> "$SIS_OUTPUT"
"""
_README: Final = """\
# NAME

Greets somebody.

    sis packages lint .
    sis packages test . greet --param name=World
    sis packages push .
    sis jobs create --name 'NAME greet' --package NAME --operation greet --site group:local --param name=World --follow

For an editor that knows YAML schemas: `sis packages schema > ../package.schema.json`.
"""


class AlreadyThere(Exception):
    """There is something in the place of the new package; nothing was written."""


def write(name: str, directory: Path) -> None:
    """Make the directory of a package of this name, with a manifest, a script and a page to read.

    Raises:
        InvalidManifest: the name is none; nothing was written.
        AlreadyThere: the directory exists; nothing was written.
        OSError: it cannot be written.
    """
    text = _MANIFEST.replace("NAME", name)
    if manifest.parse(text).name != name:
        raise InvalidManifest([Problem("name", "must be the name of a package and nothing else")])
    try:
        directory.mkdir()
    except FileExistsError:
        raise AlreadyThere(f"{directory} is there already; name another with --directory") from None
    (directory / FILE_NAME).write_text(text)
    (directory / "greet.sh").write_text(_SCRIPT)
    (directory / "greet.sh").chmod(0o755)
    (directory / "README.md").write_text(_README.replace("NAME", name))
