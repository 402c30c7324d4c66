"""Every key of a row or of a turn to which a common tool or chat template gives a meaning.

One table, two uses. A key that the row's form reads is honoured there. A key of this table that the row's
form does not read, but that says something (`given`), stops the reading: it would be lost in silence. What
stands in no line here is the user's own and stays out of the tokens; `validate` lists it once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from corebatch.mixture.cells import given


def _is_verdict(value: Any) -> bool:
    """A boolean, or one in the guise of CSV or of 0 and 1: the mark of unpaired preference data."""
    return number(value) in (0, 1) or str(value).strip().lower() in ("true", "false")


def number(value: Any) -> Any:
    """The value; the number that it is in a cell of CSV."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _not_one(value: Any) -> bool:
    return given(value) and not (isinstance(value, str | int | float) and number(value) == 1)


def _off(value: Any) -> bool:
    return _is_verdict(value) and (number(value) == 0 or str(value).strip().lower() == "false")


def _chosen_from(value: Any) -> bool:
    return isinstance(value, list | Mapping) and given(value)


def _asks_of_calls(value: Any) -> bool:
    return given(value) and value not in (True, "auto")


def _any_but_zeros(value: Any) -> bool:
    return not (isinstance(value, list) and not any(value)) and given(value)


def _is_packed(value: Any) -> bool:
    return given(value) and not (isinstance(value, list) and value == list(range(len(value))))


def _true(value: Any) -> bool:
    return bool(given(value) and value is not False and value != 0)


@dataclass(frozen=True, slots=True)
class RowKey:
    """A known key.

    Attributes:
        names: under which it is met.
        meaning: what tools and templates take it for.
        honoured: where and how it is used here; "": nowhere.
        advice: how a user goes on whose row has it where it is not used.
        says_something: whether a value asks for anything.
        of_answers: means this beside an answer only; beside running text it is the user's own.
    """

    names: tuple[str, ...]
    meaning: str
    honoured: str = ""
    advice: str = ""
    says_something: Callable[[Any], bool] = given
    of_answers: bool = False


THOUGHTS = ("reasoning_content", "thinking", "reasoning", "thought", "thoughts")
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "sys_prompt")
TOOLS = ("tools", "functions")
TEMPLATE_OPTIONS = ("chat_template_kwargs", "enable_thinking")
MASKS = ("completion_mask", "assistant_masks", "loss_mask")
WEIGHTS = ("weight", "train", "training", "trainable", "loss", "loss_weight", "loss_mask", "step_loss_mask")

_PREFERENCE = "Rows of preferences are not trained on; keep the answers to learn, as 'completion' or as a turn"
_TEXT_ONLY = "Only text is trained"

