"""The suite's images, for the tests that run them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import podman
from tests.support.podman import Podman


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """A Podman that has them."""
    podman.require()
    with Podman(tmp_path_factory.mktemp("podman")) as found:
        found.build_suite()
        found.build_servers()
        yield found
