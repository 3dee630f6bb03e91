"""The templates in a command: `{param.x}`, `{package}`, `{work}`; `{{` and `}}` are braces."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_PARAMETER = re.compile(r"param\.([a-z][a-z0-9_]*)")
_DIRECTORIES = ("package", "work")


class InvalidTemplate(ValueError):
    """The text is no template; the message says what to write."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Something to be filled in: an input's value, or a directory."""

    kind: str
    """ "param", "package" or "work"."""
    name: str = ""


Part = str | Reference


def split(text: str) -> tuple[Part, ...]:
    """The literal texts and the references of an argument, in order. Raises InvalidTemplate."""
    parts: list[Part] = []
    position = 0
    for token in _TOKEN.finditer(text):
        _literal(parts, text[position : token.start()])
        position = token.end()
        if token.group() in ("{{", "}}"):
            _literal(parts, token.group()[0])
        elif token.group(1) is None:
            raise InvalidTemplate(f"has a lone {token.group()!r}: write {token.group() * 2!r} for a brace")
        else:
            parts.append(_reference(token.group(1)))
    _literal(parts, text[position:])
    return tuple(parts)


def escape(text: str) -> str:
    """The template that stands for exactly this text."""
    return text.replace("{", "{{").replace("}", "}}")


def _literal(parts: list[Part], text: str) -> None:
    if not text:
        return
    if parts and isinstance(parts[-1], str):
        parts[-1] += text
    else:
        parts.append(text)


def _reference(inside: str) -> Reference:
    if inside in _DIRECTORIES:
        return Reference(inside)
    parameter = _PARAMETER.fullmatch(inside)
    if parameter is None:
        raise InvalidTemplate(
            f"has the unknown template {{{inside}}}: write {{param.NAME}}, {{package}} or {{work}}, "
            "and {{ or }} for a brace"
        )
    return Reference("param", parameter.group(1))
