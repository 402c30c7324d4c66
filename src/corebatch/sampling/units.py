"""What a loader over rows by length draws: units of rows of one bucket, and the order in which buckets come.

Dataset Decomposition (Pouransari et al. 2024, arXiv 2405.13226, section 3) trains each step on rows of one length, and
on more of them the shorter they are, so that all steps have the same number of tokens. A batch of B units has B times
the positions of the longest row, whichever bucket it is from; so a loader, its ranks and its resuming need nothing new.

    n_k     steps' worth of units that bucket k has in a cycle
    o_k     its odds, by the curriculum
    P(k)    o_k n_k / sum of o_j n_j over the buckets that have units left: where the next step's units come from
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from corebatch.errors import ConfigError
from corebatch.options import check_count
from corebatch.sampling.buckets import Buckets
from corebatch.sampling.by_length import LEFTOVERS
from corebatch.seeds import seeded


class UnitSampler(Sampler[tuple[int, ...]]):
    """Units of rows of one bucket, `together` of them one after the other; for a loader over `Units`.

    Each epoch the rows of a bucket are shuffled into units anew. The order of an epoch depends on the seed and its
    number alone, so that ranks and a resumed run draw the same.

    Args:
        buckets: of the rows.
        together: units in a row that come from one bucket: those of an optimizer step over all ranks, or of one batch.
        seed: of the data.
        cycles, leftovers: see `ByLength`.

    Attributes:
        epoch: whose order is next; a Trainer calls `set_epoch`.
        dropped: rows that do not come in an epoch.

    Raises:
        ConfigError: a value out of range, or leftovers are dropped and no bucket has a whole step.
    """

    def __init__(
        self, buckets: Buckets, *, together: int = 1, seed: int = 0, cycles: int = 1, leftovers: str = "keep"
    ) -> None:
        check_count("together", together)
        check_count("cycles", cycles)
        if leftovers not in LEFTOVERS:
            raise ConfigError(f"leftovers should be keep or drop. Found {leftovers!r}.")
        self.buckets, self._together, self._seed, self._cycles = buckets, together, seed, cycles
        self._keeps, self.epoch = leftovers == "keep", 0
        self._members = [(buckets.of == bucket).nonzero().flatten() for bucket in range(len(buckets.rows))]
        counts = torch.tensor([len(members) for members in self._members])
        sizes = buckets.rows * together
        self._groups = (counts + (sizes - 1) * self._keeps) // sizes
        self.dropped = 0 if self._keeps else int((counts % sizes).sum())
        if not int(self._groups.sum()):
            raise ConfigError(
                f"leftovers drop leaves out what is less than a step of a bucket, {sizes.tolist()} rows. Found "
                f"{counts.tolist()} rows in them: nothing is left. Use keep, or smaller batches."
            )

    def __len__(self) -> int:
        return int(self._groups.sum()) * self._together

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        places = [iter(self._units(bucket)) for bucket in range(len(self._members))]
        for bucket in self.order(self.epoch).tolist():
            for unit in next(places[bucket]):
                yield tuple(unit.tolist())

    def order(self, epoch: int) -> Tensor:
        """The bucket of each group of an epoch: LongTensor [groups].

        Drawing buckets at fixed rates, each until it is empty, is a race: the groups of a bucket arrive after
        exponential times, and the order of all arrivals is the order of the draws.
        """
        generator, found = seeded(self._seed, epoch, "order of buckets"), []
        for cycle in range(self._cycles):
            here = self._groups * (cycle + 1) // self._cycles - self._groups * cycle // self._cycles
            times = [
                torch.empty(count, dtype=torch.float64).exponential_(generator=generator).cumsum(0) / rate
                for count, rate in zip(here.tolist(), (self.buckets.odds * here).tolist(), strict=True)
                if count
            ]
            kinds = torch.repeat_interleave(torch.arange(len(here)), here)
            found.append(kinds[torch.cat([torch.empty(0, dtype=torch.float64), *times]).sort(stable=True).indices])
        return torch.cat(found)

    def _units(self, bucket: int) -> Iterator[Sequence[Tensor]]:
        """The units of each group of a bucket, in this epoch's order of its rows."""
        members = self._members[bucket]
        generator = seeded(self._seed, self.epoch, bucket, "rows of a bucket")
        rows = members[torch.randperm(len(members), generator=generator)]
        whole = int(self.buckets.rows[bucket]) * self._together
        for group in rows.split(whole):
            if len(group) < self._together:  # a unit has a row at least
                group = group.repeat(math.ceil(self._together / len(group)))[: self._together]
            if len(group) == whole or self._keeps:
                yield group.tensor_split(self._together)


class Units(Dataset[Any]):
    """A data set whose rows a loader asks for in units: a batch has the rows of all its units. Attributes show through.

    Args:
        dataset: with a length and rows by number.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # asked for while a copy is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: Any) -> Any:
        return self.dataset[row]

    def __getitems__(self, units: Sequence[tuple[int, ...]]) -> list[Any]:
        rows = [row for unit in units for row in unit]
        several = getattr(self.dataset, "__getitems__", None)
        return list(several(rows)) if callable(several) else [self.dataset[row] for row in rows]
