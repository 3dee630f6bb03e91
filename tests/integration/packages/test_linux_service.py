"""The shipped package `linux.service`, run for real: with a systemd that has booted, and with a script in
/etc/init.d."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sis.packages import manifest, shipped, values
from tests.integration.packages import disposable_machine, operation_runner
from tests.integration.packages.disposable_machine import Init, Machine
from tests.integration.packages.operation_runner import Run, Runner

UNIT = """
[Unit]
DefaultDependencies=no
[Service]
{service}
[Install]
WantedBy=nothing.target
"""
AS_PROGRAM = "Type=exec"
"""Of a service that is active once it is the program, not when it is only forked."""

SCRIPT = """#!/bin/sh
### BEGIN INIT INFO
# Provides:          sis-sleeper
# Required-Start:
# Required-Stop:
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: For a test
### END INIT INFO
pid_file=/run/sis-sleeper.pid
running() { [ -e $pid_file ] && kill -0 "$(cat $pid_file)" 2> /dev/null; }
stop() { running && kill "$(cat $pid_file)"; rm -f $pid_file; }
start() {
    running && return
    [ ! -e /etc/broken ] || { echo "sis-sleeper is broken"; return 1; }
    [ ! -e /etc/slow ] || sleep 1000
    sleep 1000 > /dev/null 2>&1 &
    echo $! > $pid_file
}
case $1 in
    start) start ;;
    stop) stop ;;
    restart) stop; start ;;
    reload) running && echo reloaded >> /run/reloads ;;
    status)
        [ ! -e /etc/confused ] || exit 4
        [ ! -e /etc/stuck ] || sleep 1000
        running || exit 3
        ;;
