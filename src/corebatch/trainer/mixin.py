"""The seam: three overrides on the Trainer, no copied loop.

`get_train_dataloader` draws micro-batch x pool_factor rows at a time; `get_batch_samples` takes the pool of one
optimizer step through the parent, chooses the small batch jointly over ranks, and hands exactly as many micro-batches
back through the parent; `compute_loss` knows `loss_weights`. `train` and `log` add what a run's record needs;
`_save_checkpoint`, `save_model` and `_get_train_sampler` let a run be killed and go on.

With pool_factor 1 every override is the parent's.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corebatch.batch.error_tracking import ErrorTracking, Step, check_tracking
from corebatch.batch.method import Choice
from corebatch.batch.micro_batches import micro_batches
from corebatch.batch.pool import Pool, gather_pool, gather_scores
from corebatch.batch.pool_scoring import Plan, PoolScoring, free_memory
from corebatch.batch.row_checks import check_rows
from corebatch.batch.strategies.base import Reusing
from corebatch.distributed.balance import Shares, share
from corebatch.distributed.exchange import RowFormat, exchange_rows
from corebatch.distributed.heartbeat import Presence
from corebatch.distributed.ranks import Ranks
from corebatch.errors import CheckpointError, ConfigError, CorebatchError, DataError, NonFiniteError
from corebatch.model import compiling
from corebatch.model.limits import RowLimits, row_limits
from corebatch.model.moments import second_moments
from corebatch.model.packing import check_packing, packing_unfit
from corebatch.model.recompute import BlockStates, unfit
from corebatch.model.rows import Padding, check_pool, put_together, row_spans, take_rows, trained_tokens
from corebatch.model.weighted_loss import weighted_loss
from corebatch.record import writer as record
from corebatch.record.checkpoint import last_complete, load_state, rotate, save_state, unmark
from corebatch.record.rank_agreement import check_agreement, check_streams
from corebatch.record.run_identity import describe_run
from corebatch.record.saving import Saving, check_writable, saving_failed
from corebatch.sampling.collating import SourceCollator
from corebatch.sampling.epochs import follow_epochs
from corebatch.sampling.order import resumable
from corebatch.sampling.tags import DEFAULT_COLUMN, Names, Passes, Sources, has_transform, is_stream, tag, untagged
from corebatch.scoring import Scores
from corebatch.sources import absent_names, small_candidates
from corebatch.trainer import trials
from corebatch.trainer.checks import check_settings, check_stream, check_trained_loss
from corebatch.trainer.config import CoresetConfig
from corebatch.trainer.hosts import CHANGED, check_chosen, check_tagged, runs_between, training_weights
from corebatch.trainer.in_backward import check_in_backward, check_resume, moves_in_backward
from corebatch.trainer.loss_probe import AGAIN, check_later, check_own_loss
from corebatch.trainer.model_loss import check_loss, two_rows
from corebatch.trainer.own_loss import LossWatch, RowWeights, as_the_trainer_wants, check_bases
from corebatch.trainer.run_control import all_ranks, controlled
from corebatch.types import ID, PLACES, SOURCE

logger = logging.getLogger(__name__)

SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Accelerate's names of engines whose ranks must run the same forwards."""

if TYPE_CHECKING:
    from transformers import Trainer as _Base  # what the mixin is mixed into
else:
    _Base = object


@dataclass(frozen=True, slots=True)
class Places:
    """Where the pool's rows lie in a micro-batch; no tensor, so that nobody moves it to the device or counts it.

    Attributes:
        rows: LongTensor [k, 4] on the CPU: position in the pool (negative: none), batch row, start, end.
    """

    rows: Tensor


