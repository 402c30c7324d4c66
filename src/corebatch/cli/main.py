"""The entry point. Errors about input are one message and exit code 2, never a traceback."""

from __future__ import annotations

import io
import logging
import os
import sys

from corebatch.cli.commands import app
from corebatch.config.quiet import hush
from corebatch.errors import CorebatchError
from corebatch.text import visible

OF_FILES = (OSError, UnicodeError, MemoryError, RecursionError)
LOADERS = ("safetensors", "huggingface_hub", "yaml", "tokenizers", "httpx", "jinja2")
"""Packages whose errors are about what they were given to read."""


def message(error: BaseException) -> str | None:
    """The error in one message of plain text, or None for what no user could mend."""
    if isinstance(error, CorebatchError):
        return visible(error, lines=True)
    if isinstance(error, ImportError):
        return visible(error, lines=True) if "pip install" in str(error) else None
    if isinstance(error, MemoryError):
        return "there is not enough memory. Use fewer rows at once, or a shorter max_length."
    if isinstance(error, RecursionError):
        return "something is nested too deeply to be read."
    ours = isinstance(error, OF_FILES) or type(error).__module__.split(".")[0] in LOADERS
    return f"{type(error).__name__}: {visible(error, lines=True)}" if ours else None


class _Plain(logging.Formatter):
    """Names of users come into warnings too."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)


def _show_all_text() -> None:
    """What the terminal's encoding has not is written out, and warnings are plain text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Plain())


def main() -> None:
    """The entry point `corebatch`. With COREBATCH_TRACEBACK set, every error shows where it was raised."""
    hush()
    _show_all_text()
    try:
        app()
    except KeyboardInterrupt:
        print("corebatch: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        told = None if os.environ.get("COREBATCH_TRACEBACK") else message(error)
        if told is None:
            raise
        print(f"corebatch: {told}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
