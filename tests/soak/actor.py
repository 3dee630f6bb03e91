"""Those who act in a soak, each in a thread of its own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.soak.ledger import Ledger


class Actor(ABC):
    """Acts from `start` until it is told to stop. Not to come to an end then is a trouble."""

    def __init__(self, name: str, ledger: Ledger, patience: float) -> None:
        """`patience` is how many seconds it may take to stop."""
        self._name = name
        self._ledger = ledger
        self._patience = patience
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Tell it to come to an end."""
        self._over.set()

    def join(self) -> None:
        """Wait until it has."""
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._ledger.trouble(f"{self._name} does not come to an end")

    @abstractmethod
    def _run(self) -> None:
        """Act until `_over` is set."""


@contextmanager
def acting(*actors: Actor) -> Iterator[None]:
    """They act until the block ends, however it ends."""
    with ExitStack() as joined, ExitStack() as stopped:
        for actor in actors:
            actor.start()
            joined.callback(actor.join)
            stopped.callback(actor.stop)
        yield
