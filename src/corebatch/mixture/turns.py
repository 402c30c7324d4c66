"""The turns of a conversation, of `messages` and of ShareGPT, brought to what chat templates take.

Keys that mean nothing here reach the template as they are, since some template may read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from corebatch.errors import DataError
from corebatch.mixture.cells import describe, given, mappings, parsed, string
from corebatch.mixture.keys import KNOWN_OF_TURNS, REFUSED_OF_TURNS, THOUGHTS, WEIGHTS, refusal

Message = dict[str, Any]
CALL_ROLES = {"function_call": "assistant", "tool_call": "assistant"}
RESULT_ROLES = {"observation": "tool", "tool_response": "tool", "function_response": "tool"}
MESSAGE_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool", "function", "ipython")},
    **CALL_ROLES, **RESULT_ROLES,
}  # fmt: skip
SHAREGPT_ROLES = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", **MESSAGE_ROLES
}  # fmt: skip
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
THOUGHT_PARTS = frozenset({"thinking", "reasoning"})


@dataclass(frozen=True, slots=True)
class Turns:
    """Messages for a chat template, and the positions of the assistant's that the row says not to train."""

    messages: list[Message]
    untrained: frozenset[int] = frozenset()


def parse_turns(cell: Any, name: str, where: str) -> Turns:
    """The turns of one cell.

    Args:
        cell: a list of mappings, its JSON, or the mapping of lists that older `datasets` features decode to.
        name: of the column; "conversations" is the one with the roles of ShareGPT.
        where: the file and line, for messages.

    Raises:
        DataError: naming the turn and the key that cannot be used.
    """
    roles, noun = (SHAREGPT_ROLES, "turn") if name == "conversations" else (MESSAGE_ROLES, "message")
    messages, untrained = [], set()
    for number, turn in enumerate(_mappings(cell, name, where)):
        at = f"{where}: {noun} {number + 1} of {name!r}"
        message = _message(turn, at, roles)
        if not _trained(turn, message["role"], at):
            untrained.add(number)
        messages.append(message)
    return Turns(messages, frozenset(untrained))


