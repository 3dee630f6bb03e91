"""The shipped package `linux.package` with apt, which installs and removes for real."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.packages import disposable_machine, operation_runner
from tests.integration.packages.disposable_machine import Init, Machine
from tests.integration.packages.operation_runner import Run

pytestmark = pytest.mark.root

Operation = Callable[..., Run]


class Repository:
    """A repository of packages made for a test, on the machine that uses it."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self._machine = machine
        self._directory = directory
        self._index = ""
        machine.run("rm", "-r", "/etc/apt/sources.list.d")
        machine.write("/etc/apt/sources.list", "deb [trusted=yes] file:/srv/repository ./\n")
        machine.path("/srv/repository").mkdir()

    def add(self, name: str, version: str, depends: str = "", configuration: str = "", postinst: str = "") -> None:
        """The index that the machine has fetched does not know of it."""
        tree = self._directory / f"{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: SIS\nDescription: For a test\n"
        if depends:
            control += f"Depends: {depends}\n"
        (tree / "DEBIAN/control").write_text(control)
        if configuration:
            (tree / "etc").mkdir()
            (tree / f"etc/{name}.conf").write_text(configuration)
            (tree / "DEBIAN/conffiles").write_text(f"/etc/{name}.conf\n")
        if postinst:
            (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\n{postinst}\n")
            (tree / "DEBIAN/postinst").chmod(0o755)
        archive = self._directory / f"{name}_{version}_all.deb"
        subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", "-Znone", tree, archive],
            capture_output=True,
            timeout=60,
            check=True,
        )
        content = archive.read_bytes()
        self._machine.path(f"/srv/repository/{archive.name}").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        self._index += f"{control}Filename: ./{archive.name}\nSize: {len(content)}\nSHA256: {digest}\n\n"
        self._machine.write("/srv/repository/Packages", self._index)

    def fetch(self) -> None:
        self._machine.run("apt-get", "update")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def machine(shared: Path) -> Iterator[Machine]:
    disposable_machine.require(**{"apt-get": "apt", "dpkg-deb": "dpkg"})
    with disposable_machine.started(Init.NONE, shared) as machine:
        yield machine


