"""Seeded generators by purpose, the same in a resumed run and on every rank; and the global ones, left alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seeded(seed: int, *purpose: Any) -> torch.Generator:
    """A CPU generator for one purpose, e.g. `seeded(seed, step, "select")`.

    Its state depends on the arguments alone and is never carried over, so that a resumed run and every rank draw
    the same numbers.
    """
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


@contextmanager
def random_states(devices: Sequence[int] | None = None) -> Iterator[None]:
    """The global generators of Python, numpy and torch go on afterwards as if nothing had been drawn.

    Args:
        devices: of CUDA, whose generators are kept as well; None: all.
    """
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one, which others draw from
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002 - as above
