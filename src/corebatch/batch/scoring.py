"""The scoring of a run: a strategy, its forwards, and what is remembered from step to step."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.batch.followed import POOL, followed
from corebatch.batch.forwards import Forwards
from corebatch.batch.method import Choice, CoresetStep
from corebatch.batch.plan import Draw, Plan
from corebatch.batch.pool import Pool
from corebatch.batch.references import ReferenceLosses
from corebatch.batch.strategies import Strategy, Unscored
from corebatch.batch.target import Target
from corebatch.distributed.ranks import Ranks
from corebatch.errors import NonFiniteError
from corebatch.memory import FeatureMemory
from corebatch.model.recompute import BlockStates
from corebatch.model.rows import Padding
from corebatch.scoring import ExcessLoss, Loss, LossUnit, Scores, Tokens, extents
from corebatch.scoring.trained import TrainedFeatures
from corebatch.scoring.value_gradients import ValueGradientScorer

logger = logging.getLogger(__name__)


class Scoring:
    """Scores pools and chooses from them by a strategy; remembers what it asks to be remembered.

    Args:
        strategy: the way of scoring, resolved.
        step: the stages that choose, with the seed.
        loss: the unit of features.
        micro_batch: rows of a training micro-batch.
        sharded: whether forwards on all ranks must run in step.

    Attributes:
        forwards: score a plan's rows.
        memory: of examples, or None.
        trained: takes features out of the backward of training, or None.
        references: what the scorer's reference says of examples, or None.
        target: keeps the mean gradient of the target's rows, or None.
        reuse_bytes: the cap on what is kept of scoring forwards, once it is decided. Like the positions of a forward
            it depends on the free memory of the moment and is kept over a resume: other forwards would round otherwise.
    """

    def __init__(
        self, strategy: Strategy, step: CoresetStep, *, loss: LossUnit, micro_batch: int, sharded: bool = False
    ) -> None:
        self.strategy, self.step, self.loss, self.micro_batch = strategy, step, loss, micro_batch
        self.scorer = step.scorer if step.scores else Tokens()  # e.g. random looks at nothing
        forwards: Any = {"loss": loss, "seed": step.seed, "micro_batch": micro_batch, "sharded": sharded}
        self.references: ReferenceLosses | None = None
        scorer = self.scorer
        if isinstance(scorer, ExcessLoss) and scorer.reference is not None:
            self.references, scorer = ReferenceLosses(scorer, rows=strategy.rows, **forwards), Loss()
        self.forwards = Forwards(strategy, scorer, **forwards)
        self.memory = FeatureMemory(step.seed) if strategy.remembers else None
        self.trained: TrainedFeatures | None = None
        if strategy.learns and isinstance(self.scorer, ValueGradientScorer):
            self.trained = TrainedFeatures(self.scorer, loss=loss, seed=step.seed)
        self.target: Target | None = None
        self.reuse_bytes: int | None = None
        self._silent = False

    @property
    def way(self) -> str:
        """The way of scoring, or "none" for a selector or scorer that needs no forward."""
        return self.strategy.way if self.scorer.needs_forward else Unscored.way

    def plan(self, pool: Pool, budget: int, step: int) -> Plan:
        """Which rows are scored at this optimizer step."""
        return self.strategy.plan(self._draw(pool, budget, step))

    def _draw(self, pool: Pool, budget: int, step: int) -> Draw:
        memory = FeatureMemory(self.step.seed) if self.memory is None else self.memory
        return Draw(pool=pool, budget=budget, step=step, method=self.step, loss=self.loss, memory=memory)

    def tokens_scored(self, pool: Pool, rows: Tensor) -> int:
        """Tokens without padding that scoring the pool's `rows` takes, over all ranks."""
        return int(self.strategy.lengths(pool.lengths[rows]).sum())

    def score(
        self,
        ranks: Ranks,
        model: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        pool: Pool,
        exact: Tensor,
        padding: Padding,
        states: BlockStates | None,
        step: int,
    ) -> Scores | None:
        """Scores of those rows of `exact` that this rank holds (`Forwards.score`); None if no rank has any."""
        if self.target is not None:
            self.target.refresh(ranks, model, step)
        mine = self.forwards.score(ranks, model, batches, pool, exact, padding, states)
        if self.references is None or mine is None:
            return mine
        return self.references.excess(ranks, model, batches, pool, exact, padding, mine, step)

    def remember(self, pool: Pool, plan: Plan, scores: Scores | None, step: int) -> None:
        """Takes the scored rows into the memory.

        Raises:
            NonFiniteError: a feature is not finite.
        """
        if self.memory is None or scores is None:
            return
        bad = int((~torch.isfinite(scores.features).all(dim=1)).sum())
        if bad:
            raise NonFiniteError(f"Every feature should be finite. Found NaN or infinity in {bad} rows.")
        tokens, losses = pool.tokens[plan.exact], None if scores.losses is None else scores.losses.cpu()
        if losses is not None and self.loss == "example_mean":
            losses = losses / tokens.clamp(min=1)
        narrow = self.memory.narrow(scores.features)
        self.memory.update(pool.ids[plan.exact], narrow, extents(tokens, self.loss), step, losses)

    def choose(self, pool: Pool, plan: Plan, scores: Scores | None, step: int, second_moments: Tensor | None) -> Choice:
        """The small batch, as rows of `plan.candidates`.

        Raises:
            NonFiniteError: a feature or loss is not finite; the rows are named.
        """
        return self.strategy.choose(self._draw(pool, plan.budget, step), plan, scores, second_moments)

    def absorb(self, ranks: Ranks, pool: Pool, step: int) -> None:
        """Takes the features of what was trained at this step into the memory, those of all ranks on every rank."""
        if self.trained is None or self.memory is None:
            return
        self.trained.quiet()
        taken = self.trained.take()
        positions = torch.zeros(0, dtype=torch.long) if taken is None else taken[0]
        narrow = torch.zeros(0, 0) if taken is None else self.memory.narrow(taken[1])
        sizes = ranks.report(None, len(positions), narrow.shape[1])
        counts, width = sizes[:, 0].tolist(), int(sizes[:, 1].max())
        if width and ranks.count > 1:
            narrow = ranks.gather_rows(narrow.view(-1, width), counts, "learnt").cpu()
            positions = ranks.gather_rows(positions, counts, "learnt").cpu()
        if not len(positions):
            self._nothing_learnt()
            return
        order = positions.sort(stable=True).indices
        positions, narrow = positions[order], narrow[order]
        self.memory.update(pool.ids[positions], narrow, extents(pool.tokens[positions], self.loss), step)

    def _nothing_learnt(self) -> None:
        if not self._silent:
            logger.warning(
                "Nothing was learnt from training: no gradient reached the value projections that %s looks at. Are "
                "they trained, or anything before them?",
                self.scorer.name,
            )
        self._silent = True

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint: the memory, and how large scoring forwards are."""
        state = {} if self.memory is None else {f"memory.{k}": v for k, v in self.memory.state_dict().items()}
        if self.references is not None:
            state |= {f"references.{key}": value for key, value in self.references.state_dict().items()}
        if self.target is not None:
            state |= {f"target.{key}": value for key, value in self.target.state_dict().items()}
        kept = {} if self.reuse_bytes is None else {"reuse_bytes": torch.tensor(self.reuse_bytes)}
        return state | kept | self.forwards.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        memory = {key.removeprefix("memory."): value for key, value in state.items() if key.startswith("memory.")}
        if self.memory is not None and memory:
            self.memory.load_state_dict(memory)
        losses = {k.removeprefix("references."): value for k, value in state.items() if k.startswith("references.")}
        if self.references is not None and losses:
            self.references.load_state_dict(losses)
        if self.target is not None:
            self.target.load_state_dict({k.removeprefix("target."): v for k, v in state.items() if k[:7] == "target."})
        self.forwards.load_state_dict(state)
        self.reuse_bytes = int(state["reuse_bytes"]) if "reuse_bytes" in state else None


def scored_rows(strategy: Strategy, step: CoresetStep) -> str:
    """What a run scores, in words.

    Args:
        strategy: the way of scoring, resolved.
        step: the stages that choose.
    """
    if not step.scores:
        return f"nothing: {step.selector.name} looks at no scores"
    if not step.scorer.needs_forward:
        return f"nothing: {step.scorer.name} is known without a forward"
    drawn = "by the square root of their trained tokens" if step.loss == "token_mean" else "equally often"
    if strategy.only_learns:
        return f"nothing: rows are chosen by what training taught of them, and those not known are drawn {drawn}"
    rows, follows = strategy.in_words.format(drawn=drawn, **dataclasses.asdict(strategy)), followed(step)
    return rows if follows == POOL else f"{rows}; the choice follows {follows}"
