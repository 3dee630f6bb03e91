"""Who acts in a soak comes to an end with its block, or is a trouble."""

from __future__ import annotations

import threading

import pytest

from tests.soak.actor import Actor, acting
from tests.soak.ledger import Ledger


class Walker(Actor):
    """Acts until it is told to stop, or, if it is deaf, a while longer."""

    def __init__(self, name: str, ledger: Ledger, deaf: threading.Event | None = None) -> None:
        super().__init__(name, ledger, 0.1 if deaf else 20)
        self._deaf = deaf

    def _run(self) -> None:
        self._over.wait(20)
        if self._deaf is not None:
            self._deaf.wait(20)


def living() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_all_end_with_the_block_however_it_ends() -> None:
    ledger = Ledger()
    with pytest.raises(KeyError), acting(Walker("one", ledger), Walker("two", ledger)):
        assert {"one", "two"} <= living()
        raise KeyError("a fault of the soak")
    assert not {"one", "two"} & living()
    assert ledger.troubles == []


def test_those_that_were_started_end_when_another_one_cannot_be() -> None:
    one = Walker("one", Ledger())
    with pytest.raises(RuntimeError), acting(one, one):
        pass
    assert "one" not in living()


def test_one_that_does_not_end_is_a_trouble() -> None:
    ledger, enough = Ledger(), threading.Event()
    deaf = Walker("deaf", ledger, enough)
    with acting(deaf):
        pass
    assert ledger.troubles == ["deaf does not come to an end"]
    enough.set()
    deaf._thread.join()
