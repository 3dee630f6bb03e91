"""The secret of the jobs of the matrix is looked for where it may not be, and a mark beside it, which must be found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tests.crash.scenarios import MARK, SECRET
from tests.support.leaks import LeakSearch
from tests.support.stack import Stack

_SECRET: Final = "secret"
_MARK: Final = "mark"
_LOGGED: Final = "what hubs log"


class Secrecy:
    """Searches a stack. Each method raises AssertionError where the secret is, or where nothing is found of what must
    be there, so that a search which looks at nothing is noticed."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._search = LeakSearch({_SECRET: SECRET, _MARK: MARK, _LOGGED: b"opened session"})
        self._printed = False

    def check_site(self, job_id: int, in_hand: Callable[[], bool]) -> None:
        """In all that the agent has on its disk; if it is `in_hand` still, of a job that has printed it."""
        state = self._stack.layout.agent("local-1")
        found = self._search.files(state)
        needed = _MARK if in_hand() else ""
        self._check(found, needed, f"{state}/attempts/{job_id}.")
        self._printed = self._printed or bool(needed)

    def check_suite(self) -> None:
        """In the database, in the logs of the processes, and at the site."""
        with self._stack.database() as database:
            self._check(self._search.database(database), _MARK if self._printed else "", "queue.log")
        self._check(self._search.files(self._stack.layout.log("up").parent), _LOGGED, "hub-1.log")
        self._check(self._search.files(self._stack.layout.agent("local-1")))

    def _check(self, found: set[str], needed: str = "", where: str = "") -> None:
        """`found` has no secret, and what is needed, in that place."""
        leaked = {each for each in found if LeakSearch.named([each]) == {_SECRET}}
        assert not leaked, f"the secret has leaked: {leaked}"
        seen = {each for each in found if LeakSearch.named([each]) == {needed} and where in each}
        assert seen or not needed, f"no {needed} is in {where}, so that no secret could have been found there: {found}"
