"""Evaluation leaves the training around it as it found it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def random_states() -> Iterator[None]:
    """All global generators go on afterwards as if nothing had been drawn: training does not depend on tasks."""
    plain, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one, which a task may draw from
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)  # noqa: NPY002 - as above
