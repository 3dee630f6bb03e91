"""The shipped package `linux.package` with dnf, which installs and removes for real."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.packages import disposable_machine, operation_runner
from tests.integration.packages.disposable_machine import Init, Machine
from tests.integration.packages.operation_runner import Run
from tests.integration.packages.test_linux_package_apt import Operation, changes, versions

pytestmark = pytest.mark.root

# Longer than a line of the table that dnf shows.
LIBRARY = "sis-library-with-a-name-that-is-longer-than-any-column-of-a-table-may-be"

SPEC = """
Name: {name}
Version: {version}
Release: 1
Summary: For a test
License: none
BuildArch: noarch
AutoReqProv: no
{requires}
%description
For a test
%files
"""


def build(directory: Path, name: str, version: str, requires: str = "") -> None:
    """Puts a package into the directory, whose index does not know of it."""
    spec = directory / f"{name}.spec"
    spec.write_text(SPEC.format(name=name, version=version, requires=f"Requires: {requires}" if requires else ""))
    subprocess.run(
        [
            "rpmbuild",
            "-bb",
            "--quiet",
            "--define",
            f"_topdir {directory}/build",
            "--define",
            f"_rpmdir {directory}",
            spec,
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )


def index(directory: Path) -> None:
    subprocess.run(["createrepo_c", "--quiet", directory], capture_output=True, timeout=60, check=True)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def repository(shared: Path) -> Path:
    disposable_machine.require(dnf="dnf", rpmbuild="rpm", createrepo_c="createrepo-c")
    directory = shared / "repository"
    directory.mkdir()
    build(directory, LIBRARY, "1.0")
    build(directory, "sis-tool", "1.0", requires=LIBRARY)
    index(directory)
    return directory


@pytest.fixture(scope="module")
def machine(shared: Path, repository: Path) -> Iterator[Machine]:
    with disposable_machine.started(Init.NONE, shared) as machine:
        machine.run("rm", "-f", "/etc/os-release")
        machine.write("/etc/os-release", 'ID="rocky"\nID_LIKE="rhel centos fedora"\n')
        machine.write("/etc/dnf/dnf.conf", "[main]\ngpgcheck=0\n")
        machine.run("rm", "-rf", "/etc/yum.repos.d", "/var/lib/rpm", "/var/cache/dnf")
        machine.write("/etc/yum.repos.d/test.repo", f"[test]\nname=test\nbaseurl=file://{repository}\n")
        machine.run("rpm", "--initdb")
        yield machine


@pytest.fixture
def run(machine: Machine, shared: Path) -> Iterator[Operation]:
    def operation(operation: str, *names: str, **inputs: str) -> Run:
        return operation_runner.run(
            shared, "linux.package", operation, None, machine.enter, names=list(names), **inputs
        )

    yield operation
    machine.attempt("rpm", "--erase", "--nodeps", "sis-tool")
    machine.attempt("rpm", "--erase", "--nodeps", LIBRARY)


def test_packages_become_what_is_asked_for(run: Operation, machine: Machine, repository: Path) -> None:
    assert versions(run("query", "sis-tool", LIBRARY, "sis-no-such")) == [
        (None, "1.0-1"),
        (None, "1.0-1"),
        (None, None),
    ]
    for operation in ("check", "ensure"):
        assert changes(run(operation, "sis-tool")) == [(LIBRARY, None, "1.0-1"), ("sis-tool", None, "1.0-1")]
    assert machine.run("rpm", "--query", "sis-tool") == "sis-tool-1.0-1.noarch\n"
    for operation in ("check", "ensure"):
        assert changes(run(operation, "sis-tool", state="latest")) == []

    build(repository, "sis-tool", "2.0", requires=LIBRARY)
    index(repository)
    assert changes(run("check", "sis-tool", state="latest")) == []
    for operation in ("check", "ensure"):
        found = changes(run(operation, "sis-tool", state="latest", refresh="true"))
        assert found == [("sis-tool", "1.0-1", "2.0-1")]
    assert versions(run("query", "sis-tool")) == [("2.0-1", "2.0-1")]
    assert changes(run("upgrade", refresh="false")) == []

    # What needs it goes along.
    for operation in ("check", "ensure"):
        gone = changes(run(operation, LIBRARY, state="absent"))
        assert gone == [(LIBRARY, "1.0-1", None), ("sis-tool", "2.0-1", None)]
    assert changes(run("ensure", LIBRARY, state="absent")) == []


def test_a_cancel_while_it_waits_for_a_lock_begins_nothing(run: Operation, machine: Machine) -> None:
    lock = machine.path("/var/lib/dnf/rpmdb_lock.pid")
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("1")
    with ThreadPoolExecutor() as pool:
        ending = pool.submit(run, "ensure", "sis-tool")
        try:
            # Held between two tries.
            while not (pause := machine.processes("sleep", "1")) or machine.attempt("kill", "-STOP", *pause).returncode:
                assert not ending.done(), ending.result()
                time.sleep(0.05)
            (initial,) = machine.processes("ensure", "sis-tool")
            machine.run("kill", "-TERM", initial)
        finally:
            lock.unlink()
        machine.run("kill", "-CONT", *pause)
        ended = ending.result()
    assert (ended.exit_code, ended.outputs["changed"]) == (1, "false")
    assert "already locked by 1" in ended.stderr
    assert "the job was stopped" in ended.stderr


def test_what_cannot_be_done_fails_in_words(run: Operation, repository: Path) -> None:
    build(repository, "sis-needy", "1.0", requires="sis-nowhere")
    index(repository)
    for operation, names, message in [
        ("ensure", ["sis-no-such"], "no repository has a package called sis-no-such"),
        ("check", ["sis-tool=1.0"], "a name with = and a version is for apt only"),
        ("check", ["sis-needy"], "nothing provides sis-nowhere"),
        ("ensure", ["sis-needy"], "nothing provides sis-nowhere"),
    ]:
        ended = run(operation, *names, refresh="true")
        assert (ended.exit_code, "would_change" in ended.outputs) == (1, False)
        assert message in ended.stderr


def test_a_lock_is_waited_for_with_a_bound(run: Operation, machine: Machine) -> None:
    # As if process 1 had taken it.
    machine.write("/var/cache/dnf/metadata_lock.pid", "1")
    try:
        ended = run("ensure", "sis-tool", refresh="true", lock_timeout="1")
    finally:
        machine.path("/var/cache/dnf/metadata_lock.pid").unlink()
    assert (ended.exit_code, ended.outputs) == (1, {})
    assert "metadata already locked by 1" in ended.stderr
    assert "not come free within 1 seconds" in ended.stderr
