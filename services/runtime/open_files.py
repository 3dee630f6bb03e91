"""How many files this process may have open at once, each connection among them: 1,024 are the usual soft limit."""

from __future__ import annotations

import resource
from typing import Final

MOST: Final = 65_536
"""More than any process of the suite needs; and what goes through all that may be open takes no time."""


def allow(wanted: int = MOST) -> int:
    """Raise the soft limit to so many, as far as the hard one lets it; it is never lowered. Returns the limit before:
    for programs that are started from here, since some close all that may be open, and `select` takes the first 1,024
    alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    within = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < within:
        resource.setrlimit(resource.RLIMIT_NOFILE, (within, hard))
    return soft


def restore(soft: int) -> None:
    """Have the soft limit that `allow` has returned, here or in the process that has started this one. What is open
    stays open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
        soft = hard  # which somebody has lowered meanwhile
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
