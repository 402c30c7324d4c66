"""Where results go."""

from __future__ import annotations

import sys

from rich.console import Console


def console(columns: int = 100) -> Console:
    """The terminal, or so many columns where there is none."""
    return Console(width=None if sys.stdout.isatty() else columns)
