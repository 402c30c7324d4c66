"""Tasks: items to answer, each with its source, and an exact check of an answer."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.errors import DataError
from corebatch.evaluation.answers import parse_number, same_choice, same_number, same_text


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question: what the model reads, where it comes from, the known answer, and what a check may need."""

    prompt: str
    source: str
    answer: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Task(ABC):
    """Items and the check of their answers. `name` goes into results."""

    name: str

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """All items, in a fixed order; at least one."""

    @abstractmethod
    def is_correct(self, item: Item, text: str) -> bool:
        """Whether `text`, the whole generated answer, is right; wrong or malformed texts are False, never an error."""


def read_items(path: str | PathLike[str]) -> tuple[Item, ...]:
    """Items of a JSONL file with the keys `prompt`, `answer` and, optional, `source` and `metadata`.

    A missing `source` is the file's name without suffix. An answer may be a string or a number, and `metadata` an
    object or a string that holds one as JSON (objects of unlike shape do not go into one Arrow column).

    Raises:
        DataError: no such file, no item, or a bad line; it names the file and the line.
    """
    file = Path(path)
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} should be a readable JSONL file in UTF-8. Found: {error}.") from error
    items = tuple(_read_item(f"{file}:{n}", line, file.stem) for n, line in enumerate(lines, 1) if line.strip())
    if not items:
        raise DataError(f"{file} should hold at least one item. Found an empty file.")
    return items


def _read_item(where: str, line: str, default_source: str) -> Item:
    row = _parse(where, line)
    if not isinstance(row, dict):
        raise DataError(f"{where} should be a JSON object. Found {type(row).__name__}.")
    answer, metadata = row.get("answer"), row.get("metadata", {})
    if isinstance(metadata, str):
        metadata = _parse(where, metadata)
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


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where} should be JSON. Found: {error}.") from error


def _text(where: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: `{key}` should be a non-empty string. Found {value!r}.")
    return value


class FileTask(Task):
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
