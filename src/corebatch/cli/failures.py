"""Which errors are a user's to mend, and so one message; all others are ours, and show where they were raised."""

from __future__ import annotations

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
