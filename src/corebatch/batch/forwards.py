"""The scoring forwards of a step: each rank scores its own rows, in forwards of its own shape, equally many on every
rank, longest rows first.

Shape suffixes: E rows of this rank that are scored, P feature columns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from corebatch.batch.pool import Pool
from corebatch.batch.strategies import Strategy
from corebatch.distributed.ranks import Ranks
from corebatch.errors import ConfigError
from corebatch.model.model_flops import largest
from corebatch.model.modes import base_model
from corebatch.model.recompute import BlockStates
from corebatch.model.rows import Padding, put_together, take_rows
from corebatch.sampling.tags import untagged
from corebatch.scoring import LossUnit, Scorer, Scores
from corebatch.scoring.value_gradients import ValueGradientScorer

logger = logging.getLogger(__name__)

FREE_SHARE = 0.25
"""The part of a GPU's free memory that one scoring forward may take by our estimate."""


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device: of a GPU, or of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


@dataclass(slots=True)
class Work:
    """What this rank's scoring forwards of one step came to."""

    forwards: int = 0
    tokens: int = 0
    positions: int = 0


class Forwards:
    """Runs a scorer on a pool's rows, as a strategy has them seen.

    Args:
        strategy: the way of scoring.
        scorer: gives the features.
        loss: their unit.
        seed: of the scorer.
        micro_batch: rows of a training micro-batch.
        sharded: whether forwards on all ranks must run in step (FSDP, DeepSpeed), so that a rank cannot try again
            by itself when its memory runs out.

    Attributes:
        positions: of one forward at most, once it is decided: where the strategy leaves it to us, or after memory ran
            out.
        work: of the last step.
    """

    def __init__(
        self, strategy: Strategy, scorer: Scorer, *, loss: LossUnit, seed: int, micro_batch: int, sharded: bool
    ) -> None:
        self.strategy, self.scorer, self.loss, self.seed = strategy, scorer, loss, seed
        self.micro_batch, self.sharded = micro_batch, sharded
        self.positions: int | None = None
        self.work = Work()
        self._changed = strategy.changed_forward()

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint: how large forwards are, or other ones would round otherwise after a resume."""
        return {} if self.positions is None else {"positions": torch.tensor(self.positions)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        self.positions = int(state["positions"]) if "positions" in state else None

    def score(
        self,
        ranks: Ranks,
        model: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        pool: Pool,
        exact: Tensor,
        padding: Padding,
        states: BlockStates | None = None,
    ) -> Scores | None:
        """Scores of those rows of `exact` that this rank holds, in their order; None if no rank has any.

        Args:
            ranks: who scores; a failure on one rank ends the run on all.
            batches: the pool's rows on this rank.
            exact: LongTensor, ascending: positions in the pool.
            padding: how rows are put together.
            states: keeps the blocks' inputs of what is scored, under the rows' positions in the pool.
        """
        self.work = Work()
        if not len(exact):
            return None
        mine = exact[pool.ranks[exact] == ranks.index]
        if self.scorer.needs_forward:
            return self._sorted(ranks, model, batches, pool, mine, padding, states)
        failure: Exception | None = None
        try:
            scores = Scores.cat([self._run(model, untagged(batch)) for batch in batches]).take(pool.rows[mine])
        except Exception as error:
            failure = error
        ranks.report(failure)
        return scores

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Scores:
        return self.scorer.run(model, batch, loss=self.loss, seed=self.seed)

    def _sorted(
        self,
        ranks: Ranks,
        model: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        pool: Pool,
        mine: Tensor,
        padding: Padding,
        states: BlockStates | None,
    ) -> Scores:
        held = take_rows(batches, pool.rows[mine].tolist())
        rows = [self.strategy.shorten(untagged(row)) for row in held]
        scale = self.strategy.scale(rows, pool.tokens[mine], self.loss)
        lengths = [len(row["input_ids"]) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: -lengths[i])
        widths = [_rounded_up(lengths[i], padding.multiple_of) for i in order]
        pieces = self._cut(widths, model, _rounded_up(int(pool.lengths.max()), padding.multiple_of))
        # Ranks with fewer forwards repeat a row, so that all run equally many: sharded engines wait for each other.
        most = int(ranks.report(None, len(pieces)).max())
        filler = rows[order[-1]] if rows else untagged(take_rows(batches, [0])[0])
        parts, idle, done = [], [], 0
        failure: Exception | None = None
        try:
            for size in pieces:
                piece = [(int(mine[i]), rows[i]) for i in order[done : done + size]]
                parts += self._forward(model, piece, padding, states)
                done += size
            for _ in range(most - len(pieces)):
                idle = self._forward(model, [(-1, filler)], padding, None)
        except Exception as error:  # the others are told before it is raised
            failure = error
        ranks.report(failure)
        scores = Scores.cat(parts) if parts else idle[0].take(mine)
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
        scores = scores.take(back)
        features = scores.features if scale is None else scores.features * scale.to(scores.features).unsqueeze(1)
        losses = None if self.strategy.own_forward else scores.losses
        return Scores(features=features, losses=losses, tokens=pool.tokens[mine])

    def _cut(self, lengths: Sequence[int], model: nn.Module, longest: int) -> list[int]:
        """Sizes of forwards over rows of falling length, each with at most `positions` positions."""
        rows = self.strategy.rows
        if rows == "auto":
            if self.positions is None:
                self.positions = self._default_positions(model, longest)
            most = self.positions
        else:
            most = rows * longest
            if self.positions is not None:  # memory ran out with that many
                most = min(most, self.positions)
        sizes: list[int] = []
        first = 0
        for number in range(len(lengths)):
            if not sizes or (number - first + 1) * lengths[first] > most:
                sizes.append(0)
                first = number
            sizes[-1] += 1
        return sizes

    def _default_positions(self, model: nn.Module, longest: int) -> int:
        """On a CPU what takes no more memory than a training micro-batch: its worth, or under activation checkpointing,
        where training holds the inside of one block at a time, that share of it which the last blocks' graph leaves.
        On a GPU more where memory allows, by a rough estimate of what scoring holds for a position."""
        text: Any = base_model(model).config.get_text_config()
        blocks = largest(text, "num_hidden_layers") or 1
        graph = self.scorer.count(blocks) if isinstance(self.scorer, ValueGradientScorer) else 1
        least = self.micro_batch * longest
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            least = max(longest, least // graph)
        device = next(model.parameters()).device
        if device.type != "cuda":
            return least
        hidden = largest(text, "hidden_size") or 4096
        inner = largest(text, "intermediate_size") or 4 * hidden
        each = (1 + graph) * (16 * hidden + 6 * inner) * (2 if torch.is_autocast_enabled("cuda") else 4)
        return max(least, int(FREE_SHARE * free_memory(device)) // each)

    def _forward(
        self,
        model: nn.Module,
        rows: Sequence[tuple[int, Mapping[str, Tensor]]],
        padding: Padding,
        states: BlockStates | None,
    ) -> list[Scores]:
        """One forward over some rows; where memory runs out, two over half of them each."""
        batch = put_together([row for _, row in rows], padding)
        kept = nullcontext() if states is None else states.keep([number for number, _ in rows], batch)
        try:
            with self._changed(model, batch), kept:
                scores = self._run(model, batch)
        except torch.OutOfMemoryError as error:
            if self.sharded:
                raise ConfigError(
                    f"Memory ran out while scoring {len(rows)} rows in one forward. On a sharded engine every rank "
                    f"must run the same forwards: set coreset.scoring.rows below {len(rows)}."
                ) from error
            if len(rows) == 1:
                raise
        else:
            self.work.forwards += 1
            self.work.tokens += sum(len(row["input_ids"]) for number, row in rows if number >= 0)
            self.work.positions += batch["input_ids"].numel()
            return [scores]
        half = -(-len(rows) // 2)
        torch.cuda.empty_cache()
        self.positions = max(1, batch["input_ids"].numel() // 2)
        logger.warning(
            "Memory ran out while scoring %d rows in one forward; going on with %d. Set coreset.scoring.rows to avoid "
            "the attempt.",
            len(rows),
            half,
        )
        first, second = rows[:half], rows[half:]
        return [*self._forward(model, first, padding, states), *self._forward(model, second, padding, states)]


def _rounded_up(length: int, multiple_of: int) -> int:
    return -(-length // multiple_of) * multiple_of
