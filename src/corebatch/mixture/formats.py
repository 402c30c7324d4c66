"""The forms in which rows come, and the four that they are brought to: Chat, Completion, Text, TokenIds.

`FORMS` is tried from top to bottom on the columns of a part's first row; the first whose columns are all
there is the form of the whole part. Columns that the form does not use are never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from corebatch.errors import DataError

IGNORED_LABEL = -100
MESSAGE_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
SHAREGPT_ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "model": "assistant",
    "system": "system",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation: {"role", "content"} each; assistant turns before `first_trained` are context only."""

    messages: list[dict[str, str]]
    first_trained: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt, which is not trained, and its completion, which is."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Text:
    """Running text; all of it is trained."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A row that was tokenised before: equally many ids and labels (-100: not trained)."""

    input_ids: list[int]
    labels: list[int]


Canonical: TypeAlias = Chat | Completion | Text | TokenIds


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write a row.

    Attributes:
        name: what messages and tables call it.
        columns: all of them must be there.
        optional: used when there.
        parse: (row, where) -> canonical form; raises DataError starting with `where`.
    """

    name: str
    columns: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], str], Canonical]
    optional: tuple[str, ...] = ()


def detect_form(columns: Collection[str], where: str) -> Form:
    """The first of FORMS whose columns are all among `columns`.

    Raises:
        DataError: none is; names the columns found and the forms expected.
    """
    for form in FORMS:
        if all(name in columns for name in form.columns):
            return form
    found = ", ".join(map(repr, columns)) or "none"
    expected = "; ".join(" + ".join(form.columns) for form in FORMS)
    raise DataError(f"{where}: the columns fit no known form. Found {found}. Expected one of: {expected}.")


def canonical(row: Mapping[str, Any], where: str = "row", form: Form | None = None) -> Canonical:
    """One row in its canonical form. `form` None: detected from the row's own columns.

    Raises:
        DataError: a missing column, a null cell, a cell of the wrong type, an unknown role.
    """
    form = form or detect_form(row.keys(), where)
    for name in form.columns:
        if name not in row:
            found = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{where}: the column {name!r} of the form {form.name} is missing. Found {found}.")
    return form.parse(row, where)


def used_columns(source_column: str) -> frozenset[str]:
    """Every column that some form, or the source label, may read."""
    names = {name for form in FORMS for name in form.columns + form.optional}
    return frozenset(names | {source_column})


def _parse_tokens(row: Mapping[str, Any], where: str) -> TokenIds:
    ids, labels = _integers(row, "input_ids", where), _integers(row, "labels", where)
    if len(ids) != len(labels):
        raise DataError(
            f"{where}: 'input_ids' and 'labels' should have one length. Found {len(ids)} and {len(labels)}."
        )
    if row.get("attention_mask") is not None:
        mask = _integers(row, "attention_mask", where)
        if len(mask) != len(ids):
            raise DataError(
                f"{where}: 'attention_mask' should have the length of 'input_ids', {len(ids)}. Found {len(mask)}."
            )
        kept = [i for i, value in enumerate(mask) if value]  # padding is the collator's affair
        ids, labels = [ids[i] for i in kept], [labels[i] for i in kept]
    if not ids:
        raise DataError(f"{where}: 'input_ids' should not be empty.")
    if min(ids) < 0:
        raise DataError(f"{where}: 'input_ids' should not be negative. Found {min(ids)}.")
    wrong = next((label for label in labels if label < 0 and label != IGNORED_LABEL), None)
    if wrong is not None:
        raise DataError(f"{where}: 'labels' should be token ids or {IGNORED_LABEL}. Found {wrong}.")
    return TokenIds(ids, labels)


def _parse_messages(row: Mapping[str, Any], where: str) -> Chat:
    return Chat(_messages(row["messages"], "messages", where))


def _parse_conversations(row: Mapping[str, Any], where: str) -> Chat:
    turns = _turns(row["conversations"], "conversations", where)
    messages = []
    for number, turn in enumerate(turns, start=1):
        at = f"{where}: turn {number} of 'conversations'"
        # Some sets use the column name with the keys of `messages`.
        role = _string(turn, "from" if "from" in turn else "role", at)
        content = _string(turn, "value" if "value" in turn else "content", at)
        if role not in SHAREGPT_ROLES:
            raise DataError(f"{at}: 'from' should be one of {', '.join(SHAREGPT_ROLES)}. Found {role!r}.")
        messages.append({"role": SHAREGPT_ROLES[role], "content": content})
    return Chat(messages)


def _parse_completion(row: Mapping[str, Any], where: str) -> Canonical:
    if isinstance(row["prompt"], str) or isinstance(row["completion"], str):
        return Completion(_string(row, "prompt", where), _string(row, "completion", where))
    prompt = _messages(row["prompt"], "prompt", where)
    return Chat(prompt + _messages(row["completion"], "completion", where), first_trained=len(prompt))


def _parse_instruction(row: Mapping[str, Any], where: str) -> Completion:
    instruction = _string(row, "instruction", where)
    extra = _string(row, "input", where) if row.get("input") is not None else ""
    prompt = f"{instruction}\n\n{extra}" if extra.strip() else instruction
    return Completion(prompt, _string(row, "output", where))


def _parse_text(row: Mapping[str, Any], where: str) -> Text:
    return Text(_string(row, "text", where))


FORMS: tuple[Form, ...] = (
    Form("tokens", ("input_ids", "labels"), _parse_tokens, optional=("attention_mask",)),
    Form("messages", ("messages",), _parse_messages),
    Form("conversations (ShareGPT)", ("conversations",), _parse_conversations),
    Form("prompt and completion", ("prompt", "completion"), _parse_completion),
    Form("instruction (Alpaca)", ("instruction", "output"), _parse_instruction, optional=("input",)),
    Form("text", ("text",), _parse_text),
)


def _string(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} should be a string. Found {_describe(value)}.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where}: {name!r} holds half a surrogate pair at character {error.start}, which no tokenizer takes."
            ) from error
    return value


def _integers(row: Mapping[str, Any], name: str, where: str) -> list[int]:
    values = row[name]
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        raise DataError(f"{where}: {name!r} should be a list of integers. Found {_describe(values)}.")
    values = list(values)
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise DataError(f"{where}: {name!r} should be a list of integers. Found {_describe(value)} in it.")
    return values


def _messages(cell: Any, name: str, where: str) -> list[dict[str, str]]:
    messages = []
    for number, turn in enumerate(_turns(cell, name, where), start=1):
        at = f"{where}: message {number} of {name!r}"
        if turn.get("tool_calls"):
            raise DataError(f"{at}: has 'tool_calls', which are not supported.")
        role = _string(turn, "role", at)
        if role not in MESSAGE_ROLES:
            raise DataError(f"{at}: 'role' should be one of {', '.join(sorted(MESSAGE_ROLES))}. Found {role!r}.")
        messages.append({"role": role, "content": _string(turn, "content", at)})
    return messages


def _turns(cell: Any, name: str, where: str) -> Sequence[Mapping[str, Any]]:
    """A list of mappings, also from the mapping of lists that older `datasets` features decode to."""
    if isinstance(cell, Mapping) and cell and all(isinstance(column, list) for column in cell.values()):
        cell = [dict(zip(cell, values, strict=False)) for values in zip(*cell.values(), strict=False)]
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{where}: {name!r} should be a list of messages, not empty. Found {_describe(cell)}.")
    for turn in cell:
        if not isinstance(turn, Mapping):
            raise DataError(f"{where}: {name!r} should be a list of messages. Found {_describe(turn)} in it.")
    return cell


def _describe(value: Any) -> str:
    """The value and its type, short enough for a message."""
    if value is None:
        return "null"
    shown = repr(value)
    return f"{shown if len(shown) <= 40 else shown[:37] + '...'} ({type(value).__name__})"
