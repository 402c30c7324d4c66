"""One step, on one page: a rank's rows of the pool go in, its micro-batches of the small batch come out.

    1 pool     what is known of every row, and by how much it counts (`batch/claims.py`), on every rank alike
    2 scores   of those rows that the plan wants, by forwards on the rank that holds them
    3 choice   which rows are trained, and the selector's weights: the same on every rank
    4 weights  by what each row's loss is multiplied, and the denominator (`batch/weights.py`)
    5 rows     change ranks for the balance of work, and become micro-batches

There is no Trainer in it: `trainer/` calls it with what its host knows.

Shape suffixes: N rows of the large batch, M of the small, n on this rank.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from corebatch.batch.claims import Claim, Claims
from corebatch.batch.cuts import Cut
from corebatch.batch.error_tracking import ErrorTracking, Step
from corebatch.batch.layout import Cutting, Layout
from corebatch.batch.line import step_line
from corebatch.batch.method import Choice, CoresetStep
from corebatch.batch.micro_batches import as_loaded, micro_batches
from corebatch.batch.plan import Plan
from corebatch.batch.pool import Pool, gather_pool, gather_scores, under
from corebatch.batch.scoring import Scoring
from corebatch.batch.small_batch import Clock, LocalRows, Places, SmallBatch, held_rows
from corebatch.batch.trained_losses import TrainedLosses
from corebatch.batch.weights import LossWeights, loss_weights
from corebatch.distributed.exchange import RowFormat
from corebatch.distributed.heartbeat import Presence
from corebatch.distributed.ranks import Ranks
from corebatch.errors import NonFiniteError
from corebatch.model.flops import ModelFlops
from corebatch.model.moments import second_moments
from corebatch.model.recompute import BlockStates
from corebatch.model.rows import Padding, take_rows
from corebatch.scoring import LossUnit, Scores
from corebatch.types import PLACES

logger = logging.getLogger(__name__)


Chooses = Callable[[Pool, Plan, Scores | None], Choice]


class BatchStep:
    """The steps of one run, on one rank.

    Args:
        ranks: who takes part.
        presence: where the others read how far this rank is.
        method: normalises, sparsifies, selects.
        scoring: plans, scores, remembers.
        pool_factor: N / M.
        loss: what is minimised.
        cut: how rows are cut into micro-batches.
        rows: of a micro-batch as the Trainer is told.

    Attributes:
        claims: what the steps claim.
        row_format: of the rows of all ranks, once they agree on it.
        states: keeps the scoring forward's block inputs for training, or None.
        losses: of the rows that a step trains, by source; None where they are not asked for.
        packed, flash: whether micro-batches are rows without padding, and with the arguments of flash attention.
        flops: of the model, for a cut by them.
        longest: positions of a row that the model can take, or None.
        mean_over: whose tokens the Trainer's own loss is a mean of (ranks keep their rows; rows have weights).
        tracking: measures the gradient's error at every `track_every`-th step; 0 is never.
        device: of the rows.
    """

    def __init__(
        self,
        ranks: Ranks,
        presence: Presence,
        method: CoresetStep,
        scoring: Scoring,
        *,
        pool_factor: int,
        loss: LossUnit,
        cut: Cut,
        rows: int,
    ) -> None:
        self.ranks, self.presence, self.method, self.scoring = ranks, presence, method, scoring
        self.pool_factor, self.loss, self.cut, self.rows = pool_factor, loss, cut, rows
        self.claims = Claims()
        self.row_format: RowFormat | None = None
        self.states: BlockStates | None = None
        self.losses: TrainedLosses | None = None
        self.packed = self.flash = False
        self.mean_over: Literal["step", "rank", "micro_batch"] = "step"
        self.flops: ModelFlops | None = None
        self.longest: int | None = None
        self.tracking: ErrorTracking | None = None
        self.track_every, self.device = 0, torch.device("cpu")
        self._pending: tuple[Pool, int] | None = None
        self._pool_tokens = torch.zeros(0, dtype=torch.long)
        self._told: str | None = None

    # ---- the page ------------------------------------------------------------------------------------------------

    def run(
        self, model: nn.Module, rows: LocalRows, step: int, *, given: int, asked: int, clock: Clock, choose: Chooses
    ) -> SmallBatch:
        """The small batch of optimizer step `step`, from 0.

        Args:
            model: without what wraps it.
            given: in how many batches a rank's rows came, at most.
            asked: how many micro-batches each rank trains; more than `given` at the end of a stream.
            choose: chooses of the pool; in the end `BatchStep.choose`.
        """
        ranks, scoring = self.ranks, self.scoring
        pool = gather_pool(ranks, rows.columns(), rows.counts, repeats=rows.repeats or self.pool_factor == 1)
        clock.end("exchange")
        budget = self.budget(int(pool.eligible.sum()), given)
        claim = self.claims.of(pool.ids, pool.sources, pool.tokens, step)
        pool, claim = under(pool, claim, budget, every_row=self.pool_factor == 1)
        plan = scoring.plan(pool, budget, step)
        mine = scoring.score(ranks, model, rows.batches, pool, plan.exact, rows.padding, self.states, step)
        clock.end("score")
        scores = None if mine is None else gather_scores(ranks, pool, plan.exact, mine)
        clock.end("exchange")
        choice = choose(pool, plan, scores)
        clock.end("select")
        selected, chosen = choice.selection.weights, plan.candidates[choice.selection.indices.cpu()]
        if self.states is not None:
            self.states.retain(chosen[pool.ranks[chosen] == ranks.index].tolist())
        cutting = self.cutting(rows.padding)
        layout = cutting.lay_out(pool, chosen, asked)
        weights = loss_weights(
            selected, choice.selection.indices, pool.tokens[plan.candidates],
            loss=self.loss, weighted=self.method.selector.weighted, slots=len(chosen) + layout.empty,
            groups=self.mean_over == "micro_batch" and not self.as_loaded, claim=claim.take(plan.candidates),
        )  # fmt: skip
        error = self._gradient_error(model, rows, pool, plan, chosen, claim, weights, step, clock)
        if self.losses is not None:
            self.losses.begin(pool, chosen, selected, sum(map(len, layout.pieces[ranks.index])))
        made = self._micro_batches(rows, pool, chosen, layout, weights, cutting.widths.padding)
        self._pool_tokens, self._pending = pool.tokens, None if scoring.trained is None else (pool, step)
        line = step_line(
            pool, plan, scores, choice, layout, scoring, ranks, names=self.method.source_names, states=self.states,
            drawn_losses=self.losses is not None,
        )  # fmt: skip
        if self.claims.online is not None:
            line |= self.claims.online.line(pool, plan, scores)
        passed = torch.ones(len(pool.ids), dtype=torch.bool).index_fill(0, chosen, False)
        return SmallBatch(
            micro_batches=made,
            weights=weights,
            pool_ids=pool.ids,
            chosen=pool.ids[chosen].tolist(),
            passed=pool.ids[plan.candidates[passed[plan.candidates]]].tolist(),
            selected=None if choice.selection.uniform else selected.tolist(),
            line=line if error is None else {**line, "gradient_error": error},
        )

    @property
    def as_loaded(self) -> bool:
        """Whether every row is trained, in the loader's own micro-batches."""
        return self.pool_factor == 1 and not self.cut.regroups and not self.packed

    def budget(self, eligible: int, given: int) -> int:
        """M: a pool_factor-th of the eligible rows, a row for each micro-batch that was drawn at least."""
        return min(eligible, max(math.ceil(eligible / self.pool_factor), given * self.ranks.count))

    # ---- its parts -----------------------------------------------------------------------------------------------

    def choose(self, pool: Pool, plan: Plan, scores: Scores | None, step: int, optimizer: Any) -> Choice:
        """What is trained of a pool, as rows of the plan's candidates.

        Args:
            step: of the optimizer, from 0.
            optimizer: the live one, for a normaliser that needs its moments.

        Raises:
            NonFiniteError: a feature or loss is not finite; names the examples.
        """
        try:
            self.scoring.remember(pool, plan, scores, step)
            moments, normalise = None, self.method.normalise
            if normalise is not None and normalise.needs_moments:
                moments = second_moments(optimizer, self.method.scorer.coordinates())
            return self.scoring.choose(pool, plan, scores, step, moments)
        except NonFiniteError as error:
            if scores is None:
                raise
            bad = ~torch.isfinite(scores.features).all(dim=1)
            if scores.losses is not None:
                bad |= ~torch.isfinite(scores.losses)
            examples = pool.ids[plan.exact[bad.cpu()]].tolist()
            shown = ", ".join(map(str, examples[:8])) + (", ..." if len(examples) > 8 else "")
            raise NonFiniteError(f"At step {step + 1}, examples {shown} of the train set: {error}") from None

    def _gradient_error(
        self,
        model: nn.Module,
        rows: LocalRows,
        pool: Pool,
        plan: Plan,
        chosen: Tensor,
        claim: Claim,
        weights: LossWeights,
        step: int,
        clock: Clock,
    ) -> dict[str, Any] | None:
        """At every so-many-th step, how far the small batch's gradient is from the large batch's."""
        if self.tracking is None or not self.track_every or (step + 1) % self.track_every:
            return None
        assert self.row_format is not None
        clock.end("repack")
        self.presence.at(step + 1, "tracking")
        drawn = Step(
            batches=rows.batches,
            pool=pool,
            candidates=plan.candidates,
            chosen=chosen,
            claim=claim.take(plan.candidates),
            weights=weights.rows,
            denominator=weights.denominator,
        )
        found = self.tracking.measure(self.ranks, model, drawn, step + 1, rows.padding, self.row_format.by_token)
        clock.end("track")
        return found

    def cutting(self, padding: Padding) -> Cutting:
        """How rows become micro-batches, where the collator pads so. A row whose scoring forward is kept for training
        is dearer to move than a rank that waits a little."""
        plain_loss = self.loss == "token_mean" and not self.method.selector.weighted
        return Cutting(
            cut=self.cut,
            world=self.ranks.count,
            rows=self.rows,
            every_row=self.pool_factor == 1,
            stays=self.states is not None or (self.mean_over == "rank" and plain_loss),
            padding=padding,
            longest=self.longest,
            packed=self.packed,
            cost=float if self.flops is None else self.flops.row,
        )

    def _micro_batches(
        self, rows: LocalRows, pool: Pool, chosen: Tensor, layout: Layout, weights: LossWeights, padding: Padding
    ) -> list[dict[str, Any]]:
        """This rank's share of the chosen rows as micro-batches, rows that change ranks included."""
        rank, losses, pieces = self.ranks.index, self.losses, layout.pieces[self.ranks.index]
        told = losses is not None and (weights.rows is not None or not losses.only_weighted)
        placed = told or self.states is not None or self.scoring.trained is not None
        numbers = chosen.tolist() if placed else None
        if self.as_loaded and len(pieces) == len(rows.batches):
            made = as_loaded(rows.batches, weights.rows, pieces, numbers)
        else:
            assert self.row_format is not None
            made = micro_batches(
                held_rows(self.ranks, self.row_format, rows, pool, chosen, layout.shares, self.device),
                weights.rows,
                pieces,
                padding,
                take_rows(rows.batches, [layout.filler[rank]])[0],
                numbers=numbers,
                packed=self.packed,
                flash=self.packed and self.flash,
            )
        for batch in made if placed else []:
            batch[PLACES] = Places(batch[PLACES])
        return made

    # ---- while and after the small batch is trained ----------------------------------------------------------------

    def replaying(self, places: Places | None, inputs: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Hands the scoring forward's block inputs to this micro-batch's forward, where all its rows are kept."""
        if places is None or self.states is None or not self.states.has(places.rows[:, 0].tolist()):
            return nullcontext()
        return self.states.recall(places.rows, inputs)

    def register(self, places: Places | None, weights: Tensor) -> None:
        """Tells whoever learns from the backward which examples a micro-batch holds, and their weights."""
        if places is None or self.scoring.trained is None:
            return
        rows = places.rows
        each = weights[rows[:, 1]] if weights.ndim == 1 else weights[rows[:, 1], rows[:, 3] - 1]
        self.scoring.trained.announce(rows, each, self._pool_tokens[rows[:, 0].clamp(min=0)])

    def update_memory(self) -> None:
        """Remembers what the last step trained; on every rank at the same place."""
        if self._pending is not None:
            pool, step = self._pending
            self._pending = None
            self.scoring.absorb(self.ranks, pool, step)

    def forget_states(self, *, watched: bool, changed: str) -> None:
        """Lets go of the block inputs that the last step kept.

        Args:
            watched: whether somebody's code may change weights between scoring and training.
            changed: the reason to give if it has.
        """
        states = self.states
        if states is None:
            return
        if states.changed:
            states.reason = changed
        states.watched = watched
        states.retain(())
        states.peak_bytes = 0  # the record's is each step's own: a resumed run has not seen the others
        if states.reason is not None and states.reason != self._told:
            self._told = states.reason
            if self.ranks.index == 0:
                logger.warning("Some scoring forwards are not reused for training. %s", self._told)