class CoresetMixin(_Base):
    """Mini-batch coresets for any subclass of `transformers.Trainer`: `class MyTrainer(CoresetMixin, Trainer)`.

    Args:
        coreset: the settings; `CoresetConfig()` by default.
        All others are the Trainer's.

    Raises:
        ConfigError: settings that do not go together, or that selection does not go with: packing, padding_free,
            DataParallel, batch_rebalance, streaming without max_steps, label smoothing, a loss of one's own.
    """

    train_dataset: Any
    _train_batch_size: int
    _states: BlockStates | None
    _limits: RowLimits | None
    handle_signals = True
    """Whether SIGTERM and SIGHUP finish the step, save and end the process."""
    _resumed: str | None = None
    _saving: Saving | None = None
    _run: dict[str, Any] | None = None
    _pending: tuple[Pool, int] | None
    _told: str | None
    _ranks: Ranks
    _presence: Presence
    _format: RowFormat | None
    _passes: Passes
    _weights: RowWeights
    _compiled: bool
    _compiling: Any = None
    _begun: bool | None = None
    _recorder: Any = None
    _watch: Any = None
    _tagged_by: tuple[str, bool] | None = None
    _compared: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_bases(cls)

    def __init__(self, *args: Any, coreset: CoresetConfig | None = None, **kwargs: Any) -> None:
        self.coreset = coreset if coreset is not None else CoresetConfig()
        if not isinstance(self.coreset, CoresetConfig):
            raise ConfigError(f"coreset should be a CoresetConfig. Found {type(self.coreset).__name__}.")
        if self.coreset.pool_factor > 1:
            given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
            check_stream(given.get("args"), given.get("train_dataset"))
        super().__init__(*args, **kwargs)
        self._base, self._own_collator = self.coreset, self.data_collator
        self._source_names: Any = Names()
        self._tagged: tuple[Any, Any, Sources] | None = None
        self._started = record.now()
        self._set_up()
        named = self.coreset.pool_factor > 1 and self.coreset.source_column != DEFAULT_COLUMN
        if named and self.train_dataset is not None and not is_stream(self.train_dataset):
            self._tag(self.train_dataset)  # a column that is missing is an error now

    def _set_up(self) -> None:
        """What the settings ask of the Trainer: when it is made, and when a run begins, since much of it can be
        changed in between, and a trial of a search has settings and an accelerator of its own."""
        selects = self.coreset.pool_factor > 1
        self._compiled = selects and compiling.is_asked_for(self.accelerator)
        if self._compiled and self._compiling is not self.accelerator:
            compiling.compile_decoder_instead(self.accelerator)
            self._compiling = self.accelerator
        self._start_over()
        if not isinstance(self.data_collator, SourceCollator):
            self._own_collator = self.data_collator
        self.data_collator: Any = self._own_collator
        recorded = self._recorder in self.callback_handler.callbacks
        if recorded and not selects:
            self.remove_callback(self._recorder)
            self.remove_callback(self._watch)
        if selects:
            self.data_collator = SourceCollator(self._own_collator, self.coreset.source_column)
            check_settings(self, self.coreset, self._step)
            check_tracking(self.coreset.track_error, in_backward=check_in_backward(self), sharded=self._sharded())
            if self._recorder is None:
                self._recorder, self._watch = record.Recorder(self, check=check_chosen), LossWatch(self)
            if not recorded:
                self.add_callback(self._recorder)
                self.add_callback(self._watch)

    # ---- the three overrides -------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The parent's loader over micro-batch x pool_factor rows that carry their ids and sources."""
        self._start_run()
        if self.coreset.pool_factor == 1:
            return super().get_train_dataloader()
        if self._begun and self._train_batch_size != self._scoring.micro_batch:
            self._start_over()  # the Trainer begins anew with smaller micro-batches
            self._begin(self._resumed)
        dataset, drawn = self.train_dataset, self._train_batch_size * self.coreset.pool_factor
        if has_transform(dataset):
            self._remove_unused_columns(dataset, description="training")  # refuses what leaves it no column
        tagged, sources = self._tag(dataset)
        counts = sources.counts
        if not counts and self.coreset.small_sources is not None:
            raise ConfigError("small_sources needs a data set whose sources can be counted. Found a stream.")
        self._step.small_sources = small_candidates(counts, sources.names, self.coreset.small_sources)
        self._step.source_names = self._source_names = sources.names
        absent = absent_names(counts, sources.names, self.coreset.small_sources)
        if absent and self.is_world_process_zero():
            logger.warning(record.absent_note(sources, absent))
        if self._step.small_sources and self.is_world_process_zero():
            logger.warning(record.kept_note(sources, self._step.small_sources))
        # What the model does not take is dropped on the way, so the two columns are declared as taken.
        self._set_signature_columns_if_needed()
        self._signature_columns += [key for key in (ID, SOURCE) if key not in self._signature_columns]
        micro_batch, self._train_batch_size, self.train_dataset = self._train_batch_size, drawn, tagged
        loading = self.accelerator.dataloader_config
        dispatch = loading.dispatch_batches
        if self._ranks.count > 1 and not counts and dispatch is None:
            # Accelerate's default for a stream is that rank 0 reads for all, and joins rows of unequal lengths. Without
            # it each rank reads the stream and takes its own rows.
            loading.dispatch_batches = False
        try:
            loader = super().get_train_dataloader()
        finally:
            self._train_batch_size, self.train_dataset = micro_batch, dataset
            loading.dispatch_batches = dispatch
        found = _batch_size(loader)
        if found is not None and found != drawn:
            raise ConfigError(
                f"The train loader should draw per_device_train_batch_size x pool_factor = {drawn} rows at a time. "
                f"Found {found}: a sampler or loader of its own ignores the batch size."
            )
        follow_epochs(loader, lambda: int(self.state.epoch or 0))
        return loader

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, in an order that a resumed run draws again."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        return sampler if self.coreset.pool_factor == 1 else resumable(sampler, self.args, lambda: self.state)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any) -> Any:
        """The pool of one optimizer step goes in, the small batch comes out as equally many micro-batches."""
        if self.coreset.pool_factor == 1:
            return super().get_batch_samples(epoch_iterator, num_batches, *args)
        phases, step = self._recorder.phases, self.state.global_step + 1
        phases.start()
        self._presence.at(step, "loading")
        batches, failure = self._draw(epoch_iterator, num_batches, *args)
        phases.end("load")
        self._presence.at(step, "choosing")
        rows = sum(len(batch[ID]) for batch in batches)
        drawn, given, asked = self._ranks.report(failure, rows, len(batches), num_batches).T.tolist()
        if len(set(asked)) > 1:
            raise DataError(
                "All ranks should be asked for equally many micro-batches. Found that their loaders differ in length: "
                f"at step {step} ranks are asked for {asked}. Use a loader that evens out its ranks."
            )
        if not sum(drawn):
            return super().get_batch_samples(iter([]), 0, *args)
        small, denominator = self._small_batch(batches, drawn, max(given), num_batches)
        made, items = super().get_batch_samples(iter(small), len(small), *args)
        phases.end("repack")
        self._presence.at(step, "training")
        if denominator is not None:
            items = denominator
        elif isinstance(items, Tensor):
            items = items.clamp(min=1)  # where nothing is trained the loss is 0, not 0 / 0
        self._weights.begin(made, items)
        return made, items

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The parent's loss, or with `loss_weights` in the batch: sum_i weight_i sum_t loss_it / num_items_in_batch."""
        if self.coreset.pool_factor == 1 or not model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        self._weights.check_items(self, num_items_in_batch)
        weights, places = (None, None) if self._weights.behind else self._weights.take(inputs)
        with self._reusing(places, inputs):
            if weights is None:
                result = super().compute_loss(
                    model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
                )
            else:
                self._announce(places, weights)
                loss, outputs = weighted_loss(model, self._inner(model), inputs, weights)
                if self._scoring.trained is not None:
                    self._scoring.trained.scale_by(loss)
                loss = as_the_trainer_wants(self, loss / num_items_in_batch)
                result = (loss, outputs) if return_outputs else loss
        if self._in_backward and not self._weights.checking:
            self._recorder.losses.append((result[0] if return_outputs else result).detach())
            if self.accelerator.sync_gradients:  # the last moment before weights are moved
                self._recorder.check_loss(self.state.global_step)
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, whose loss is recorded: what was trained, whoever computed it."""
        if self.coreset.pool_factor == 1:
            return super().training_step(*args, **kwargs)
        before = len(self._recorder.losses)
        loss = super().training_step(*args, **kwargs)
        self._recorder.losses[before:] = [loss]
        return loss

    def row_weights(self, inputs: dict[str, Any]) -> Tensor:
        """The weights of a micro-batch's rows, for a `compute_loss` of one's own; see docs/own_loss.md.

        Returns:
            [B], by which each row's summed loss is to be multiplied, before the sum is divided by
            `num_items_in_batch`. Ones in evaluation, and with pool_factor 1.

        Raises:
            LossMismatchError: these are not inputs that `compute_loss` received.
        """
        return self._weights.of_rows(self, inputs)

    # ---- the step ------------------------------------------------------------------------------------------------

    def _draw(
        self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any
    ) -> tuple[list[dict[str, Tensor]], Exception | None]:
        """This rank's part of the pool, through the parent, or no rows and what is wrong with them."""
        # The parent counts what it takes over all ranks: a message that a rank with a bad row would not come to.
        counts_ranks = getattr(self.args, "average_tokens_across_devices", False)
        self.args.average_tokens_across_devices = False
        try:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *args)
            check_tagged(self, batches)
            for batch in batches:
                check_pool(batch)
            self._limits = self._limits or row_limits(self._inner(self.model_wrapped))
            check_rows(batches, self._limits.vocabulary, self._limits.longest, targets=self._limits.targets)
            if self._format is not None and self._ranks.count > 1:
                self._format.check(batches)
        except Exception as error:  # of the user's data set and collator too
            return [], error
        finally:
            self.args.average_tokens_across_devices = counts_ranks
        self._passes.start(epoch_iterator)
        return batches, None

    def _small_batch(
        self, batches: list[dict[str, Tensor]], counts: list[int], given: int, asked: int
    ) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Scores the pool's rows here, chooses over all ranks, and packs this rank's share.

        Args:
            batches: this rank's part of the pool.
            counts: how many rows each rank has.
            given: in how many batches, at most.
            asked: how many micro-batches each rank's Trainer waits for; more than `given` at the end of a stream, where
                the Trainer would make no step with fewer.

        Returns:
            So many micro-batches, and what the summed loss is divided by, or None where the parent's own count of
            what is trained is right.
        """
        phases, scoring, step, ranks = self._recorder.phases, self._scoring, self.state.global_step, self._ranks
        model = self._inner(self.model_wrapped)
        training_weights(self.optimizer)
        self._absorb()
        if self._format is None:
            self._format = RowFormat.of(batches).agree(ranks)
            check_streams(ranks, self._tag(self.train_dataset)[0])
        eligible = self._eligible(batches)
        if 0 in counts:
            batches, eligible, counts = self._filled(batches, eligible, counts)
        padding = self._padding(batches)
        if not self._prepared:
            self._prepare_first(model, batches, padding)
            phases.start()  # checks are not part of a step's cost
        elif step in AGAIN and self._weights.owned:
            check_later(self, model, batches, padding, own=True)
            phases.start()
        pool = gather_pool(ranks, self._columns(batches, eligible), counts)
        self._passes.seen(pool.ids)
        phases.end("exchange")
        count = int(pool.eligible.sum())
        budget = min(count, max(math.ceil(count / self.coreset.pool_factor), given * ranks.count))
        plan = scoring.plan(pool, budget, step)
        mine = scoring.score(ranks, model, batches, pool, plan, padding, self._states)
        phases.end("score")
        scores = None if mine is None else gather_scores(ranks, pool, plan.exact, mine)
        phases.end("exchange")
        choice = self._choose(pool, plan, scores)
        phases.end("select")
        chosen = plan.candidates[choice.selection.indices.cpu()]
        if self._states is not None:
            self._states.retain(chosen[pool.ranks[chosen] == ranks.index].tolist())
        slots, candidates = asked * ranks.count, pool.tokens[plan.candidates]
        weights, denominator = self._loss_weights(choice, candidates, count, budget, slots)
        if weights is not None and not self._compared:  # a mean of examples, or fewer rows than micro-batches
            check_later(self, model, batches, padding, own=False)
            self._compared = True
        measured = self._measured(model, batches, pool, plan, chosen, weights, denominator)
        # A row whose scoring forward is kept for training is dearer to move than a rank that waits a little.
        owners, lengths, sources = (column[chosen].tolist() for column in (pool.ranks, pool.lengths, pool.sources))
        shares = share(owners, lengths, sources, ranks.count, balance=self._states is None)
        small = self._pack(batches, pool, chosen, shares, weights, padding, asked)
        if scoring.trained is not None:
            self._pending = (pool, step)
        self._pool_tokens = pool.tokens
        self._recorder.chosen = pool.ids[chosen].tolist()
        passed = torch.ones(len(pool.ids), dtype=torch.bool)
        passed[chosen] = False
        self._recorder.passed = pool.ids[plan.candidates[passed[plan.candidates]]].tolist()
        self._note(pool, plan, scores, chosen, shares, choice, small)
        if measured is not None and self._recorder.step is not None:
            self._recorder.step["gradient_error"] = measured
        return small, denominator

    def _measured(
        self,
        model: Any,
        batches: list[dict[str, Tensor]],
        pool: Pool,
        plan: Plan,
        chosen: Tensor,
        weights: Tensor | None,
        denominator: Tensor | None,
    ) -> dict[str, Any] | None:
        """At every so-many-th step, how far the small batch's gradient is from the large batch's."""
        every, number = self.coreset.track_error, self.state.global_step + 1
        if not every or number % every:
            return None
        assert self._format is not None
        phases = self._recorder.phases
        phases.end("repack")
        self._presence.at(number, "tracking")
        # In evaluation mode blocks keep their activations: then one row at a time.
        rows = 1 if getattr(self.args, "gradient_checkpointing", False) else self._train_batch_size
        tracking = ErrorTracking(loss=self.coreset.loss, seed=self.coreset.seed, rows=rows)
        step = Step(
            batches=batches,
            pool=pool,
            candidates=plan.candidates,
            chosen=chosen,
            weights=weights,
            denominator=denominator,
        )
        found = tracking.measure(self._ranks, model, step, number, self._padding(batches), self._format.by_token)
        phases.end("track")
        return found

    def _filled(
        self, batches: list[dict[str, Tensor]], eligible: Tensor, counts: list[int]
    ) -> tuple[list[dict[str, Tensor]], Tensor, list[int]]:
        """Gives the ranks without rows a copy of another's first row, so that they run the same forwards; it is scored
        and cannot be chosen."""
        ranks, here, nobody = self._ranks, bool(batches), [rank for rank, count in enumerate(counts) if not count]
        assert self._format is not None
        giver = next(rank for rank, count in enumerate(counts) if count)
        row = take_rows(batches, [0])[0] if here else None
        length = int(ranks.report(None, len(row["input_ids"]) if row else 0)[giver])
        moves = [(giver, rank, length) for rank in nobody]
        leaving = {number: row for number in range(len(moves))} if row and ranks.index == giver else {}
        arrived = exchange_rows(ranks, self._format, moves, leaving, self.args.device)
        for copy in arrived.values():
            batches, eligible = [put_together([copy], self._padding([]))], torch.tensor([False])
        return batches, eligible, [max(1, count) for count in counts]

    def _columns(self, batches: list[dict[str, Tensor]], eligible: Tensor) -> dict[str, Tensor]:
        """What travels of each of this rank's rows before scoring."""
        spans = torch.cat([row_spans(batch) for batch in batches])
        return {
            "ids": torch.cat([batch[ID] for batch in batches]),
            "sources": torch.cat([batch[SOURCE] for batch in batches]),
            "lengths": spans[:, 1] - spans[:, 0],
            "tokens": torch.cat([trained_tokens(batch["labels"]) for batch in batches]),
            "eligible": eligible,
        }

    def _prepare_first(self, model: Any, batches: list[dict[str, Tensor]], padding: Padding) -> None:
        """Checks on the first pool, the same forwards on every rank; then what of it is reused, learnt and packed."""
        scoring, settings = self._scoring, self._scoring.settings
        check_trained_loss(self, model)
        self._weights = RowWeights.beside(self)
        self._in_backward = moves_in_backward(self)
        check_tracking(self.coreset.track_error, in_backward=self._in_backward, sharded=self._sharded())
        failure: Exception | None = None
        against = None
        pair = put_together(two_rows(batches), padding)
        try:
            if self._weights.owned:
                check_own_loss(self, pair)
            self._compared = self._step.selector.weighted or (self._step.scores and self._step.scorer.needs_forward)
            if self._compared:
                check_loss(model, pair, counts_items=self.model_accepts_loss_kwargs)
            if scoring.trained is not None:
                scoring.trained.watch(model, untagged(batches[0]))
            against = self._packing_unfit(model, batches)
            self._recorder.count_flops(model, None if self._sharded() else untagged(batches[0]))
        except Exception as error:  # of this rank's rows; the others are told before it is raised
            failure = error
        elsewhere = bool(self._ranks.report(failure, int(against is not None)).any())
        if elsewhere and against is None:
            against = "Another rank's rows cannot be packed."
        self._packed = self._can_pack(model, against)
        reuses = settings.reuse is not False and not self._weights.owned
        if settings.scores_exactly and reuses and scoring.scorer.needs_forward:
            self._states = self._block_states(model)
        self._prepared = True

    def _block_states(self, model: Any) -> BlockStates | None:
        """Where the scoring forward's block inputs are kept for training, or None with the reason in the log."""
        if self._scoring.settings.reuse == "auto" and not getattr(self.args, "gradient_checkpointing", False):
            return None
        against = unfit(model)
        if against is None and self.model_wrapped is not model:
            against = unfit(self.model_wrapped)
        if against is not None:
            if self.is_world_process_zero():
                logger.warning("The scoring forward is not reused for training. %s", against)
            return None
        scoring, settings = self._scoring, self._scoring.settings
        if scoring.reuse_bytes is None:
            scoring.reuse_bytes = self._reuse_bytes(settings)
        states = BlockStates(model, place=settings.reuse_place, max_bytes=scoring.reuse_bytes)
        states.watched = runs_between(self)
        return states

    def _reuse_bytes(self, settings: Reusing) -> int:
        """The cap on what is kept: as set, or half of what is free where it is kept; ranks share a host's memory."""
        if settings.reuse_gb is not None:
            return int(settings.reuse_gb * 2**30)
        place = torch.device("cpu") if settings.reuse_place == "host" else self.args.device
        return free_memory(place) // 2 // (1 if place.type == "cuda" else self._ranks.count)

    def _tries_packing(self, model: Any) -> bool:
        wanted = self.coreset.padding_free
        return wanted is True or (wanted == "auto" and self._flash(model) and not self._weights.owned)

    def _packing_unfit(self, model: Any, batches: list[dict[str, Tensor]]) -> str | None:
        """Why this model or this rank's rows cannot be trained without padding, where that is tried."""
        if not self._tries_packing(model):
            return None
        rows = take_rows(batches, range(min(2, len(batches[0][ID]))))
        return packing_unfit(model) or check_packing(model, rows, flash=self._flash(model))

    def _can_pack(self, model: Any, against: str | None) -> bool:
        """Whether micro-batches are trained without padding; all ranks decide alike."""
        if not self._tries_packing(model):
            return False
        if against is None:
            return True
        if self.coreset.padding_free is True:
            raise ConfigError(f"coreset.padding_free is true, and this model or data cannot be packed. {against}")
        if self.is_world_process_zero():
            logger.warning("Micro-batches are trained with padding. %s", against)
        return False

    @staticmethod
    def _flash(model: Any) -> bool:
        return "flash" in str(getattr(getattr(model, "config", None), "_attn_implementation", ""))

    def _reusing(self, places: Places | None, inputs: Mapping[str, Any]) -> Any:
        """Recalls the scoring forward's block inputs for this micro-batch's forward, where all its rows are kept."""
        if places is None or self._states is None or not self._states.has(places.rows[:, 0].tolist()):
            return nullcontext()
        return self._states.recall(places.rows, inputs)

    def _announce(self, places: Places | None, weights: Tensor) -> None:
        """Tells whoever learns from the backward which examples this micro-batch holds, and their weights."""
        if places is None or self._scoring.trained is None:
            return
        rows = places.rows
        each = weights[rows[:, 1]] if weights.ndim == 1 else weights[rows[:, 1], rows[:, 3] - 1]
        self._scoring.trained.announce(rows, each, self._pool_tokens[rows[:, 0].clamp(min=0)])

    def _absorb(self) -> None:
        """Remembers what the last step trained, and lets go of what it kept; on every rank at the same place."""
        if self._pending is not None:
            pool, step = self._pending
            self._pending = None
            self._scoring.absorb(self._ranks, pool, step)
        if self._states is not None:
            if self._states.changed:
                self._states.reason = CHANGED
            self._states.watched = runs_between(self)
            self._states.retain(())
            self._states.peak_bytes = 0  # the record's is each step's own: a resumed run has not seen the others
            if self._states.reason is not None and self._states.reason != self._told:
                self._told = self._states.reason
                if self.is_world_process_zero():
                    logger.warning("Some scoring forwards are not reused for training. %s", self._told)

    def _choose(self, pool: Pool, plan: Plan, scores: Scores | None) -> Choice:
        step = self.state.global_step
        try:
            self._scoring.remember(pool, plan, scores, step)
            moments = None
            if self._step.normalise is not None and self._step.normalise.needs_moments:
                moments = second_moments(self.optimizer, self._step.scorer.coordinates())
            return self._scoring.choose(pool, plan, scores, step, moments)
        except NonFiniteError as error:
            if scores is None:
                raise
            bad = ~torch.isfinite(scores.features).all(dim=1)
            if scores.losses is not None:
                bad |= ~torch.isfinite(scores.losses)
            examples = pool.ids[plan.exact[bad.cpu()]].tolist()
            shown = ", ".join(map(str, examples[:8])) + (", ..." if len(examples) > 8 else "")
            raise NonFiniteError(f"At step {step + 1}, examples {shown} of the train set: {error}") from None

    def _loss_weights(
        self, choice: Choice, tokens: Tensor, count: int, budget: int, slots: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """What each chosen row's summed token loss is multiplied by, and the sum's denominator over all ranks.

        (None, None) where the plain loss is the right one: weights of one, a mean over tokens, and a row for each
        micro-batch.
        """
        weights = choice.selection.weights
        tokens = tokens.to(weights.device)
        trained = tokens[choice.selection.indices.to(weights.device)]
        if self.coreset.loss == "example_mean":
            return weights / trained.clamp(min=1), torch.tensor(float(budget), device=weights.device)
        if not self._step.selector.weighted:
            if budget >= slots:
                return None, None
            return weights, trained.sum().clamp(min=1).float()
        # The large batch's mean over tokens, estimated: sum over M of w_i l_i, by (tokens of N) M / N.
        return weights, tokens.sum().clamp(min=1).double().mul(budget / count).to(torch.float32)

    def _pack(
        self,
        batches: list[dict[str, Tensor]],
        pool: Pool,
        chosen: Tensor,
        shares: Shares,
        weights: Tensor | None,
        padding: Padding,
        asked: int,
    ) -> list[dict[str, Any]]:
        """This rank's share of the chosen rows as micro-batches, rows that change ranks included."""
        rank = self._ranks.index
        row_format = self._format
        assert row_format is not None

        def take(positions: list[int]) -> list[dict[str, Tensor]]:
            return take_rows(batches, [int(pool.rows[chosen[p]]) for p in positions], row_format.by_token)

        moving, arrived = shares.moving, {}
        if moving:
            leaving = [number for number, p in enumerate(moving) if shares.owners[p] == rank]
            rows = take([moving[number] for number in leaving])
            moves = [(shares.owners[p], shares.trained_by[p], shares.lengths[p]) for p in moving]
            came = exchange_rows(
                self._ranks, row_format, moves, dict(zip(leaving, rows, strict=True)), self.args.device
            )
            arrived = {moving[number]: row for number, row in came.items()}
        mine = shares.of(rank)
        stay = [p for p in mine if p not in arrived]
        held = {**arrived, **dict(zip(stay, take(stay), strict=True))}
        placed = self._states is not None or self._scoring.trained is not None
        made = micro_batches(
            [held[p] for p in mine],
            None if weights is None else weights[mine],
            asked,
            padding,
            take_rows(batches, [0])[0],
            numbers=chosen[mine].tolist() if placed else None,
            packed=self._packed,
            most_rows=self._train_batch_size if self._packed else None,
            flash=self._packed and self._flash(self._inner(self.model_wrapped)),
        )
        for batch in made if placed else []:
            batch[PLACES] = Places(batch[PLACES])
        return made

    def _padding(self, batches: list[dict[str, Tensor]]) -> Padding:
        mask = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
        left = any(bool((m[:, 0] == 0).any()) and bool((m[:, -1] != 0).all()) for m in mask if m.ndim == 2)
        collator, tokenizer = self.data_collator, getattr(self, "processing_class", None)
        token = getattr(tokenizer, "pad_token_id", None)
        if token is None:
            token = getattr(collator, "pad_token_id", None)
        multiple = getattr(collator, "pad_to_multiple_of", None)
        return Padding(token=int(token or 0), left=left, multiple_of=int(multiple or 1))

    def _eligible(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """False for the rows that Accelerate's loader adds from the start of the data to even out the last batch."""
        rows = [len(batch[ID]) for batch in batches]
        eligible = torch.ones(sum(rows), dtype=torch.bool)
        state, ranks = self.accelerator.gradient_state, self._ranks
        if ranks.count == 1 or not rows:
            return eligible
        if not self._sources.counts:  # a stream is numbered as it comes
            return self._passes.fresh(torch.cat([batch[ID] for batch in batches]).cpu())
        if state.end_of_dataloader and state.remainder > 0:
            start = ranks.index * rows[-1]  # ranks fill the last global batch one after the other
            real = min(max(state.remainder - start, 0), rows[-1])
            eligible[len(eligible) - rows[-1] + real :] = False
        return eligible

    def _note(
        self,
        pool: Pool,
        plan: Plan,
        scores: Scores | None,
        chosen: Tensor,
        shares: Shares,
        choice: Choice,
        small: list[dict[str, Any]],
    ) -> None:
        """The record's line of this step, as far as it is known before training."""
        names, candidates, tokens = self._source_names, plan.candidates, pool.tokens
        scored = plan.exact if self._scoring.scorer.needs_forward else plan.exact[:0]
        pool_loss = chosen_loss = None
        if scores is not None and scores.losses is not None and len(scored) == len(candidates):
            losses = scores.losses.double().cpu()
            here = choice.selection.indices.cpu()
            pool_loss = float(losses.sum() / tokens[candidates].sum().clamp(min=1))
            chosen_loss = float(losses[here].sum() / tokens[chosen].sum().clamp(min=1))
        # Padded positions are known of this rank; those of all ranks are estimated by the tokens here and there.
        work, positions = self._scoring.work, sum(batch["input_ids"].numel() for batch in small)
        mine = shares.of(self._ranks.index)
        tokens_scored, tokens_trained = self._scoring.tokens_scored(pool, scored), int(pool.lengths[chosen].sum())
        recorded: dict[str, Any] = {
            "positions_scored": _scaled(work.positions, work.tokens, tokens_scored),
            "positions_trained": _scaled(positions, int(pool.lengths[chosen[mine]].sum()), tokens_trained),
        }
        recorded["rows_moved"], recorded["token_imbalance"] = len(shares.moving), round(shares.imbalance, 4)
        recorded["bytes_sent"] = self._ranks.take_sent()
        if self._states is not None:
            recorded["reuse_mb"] = round(self._states.peak_bytes / 2**20, 3)
        self._recorder.step = {
            "drawn": record.per_source(pool.sources[candidates], names),
            "chosen": record.per_source(pool.sources[chosen], names),
            "weights": record.weights_per_source(pool.sources[chosen], choice.selection.weights, names),
            "kept": [group.name for group in choice.groups if group.keep],
            "pool_examples": len(candidates),
            "chosen_examples": len(chosen),
            "examples_scored": len(scored),
            "scoring": self._scoring.way,
            "pool_loss": pool_loss,
            "chosen_loss": chosen_loss,
            "tokens_scored": tokens_scored,
            "tokens_trained": tokens_trained,
            "labels_scored": int(tokens[scored].sum()),
            "labels_trained": int(tokens[chosen].sum()),
            "weight_max": choice.selection.weight_max,
            "effective_sample_size": choice.selection.effective_sample_size,
            **recorded,
        }
        self._recorder.weights = None if choice.selection.uniform else choice.selection.weights.tolist()

    # ---- the record, checkpoints, resume -------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's. Resuming takes the last complete checkpoint, checks it before anything changes, and cuts
        `selection.jsonl` back to its step; a run that has made all its steps does nothing. At SIGTERM or SIGHUP the
        step is finished and saved (`handle_signals`).

        Raises:
            CheckpointError: there is no complete checkpoint, or it is another run's; output_dir cannot be written;
                a checkpoint or the record could not be written on the way.
            ConfigError: another process trains in output_dir.
            SystemExit: after a signal, with 128 + its number.
        """
        resume = resume_from_checkpoint
        return controlled(self, lambda: self._train(resume, *args, **kwargs), resume, signals=self.handle_signals)

    def _train(self, resume_from_checkpoint: str | bool | None, *args: Any, **kwargs: Any) -> Any:
        """The parent's training between what begins and what ends the record."""
        self._begun, self._resumed = False, resume_from_checkpoint  # type: ignore[assignment]
        if self.model_init is None:  # else there is no model yet, and a trial of a search may change any setting
            self._start_run()
        elif resume_from_checkpoint is True and self.coreset.pool_factor > 1:
            self._resumed = str(last_complete(Path(self.args.output_dir)))
        try:
            return super().train(self._resumed, *args, **kwargs)
        except Exception as error:
            told = self._presence.explain(error)
            if told is error:
                raise
            raise told from error
        finally:
            self._end_run()

    def _start_run(self) -> None:
        """Once in a call of `train`, when the model and the settings are there."""
        if self._begun is not False:
            return
        self._begun = True
        self._set_up()
        if self.coreset.pool_factor > 1:
            self._resumed = self._begin(self._resumed)
            self._presence.watch()
        elif self.accelerator.num_processes > 1:
            run = describe_run(self, self._inner(self.model), self.train_dataset, Sources(Names(), {}))
            check_agreement(self, all_ranks(self), run, sharded=self._sharded() is not None)

    def _end_run(self) -> None:
        self._begun = None
        self._presence.close()
        if self._recorder is not None:
            self._recorder.flush()  # lines that wait for the device, whatever ended the run
        if self._scoring.trained is not None:
            self._scoring.trained.close()
        if getattr(self, "hp_search_backend", None) is not None:  # the next trial has a model of its own
            self._states = None

    def _hp_search_setup(self, trial: Any) -> None:
        """The parent's, and settings of `coreset` that a search tries."""
        with trials.coreset_of_trial(self, trial) as (given, found):
            super()._hp_search_setup(given)
        self._trial = trial
        if trial is not None:
            self.coreset = trials.changed(self._base, found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> Any:
        """The parent's, after the checkpoint was compared with the run."""
        self._start_run()
        return super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    @property
    def _run_dir(self) -> Path:
        """Where this run's files lie: output_dir, or in a search the trial's folder in it."""
        return Path(self._get_output_dir(trial=getattr(self, "_trial", None)))

    def _begin(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """Checks, on all ranks, the folder and the checkpoint; then the record goes on where the checkpoint ends.

        Returns:
            The checkpoint that the Trainer resumes from, or None.
        """
        output_dir, steps, folder = self._run_dir, 0, None
        with self._ranks.together("Looking at output_dir"):
            if self.args.should_save:
                check_writable(output_dir)
            sources = self._tag(self.train_dataset)[1]
            found = describe_run(self, self._inner(self.model), self.train_dataset, sources)
            if self._run is not None and self.accelerator.distributed_type.value in SHARDED:
                found["model"] = self._run["model"]  # an earlier call has sharded the model, and it looks otherwise
            self._run = found
            if resume_from_checkpoint:
                check_resume(self)
                folder = last_complete(output_dir) if resume_from_checkpoint is True else Path(resume_from_checkpoint)
                first = self.accelerator.is_local_main_process
                steps = load_state(folder, self._step, self.coreset.to_dict(), self._scoring, self._run, hashes=first)
        check_agreement(self, self._ranks, self._run, sharded=self._sharded() is not None)
        pool = self.args.gradient_accumulation_steps * self._train_batch_size * self.coreset.pool_factor
        self._passes = Passes(steps * pool * self._ranks.count)
        latest = self._ranks.largest(steps)
        with self._ranks.together("Looking at output_dir"):
            if latest != steps:
                raise CheckpointError(
                    f"All ranks should resume from the same checkpoint. Found {folder} on rank "
                    f"{self.accelerator.process_index}, and a later one on another."
                )
        if folder is not None and self.args.ignore_data_skip and self.is_world_process_zero():
            logger.warning(
                "ignore_data_skip is true: the epoch of %s begins again at its first row, so the run will not be the "
                "one that was interrupted.",
                folder,
            )
        return None if folder is None else str(folder)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's log with the pool's loss beside the small batch's, and tokens scored apart from trained."""
        if self.coreset.pool_factor > 1 and "loss" in logs:
            logs.update(self._recorder.take_means())
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        """The parent's checkpoint, then selection's state and the marker; only then older checkpoints are deleted.

        Raises:
            CheckpointError: on every rank, this or another rank could not write.
        """
        if self.coreset.pool_factor == 1:
            super()._save_checkpoint(model, trial, *args, **kwargs)
            return
        run_dir = Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        self._absorb()
        self._recorder.before_save()
        with self._saved_together(folder):  # all ranks wait here: none may write into a folder that looks complete
            if self.args.should_save:
                unmark(folder)
        with self._saved_together(folder):
            self._saving = Saving(self.args)
            try:
                with self._saving.held_back():
                    super()._save_checkpoint(model, trial, *args, **kwargs)
                if self._saving.failure is not None:
                    raise self._saving.failure
            finally:
                self._saving = None
        with self._saved_together(folder):
            if self.args.should_save:
                self.save_coreset_state(folder)
        if self.args.should_save:
            rotate(run_dir, folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    @contextmanager
    def _saved_together(self, folder: Path) -> Iterator[None]:
        """A part of saving, which all ranks end alike; what fails says what can be gone on from."""
        with self._ranks.together(f"Writing {folder}"):
            try:
                yield
            except CorebatchError:
                raise
            except Exception as error:
                raise saving_failed(error, self.state.global_step, folder) from error

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The parent's. Within a checkpoint, a failure waits until all ranks can be told of it."""
        if self._saving is None:
            super().save_model(output_dir, _internal_call)
            return
        with self._saving.model():
            super().save_model(output_dir, _internal_call)

    def save_coreset_state(self, folder: Path) -> None:
        """Adds selection's state and the marker of completeness to a checkpoint that is otherwise written."""
        save_state(folder, self._step, self.coreset.to_dict(), self.state.global_step, self._scoring, self._run)

    def _start_over(self) -> None:
        """The state of a run before its first step."""
        self._join_ranks()
        self._step = self.coreset.build()
        if (old := getattr(self, "_scoring", None)) is not None and old.trained is not None:
            old.trained.close()
        self._scoring = PoolScoring(
            self.coreset.resolve_scoring(self._examples_come_again()),
            self._step,
            loss=self.coreset.loss,
            micro_batch=self._train_batch_size,
            sharded=self._sharded() is not None,
        )
        if self._compiled:
            self._scoring.trained = None  # hooks of a compiled module are not seen; `check_settings` has told
        self._states = None
        self._limits = None
        self._saving = None
        self._pending = None
        self._pool_tokens = torch.zeros(0, dtype=torch.long)
        self._packed = self._prepared = self._compared = self._in_backward = False
        self._told = None
        self._weights = RowWeights(self)

    def _join_ranks(self) -> None:
        """Who takes part, and what is known of their rows."""
        alone = self.coreset.pool_factor == 1  # plain training has no messages of its own
        self._ranks = Ranks() if alone else Ranks.of(self.accelerator)
        self._presence = Presence(self._ranks.index, self._ranks.count, float(self.args.ddp_timeout))
        self._format = None
        self._passes = Passes()

    def _examples_come_again(self) -> bool:
        """Whether the settings make the run draw more examples than there are."""
        if self.train_dataset is None or is_stream(self.train_dataset):
            return False
        if self.args.max_steps <= 0:
            return self.args.num_train_epochs > 1
        drawn = self.args.max_steps * self.args.gradient_accumulation_steps * self._train_batch_size
        return drawn * self.coreset.pool_factor * self._ranks.count > len(self.train_dataset)

    def coreset_record(self) -> dict[str, Any]:
        """What `corebatch.json` says of the run: settings, sources, versions, hardware."""
        return record.describe(
            self.args,
            self.coreset.to_dict(),
            self._inner(self.model_wrapped),
            self._sources,
            self._step.small_sources,
            self._started,
        )

    def _sharded(self) -> str | None:
        """The engine that divides weights or gradients over ranks, or None."""
        kind = str(getattr(self.accelerator.distributed_type, "value", ""))
        return kind if kind in SHARDED else None

    def _tag(self, dataset: Any) -> tuple[Any, Sources]:
        """The data set with ids and sources; made once for a data set."""
        column, needed = self.coreset.source_column, self.coreset.small_sources is not None
        if self._tagged is None or self._tagged[0] is not dataset or self._tagged_by != (column, needed):
            self._tagged, self._tagged_by = (dataset, *tag(dataset, column, needed=needed)), (column, needed)
            if self._tagged[2].note and self.is_world_process_zero():
                logger.warning(self._tagged[2].note)
        return self._tagged[1], self._tagged[2]

    @property
    def _sources(self) -> Sources:
        """Of the data set that the loader was made of, whatever `train_dataset` has become since."""
        return self._tag(self.train_dataset)[1] if self._tagged is None else self._tagged[2]

    def _inner(self, model: Any) -> Any:
        """The model below DDP, torch.compile and the like; autocast stays."""
        return self.accelerator.unwrap_model(model, keep_torch_compile=False)


def _scaled(positions: int, here: int, everywhere: int) -> int:
    """Positions on this rank, with `here` tokens in them, scaled up to the tokens of all ranks."""
    return round(positions * everywhere / here) if here else positions


def _batch_size(loader: Any) -> int | None:
    """Rows that one rank draws at a time, or None if the loader does not say."""
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and getattr(sampler, "batch_size", None) is None:
        sampler = getattr(sampler, "batch_sampler", None)
    return getattr(sampler, "batch_size", None) or getattr(loader, "batch_size", None)
