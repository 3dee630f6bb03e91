"""The synchronous client is the asynchronous one without its `await`s."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from sis.client import AsyncClient, Client, service_config

ROOT = Path(__file__).parents[3]
NOUNS = ["jobs.Jobs", "packages.Packages", "credentials.Credentials", "agents.Agents", "identities.AgentIdentities"]


def test_what_is_committed_is_what_is_generated() -> None:
    ran = subprocess.run(
        [sys.executable, "tools/client.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_what_was_changed_by_hand_is_found(tmp_path: Path) -> None:
    for part in ("tools", "sis/client/aio"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "tools" / "client.py").write_bytes((ROOT / "tools" / "client.py").read_bytes())
    (tmp_path / "sis/client/aio/clock.py").write_text("async def now() -> int:\n    return await later()\n")
    tool = [sys.executable, str(tmp_path / "tools" / "client.py")]
    assert subprocess.run(tool, check=False, timeout=60).returncode == 0
    made = tmp_path / "sis/client/sync/clock.py"
    assert made.read_text().splitlines()[1:] == ["def now() -> int:", "    return later()"]
    made.write_text(made.read_text() + "\n")
    (tmp_path / "sis/client/sync/extra.py").touch()
    ran = subprocess.run([*tool, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 1
    assert ran.stderr.endswith("run `make generate`: sis/client/sync/clock.py, sis/client/sync/extra.py\n")


@pytest.mark.parametrize("noun", NOUNS)
def test_both_have_the_same_methods(noun: str) -> None:
    module, name = noun.split(".")
    waiting, plain = (
        {
            name: function
            for name, function in inspect.getmembers(getattr(import_module(f"sis.client.{flavour}.{module}"), name))
            if inspect.isfunction(function) and not name.startswith("_")
        }
        for flavour in ("aio", "sync")
    )
    shapes = [{name: list(inspect.signature(each).parameters.values()) for name, each in found.items()}
              for found in (waiting, plain)]  # fmt: skip
    assert shapes[0] == shapes[1]
    assert not any(inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each) for each in plain.values())
    assert all(each.__doc__ for each in waiting.values())


def test_both_clients_have_the_same_members() -> None:
    ways = {"__enter__": "__aenter__", "__exit__": "__aexit__"}
    assert {ways.get(name, name) for name in vars(Client)} == set(vars(AsyncClient))


def test_what_is_repeated_is_in_the_contracts() -> None:

    for service, methods in service_config.RETRIED.items():
        known = descriptor_pool.Default().FindServiceByName(service).methods_by_name
        assert set(methods) <= set(known)


def test_no_stream_is_left_to_grpc_to_repeat() -> None:
    # Of a stream that gRPC repeats, nothing may ever come again when its server dies between the tries.
    for service, methods in service_config.RETRIED.items():
        known = descriptor_pool.Default().FindServiceByName(service).methods_by_name
        assert not [name for name in methods if known[name].server_streaming or known[name].client_streaming]
