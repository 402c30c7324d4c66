"""What selection holds of one run, from before its first step to its last."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from corebatch.batch.error_tracking import ErrorTracking
from corebatch.batch.followed import POOL, followed
from corebatch.batch.online import OnlineObjective
from corebatch.batch.row_checks import check_rows
from corebatch.batch.scoring import Scoring, scored_rows
from corebatch.batch.small_batch import LocalRows, SmallBatch, filled
from corebatch.batch.step import BatchStep
from corebatch.distributed.exchange import RowFormat
from corebatch.distributed.heartbeat import Presence
from corebatch.distributed.ranks import Ranks
from corebatch.errors import CheckpointError, CorebatchError
from corebatch.model.limits import RowLimits, row_limits
from corebatch.model.rows import check_pool
from corebatch.record.checkpoint import Stateful, last_complete, load_state, save_state
from corebatch.record.rank_agreement import check_agreement, check_streams
from corebatch.record.run_file import describe
from corebatch.record.run_identity import describe_run
from corebatch.record.saving import Saving, check_writable, saving_failed
from corebatch.sampling.order import DrawnOrder
from corebatch.sampling.tags import Passes
from corebatch.trainer import first_pool
from corebatch.trainer.budget import run_budget
from corebatch.trainer.engine import SHARDED, examples_come_again, inner_model, run_dir, sharded
from corebatch.trainer.every_row import check_first_labels
from corebatch.trainer.hosts import CHANGED, check_tagged, runs_between, training_weights
from corebatch.trainer.in_backward import check_resume
from corebatch.trainer.learnt import check_skip, learnt_passes
from corebatch.trainer.lengths import length_buckets
from corebatch.trainer.loading import draw_plan, eligible, padding, tagged
from corebatch.trainer.loss_probe import AGAIN, check_later
from corebatch.trainer.noise import NoiseMeter
from corebatch.trainer.own_loss import RowWeights

logger = logging.getLogger(__name__)


class SelectionRun:
    """The state of a run; a new one has made no step.

    Args:
        trainer: whose run it is.
        compiled: whether the model's decoder is compiled.

    Attributes:
        ranks, presence: who takes part, and who is where; one alone where nothing is selected.
        method, scoring, step: what chooses.
        weights: of the rows of this step, on their way to whoever computes the loss.
        passes: over a stream.
        online: the shares of an online objective, or None.
        order: of the epoch's rows, where the Trainer's sampler draws it from the global generator.
        draws: how often sources come, or None where rows come as the Trainer draws them, or by what they have taught.
        learnt: the passes over the rows that are not learnt, or None where all come.
        budget: what each step draws where the batch grows, or None.
        lengths: the buckets of rows by length, or None where rows come whatever their length.
        noise: measures the noise of the gradient.
        limits: what the model can take.
        prepared, compared, in_backward: whether the first pool was looked at; whether the model's loss was compared
            with ours; whether weights move inside backward.
        identity: by what a checkpoint's run is known again.
        saving: the checkpoint that is being written.
    """

    def __init__(self, trainer: Any, *, compiled: bool) -> None:
        coreset = trainer.coreset
        self.trainer = trainer
        # Plain training has no messages of its own.
        self.ranks = Ranks.of(trainer.accelerator) if coreset.takes_part else Ranks()
        self.presence = Presence(self.ranks.index, self.ranks.count, float(trainer.args.ddp_timeout))
        self.method = coreset.step_of_run()
        self.weights, self.passes, self.order = RowWeights(trainer), Passes(), DrawnOrder()
        self.draws, self.learnt, self.lengths = draw_plan(trainer), learnt_passes(trainer), length_buckets(trainer)
        self.budget = run_budget(trainer, self.ranks.count)
        self.online = OnlineObjective.of(coreset.claimed, coreset.seed)
        taught = not compiled and not self.weights.owned
        most = 1 if self.lengths is None else int(self.lengths.rows.max())
        self.scoring = Scoring(
            coreset.resolve_scoring(examples_come_again(trainer, self.ranks.count, self.draws, most), taught=taught),
            self.method,
            loss=coreset.unit,
            micro_batch=trainer._train_batch_size,
            sharded=sharded(trainer) is not None,
        )
        if compiled:
            self.scoring.trained = None  # hooks of a compiled module are not seen; `check_settings` has told
        self.step = BatchStep(
            self.ranks,
            self.presence,
            self.method,
            self.scoring,
            pool_factor=coreset.pool_factor,
            loss=coreset.unit,
            cut=coreset.cut,
            rows=trainer._train_batch_size,
        )
        self.step.device, self.step.track_every = trainer.args.device, coreset.track_error
        # In evaluation mode blocks keep their activations: then one row at a time.
        rows = 1 if getattr(trainer.args, "gradient_checkpointing", False) else trainer._train_batch_size
        self.step.tracking = ErrorTracking(loss=coreset.unit, seed=coreset.seed, rows=rows)
        self.noise = NoiseMeter(trainer)
        self.limits: RowLimits | None = None
        self.prepared = self.compared = self.in_backward = False
        self.identity: dict[str, Any] | None = None
        self.saving: Saving | None = None
        self._unwrapped: tuple[Any, Any] = (None, None)

    def close(self) -> None:
        """Takes hooks off the model, and lets go of the loader."""
        self.passes.end()
        self.noise.close()
        if self.scoring.trained is not None:
            self.scoring.trained.close()

    @property
    def own_order(self) -> bool:
        """Whether rows come in an order of ours, in whole steps, in which one may come twice."""
        return any(order is not None for order in (self.draws, self.learnt, self.lengths))

    @property
    def folder(self) -> Path:
        """Where the run's files lie."""
        return run_dir(self.trainer)

    def model(self, wrapped: Any = None) -> Any:
        """The model that is trained, or `wrapped`, without what wraps it; a look at every module, so only once."""
        wrapped = self.trainer.model_wrapped if wrapped is None else wrapped
        if self._unwrapped[0] is not wrapped:
            self._unwrapped = (wrapped, inner_model(self.trainer, wrapped))
        return self._unwrapped[1]

    def record(self) -> dict[str, Any]:
        """What `corebatch.json` says of the run: settings, sources, versions, hardware."""
        trainer = self.trainer
        coreset, sources = trainer.coreset.to_dict(), trainer._tagged.latest(trainer)
        found = describe(trainer.args, coreset, self.model(), sources, self.method.small_sources, trainer._started)
        if trainer.coreset.weighs:
            kept = found["method_note"] if self.method.small_sources else ""
            found["method_note"] = f"Rows have weights: what is trained is {self.claimed}. {kept}".strip()
        follows = followed(self.method) if trainer.coreset.pool_factor > 1 else POOL
        if follows != POOL:
            found["method_note"] = f"What is trained follows {follows}."
        told = {"scored": self.scored, "claimed": self.claimed, "follows": follows, "noise": self.noise.in_words()}
        return {**found, **told}

    @property
    def claimed(self) -> str:
        """What the updates are those of, in words."""
        coreset = self.trainer.coreset
        weighed = "" if coreset.weight_column is None else f", rows weighed by {coreset.weight_column}"
        ways = (coreset.sampling, coreset.by_length)
        weighed += "".join(f", {way.in_words()}" for way in ways if way is not None)
        return coreset.claimed.in_words(len(self.trainer._tagged.latest(self.trainer).counts) or None) + weighed

    @property
    def scored(self) -> str:
        """What is scored, in words."""
        if self.trainer.coreset.pool_factor == 1:
            return "nothing: every row is trained"
        return scored_rows(self.scoring.strategy, self.method)

    # ---- the step ------------------------------------------------------------------------------------------------

    def check_drawn(self, batches: Sequence[Any]) -> None:
        """Raises CorebatchError for batches that are not ours, cannot be taken apart, or that the model cannot take."""
        check_tagged(self.trainer, batches)
        for batch in batches:
            check_pool(batch)
        self.limits = self.limits or row_limits(self.model())
        check_rows(batches, self.limits.vocabulary, self.limits.longest, targets=self.limits.targets)
        if self.trainer.coreset.pool_factor == 1 and self.trainer.coreset.cut.regroups:
            check_first_labels(batches, padding(self.trainer, batches))
        if self.step.row_format is not None and self.ranks.count > 1:
            self.step.row_format.check(batches)

    def small_batch(
        self, batches: Sequence[dict[str, Tensor]], counts: Sequence[int], given: int, asked: int
    ) -> SmallBatch:
        """Scores the pool's rows here, chooses over all ranks, and packs this rank's share.

        Args:
            batches: this rank's part of the pool.
            counts: how many rows each rank has.
            given: in how many batches, at most.
            asked: how many micro-batches each rank's Trainer waits for; more than `given` at the end of a stream, where
                the Trainer would make no step with fewer.
        """
        trainer, step, number = self.trainer, self.step, self.trainer.state.global_step
        phases, model = trainer._recorder.phases, self.model()
        training_weights(trainer.optimizer)
        self.update_memory()
        if step.row_format is None:
            step.row_format = RowFormat.of(batches).agree(self.ranks)
            check_streams(self.ranks, tagged(trainer)[0])
        may = eligible(trainer, batches, self.ranks, self.passes)
        if 0 in counts:
            pad, device = padding(trainer, []), trainer.args.device
            batches, may, counts = filled(self.ranks, step.row_format, batches, may, counts, pad, device)
        assert self.limits is not None  # since batches were looked at
        step.longest = self.limits.longest
        if not trainer.model_accepts_loss_kwargs:
            step.mean_over = "micro_batch"
        elif not getattr(trainer.args, "average_tokens_across_devices", False):
            step.mean_over = "rank"
        step.claims.done = number / trainer.state.max_steps if self.budget is None else self.budget.done
        rows = LocalRows(
            batches=batches,
            eligible=may,
            counts=counts,
            padding=padding(trainer, batches),
            repeats=self.own_order,
        )
        if not self.prepared:
            first_pool.look(trainer, model, batches, rows.padding)
            phases.start()  # checks are not part of a step's cost
        elif number in AGAIN and self.weights.owned:
            check_later(trainer, model, batches, rows.padding, own=True)
            phases.start()
        small = step.run(model, rows, number, given=given, asked=asked, clock=phases, choose=trainer._choose)
        self.passes.seen(small.pool_ids)
        if self.learnt is not None:
            small.line.update(self.learnt.line(number))
        if small.weights.rows is not None and not self.compared:
            # Rows have weights for the first time: a mean of examples, or fewer rows than micro-batches.
            check_later(trainer, model, batches, rows.padding, own=False)
            self.compared = True
        return small

    def update_memory(self) -> None:
        """Remembers what the last step trained, and lets go of what it kept; on every rank at the same place."""
        self.step.update_memory()
        if self.scoring.references is not None:
            self.scoring.references.follow(self.model(), self.trainer.state.global_step)
        if self.step.states is not None:
            self.step.forget_states(watched=runs_between(self.trainer), changed=CHANGED)

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def begin(self, resume: str | bool | None) -> str | None:
        """Checks, on all ranks, the folder and the checkpoint; then the record goes on where the checkpoint ends.

        Returns:
            The checkpoint that the Trainer resumes from, or None.
        """
        trainer, args, steps, folder = self.trainer, self.trainer.args, 0, None
        with self.ranks.together("Looking at output_dir"):
            if args.should_save:
                check_writable(self.folder)
            found = describe_run(
                trainer, inner_model(trainer, trainer.model), trainer.train_dataset, tagged(trainer)[1]
            )
            if self.identity is not None and trainer.accelerator.distributed_type.value in SHARDED:
                found["model"] = self.identity["model"]  # an earlier call has sharded the model: it looks otherwise
            self.identity = found
            if resume:
                check_resume(trainer)
                folder = last_complete(self.folder) if resume is True else Path(resume)
                first = trainer.accelerator.is_local_main_process
                check_skip(trainer)
                steps = load_state(
                    folder, self.method, trainer.coreset.to_dict(), self.scoring, found, first, self._others()
                )
            if self.scoring.references is not None:
                self.scoring.references.prepare(inner_model(trainer, trainer.model))
        check_agreement(trainer, self.ranks, self.identity, sharded=sharded(trainer) is not None)
        pool = args.gradient_accumulation_steps * trainer._train_batch_size * trainer.coreset.pool_factor
        self.passes = Passes(steps * pool * self.ranks.count)
        latest = self.ranks.largest(steps)
        with self.ranks.together("Looking at output_dir"):
            if latest != steps:
                raise CheckpointError(
                    f"All ranks should resume from the same checkpoint. Found {folder} on rank "
                    f"{trainer.accelerator.process_index}, and a later one on another."
                )
        if folder is not None and args.ignore_data_skip and trainer.is_world_process_zero():
            logger.warning(
                "ignore_data_skip is true: the epoch of %s begins again at its first row, so the run will not be the "
                "one that was interrupted.",
                folder,
            )
        if trainer.is_world_process_zero():
            logger.info("Scored: %s. Trained for %s.", self.scored, self.claimed)
            if self.method.random_every:
                logger.info("Noise: %s. Rows of other steps are chosen.", self.noise.in_words())
            claimed = trainer.coreset.claimed
            if self.draws is not None:
                logger.warning("%s", self.draws.in_words(claimed.corrects, claimed.sources_counted()))
            if self.learnt is not None:
                logger.warning("%s", self.learnt.in_words(claimed.corrects))
        return None if folder is None else str(folder)

    def save(self, folder: Path) -> None:
        """Adds selection's state and the marker of completeness to a checkpoint that is otherwise written."""
        trainer = self.trainer
        coreset, step = trainer.coreset.to_dict(), trainer.state.global_step
        save_state(folder, self.method, coreset, step, self.scoring, self.identity, self._others())

    def _others(self) -> dict[str, Stateful]:
        """What else has a state for a checkpoint, by name."""
        found = {"order": self.order, "online": self.online, "learnt": self.learnt, "budget": self.budget,
                 "noise": self.noise.running}  # fmt: skip
        return {name: each for name, each in found.items() if each is not None}

    @contextmanager
    def saved_together(self, folder: Path) -> Iterator[None]:
        """A part of saving, which all ranks end alike; what fails says what can be gone on from."""
        with self.ranks.together(f"Writing {folder}"):
            try:
                yield
            except CorebatchError:
                raise
            except Exception as error:
                raise saving_failed(error, self.trainer.state.global_step, folder) from error