@pytest.fixture(scope="module")
def repository(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository(machine, tmp_path_factory.mktemp("repository"))
    repository.add("sis-library", "1.0")
    repository.add("sis-tool", "1.0", depends="sis-library", configuration="colour=red\n")
    repository.add("sis-tool", "2.0", depends="sis-library", configuration="colour=blue\n")
    repository.add("sis-decimal", "1.1")
    repository.add("sis-decimal", "1.10")
    repository.add("sis-broken", "1.0", postinst="test -e /etc/mended")
    repository.add("sis-busy", "1.0", postinst="> /etc/busy; while [ -e /etc/busy ]; do sleep 0.1; done")
    repository.fetch()
    return repository


@pytest.fixture
def run(machine: Machine, shared: Path, repository: Repository) -> Iterator[Operation]:
    def operation(operation: str, *names: str, **inputs: str) -> Run:
        return operation_runner.run(
            shared, "linux.package", operation, None, machine.enter, names=list(names), **inputs
        )

    yield operation
    names = ("sis-library", "sis-tool", "sis-decimal", "sis-broken", "sis-busy", "sis-new")
    machine.run("dpkg", "--purge", "--force-all", *names)
    machine.run("rm", "-f", "/etc/mended")


def changes(run: Run) -> list[tuple[str, str | None, str | None]]:
    """What an operation says that it has changed, or would change."""
    assert run.exit_code == 0, run.stderr
    told = "differences" if "differences" in run.outputs else "changes"
    found = [(entry["name"], entry["from"], entry["to"]) for entry in json.loads(run.outputs[told])]
    flag = run.outputs["would_change" if told == "differences" else "changed"]
    assert flag == ("true" if found else "false")
    return found


def versions(run: Run) -> list[tuple[str | None, str | None]]:
    return [(entry["installed"], entry["candidate"]) for entry in json.loads(run.outputs["packages"])]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """As if apt had the lock."""
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def test_packages_become_what_is_asked_for(run: Operation, machine: Machine) -> None:
    assert versions(run("query", "sis-tool", "sis-library")) == [(None, "2.0"), (None, "1.0")]
    with_library = [("sis-library", None, "1.0"), ("sis-tool", None, "1.0")]
    assert changes(run("check", "sis-tool=1.0")) == with_library
    assert versions(run("query", "sis-tool")) == [(None, "2.0")]
    assert changes(run("ensure", "sis-tool=1.0")) == with_library
    assert machine.run("dpkg-query", "-W", "sis-tool") == "sis-tool\t1.0\n"
    assert changes(run("ensure", "sis-tool=1.0")) == []
    assert changes(run("check", "sis-tool")) == []

    for operation in ("check", "ensure"):
        assert changes(run(operation, "sis-tool", state="latest")) == [("sis-tool", "1.0", "2.0")]
    assert changes(run("ensure", "sis-tool", state="latest")) == []
    run("ensure", "sis-decimal=1.1")
    for operation in ("check", "ensure"):
        assert changes(run(operation, "sis-decimal", state="latest")) == [("sis-decimal", "1.1", "1.10")]
    for operation in ("check", "ensure"):
        assert changes(run(operation, "sis-tool=1.0")) == [("sis-tool", "2.0", "1.0")]

    # What needs it goes along.
    for operation in ("check", "ensure"):
        gone = changes(run(operation, "sis-library", state="absent"))
        assert gone == [("sis-library", "1.0", None), ("sis-tool", "1.0", None)]
    assert changes(run("ensure", "sis-library", state="absent")) == []


def test_upgrades_keep_the_configuration_of_the_machine(run: Operation, machine: Machine) -> None:
    ended = run("upgrade", "sis-tool")
    assert (ended.exit_code, "so it cannot be upgraded: sis-tool" in ended.stderr) == (1, True)
    for names in (["sis-tool"], []):
        run("ensure", "sis-tool=1.0")
        machine.write("/etc/sis-tool.conf", "colour=green\n")
        assert changes(run("upgrade", *names, refresh="false")) == [("sis-tool", "1.0", "2.0")]
        assert machine.path("/etc/sis-tool.conf").read_text() == "colour=green\n"
    assert changes(run("upgrade", refresh="false")) == []


def test_the_index_is_fetched_when_asked_for(run: Operation, machine: Machine, repository: Repository) -> None:
    repository.add("sis-new", "1.0")
    lists = machine.path("/var/lib/apt/lists")
    before = {path: path.stat().st_mtime_ns for path in lists.rglob("*")}
    unknown = run("ensure", "sis-new")
    assert (unknown.exit_code, "no repository has a package called sis-new" in unknown.stderr) == (1, True)
    assert changes(run("check", "sis-new", refresh="true")) == [("sis-new", None, "1.0")]
    assert {path: path.stat().st_mtime_ns for path in lists.rglob("*")} == before
    assert run("check", "sis-new").exit_code == 1
    assert changes(run("ensure", "sis-new", refresh="true")) == [("sis-new", None, "1.0")]


def test_an_index_that_cannot_be_fetched_fails_the_job(run: Operation, machine: Machine) -> None:
    machine.write("/etc/apt/sources.list.d/gone.list", "deb [trusted=yes] file:/srv/gone ./\n")
    try:
        ended = run("ensure", "sis-tool", refresh="true")
    finally:
        machine.path("/etc/apt/sources.list.d/gone.list").unlink()
    assert (ended.exit_code, ended.outputs) == (1, {})
    assert "the index of the repositories cannot be fetched" in ended.stderr


def test_a_package_that_fails_is_told_and_can_be_mended(run: Operation, machine: Machine) -> None:
    ended = run("ensure", "sis-broken", "sis-library")
    assert (ended.exit_code, ended.outputs["changed"]) == (1, "true")
    assert "apt has failed" in ended.stderr
    half = "1.0 (half-configured)"
    assert {"name": "sis-broken", "from": None, "to": half} in json.loads(ended.outputs["changes"])
    assert versions(run("query", "sis-broken")) == [(half, "1.0")]
    machine.write("/etc/mended", "")
    for operation in ("check", "ensure"):
        assert changes(run(operation, "sis-broken")) == [("sis-broken", half, "1.0")]
    assert changes(run("ensure", "sis-broken")) == []


def test_a_version_that_nobody_has(run: Operation) -> None:
    for operation in ("check", "ensure"):
        ended = run(operation, "sis-tool=9.0")
        assert ended.exit_code == 1
        assert "Version '9.0' for 'sis-tool' was not found" in ended.stderr


def test_a_lock_is_waited_for_with_a_bound(run: Operation, machine: Machine) -> None:
    with locked(machine.path("/var/lib/dpkg/lock-frontend")):
        ended = run("ensure", "sis-library", lock_timeout="1")
    assert (ended.exit_code, ended.outputs["changed"]) == (1, "false")
    assert "Unable to acquire the dpkg frontend lock" in ended.stderr
    # apt has waited itself: once is enough.
    assert "not come free" not in ended.stderr
    with locked(machine.path("/var/lib/apt/lists/lock")):
        ended = run("ensure", "sis-library", refresh="true", lock_timeout="1")
    assert (ended.exit_code, ended.outputs) == (1, {})
    assert "Could not get lock /var/lib/apt/lists/lock" in ended.stderr
    assert "not come free within 1 seconds" in ended.stderr
    with locked(machine.path("/var/cache/apt/archives/lock")):
        ended = run("ensure", "sis-library", lock_timeout="1")
    assert (ended.exit_code, ended.outputs["changed"]) == (1, "false")
    assert "Could not get lock /var/cache/apt/archives/lock" in ended.stderr
    assert "not come free within 1 seconds" in ended.stderr


@pytest.mark.parametrize("lock", ["/var/lib/apt/lists/lock", "/var/cache/apt/archives/lock"])
def test_a_lock_that_is_released_is_taken(run: Operation, machine: Machine, shared: Path, lock: str) -> None:
    noticed, released = threading.Event(), threading.Event()
    earlier = set(shared.glob("*/work"))

    def hold() -> None:
        with locked(machine.path(lock)):
            noticed.set()
            while not released.wait(0.05):
                for work in set(shared.glob("*/work")) - earlier:
                    errors = work / "errors"
                    if errors.exists() and "Could not get lock" in errors.read_text():
                        return

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert noticed.wait(60)
        ended = run("ensure", "sis-library", refresh="true")
    finally:
        released.set()
        holder.join()
    assert changes(ended) == [("sis-library", None, "1.0")]
    assert "Another process uses the package manager" in ended.stdout


def test_a_cancel_does_not_interrupt_what_is_being_installed(run: Operation, machine: Machine) -> None:
    run("ensure", "sis-tool=1.0")
    with ThreadPoolExecutor() as pool:
        ending = pool.submit(run, "ensure", "sis-busy", "sis-tool", state="latest")
        busy = machine.path("/etc/busy")
        while not busy.exists():
            assert not ending.done(), ending.result()
            time.sleep(0.05)
        try:
            (initial,) = machine.processes("ensure", "sis-busy", "sis-tool")
            machine.run("kill", "-TERM", initial)
        finally:
            busy.unlink()
        ended = ending.result()
    assert ended.exit_code == 1
    assert "the job was stopped; the package manager had its time" in ended.stderr
    # Nor does it begin what would have come next.
    assert json.loads(ended.outputs["changes"]) == [{"name": "sis-busy", "from": None, "to": "1.0"}]
    assert versions(run("query", "sis-tool")) == [("1.0", "2.0")]