ROW_KEYS: tuple[RowKey, ...] = (
    RowKey(SYSTEM, "system prompt", "the first turn of conversations, and of other rows with `apply_chat_template`"),
    RowKey(TOOLS, "tools that the assistant may call", "given to the chat template"),
    RowKey(("documents",), "documents to answer from", "given to the chat template"),
    RowKey(TEMPLATE_OPTIONS, "options of the chat template", "given to the chat template"),
    RowKey(("history",), "earlier turns, as pairs", "turns before the row's own, with `apply_chat_template`"),
    RowKey(THOUGHTS, "the thoughts before the answer", "the answer's thoughts, with `apply_chat_template`"),
    RowKey(MASKS, "which tokens are trained", "with `input_ids`: where 0, not trained"),
    RowKey(
        ("chosen", "rejected", "rejected_response", "rejected_messages", "chosen_response"),
        "a preferred and a refused answer (DPO)", advice=_PREFERENCE,
    ),
    RowKey(
        ("label", "kto_tag", "desirable"), "whether the answer is wanted: unpaired preference data, as for KTO",
        advice="Answers that are not wanted would be trained too: take those rows out of the file",
        says_something=_is_verdict, of_answers=True,
    ),
    RowKey(
        ("context",), "what the question is about (Dolly, SQuAD)", of_answers=True,
        advice="Map it beside the others: `columns: {instruction: ..., input: context, output: ...}`",
    ),
    RowKey(
        ("choices", "options"), "the answers to choose from", advice="Write them into the prompt",
        says_something=_chosen_from, of_answers=True,
    ),
    RowKey(
        ("rationale", "cot", "chain_of_thought", "reasoning_trace"), "the thoughts before the answer", of_answers=True,
        advice="Map them: `columns: {reasoning_content: ...}`, or write them into the completion",
    ),
    RowKey(
        ("available_tools", "tool_definitions", "function_definitions"), "tools that the assistant may call",
        advice="Map them: `columns: {tools: ...}`", of_answers=True,
    ),
    RowKey(
        ("tool_choice", "parallel_tool_calls"), "how the assistant may call tools", says_something=_asks_of_calls,
        advice="If the chat template reads it, give it in `chat_template_kwargs`",
    ),
    RowKey(
        ("train", "trainable"), "whether the row is trained", says_something=_off,
        advice="Take the rows that are not out of the file",
    ),
    RowKey(
        ("skip", "exclude", "masked"), "whether the row is left out", advice="Take such rows out of the file",
        says_something=lambda value: value is not None and _is_verdict(value) and not _off(value),
    ),
    RowKey(
        ("score", "reward", "margin", "rating", "advantage"), "how good the answer is", of_answers=True,
        advice="No row is weighted by it but by coreset.weight_column. Take out the rows that should not be learnt",
    ),
    RowKey(
        (
            "weight", "weights", "sample_weight", "sample_weights", "example_weight", "loss_weight", "loss_weights",
            "loss_scale",
        ),
        "how much the row counts", says_something=_not_one,
        advice="Name it by coreset.weight_column, or give the `weight` of a whole data set",
    ),
    RowKey(
        ("image", "images", "video", "videos", "audio", "audios", "pixel_values"), "pictures, films, sound",
        advice=_TEXT_ONLY,
    ),
    RowKey(
        ("label_mask", "labels_mask", "assistant_mask", "response_mask", "target_mask", "train_mask"),
        "which tokens are trained", says_something=lambda value: isinstance(value, list) and given(value),
        advice="Where 1 stands for trained, map it: `columns: {completion_mask: ...}` of rows with input_ids",
    ),
    RowKey(
        ("position_ids", "seq_lengths", "cu_seqlens", "seq_idx", "segment_ids", "sequence_ids"),
        "several examples packed into a row", says_something=_is_packed,
        advice="Give one example a row; rows are put together without padding by `padding_free`",
    ),
    RowKey(
        ("token_type_ids",), "parts of a row, for some models", advice="They are not given to the model",
        says_something=_any_but_zeros,
    ),
)  # fmt: skip

TURN_KEYS: tuple[RowKey, ...] = (
    RowKey(("role", "from"), "who speaks", "by the chat template"),
    RowKey(("content", "value"), "what is said: a string, or a list of text parts", "by the chat template"),
    RowKey(WEIGHTS, "whether the turn is trained", "0 or false: nothing of it is; 1 or true: all of an assistant's"),
    RowKey(THOUGHTS, "the thoughts before the answer", "by the chat template, under the name that it reads"),
    RowKey(("tool_calls", "function_call"), "the assistant's calls of tools", "by the chat template, and trained"),
    RowKey(("tool_call_id",), "which call a tool answers", "given to the chat template"),
    RowKey(("name",), "the tool's or the speaker's name", "given to the chat template"),
    RowKey(
        ("tools", "functions"), "tools that the assistant may call",
        advice="Give them in a column 'tools' of the row",
    ),
    RowKey(("rejected", "chosen", "label"), "preferences", advice=_PREFERENCE),
    RowKey(("refusal",), "the assistant's refusal", advice="Give its text as 'content'"),
    RowKey(
        ("prefix", "continue_final_message"), "a turn to be continued", advice="Give the whole turn as 'content'",
        says_something=_true,
    ),
    RowKey(
        ("train_detail", "training_detail", "loss_scale", "weights", "trained", "is_trained"),
        "which parts of the turn are trained",
        advice="Turns are trained whole or not at all, by 'weight': 1 or 0", says_something=_not_one,
    ),
    RowKey(
        ("mask", "masked", "ignore", "skip", "exclude"), "whether the turn is left out", advice="Use 'weight': 0",
        says_something=_true,
    ),
    RowKey(
        ("image", "images", "video", "videos", "audio", "audios", "input_audio"), "pictures, films, sound",
        advice=_TEXT_ONLY,
    ),
)  # fmt: skip

KNOWN_OF_ROWS: dict[str, RowKey] = {name: key for key in ROW_KEYS for name in key.names}
KNOWN_OF_TURNS: dict[str, RowKey] = {name: key for key in TURN_KEYS for name in key.names}
REFUSED_OF_TURNS = frozenset(name for key in TURN_KEYS if not key.honoured for name in key.names)


def refusal(where: str, name: str, key: RowKey, form: str) -> str:
    """The words with which a key that would be lost is refused."""
    advice = f" {key.advice}." if key.advice else f" It is {key.honoured}."
    return (
        f"{where}: {name!r} ({key.meaning}) is not used by rows of the form {form}.{advice} "
        f"Or leave it out on purpose: `ignore_columns: [{name}]` of the data set."
    )
