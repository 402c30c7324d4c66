"""Tasks: what a model is asked, and how its answers are counted.

`Task` is the root: a name, and `run`. `GenerationTask` has the model write, and checks the text exactly; a
`LikelihoodTask` has it score given options (likelihood.py); a held-out loss is one as well (heldout.py).
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Generic, TypeVar

from corebatch.errors import ConfigError, DataError
from corebatch.evaluation.answers import parse_number, same_choice, same_number, same_text
from corebatch.evaluation.generate import generate_answers
from corebatch.evaluation.result import Answer, EvaluationResult, Result
from corebatch.evaluation.rows import read_lines
from corebatch.options import check_count

T = TypeVar("T")
R = TypeVar("R", bound=Result, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question: what the model reads, where it comes from, the known answer, and what a check may need."""

    prompt: str
    source: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a task is run.

    Attributes:
        batch_size: rows of a forward pass; changes speed and memory, not results (up to rounding at near-ties).
        max_new_tokens: of a generated answer.
        stop: a generated answer ends before the first of these strings; none: it ends at the end of sequence.
        limit: at most so many items, taken in turn from each source; None: all.
        progress: shows a bar on stderr.
    """

    batch_size: int = 16
    max_new_tokens: int = 32
    stop: Sequence[str] = ("\n",)
    limit: int | None = None
    progress: bool = True
    description: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens", "limit"):
            value = getattr(self, name)
            if name == "limit" and value is None:
                continue
            check_count(f"`{name}`", value)
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ConfigError(f"`stop` should be a sequence of non-empty strings. Found {self.stop!r}.")


class Task(ABC, Generic[R]):
    """Something a model is measured on.

    Attributes:
        name: goes into results and file names.
        defaults: fields of `RunOptions` that suit this task better than the usual ones; what a caller gives wins.
    """

    name: str
    defaults: Mapping[str, Any] = {}

    @abstractmethod
    def run(self, model: Any, tokenizer: Any, options: RunOptions) -> R:
        """Measures a causal language model of transformers, which is left as it was."""

    def options(self, **given: Any) -> RunOptions:
        """What is given and not None, then the task's own `defaults`, then the usual."""
        own = {key: value for key, value in given.items() if value is not None}
        description = f"evaluating {self.name}"
        return dataclasses.replace(RunOptions(description=description), **{**self.defaults, **own})


def evaluate(model: Any, tokenizer: Any, task: Task[R], **options: Any) -> R:
    """Runs `task` and counts; options as in `RunOptions`, where None leaves it to the task. Raises InputError: an
    option out of range, or data that the model or its tokenizer cannot take."""
    return task.run(model, tokenizer, task.options(**options))


class GenerationTask(Task[EvaluationResult]):
    """The model writes an answer greedily, and the answer is checked exactly."""

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """All items, in a fixed order; at least one."""

    @abstractmethod
    def is_correct(self, item: Item, text: str) -> bool:
        """Whether `text`, the whole generated answer, is right; wrong or malformed texts are False, never an error."""

    def run(self, model: Any, tokenizer: Any, options: RunOptions) -> EvaluationResult:
        items = limited(self.items(), options.limit, lambda item: item.source)
        texts = generate_answers(
            model,
            tokenizer,
            [item.prompt for item in items],
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            stop=options.stop,
            progress=options.progress,
            description=options.description,
        )
        answers = tuple(
            Answer(
                source=item.source,
                prompt=item.prompt,
                expected=item.answer,
                text=text,
                correct=self.is_correct(item, text),
            )
            for item, text in zip(items, texts, strict=True)
        )
        settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "batch_size": options.batch_size}
        settings |= {"stop": list(options.stop), "decoding": "greedy"}
        if options.limit is not None:
            settings["limit"] = options.limit
        return EvaluationResult(task=self.name, answers=answers, settings=settings)


