"""The search for the secret of the matrix finds it, and notices when it looks at nothing."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.crash.scenarios import MARK, SECRET
from tests.crash.secrecy import Secrecy
from tests.support.stack import Stack


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """A site that has job 7 in hand, which has printed its secret."""
    found = Stack(tmp_path / "data")
    attempt = found.layout.agent("local-1") / "attempts" / "7.1"
    attempt.mkdir(parents=True)
    (attempt / "spool").write_bytes(b"\x01" + MARK + b" ***.\n")
    return found


def test_all_is_well_where_there_is_none(stack: Stack) -> None:
    Secrecy(stack).check_site(7, lambda: True)


@pytest.mark.parametrize(
    "form", [SECRET, SECRET.hex().encode(), base64.b64encode(b"x" + SECRET)], ids=["plain", "hex", "base64"]
)
@pytest.mark.parametrize("place", ["attempts/7.1/spool", "journal", "attempts/6.1/order"])
def test_it_is_found_at_the_site_in_any_form(stack: Stack, form: bytes, place: str) -> None:
    path = stack.layout.agent("local-1") / place
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(b"\x02" + form)
    with pytest.raises(AssertionError, match="has leaked"):
        Secrecy(stack).check_site(7, lambda: True)


def test_a_search_that_could_have_found_nothing_is_none(stack: Stack) -> None:
    with pytest.raises(AssertionError, match="no secret could have been found"):
        Secrecy(stack).check_site(8, lambda: True)
    Secrecy(stack).check_site(8, lambda: False)
