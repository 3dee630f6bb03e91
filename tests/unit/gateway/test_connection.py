"""A client that reads slowly is no client that has stopped reading."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gateway.connection import Connection


class Transport(asyncio.Transport):
    """With so much left to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


class Loop:
    """Keeps what is to be done later."""

    def __init__(self) -> None:
        self.later: list[Callable[[], object]] = []

    def call_later(self, delay: float, act: Callable[[], object]) -> asyncio.TimerHandle:
        self.later.append(act)
        return asyncio.TimerHandle(delay, act, (), self)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A loop is told."""


@pytest.fixture
def paused() -> tuple[Connection, Transport, Loop]:
    """A connection whose client has a million bytes before it."""
    loop, transport = Loop(), Transport()

    async def app(*_: Any) -> None:
        """Nothing is asked of it."""

    connection = Connection(uvicorn.Config(app), ServerState(), {}, _loop=loop)  # type: ignore[arg-type]
    connection.connection_made(transport)
    transport.left = 1_000_000
    loop.later.clear()
    connection.pause_writing()
    return connection, transport, loop


def test_who_reads_slowly_is_left_alone(paused: tuple[Connection, Transport, Loop]) -> None:
    _, transport, loop = paused
    for left in (999_999, 999_000, 10):
        transport.left = left
        loop.later.pop()()
        assert not transport.aborted
    loop.later.pop()()
    assert transport.aborted


def test_who_reads_nothing_is_cut_off(paused: tuple[Connection, Transport, Loop]) -> None:
    _, transport, loop = paused
    loop.later.pop()()
    assert transport.aborted and not loop.later
