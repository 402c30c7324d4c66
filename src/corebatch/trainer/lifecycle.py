"""The state of selection in a Trainer: made when the Trainer is, and anew when a run begins."""

from __future__ import annotations

from typing import Any

from corebatch.batch.error_tracking import check_tracking
from corebatch.model import compiling
from corebatch.record import writer
from corebatch.record.rank_agreement import check_agreement
from corebatch.record.run_identity import describe_run
from corebatch.sampling.collating import SourceCollator
from corebatch.sampling.tags import Names, Sources
from corebatch.trainer.budget import check_budget, watch_budget
from corebatch.trainer.checks import check_settings
from corebatch.trainer.engine import inner_model, sharded
from corebatch.trainer.hosts import check_chosen
from corebatch.trainer.in_backward import check_in_backward
from corebatch.trainer.learnt import LearntWatch
from corebatch.trainer.noise_checks import check_noise, random_every
from corebatch.trainer.online import OnlineWatch
from corebatch.trainer.own_loss import LossWatch
from corebatch.trainer.parts import check_parts
from corebatch.trainer.run import SelectionRun
from corebatch.trainer.run_control import all_ranks
from corebatch.trainer.target import check_target, make_target_of


def set_up(trainer: Any) -> None:
    """What the settings ask of the Trainer: when it is made, and when a run begins, since much of it can be
    changed in between, and a trial of a search has settings and an accelerator of its own."""
    selects = trainer.coreset.takes_part
    if selects and compiling.is_asked_for(trainer.accelerator) and trainer._compiling is not trainer.accelerator:
        compiling.compile_decoder_instead(trainer.accelerator)
        trainer._compiling = trainer.accelerator
    check_target(trainer)
    start_over(trainer)
    watch_budget(trainer)
    if not isinstance(trainer.data_collator, SourceCollator):
        trainer._own_collator = trainer.data_collator
    trainer.data_collator = trainer._own_collator
    recorded = trainer._recorder in trainer.callback_handler.callbacks
    if recorded and not selects:
        for callback in (trainer._recorder, *trainer._watches):
            trainer.remove_callback(callback)
    if selects:
        trainer.data_collator = SourceCollator(trainer._own_collator, trainer.coreset.source_column)
        check_settings(trainer, trainer.coreset, trainer._run.method)
        check_parts(trainer)
        check_noise(trainer)
        check_budget(trainer)
        check_tracking(trainer.coreset.track_error, in_backward=check_in_backward(trainer), sharded=sharded(trainer))
        if trainer._recorder is None:
            trainer._recorder = writer.Recorder(trainer, check=check_chosen)
            trainer._watches = (LossWatch(trainer), OnlineWatch(trainer), LearntWatch(trainer))
        if not recorded:
            for callback in (trainer._recorder, *trainer._watches):
                trainer.add_callback(callback)


def start_over(trainer: Any) -> None:
    """The state of a run before its first step."""
    before = getattr(trainer, "_run", None)
    if before is not None:
        before.close()
    selects = trainer.coreset.takes_part
    trainer._run = SelectionRun(trainer, compiled=selects and compiling.is_asked_for(trainer.accelerator))
    trainer._run.scoring.target = make_target_of(trainer)
    trainer._run.method.random_every = random_every(trainer)
    trainer._run.identity = None if before is None else before.identity


def start_run(trainer: Any) -> None:
    """Once in a call of `train`, when the model and the settings are there."""
    if trainer._begun is not False:
        return
    trainer._begun = True
    set_up(trainer)
    if trainer.coreset.takes_part:
        trainer._resumed = trainer._run.begin(trainer._resumed)
        trainer._run.presence.watch()
    elif trainer.accelerator.num_processes > 1:
        run = describe_run(trainer, inner_model(trainer, trainer.model), trainer.train_dataset, Sources(Names(), {}))
        check_agreement(trainer, all_ranks(trainer), run, sharded=sharded(trainer) is not None)


def end_run(trainer: Any) -> None:
    trainer._begun = None
    trainer._run.presence.close()
    if trainer._recorder is not None:
        trainer._recorder.flush()  # lines that wait for the device, whatever ended the run
    trainer._run.close()
    if getattr(trainer, "hp_search_backend", None) is not None:  # the next trial has a model of its own
        trainer._run.step.states = None
