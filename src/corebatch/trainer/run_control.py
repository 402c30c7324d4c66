"""What surrounds the Trainer's loop: the folder is this run's, signals end it well, and a finished run does nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corebatch.distributed.ranks import Ranks
from corebatch.record.folder_lock import owned_by_first
from corebatch.trainer.finished import AlreadyDone, StopBeforeTheFirst, outcome
from corebatch.trainer.stop_signals import StopSignals

logger = logging.getLogger(__name__)


def all_ranks(trainer: Any) -> Ranks:
    """The ranks of a Trainer, whatever they share; for agreement alone."""
    return Ranks(trainer.accelerator.process_index, trainer.accelerator.num_processes, trainer.args.device)


def controlled(trainer: Any, train: Callable[[], Any], resumed_from: Any, *, signals: bool) -> Any:
    """Trains, and returns what the Trainer does.

    Args:
        train: the Trainer's training.
        resumed_from: a checkpoint, True for the last one, or None.
        signals: whether SIGTERM and SIGHUP finish the step and save.

    Raises:
        ConfigError: another process trains in the folder.
        Stopped: after a signal.
    """
    ranks, handler = all_ranks(trainer), trainer.callback_handler
    listener, before = StopSignals(ranks, signals), StopBeforeTheFirst(str(resumed_from))
    with owned_by_first(trainer.args, ranks):
        if resumed_from:
            handler.callbacks.insert(0, before)
        handler.callbacks.append(listener)
        try:
            with listener.listening():
                result = train()
        except AlreadyDone:
            result = outcome(trainer)
            if ranks.index == 0:
                text = "All %d steps are done: there is nothing to train. The model is that of the checkpoint."
                logger.warning(text, result.global_step)
        finally:
            handler.callbacks[:] = [each for each in handler.callbacks if each not in (before, listener)]
    state = trainer.state
    listener.leave(
        state.global_step, state.max_steps, str(Path(trainer.args.output_dir) / f"checkpoint-{state.global_step}")
    )
    return result
