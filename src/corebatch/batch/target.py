"""The mean gradient of rows that a run is to be good at, for a selector that follows it.

Shape suffixes: V rows of one look at the target, P features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from corebatch.batch.forwards import Forwards
from corebatch.batch.method import CoresetStep
from corebatch.batch.pool import gather_pool, gather_scores
from corebatch.batch.small_batch import LocalRows
from corebatch.batch.strategies import Strategy
from corebatch.distributed.ranks import Ranks
from corebatch.errors import DataError, NonFiniteError
from corebatch.model.rows import Padding
from corebatch.seeds import seeded

Load = Callable[[Sequence[int]], tuple[Sequence[dict[str, Tensor]], Padding]]
"""Rows of the target by number, as batches on the device that carry these numbers for ids."""


class Target:
    """Refreshes `method.validation`, the same on every rank.

    The features are those of the pool's rows, in the units of the loss, so that their mean is, up to a factor, the
    gradient of the target's loss. Each look takes the next rows of an order that is drawn anew when all had their turn.

    Args:
        method: whose scorer and selector it serves; it has the settings.
        strategy: by which forwards see rows, the pool's.
        count: rows of the target.
        load: reads some of them.
        micro_batch, sharded: as in `Forwards`.
    """

    def __init__(
        self, method: CoresetStep, strategy: Strategy, count: int, load: Load, *, micro_batch: int, sharded: bool
    ) -> None:
        assert method.target is not None
        self.method, self.settings, self.count, self._load = method, method.target, count, load
        self._forwards = Forwards(
            strategy, method.scorer, loss=method.loss, seed=method.seed, micro_batch=micro_batch, sharded=sharded
        )
        self._looks, self._last = 0, -1

    def rows(self, look: int) -> list[int]:
        """Whose turn it is, in ascending order."""
        taken = min(self.settings.rows, self.count)
        turn, part = divmod(look, self.count // taken)
        order = torch.randperm(self.count, generator=seeded(self.method.seed, turn, "target"))
        return sorted(order[part * taken : (part + 1) * taken].tolist())

    def refresh(self, ranks: Ranks, model: nn.Module, step: int) -> None:
        """Looks at the target if that is due at optimizer step `step`, from 0.

        Raises:
            DataError: a row cannot be read, or none of them has a trained token.
            NonFiniteError: a feature is not finite; names the rows.
        """
        if self._looks and step < self._last + self.settings.every:
            return
        rows = self.rows(self._looks)
        shares = [rows[rank :: ranks.count] for rank in range(ranks.count)]
        mine = shares[ranks.index]
        failure: Exception | None = None
        try:
            batches, padding = self._load(mine or rows[:1])  # a rank without rows runs the same forwards
        except Exception as error:  # the user's data set and collator
            failure = error
        ranks.report(failure, doing="Reading the target")
        held = LocalRows(
            batches=batches,
            eligible=torch.full((max(len(mine), 1),), bool(mine)),
            counts=[max(len(share), 1) for share in shares],
            padding=padding,
        )
        pool = gather_pool(ranks, held.columns(), held.counts)
        if not int(pool.tokens[pool.eligible].sum()):
            raise DataError(f"Rows of the target should have trained tokens. Found none in {len(rows)} rows.")
        every = torch.arange(len(pool.ids))
        found = self._forwards.score(ranks, model, batches, pool, every, padding)
        assert found is not None
        features = gather_scores(ranks, pool, every, found).features[pool.eligible.to(found.features.device)]
        bad = ~torch.isfinite(features).all(dim=1).cpu()
        if bool(bad.any()):
            names = ", ".join(map(str, pool.ids[pool.eligible][bad].tolist()[:8]))
            raise NonFiniteError(
                f"Every feature of the target should be finite. Found NaN or infinity in rows {names}."
            )
        self.method.validation = features.mean(dim=0, keepdim=True)
        self._looks, self._last = self._looks + 1, step

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        mean = {} if self.method.validation is None else {"mean": self.method.validation.cpu()}
        looks = {"looks": torch.tensor(self._looks), "last": torch.tensor(self._last)}
        return {**mean, **looks, **self._forwards.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        self.method.validation = state.get("mean")
        self._looks, self._last = int(state["looks"]), int(state["last"])
        self._forwards.load_state_dict(state)
