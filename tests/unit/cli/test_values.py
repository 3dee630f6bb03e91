from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sis.cli import values
from sis.cli.values import OptionError

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86_400), ("1h30m", 5400), ("250ms", 0.25), ("1.5m", 90)],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.duration("--timeout", text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "s", "-5m", "5 m", "5x", "1h2", "9" * 400 + "d"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(OptionError, match=r"^--timeout: "):
        values.duration("--timeout", text)


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("512B", 512), ("64KiB", 65_536), ("1MiB", 1 << 20), ("007", 7)]
)
def test_sizes(text: str, expected: int) -> None:
    assert values.size("--tail", text) == expected


@pytest.mark.parametrize("text", ["", "0", "0KiB", "-1", "1.5MiB", "64 KiB", "64kb", "KiB", "9" * 30, "9" * 18 + "MiB"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(OptionError, match=r"^--tail: .*64KiB"):
        values.size("--tail", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("+5m", NOW + timedelta(minutes=5)),
        ("2026-12-31T18:00:00Z", datetime(2026, 12, 31, 18, tzinfo=UTC)),
        ("2026-12-31T18:00:00+01:00", datetime(2026, 12, 31, 17, tzinfo=UTC)),
        ("2026-12-31t18:00:00.123456789z", datetime(2026, 12, 31, 18, 0, 0, 123456, tzinfo=UTC)),
    ],
)
def test_times(text: str, expected: datetime) -> None:
    assert values.time("--not-before", text, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "+", "+5", "tomorrow", "2026-12-31", "2026-12-31T18:00:00", "2026-13-31T18:00:00Z", "+99999999d"]
)
def test_bad_times_show_how_to_write_one(text: str) -> None:
    with pytest.raises(OptionError, match=r"^--not-before: .*\+5m"):
        values.time("--not-before", text, NOW)


def test_times_that_have_passed() -> None:
    assert values.past_time("--completed-before", "-30d", NOW) == NOW - timedelta(days=30)
    assert values.past_time("--completed-before", "2026-01-01T00:00:00Z", NOW) == datetime(2026, 1, 1, tzinfo=UTC)
    for text in ("", "30d", "+30d", "-", "-99999999d"):
        with pytest.raises(OptionError, match=r"^--completed-before: .*-30d"):
            values.past_time("--completed-before", text, NOW)


def test_parameters(tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text("echo é\n")
    found = values.parameters(["a=1", "b=x=y", "c=", "l=1", "l=2", f"s=@{script}", "at=@@home"])
    assert found["a"].plain == "1"
    assert found["b"].plain == "x=y"
    assert found["c"].WhichOneof("value") == "plain"
    assert list(found["l"].list.items) == ["1", "2"]
    assert found["s"].plain == "echo é\n"
    assert found["at"].plain == "@home"


@pytest.mark.parametrize("text", ["", "a", "=1"])
def test_a_parameter_needs_name_and_value(text: str) -> None:
    with pytest.raises(OptionError, match="name=value"):
        values.parameters([text])


def test_parameter_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    for value, problem in {
        f"@{tmp_path}/none": "No such file",
        f"@{tmp_path}": "Is a directory",
        f"@{tmp_path}/latin": "not UTF-8",
        "@\0": "not a path",
    }.items():
        with pytest.raises(OptionError, match=f"--param p: .*{problem}"):
            values.parameters([f"p={value}"])


def test_sites() -> None:
    assert values.site("agent:web-1").agent == "web-1"
    assert values.site("group:local").group == "local"
    for text in ("", "local", "agent:", "hub:x"):
        with pytest.raises(OptionError, match="agent:NAME or group:NAME"):
            values.site(text)


def test_packages() -> None:
    assert values.package("--package", "core.shell").version == ""
    assert values.package("--package", "core.shell@1.2.3").version == "1.2.3"
    for text in ("", "@1", "core.shell@"):
        with pytest.raises(OptionError, match="NAME@VERSION"):
            values.package("--package", text)


def test_the_version_of_a_package_is_given_in_one_of_two_ways() -> None:
    for text, option in [("p@1.0.0", ""), ("p", "1.0.0"), ("p@1.0.0", "1.0.0")]:
        assert values.package_version(text, option).version == "1.0.0"
    with pytest.raises(OptionError, match=r"--version: 'p@1\.0\.0' has a version already"):
        values.package_version("p@1.0.0", "2.0.0")


def test_a_label_is_given_once() -> None:
    assert values.named_once("--label", ["a=1", "b="]) == {"a": "1", "b": ""}
    with pytest.raises(OptionError, match="twice"):
        values.named_once("--label", ["a=1", "a=2"])
