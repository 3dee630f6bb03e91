"""The masker alone, by the time of its core: lines of a log in pieces of 32 KiB, beside other ways to find forms."""

from __future__ import annotations

import base64
import random
import re
import string
import time
from collections.abc import Callable, Sequence

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

from bench.figures import Figure
from services.sis_agent.agent.secrecy.masking import MASK, Masker
from services.sis_agent.agent.secrecy.secret_forms import forms
from services.sis_agent.agent.supervision.leases import MAX_SECRET_BYTES

PIECE_BYTES = 32 << 10
TEXT_BYTES = 16 << 20
REGEX_BYTES = 128 << 10
SECRETS = (1, 10, 100)
SECRET_SHARE = 0.01
ROUNDS = 3
LETTERS = string.ascii_letters + string.digits + "+/!$_-"
WORDS = (
    "INFO",
    "connected",
    "to",
    "host=",
    "request",
    "in",
    "ms",
    "error",
    "user",
    "/var/lib/app",
    "GET",
    "200",
    "id=",
)

Mask = Callable[[bytes], bytes]


def measure() -> list[Figure]:
    """How long a masker takes to make; MB/s with 1, 10 and 100 secrets of 24 characters, in a text without them and
    with one in each hundredth line."""
    chance = random.Random(1)
    figures = [
        _made("an RSA key of 4096 bits", [_lines(chance, 50)]),
        _made("the most of an attempt, as keys", [_lines(chance, 1_000), _lines(chance, 1_000)]),
        _made("the most of an attempt, as bytes", [chance.randbytes(MAX_SECRET_BYTES)]),
    ]
    for count in SECRETS:
        secrets = ["".join(chance.choices(LETTERS, k=24)).encode() for _ in range(count)]
        wanted = sorted(frozenset[bytes]().union(*map(forms, secrets)))
        masker = Masker(secrets)
        what = f"{count} secret{'s' if count > 1 else ''}"
        figures.append(_made(what, secrets))
        others: dict[str, tuple[Mask, int]] = {
            "ahocorasick, overlapping": (_overlapping(wanted), TEXT_BYTES),
            "ahocorasick, longest first": (_longest_first(wanted), TEXT_BYTES),
            "re": (_regex(wanted), REGEX_BYTES),
        }
        for where, among in (("a text without them", []), ("one in 1 % of the lines", wanted)):
            text = _log(chance, among)
            stream = masker.stream()
            value = _speed(lambda piece, feed=stream.feed: feed(piece), text)  # type: ignore[misc]
            beside = ", ".join(f"{name} {_speed(mask, text[:size])}" for name, (mask, size) in others.items())
            figures.append(Figure(f"{what}, {where}", f"{value} MB/s", beside))
    return figures


def _made(what: str, secrets: Sequence[bytes]) -> Figure:
    begun = time.thread_time()
    Masker(secrets)
    taken = time.thread_time() - begun
    count = len(frozenset[bytes]().union(*map(forms, secrets)))
    return Figure(f"{what}: a masker is made", f"{taken * 1000:.1f} ms", f"{count:,} forms")


def _lines(chance: random.Random, count: int) -> bytes:
    return b"".join(base64.b64encode(chance.randbytes(48)) + b"\n" for _ in range(count))


def _log(chance: random.Random, among: Sequence[bytes]) -> bytes:
    lines: list[bytes] = []
    size = 0
    while size < TEXT_BYTES:
        said = " ".join(f"{word}{chance.randrange(1000)}" for word in chance.choices(WORDS, k=9))
        line = f"2026-11-02T10:{chance.randrange(60):02}:{chance.randrange(60):02}Z {said}".encode()
        if among and chance.random() < SECRET_SHARE:
            line += b" password=" + chance.choice(among)
        lines.append(line)
        size += len(line) + 1
    return b"\n".join(lines)


def _speed(mask: Mask, text: bytes) -> str:
    pieces = [text[start : start + PIECE_BYTES] for start in range(0, len(text), PIECE_BYTES)]
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.thread_time()
        for piece in pieces:
            mask(piece)
        best = min(best, time.thread_time() - begun)
    megabytes = len(text) / best / 1e6
    return f"{megabytes:,.0f}" if megabytes >= 1 else f"{megabytes:.2f}"


def _overlapping(wanted: Sequence[bytes]) -> Mask:
    """Right within a piece: what the masker would be if it were built on all forms whole."""
    automaton = BytesAhoCorasick(wanted, MatchKind.Standard, Implementation.DFA)

    def mask(data: bytes) -> bytes:
        found = automaton.find_matches_as_indexes(data, overlapping=True)
        out = bytearray()
        place = 0
        for start, end in sorted((start, end) for _, start, end in found):
            if start > place or not place:
                out += data[place:start] + MASK
            place = max(place, end)
        return bytes(out + data[place:])

    return mask


def _longest_first(wanted: Sequence[bytes]) -> Mask:
    """Wrong where forms overlap."""
    automaton = BytesAhoCorasick(wanted, MatchKind.LeftmostLongest, Implementation.DFA)

    def mask(data: bytes) -> bytes:
        out = bytearray()
        place = 0
        for _, start, end in automaton.find_matches_as_indexes(data):
            out += data[place:start] + MASK
            place = end
        return bytes(out + data[place:])

    return mask


def _regex(wanted: Sequence[bytes]) -> Mask:
    """Wrong where forms overlap."""
    expression = re.compile(b"|".join(map(re.escape, sorted(wanted, key=len, reverse=True))))
    return lambda data: expression.sub(MASK, data)
