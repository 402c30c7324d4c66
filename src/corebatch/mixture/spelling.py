"""Names that differ from those known here in capitals, blanks or marks alone: `System`, `toolCalls`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable


def otherwise_written(names: Iterable[str], known: Collection[str]) -> tuple[str, str] | None:
    """The first of the names that is not known as it stands, and the known name that it otherwise is; or None."""
    meant = {_letters(name): name for name in known}
    for name in names:
        twin = meant.get(_letters(name))
        if twin is not None and name not in known:
            return name, twin
    return None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
