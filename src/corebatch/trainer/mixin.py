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
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from corebatch.errors import ConfigError, NonFiniteError
from corebatch.scoring import Scores, Tokens
from corebatch.sources import small_candidates
from corebatch.step import Choice
from corebatch.trainer import record
from corebatch.trainer.checkpoint import last_complete, load_state, save_state
from corebatch.trainer.checks import check_loss, check_settings, check_stream
from corebatch.trainer.config import CoresetConfig
from corebatch.trainer.distributed import Pool, exchange_rows, gather_pool, shares
from corebatch.trainer.moments import second_moments
from corebatch.trainer.repack import Padding, check_pool, micro_batches, row_spans, take_rows
from corebatch.trainer.tagging import DEFAULT_COLUMN, ID, SOURCE, Names, SourceCollator, Sources, tag
from corebatch.trainer.weighted_loss import weighted_loss

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from transformers import Trainer as _Base  # what the mixin is mixed into
else:
    _Base = object


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

    def __init__(self, *args: Any, coreset: CoresetConfig | None = None, **kwargs: Any) -> None:
        self.coreset = coreset if coreset is not None else CoresetConfig()
        if not isinstance(self.coreset, CoresetConfig):
            raise ConfigError(f"coreset should be a CoresetConfig. Found {type(self.coreset).__name__}.")
        if self.coreset.pool_factor > 1:
            given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
            check_stream(given.get("args"), given.get("train_dataset"))
        super().__init__(*args, **kwargs)
        self._step = self.coreset.build()
        self._source_names: Any = Names()
        self._tagged: tuple[Any, Any, Sources] | None = None
        self._loss_checked = False
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
        weights = inputs.pop("loss_weights", None) if isinstance(inputs, dict) else None
        if weights is None:
            result = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
            scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        else:
            loss, outputs = weighted_loss(model, self._inner(model), inputs, weights)
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

    def _small_batch(self, batches: list[dict[str, Tensor]]) -> tuple[list[dict[str, Tensor]], Tensor | None]:
        """Scores the pool's rows here, chooses over all ranks, and packs this rank's share.

        Returns:
            As many micro-batches as there are pool batches, and what the summed loss is divided by, or None where
            the parent's own count of what is trained is right.
        """
        phases = self._recorder.phases
        for batch in batches:
            check_pool(batch)
        model = self._inner(self.model_wrapped)
        if not self._loss_checked:
            if self._step.selector.weighted or (self._step.scores and self._step.scorer.needs_forward):
                check_loss(model, _without_tags(batches[0]))
            self._loss_checked = True
            phases.start()  # the check is not part of a step's cost
        scores = self._score(model, batches)
        phases.end("score")
        ids, sources = (torch.cat([batch[key] for batch in batches]).cpu() for key in (ID, SOURCE))
        spans = torch.cat([row_spans(batch) for batch in batches])
        pool = gather_pool(self.accelerator, scores, ids, sources, spans[:, 1] - spans[:, 0], self._eligible(batches))
        phases.end("exchange")
        candidates = pool.eligible.nonzero().flatten()
        count, ranks = len(candidates), self.accelerator.num_processes
        budget = min(count, max(math.ceil(count / self.coreset.pool_factor), len(batches) * ranks))
        eligible = _rows(pool.scores, candidates)
        choice = self._choose(eligible, pool, candidates, budget)
        phases.end("select")
        chosen = candidates[choice.selection.indices.cpu()]
        weights, denominator = self._loss_weights(choice, eligible, count, budget, len(batches) * ranks)
        small = self._pack(batches, pool, chosen, weights)
        self._note(pool, candidates, chosen, choice)
        return small, denominator

    def _score(self, model: Any, batches: list[dict[str, Tensor]]) -> Scores:
        scorer = self._step.scorer if self._step.scores else Tokens()  # e.g. random looks at nothing
        settings: dict[str, Any] = {"loss": self.coreset.loss, "seed": self.coreset.seed}
        return Scores.cat([scorer.run(model, _without_tags(batch), **settings) for batch in batches])

    def _choose(self, eligible: Scores, pool: Pool, candidates: Tensor, budget: int) -> Choice:
        moments = None
        if self._step.normalise is not None and self._step.normalise.needs_moments:
            moments = second_moments(self.optimizer, self._step.scorer.coordinates())
        step = self.state.global_step
        try:
            return self._step.choose(eligible, pool.sources[candidates], budget, step=step, second_moments=moments)
        except NonFiniteError as error:
            bad = ~torch.isfinite(eligible.features).all(dim=1)
            if eligible.losses is not None:
                bad |= ~torch.isfinite(eligible.losses)
            examples = pool.ids[candidates[bad.cpu()]].tolist()
            shown = ", ".join(map(str, examples[:8])) + (", ..." if len(examples) > 8 else "")
            raise NonFiniteError(f"At step {step + 1}, examples {shown} of the train set: {error}") from None

    def _loss_weights(
        self, choice: Choice, eligible: Scores, count: int, budget: int, slots: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """What each chosen row's summed token loss is multiplied by, and the sum's denominator over all ranks.

        (None, None) where the plain loss is the right one: weights of one, a mean over tokens, and a row for each
        micro-batch.
        """
        weights = choice.selection.weights
        tokens = eligible.tokens.to(weights.device)
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
        self, batches: list[dict[str, Tensor]], pool: Pool, chosen: Tensor, weights: Tensor | None
    ) -> list[dict[str, Tensor]]:
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
        return micro_batches(
            [held[p] if p in held else arrived[p] for p in mine],
            None if weights is None else weights[mine],
            len(batches),
            self._padding(batches),
            template,
        )

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

    def _note(self, pool: Pool, candidates: Tensor, chosen: Tensor, choice: Choice) -> None:
        """The record's line of this step, as far as it is known before training."""
        names, scores = self._source_names, pool.scores
        tokens = pool.scores.tokens
        scored = self._step.scores and self._step.scorer.needs_forward
        pool_loss = chosen_loss = None
        if scores.losses is not None:
            losses = scores.losses.double().cpu()
            pool_loss = float(losses[candidates].sum() / tokens[candidates].sum().clamp(min=1))
            chosen_loss = float(losses[chosen].sum() / tokens[chosen].sum().clamp(min=1))
        self._recorder.step = {
            "drawn": record.per_source(pool.sources[candidates], names),
            "chosen": record.per_source(pool.sources[chosen], names),
            "kept": [group.name for group in choice.groups if group.keep],
            "pool_examples": len(candidates),
            "chosen_examples": len(chosen),
            "pool_loss": pool_loss,
            "chosen_loss": chosen_loss,
            "tokens_scored": int(pool.lengths.sum()) if scored else 0,
            "tokens_trained": int(pool.lengths[chosen].sum()),
            "labels_scored": int(tokens.sum()) if scored else 0,
            "labels_trained": int(tokens[chosen].sum()),
            "weight_max": choice.selection.weight_max,
            "effective_sample_size": choice.selection.effective_sample_size,
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
            self._step = self.coreset.build()
            steps = 0
            if resume_from_checkpoint:
                folder = last_complete(output_dir) if resume_from_checkpoint is True else Path(resume_from_checkpoint)
                steps = load_state(folder, self._step, self.coreset.to_dict())
                resume_from_checkpoint = str(folder)
            if self.is_world_process_zero():
                record.start_log(output_dir, steps)
            self.accelerator.wait_for_everyone()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's log with the pool's loss beside the small batch's, and tokens scored apart from trained."""
        if self.coreset.pool_factor > 1 and "loss" in logs:
            logs.update(self._recorder.take_means())
        super().log(logs, *args, **kwargs)

    def save_coreset_state(self) -> None:
        """Adds selection's state and the marker of completeness to the checkpoint just written (rank 0)."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero() and folder.is_dir():
            save_state(folder, self._step, self.coreset.to_dict(), self.state.global_step)

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


def _rows(scores: Scores, rows: Tensor) -> Scores:
    there = rows.to(scores.features.device)
    return Scores(
        features=scores.features[there],
        losses=None if scores.losses is None else scores.losses[there],
        tokens=scores.tokens[rows],
    )


def _without_tags(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in batch.items() if key not in (ID, SOURCE)}


def _batch_size(loader: Any) -> int | None:
    """Rows that one rank draws at a time, or None if the loader does not say."""
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and getattr(sampler, "batch_size", None) is None:
        sampler = getattr(sampler, "batch_sampler", None)
    return getattr(sampler, "batch_size", None) or getattr(loader, "batch_size", None)
