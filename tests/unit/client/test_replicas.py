"""What a client expects of the certificates of one server, and of several."""

from __future__ import annotations

import pytest

from sis.client.service_config import options

NAME = "grpc.ssl_target_name_override"


@pytest.mark.parametrize("target", ["ipv4:10.0.0.1:7401,10.0.0.2:7401", "ipv6:[::1]:7401,[::2]:7401"])
def test_replicas_have_to_be_the_service(target: str) -> None:
    assert dict(options(target, "queue"))[NAME] == "queue"


@pytest.mark.parametrize("target", ["queue.example:7401", "127.0.0.1:7401", "[::1]:7401"])
def test_a_server_has_to_be_the_host(target: str) -> None:
    assert NAME not in dict(options(target, "queue"))
