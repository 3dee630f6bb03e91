"""How the processes of a stack are started."""

from __future__ import annotations

from pathlib import Path

from sis.stack.commands import Ports, Services
from sis.stack.layout import Layout
from sis.stack.openbao import OpenBao
from sis.stack.settings import Settings


def test_a_pairing_code_is_in_no_command_line_environment_or_representation(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.create()
    ports = Ports(1, 2, 3, 4, 5, 6, hubs=(7,), hub_agents=(8,), hub_enrolments=(9,), gateway=10, metrics={})
    vault = OpenBao(layout.vault, 1, 2, layout.log("vault"))
    services = Services(layout, Settings(), ports, vault, "postgresql:///sis", "digest", {})
    (agent,) = services.agents()
    enrolment = services.enrolment(agent, "sis1-hush")
    assert enrolment.input == b"sis1-hush"
    assert enrolment.arguments[-4:] == ("--hub", "127.0.0.1:9", "--code", "-")
    assert "hush" not in repr((enrolment, enrolment.arguments, dict(enrolment.environment)))
    assert agent.input == b""
