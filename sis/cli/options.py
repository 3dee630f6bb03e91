"""Options that several commands share. Imports nothing heavy: `sis --help` must be quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MAX_JOB_ID = 2**63 - 1

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Where the local stack keeps its data; else SIS_DATA, else ~/.local/share/sis.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the proto's JSON, for programs.")]
JobId = Annotated[int, typer.Argument(metavar="JOB_ID", min=1, max=MAX_JOB_ID)]
JobIds = Annotated[list[int], typer.Argument(metavar="JOB_ID", min=1, max=MAX_JOB_ID)]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the history.")]
