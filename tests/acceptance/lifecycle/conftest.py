"""The world that the machines of a run share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sis.stack.postgres import Postgres
from tests.acceptance.lifecycle.world import World
from tests.support.openbao import OpenBaoServer


@pytest.fixture(scope="module")
def world(postgres: Postgres, queue_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Healthy; what a machine leaves behind in it is at rest."""
    postgres.create_database("model", template=queue_template)
    directory = tmp_path_factory.mktemp("world")
    with OpenBaoServer(directory / "openbao") as openbao, World(postgres, "model", openbao, directory) as found:
        yield found
