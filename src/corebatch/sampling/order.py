"""The order of rows in an epoch, drawn so that a resumed run and every rank draw the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from corebatch.seeds import seeded


class OrderOfEpoch(Sampler[int]):
    """Draws by a generator of the epoch alone.

    transformers' sampler by length draws from the global generator, whose state at the start of an epoch depends on
    all that was trained before: a run that is resumed in its second epoch or later would see other rows.

    Args:
        sampler: one that draws from its attribute `generator`.
        seed: of the data.
        epoch: says the epoch that begins, or is gone on with.
    """

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]) -> None:
        self._sampler, self._seed, self._epoch = sampler, seed, epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = seeded(self._seed, self._epoch(), "order")
        return iter(self._sampler)


class DrawnOrder:
    """The state of torch's global generator when an epoch's order was drawn from it, for a run that goes on with that
    epoch."""

    def __init__(self) -> None:
        self._epoch = -1
        self._state: Tensor | None = None

    def generator(self, epoch: int) -> torch.Generator:
        """Draws what the global one would, which is moved on; in an epoch that is gone on with, what it drew then."""
        state = torch.get_rng_state()
        if self._state is not None and epoch == self._epoch:
            state = self._state
        self._epoch, self._state = epoch, state
        generator = torch.Generator()
        generator.set_state(state)
        return generator

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint; none where nothing was drawn."""
        return {} if self._state is None else {"epoch": torch.tensor(self._epoch), "state": self._state}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        if state:
            self._epoch, self._state = int(state["epoch"]), state["state"]


class AsDrawn(Sampler[int]):
    """The sampler's own order, from the global generator, in a run that is resumed as well.

    Args:
        sampler: one that draws from its attribute `generator`, None being the global one.
        order: remembers the epoch's.
        epoch: says the epoch that begins, or is gone on with.
    """

    def __init__(self, sampler: Any, order: DrawnOrder, epoch: Callable[[], int]) -> None:
        self._sampler, self._order, self._epoch = sampler, order, epoch

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        self._sampler.generator = generator = self._order.generator(self._epoch())
        drawn = list(self._sampler)
        torch.set_rng_state(generator.get_state())
        return iter(drawn)


def resumable(sampler: Any, args: Any, state: Callable[[], Any], drawn: DrawnOrder | None = None) -> Any:
    """The sampler, or for one whose order a resumed run could not draw again, one that it can.

    Args:
        sampler: of the train set.
        args: the TrainingArguments.
        state: gives the TrainerState of the moment.
        drawn: remembers what the sampler draws, whose order stays as it is; None: the order is one of the epoch's own.
    """
    if not isinstance(sampler, LengthGroupedSampler):
        return sampler
    if drawn is not None:
        return AsDrawn(sampler, drawn, lambda: int(state().epoch or 0))
    seed = args.seed if args.data_seed is None else args.data_seed
    return OrderOfEpoch(sampler, seed, lambda: int(state().epoch or 0))
