"""The files of a process that speaks TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The PEM files by which a process proves itself and checks others."""

    ca: Path
    certificate: Path
    key: Path
