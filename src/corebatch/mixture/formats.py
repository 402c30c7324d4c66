"""The forms in which rows come, and the four that they are brought to: Chat, Completion, Text, TokenIds.

`FORMS` is tried from top to bottom on the columns of a part's first row; the first whose columns are all
there is the form of the whole part. `columns` renames what a file calls otherwise and refuses what would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

from corebatch.errors import DataError
from corebatch.mixture.cells import describe, given, integers, mappings, parsed, string
from corebatch.mixture.keys import KNOWN_OF_ROWS, MASKS, SYSTEM, TEMPLATE_OPTIONS, THOUGHTS, TOOLS, refusal
from corebatch.mixture.turns import Message, pairs, parse_turns, with_system
from corebatch.types import IGNORED


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, as chat templates take it.

    Attributes:
        messages: {"role", "content", ...} each.
        first_trained: turns of the assistant before it are context only.
        untrained: positions of the turns that the row's weights leave out.
        tools, documents: given to the template.
        options: further variables of the template, such as enable_thinking.
    """

    messages: list[Message]
    first_trained: int = 0
    untrained: frozenset[int] = frozenset()
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Context:
    """What a row says besides prompt and completion, which only a chat template can show.

    Attributes:
        names: the columns that say it.
        before: turns before the prompt: the system's, and those of the history.
        thoughts: the key and text of the answer's thoughts.
        tools, documents, options: as of a Chat.
    """

    names: tuple[str, ...]
    before: list[Message]
    thoughts: Mapping[str, str]
    tools: list[dict[str, Any]] | None
    documents: list[dict[str, Any]] | None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt, which is not trained, and its completion, which is."""

    prompt: str
    completion: str
    context: Context | None = None

    def as_chat(self) -> Chat:
        """Prompt and completion as turns of user and assistant; the answers of a history are trained too."""
        context = self.context or Context((), [], {}, None, None, {})
        answer = {"role": "assistant", "content": self.completion, **context.thoughts}
        messages = [*context.before, {"role": "user", "content": self.prompt}, answer]
        return Chat(messages, 1, frozenset(), context.tools, context.documents, context.options)


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
    """The first of FORMS whose columns are all among `columns`. Raises DataError: none is; names the columns found, the
    forms expected, and what may help."""
    for form in FORMS:
        if all(name in columns for name in form.columns):
            return form
    found = ", ".join(map(repr, columns)) or "none"
    expected = "; ".join(" + ".join(form.columns) for form in FORMS)
    raise DataError(
        f"{where}: the columns fit no known form. Found {found}. Expected one of: {expected}.{_hint(columns)}"
    )


def _hint(columns: Collection[str]) -> str:
    if "chosen" in columns:
        return (
            " Rows of preferences are not trained on; with `columns: {completion: chosen}` and "
            "`ignore_columns: [rejected]` the chosen answers are."
        )
    chat = next((name for name in CHAT_NAMES if name in columns), None)
    if chat is not None:
        return f" Perhaps `columns: {{messages: {chat}}}` (or conversations: {chat}) of the data set."
    prompt = next((name for name in PROMPT_NAMES if name in columns), None)
    completion = next((name for name in COMPLETION_NAMES if name in columns), None)
    if completion is None or prompt is None:
        return " Other names are mapped by `columns: {prompt: ..., completion: ...}` of the data set."
    return f" Perhaps `columns: {{prompt: {prompt}, completion: {completion}}}` of the data set."


def canonical(row: Mapping[str, Any], where: str = "row", form: Form | None = None) -> Canonical:
    """One row in its canonical form. `form` None: detected from the row's own columns. Raises DataError: a missing
    column, a null cell, a cell of the wrong type, an unknown role."""
    form = form or detect_form(row.keys(), where)
    for name in form.columns:
        if name not in row:
            found = ", ".join(map(repr, row)) or "none"
            raise DataError(f"{where}: the column {name!r} of the form {form.name} is missing. Found {found}.")
    return form.parse(row, where)


def _parse_tokens(row: Mapping[str, Any], where: str) -> TokenIds:
    ids = integers(row, "input_ids", where)
    if "labels" in row and row["labels"] is None:
        raise DataError(
            f"{where}: 'labels' is null, so that it does not say what is trained. To train all tokens of all rows, "
            "take it out or `ignore_columns: [labels]` of the data set."
        )
    labels = integers(row, "labels", where) if "labels" in row else list(ids)
    if len(ids) != len(labels):
        raise DataError(
            f"{where}: 'input_ids' and 'labels' should have one length. Found {len(ids)} and {len(labels)}."
        )
    for name in MASKS:
        if row.get(name) is not None:
            mask = _mask(row, name, ids, where)
            labels = [label if kept else IGNORED for label, kept in zip(labels, mask, strict=True)]
    if row.get("attention_mask") is not None:
        mask = _mask(row, "attention_mask", ids, where)
        kept = [i for i, value in enumerate(mask) if value]  # padding is the collator's affair
        ids, labels = [ids[i] for i in kept], [labels[i] for i in kept]
    if not ids:
        raise DataError(f"{where}: 'input_ids' should not be empty.")
    if min(ids) < 0:
        raise DataError(f"{where}: 'input_ids' should not be negative. Found {min(ids)}.")
    wrong = next((label for label in labels if label < 0 and label != IGNORED), None)
    if wrong is not None:
        raise DataError(f"{where}: 'labels' should be token ids or {IGNORED}. Found {wrong}.")
    return TokenIds(ids, labels)


def _mask(row: Mapping[str, Any], name: str, ids: list[int], where: str) -> list[int]:
    cells = row[name] if not isinstance(row[name], list) else [int(x) if isinstance(x, bool) else x for x in row[name]]
    mask = integers({name: cells}, name, where)
    if len(mask) != len(ids):
        raise DataError(f"{where}: {name!r} should have the length of 'input_ids', {len(ids)}. Found {len(mask)}.")
    if not set(mask) <= {0, 1}:
        raise DataError(f"{where}: {name!r} should hold 0 and 1. Found {next(x for x in mask if x not in (0, 1))}.")
    return mask


def _parse_conversation(column: str, row: Mapping[str, Any], where: str) -> Chat:
    turns, (name, system) = parse_turns(row[column], column, where), _system(row, where)
    messages = with_system(turns.messages, system, name, where)
    moved = len(messages) - len(turns.messages)
    untrained = frozenset(i + moved for i in turns.untrained)
    return Chat(messages, 0, untrained, *_shown_by_templates(row, where))


def _parse_completion(row: Mapping[str, Any], where: str) -> Canonical:
    if isinstance(row["prompt"], str) or isinstance(row["completion"], str):
        return Completion(string(row, "prompt", where), string(row, "completion", where), _context(row, where))
    for name in (*THOUGHTS, "history"):
        if given(row.get(name)):
            raise DataError(refusal(where, name, KNOWN_OF_ROWS[name], "prompt and completion as lists of turns"))
    name, system = _system(row, where)
    prompt, completion = (
        parse_turns(row["prompt"], "prompt", where),
        parse_turns(row["completion"], "completion", where),
    )
    before = with_system(prompt.messages, system, name, where)
    untrained = frozenset(i + len(before) for i in completion.untrained)
    return Chat(before + completion.messages, len(before), untrained, *_shown_by_templates(row, where))


def _parse_instruction(row: Mapping[str, Any], where: str) -> Completion:
    instruction = string(row, "instruction", where)
    extra = string(row, "input", where) if row.get("input") is not None else ""
    prompt = "\n\n".join(text for text in (instruction, extra) if text.strip()) or instruction
    return Completion(prompt, string(row, "output", where), _context(row, where))


def _parse_text(row: Mapping[str, Any], where: str) -> Text:
    return Text(string(row, "text", where))


def _context(row: Mapping[str, Any], where: str) -> Context | None:
    names = tuple(name for name in (*FOR_TEMPLATES, "history", *THOUGHTS) if given(row.get(name)))
    if not names:
        return None
    name, system = _system(row, where)
    history = pairs(row["history"], where) if "history" in names else []
    thoughts = {key: string(row, key, where) for key in THOUGHTS if key in names}
    return Context(names, with_system(history, system, name, where), thoughts, *_shown_by_templates(row, where))


def _system(row: Mapping[str, Any], where: str) -> tuple[str, str | None]:
    names = [name for name in SYSTEM if given(row.get(name))]
    texts = {string(row, name, where) for name in names}
    if len(texts) > 1:
        raise DataError(f"{where}: {' and '.join(map(repr, names))} are two system prompts, and they differ.")
    return (names[0], texts.pop()) if names else (SYSTEM[0], None)


def _shown_by_templates(
    row: Mapping[str, Any], where: str
) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]] | None, dict[str, Any]]:
    """Tools, documents and options for a chat template."""
    tools = mappings(row["tools"], "tools", where) if given(row.get("tools")) else None
    if given(row.get("functions")):
        functions = mappings(row["functions"], "functions", where)
        tools = [*(tools or []), *({"type": "function", "function": function} for function in functions)]
    documents = mappings(row["documents"], "documents", where) if given(row.get("documents")) else None
    options = parsed(row.get("chat_template_kwargs") or {}, "chat_template_kwargs", where)
    if not isinstance(options, Mapping):
        raise DataError(f"{where}: 'chat_template_kwargs' should be a mapping. Found {describe(options)}.")
    options = {key: value for key, value in options.items() if value is not None}
    if row.get("enable_thinking") is not None:
        options["enable_thinking"] = row["enable_thinking"]
    return tools or None, documents or None, options


FOR_TEMPLATES = (*SYSTEM, *TOOLS, "documents", *TEMPLATE_OPTIONS)
CHAT_NAMES = ("conversation", "dialog", "dialogue", "chat", "turns", "message", "chats")
PROMPT_NAMES = ("prompt", "question", "query", "instruction", "problem", "input")
COMPLETION_NAMES = ("completion", "answer", "response", "solution", "output", "target")
FORMS: tuple[Form, ...] = (
    Form("tokens", ("input_ids",), _parse_tokens, optional=("labels", "attention_mask", *MASKS)),
    Form("messages", ("messages",), partial(_parse_conversation, "messages"), optional=FOR_TEMPLATES),
    Form(
        "conversations (ShareGPT)", ("conversations",), partial(_parse_conversation, "conversations"),
        optional=FOR_TEMPLATES,
    ),
    Form(
        "prompt and completion", ("prompt", "completion"), _parse_completion,
        optional=("history", *THOUGHTS, *FOR_TEMPLATES),
    ),
    Form(
        "instruction (Alpaca)", ("instruction", "output"), _parse_instruction,
        optional=("input", "history", *THOUGHTS, *FOR_TEMPLATES),
    ),
    Form("text", ("text",), _parse_text),
)  # fmt: skip
