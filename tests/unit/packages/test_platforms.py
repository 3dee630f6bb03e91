"""Which agent a package is for."""

from __future__ import annotations

import pytest

from services.queue.convert.dispatch import open_session
from sis.packages import platforms
from sis.queue.v1 import dispatch_service_pb2 as pb


@pytest.mark.parametrize(
    ("platform", "wanted", "fits"),
    [
        ("linux", ["linux"], True),
        ("windows", ["linux", "windows"], True),
        ("linux", ["windows"], False),
        ("freebsd13", ["linux"], False),
        ("", ["windows"], True),
    ],
)
def test_an_agent_fits_where_nothing_speaks_against_it(platform: str, wanted: list[str], fits: bool) -> None:
    assert platforms.fits(platform, wanted) is fits


@pytest.mark.parametrize(
    ("reported", "known"), [("linux", "linux"), ("darwin", "darwin"), ("win32", "windows"), ("", "")]
)
def test_a_hello_is_read_with_the_names_of_packages(reported: str, known: str) -> None:
    hello = pb.AgentHello(journal_id="j", slots=1, platform=reported)
    request = pb.OpenSessionRequest(agent=pb.AgentIdentity(name="a", group="g"), hub="h", hello=hello)
    assert open_session(request).platform == known
