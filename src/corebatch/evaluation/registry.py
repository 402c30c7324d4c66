"""Names of tasks, and tasks from a line or a block of a config."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from corebatch.errors import ConfigError
from corebatch.evaluation.choices import ClassificationTask, MultipleChoiceTask
from corebatch.evaluation.expressions import MathTask
from corebatch.evaluation.reasoning import ReasoningGymTask, draw_items
from corebatch.evaluation.superglue import SUPERGLUE, SuperGlueTask
from corebatch.evaluation.tasks import FILE_TASKS, RunOptions, Task
from corebatch.options import hint

RUN_OPTIONS = ("batch_size", "max_new_tokens", "stop", "limit")


def reasoning_gym(
    path: str,
    *,
    size: int = 100,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    prompt_format: str = "Question: {question}\nAnswer:",
    name: str | None = None,
) -> ReasoningGymTask:
    """Held-out items from a file (see `ReasoningGymTask.from_jsonl`), or, where there is no such file, up to `size`
    items of the generator `path` with its `options`."""
    if Path(path).is_file() or Path(path).suffix == ".jsonl":
        return ReasoningGymTask.from_jsonl(path, name=name)
    items = draw_items(path, options or {}, prompt_format=prompt_format, seed=seed, size=size)
    return ReasoningGymTask(items, name=name or path)


TASKS: dict[str, Callable[..., Task[Any]]] = {
    **FILE_TASKS,
    "math": MathTask,
    "multiple_choice": MultipleChoiceTask,
    "classification": ClassificationTask,
    **{task: partial(SuperGlueTask, task) for task in SUPERGLUE},
    "reasoning_gym": reasoning_gym,
}
"""Name -> class or function that makes a task of `path` and options. Yours: `TASKS["mine"] = MyTask`, or, without a
line of code, its import path as the name: `my_package.my_module.MyTask:path`."""


def parse_task(
    what: str | Mapping[str, Any] | Task[Any], known: Mapping[str, Callable[..., Task[Any]]] | None = None
) -> Task[Any]:
    """A task of `name:path,key=value,...`, or of a mapping with the keys `task`, `path` and options.

    Values are read as YAML; commas inside brackets or quotes do not separate. Beside the options of its class each task
    takes `batch_size`, `max_new_tokens`, `stop` and `limit` (see `RunOptions`), which become its `defaults`. Raises
    ConfigError: an unknown name or option, or something that is neither; DataError: the task's rows cannot be used.
    """
    if isinstance(what, Task):
        return what
    known = TASKS if known is None else known
    name, options = _from_text(what) if isinstance(what, str) else _from_mapping(what)
    make = known[name] if name in known else _imported(name, known)
    parameters = inspect.signature(make).parameters
    accepted = [key for key in parameters if key not in ("args", "kwargs")]
    free = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    run = {key: options.pop(key) for key in RUN_OPTIONS if key in options and key not in accepted}
    for key in options:
        if key not in accepted and not free:
            takes = ", ".join([*accepted, *RUN_OPTIONS])
            raise ConfigError(f"The task {name!r} takes {takes}. Found {key!r}.{hint(key, [*accepted, *RUN_OPTIONS])}")
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if required and key not in options:
            raise ConfigError(f"The task {name!r} needs `{key}`. Found {what!r}.")
    RunOptions(**run)  # refuses what is out of range
    task = make(**options)
    if not isinstance(task, Task):
        raise ConfigError(f"{name} should make a Task. Found {type(task).__name__}.")
    if run:
        task.defaults = {**task.defaults, **run}
    return task


def _imported(name: str, known: Mapping[str, Any]) -> Callable[..., Task[Any]]:
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise ConfigError(
            f"The task should be one of {', '.join(known)}, or an import path. Found {name!r}.{hint(name, known)}"
        )
    try:
        made: Callable[..., Task[Any]] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"The task {name!r} should be the import path of a task. Found: {error}.") from error
    return made


def _from_text(text: str) -> tuple[str, dict[str, Any]]:
    name, _, rest = text.partition(":")
    parts = list(_parts(rest))
    options: dict[str, Any] = {}
    for position, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if position == 0 and not (equals and key.strip().isidentifier()):
            if part.strip():
                options["path"] = part.strip().strip("\"'")
            continue
        if not equals or not key.strip().isidentifier():
            raise ConfigError(f"A task should be name:path,key=value. Found {part!r} in {text!r}.")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{key.strip()} of {text!r} should be a YAML value. Found {value!r}.") from error
    return name.strip(), options


def _from_mapping(what: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(what, Mapping) or not isinstance(what.get("task"), str):
        raise ConfigError(f"A task should be name:path,key=value, or a mapping with the key `task`. Found {what!r}.")
    return what["task"], {str(key): value for key, value in what.items() if key != "task"}


def _parts(text: str) -> Iterator[str]:
    """`text` cut at commas that stand neither in brackets nor in quotes."""
    depth, quote, start = 0, "", 0
    for n, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and text[n - 1 : n] in ("=", ",", "[", "{", " ", ":", ""):
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth == 0:
            yield text[start:n]
            start = n + 1
    yield text[start:]
