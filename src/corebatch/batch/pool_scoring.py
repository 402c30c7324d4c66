"""How a step's pool gets its features, and what is chosen by them: exactly, cheaply, or from memory.

Which rows are scored is decided on every rank alike, from what all ranks know of the pool (`Pool`); each rank scores
its own of them in forwards of its own shape, equally many on every rank, longest rows first.

Shape suffixes: N candidates of the pool, E rows that are scored exactly, M chosen rows, P feature columns.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from corebatch.batch.method import Choice, CoresetStep
from corebatch.batch.pool import Pool
from corebatch.distributed.ranks import Ranks
from corebatch.errors import ConfigError, NonFiniteError
from corebatch.memory import FeatureMemory, Recalled
from corebatch.model.early_exit import EarlyExit
from corebatch.model.model_flops import largest
from corebatch.model.modes import base_model
from corebatch.model.recompute import BlockStates
from corebatch.model.rows import Padding, put_together, take_rows
from corebatch.sampling.tags import untagged
from corebatch.scoring import LossUnit, Scores, Tokens
from corebatch.scoring.trained import TrainedFeatures
from corebatch.scoring.value_gradients import ValueGradientScorer
from corebatch.seeds import seeded
from corebatch.selectors import SELECTORS
from corebatch.types import IGNORED, Selection, SourceGroup

logger = logging.getLogger(__name__)

FREE_SHARE = 0.25
"""The part of a GPU's free memory that one scoring forward may take by our estimate."""


DECIDED = ("positions", "reuse_bytes")
"""What depends on the free memory of the moment is decided once, and kept over a resume: other forwards would round
otherwise."""


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device: of a GPU, or of the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known of the candidates before any forward, the same on every rank.

    Attributes:
        candidates: LongTensor [N], ascending: positions in the pool that may be chosen.
        budget: M.
        exact: LongTensor [E], ascending: positions that are scored.
        recalled: what the memory says of the candidates, or None.
        inclusion: float64 [E], for two phases: the probability with which each row came into the first.
    """

    candidates: Tensor
    budget: int
    exact: Tensor
    recalled: Recalled | None = None
    inclusion: Tensor | None = None


@dataclass(slots=True)
class Work:
    """What this rank's scoring forwards of one step came to."""

    forwards: int = 0
    tokens: int = 0
    positions: int = 0


