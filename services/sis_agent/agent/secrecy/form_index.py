"""Finds the forms of secrets in bytes: where they are, and where one may have begun that has not ended.

Automata find beginnings of forms, cut to a length, so that their size depends on their number alone; what follows a
beginning is looked up among the sorted forms. An automaton tells no matches that overlap others: within each of its
matches, every place is looked at for a head, the first bytes of a form.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

from ahocorasick_rs import BytesAhoCorasick, Implementation, MatchKind

_HEAD_BYTES: Final = 8
_BEGINNING_BYTES: Final = 16
_MANY: Final = 1_000
"""From so many beginnings on a small automaton is worth more than few false alarms: they are as short as heads."""
_GROUP: Final = 48
_MAX_GROUPS: Final = 8
"""An automaton for a few dozens skips through text that has none of them ten times as fast as one for more can read it.
Several such are worth it, as long as they are not too many."""
_MAX_DFA_STATES: Final = 32_000
"""Each takes up to a kilobyte, and a microsecond to make. Beyond it, a slower kind of automaton has to do."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What is in some bytes."""

    spans: list[tuple[int, int]]
    """Start and end of runs of bytes that are covered by forms, in order of their starts, as far as forms that begin
    before `open` cover them. Those that only touch may be runs of their own."""
    open: int
    """From here to their end the bytes are the beginning of a form and not all of it; their number without one."""


class _Family(NamedTuple):
    """The forms with the same head, in the sorted list."""

    first: int
    end: int
    longest: int


class FormIndex:
    """Immutable, for any number of streams. There must be forms, none of them empty.

    The work for some bytes is bounded by their number times the logarithm of that of the forms, not counting the
    comparison of bytes itself.
    """

    def __init__(self, forms: Collection[bytes]) -> None:
        self._forms = sorted(forms)
        self._head = min(_HEAD_BYTES, *map(len, self._forms))
        self._families: dict[bytes, _Family] = {}
        self._heads_begun: set[bytes] = set()
        self._find_families()
        # Of each form, the longest other one that it begins with, and one to skip to further up that line; -1 is none.
        self._shorter = [-1] * (len(self._forms) + 1)
        self._skip = [-1] * (len(self._forms) + 1)
        self._link()
        beginnings = {form[:_BEGINNING_BYTES] for form in self._forms}
        if len(beginnings) > _MANY:
            beginnings = set(self._families)
        self._longest_beginning = max(map(len, beginnings))
        self._automata = list(_automata(sorted(beginnings)))

    @property
    def longest(self) -> int:
        """The length of the longest form."""
        return max(family.longest for family in self._families.values())

    def search(self, data: bytes, *, last: bool = False) -> Findings:
        """Look through bytes. When they are the `last`, nothing can be open."""
        size = len(data)
        head_size, families, heads_begun = self._head, self._families, self._heads_begun
        spans: list[tuple[int, int]] = []
        start = end = 0
        for place in self._places(data):
            head = data[place : place + head_size]
            family = families.get(head)
            if family is None:
                if not last and head in heads_begun and place + len(head) == size:
                    size = place
                    break
                continue
            if place + family.longest <= end:
                continue
            if not last and size - place < family.longest and self._begins_one(data[place:], family):
                size = place
                break
            if length := self._longest_at(data, place, family):
                if place >= end:
                    if end > start:
                        spans.append((start, end))
                    start = place
                end = max(end, place + length)
        if end > start:
            spans.append((start, end))
        return Findings(spans, size)

    def _places(self, data: bytes) -> Iterator[int]:
        """Where forms may begin, in order."""
        # No automaton finds a beginning that is not whole.
        tail = max(0, len(data) - self._longest_beginning + 1)
        matches = [match for automaton in self._automata for match in automaton.find_matches_as_indexes(data)]
        place = 0
        for _, start, end in sorted(matches, key=itemgetter(1)):
            yield from range(max(start, place), min(end, tail))
            place = max(place, end)
        yield from range(tail, len(data))

    def _begins_one(self, tail: bytes, family: _Family) -> bool:
        """Whether a form is longer than these bytes and begins with them."""
        index = bisect_right(self._forms, tail, family.first, family.end)
        return index < family.end and self._forms[index].startswith(tail)

    def _longest_at(self, data: bytes, place: int, family: _Family) -> int:
        """The length of the longest form at this place; 0 where there is none."""
        forms = self._forms
        # Whatever form is there, the last one that does not follow these bytes in order begins with it, or is it.
        index = bisect_right(forms, data[place : place + family.longest], family.first, family.end) - 1
        if index < family.first:
            return 0
        while index >= 0 and not data.startswith(forms[index], place):
            skip = self._skip[index]
            index = self._shorter[index] if skip < 0 or data.startswith(forms[skip], place) else skip
        return len(forms[index]) if index >= 0 else 0

    def _find_families(self) -> None:
        first = 0
        for head, members in groupby(self._forms, lambda form: form[: self._head]):
            lengths = [len(member) for member in members]
            self._families[head] = _Family(first, first + len(lengths), max(lengths))
            self._heads_begun.update(head[:size] for size in range(1, self._head))
            first += len(lengths)

    def _link(self) -> None:
        """Make the skips such that every ancestor is reached in a logarithmic number of steps."""
        depth = [0] * len(self._skip)
        line: list[int] = []
        for index, form in enumerate(self._forms):
            while line and not form.startswith(self._forms[line[-1]]):
                line.pop()
            parent = line[-1] if line else -1
            line.append(index)
            self._shorter[index] = parent
            depth[index] = depth[parent] + 1
            near = self._skip[parent]
            even = depth[parent] - depth[near] == depth[near] - depth[self._skip[near]]
            self._skip[index] = self._skip[near] if even else parent


def _automata(beginnings: Sequence[bytes]) -> Iterator[BytesAhoCorasick]:
    size = _GROUP if len(beginnings) <= _GROUP * _MAX_GROUPS else len(beginnings)
    for first in range(0, len(beginnings), size):
        group = beginnings[first : first + size]
        small = sum(map(len, group)) <= _MAX_DFA_STATES
        implementation = Implementation.DFA if small else Implementation.ContiguousNFA
        yield BytesAhoCorasick(group, MatchKind.LeftmostFirst, implementation)
