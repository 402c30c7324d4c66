"""`corebatch env`: what a bug report needs."""

from __future__ import annotations

from importlib import import_module

from rich.console import Console

from corebatch.record.provenance import hardware, versions
from corebatch.rendering.sheet import table

EXTRAS = {"trl": "trl", "matplotlib": "report", "reasoning_gym": "demo", "numba": "a faster choice"}


def env(console: Console) -> None:
    """Prints versions, hardware, and which optional packages can be imported."""
    rows = [{"what": key, "found": value} for key, value in {**versions(), **hardware()}.items()]
    for module, use in EXTRAS.items():
        try:
            found = str(getattr(import_module(module), "__version__", "yes"))
        except ImportError as error:
            found = f"no ({error})"
        rows.append({"what": f"{module} ({use})", "found": found})
    console.print(table("Environment", rows))