class PoolScoring:
    """Scores pools and chooses from them, in the way that the settings say; remembers what they ask to be remembered.

    Args:
        settings: the way of scoring, resolved.
        step: the stages that choose, with the seed.
        loss: the unit of features.
        micro_batch: rows of a training micro-batch.
        sharded: whether forwards on all ranks must run in step (FSDP, DeepSpeed), so that a rank cannot try again
            by itself when its memory runs out.
    """

    def __init__(
        self,
        settings: Any,
        step: CoresetStep,
        *,
        loss: LossUnit,
        micro_batch: int,
        sharded: bool = False,
    ) -> None:
        self.settings, self.step, self.loss, self.seed = settings, step, loss, step.seed
        self.scorer = step.scorer if step.scores else Tokens()  # e.g. random looks at nothing
        self.micro_batch, self.sharded = micro_batch, sharded
        self.memory = FeatureMemory(step.seed) if self.settings.remembers else None
        self.trained: TrainedFeatures | None = None
        if self.settings.learns and isinstance(self.scorer, ValueGradientScorer):
            self.trained = TrainedFeatures(self.scorer, loss=loss, seed=step.seed)
        self.positions: int | None = None  # of one scoring forward, where the settings leave it to us
        self.reuse_bytes: int | None = None  # the cap on what is kept of scoring forwards, once it is decided
        self.work = Work()
        self._silent = False
        self._early = EarlyExit(self.settings.blocks) if self.settings.way == "first_blocks" else None

    @property
    def way(self) -> str:
        """The way of the settings, or "none" for a selector or scorer that needs no forward."""
        return self.settings.way if self.scorer.needs_forward else "none"

    # ---- before the forwards -------------------------------------------------------------------------------------

    def plan(self, pool: Pool, budget: int, step: int) -> Plan:
        """Which rows are scored at this optimizer step."""
        candidates = pool.eligible.nonzero().flatten()
        if not self.scorer.needs_forward or self.way in ("full", "window", "first_blocks"):
            return Plan(candidates=candidates, budget=budget, exact=candidates)
        tokens = self._extent(pool.tokens[candidates])
        nothing = candidates[:0]
        if self.way == "none":
            recalled = FeatureMemory(self.seed).recall(pool.ids[candidates], tokens, step, None)
            return Plan(candidates=candidates, budget=budget, exact=nothing, recalled=recalled)
        if self.memory is None:  # two phases, the first by tokens
            return self._first_phase(candidates, tokens, None, budget, step)
        recalled = self.memory.recall(pool.ids[candidates], tokens, step, getattr(self.settings, "max_age", None))
        if self.way == "two_phase":
            return self._first_phase(candidates, tokens, recalled, budget, step)
        if self.way == "every":
            exact = candidates if step % self.settings.steps == 0 else nothing
        else:
            exact = candidates[~recalled.known] if self.settings.unknown == "score" else nothing
        return Plan(candidates=candidates, budget=budget, exact=exact, recalled=recalled)

    def _first_phase(
        self, candidates: Tensor, tokens: Tensor, recalled: Recalled | None, budget: int, step: int
    ) -> Plan:
        """Draws the rows that are scored, in proportion to the proxy (two-phase sampling, Neyman 1938)."""
        share, whole = self.settings.share, len(candidates)
        count = math.ceil((budget + whole) / 2) if share is None else max(budget, math.ceil(share * whole))
        if count >= len(candidates):
            return Plan(candidates=candidates, budget=budget, exact=candidates)
        sizes = tokens.double().sqrt()
        if recalled is not None:
            sizes = recalled.sizes if self.settings.proxy == "norm" else recalled.losses
        selection = SELECTORS["importance"]().select(
            sizes.clamp(min=0).float().unsqueeze(1), count, seeded(self.seed, step, "first phase")
        )
        inclusion = count / (len(candidates) * selection.weights.double())
        return Plan(candidates=candidates, budget=budget, exact=candidates[selection.indices], inclusion=inclusion)

    # ---- the forwards --------------------------------------------------------------------------------------------

    def score(
        self,
        ranks: Ranks,
        model: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        pool: Pool,
        plan: Plan,
        padding: Padding,
        states: BlockStates | None = None,
    ) -> Scores | None:
        """Scores of those rows of `plan.exact` that this rank holds, in their order; None if no rank has any.

        Args:
            ranks: who scores; a failure on one rank ends the run on all.
            batches: the pool's rows on this rank.
            padding: how rows are put together.
            states: keeps the blocks' inputs of what is scored, under the rows' positions in the pool.
        """
        self.work = Work()
        if not len(plan.exact):
            return None
        mine = plan.exact[pool.ranks[plan.exact] == ranks.index]
        if self.scorer.needs_forward:
            return self._forwards(ranks, model, batches, pool, mine, padding, states)
        failure: Exception | None = None
        try:
            scores = self._without_forward(model, batches, pool.rows[mine])
        except Exception as error:
            failure = error
        ranks.report(failure)
        return scores

    def _without_forward(self, model: nn.Module, batches: Sequence[Mapping[str, Tensor]], rows: Tensor) -> Scores:
        parts = [self.scorer.run(model, untagged(batch), **self._settings()) for batch in batches]
        return _rows(Scores.cat(parts), rows)

    def _forwards(
        self,
        ranks: Ranks,
        model: nn.Module,
        batches: Sequence[Mapping[str, Tensor]],
        pool: Pool,
        mine: Tensor,
        padding: Padding,
        states: BlockStates | None,
    ) -> Scores:
        rows = [untagged(row) for row in take_rows(batches, pool.rows[mine].tolist())]
        scale = torch.ones(len(rows))
        if self.way == "window":
            rows = [window(row, self.settings.tokens) for row in rows]
            kept = torch.tensor([_trained(row) for row in rows])
            if self.loss == "token_mean":
                scale = (pool.tokens[mine] / kept.clamp(min=1)).sqrt()
        lengths = [len(row["input_ids"]) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: -lengths[i])
        widths = [-(-lengths[i] // padding.multiple_of) * padding.multiple_of for i in order]
        pieces = self._cut(widths, model, -(-int(pool.lengths.max()) // padding.multiple_of) * padding.multiple_of)
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
        scores = Scores.cat(parts) if parts else _rows(idle[0], torch.tensor([], dtype=torch.long))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order, dtype=torch.long)] = torch.arange(len(order))
        scores = _rows(scores, back)
        features = scores.features * scale.to(scores.features).unsqueeze(1) if self.way == "window" else scores.features
        # The loss of an early exit or of a window is not the example's.
        exact = self.way not in ("window", "first_blocks")
        return Scores(features=features, losses=scores.losses if exact else None, tokens=pool.tokens[mine])

    def _cut(self, lengths: Sequence[int], model: nn.Module, longest: int) -> list[int]:
        """Sizes of forwards over rows of falling length, each with at most `positions` positions."""
        if self.settings.rows == "auto":
            if self.positions is None:
                self.positions = self._default_positions(model, longest)
            most = self.positions
        else:
            most = self.settings.rows * longest
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
        numbers = [number for number, _ in rows]
        try:
            with ExitStack() as stack:
                if self._early is not None:
                    stack.enter_context(self._early.cut(model, batch))
                stack.enter_context(nullcontext() if states is None else states.keep(numbers, batch))
                found = self.scorer.run(model, batch, **self._settings())
        except torch.OutOfMemoryError as error:
            if self.sharded:
                raise ConfigError(
                    f"Memory ran out while scoring {len(rows)} rows in one forward. On a sharded engine every rank "
                    f"must run the same forwards: set coreset.scoring.rows below {len(rows)}."
                ) from error
            if len(rows) == 1:
                raise
            half = -(-len(rows) // 2)
        else:
            self.work.forwards += 1
            self.work.tokens += sum(len(row["input_ids"]) for number, row in rows if number >= 0)
            self.work.positions += batch["input_ids"].numel()
            return [found]
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

    def _extent(self, tokens: Tensor) -> Tensor:
        """What an example's gradient grows with the square root of: its trained tokens, or in a mean over examples
        nothing but whether it has any (as in the scorer `tokens`)."""
        return tokens if self.loss == "token_mean" else (tokens > 0).long()

    def _settings(self) -> dict[str, Any]:
        return {"loss": self.loss, "seed": self.seed}

    def tokens_scored(self, pool: Pool, rows: Tensor) -> int:
        """Tokens without padding that scoring the pool's `rows` takes, over all ranks."""
        lengths = pool.lengths[rows]
        return int((lengths.clamp(max=self.settings.tokens) if self.way == "window" else lengths).sum())

    # ---- after the forwards --------------------------------------------------------------------------------------

    def remember(self, pool: Pool, plan: Plan, scores: Scores | None, step: int) -> None:
        """Takes the scored rows into the memory."""
        if self.memory is None or scores is None:
            return
        exact, losses = plan.exact, None if scores.losses is None else scores.losses.cpu()
        if losses is not None and self.loss == "example_mean":
            losses = losses / pool.tokens[exact].clamp(min=1)
        self.memory.update(
            pool.ids[exact],
            self.memory.narrow(_finite(scores)),
            self._extent(pool.tokens[exact]),
            step,
            losses,
        )

    def choose(self, pool: Pool, plan: Plan, scores: Scores | None, step: int, second_moments: Tensor | None) -> Choice:
        """The small batch, as rows of `plan.candidates`.

        Raises:
            NonFiniteError: a feature or loss is not finite; the rows are named.
        """
        candidates, count = plan.candidates, len(plan.candidates)
        sources = pool.sources[candidates]
        if scores is not None and len(plan.exact) == count and plan.inclusion is None:
            return self.step.choose(scores, sources, plan.budget, step=step, second_moments=second_moments)
        if plan.inclusion is not None:
            assert scores is not None
            return self._second_phase(plan, scores, pool, step, second_moments)
        recalled = plan.recalled
        if scores is not None and self.memory is not None:  # what was scored just now is known as well
            tokens = self._extent(pool.tokens[candidates])
            recalled = self.memory.recall(pool.ids[candidates], tokens, step, getattr(self.settings, "max_age", None))
        assert recalled is not None
        return self._known_and_unknown(recalled, sources, pool.tokens[candidates], plan.budget, step)

    def _second_phase(self, plan: Plan, scores: Scores, pool: Pool, step: int, second_moments: Tensor | None) -> Choice:
        """Chooses among the rows of the first phase. Row i stands for E / (N pi_i) rows, so its feature and its weight
        are multiplied by that: the estimate stays one of the whole pool's mean gradient (Saerndal, Swensson and
        Wretman 1992, chapter 9)."""
        assert plan.inclusion is not None
        stands_for = len(plan.exact) / (len(plan.candidates) * plan.inclusion)
        scaled = Scores(
            features=scores.features * stands_for.to(scores.features).unsqueeze(1),
            losses=scores.losses,
            tokens=scores.tokens,
        )
        choice = self.step.choose(
            scaled, pool.sources[plan.exact], plan.budget, step=step, second_moments=second_moments
        )
        rows, weights = choice.selection.indices.cpu(), choice.selection.weights.double().cpu()
        there = torch.searchsorted(plan.candidates, plan.exact[rows])
        groups = [SourceGroup(name="rest", members=torch.arange(len(plan.candidates)), budget=plan.budget)]
        return Choice(selection=Selection(indices=there, weights=(weights * stands_for[rows]).float()), groups=groups)

    def _known_and_unknown(self, recalled: Recalled, sources: Tensor, tokens: Tensor, budget: int, step: int) -> Choice:
        """Chooses apart among the rows whose features are known and among the others, where only a size is guessed.

        Without a direction a row cannot be balanced against others: swaps would favour what looks small, which is
        bias. Each part gets a share of the budget in proportion to its sizes, rounded at random, and its weights are
        multiplied by (M / N)(N_part / M_part).
        """
        count = len(tokens)
        groups = [SourceGroup(name="rest", members=torch.arange(count), budget=budget)]
        if budget == 1 and 0 < int(recalled.known.sum()) < count:  # one row cannot stand for both parts
            alone = self._by_size(recalled.sizes, 1, step)
            return Choice(selection=Selection(indices=alone.indices, weights=alone.weights), groups=groups)
        known = recalled.known.nonzero().flatten()
        unknown = (~recalled.known).nonzero().flatten()
        parts = [(known, self._share(recalled, budget, step)), (unknown, 0)]
        parts[1] = (unknown, budget - parts[0][1])
        rows, weights = [], []
        for members, wanted in parts:
            if not wanted:
                continue
            if members is known:
                scores = Scores(
                    features=recalled.features[members], losses=recalled.losses[members].float(), tokens=tokens[members]
                )
                selection = self.step.choose(scores, sources[members], wanted, step=step).selection
            else:
                selection = self._by_size(recalled.sizes[members], wanted, step)
            rows.append(members[selection.indices.cpu()])
            weights.append(selection.weights.double().cpu() * (budget / count) * (len(members) / wanted))
        chosen, order = torch.cat(rows).sort()
        return Choice(selection=Selection(indices=chosen, weights=torch.cat(weights)[order].float()), groups=groups)

    def _by_size(self, sizes: Tensor, budget: int, step: int) -> Selection:
        return SELECTORS["importance"]().select(sizes.float().unsqueeze(1), budget, seeded(self.seed, step, "unknown"))

    def _share(self, recalled: Recalled, budget: int, step: int) -> int:
        """How many of the chosen rows come from those that are known. Either part gets one at least if it has rows,
        since its gradient would be missed otherwise."""
        known = int(recalled.known.sum())
        unknown = len(recalled.known) - known
        if not known or not unknown:
            return budget if known else 0
        sizes = recalled.sizes
        total = float(sizes.sum())
        share = float(sizes[recalled.known].sum()) / total if total > 0 else known / (known + unknown)
        wanted = math.floor(budget * share + float(torch.rand(1, generator=seeded(self.seed, step, "share"))))
        low, high = max(1, budget - unknown), min(known, budget - 1)
        return min(max(wanted, low), high)

    # ---- what is trained -----------------------------------------------------------------------------------------

    def absorb(self, ranks: Ranks, pool: Pool, step: int) -> None:
        """Takes the features of what was trained at this step into the memory, those of all ranks on every rank."""
        if self.trained is None or self.memory is None:
            return
        self.trained.quiet()
        taken = self.trained.take()
        positions = torch.zeros(0, dtype=torch.long) if taken is None else taken[0]
        narrow = torch.zeros(0, 0) if taken is None else self.memory.narrow(taken[1])
        found = ranks.report(None, len(positions), narrow.shape[1])
        counts, width = found[:, 0].tolist(), int(found[:, 1].max())
        if width and ranks.count > 1:
            narrow = ranks.gather_rows(narrow.view(-1, width), counts, "learnt").cpu()
            positions = ranks.gather_rows(positions, counts, "learnt").cpu()
        if not len(positions):
            self._nothing_learnt()
            return
        order = positions.sort(stable=True).indices
        positions, narrow = positions[order], narrow[order]
        self.memory.update(pool.ids[positions], narrow, self._extent(pool.tokens[positions]), step)

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
        for name in DECIDED:
            if getattr(self, name) is not None:
                state[name] = torch.tensor(getattr(self, name))
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        memory = {key.removeprefix("memory."): value for key, value in state.items() if key.startswith("memory.")}
        if self.memory is not None and memory:
            self.memory.load_state_dict(memory)
        for name in DECIDED:
            setattr(self, name, int(state[name]) if name in state else None)


def window(row: Mapping[str, Tensor], tokens: int) -> dict[str, Tensor]:
    """A stretch of at most `tokens` tokens of a row without padding: a quarter of it, and one token at least, before
    the first trained token, or the row's end."""
    length = len(row["input_ids"])
    if length <= tokens:
        return dict(row)
    trained = (row["labels"] != IGNORED).nonzero()
    first = int(trained[0]) if len(trained) else 0
    start = max(0, min(first - max(1, tokens // 4), length - tokens))
    return {
        key: value[start : start + tokens] if value.ndim > 0 and len(value) == length else value
        for key, value in row.items()
    }


def _trained(row: Mapping[str, Tensor]) -> int:
    return int((row["labels"][1:] != IGNORED).sum())


def _rows(scores: Scores, rows: Tensor) -> Scores:
    there = rows.to(scores.features.device)
    return Scores(
        features=scores.features[there],
        losses=None if scores.losses is None else scores.losses[there],
        tokens=scores.tokens[rows.to(scores.tokens.device)],
    )


def _finite(scores: Scores) -> Tensor:
    if not bool(torch.isfinite(scores.features).all()):
        bad = (~torch.isfinite(scores.features).all(dim=1)).nonzero().flatten().tolist()
        raise NonFiniteError(f"Every feature should be finite. Found NaN or infinity in {len(bad)} rows.")
    return scores.features
