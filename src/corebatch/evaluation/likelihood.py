"""Options scored by the model: log-probabilities of completions, and tasks that choose the likeliest.

Shape suffixes: N rows, T tokens, L positions whose logits are wanted, V vocabulary, K options.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.errors import ConfigError, DataError, NonFiniteError
from corebatch.evaluation.generate import progress_bar
from corebatch.evaluation.loss import evaluated_head, row_losses
from corebatch.evaluation.result import Answer, Count, EvaluationResult
from corebatch.evaluation.tasks import RunOptions, Task, limited
from corebatch.model.head import logits_at
from corebatch.model.modes import evaluating
from corebatch.text import common
from corebatch.types import IGNORED

NORMALISE = ("none", "tokens", "bytes")


@dataclass(frozen=True, slots=True)
class OptionScore:
    """The model's log-probability (nats) of one option after its prompt, and the option's length.

    Attributes:
        tokens: how many tokens `log_prob` is a sum over.
        bytes: of the option in UTF-8, without outer white space.
    """

    log_prob: float
    tokens: int
    bytes: int

    def value(self, normalise: str = "none") -> float:
        """`log_prob`, or the same divided by `tokens` or `bytes`."""
        return self.log_prob / {"none": 1, "tokens": self.tokens, "bytes": max(1, self.bytes)}[normalise]


@dataclass(frozen=True, kw_only=True)
class ChoiceItem:
    """A prompt and its options, each the text that would follow, with its leading space.

    Attributes:
        answer: position of the right option.
        names: what results call the options; by default the options without outer white space.
        group: items with the same source and group are parts of one question.
    """

    prompt: str
    options: tuple[str, ...]
    answer: int
    source: str
    names: tuple[str, ...] = ()
    group: Hashable | None = None

    def __post_init__(self) -> None:
        if not self.prompt:
            raise DataError("A prompt should have at least one character. Found none.")
        if len(self.options) < 2 or not all(option.strip() for option in self.options):
            raise DataError(f"There should be two or more options with text. Found {list(self.options)}.")
        if not 0 <= self.answer < len(self.options):
            raise DataError(f"The answer should be one of {len(self.options)} options. Found number {self.answer}.")
        if self.names and len(self.names) != len(self.options):
            raise DataError(f"Every option should have a name. Found {len(self.names)} for {len(self.options)}.")

    def name(self, option: int) -> str:
        return self.names[option] if self.names else self.options[option].strip()


@dataclass(frozen=True, slots=True)
class _Question:
    """Tokens of one item: what all options share, and each option's own."""

    number: int
    prefix: list[int]
    endings: list[list[int]]

    @property
    def one_token_each(self) -> bool:
        return all(len(ending) == 1 for ending in self.endings)


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a forward pass: an option, or all options of one token each (option -1)."""

    question: _Question
    option: int

    @property
    def ending(self) -> list[int]:
        return self.question.endings[max(self.option, 0)]

    def __len__(self) -> int:
        return len(self.question.prefix) + len(self.ending)


def option_scores(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    batch_size: int = 16,
    max_length: int | None = None,
    progress: bool = True,
    description: str = "scoring",
) -> list[list[OptionScore]]:
    """Log-probabilities of the options of each prompt, in their order.

    Prompt and option are tokenised together. What is summed starts at the first token in which any option of the item
    differs from the prompt alone, so that all options of an item are compared after the same tokens, also where a
    token spans the border. Rows are batched by length and padded on the right; a score does not depend on the batch
    but for rounding. Options of one token each take one forward for all.

    Args:
        options: for each prompt its options, with their leading spaces.
        max_length: longer rows lose the beginning of the prompt (never its first token if that begins every text);
            None: `max_position_embeddings` of the model's config, if it has one.

    Raises:
        DataError: a prompt or an option without a token of its own, or an option that does not fit in `max_length`.
        NonFiniteError: a log-probability is NaN or infinite.
    """
    if max_length is None:
        max_length = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    questions = _tokenised(tokenizer, prompts, options, max_length)
    rows = []
    for question in questions:
        rows += [_Row(question, n) for n in ([-1] if question.one_token_each else range(len(question.endings)))]
    rows.sort(key=lambda row: (-len(row), row.question.number, row.option))
    found: dict[tuple[int, int], float] = {}
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    with evaluating(model), torch.no_grad(), progress_bar(progress, description, len(rows)) as tick:
        head = evaluated_head(model)
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            shared = [row for row in chosen if row.option < 0]
            apart = [row for row in chosen if row.option >= 0]
            for part in (shared, apart):
                if part:
                    found.update(_scores(model, head, part, pad))
            tick(len(chosen))
    for (number, option), value in found.items():
        if value - value != 0:
            raise NonFiniteError(
                f"A log-probability should be finite. Found {value} for option {option} of prompt {number}."
            )
    return [
        [
            OptionScore(found[question.number, n], len(ending), len(text.strip().encode()))
            for n, (ending, text) in enumerate(zip(question.endings, texts, strict=True))
        ]
        for question, texts in zip(questions, options, strict=True)
    ]


def _scores(model: Any, head: Any, rows: Sequence[_Row], pad: int) -> dict[tuple[int, int], float]:
    """Log-probabilities by (item, option) of rows that are either all shared or all of one option."""
    width = max(len(row) for row in rows)
    ids_NT = torch.full((len(rows), width), pad)
    mask_NT, labels_NT = torch.zeros_like(ids_NT), torch.full_like(ids_NT, IGNORED)
    for n, row in enumerate(rows):
        tokens = torch.tensor(row.question.prefix + row.ending)
        ids_NT[n, : len(tokens)] = tokens
        mask_NT[n, : len(tokens)] = 1
        labels_NT[n, len(row.question.prefix) : len(tokens)] = tokens[len(row.question.prefix) :]
    batch = {"input_ids": ids_NT, "attention_mask": mask_NT, "labels": labels_NT}
    if rows[0].option >= 0:
        sums_N, _ = row_losses(model, head, batch, chunk=1024)
        return {(row.question.number, row.option): -loss for row, loss in zip(rows, sums_N.tolist(), strict=True)}
    device = next(model.parameters()).device
    inputs = {key: batch[key].to(device) for key in ("input_ids", "attention_mask")}
    # one position a row: the one that predicts the option's token
    logits_LV: Tensor = logits_at(model, head, inputs, (labels_NT[:, 1:] != IGNORED).to(device))
    wide = logits_LV.dtype if logits_LV.dtype == torch.float64 else torch.float32
    log_probs_LV = logits_LV.to(wide).log_softmax(-1)
    made = {}
    for row, log_probs_V in zip(rows, log_probs_LV, strict=True):
        chosen_K = log_probs_V[[ending[0] for ending in row.question.endings]].tolist()
        made.update({(row.question.number, n): value for n, value in enumerate(chosen_K)})
    return made


def _tokenised(
    tokenizer: Any, prompts: Sequence[str], options: Sequence[Sequence[str]], max_length: int | None
) -> list[_Question]:
    texts = [
        text for prompt, own in zip(prompts, options, strict=True) for text in (prompt, *(prompt + o for o in own))
    ]
    encoded = iter(
        tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
    )
    start = _start_ids(tokenizer)
    made = []
    for number, own in enumerate(options):
        prompt = next(encoded)
        wholes = [next(encoded) for _ in own]
        shared = min(common(prompt, whole) for whole in wholes)
        prefix, endings = start + prompt[:shared], [whole[shared:] for whole in wholes]
        if not prefix or not all(endings):
            raise DataError(
                f"Prompt {number} and each of its options should have a token of their own. Found {len(prefix)} and "
                f"{[len(ending) for ending in endings]}."
            )
        room = None if max_length is None else max_length - max(map(len, endings))
        if room is not None and len(prefix) > room:
            if room <= len(start):
                raise DataError(f"Prompt {number}: its options should fit in {max_length} tokens. Found longer ones.")
            prefix = start + prefix[len(prefix) - (room - len(start)) :]
        made.append(_Question(number, prefix, endings))
    return made


def _start_ids(tokenizer: Any) -> list[int]:
    """[] or [the beginning-of-sequence id], as the tokenizer itself begins a text."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


