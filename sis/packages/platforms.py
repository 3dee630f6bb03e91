"""The platforms of agents, and those that packages are for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from sis.packages.manifest import Platform

NAMES: tuple[str, ...] = get_args(Platform)
"""Those that a package can be for."""

_REPORTED = {"win32": "windows"}


def name(reported: str) -> str:
    """A platform by the name that packages give it; agents say that of `sys.platform`."""
    return _REPORTED.get(reported, reported)


def fits(platform: str, wanted: Sequence[str]) -> bool:
    """Whether an agent of this platform, "" when it is not known, can run what is for those."""
    return not platform or platform in wanted
