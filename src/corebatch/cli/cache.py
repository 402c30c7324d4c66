"""`corebatch cache`: the tokenised rows that are kept, and their removal."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Tokenised rows that are kept between starts.")


@app.command(name="list")
def show() -> None:
    """List what is kept: data sets, rows, size, last use."""
    from corebatch.mixture.cache import RowCache
    from corebatch.rendering.sheet import table

    kept = RowCache()
    console = Console(soft_wrap=True)
    entries = kept.entries()
    if entries:
        console.print(table("Kept rows, those first that were used longest ago", [_line(entry) for entry in entries]))
    total = sum(entry.size for entry in entries) / 1e9
    console.print(f"{total:,.2f} of at most {kept.bound / 1e9:,.0f} GB in {kept.folder}", markup=False, highlight=False)


@app.command()
def clear(
    keys: Annotated[list[str] | None, typer.Argument(help="beginnings of keys as listed (default: all)")] = None,
) -> None:
    """Remove what is kept and not in use."""
    from corebatch.mixture.cache import RowCache

    removed, left = RowCache().clear(keys or ())
    freed = sum(entry.size for entry in removed) / 1e9
    in_use = f"; {len(left)} are in use and stay" if left else ""
    print(f"removed {len(removed)} sets of rows, {freed:,.2f} GB{in_use}")


def _line(entry: Any) -> dict[str, Any]:
    from corebatch.mixture.cache import read_record

    try:
        record = read_record(entry.folder)
        sets, rows = ", ".join(record["specs"]), record["tally"]["ends"][-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        sets, rows = "damaged", None
    return {
        "key": entry.folder.name[:12],
        "data sets": sets if len(sets) <= 60 else "..." + sets[-57:],
        "rows": rows,
        "MB": entry.size / 1e6,
        "last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        "in use": entry.busy,
    }