class LikelihoodTask(Task[EvaluationResult]):
    """The model's choice is the option with the highest score; of equal ones, the first. `normalise`: "none"
    (log-probability), "tokens" or "bytes" (divided by the option's length)."""

    normalise: str = "none"

    @abstractmethod
    def items(self) -> Sequence[ChoiceItem]:
        """All items, in a fixed order; at least one."""

    def metrics(self, items: Sequence[ChoiceItem], chosen: Sequence[int]) -> Mapping[str, float | Count]:
        """What is reported beside the share of right choices."""
        return {}

    def run(self, model: Any, tokenizer: Any, options: RunOptions) -> EvaluationResult:
        items = limited(self.items(), options.limit, lambda item: item.source, lambda item: item.group)
        scores = option_scores(
            model,
            tokenizer,
            [item.prompt for item in items],
            [item.options for item in items],
            batch_size=options.batch_size,
            progress=options.progress,
            description=options.description,
        )
        values = [tuple(score.value(self.normalise) for score in row) for row in scores]
        chosen = [max(range(len(row)), key=row.__getitem__) for row in values]
        answers = tuple(
            Answer(
                source=item.source,
                prompt=item.prompt,
                expected=item.name(item.answer),
                text=item.name(choice),
                correct=choice == item.answer,
                scores=row,
            )
            for item, choice, row in zip(items, chosen, values, strict=True)
        )
        settings: dict[str, Any] = {"decoding": "likelihood", "normalise": self.normalise}
        settings["batch_size"] = options.batch_size
        if options.limit is not None:
            settings["limit"] = options.limit
        return EvaluationResult(task=self.name, answers=answers, settings=settings, metrics=self.metrics(items, chosen))


def check_normalise(value: str) -> str:
    """Raises ConfigError if there is no such way."""
    if value not in NORMALISE:
        raise ConfigError(f"`normalise` should be one of {', '.join(NORMALISE)}. Found {value!r}.")
    return value


def f1(expected: Sequence[int], chosen: Sequence[int], label: int = 1) -> float:
    """Harmonic mean of precision and recall of one label; 0 where it is neither expected nor chosen."""
    pairs = list(zip(expected, chosen, strict=True))
    both = sum(one == label and other == label for one, other in pairs)
    either = sum((one == label) + (other == label) for one, other in pairs)
    return 2 * both / either if either else 0.0


def macro_f1(expected: Sequence[int], chosen: Sequence[int]) -> float:
    """Mean of the F1 of each label that is expected or chosen at least once."""
    labels = sorted({*expected, *chosen})
    return sum(f1(expected, chosen, label) for label in labels) / len(labels)
