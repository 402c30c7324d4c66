"""The tasks of a training run: measured before and after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from corebatch.errors import ConfigError
from corebatch.evaluation import (
    TASKS,
    EvaluationResult,
    HeldoutLossTask,
    Result,
    Task,
    accuracy_record,
    evaluate,
    parse_task,
    write_json,
)
from corebatch.mixture import DatasetSpec, TokeniseOptions, load_mixture
from corebatch.rendering.sheet import table
from corebatch.seeds import random_states

FOLDER = "evaluation"
LM_EVAL = "lm_eval"


class DelayedLoss(Task[Any]):
    """A held-out loss whose rows are tokenised once the tokenizer is there: every form that `corebatch train` reads."""

    def __init__(
        self,
        path: str,
        *,
        config: str | None = None,
        split: str | None = None,
        source: str | None = None,
        source_column: str = "source",
        max_length: int = 1024,
        apply_chat_template: bool = False,
        chat_template: str | None = None,
        separator: str = "\n",
        train_turns: str = "all",
        name: str | None = None,
    ) -> None:
        self._spec = DatasetSpec(path, name=config, split=split, source=source)
        self._source_column = source_column
        self._options = TokeniseOptions(
            max_length=max_length,
            apply_chat_template=apply_chat_template,
            chat_template=chat_template,
            separator=separator,
            train_turns=train_turns,
        )
        self.name = name or "heldout_loss"

    def run(self, model: Any, tokenizer: Any, options: Any) -> Any:
        mixture = load_mixture([self._spec], tokenizer, source_column=self._source_column, **asdict(self._options))
        return HeldoutLossTask(mixture.dataset, name=self.name).run(model, tokenizer, options)


KNOWN: dict[str, Callable[..., Task[Any]]] = {"heldout_loss": DelayedLoss}
"""Tasks that need more rooms than evaluation: names of the command line beside `TASKS`."""


def make_tasks(given: Sequence[Any]) -> list[Task[Any]]:
    """Tasks of lines or mappings (see `parse_task`). Raises ConfigError: one of them is none, or two have one name;
    DataError: the rows of one cannot be used."""
    tasks = [parse_task(what, {**TASKS, **KNOWN}) for what in given]
    names = [file_name(task.name) for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"Every task should have a name of its own. Found {twice!r} twice: give one `name=...`.")
    if LM_EVAL in names:
        raise ConfigError(f"No task should be called {LM_EVAL!r}, which is what the harness's results are called.")
    return tasks


def file_name(task: str) -> str:
    """A task's name as that of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in task).lstrip(".") or "task"


def show(title: str, result: Result, console: Console) -> None:
    """The result as a table."""
    columns = result.columns
    console.print(table(title, [dict(zip(columns, row, strict=True)) for row in result.rows()]))


class BeforeAndAfter:
    """The tasks of a training run: measured before and after, into `evaluation.json`, which the report shows, and a
    file a task and moment in `evaluation/`."""

    def __init__(self, given: Sequence[Any], output_dir: Path, console: Console) -> None:
        self.tasks = make_tasks(given)
        self._folder, self._console = output_dir, console
        self._record: dict[str, Any] = {}

    def before(self, model: Any, tokenizer: Any) -> None:
        """Measures, unless a run that goes on has done so."""
        path = self._folder / "evaluation.json"
        if path.is_file():
            self._record = _before_of(path)
        parts = [self._folder / FOLDER / f"{file_name(task.name)}.before.json" for task in self.tasks]
        losses_alone = not path.is_file() and all(part.is_file() for part in parts)  # which have no counts to record
        if "before" not in self._record and not losses_alone:
            self._measure("before", model, tokenizer)

    def after(self, model: Any, tokenizer: Any) -> None:
        self._measure("after", model, tokenizer)

    def _measure(self, when: str, model: Any, tokenizer: Any) -> None:
        if not self.tasks:
            return
        counted = []
        for task in self.tasks:
            with random_states():
                result = evaluate(
                    model,
                    tokenizer,
                    task,
                    progress=self._console.is_terminal,
                    description=f"{task.name} {when} training",
                )
            show(f"{task.name}, {when} training", result, self._console)
            part = ".before" if when == "before" else ""
            write_json(result.to_dict(), self._folder / FOLDER / f"{file_name(task.name)}{part}.json")
            if isinstance(result, EvaluationResult):
                counted.append(result)
        if counted:  # a held-out loss has no counts
            self._record[when] = accuracy_record(counted)
            write_json(self._record, self._folder / "evaluation.json")


def _before_of(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} should be JSON, as an earlier part of this run wrote it. Found: {error}.") from error
    return {"before": record["before"]} if isinstance(record, Mapping) and record.get("before") else {}