def limited(
    items: Sequence[T],
    limit: int | None,
    source: Callable[[T], str],
    group: Callable[[T], Hashable | None] = lambda _: None,
) -> list[T]:
    """At most `limit` items, taken in turn from each source, in their order; items of one group stay together and
    count as one."""
    if limit is None:
        return list(items)
    units: dict[Hashable, list[int]] = {}
    for number, item in enumerate(items):
        of = group(item)
        units.setdefault((number,) if of is None else (source(item), of), []).append(number)
    turn: Counter[str] = Counter()
    ranked = []
    for members in units.values():
        name = source(items[members[0]])
        ranked.append((turn[name], members[0], members))
        turn[name] += 1
    return [items[n] for n in sorted(n for _, _, members in sorted(ranked)[:limit] for n in members)]


def read_items(path: str | PathLike[str]) -> tuple[Item, ...]:
    """Items of a JSONL file with the keys `prompt`, `answer` and, optional, `source` and `metadata`.

    A missing `source` is the file's name without suffix. An answer may be a string or a number, and `metadata` an
    object or a string that holds one as JSON (objects of unlike shape do not go into one Arrow column). Raises
    DataError: no such file, no item, or a bad line; it names the file and the line.
    """
    file = Path(path)
    items = tuple(_read_item(row.where, row.values, file.stem) for row in read_lines(file))
    if not items:
        raise DataError(f"{file} should hold at least one item. Found an empty file.")
    return items


def _read_item(where: str, row: Mapping[str, Any], default_source: str) -> Item:
    answer, metadata = row.get("answer"), row.get("metadata", {})
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where} should be JSON. Found: {error}.") from error
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: `metadata` should be an object. Found {type(metadata).__name__}.")
    return Item(
        prompt=_text(where, "prompt", row.get("prompt")),
        source=_text(where, "source", row.get("source", default_source)),
        answer=_text(where, "answer", answer),
        metadata=metadata,
    )


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: `{key}` should be a non-empty string. Found {value!r}.")
    return value


class FileTask(GenerationTask):
    """A task read from a JSONL file (see `read_items`); subclasses say when an answer is right."""

    def __init__(self, path: str | PathLike[str], *, name: str | None = None) -> None:
        self.name = name or Path(path).stem
        self._items = read_items(path)
        for number, item in enumerate(self._items, 1):
            self._check_answer(f"item {number} of {path}", item)

    def items(self) -> Sequence[Item]:
        return self._items

    def _check_answer(self, where: str, item: Item) -> None:
        """Raise `DataError` if the known answer is of a kind that this task cannot compare."""


class ExactMatchTask(FileTask):
    """Right: the same text but for white space."""

    def is_correct(self, item: Item, text: str) -> bool:
        return same_text(item.answer, text)


class NumericTask(FileTask):
    """Right: the text ends on the same number (`####` marks it; else the last number counts)."""

    def is_correct(self, item: Item, text: str) -> bool:
        return same_number(item.answer, text)

    def _check_answer(self, where: str, item: Item) -> None:
        if parse_number(item.answer) is None:
            raise DataError(f"The answer of {where} should be a number. Found {item.answer!r}.")


class ChoiceTask(FileTask):
    """Right: the text names the same option, one capital letter."""

    def is_correct(self, item: Item, text: str) -> bool:
        return same_choice(item.answer, text)

    def _check_answer(self, where: str, item: Item) -> None:
        if not _is_letter(item.answer):
            raise DataError(f"The answer of {where} should be one capital letter. Found {item.answer!r}.")


class AutoTask(FileTask):
    """Compares by the known answer's own form: a number, one capital letter, or any other text."""

    def is_correct(self, item: Item, text: str) -> bool:
        if parse_number(item.answer) is not None:
            return same_number(item.answer, text)
        return same_choice(item.answer, text) if _is_letter(item.answer) else same_text(item.answer, text)


def _is_letter(answer: str) -> bool:
    letter = answer.strip()
    return len(letter) == 1 and "A" <= letter <= "Z"


FILE_TASKS: dict[str, type[FileTask]] = {
    "auto": AutoTask,
    "choice": ChoiceTask,
    "exact": ExactMatchTask,
    "numeric": NumericTask,
}
