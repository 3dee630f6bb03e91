"""How the processes of a stack are started."""

from __future__ import annotations

from pathlib import Path

from sis.stack.commands import Services
from sis.stack.layout import Layout
from sis.stack.openbao import OpenBao
from sis.stack.ports import Reservations
from sis.stack.replicas import INTERNAL, Ports
from sis.stack.settings import Settings


def _services(layout: Layout, replicas: int) -> Services:
    layout.create()
    with Reservations() as reservations:
        ports, settings = Ports.take(Settings(replicas=replicas, agents=3), reservations)
    vault = OpenBao(layout.vault, 1, 2, layout.log("vault"))
    return Services(layout, settings, ports, vault, "postgresql:///sis", "digest", {})


def test_a_pairing_code_is_in_no_command_line_environment_or_representation(tmp_path: Path) -> None:
    services = _services(Layout(tmp_path), 1)
    agent = services.agents()[0]
    enrolment = services.enrolment(agent, "sis1-hush")
    assert enrolment.input == b"sis1-hush"
    assert enrolment.arguments[-4:] == ("--hub", services.enrolment_endpoint, "--code", "-")
    assert "hush" not in repr((enrolment, enrolment.arguments, dict(enrolment.environment)))
    assert agent.input == b""


def test_servers_find_every_replica_of_what_they_call(tmp_path: Path) -> None:
    services = _services(Layout(tmp_path), 2)
    by_name = {command.name: command.environment for command in services.servers()}
    assert list(by_name) == [f"{kind}-{n}" for kind in ("credentials", "queue", "hub", "gateway") for n in (1, 2)]
    queues = f"ipv4:{','.join(services.ports.endpoints('queue', INTERNAL))}"
    joining = f"ipv4:{','.join(services.ports.endpoints('credentials'))}"
    for name in ("hub-1", "hub-2", "gateway-1", "gateway-2"):
        prefix = f"SIS_{name[:-2].upper()}_"
        assert by_name[name][prefix + "QUEUE_ENDPOINT"] == queues
        assert by_name[name][prefix + "JOIN_ENDPOINT"] == joining
    keys = {by_name[name]["SIS_GATEWAY_SESSION_KEY_FILE"] for name in ("gateway-1", "gateway-2")}
    assert len(keys) == 1
    listeners = [value for of in by_name.values() for key, value in of.items() if key.endswith("LISTEN")]
    assert len(listeners) == len(set(listeners)) == 2 * 8


def test_agents_begin_with_different_hubs_and_know_all(tmp_path: Path) -> None:
    services = _services(Layout(tmp_path), 2)
    known = [command.environment["SIS_AGENT_HUB_ENDPOINTS"].split(",") for command in services.agents()]
    assert [each[0] for each in known] == [known[0][0], known[1][0], known[0][0]]
    assert len({frozenset(each) for each in known}) == 1
    assert known[0] == known[1][::-1]


def test_another_number_of_replicas_finds_the_first_where_they_were(tmp_path: Path) -> None:
    with Reservations() as reservations:
        two, kept = Ports.take(Settings(replicas=2), reservations)
    with Reservations() as reservations:
        one, kept = Ports.take(kept.model_copy(update={"replicas": 1}), reservations)
    with Reservations() as reservations:
        again, _ = Ports.take(kept.model_copy(update={"replicas": 2}), reservations)
    assert list(one.all()) == [replica for replica in two.all() if replica.number == 1]
    assert again == two
