"""The shipped package `linux.package`, as far as anybody may run it on the machine as it is."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sis.packages import manifest, shipped, values
from tests.integration.packages import disposable_machine
from tests.integration.packages.operation_runner import Runner

PACKAGE = shipped() / "linux.package"

DNF_5 = """\
Updating and loading repositories:
Repositories loaded.
Package                          Arch   Version          Repository      Size
Upgrading:
 curl                            x86_64 8.9.1-3.fc41     updates    453.5 KiB
   replacing curl                x86_64 8.9.1-2.fc41     fedora     793.5 KiB
Installing:
 tree                            x86_64 0:2.1.0-6.fc41   fedora     114.7 KiB
Removing:
 vim-minimal                     x86_64 2:9.1.7-1.fc41   fedora       1.6 MiB
Installing dependencies:
 glibc                           i686   2.40-3.fc41      fedora       6.4 MiB
Skipping packages with conflicts:
 vim-enhanced                    x86_64 2:9.1.8-1.fc41   updates      4.0 MiB
Skipping packages with broken dependencies:
 gvim                            x86_64 2:9.1.8-1.fc41   updates      6.0 MiB

Transaction Summary:
 Installing:         2 packages
 Upgrading:          1 package
"""


@pytest.fixture
def _debian() -> None:
    disposable_machine.require(**{"apt-get": "apt", "dpkg-query": "dpkg"})


def installed_version(name: str) -> str:
    return subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", name], capture_output=True, text=True, timeout=60, check=True
    ).stdout


@pytest.mark.usefixtures("_debian")
def test_versions_are_those_of_this_machine(run: Runner) -> None:
    architecture = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.strip()
    ended = run("linux.package", "query", names=["dpkg", "sis-no-such-package", f"git:{architecture}"])
    assert (ended.exit_code, ended.stderr) == (0, "")
    dpkg, unknown, git = json.loads(ended.outputs["packages"])
    assert (dpkg["name"], dpkg["installed"]) == ("dpkg", installed_version("dpkg"))
    assert unknown == {"name": "sis-no-such-package", "installed": None, "candidate": None}
    assert (git["name"], git["installed"]) == (f"git:{architecture}", installed_version("git"))
    assert all(package["candidate"] is not None for package in (dpkg, git))


@pytest.mark.usefixtures("_debian")
def test_anybody_can_look_at_what_would_change(run: Runner) -> None:
    version = installed_version("git")
    for names, state, expected in [
        (["dpkg", f"git={version}"], "present", None),
        (["sis-no-such-package"], "absent", None),
        (["git"], "absent", {"name": "git", "from": version, "to": None}),
    ]:
        ended = run("linux.package", "check", names=names, state=state)
        assert ended.exit_code == 0, ended.stderr
        found = json.loads(ended.outputs["differences"])
        assert expected in found if expected else found == []
        assert ended.outputs["would_change"] == ("true" if expected else "false")
    assert installed_version("git") == version


@pytest.mark.usefixtures("_debian")
def test_what_cannot_be_meant_fails_in_words(run: Runner) -> None:
    for operation, names, state, message in [
        ("ensure", ["sis-no-such-package"], "present", "no repository has a package called sis-no-such-package"),
        # A pattern and an order to apt, where no package has the name.
        ("check", ["g.t", "git+"], "present", "g.t: correct the name, or set refresh for a newer index\nno repository"),
        ("ensure", ["dpkg", "dpkg=1"], "present", "dpkg is named twice"),
        ("check", ["dpkg=1"], "latest", "dpkg=1: a version goes with the state present only"),
    ]:
        ended = run("linux.package", operation, names=names, state=state)
        assert (ended.exit_code, ended.outputs) == (1, {})
        assert message in ended.stderr


@pytest.mark.usefixtures("_debian")
def test_what_has_failed_is_not_said_to_be_as_asked_for(run: Runner) -> None:
    # There is no such version, and an ordinary user has not the right to look for it.
    ended = run("linux.package", "ensure", names=["dpkg=0~sis"])
    assert (ended.exit_code, ended.outputs["changed"], "apt has failed" in ended.stderr) == (1, "false", True)
    assert "Everything is as asked for" not in ended.stdout
    ended = run("linux.package", "check", names=["dpkg"])
    assert (ended.exit_code, ended.stdout.splitlines()[-1]) == (0, "Everything is as asked for")


def test_what_changes_packages_has_time_to_end_what_it_is_at() -> None:
    """A package manager that is killed while it unpacks leaves a machine that somebody has to mend."""
    operations = manifest.load(PACKAGE).operations
    graces = {name: operation.cancel_grace for name, operation in operations.items()}
    assert graces == {"query": 10, "ensure": 3_600, "check": 10, "upgrade": 3_600}


@pytest.mark.parametrize(
    "name", ["", "-y", "--allow", "git-", "a b", "a\nb", "./a.deb", "/etc", "git*", "@core", "a=", "$(id)"]
)
def test_a_name_is_neither_an_option_nor_a_file_nor_a_pattern(name: str) -> None:
    for operation in manifest.load(PACKAGE).operations.values():
        with pytest.raises(values.InvalidValue, match=r"must match the pattern|a line break"):
            operation.inputs["names"].check([name])


def test_a_transaction_of_dnf_5_is_read() -> None:
    ended = subprocess.run(
        ["awk", "-v", "native=.x86_64", "-f", PACKAGE / "transaction.awk"],
        input=DNF_5,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.splitlines() == [
        "curl\t8.9.1-3.fc41",
        "tree\t2.1.0-6.fc41",
        "vim-minimal\t",
        "glibc.i686\t2.40-3.fc41",
    ]


def test_what_an_output_cannot_hold_is_said() -> None:
    ended = subprocess.run(
        ["awk", "-F", "\t", "-f", PACKAGE / "json.awk", "-f", PACKAGE / "changes.awk"],
        input="".join(f"package-{number}\t1\t2\n" for number in range(2_000)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    held = len(json.loads(ended.stdout))
    assert len(ended.stdout) < 64 * 1024
    assert ended.stderr.startswith(f"{2_000 - held} entries more than the output holds")


def test_versions_are_no_numbers(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_text("longer\t1.1\nshorter\t1e1\nsame\t1.0\n")
    after.write_text("longer\t1.10\nshorter\t10\nsame\t1.0\nzero\t0\n")

    def lines(*arguments: str | Path) -> list[str]:
        return subprocess.run(
            ["awk", "-F", "\t", *arguments, before, after], capture_output=True, text=True, timeout=60, check=True
        ).stdout.splitlines()

    assert lines("-f", PACKAGE / "planned.awk") == ["longer\t1.1\t1.10", "shorter\t1e1\t10", "zero\t\t0"]
    for state, names, expected in [
        ("latest", "longer shorter same", ["upgrade longer", "upgrade shorter"]),
        ("present", "longer=1.10 shorter=10 same=1.0", ["install longer=1.10", "install shorter=10"]),
    ]:
        inputs = ["-v", f"state={state}", "-v", f"names={names}", "-v", "native=:amd64"]
        assert lines(*inputs, "-f", PACKAGE / "versions.awk", "-f", PACKAGE / "wanted.awk") == expected


def test_versions_that_exist_together_are_compared(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_text("kernel\t1\nkernel\t2\nsame\t1\nupgraded\t1\nremoved\t1\n")
    after.write_text("installed\t1\nkernel\t2\nkernel\t3\nmore\t1\nmore\t2\nsame\t1\nupgraded\t2\n")
    ended = subprocess.run(
        ["awk", "-F", "\t", "-f", PACKAGE / "compare.awk", before, after],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert sorted(ended.stdout.splitlines()) == [
        "installed\t\t1",
        "kernel\t1\t3",
        "more\t\t1, 2",
        "removed\t1\t",
        "upgraded\t1\t2",
    ]
