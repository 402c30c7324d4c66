"""Where results go."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """The terminal, or 100 columns where there is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 100)
