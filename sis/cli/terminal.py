"""Where the command line writes: tables for a person, plain text for a pipe, JSON for a program."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from google.protobuf import json_format
from google.protobuf.message import Message
from rich.box import ROUNDED, SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sis.cli.text import visible

# Without a terminal nothing has to fit: a program that reads the table must not find it cut.
_PLAIN_WIDTH = 2_000


NARROW = 132
"""A terminal with fewer columns gets short times in wide tables."""


def console(file: TextIO | None = None) -> Console:
    """A console on `file` (standard output). It finds no markup or links in what it prints."""
    target = file or sys.stdout
    if target.isatty():
        return Console(file=target, highlight=False, markup=False, emoji=False)
    return Console(
        file=target,
        force_terminal=False,  # whatever the environment says of colours
        highlight=False,
        markup=False,
        emoji=False,
        width=_PLAIN_WIDTH,
        no_color=True,
        soft_wrap=True,
    )


def document(message: Message) -> str:
    """The proto's JSON: names in camelCase, enums by name, fields without presence always there."""
    return json_format.MessageToJson(message, always_print_fields_with_no_presence=True)


def line(message: Message) -> str:
    """The same on one line, for a stream."""
    return json_format.MessageToJson(message, always_print_fields_with_no_presence=True, indent=None)


def cell(text: str, style: str = "") -> Text:
    """Foreign text for a table: harmless, on one line."""
    return Text(visible(text), style=style)


def block(text: str) -> Text:
    """Foreign text of several lines: harmless, its line breaks kept."""
    return Text("\n".join(visible(each) for each in text.splitlines()))


def table(out: Console, *headers: str, right: Sequence[str] = (), fixed: Sequence[str] = ()) -> Table:
    """An empty table, on a terminal with rules; numbers go to the `right`, `fixed` columns are never broken."""
    made = Table(
        box=SIMPLE_HEAD if out.is_terminal else None,
        header_style="bold",
        pad_edge=False,
        show_edge=False,
        padding=(0, 1 if out.is_terminal else 2, 0, 0),
    )
    for header in headers:
        made.add_column(
            header,
            justify="right" if header in right else "left",
            overflow="fold",
            no_wrap=header in fixed,
        )
    return made


def section(out: Console, title: str, content: RenderableType) -> None:
    """Print a titled part of a page: a panel on a terminal, a heading and its lines elsewhere."""
    if out.is_terminal:
        out.print(Panel(content, title=cell(title, "bold"), title_align="left", box=ROUNDED, border_style="dim"))
    else:
        out.print(cell(title))
        out.print(content)
        out.print()


def facts(pairs: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values, one pair a line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, cell(value) if isinstance(value, str) else value)
    return grid
