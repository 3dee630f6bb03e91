"""The agent: takes jobs at a site, has them run under supervisors, and tells a hub all about it.

`python -m services.sis_agent.agent.main`. On SIGTERM it closes its stream and exits with status 0; its supervisors
and what they supervise go on, and the next agent with the same state finds them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import uvloop

from services.runtime.telemetry import configure_logging
from services.sis_agent.agent import processes
from services.sis_agent.agent.attempts import AttemptDirectories
from services.sis_agent.agent.connection import Connection
from services.sis_agent.agent.executor import Executor
from services.sis_agent.agent.handle import SpawnFailed, Zygote
from services.sis_agent.agent.journal import Journal
from services.sis_agent.agent.life import Site
from services.sis_agent.agent.package_cache import PackageCache
from services.sis_agent.agent.settings import AgentSettings
from services.sis_agent.agent.shipping import Shipping
from sis.queue.v1 import dispatch_service_pb2 as dispatch

log = logging.getLogger(__name__)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    settings = AgentSettings.load()
    configure_logging("agent")
    settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(settings.state / "agent.lock"):
        try:
            uvloop.run(serve(settings))
        except Exception:
            log.exception("the agent has failed; what runs goes on under its supervisors")
            sys.exit(1)


async def serve(settings: AgentSettings) -> None:
    """Run the agent in this event loop until the process is told to end."""
    loop = asyncio.get_running_loop()
    # A lost supervisor's tree may take a thread of its own for half a minute.
    loop.set_default_executor(ThreadPoolExecutor(max_workers=settings.slots + 8))
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    directories = AttemptDirectories(settings.state / "attempts")
    journal = Journal.open_or_create(settings.state / "journal", directories.orphan_all)
    connection = Connection(settings.hub_endpoints, settings.tls, about(settings))
    packages = PackageCache(settings.state / "packages", connection.fetch)
    zygote = Zygote()
    try:
        async with asyncio.TaskGroup() as group:
            warm = group.create_task(warm_up(zygote), name="zygote")
            site = Site(journal, directories, Shipping(), packages, zygote)
            executor = Executor(site, settings.slots, group)
            executor.resume()
            stream = group.create_task(connection.run(executor), name="stream")
            await ended.wait()
            log.info("the agent ends; what runs goes on under its supervisors")
            stream.cancel()
            warm.cancel()
            await executor.close()
    finally:
        await packages.close()
        await zygote.stop()
        journal.close()


async def warm_up(zygote: Zygote) -> None:
    """Have the zygote ready before the first job wants it; if it does not come up now, that job tries again."""
    try:
        await zygote.start()
    except (SpawnFailed, OSError):
        log.exception("the zygote did not start; the first job starts it")


def about(settings: AgentSettings) -> dispatch.AgentHello:
    """What an agent says of itself that never changes while it runs."""
    return dispatch.AgentHello(
        version=version("sis"),
        boot_id=processes.boot_id(),
        labels=settings.labels,
        platform=sys.platform,
        hostname=socket.gethostname(),
    )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the state for this process alone; exits with status 1 where another agent has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"error: another agent uses {path.parent}; give this one a state directory of its own")
        yield


if __name__ == "__main__":
    main()
