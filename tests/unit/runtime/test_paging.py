"""A token goes on where it says, for the request that it was made for; anything else is an invalid token."""

from __future__ import annotations

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.queue import logs
from services.queue.logs import Position
from services.runtime import paging
from services.runtime.paging import InvalidToken

KINDS: tuple[type, ...] = (str, int)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 2**62), st.binary())
def test_a_token_gives_its_position_back(key: str, number: int, request: bytes) -> None:
    token = paging.encode([key, number], request)
    if len(token) <= paging.TOKEN_CHARACTERS:
        assert paging.decode(token, request, "page_token", KINDS) == [key, number]


def test_a_token_of_the_longest_name_is_taken_back() -> None:
    name = "\N{PARTY POPPER}" * 255
    assert paging.decode(paging.encode([name, 1], b""), b"", "page_token", KINDS) == [name, 1]


@given(st.text())
def test_garbage_is_an_invalid_token(token: str) -> None:
    with pytest.raises(InvalidToken):
        paging.decode(token, b"request", "page_token", KINDS)


@given(json_values)
def test_any_document_in_the_shape_of_a_token_is_an_invalid_token(value: object) -> None:
    token = base64.urlsafe_b64encode(json.dumps(value).encode()).decode()
    with pytest.raises(InvalidToken):
        paging.decode(token, b"request", "page_token", KINDS)


@given(st.lists(st.integers() | st.text(max_size=3) | st.booleans() | st.none(), max_size=4))
def test_a_position_of_other_kinds_is_an_invalid_token(position: list[object]) -> None:
    token = paging.encode(position, b"request")
    try:
        found = paging.decode(token, b"request", "page_token", KINDS)
    except InvalidToken:
        return
    assert found == position and [type(part) for part in position] == [str, int]


@given(st.integers(0, 200), st.characters(codec="ascii"))
def test_a_changed_token_is_never_another_position(at: int, character: str) -> None:
    token = paging.encode(["key", 5], b"request")
    changed = token[: at % len(token)] + character + token[at % len(token) + 1 :]
    with contextlib.suppress(InvalidToken):
        assert paging.decode(changed, b"request", "page_token", KINDS) == ["key", 5]


def test_an_edited_position_is_an_invalid_token() -> None:
    """Whoever unpacks a token and writes another position into it gets no server fault out of the database."""
    raw = paging.encode(["2026-01-01", 5], b"request")
    parts = json.loads(base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)))
    forged = [*parts[:-2], "not a time", 5]
    token = base64.urlsafe_b64encode(json.dumps(forged, separators=(",", ":")).encode()).decode().rstrip("=")
    with pytest.raises(InvalidToken):
        paging.decode(token, b"request", "page_token", KINDS)


def test_a_token_of_another_request_is_refused_and_the_field_named() -> None:
    token = paging.encode(["a", 1], b"one request")
    with pytest.raises(InvalidToken) as caught:
        paging.decode(token, b"another", "page_token", KINDS)
    assert [v.field for v in caught.value.violations] == ["page_token"]
    assert "begin again" in caught.value.message


def test_deep_nesting_is_an_invalid_token() -> None:
    token = base64.urlsafe_b64encode(b"[" * 1_400).decode()
    with pytest.raises(InvalidToken):
        paging.decode(token, b"request", "page_token", KINDS)


@given(st.builds(Position, st.integers(0, 2**31), st.integers(0, 2**31), st.integers(0, 2**62)), st.integers(1, 2**62))
def test_a_resume_token_gives_its_position_back_for_its_own_job(position: Position, job_id: int) -> None:
    token = logs.to_token(job_id, position)
    assert logs.from_token(job_id, token) == position
    with pytest.raises(InvalidToken, match="resume_token"):
        logs.from_token(job_id + 1, token)


def test_no_token_is_the_start() -> None:
    assert logs.from_token(1, "") == Position()
