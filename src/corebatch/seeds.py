"""Seeded generators by purpose: the same numbers in a resumed run and on every rank."""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def seeded(seed: int, *purpose: Any) -> torch.Generator:
    """A CPU generator for one purpose, e.g. `seeded(seed, step, "select")`.

    Its state depends on the arguments alone and is never carried over, so that a resumed run and every rank draw
    the same numbers.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)
