"""The agent: takes jobs at a site, has them run under supervisors, and tells a hub all about it.

`sis-agent` serves, as the agent that `sis-agent enrol` has made of it. On SIGTERM it closes its stream and exits with
status 0; its supervisors and what they supervise go on, and the next agent with the same state finds them again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import getpass
import logging
import shlex
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import uvloop
from pydantic import TypeAdapter, ValidationError

from services.runtime import metrics, open_files, shutdown
from services.runtime.exporting import exported
from services.runtime.health import Health
from services.runtime.pairing import InvalidCode, PairingCode
from services.runtime.probes import probed
from services.runtime.settings import Endpoint
from services.runtime.telemetry import configure_logging
from services.sis_agent.agent import spans
from services.sis_agent.agent.attempts import AttemptDirectories
from services.sis_agent.agent.connection import Connection
from services.sis_agent.agent.errors import (
    AgentError,
    EnrolmentFailed,
    IdentityDamaged,
    NotEnrolled,
    ThreadsRefused,
)
from services.sis_agent.agent.executor import Executor
from services.sis_agent.agent.journal import Journal
from services.sis_agent.agent.life import Site
from services.sis_agent.agent.linux import processes
from services.sis_agent.agent.package_cache import PackageCache
from services.sis_agent.agent.settings import AgentSettings, identity_in
from services.sis_agent.agent.shipping import Shipping
from services.sis_agent.agent.state_directory import StateDirectory
from services.sis_agent.agent.supervision.handle import SpawnFailed, Zygote
from services.sis_agent.agent.threads import Removals, started
from services.sis_agent.agent.trust import enrolment
from services.sis_agent.agent.trust.held_identity import HeldIdentity
from services.sis_agent.agent.trust.identity import AgentIdentity
from sis.queue.v1 import dispatch_service_pb2 as dispatch

log = logging.getLogger(__name__)

READING_THREADS = 2
"""That read spools: the second, where a read for a stream that has ended still waits for the disk."""


def main() -> None:
    """Do what the command line says: serve until SIGTERM or SIGINT, or enrol."""
    parser = argparse.ArgumentParser("sis-agent", description="Run the jobs of a site; without a command: serve.")
    enrol = parser.add_subparsers(dest="command", metavar="COMMAND").add_parser(
        "enrol",
        help="become an agent",
        description="Become an agent by the pairing code that `sis agents pair` printed, in the place of the one that "
        "is in the state directory, if there is one. Safe to repeat.",
    )
    enrol.add_argument("--hub", required=True, type=_endpoint, metavar="HOST:PORT", help="the hub's enrolment port")
    enrol.add_argument("--code", required=True, help="the pairing code; - asks for it, or reads standard input")
    enrol.add_argument("--state", type=Path, metavar="DIR", help="the agent's state directory ($SIS_AGENT_STATE)")
    arguments = parser.parse_args()
    if arguments.command == "enrol":
        become_agent(arguments.hub, arguments.code, arguments.state)
    else:
        serve_until_told()


def _endpoint(text: str) -> str:
    try:
        return TypeAdapter(Endpoint).validate_python(text)
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r} is not host:port") from None


def become_agent(endpoint: str, code: str, state: Path | None) -> None:
    """Enrol, and say so; exits with status 1 where that fails, with 2 for something that is no pairing code."""
    directory = state or AgentSettings.load().state
    try:
        parsed = PairingCode.parse(_given() if code == "-" else code)
    except InvalidCode as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    try:
        found = asyncio.run(enrolment.enrol(identity_in(directory), endpoint, parsed))
    except AgentError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        sys.exit(_unusable(directory, error, "--state or SIS_AGENT_STATE"))
    start = "sis-agent" if state is None else f"SIS_AGENT_STATE={shlex.quote(str(state.absolute()))} sis-agent"
    until = datetime.fromtimestamp(found.not_after, UTC)
    sys.stdout.write(
        f"This is now agent {found.name} of group {found.group}, certified until {until:%Y-%m-%d %H:%M} UTC.\n"
        f"Its hubs: {', '.join(found.hub_endpoints)}.\n"
        f"Start it with `{start}`; it keeps itself certified. One that was waiting for this goes on by itself.\n"
    )


def _given() -> str:
    return getpass.getpass("Pairing code: ") if sys.stdin.isatty() else sys.stdin.readline()


def serve_until_told() -> None:
    """Serve; exits with status 1 where that fails."""
    settings = AgentSettings.load()
    configure_logging("agent")
    payload_files = open_files.allow()
    with held(settings) as identity:
        try:
            shutdown.prepare()
            with exported("agent", settings.metrics_listen, [spans.SUPERVISOR]):
                uvloop.run(serve(settings, identity, payload_files))
        except ThreadsRefused as error:
            sys.exit(f"error: {error}")
        except OSError as error:  # before anything was begun; tasks raise groups
            sys.exit(_unusable(settings.state, error, "SIS_AGENT_STATE"))
        except Exception:
            log.exception("the agent has failed; what runs goes on under its supervisors")
            sys.exit(1)


async def serve(settings: AgentSettings, identity: HeldIdentity, payload_files: int) -> None:
    """Run the agent in this event loop until the process is told to end. Payloads have `payload_files` for their soft
    limit of open files."""
    log.info("this is agent %s of group %s", identity.current.name, identity.current.group)
    # A lost supervisor's tree may take a thread of its own for half a minute.
    asyncio.get_running_loop().set_default_executor(started(settings.slots + 8))
    ended = asyncio.Event()
    with shutdown.asked(ended.set):
        async with probed(settings.probe_listen) as health:
            zygote = Zygote(
                process_limit=settings.process_limit, identity_directory=settings.identity, open_files=payload_files
            )
            await _serve(settings, identity, zygote, ended, health)


async def _serve(
    settings: AgentSettings, identity: HeldIdentity, zygote: Zygote, ended: asyncio.Event, health: Health
) -> None:
    directories = AttemptDirectories(settings.state / "attempts")
    journal = Journal.open_or_create(settings.state / "journal", directories.orphan_all)
    connection = Connection(identity, settings.hub_endpoints, about(settings), health.set_serving)
    packages = PackageCache(settings.state / "packages", connection.fetch, settings.cache_bytes)
    try:
        with started(READING_THREADS) as reading, contextlib.closing(Removals()) as removals:
            async with asyncio.TaskGroup() as group:
                warm = group.create_task(warm_up(zygote), name="zygote")
                state = StateDirectory(settings.state)
                shipping = Shipping(reading)
                site = Site(journal, directories, shipping, packages, zygote, settings.identity, state, removals)
                executor = Executor(site, settings.slots, group)
                executor.resume()
                measure(executor, shipping)
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


def measure(executor: Executor, shipping: Shipping) -> None:
    """Have Prometheus, and whoever else asks, see how busy this agent is."""
    metrics.observe("sis.agent.attempts", "{attempt}", "Attempts in hand.", lambda: [(executor.load[0], {})])
    metrics.observe("sis.agent.slots", "{slot}", "Attempts that it takes at once.", lambda: [(executor.load[1], {})])
    metrics.observe(
        "sis.agent.unacknowledged", "By", "Frames under way to the hub.", lambda: [(shipping.bytes_under_way, {})]
    )


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
def held(settings: AgentSettings) -> Iterator[HeldIdentity]:
    """Hold the state directory and the identity in it for this process alone; exits with status 1 where they are not
    there, cannot be used, or are another agent's."""
    identity = HeldIdentity(settings.identity)
    with contextlib.ExitStack() as stack:
        try:
            try:
                lock = stack.enter_context((settings.state / "agent.lock").open("w"))
            except FileNotFoundError:  # a start by mistake leaves no directory behind
                AgentIdentity.load(settings.identity)
                raise
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stack.callback(identity.close)
            identity.open()
        except BlockingIOError:
            sys.exit(f"error: another agent uses {settings.state}; give this one a state directory of its own")
        except OSError as error:
            sys.exit(_unusable(settings.state, error, "SIS_AGENT_STATE"))
        except (NotEnrolled, IdentityDamaged, EnrolmentFailed) as error:
            sys.exit(f"error: {error}")
        yield identity


def _unusable(state: Path, error: OSError, option: str) -> str:
    return f"error: {error.filename or state}: {error.strerror or error}; name another with {option}"


if __name__ == "__main__":
    main()
