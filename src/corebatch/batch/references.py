"""What a reference's loss of each example is: computed once, and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.batch.forwards import Forwards
from corebatch.batch.pool import Pool, gather_scores
from corebatch.batch.strategies.full import Full
from corebatch.distributed.ranks import Ranks
from corebatch.errors import CheckpointError, ConfigError
from corebatch.model.rows import Padding
from corebatch.scoring import LossUnit, Scores
from corebatch.scoring.excess_loss import ExcessLoss
from corebatch.scoring.references import WeightAverage


class ReferenceLosses:
    """The losses of `excess_loss`'s reference by example id, the same on every rank.

    Args:
        scorer: whose reference it is.
        rows: of a forward, as in `Strategy.rows`.
        loss, seed, micro_batch, sharded: as in `Forwards`.

    Attributes:
        fresh: how many rows of the last pool were new to the reference.
    """

    def __init__(
        self, scorer: ExcessLoss, *, rows: Any, loss: LossUnit, seed: int, micro_batch: int, sharded: bool
    ) -> None:
        self.scorer, self._sharded = scorer, sharded
        against = scorer.against
        self.reference = against.reference
        self._forwards = Forwards(
            Full(rows=rows), against, loss=loss, seed=seed, micro_batch=micro_batch, sharded=sharded
        )
        self._losses: dict[int, float] = {}
        self._steps: dict[int, int] = {}
        self._digest: str | None = None
        self.fresh = 0

    def prepare(self, model: nn.Module) -> None:
        """Loads the reference, before the first step.

        Raises:
            ConfigError: it cannot be loaded, is of another vocabulary, or does not go with how weights are divided.
            CheckpointError: the losses that a checkpoint holds are another reference's.
        """
        if self._sharded and not self.reference.other:
            raise ConfigError(
                f"The reference {self.reference.in_words} is made of weights that this engine divides over ranks. Give "
                "scorer_options.reference the path of a model."
            )
        found = self.reference.prepare(model)
        if self._digest is not None and found != self._digest:
            raise CheckpointError(
                f"The checkpoint holds losses by a reference with weights {self._digest}. Found {found} in "
                f"{self.reference.in_words}: it was changed or trained further. Put it back, or start anew."
            )
        self._digest = found

    def follow(self, model: nn.Module, step: int) -> None:
        """Tells an average of the weights after so many optimizer steps."""
        if isinstance(self.reference, WeightAverage):
            self.reference.follow(model, step)

    def excess(
        self,
        ranks: Ranks,
        model: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        pool: Pool,
        exact: Tensor,
        padding: Padding,
        mine: Scores,
        step: int,
    ) -> Scores:
        """This rank's scores with excess losses for features; the reference scores rows that are new to it.

        Args:
            batches, pool, exact, padding: as in `Forwards.score`.
            mine: of this rank's rows of `exact`, with their losses.
            step: of the optimizer, from 0.
        """
        fresh = exact[[not self._knows(example, step) for example in pool.ids[exact].tolist()]]
        self.fresh = len(fresh)
        found = self._forwards.score(ranks, model, batches, pool, fresh, padding)
        if found is not None:
            losses = gather_scores(ranks, pool, fresh, found).features[:, 0].cpu().tolist()
            self._losses.update(zip(pool.ids[fresh].tolist(), losses, strict=True))
            if self.scorer.refresh is not None:
                self._steps.update(dict.fromkeys(pool.ids[fresh].tolist(), step))
        assert mine.losses is not None  # a forward of the model as it is
        rows = exact[pool.ranks[exact] == ranks.index]
        known = torch.tensor([self._losses[example] for example in pool.ids[rows].tolist()], dtype=torch.float64)
        features = self.scorer.excess(mine.losses, known.to(mine.losses.device), mine.tokens.to(mine.losses.device))
        return dataclasses.replace(mine, features=features)

    def _knows(self, example: int, step: int) -> bool:
        refresh = self.scorer.refresh
        return example in self._losses and (refresh is None or step - self._steps[example] < refresh)

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        state = {
            "ids": torch.tensor(list(self._losses), dtype=torch.long),
            "losses": torch.tensor(list(self._losses.values()), dtype=torch.float64),
            "digest": torch.tensor(list((self._digest or "").encode()), dtype=torch.uint8),
        }
        if self.scorer.refresh is not None:
            state["steps"] = torch.tensor([self._steps[example] for example in self._losses], dtype=torch.long)
        own = self.reference.state_dict() if isinstance(self.reference, WeightAverage) else {}
        return state | self._forwards.state_dict() | {f"reference.{key}": each for key, each in own.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        ids = state["ids"].tolist()
        self._losses = dict(zip(ids, state["losses"].tolist(), strict=True))
        self._steps = dict(zip(ids, state["steps"].tolist(), strict=True)) if "steps" in state else {}
        self._digest = bytes(state["digest"].tolist()).decode()
        self._forwards.load_state_dict(state)
        if isinstance(self.reference, WeightAverage):
            own = {key.removeprefix("reference."): each for key, each in state.items() if key.startswith("reference.")}
            self.reference.load_state_dict(own)
