"""A progress bar with what matters: loss, the pool's loss, tokens a second."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback


class Bar(TrainerCallback):
    """A bar on a terminal, and a line each time something is logged elsewhere (a file, a scheduler's log)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: Any = None
        self._tokens, self._since = 0, time.perf_counter()
        self._numbers = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._since = time.perf_counter()
        if not state.is_world_process_zero or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
        )
        self._progress.start()
        self._task = self._progress.add_task("training", total=state.max_steps, completed=state.global_step, numbers="")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, numbers=self._numbers)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or not state.is_world_process_zero:
            return
        parts = [
            f"{name} {logs[key]:{form}}"
            for name, key, form in (
                ("loss", "loss", ".3f"),
                ("pool", "pool_loss", ".3f"),
                ("scored/s", "tokens_scored_per_second", ",.0f"),
                ("trained/s", "tokens_trained_per_second", ",.0f"),
                ("eval loss", "eval_loss", ".3f"),
            )
            if isinstance(logs.get(key), int | float) and (logs[key] or key != "tokens_scored_per_second")
        ]
        if not parts:
            return
        self._numbers = "  ".join(parts)
        if self._progress is None:
            self.console.print(f"step {state.global_step}/{state.max_steps}  {self._numbers}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, numbers=self._numbers)
            self._progress.stop()
            self._progress = None


def show_progress(trainer: Any, console: Console) -> None:
    """Puts the bar in place of the Trainer's own."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Bar(console))
