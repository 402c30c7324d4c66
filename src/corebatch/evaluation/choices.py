"""Multiple choice and classification by likelihood, from rows of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from string import Formatter
from typing import Any

from corebatch.errors import ConfigError, DataError
from corebatch.evaluation.likelihood import ChoiceItem, LikelihoodTask, check_normalise, macro_f1
from corebatch.evaluation.result import Count
from corebatch.evaluation.rows import Row, read_rows


class MultipleChoiceTask(LikelihoodTask):
    """Rows with `prompt`, `choices` (a list of texts), `answer`, and, optional, `source`.

    `answer` is a position from 0, a capital letter (A is the first), or the text of a choice. Each choice is scored as
    it follows the prompt, after `separator` unless it begins with white space.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        config: str | None = None,
        split: str | None = None,
        normalise: str = "none",
        separator: str = " ",
        name: str | None = None,
    ) -> None:
        """Reads all rows; `path`, `config` and `split` as in `read_rows`, `normalise` as in `LikelihoodTask`. Raises
        DataError: a row that cannot be used, named by file and line."""
        self.name = name or default_name(path)
        self.normalise = check_normalise(normalise)
        rows = read_rows(path, config=config, split=split)
        self._items = tuple(placed(row, lambda row: self._item(row, separator)) for row in rows)

    def items(self) -> Sequence[ChoiceItem]:
        return self._items

    def _item(self, row: Row, separator: str) -> ChoiceItem:
        choices = row.values.get("choices")
        if not isinstance(choices, list | tuple) or not all(isinstance(c, str) and c.strip() for c in choices):
            raise DataError(f"{row.where}: `choices` should be a list of texts. Found {choices!r}.")
        return ChoiceItem(
            prompt=text_of(row, "prompt"),
            options=tuple(joined(choice, separator) for choice in choices),
            answer=_position(row, choices),
            source=source_of(row, self.name),
        )


def _position(row: Row, choices: Sequence[str]) -> int:
    answer = row.values.get("answer")
    found = None
    if isinstance(answer, int) and not isinstance(answer, bool):
        found = answer
    elif isinstance(answer, str) and answer.strip() in [choice.strip() for choice in choices]:
        found = [choice.strip() for choice in choices].index(answer.strip())
    elif isinstance(answer, str) and len(answer.strip()) == 1 and "A" <= answer.strip() <= "Z":
        found = ord(answer.strip()) - ord("A")
    if found is None or not 0 <= found < len(choices):
        raise DataError(
            f"{row.where}: `answer` should be a position from 0 to {len(choices) - 1}, a capital letter, or the text "
            f"of a choice. Found {answer!r}."
        )
    return found


class ClassificationTask(LikelihoodTask):
    """Rows with a label; each label has a word, and the likeliest word after the prompt is the model's choice.

    `metrics` adds the macro F1: the mean over labels that occur or are chosen.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        labels: Sequence[str] | Mapping[Any, str],
        template: str = "{prompt}",
        label_column: str = "label",
        config: str | None = None,
        split: str | None = None,
        normalise: str = "none",
        separator: str = " ",
        name: str | None = None,
    ) -> None:
        """Reads all rows.

        Args:
            path, config, split: as in `read_rows`.
            labels: label of a row -> its word; a list stands for labels that are positions in it, or words of it.
            template: the prompt; `{column}` is a row's cell.
            separator: comes before a word, unless that begins with white space.
            normalise: as in `LikelihoodTask`.

        Raises:
            ConfigError: fewer than two labels, or a template that is none.
            DataError: a row that cannot be used, named by file and line.
        """
        self.name = name or default_name(path)
        self.normalise = check_normalise(normalise)
        words = list(labels.values()) if isinstance(labels, Mapping) else labels
        if (
            isinstance(words, str)
            or len(words) < 2
            or not all(isinstance(word, str) and word.strip() for word in words)
        ):
            raise ConfigError(f"`labels` should be two or more words. Found {labels!r}.")
        if isinstance(labels, Mapping):
            known = {_key(label): number for number, label in enumerate(labels)}
        else:
            known = {str(n): n for n in range(len(words))} | {word.strip(): n for n, word in enumerate(words)}
        columns = template_fields(template)
        options = tuple(joined(word, separator) for word in words)

        def item(row: Row) -> ChoiceItem:
            label = row.values.get(label_column)
            if _key(label) not in known:
                raise DataError(f"{row.where}: `{label_column}` should be one of {', '.join(known)}. Found {label!r}.")
            return ChoiceItem(
                prompt=template.format(**{column: text_of(row, column) for column in columns}),
                options=options,
                answer=known[_key(label)],
                source=source_of(row, self.name),
            )

        self._items = tuple(placed(row, item) for row in read_rows(path, config=config, split=split))

    def items(self) -> Sequence[ChoiceItem]:
        return self._items

    def metrics(self, items: Sequence[ChoiceItem], chosen: Sequence[int]) -> Mapping[str, float | Count]:
        return {"f1_macro": macro_f1([item.answer for item in items], chosen)}


def _key(label: Any) -> str:
    return label.strip() if isinstance(label, str) else str(label)


def default_name(path: str | PathLike[str]) -> str:
    """The file's stem, or the last part of a hub id."""
    return Path(path).stem if Path(path).is_file() else Path(path).name


def joined(option: str, separator: str) -> str:
    """The option as it follows a prompt."""
    return option if option[:1].isspace() else separator + option


def template_fields(template: str) -> list[str]:
    """The columns that a template names. Raises ConfigError: it is no text, names none, or braces do not match."""
    if not isinstance(template, str):  # YAML reads bare braces as a mapping
        raise ConfigError(f"`template` should be text: quote it, as in template='{{prompt}}'. Found {template!r}.")
    try:
        fields = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"`template` should be a format string. Found {template!r}: {error}.") from error
    if not fields or not all(field.isidentifier() for field in fields):
        raise ConfigError(f"`template` should name columns in braces, such as {{prompt}}. Found {template!r}.")
    return list(dict.fromkeys(fields))


def text_of(row: Row, column: str, names: Sequence[str] = ()) -> str:
    """The text in `column`, or in the first of `names` that the row has. Raises DataError: none, or no text in it."""
    value = next((row.values[name] for name in (column, *names) if name in row.values), None)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.where}: `{column}` should be a non-empty string. Found {value!r}.")
    return value


def source_of(row: Row, default: str) -> str:
    value = row.values.get("source", default)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.where}: `source` should be a non-empty string. Found {value!r}.")
    return value


def placed(row: Row, make: Any) -> Any:
    """`make(row)`; an error about its data names the row."""
    try:
        return make(row)
    except DataError as error:
        if row.where in str(error):
            raise
        raise DataError(f"{row.where}: {error}") from error
