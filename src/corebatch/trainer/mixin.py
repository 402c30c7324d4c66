"""The seam: overrides on the Trainer that hand on, no copied loop.

`get_train_dataloader` draws micro-batch x pool_factor rows at a time; `get_batch_samples` takes the pool of one
optimizer step through the parent, has the small batch chosen jointly over ranks (`batch/step.py`), and hands exactly as
many micro-batches back through the parent; `compute_loss` knows `loss_weights`. `train` and `log` add what a run's
record needs; `_save_checkpoint`, `save_model` and `_get_train_sampler` let a run be killed and go on.

Where corebatch takes no part (pool_factor 1, micro_batches plain) every override is the parent's.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from corebatch.batch.method import Choice
from corebatch.batch.plan import Plan
from corebatch.batch.pool import Pool
from corebatch.errors import ConfigError, DataError
from corebatch.model.weighted_loss import weighted_loss
from corebatch.record.checkpoint import last_complete, rotate, unmark
from corebatch.record.provenance import now
from corebatch.record.saving import Saving
from corebatch.sampling.order import resumable
from corebatch.sampling.tags import DEFAULT_COLUMN
from corebatch.scoring import Scores
from corebatch.trainer import loading, trials
from corebatch.trainer.budget import ByRows, passed_over, to_draw, to_train
from corebatch.trainer.checks import check_stream
from corebatch.trainer.config import CoresetConfig
from corebatch.trainer.lifecycle import end_run, set_up, start_over, start_run
from corebatch.trainer.named_parts import NamedParts
from corebatch.trainer.own_loss import as_the_trainer_wants, check_bases
from corebatch.trainer.parts import folded, train_parts
from corebatch.trainer.run import SelectionRun
from corebatch.trainer.run_control import controlled
from corebatch.types import ID


class CoresetMixin(ByRows, NamedParts):
    """Mini-batch coresets for any subclass of `transformers.Trainer`: `class MyTrainer(CoresetMixin, Trainer)`.
    Other arguments are the Trainer's.

    Args:
        coreset: the settings; `CoresetConfig()` by default.
        target_dataset: rows as those of train_dataset, which `coreset.target` follows and nothing trains.

    Raises:
        ConfigError: settings that do not go together, or that selection does not go with: packing, padding_free,
            DataParallel, batch_rebalance, streaming without max_steps, label smoothing, a loss of one's own.
    """

    train_dataset: Any
    _train_batch_size: int
    _run: SelectionRun
    handle_signals = True
    """Whether SIGTERM and SIGHUP finish the step, save and end the process."""
    _resumed: str | None = None
    _begun: bool | None = None
    """None outside of `train`; within it whether the run has begun: with `model_init` there is no model before."""
    _recorder: Any = None
    _watches: Any = ()
    _compiling: Any = None
    data_collator: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_bases(cls)

    def __init__(
        self, *args: Any, coreset: CoresetConfig | None = None, target_dataset: Any = None, **kwargs: Any
    ) -> None:
        self.target_dataset = target_dataset
        self.coreset = coreset if coreset is not None else CoresetConfig()
        if not isinstance(self.coreset, CoresetConfig):
            raise ConfigError(f"coreset should be a CoresetConfig. Found {type(self.coreset).__name__}.")
        if self.coreset.takes_part:
            given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
            check_stream(given.get("args"), given.get("train_dataset"))
        super().__init__(*args, **kwargs)
        self._base, self._own_collator = self.coreset, self.data_collator
        self._tagged = loading.TaggedSets()
        self._started = now()
        set_up(self)
        named = self.coreset.takes_part and self.coreset.source_column != DEFAULT_COLUMN
        if named and loading.is_mapped(self.train_dataset):
            loading.tagged(self)  # a column that is missing is an error now

    # ---- what is drawn, chosen and trained -----------------------------------------------------------------------

    def get_train_dataloader(self) -> Any:
        """The parent's loader over micro-batch x pool_factor rows that carry their ids and sources."""
        start_run(self)
        if not self.coreset.takes_part:
            return super().get_train_dataloader()
        if self._begun and self._train_batch_size != self._run.scoring.micro_batch:
            start_over(self)  # the Trainer begins anew with smaller micro-batches
            self._run.begin(self._resumed)
        return loading.pool_loader(self, super().get_train_dataloader)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, in an order that a resumed run draws again; or one of our own in its place."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if not self.coreset.takes_part:
            return sampler
        if self._run.own_order:
            return loading.own_sampler(self, sampler)
        drawn = None if self.coreset.pool_factor > 1 else self._run.order
        return resumable(sampler, self.args, lambda: self.state, drawn)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any) -> Any:
        """The pool of one optimizer step goes in, the small batch comes out as equally many micro-batches."""
        if not self.coreset.takes_part:
            return super().get_batch_samples(epoch_iterator, num_batches, *args)
        run, recorder, step = self._run, self._recorder, self.state.global_step + 1
        recorder.phases.start()
        run.presence.at(step, "loading")
        wanted = to_draw(self, num_batches)
        batches, failure = self._draw(epoch_iterator, wanted, *args)
        recorder.phases.end("load")
        run.presence.at(step, "choosing")
        rows = sum(len(batch[ID]) for batch in batches)
        counts = run.ranks.report(failure, rows, len(batches), wanted).T
        rows_by_rank, batches_by_rank, asked_by_rank = counts.tolist()
        if len(set(asked_by_rank)) > 1:
            raise DataError(
                "All ranks should be asked for equally many micro-batches. Found that their loaders differ in length: "
                f"at step {step} ranks are asked for {asked_by_rank}. Use a loader that evens out its ranks."
            )
        if not sum(rows_by_rank):
            return super().get_batch_samples(iter([]), 0, *args)
        given = max(batches_by_rank)
        asked = to_train(self, given, num_batches)
        small = run.small_batch(batches, rows_by_rank, given, asked)
        recorder.note(small)
        made, items = super().get_batch_samples(iter(small.micro_batches), len(small.micro_batches), *args)
        recorder.phases.end("repack")
        run.presence.at(step, "training")
        if small.weights.denominator is not None:
            items = small.weights.denominator
        elif isinstance(items, Tensor):
            items = items.clamp(min=1)  # where nothing is trained the loss is 0, not 0 / 0
        run.weights.begin(made, items)
        run.noise.begin(made, len(small.chosen))
        return folded(made, min(asked, num_batches)), items

    def _draw(
        self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any
    ) -> tuple[list[dict[str, Tensor]], Exception | None]:
        """This rank's part of the pool, through the parent, or no rows and what is wrong with them."""
        # The parent counts what it takes over all ranks: a message that a rank with a bad row would not come to.
        counts_ranks = getattr(self.args, "average_tokens_across_devices", False)
        self.args.average_tokens_across_devices = False
        try:
            before = passed_over(self)
            batches, _ = super().get_batch_samples(epoch_iterator, before + num_batches, *args)
            batches = batches[before:]
            self._run.check_drawn(batches)
        except Exception as error:  # of the user's data set and collator too
            return [], error
        finally:
            self.args.average_tokens_across_devices = counts_ranks
        self._run.passes.start(epoch_iterator)
        return batches, None

    def _choose(self, pool: Pool, plan: Plan, scores: Scores | None) -> Choice:
        """What a step trains of a pool, the same on every rank; a place for a subclass that watches choices."""
        return self._run.step.choose(pool, plan, scores, self.state.global_step, self.optimizer)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """The parent's loss, or with `loss_weights` in the batch: sum_i weight_i sum_t loss_it / num_items_in_batch."""
        if not self.coreset.takes_part or not model.training:
            return super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
            )
        run = self._run
        run.weights.check_items(self, num_items_in_batch)
        weights, places = (None, None) if run.weights.behind else run.weights.take(inputs)
        losses = run.step.losses
        with run.step.replaying(places, inputs):
            if weights is None:
                watch = losses and places and losses.watching(run.model(model), inputs, places)
                with watch or nullcontext():
                    result = super().compute_loss(
                        model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
                    )
            else:
                run.step.register(places, weights)
                told = partial(losses.add, places) if losses and places else None
                loss, outputs = weighted_loss(model, run.model(model), inputs, weights, told)
                if run.scoring.trained is not None:
                    run.scoring.trained.scale_by(loss)
                loss = as_the_trainer_wants(self, loss / num_items_in_batch)
                result = (loss, outputs) if return_outputs else loss
        if run.in_backward and not run.weights.checking:
            self._recorder.losses.append((result[0] if return_outputs else result).detach())
            if self.accelerator.sync_gradients:  # the last moment before weights are moved
                self._recorder.check_loss(self.state.global_step)
        return result

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The parent's, whose loss is recorded: what was trained, whoever computed it."""
        train = super().training_step
        if not self.coreset.takes_part:
            return train(model, inputs, *args, **kwargs)
        before = len(self._recorder.losses)
        loss = train_parts(self, model, inputs, lambda part: train(model, part, *args, **kwargs))
        self._recorder.losses[before:] = [loss]
        return loss

    def row_weights(self, inputs: dict[str, Any]) -> Tensor:
        """The weights of a micro-batch's rows, for a `compute_loss` of one's own; see docs/running/trainer.md.

        Returns:
            [B], by which each row's summed loss is to be multiplied, before the sum is divided by
            `num_items_in_batch`. Ones in evaluation, and where every row is trained and counts by its tokens.

        Raises:
            LossMismatchError: these are not inputs that `compute_loss` received.
        """
        return self._run.weights.of_rows(self, inputs)

    # ---- a run's beginning and end, its record and its checkpoints -------------------------------------------------

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

        def train() -> Any:
            self._begun, self._resumed = False, resume_from_checkpoint  # type: ignore[assignment]
            if self.model_init is None:  # else there is no model yet, and a trial of a search may change any setting
                start_run(self)
            elif resume_from_checkpoint is True and self.coreset.takes_part:
                self._resumed = str(last_complete(Path(self.args.output_dir)))
            try:
                return super(CoresetMixin, self).train(self._resumed, *args, **kwargs)
            except Exception as error:
                told = self._run.presence.explain(error)
                if told is error:
                    raise
                raise told from error
            finally:
                end_run(self)

        return controlled(self, train, resume_from_checkpoint, signals=self.handle_signals)

    def _hp_search_setup(self, trial: Any) -> None:
        """The parent's, and settings of `coreset` that a search tries."""
        with trials.coreset_of_trial(self, trial) as (given, found):
            super()._hp_search_setup(given)
        self._trial = trial
        if trial is not None:
            self.coreset = self._base.changed(**found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> Any:
        """The parent's, after the checkpoint was compared with the run."""
        start_run(self)
        return super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The Trainer's log with the pool's loss beside the small batch's, and tokens scored apart from trained."""
        if self.coreset.takes_part and "loss" in logs:
            chooses, means = self.coreset.pool_factor > 1, self._recorder.take_means()
            logs.update((key, value) for key, value in means.items() if chooses or "scored" not in key)
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any, *args: Any, **kwargs: Any) -> None:
        """The parent's checkpoint, then selection's state and the marker; only then older checkpoints are deleted.

        Raises:
            CheckpointError: on every rank, this or another rank could not write.
        """
        if not self.coreset.takes_part:
            super()._save_checkpoint(model, trial, *args, **kwargs)
            return
        run, run_dir = self._run, Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        run.update_memory()
        self._recorder.before_save()
        with run.saved_together(folder):  # all ranks wait here: none may write into a folder that looks complete
            if self.args.should_save:
                unmark(folder)
        with run.saved_together(folder):
            run.saving = Saving(self.args)
            try:
                with run.saving.held_back():
                    super()._save_checkpoint(model, trial, *args, **kwargs)
                if run.saving.failure is not None:
                    raise run.saving.failure
            finally:
                run.saving = None
        with run.saved_together(folder):
            if self.args.should_save:
                run.save(folder)
        if self.args.should_save:
            rotate(run_dir, folder, self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The parent's. Within a checkpoint, a failure waits until all ranks can be told of it."""
        if self._run.saving is None:
            super().save_model(output_dir, _internal_call)
            return
        with self._run.saving.model():
            super().save_model(output_dir, _internal_call)