def as_list(cell: Any, name: str, where: str) -> Any:
    """The turns of a cell as a list, also where it is the JSON of one, or a mapping of lists, one for each key. Raises
    DataError: a string that is not JSON, or lists of several lengths."""
    if isinstance(cell, str) and cell.lstrip().startswith(("[", "{")):
        cell = parsed(cell, name, where)
    if not isinstance(cell, Mapping) or not cell or not all(isinstance(column, list) for column in cell.values()):
        return cell
    lengths = {key: len(column) for key, column in cell.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{key!r}: {length}" for key, length in lengths.items())
        raise DataError(f"{where}: the lists in {name!r} should have one length. Found {found}.")
    return [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]


def _mappings(cell: Any, name: str, where: str) -> Sequence[Mapping[str, Any]]:
    cell = as_list(cell, name, where)
    if not isinstance(cell, list) or not cell:
        raise DataError(f"{where}: {name!r} should be a list of messages, not empty. Found {describe(cell)}.")
    for turn in cell:
        if not isinstance(turn, Mapping):
            raise DataError(f"{where}: {name!r} should be a list of messages. Found {describe(turn)} in it.")
    return cell


def _message(turn: Mapping[str, Any], at: str, roles: Mapping[str, str]) -> Message:
    for name in REFUSED_OF_TURNS.intersection(turn):
        if KNOWN_OF_TURNS[name].says_something(turn[name]):
            raise DataError(refusal(at, name, KNOWN_OF_TURNS[name], "conversation"))
    # Some sets use the column name of ShareGPT with the keys of `messages`, or the other way round.
    said_by, said = ("from" if "from" in turn else "role"), ("value" if "value" in turn else "content")
    role = string(turn, said_by, at)
    if role not in roles:
        raise DataError(f"{at}: {said_by!r} should be one of {', '.join(sorted(roles))}. Found {role!r}.")
    left_out = {said_by, said, *WEIGHTS, *REFUSED_OF_TURNS}
    others = {key: value for key, value in turn.items() if key not in left_out and value is not None}
    for key in others.keys() & set(THOUGHTS):
        string(others, key, at)
    message = {"role": roles[role], **_content(turn, said, at, role), **others}
    if role in CALL_ROLES or others.get("tool_calls") or others.get("function_call"):
        _set_calls(message, at, role)
    if "content" not in message and not (message.get("tool_calls") or any(map(message.get, THOUGHTS))):
        string(turn, said, at)
    return message


def _content(turn: Mapping[str, Any], said: str, at: str, role: str) -> Message:
    value = turn.get(said)
    if value is None:
        # Some templates tell a call of tools by content that is null, which is not the same as not there.
        calls = turn.get("tool_calls") or turn.get("function_call")
        return {"content": None} if said in turn and calls and role == "assistant" else {}
    if not isinstance(value, list):
        return {"content": string(turn, said, at)}
    texts, thoughts = [], []
    for number, part in enumerate(value, start=1):
        if not isinstance(part, Mapping):
            raise DataError(f"{at}: part {number} of {said!r} should be a mapping. Found {describe(part)}.")
        kind = part.get("type", "text")
        named = isinstance(kind, str)
        if named and kind in THOUGHT_PARTS:
            key = next((name for name in (kind, "text") if isinstance(part.get(name), str)), kind)
            thoughts.append(string(part, key, f"{at}, part {number}"))
        elif named and kind in TEXT_PARTS:
            texts.append(string(part, "text", f"{at}, part {number}"))
        else:
            raise DataError(
                f"{at}: part {number} of {said!r} should be a text, {{'type': 'text', 'text': ...}}. Found {kind!r}. "
                "Only text is trained."
            )
    return {"content": "".join(texts)} | ({"reasoning_content": "\n".join(thoughts)} if thoughts else {})


def _set_calls(message: Message, at: str, role: str) -> None:
    """Calls of every style as a list of {"type": "function", "function": {"name", "arguments"}}."""
    if message["role"] != "assistant":
        raise DataError(f"{at}: 'tool_calls' belong to the assistant. Found the role {role!r}.")
    calls = message.pop("function_call", None)
    key = "function_call"
    if role in CALL_ROLES:
        calls, key = message.pop("content", None), "value" if role == "function_call" else "content"
    elif calls is None:
        calls, key = message["tool_calls"], "tool_calls"
    message["tool_calls"] = [_call(call, key, at) for call in mappings(calls, key, at)]


def _call(call: Message, key: str, at: str) -> Message:
    outer: Message = call if isinstance(call.get("function"), Mapping) else {"type": "function", "function": call}
    function: Mapping[str, Any] = outer["function"]
    if not isinstance(function.get("name"), str) or not function["name"].strip():
        raise DataError(f"{at}: a call in {key!r} should have a 'name', a string. Found {describe(call)}.")
    arguments = parsed(function.get("arguments") or {}, "arguments", at)
    if not isinstance(arguments, Mapping):
        raise DataError(f"{at}: 'arguments' of a call should be a mapping, or its JSON. Found {describe(arguments)}.")
    return outer


def _trained(turn: Mapping[str, Any], role: str, at: str) -> bool:
    """Whether the turn's own keys leave it trained; without one, they do."""
    trained = True
    for name in WEIGHTS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(
                f"{at}: {name!r} should be 0 or 1 (or false, true): a turn is trained whole or not at all. "
                f"Found {describe(value)}."
            )
        if value and role != "assistant":
            raise DataError(
                f"{at}: {name!r} is {value!r}, but only turns of the assistant are trained, and its role is {role!r}. "
                f"Set it to 0, take it out, or `ignore_columns: [{name}]` of the data set."
            )
        trained = trained and bool(value)
    return trained


def pairs(cell: Any, where: str) -> list[Message]:
    """The turns of `history`: a list of [question, answer], or of messages. Raises DataError: anything else."""
    cell = parsed(cell, "history", where)
    if isinstance(cell, list) and cell and all(isinstance(pair, Mapping) for pair in cell):
        turns = parse_turns(cell, "history", where)
        if turns.untrained:
            raise DataError(f"{where}: 'history' should have no weights of turns. Give the row as 'messages'.")
        return turns.messages
    if not isinstance(cell, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in cell
    ):
        raise DataError(f"{where}: 'history' should be a list of [question, answer]. Found {describe(cell)}.")
    return [
        {"role": role, "content": text} for pair in cell for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def with_system(messages: list[Message], system: str | None, name: str, where: str) -> list[Message]:
    """The messages with the row's system prompt in front, once. Raises DataError: they begin with another one."""
    if system is None or not given(system):
        return messages
    if messages and messages[0]["role"] == "system":
        if messages[0].get("content", "").strip() == system.strip():
            return messages
        raise DataError(
            f"{where}: the column {name!r} and the first turn are two system prompts, and they differ. "
            f"Keep one: take one out, or `ignore_columns: [{name}]` of the data set."
        )
    return [{"role": "system", "content": system}, *messages]
