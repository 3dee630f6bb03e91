"""Ports that are kept for servers: nobody else picks them, and the servers can have them."""

from __future__ import annotations

import socket

import pytest

from sis.stack.errors import StackError
from sis.stack.ports import HOST, Reservations


def _listen(port: int) -> socket.socket:
    """As gRPC does."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen()
    return listener


def test_a_server_can_have_the_port_that_is_kept_for_it_again_and_again() -> None:
    with Reservations() as reservations:
        port = reservations.take(0)
        for _ in range(3):
            with _listen(port) as listener, socket.create_connection((HOST, port)):
                listener.accept()[0].close()  # what lingers of this connection is no obstacle


def test_no_other_stack_picks_it() -> None:
    with Reservations() as reservations, socket.socket() as other:
        port = reservations.take(0)
        with pytest.raises(OSError, match="in use"):
            other.bind((HOST, port))


def test_the_last_port_is_taken_again_unless_somebody_has_it() -> None:
    with Reservations() as reservations:
        port = reservations.take(0)
    with Reservations() as reservations:
        assert reservations.take(0, last=port) == port
    with _listen(port), Reservations() as reservations:
        assert reservations.take(0, last=port) != port


def test_a_wanted_port_that_somebody_has_is_refused() -> None:
    with socket.socket() as somebody, Reservations() as reservations:
        somebody.bind((HOST, 0))
        somebody.listen()
        port = somebody.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port} on {HOST} cannot be had: Address already in use"):
            reservations.take(port)


def test_a_port_that_is_wanted_twice_is_refused() -> None:
    with Reservations() as reservations:
        port = reservations.take(0)
        with pytest.raises(StackError, match=f"port {port} is asked for twice"):
            reservations.take(port)
