"""The order of rows in an epoch, drawn so that a resumed run and every rank draw the same one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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


def resumable(sampler: Any, args: Any, state: Callable[[], Any]) -> Any:
    """The sampler, or for one whose order a resumed run could not draw again, one that it can.

    Args:
        sampler: of the train set.
        args: the TrainingArguments.
        state: gives the TrainerState of the moment.
    """
    if not isinstance(sampler, LengthGroupedSampler):
        return sampler
    seed = args.seed if args.data_seed is None else args.data_seed
    return OrderOfEpoch(sampler, seed, lambda: int(state().epoch or 0))
