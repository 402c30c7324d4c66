"""What `corebatch evaluate` does: load, run, show, write."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from corebatch.cli.tables import table
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
    run_lm_eval,
    write_json,
)
from corebatch.mixture import DatasetSpec, TokeniseOptions, load_mixture
from corebatch.record.provenance import versions
from corebatch.text import say

FOLDER = "evaluation"
LM_EVAL = "lm_eval"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}


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
    """Tasks of lines or mappings (see `parse_task`).

    Raises:
        ConfigError: one of them is none, or two have one name.
        DataError: the rows of one cannot be used.
    """
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


def evaluate_model(
    model: str,
    given: Sequence[Any],
    console: Console,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    base_model: str | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    lm_eval: Sequence[str] = (),
    lm_eval_path: Path | None = None,
) -> list[Path]:
    """Runs all tasks on one model, shows a table for each, and writes a JSON file for each; returns the files.

    Everything that can be wrong with the arguments is an error before the model is loaded; rows of a held-out loss are
    read when it is their turn, since they need the tokenizer. What was measured before an error is written.
    """
    if not given and not lm_eval:
        raise ConfigError("There should be a --task or --lm_eval. Found neither.")
    if lm_eval_path is not None and not lm_eval:
        raise ConfigError("--lm_eval_path goes with --lm_eval. Found it alone.")
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype should be one of {', '.join(DTYPES)}. Found {dtype!r}.")
    options: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    tasks = make_tasks(given)
    for task in tasks:
        task.options(**options)  # refuses what is out of range
    names = [file_name(task.name) for task in tasks] + ([LM_EVAL] if lm_eval else [])
    targets = output_files(model, names, output, overwrite)
    loaded, tokenizer = load_trained(model, base_model, dtype=dtype, trust_remote_code=trust_remote_code)
    try:
        loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device}: the model cannot go there: {error}") from error
    about = {"model": model, "dtype": dtype, "versions": versions()}
    for task, target in zip(tasks, targets, strict=False):
        result = evaluate(loaded, tokenizer, task, progress=console.is_terminal, **options)
        show(task.name, result, console)
        write_json({**result.to_dict(), **about}, target)
    if lm_eval:
        found = run_lm_eval(
            loaded, tokenizer, lm_eval, include_path=lm_eval_path, batch_size=batch_size or 16, limit=limit
        )
        show("lm-evaluation-harness", found, console)
        write_json({**found.to_dict(), **about}, targets[-1])
    say(console, f"Results in {', '.join(map(str, targets))}")
    return targets


def show(title: str, result: Result, console: Console) -> None:
    """The result as a table."""
    columns = result.columns
    console.print(table(title, [dict(zip(columns, row, strict=True)) for row in result.rows()]))


def output_files(model: str, names: Sequence[str], output: Path | None, overwrite: bool) -> list[Path]:
    """Where the results go: a file a task.

    Raises:
        ConfigError: a file is there already and may not be replaced, or `output` does not suit the tasks.
    """
    if output is not None and output.suffix == ".json":
        if len(names) > 1:
            raise ConfigError(f"--output should be a folder for {len(names)} tasks. Found the file {output}.")
        targets = [output]
    else:
        if output is not None:
            folder = output
        else:
            folder = Path(model) / FOLDER if Path(model).is_dir() else Path(FOLDER) / model.replace("/", "--")
        if folder.is_file():
            raise ConfigError(f"{folder} should be a folder. Found a file.")
        targets = [folder / f"{name}.json" for name in names]
    there = [target for target in targets if target.exists()]
    if there and not overwrite:
        raise ConfigError(f"{there[0]} is there already. Replace it with --overwrite, or choose another --output.")
    return targets


def load_trained(
    model: str, base_model: str | None = None, *, dtype: str = "float32", trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a run's folder, a model's folder or a hub id.

    A folder with adapters has them put on their base model, in `adapter_config.json` or `base_model`.

    Raises:
        ConfigError: there is no model, or its base model is not where it was.
    """
    folder = Path(model)
    adapter = folder / "adapter_config.json"
    options = {"dtype": DTYPES[dtype], "trust_remote_code": trust_remote_code}
    if folder.is_dir() and not adapter.is_file() and not (folder / "config.json").is_file():
        raise ConfigError(f"{model} should hold a model or adapters. {_instead(folder)}")
    if base_model is not None and not adapter.is_file():
        raise ConfigError(f"--base_model goes with adapters. Found none in {model}.")
    if adapter.is_file():
        base = base_model or _base_of(adapter)
        made = _loaded(
            f"the base model of {model} (--base_model says where it is now)",
            partial(AutoModelForCausalLM.from_pretrained, base, **options),
        )
        made = _loaded(f"the adapters in {model}", partial(PeftModel.from_pretrained, made, model))
    else:
        base = model
        made = _loaded(f"the model {model}", partial(AutoModelForCausalLM.from_pretrained, model, **options))
    own = folder.is_dir() and (folder / "tokenizer_config.json").is_file()
    where = model if own else base
    tokenizer = _loaded(
        f"the tokenizer of {where}",
        partial(AutoTokenizer.from_pretrained, where, trust_remote_code=trust_remote_code),
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return made.eval(), tokenizer


def _loaded(what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # whatever a damaged file makes other packages raise
        raise ConfigError(f"Cannot load {what}: {error}") from error


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{adapter} should be a readable JSON object. Found: {error}.") from error
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{adapter} should name a base model. Found {base!r}: give --base_model.")
    return base


def _instead(folder: Path) -> str:
    """What a folder without a model holds."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if checkpoints:
        return f"Found checkpoints: {', '.join(path.name for path in checkpoints)}. Give one of them."
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8])
    return f"Found {found or 'nothing'}."


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


@contextmanager
def random_states() -> Iterator[None]:
    """All global generators go on afterwards as if nothing had been drawn: training does not depend on tasks."""
    plain, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one, which a task may draw from
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(array)  # noqa: NPY002 - as above


def _before_of(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} should be JSON, as an earlier part of this run wrote it. Found: {error}.") from error
    return {"before": record["before"]} if isinstance(record, Mapping) and record.get("before") else {}
