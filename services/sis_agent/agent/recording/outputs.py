"""What a payload gives back through its files: output parameters (SIS_OUTPUT) and progress (SIS_PROGRESS). The rules
of a name and a value are those of `output_markers` as well.

    name=value              up to the end of the line
    name<<MARK              the lines up to one that is MARK; MARK is any text without blanks
    ...
    MARK

The last value given for a name counts. Empty lines are passed over.

Secrets are found in the file as it is, and masked in each part of it before that is changed, decoded or cut.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from services.sis_agent.agent.secrecy.masking import Masker

MAX_FILE_BYTES: Final = 1 << 20
MAX_VALUE_BYTES: Final = 64 << 10
MAX_NAMES: Final = 200
MAX_NAME_BYTES: Final = 100
MAX_PROBLEMS: Final = 20
MAX_PROGRESS_CHARACTERS: Final = 200

_NAME: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_.-]{0,99}")
_ENTRY: Final = re.compile(rb"([^=<]*)(=|<<)(.*)", re.DOTALL)
_PROGRESS: Final = re.compile(r"\s*([0-9]{1,3})\s*%?(?:\s+(.*))?")
_PROGRESS_TAIL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a payload gave back, and everything that is wrong with it."""

    values: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    """Sentences that name the line or the output and say what is wrong."""
    remarks: tuple[str, ...] = ()
    """Sentences about what was passed over without being wrong."""

    def over(self, other: Outputs) -> Outputs:
        """Both; of a name that both give, this one's value counts."""
        values = {**other.values, **self.values}
        return Outputs(values, self.problems + other.problems, self.remarks + other.remarks)


@dataclass(frozen=True, slots=True)
class Checked:
    """Outputs as their operation declares them."""

    values: Mapping[str, str]
    missing: tuple[str, ...]
    """Required, and not given."""
    undeclared: tuple[str, ...]
    """Given, and not declared; not among the values."""


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """How far the payload says it is."""

    percent: int
    text: str


def read_outputs(path: Path, masker: Masker) -> Outputs:
    """Read, mask and parse the file. A payload may have made anything of it, so it is trusted in nothing."""
    try:
        content = _read(path, MAX_FILE_BYTES + 1)
    except OSError as error:
        return Outputs(problems=(f"the file named by SIS_OUTPUT cannot be read: {error.strerror}",))
    if len(content) > MAX_FILE_BYTES:
        return Outputs(problems=(f"the file named by SIS_OUTPUT is larger than {MAX_FILE_BYTES >> 20} MiB",))
    return parse_outputs(content, masker)


def parse_outputs(content: bytes, masker: Masker) -> Outputs:
    """Parse the content of the file; at most 20 mistakes are named. What is secret of a name or a value is masked."""
    whole = masker.whole(content)
    values: dict[str, str] = {}
    problems: list[str] = []
    lines = content.split(b"\n")
    starts = list(itertools.accumulate((len(line) + 1 for line in lines), initial=0))
    if lines[-1] == b"":
        lines.pop()
    index = 0
    while index < len(lines) and len(problems) < MAX_PROBLEMS:
        number, line, start = index + 1, lines[index], starts[index]
        index += 1
        if not line.strip():
            continue
        match = _ENTRY.fullmatch(line)
        if match is None or not is_name(match[1]):
            problems.append(f"line {number} of the output is neither name=value nor name<<MARK")
            continue
        name = whole.part(start, start + match.end(1)).decode()
        first, end = start + match.start(3), start + match.end(3)
        if match[2] == b"<<":
            mark = match[3]
            if not mark or b" " in mark or b"\t" in mark:
                problems.append(f"line {number}: the mark of the output {name} must be a text without blanks")
                continue
            try:
                marked = lines.index(mark, index)
            except ValueError:
                problems.append(f"line {number}: the block of the output {name} is not ended by its mark")
                break
            first, end = starts[index], max(starts[index], starts[marked] - 1)
            index = marked + 1
        raw, masked = content[first:end], whole.part(first, end)
        if problem := take(values, name, masked, valid=is_text(raw) or is_text(masked)):
            problems.append(f"line {number}: {problem}")
    return Outputs(values, tuple(problems))


def check(values: Mapping[str, str], declared: Mapping[str, bool]) -> Checked:
    """Compare with what the operation declares: a name and whether it is required."""
    return Checked(
        values={name: value for name, value in values.items() if name in declared},
        missing=tuple(name for name, required in declared.items() if required and name not in values),
        undeclared=tuple(name for name in values if name not in declared),
    )


def read_progress(path: Path, masker: Masker) -> ProgressReport | None:
    """What the last line of the file says; None when it says nothing that can be understood."""
    try:
        # With enough before the tail to know a secret that ends in it.
        content = _read(path, _PROGRESS_TAIL_BYTES + masker.longest, from_end=True)
    except OSError:
        return None
    return parse_progress(content, masker)


def parse_progress(content: bytes, masker: Masker) -> ProgressReport | None:
    """`42`, or `42 a text`, on the last line that is not empty and begins within the last 4 KiB. It is masked, also
    where it ends with the beginning of a secret: the payload may be about to write the rest."""
    end = len(content.rstrip())
    start = content.rfind(b"\n", 0, end) + 1
    if start < len(content) - _PROGRESS_TAIL_BYTES:
        return None
    line = masker.whole(content, cut=True).part(start, end).decode("utf-8", "replace")
    match = _PROGRESS.fullmatch(line)
    if match is None or int(match[1]) > 100:
        return None
    text = "".join(character if character.isprintable() else " " for character in match[2] or "")
    return ProgressReport(int(match[1]), text.strip()[:MAX_PROGRESS_CHARACTERS])


def is_name(name: bytes) -> bool:
    """Whether an output may be called so: `MAX_NAME_BYTES` at most."""
    return _NAME.fullmatch(name) is not None


def take(values: dict[str, str], name: str, masked: bytes, *, valid: bool) -> str:
    """Put the masked value in, or say what is wrong with it; whether it was `valid` UTF-8 is the caller's to know."""
    if name not in values and len(values) >= MAX_NAMES:
        return f"there are more than {MAX_NAMES} outputs"
    if len(masked) > MAX_VALUE_BYTES:
        return f"the output {name} is longer than {MAX_VALUE_BYTES >> 10} KiB"
    if b"\0" in masked:
        return f"the output {name} has a NUL character"
    if not valid:
        return f"the output {name} is not valid UTF-8"
    values[name] = masked.decode(errors="replace")
    return ""


def is_text(data: bytes) -> bool:
    """Whether these bytes are UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read(path: Path, size: int, *, from_end: bool = False) -> bytes:
    # Neither a link nor a pipe nor a device can make this wait or read something else.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file any more")
        if status.st_nlink > 1:
            # It may be one that the payload can name and not read.
            raise OSError(errno.EINVAL, "it is a file that has another name, too")
        content = bytearray()
        offset = max(0, status.st_size - size) if from_end else 0
        while len(content) < size and (piece := os.pread(descriptor, size - len(content), offset + len(content))):
            content += piece
        return bytes(content)
    finally:
        os.close(descriptor)
