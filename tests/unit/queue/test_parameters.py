"""The values of inputs: as requests have them, as rows keep them, as they are shown and handed out."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from services.queue import parameters
from services.queue.convert import parameters as convert
from services.queue.credentials import CredentialUse
from services.runtime.errors import InvalidArgument
from services.runtime.fields import Violations
from sis.packages.values import MAX_FILE_BYTES, File, Value
from sis.queue.v1 import job_pb2

CONTENT = bytes(range(256)) * 3
FILE = File("grüße.bin", CONTENT)
VALUES: dict[str, Value] = {"text": "ä\nb", "items": ["a", ""], "nothing": [], "file": FILE, "empty": File("e", b"")}
USES = [CredentialUse("param.secret", "db", ()), CredentialUse("admin", "root", ())]


def given(**values: job_pb2.ParameterValue) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Values, credentials, and the fields that are wrong."""
    wrong = Violations()
    found, named = convert.given(wrong, values)
    try:
        wrong.refuse()
    except InvalidArgument as error:
        return found, named, [violation.field for violation in error.violations]
    return found, named, []


def test_rows_keep_values_as_they_are() -> None:
    rows = parameters.to_rows(VALUES)
    assert parameters.from_rows(json.loads(json.dumps(rows))) == VALUES
    assert rows["text"] == "ä\nb" and rows["items"] == ["a", ""]
    assert rows["file"]["file"]["size_bytes"] == len(CONTENT)


def test_what_is_handed_out_is_what_was_given() -> None:
    whole = convert.whole(parameters.to_rows(VALUES), USES)
    assert given(**whole) == (VALUES, {"secret": "db"}, [])


def test_what_is_shown_tells_of_files_without_their_contents() -> None:
    rows = parameters.to_rows(VALUES)
    shown = convert.shown(rows, USES)
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert shown["file"].file == job_pb2.FileValue(name="grüße.bin", size_bytes=len(CONTENT), sha256=digest)
    whole = convert.whole(rows, USES)
    assert {name: value for name, value in shown.items() if not value.HasField("file")} == {
        name: value for name, value in whole.items() if not value.HasField("file")
    }
    for name in ("file", "empty"):
        del rows[name]["file"]["content"]  # as the database gives them to be shown
    assert convert.shown(rows, USES) == shown


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "x" * 256},
        {"name": "a/b"},
        {"name": "a\\b"},
        {"name": ".."},
        {"name": "a\nb"},
        {"name": "a\0"},
        {"name": "a", "content": bytes(MAX_FILE_BYTES + 1)},
        {"name": "a", "size_bytes": 5, "sha256": "0" * 64},
    ],
)
def test_a_wrong_file_is_named(wrong: dict[str, Any]) -> None:
    assert given(x=job_pb2.ParameterValue(file=job_pb2.FileValue(**wrong)))[2] == ["parameters.x"]


def test_what_a_job_shows_of_an_empty_file_may_be_given() -> None:
    file = convert.shown(parameters.to_rows(VALUES), [])["empty"]
    assert given(empty=file)[::2] == ({"empty": File("e", b"")}, [])
