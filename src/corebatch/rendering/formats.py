"""Numbers and names as a reader wants them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len

NOTHING = "\u2013"  # an en dash where a number is unknown


def clean(text: str) -> str:
    """The text on one line, without control characters, direction overrides or lone surrogates."""
    return "".join("�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def shorten(text: str, cells: int) -> str:
    """The cleaned text, cut to a width in terminal cells (a CJK character takes two)."""
    text = clean(text)
    if cell_len(text) <= cells:
        return text
    while cell_len(text) > cells - 1:
        text = text[:-1]
    return text + "…"


def count(value: int | None) -> str:
    """12345 -> 12,345."""
    return NOTHING if value is None else f"{value:,}"


def compact(value: float | None) -> str:
    """1234567 -> 1.23 M; three digits that count."""
    if value is None:
        return NOTHING
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            scale = 1e3 if unit == " k" else size
            return f"{value / scale:.3g}{unit}" if abs(value) < 999.5 * scale else f"{value / scale:,.0f}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many places after the point."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """0.314 -> 31.4 %."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def times(ratio: float | None) -> str:
    """1.5 -> 1.50 ×."""
    return NOTHING if ratio is None else f"{ratio:.2f} \u00d7"


def share(value: float | None) -> str:
    """As `percent`, with three digits that count where it is below one per cent: 0.00123 -> 0.123 %."""
    if value is None or not 0 < abs(value) < 0.01:
        return percent(value)
    return f"{100 * value:.3g} %"


def milliseconds(value: float | None) -> str:
    """Milliseconds: whole above 100, one place below, two below 1."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """4000 -> 1 h 07 min."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def listing(names: Sequence[str], most: int = 6) -> str:
    """a, b and c; or a, b and 7 more."""
    shown = [shorten(name, 40) for name in names]
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{count(len(shown) - most + 1)} more"]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]
