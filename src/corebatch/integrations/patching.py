"""Names of a host's modules that mean something else for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(module: Any, **others: Any) -> Iterator[None]:
    """While open, these names of a module are what is given."""
    usual = {name: getattr(module, name) for name in others}
    for name, other in others.items():
        setattr(module, name, other)
    try:
        yield
    finally:
        for name, before in usual.items():
            setattr(module, name, before)
