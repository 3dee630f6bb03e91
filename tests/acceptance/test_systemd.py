"""An agent as a service of a real systemd, by the unit that is shipped: on a machine of its own, with a stack."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.packages import disposable_machine
from tests.integration.packages.disposable_machine import Init, Machine
from tests.support.numbered_job import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "sis-agent.service"
DATA = "/var/lib/suite"
SCRIPT = "echo $$ > /run/payload; until [ -e /run/enough ]; do sleep 0.1; done; echo over"


@dataclass(frozen=True)
class Site:
    """A machine with a stack, and with an agent that is a service."""

    machine: Machine

    def sis(self, *arguments: str) -> str:
        return self.machine.run("env", f"SIS_DATA={DATA}", "/opt/sis/bin/sis", *arguments)

    def systemctl(self, *arguments: str) -> None:
        self.machine.run("systemctl", *arguments)

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sis("jobs", "get", job_id, "--json"))
        return found

    def payload(self) -> str:
        """The command line of the payload; "" when it is not there."""
        pid = self.machine.path("/run/payload")
        if not pid.exists() or not (number := pid.read_text().strip()):
            return ""
        return self.machine.attempt("cat", f"/proc/{number}/cmdline").stdout


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with disposable_machine.started(Init.SYSTEMD, tmp_path) as machine:
        machine.run("mkdir", "-p", "/opt")
        machine.run("ln", "-sfn", sys.prefix, "/opt/sis")
        machine.write("/etc/systemd/system/sis-agent.service", UNIT.read_text())
        found = Site(machine)
        found.sis("up", "--detach", "--agents", "1")
        stack = json.loads(machine.path(f"{DATA}/stack.json").read_text())
        code = found.sis("agents", "pair", "--name", "unit-1", "--group", "unit").strip()
        machine.run("/opt/sis/bin/sis-agent", "enrol", "--hub", stack["enrolment_endpoint"], "--code", code)
        found.systemctl("daemon-reload")
        found.systemctl("start", "sis-agent")
        yield found


def test_a_payload_outlives_the_restart_and_the_stop_of_its_agent(site: Site) -> None:
    what = ("--package", "core.shell", "--operation", "run", "--param", f"script={SCRIPT}")
    created = site.sis("jobs", "create", "--name", "long", *what, "--site", "group:unit", "--json")
    job_id = json.loads(created)["jobId"]
    until(lambda: bool(site.payload()), "the payload")
    before = site.machine.path("/run/payload").read_text()
    site.systemctl("restart", "sis-agent")
    assert site.payload()
    site.systemctl("stop", "sis-agent")
    assert site.payload()
    site.systemctl("start", "sis-agent")
    site.machine.write("/run/enough", "")
    until(lambda: site.job(job_id)["status"] == "JOB_STATUS_SUCCEEDED", "the end of the job")
    job = site.job(job_id)
    assert job["attempt"] == 1
    assert (job["stopEvidence"]["method"], job["stopEvidence"]["treeEmpty"]) == ("cgroup", True)
    assert site.machine.path("/run/payload").read_text() == before
    assert site.sis("jobs", "output", job_id) == "over\n"
