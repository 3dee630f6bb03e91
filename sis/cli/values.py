"""The values that people type: durations, times, parameters, site targets. Pure but for `k=@file` and `file`.

Each parser raises OptionError, whose text names the option and shows how to write it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sis.paths import expanded
from sis.queue.v1 import job_pb2

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SIZE_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}
_SIZE = re.compile(r"([0-9]{1,19})(B|KiB|MiB)?")
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?([Zz]|[+-]\d\d:\d\d)")
_TIMES = "2026-12-31T18:00:00Z, 2026-12-31T18:00:00+01:00"
FILE_BYTES = 16 * 1024 * 1024
"""What a parameter file may hold at most; the server's own limit is far below and names the parameter."""


class OptionError(Exception):
    """A value that cannot be understood."""


def duration(option: str, text: str) -> timedelta:
    """ "30s", "5m", "2h", "1h30m", "1d"."""
    if not _DURATION.fullmatch(text):
        raise OptionError(f"{option}: {text!r} is not a duration; write it like 30s, 5m, 2h or 1h30m")
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text)))
    except OverflowError:
        raise OptionError(f"{option}: {text!r} is too long") from None


def size(option: str, text: str) -> int:
    """ "512", "512B", "64KiB", "1MiB", as bytes; at least one."""
    match = _SIZE.fullmatch(text)
    count = int(match[1]) * _SIZE_UNITS[match[2] or "B"] if match else 0
    if not 0 < count < 2**63:
        raise OptionError(f"{option}: {text!r} is not a size; write it like 512B, 64KiB or 1MiB")
    return count


def time(option: str, text: str, now: datetime) -> datetime:
    """An RFC 3339 time, or one from now: "+5m"."""
    try:
        return now + duration(option, text[1:]) if text.startswith("+") else _moment(text)
    except (OptionError, ValueError, OverflowError):
        raise OptionError(f"{option}: {text!r} is not a time; write {_TIMES}, +5m or +2h") from None


def past_time(option: str, text: str, now: datetime) -> datetime:
    """An RFC 3339 time, or one before now: "-30d"."""
    try:
        return now - duration(option, text[1:]) if text.startswith("-") else _moment(text)
    except (OptionError, ValueError, OverflowError):
        raise OptionError(f"{option}: {text!r} is not a time; write {_TIMES}, -30d or -12h") from None


def _moment(text: str) -> datetime:
    if not _RFC_3339.fullmatch(text):
        raise ValueError(text)
    # Python 3.11 takes at most six digits of a second.
    trimmed = re.sub(r"(\.\d{6})\d+", r"\1", text.upper().replace(" ", "T"))
    return datetime.fromisoformat(trimmed).astimezone(UTC)


def pairs(option: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    """`k=v` each; the value may be empty or hold further signs of equality."""
    found = []
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise OptionError(f"{option}: {text!r} is not of the form name=value")
        found.append((key, value))
    return found


def named_once(option: str, texts: Iterable[str]) -> dict[str, str]:
    """`k=v` each, every key once."""
    found: dict[str, str] = {}
    for key, value in pairs(option, texts):
        if key in found:
            raise OptionError(f"{option}: {key!r} is given twice")
        found[key] = value
    return found


def parameters(texts: Iterable[str]) -> dict[str, job_pb2.ParameterValue]:
    """`k=v` each; a key that is given again makes a list; `k=@file` reads a file, `k=@@v` means "@v"."""
    found: dict[str, list[str]] = {}
    for key, value in pairs("--param", texts):
        if value.startswith("@@"):
            value = value[1:]
        elif value.startswith("@"):
            value = _text(key, expanded(value[1:]))
        found.setdefault(key, []).append(value)
    return {
        key: job_pb2.ParameterValue(plain=values[0])
        if len(values) == 1
        else job_pb2.ParameterValue(list=job_pb2.StringList(items=values))
        for key, values in found.items()
    }


def file(option: str, key: str, path: str) -> job_pb2.FileValue:
    """The file at a path as a value, under its own name."""
    from sis.packages.values import MAX_FILE_BYTES  # brings what the quick commands do not need

    place = expanded(path)
    content = _read(f"{option} {key}", place, MAX_FILE_BYTES, f"a file has at most {MAX_FILE_BYTES >> 20} MiB")
    return job_pb2.FileValue(name=place.name, content=content)


def _text(key: str, path: Path) -> str:
    data = _read(f"--param {key}", path, FILE_BYTES, "a value holds at most 64 KiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise OptionError(f"--param {key}: {path} is not UTF-8 text (byte {error.start})") from None


def _read(option: str, path: Path, limit: int, rule: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise OptionError(f"{option}: {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise OptionError(f"{option}: {str(path)!r} is not a path") from None
    if len(data) > limit:
        raise OptionError(f"{option}: {path} is too large; {rule}")
    return data


def site(text: str) -> job_pb2.SiteTarget:
    """ "agent:NAME" or "group:NAME"."""
    kind, _, name = text.partition(":")
    if name and kind == "agent":
        return job_pb2.SiteTarget(agent=name)
    if name and kind == "group":
        return job_pb2.SiteTarget(group=name)
    raise OptionError(f"--site: {text!r} is not a site target; write agent:NAME or group:NAME")


def package(option: str, text: str) -> job_pb2.PackageReference:
    """ "NAME" (the highest version) or "NAME@VERSION"."""
    name, sign, version = text.partition("@")
    if not name or (sign and not version):
        raise OptionError(f"{option}: {text!r} is not a package; write NAME or NAME@VERSION")
    return job_pb2.PackageReference(name=name, version=version)


def package_version(text: str, version: str) -> job_pb2.PackageReference:
    """A package that is an argument, whose version may be an option."""
    found = package("PACKAGE", text)
    if version and found.version not in ("", version):
        raise OptionError(f"--version: {text!r} has a version already; give one of the two")
    return job_pb2.PackageReference(name=found.name, version=version or found.version)
