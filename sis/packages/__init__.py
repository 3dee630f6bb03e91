"""Automation packages: what a `package.yaml` may say, how a package travels, how its commands are built.

The server, the command line and the agent use the same code, so a package that one accepts the others accept.
"""

from __future__ import annotations

from pathlib import Path


def shipped() -> Path:
    """The directory that holds the packages shipped with the suite, one folder each."""
    here = Path(__file__).resolve().parent
    installed = here / "shipped"
    return installed if installed.is_dir() else here.parent.parent / "packages"
