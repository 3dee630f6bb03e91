"""Messages of any type, filled at random: what a service might answer, and what a client might ask."""

from __future__ import annotations

import random
from typing import Any

from google.protobuf import any_pb2, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway.printing import is_map
from gateway.schemas import DETAILS
from sis.errors.v1 import reason_pb2

_TEXTS = ("", "a", "Grüße, Welt", "two\nlines", 'a "quoted" <b>\u2028', "\U0001f600" * 3, "x" * 300)
_REASONS = [name.removeprefix("REASON_") for name, number in reason_pb2.Reason.items() if number]
_DEPTH = 6


class RandomMessages:
    """Each field has a value or has none, whatever the contract says of it; deep down all are empty. With `extremes`
    numbers and times go to the ends of their types."""

    def __init__(self, seed: str, *, extremes: bool = True) -> None:
        self._dice = random.Random(seed)
        self._numbers = [0, 1, -1, 42, 2**31 - 1, -(2**31)]
        self._large = [2**53 + 1, *([2**63 - 1, -(2**63)] if extremes else [])]
        self._times = [0, 1_763_800_000, *([-62_135_596_800, 253_402_300_799] if extremes else [])]
        self._durations = [0, 1, 90, *([315_576_000_000] if extremes else [])]

    def of(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """One more."""
        found: Any = message_factory.GetMessageClass(descriptor)()
        match descriptor.full_name:
            case "google.protobuf.Timestamp":
                found.seconds = self._dice.choice(self._times)
                found.nanos = self._dice.choice((0, 1_000_000, 1_000, 1, 999_999_999))
            case "google.protobuf.Duration":
                sign = self._dice.choice((1, -1))
                found.seconds = sign * self._dice.choice(self._durations)
                found.nanos = sign * self._dice.choice((0, 1_000_000, 1_000, 1)) if abs(found.seconds) < 100 else 0
            case "google.protobuf.Any":
                found = any_pb2.Any()
                found.Pack(self.of(self._dice.choice(DETAILS), depth))
            case _:
                for field in self._present(descriptor, depth):
                    self._fill(found, field, depth + 1)
        if descriptor.full_name == "google.rpc.ErrorInfo":
            found.reason = self._dice.choice(_REASONS)
        return found

    def _present(self, descriptor: Descriptor, depth: int) -> list[FieldDescriptor]:
        if depth > _DEPTH:
            return []
        alone = [field for field in descriptor.fields if field.containing_oneof is None and self._dice.random() < 0.7]
        return alone + [self._dice.choice(each.fields) for each in descriptor.oneofs if self._dice.random() < 0.8]

    def _fill(self, found: Any, field: FieldDescriptor, depth: int) -> None:
        value = getattr(found, field.name)
        if field.message_type is not None and is_map(field.message_type):
            self._fill_map(value, field.message_type.fields_by_name["value"], depth)
        elif field.is_repeated:
            value.extend(self._value(field, depth) for _ in range(self._dice.randrange(3)))
        elif field.message_type is None:
            setattr(found, field.name, self._scalar(field))
        else:
            value.CopyFrom(self.of(field.message_type, depth))

    def _fill_map(self, value: Any, of_value: FieldDescriptor, depth: int) -> None:
        for key in self._dice.sample(_TEXTS, self._dice.randrange(3)):
            if of_value.message_type is None:
                value[key] = self._scalar(of_value)
            else:
                value[key].CopyFrom(self.of(of_value.message_type, depth))

    def _value(self, field: FieldDescriptor, depth: int) -> object:
        return self._scalar(field) if field.message_type is None else self.of(field.message_type, depth)

    def _scalar(self, field: FieldDescriptor) -> object:
        if field.enum_type is not None:
            return self._dice.choice(field.enum_type.values).number
        match field.type:
            case FieldDescriptor.TYPE_BOOL:
                return self._dice.random() < 0.5
            case FieldDescriptor.TYPE_BYTES:
                return self._dice.randbytes(self._dice.randrange(5))
            case FieldDescriptor.TYPE_STRING:
                return self._dice.choice(_TEXTS)
            case FieldDescriptor.TYPE_INT64:
                return self._dice.choice(self._numbers + self._large)
            case FieldDescriptor.TYPE_INT32:
                return self._dice.choice(self._numbers)
            case other:
                raise TypeError(f"{field.full_name}: nothing is known of type {other}")
