"""What SIGTERM means to a server, from its start to its last moments: in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from services.runtime import shutdown

SERVER = """
import asyncio, atexit, os, sys
import uvloop
from services.runtime import shutdown

def another(when, write=os.write, kill=os.kill, pid=os.getpid()):
    write(1, when.encode() + b"\\n")
    kill(pid, 15)

class Last:
    def __del__(self, another=another):
        another("finalised")

async def serve():
    asked = asyncio.Event()
    with shutdown.asked(asked.set):
        print("serves", flush=True)
        await asked.wait()
        another("drains")
        await asyncio.sleep(0)
    another("has drained")
    await asyncio.sleep(0)

sys.last = Last()
atexit.register(another, "exits")
shutdown.prepare()
if sys.argv[1:]:
    another(sys.argv[1])
uvloop.run(serve())
another("the loop is closed")
sys.exit(7)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SERVER, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", shutdown.SIGNALS)
def test_a_second_sigterm_hurries_nothing_however_late_it_comes(number: signal.Signals) -> None:
    with start() as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "serves\n"
        server.send_signal(number)
        assert server.stdout.read().splitlines() == [
            "drains",
            "has drained",
            "the loop is closed",
            "exits",
            "finalised",
        ]
        assert server.wait(20) == 7


def test_a_sigterm_before_it_serves_ends_it_at_once() -> None:
    with start("starts") as server:
        assert server.communicate(timeout=20)[0] == "starts\n"
        assert server.returncode == -signal.SIGTERM


@pytest.mark.root
def test_so_it_does_where_it_is_the_first_process_of_a_container() -> None:
    """The kernel has that one ignore what would end any other."""
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", SERVER, "starts"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.communicate(timeout=20)[0] == "starts\n"
        finally:
            server.kill()
        assert server.returncode == 128 + signal.SIGTERM


async def test_in_a_process_that_does_other_things_the_signals_mean_what_they_meant() -> None:
    before = [signal.getsignal(number) for number in shutdown.SIGNALS]
    with shutdown.asked(lambda: None):
        assert [signal.getsignal(number) for number in shutdown.SIGNALS] != before
    assert [signal.getsignal(number) for number in shutdown.SIGNALS] == before
