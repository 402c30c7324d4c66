"""What differs between the versions of transformers that the bounds allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A seedable sampler that is never behind the Trainer's epoch.

    A run that is resumed in the middle of an epoch goes on with a second loader, which skips what was trained. With
    transformers 4 that loader sets the shared sampler back to epoch 0, so that a run resumed after its first epoch
    would draw the first epoch's order again. With transformers 5 nothing changes.
    """

    def __init__(self, sampler: Any, epoch: Callable[[], int]) -> None:
        self.sampler, self.trainer_epoch = sampler, epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.set_epoch(max(self.sampler.epoch, self.trainer_epoch()))
        return iter(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


def follow_epochs(loader: Any, epoch: Callable[[], int]) -> None:
    """Puts an `EpochSampler` in the place of the loader's seedable sampler; other samplers stay as they are.

    Args:
        loader: a loader that Accelerate prepared.
        epoch: gives the number of the Trainer's current epoch.
    """
    holder, followed = getattr(loader, "batch_sampler", None), None
    while holder is not None:  # on several ranks the shard and the batch sampler in it hold the same sampler
        sampler = getattr(holder, "sampler", None)
        if hasattr(sampler, "set_epoch") and hasattr(sampler, "epoch"):
            followed = EpochSampler(sampler, epoch) if followed is None else followed
            holder.sampler = followed
        holder = getattr(holder, "batch_sampler", None)