esac
"""

Operation = Callable[..., Run]


def on(machine: Machine, shared: Path) -> Operation:
    """`run(operation, **inputs)` of the package, there."""

    def run(operation: str, **inputs: str) -> Run:
        return operation_runner.run(shared, "linux.service", operation, None, machine.enter, **inputs)

    return run


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def systemd(shared: Path) -> Iterator[Machine]:
    with disposable_machine.started(Init.SYSTEMD, shared) as machine:
        yield machine


@pytest.fixture
def sysv(shared: Path) -> Iterator[Machine]:
    disposable_machine.require(at="at", atd="at")
    with disposable_machine.started(Init.NONE, shared) as machine:
        machine.write("/etc/init.d/sis-sleeper", SCRIPT, 0o755)
        yield machine


def add_unit(machine: Machine, name: str, *service: str) -> None:
    machine.write(f"/etc/systemd/system/{name}.service", UNIT.format(service="\n".join(service)))


def differences(run: Run) -> list[tuple[str, str, str]]:
    assert run.exit_code == 0, run.stderr
    found = [(entry["name"], entry["from"], entry["to"]) for entry in json.loads(run.outputs["differences"])]
    assert run.outputs["would_change"] == ("true" if found else "false")
    return found


def succeeded(run: Run) -> dict[str, str]:
    assert run.exit_code == 0, run.stderr
    return run.outputs


def test_a_service_that_does_not_exist(run: Runner) -> None:
    for operation in ("status", "check", "ensure"):
        ended = run("linux.service", operation, name="no-such-service")
        assert (ended.exit_code, ended.outputs) == (1, {})
        assert "there is no service called no-such-service" in ended.stderr


@pytest.mark.parametrize("name", ["--force", "../passwd", "a/b", "ss*", "a b", "a\nb", "$(id)"])
def test_a_name_is_neither_an_option_nor_a_path_nor_a_pattern(name: str) -> None:
    for operation in manifest.load(shipped() / "linux.service").operations.values():
        with pytest.raises(values.InvalidValue, match="must match the pattern"):
            operation.inputs["name"].check(name)


@pytest.mark.root
def test_systemd_services_become_what_is_asked_for(systemd: Machine, shared: Path) -> None:
    run = on(systemd, shared)
    add_unit(systemd, "sis-sleeper", AS_PROGRAM, "ExecStart=/bin/sleep 1000", "ExecReload=/bin/touch /run/reloaded")
    outputs = succeeded(run("status", name="sis-sleeper"))
    assert outputs == {"active": "false", "enabled": "false", "state": "inactive (dead), disabled"}

    wanted = {"name": "sis-sleeper", "state": "started", "enabled": "yes"}
    for _ in range(2):
        assert differences(run("check", **wanted)) == [("state", "stopped", "started"), ("enabled", "no", "yes")]
    outputs = succeeded(run("ensure", **wanted))
    main_pid = systemd.run("systemctl", "show", "-p", "MainPID", "--value", "sis-sleeper").strip()
    now = {"active": "true", "enabled": "true", "state": "active (running), enabled", "main_pid": main_pid}
    assert outputs == {"changed": "true", **now}
    assert systemd.run("cat", f"/proc/{main_pid}/comm") == "sleep\n"
    assert differences(run("check", **wanted)) == []
    assert succeeded(run("ensure", **wanted)) == {"changed": "false", **now}
    assert succeeded(run("status", name="sis-sleeper.service")) == now

    reload = {"name": "sis-sleeper", "state": "reloaded"}
    assert differences(run("check", **reload)) == [("state", "started", "reloaded")]
    assert not systemd.path("/run/reloaded").exists()
    assert succeeded(run("ensure", **reload)) == {"changed": "true", **now}
    assert systemd.path("/run/reloaded").exists()

    # Started anew, by the unit as it is now.
    add_unit(systemd, "sis-sleeper", AS_PROGRAM, "ExecStart=/bin/sleep 2000")
    outputs = succeeded(run("ensure", name="sis-sleeper", state="restarted", enabled="no"))
    assert (outputs["changed"], outputs["state"]) == ("true", "active (running), disabled")
    assert systemd.run("cat", f"/proc/{outputs['main_pid']}/cmdline") == "/bin/sleep\0002000\0"

    assert succeeded(run("ensure", name="sis-sleeper", state="stopped"))["changed"] == "true"
    assert succeeded(run("ensure", name="sis-sleeper", state="stopped"))["changed"] == "false"
    assert succeeded(run("status", name="sis-sleeper"))["active"] == "false"

    # By another name, too.
    systemd.run("ln", "-s", "sis-sleeper.service", "/etc/systemd/system/sis-alias.service")
    for name in ("sis-alias", "sis-sleeper"):
        outputs = succeeded(run("status", name=name))
        assert (outputs["active"], outputs["enabled"]) == ("false", "false")
    assert differences(run("check", name="sis-alias", enabled="yes")) == [("enabled", "no", "yes")]
    assert succeeded(run("ensure", **{**wanted, "name": "sis-alias"}))["state"] == "active (running), enabled"
    assert succeeded(run("status", name="sis-sleeper"))["enabled"] == "true"
    outputs = succeeded(run("ensure", name="sis-alias", state="stopped", enabled="no"))
    assert (outputs["changed"], outputs["active"], outputs["enabled"]) == ("true", "false", "false")


@pytest.mark.root
def test_a_unit_is_disabled_by_a_name_that_goes_with_it(systemd: Machine, shared: Path) -> None:
    run = on(systemd, shared)
    unit = UNIT.format(service="ExecStart=/bin/sleep 1000") + "Alias=sis-also.service\n"
    systemd.write("/etc/systemd/system/sis-named.service", unit)
    assert succeeded(run("ensure", name="sis-named", enabled="yes"))["enabled"] == "true"
    outputs = succeeded(run("ensure", name="sis-also", enabled="no"))
    assert (outputs["changed"], outputs["state"]) == ("true", "inactive (dead), disabled")
    assert not systemd.path("/etc/systemd/system/sis-also.service").is_symlink()


@pytest.mark.root
def test_a_unit_that_only_has_others_enabled(systemd: Machine, shared: Path) -> None:
    run = on(systemd, shared)
    add_unit(systemd, "sis-other", "ExecStart=/bin/sleep 1000")
    unit = "[Service]\nExecStart=/bin/sleep 1000\n[Install]\nAlso=sis-other.service\n"
    systemd.write("/etc/systemd/system/sis-indirect.service", unit)
    outputs = succeeded(run("ensure", name="sis-indirect", enabled="yes"))
    assert (outputs["changed"], outputs["state"]) == ("true", "inactive (dead), indirect")
    assert succeeded(run("status", name="sis-other"))["enabled"] == "true"


@pytest.mark.root
def test_a_systemd_that_does_not_answer_is_not_taken_for_one_that_says_no(systemd: Machine, shared: Path) -> None:
    add_unit(systemd, "sis-unanswered", "ExecStart=/bin/sleep 1000")
    # As if the question after that had taken longer than it may.
    shim = '#!/bin/sh\ncase "$*" in *is-enabled*) exit 124 ;; esac\nexec /usr/bin/timeout "$@"\n'
    systemd.write("/usr/local/sbin/timeout", shim, 0o755)
    try:
        ended = on(systemd, shared)("check", name="sis-unanswered", enabled="no")
    finally:
        systemd.path("/usr/local/sbin/timeout").unlink()
    assert (ended.exit_code, ended.outputs) == (1, {})
    assert "systemd does not say whether sis-unanswered is enabled" in ended.stderr


@pytest.mark.root
def test_what_systemd_cannot_do_fails_in_words(systemd: Machine, shared: Path) -> None:
    run = on(systemd, shared)
    add_unit(systemd, "sis-broken", "Type=oneshot", "ExecStart=/bin/false")
    add_unit(systemd, "sis-slow", "Type=oneshot", "ExecStart=/bin/sleep 1000")
    add_unit(systemd, "sis-fixed", "ExecStart=/bin/sleep 1000")
    systemd.run("systemctl", "mask", "sis-masked")
    systemd.run("systemctl", "start", "sis-fixed")
    began = {"changed": "true"}
    for inputs, outputs, message in [
        ({"name": "sis-broken", "state": "started"}, began, "status=1/FAILURE"),
        ({"name": "sis-slow", "state": "started", "timeout": "1"}, began, "sis-slow has not done it within 1 seconds"),
        ({"name": "sis-fixed", "state": "reloaded"}, {}, "sis-fixed does not reload"),
        ({"name": "sis-masked", "state": "started"}, {}, "Unit sis-masked.service is masked"),
        ({"name": "sis-masked", "enabled": "yes"}, {}, "sis-masked cannot be set to enabled: yes"),
        ({"name": "systemd-journald", "enabled": "yes"}, {}, "cannot be set to enabled: yes; it is: "),
    ]:
        ended = run("ensure", **inputs)
        assert (ended.exit_code, ended.outputs) == (1, outputs), inputs
        assert message in ended.stderr
    # Stopped, and not started again.
    add_unit(systemd, "sis-fixed", "ExecStart=/bin/false", "Type=oneshot")
    ended = run("ensure", name="sis-fixed", state="restarted")
    assert (ended.exit_code, ended.outputs) == (1, began)
    # What is done by then is told.
    ended = run("ensure", name="sis-broken", state="started", enabled="yes")
    assert (ended.exit_code, ended.outputs) == (1, {"changed": "true"})
    assert differences(run("check", name="sis-slow", state="stopped")) == [("state", "activating", "stopped")]
    assert succeeded(run("ensure", name="sis-slow", state="stopped"))["active"] == "false"


@pytest.mark.root
def test_scripts_of_services_are_used_without_systemd(sysv: Machine, shared: Path) -> None:
    run = on(sysv, shared)
    wanted = {"name": "sis-sleeper", "state": "started", "enabled": "yes"}
    assert differences(run("check", **wanted)) == [("state", "stopped", "started"), ("enabled", "no", "yes")]
    sysv.run("atd")
    outputs = succeeded(run("ensure", **wanted))
    main_pid = sysv.path("/run/sis-sleeper.pid").read_text().strip()
    now = {"active": "true", "enabled": "true", "state": "started, enabled", "main_pid": main_pid}
    assert outputs == {"changed": "true", **now}
    # No child of the job, which would be ended with it.
    assert sysv.run("cat", f"/proc/{main_pid}/stat").split()[3] == "1"
    assert sysv.path("/etc/rc2.d").exists()
    assert list(sysv.path("/etc/rc2.d").glob("S??sis-sleeper"))
    assert differences(run("check", **wanted)) == []
    assert succeeded(run("ensure", **wanted)) == {"changed": "false", **now}
    assert succeeded(run("status", name="sis-sleeper")) == now

    assert succeeded(run("ensure", name="sis-sleeper", state="reloaded"))["changed"] == "true"
    assert sysv.path("/run/reloads").read_text() == "reloaded\n"
    outputs = succeeded(run("ensure", name="sis-sleeper", state="restarted", enabled="no"))
    assert (outputs["changed"], outputs["state"]) == ("true", "started, not enabled")
    assert outputs["main_pid"] != main_pid
    assert succeeded(run("ensure", name="sis-sleeper", enabled="yes"))["enabled"] == "true"
    assert succeeded(run("ensure", name="sis-sleeper", state="stopped"))["active"] == "false"
    assert succeeded(run("ensure", name="sis-sleeper", state="stopped"))["changed"] == "false"

    sysv.write("/etc/slow", "")
    ended = run("ensure", name="sis-sleeper", state="started", timeout="1")
    assert (ended.exit_code, ended.outputs) == (1, {"changed": "true"})
    assert "sis-sleeper has not done it within 1 seconds" in ended.stderr
    sysv.write("/etc/broken", "")
    ended = run("ensure", name="sis-sleeper", state="started")
    assert (ended.exit_code, ended.stdout, ended.outputs) == (1, "sis-sleeper is broken\n", {"changed": "true"})
    assert "sis-sleeper does not start" in ended.stderr
    sysv.write("/etc/stuck", "")
    # Every bound is a second there.
    sysv.write("/usr/local/sbin/timeout", '#!/bin/sh\nshift\nexec /usr/bin/timeout 1 "$@"\n', 0o755)
    ended = run("status", name="sis-sleeper")
    assert (ended.exit_code, ended.outputs) == (1, {})
    assert "its status has not ended within 60 seconds" in ended.stderr
    sysv.write("/etc/confused", "")
    ended = run("status", name="sis-sleeper")
    assert (ended.exit_code, "cannot tell whether sis-sleeper runs" in ended.stderr) == (1, True)


@pytest.mark.root
def test_without_systemd_and_atd_nothing_is_started_that_would_end_with_the_job(sysv: Machine, shared: Path) -> None:
    ended = on(sysv, shared)("ensure", name="sis-sleeper", state="started")
    assert (ended.exit_code, ended.outputs) == (1, {})
    assert "what a job starts itself ends with the job" in ended.stderr
    assert not sysv.path("/run/sis-sleeper.pid").exists()
