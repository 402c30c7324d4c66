"""The seam: three overrides on the Trainer, no copied loop.

`get_train_dataloader` draws micro-batch x pool_factor rows at a time; `get_batch_samples` takes the pool of one
optimizer step through the parent, chooses the small batch jointly over ranks, and hands exactly as many micro-batches
back through the parent; `compute_loss` knows `loss_weights`. `train` and `log` add what a run's record needs.

With pool_factor 1 every override is the parent's.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corebatch.errors import ConfigError, NonFiniteError
from corebatch.scoring import Scores, trained_tokens
from corebatch.sources import small_candidates
from corebatch.step import Choice
from corebatch.trainer import record
from corebatch.trainer._compat import follow_epochs
from corebatch.trainer.checkpoint import last_complete, load_state, save_state
from corebatch.trainer.checks import check_loss, check_settings, check_stream
from corebatch.trainer.config import CoresetConfig
from corebatch.trainer.distributed import Pool, agree, exchange_rows, gather_pool, gather_scores, shares
from corebatch.trainer.moments import second_moments
from corebatch.trainer.packing import check_packing, packing_unfit
from corebatch.trainer.pool_scoring import Plan, PoolScoring, free_memory
from corebatch.trainer.repack import Padding, check_pool, micro_batches, row_spans, take_rows
from corebatch.trainer.reuse import BlockStates, unfit
from corebatch.trainer.scoring_config import ScoringConfig
from corebatch.trainer.tagging import DEFAULT_COLUMN, ID, PLACES, SOURCE, Names, SourceCollator, Sources, tag, untagged
from corebatch.trainer.weighted_loss import weighted_loss

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
    _pending: tuple[Pool, int] | None
    _told: str | None

    def __init__(self, *args: Any, coreset: CoresetConfig | None = None, **kwargs: Any) -> None:
        self.coreset = coreset if coreset is not None else CoresetConfig()
        if not isinstance(self.coreset, CoresetConfig):
            raise ConfigError(f"coreset should be a CoresetConfig. Found {type(self.coreset).__name__}.")
        if self.coreset.pool_factor > 1:
            given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
            check_stream(given.get("args"), given.get("train_dataset"))
        super().__init__(*args, **kwargs)
        self._start_over()
        self._source_names: Any = Names()
        self._tagged: tuple[Any, Any, Sources] | None = None
        self._started = record.now()
        self.data_collator: Any = SourceCollator(self.data_collator, self.coreset.source_column)
        if self.coreset.pool_factor > 1:
            check_settings(self, self.coreset, self._step)
            if self.coreset.source_column != DEFAULT_COLUMN and hasattr(self.train_dataset, "__len__"):
                self._tag(self.train_dataset)  # a column that is missing is an error now
            self._recorder = record.Recorder(self)
            self.add_callback(self._recorder)

    # ---- the three overrides -------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The parent's loader over micro-batch x pool_factor rows that carry their ids and sources."""
        if self.coreset.pool_factor == 1:
            return super().get_train_dataloader()
        dataset, drawn = self.train_dataset, self._train_batch_size * self.coreset.pool_factor
        tagged, sources = self._tag(dataset)
        counts = sources.counts
        if not counts and self.coreset.small_sources is not None:
            raise ConfigError("small_sources needs a data set whose sources can be counted. Found a stream.")
        self._step.small_sources = small_candidates(counts, sources.names, self.coreset.small_sources)
        self._step.source_names = self._source_names = sources.names
        if self._step.small_sources and self.is_world_process_zero():
            logger.warning(record.kept_note(sources, self._step.small_sources))
        # What the model does not take is dropped on the way, so the two columns are declared as taken.
        self._set_signature_columns_if_needed()
        self._signature_columns += [key for key in (ID, SOURCE) if key not in self._signature_columns]
        micro_batch, self._train_batch_size, self.train_dataset = self._train_batch_size, drawn, tagged
        try:
            loader = super().get_train_dataloader()
        finally:
            self._train_batch_size, self.train_dataset = micro_batch, dataset
        found = _batch_size(loader)
        if found is not None and found != drawn:
            raise ConfigError(
                f"The train loader should draw per_device_train_batch_size x pool_factor = {drawn} rows at a time. "
                f"Found {found}: a sampler or loader of its own ignores the batch size."
            )
        follow_epochs(loader, lambda: int(self.state.epoch or 0))
        return loader

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any) -> Any:
        """The pool of one optimizer step goes in, the small batch comes out as equally many micro-batches."""
        if self.coreset.pool_factor == 1:
            return super().get_batch_samples(epoch_iterator, num_batches, *args)
        phases = self._recorder.phases
        phases.start()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *args)
        phases.end("load")
        if not batches:
            return super().get_batch_samples(iter([]), 0, *args)
        small, denominator = self._small_batch(batches)
        made, items = super().get_batch_samples(iter(small), len(small), *args)
        phases.end("repack")
        return made, items if denominator is None else denominator

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The parent's loss, or with `loss_weights` in the batch: sum_i weight_i sum_t loss_it / num_items_in_batch."""
        weights, places = (
            (inputs.pop("loss_weights", None), inputs.pop(PLACES, None)) if isinstance(inputs, dict) else (None, None)
        )
        if weights is None:
            with self._reusing(places, inputs):
                result = super().compute_loss(
                    model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
                )
            scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        else:
            self._announce(places, weights)
            with self._reusing(places, inputs):
                loss, outputs = weighted_loss(model, self._inner(model), inputs, weights)
            if self._scoring.trained is not None:
                self._scoring.trained.scale_by(loss)
            # The denominator counts all ranks, and DDP and its kin average gradients over them.
            loss = loss / num_items_in_batch * self.accelerator.num_processes
            # A Trainer that thinks the loss is a mean of one micro-batch divides it by their number.
            scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            if not scaled:
                loss = loss * self.current_gradient_accumulation_steps
            result = (loss, outputs) if return_outputs else loss
        if self.coreset.pool_factor > 1 and model.training:
            loss = (result[0] if return_outputs else result).detach()
            self._recorder.losses.append(loss if scaled else loss / self.current_gradient_accumulation_steps)
        return result

    # ---- the step ------------------------------------------------------------------------------------------------

    def _small_batch(self, batches: list[dict[str, Tensor]]) -> tuple[list[dict[str, Any]], Tensor | None]:
        """Scores the pool's rows here, chooses over all ranks, and packs this rank's share.

        Returns:
            As many micro-batches as there are pool batches, and what the summed loss is divided by, or None where
            the parent's own count of what is trained is right.
        """
        phases, scoring, step = self._recorder.phases, self._scoring, self.state.global_step
        for batch in batches:
            check_pool(batch)
        model = self._inner(self.model_wrapped)
        self._absorb()
        if not self._prepared:
            self._prepare_first(model, batches)
            phases.start()  # checks are not part of a step's cost
        pool = gather_pool(self.accelerator, self._columns(batches))
        phases.end("exchange")
        count, slots = int(pool.eligible.sum()), len(batches) * self.accelerator.num_processes
        budget = min(count, max(math.ceil(count / self.coreset.pool_factor), slots))
        plan = scoring.plan(pool, budget, step)
        padding = self._padding(batches)
        mine = scoring.score(self.accelerator, model, batches, pool, plan, padding, self._states)
        phases.end("score")
        scores = None if mine is None else gather_scores(self.accelerator, pool, plan.exact, mine)
        phases.end("exchange")
        choice = self._choose(pool, plan, scores)
        phases.end("select")
        chosen = plan.candidates[choice.selection.indices.cpu()]
        if self._states is not None:
            self._states.retain(chosen[pool.ranks[chosen] == self.accelerator.process_index].tolist())
        weights, denominator = self._loss_weights(choice, pool.tokens[plan.candidates], count, budget, slots)
        small = self._pack(batches, pool, chosen, weights, padding)
        if scoring.trained is not None:
            self._pending = (pool, step)
        self._pool_tokens = pool.tokens
        self._note(pool, plan, scores, chosen, choice, small)
        return small, denominator

    def _columns(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What travels of each of this rank's rows before scoring."""
        spans = torch.cat([row_spans(batch) for batch in batches])
        return {
            "ids": torch.cat([batch[ID] for batch in batches]),
            "sources": torch.cat([batch[SOURCE] for batch in batches]),
            "lengths": spans[:, 1] - spans[:, 0],
            "tokens": torch.cat([trained_tokens(batch["labels"]) for batch in batches]),
            "eligible": self._eligible(batches),
        }

    def _prepare_first(self, model: Any, batches: list[dict[str, Tensor]]) -> None:
        """Checks on the first pool, the same forwards on every rank; then what of it is reused, learnt and packed."""
        scoring, settings = self._scoring, self._scoring.settings
        if self._step.selector.weighted or (self._step.scores and self._step.scorer.needs_forward):
            check_loss(model, untagged(batches[0]))
        if scoring.trained is not None:
            scoring.trained.watch(model, untagged(batches[0]))
        self._packed = self._can_pack(model, batches)
        if settings.scores_exactly and settings.reuse is not False and scoring.scorer.needs_forward:
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
        return BlockStates(model, place=settings.reuse_place, max_bytes=scoring.reuse_bytes)

    def _reuse_bytes(self, settings: ScoringConfig) -> int:
        """The cap on what is kept: as set, or half of what is free where it is kept; ranks share a host's memory."""
        if settings.reuse_gb is not None:
            return int(settings.reuse_gb * 2**30)
        place = torch.device("cpu") if settings.reuse_place == "host" else self.args.device
        return free_memory(place) // 2 // (1 if place.type == "cuda" else self.accelerator.num_processes)

    def _can_pack(self, model: Any, batches: list[dict[str, Tensor]]) -> bool:
        """Whether micro-batches are trained without padding; all ranks decide alike."""
        wanted = self.coreset.padding_free
        flash = self._flash(model)
        if wanted is False or (wanted == "auto" and not flash):
            return False
        against = packing_unfit(model)
        if against is None:
            found = check_packing(model, take_rows(batches, range(min(2, len(batches[0][ID])))), flash=flash)
            if agree(self.accelerator, int(found is not None)):
                against = found or "Another rank's rows cannot be packed."
        if against is None:
            return True
        if wanted is True:
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
            self._scoring.absorb(self.accelerator, pool, step)
        if self._states is not None:
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
            return weights, trained.sum().float()
        # The large batch's mean over tokens, estimated: sum over M of w_i l_i, by (tokens of N) M / N.
        return weights, tokens.sum().double().mul(budget / count).to(torch.float32)

    def _pack(
        self,
        batches: list[dict[str, Tensor]],
        pool: Pool,
        chosen: Tensor,
        weights: Tensor | None,
        padding: Padding,
    ) -> list[dict[str, Any]]:
        """This rank's share of the chosen rows as micro-batches, rows that change ranks included."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        owners = pool.ranks[chosen].tolist()
        trained_by, moving = shares(owners, ranks)
        template = take_rows(batches, [0])[0]
        moved: dict[int, dict[str, Tensor]] = {}
        if moving:
            here = [i for i, position in enumerate(moving) if owners[position] == rank]
            rows = take_rows(batches, [int(pool.rows[chosen[moving[i]]]) for i in here])
            moved = exchange_rows(
                self.accelerator,
                dict(zip(here, rows, strict=True)),
                [owners[position] for position in moving],
                template,
            )
        arrived = {position: moved[i] for i, position in enumerate(moving)}
        mine = [position for position, owner in enumerate(trained_by) if owner == rank]
        stay = [position for position in mine if position not in arrived]
        held = dict(zip(stay, take_rows(batches, [int(pool.rows[chosen[p]]) for p in stay]), strict=True))
        placed = self._states is not None or self._scoring.trained is not None
        made = micro_batches(
            [held[p] if p in held else arrived[p] for p in mine],
            None if weights is None else weights[mine],
            len(batches),
            padding,
            template,
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
        state, ranks = self.accelerator.gradient_state, self.accelerator.num_processes
        if ranks > 1 and state.end_of_dataloader and state.remainder > 0:
            start = self.accelerator.process_index * rows[-1]  # ranks fill the last global batch one after the other
            real = min(max(state.remainder - start, 0), rows[-1])
            eligible[len(eligible) - rows[-1] + real :] = False
        return eligible

    def _note(
        self,
        pool: Pool,
        plan: Plan,
        scores: Scores | None,
        chosen: Tensor,
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
        trained_by, _ = shares(pool.ranks[chosen].tolist(), self.accelerator.num_processes)
        mine = [i for i, rank in enumerate(trained_by) if rank == self.accelerator.process_index]
        tokens_scored, tokens_trained = self._scoring.tokens_scored(pool, scored), int(pool.lengths[chosen].sum())
        recorded: dict[str, Any] = {
            "positions_scored": _scaled(work.positions, work.tokens, tokens_scored),
            "positions_trained": _scaled(positions, int(pool.lengths[chosen[mine]].sum()), tokens_trained),
        }
        if self._states is not None:
            recorded["reuse_mb"] = round(self._states.peak_bytes / 2**20, 3)
        self._recorder.step = {
            "drawn": record.per_source(pool.sources[candidates], names),
            "chosen": record.per_source(pool.sources[chosen], names),
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

    # ---- the record, checkpoints, resume -------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's. Resuming takes the last complete checkpoint, checks it before anything changes, and cuts
        `selection.jsonl` back to its step.

        Raises:
            CheckpointError: there is no complete checkpoint, or it was written with other settings.
        """
        if self.coreset.pool_factor > 1:
            output_dir = Path(self.args.output_dir)
            self._start_over()
            steps = 0
            if resume_from_checkpoint:
                folder = last_complete(output_dir) if resume_from_checkpoint is True else Path(resume_from_checkpoint)
                steps = load_state(folder, self._step, self.coreset.to_dict(), self._scoring)
                resume_from_checkpoint = str(folder)
            if self.is_world_process_zero():
                record.start_log(output_dir, steps)
            self.accelerator.wait_for_everyone()
            try:
                return super().train(resume_from_checkpoint, *args, **kwargs)
            finally:
                self._recorder.flush()  # lines that wait for the device, whatever ended the run
                if self._scoring.trained is not None:
                    self._scoring.trained.close()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's log with the pool's loss beside the small batch's, and tokens scored apart from trained."""
        if self.coreset.pool_factor > 1 and "loss" in logs:
            logs.update(self._recorder.take_means())
        super().log(logs, *args, **kwargs)

    def save_coreset_state(self) -> None:
        """Adds selection's state and the marker of completeness to the checkpoint just written (rank 0)."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self._absorb()
        if self.is_world_process_zero() and folder.is_dir():
            save_state(folder, self._step, self.coreset.to_dict(), self.state.global_step, self._scoring)

    def _start_over(self) -> None:
        """The state of a run before its first step."""
        self._step = self.coreset.build()
        if (old := getattr(self, "_scoring", None)) is not None and old.trained is not None:
            old.trained.close()
        self._scoring = PoolScoring(
            self.coreset,
            self._step,
            micro_batch=self._train_batch_size,
            sharded=getattr(self.accelerator.distributed_type, "value", "") in SHARDED,
            again=self._examples_come_again(),
        )
        self._states = None
        self._pending = None
        self._pool_tokens = torch.zeros(0, dtype=torch.long)
        self._packed = self._prepared = False
        self._told = None

    def _examples_come_again(self) -> bool:
        """Whether the settings make the run draw more examples than there are."""
        if not hasattr(self.train_dataset, "__len__"):
            return False
        if self.args.max_steps <= 0:
            return self.args.num_train_epochs > 1
        drawn = self.args.max_steps * self.args.gradient_accumulation_steps * self._train_batch_size
        return drawn * self.coreset.pool_factor * self.accelerator.num_processes > len(self.train_dataset)

    def coreset_record(self) -> dict[str, Any]:
        """What `corebatch.json` says of the run: settings, sources, versions, hardware."""
        return record.describe(
            self.args,
            self.coreset.to_dict(),
            self._inner(self.model_wrapped),
            self._tag(self.train_dataset)[1],
            self._step.small_sources,
            self._started,
        )

    def _tag(self, dataset: Any) -> tuple[Any, Sources]:
        """The data set with ids and sources; made once for a data set."""
        if self._tagged is None or self._tagged[0] is not dataset:
            self._tagged = (dataset, *tag(dataset, self.coreset.source_column))
        return self._tagged[1], self._tagged[2]

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
