"""Batched greedy generation that gives each prompt the answer it would get alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from corebatch.errors import InputError
from corebatch.model.modes import evaluating

# Shape suffixes: B rows of a batch, T tokens of the longest prompt in it.


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    stop: Sequence[str] = ("\n",),
    progress: bool = True,
    description: str = "generating",
) -> list[str]:
    """Greedy continuations of `prompts`, in their order, without special tokens and outer white space.

    A text ends at the end-of-sequence token, before the first of the strings `stop` that follows its first visible
    character, or after `max_new_tokens` tokens. Rows are batched by length and padded on the left by hand: the
    tokenizer is only read. The train/eval mode of every module and the generation settings are put back.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        batch_size: prompts a forward pass; changes speed and memory, not the texts (up to rounding at near-ties).
        progress: shows a bar on stderr, one tick a prompt.

    Raises:
        InputError: a number below 1, an empty stop string, or a prompt without a token.
    """
    _check(max_new_tokens=max_new_tokens, batch_size=batch_size, stop=stop)
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    empty = [n for n, row in enumerate(rows) if not row]
    if empty:
        raise InputError(f"Every prompt should have at least one token. Found none in prompt {empty[0]}.")
    eos = _eos_ids(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=eos or None,
        pad_token_id=_first(tokenizer.pad_token_id, *eos, 0),
    )
    cut = _Cutter(tokenizer, stop, eos)
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda n: (-len(rows[n]), n))  # longest first: memory peaks at once
    texts = [""] * len(rows)
    with (
        evaluating(model),
        _settings_of(model, settings),
        torch.no_grad(),
        progress_bar(progress, description, len(rows)) as tick,
    ):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids_BT, mask_BT = pad_left([rows[n] for n in chosen], settings.pad_token_id, device)
            stopping = StoppingCriteriaList([_AtStop(cut, ids_BT.shape[1])] if stop else [])
            out = model.generate(
                input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings, stopping_criteria=stopping
            )
            for n, tokens in zip(chosen, out[:, ids_BT.shape[1] :].tolist(), strict=True):
                texts[n] = cut(tokens)[0]
            tick(len(chosen))
    return texts


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [B, T] both, with the padding before the tokens."""
    ids = [torch.tensor(row, device=device) for row in rows]
    mask = pad_sequence([torch.ones_like(each) for each in ids], True, padding_side="left")
    return pad_sequence(ids, True, pad_id, padding_side="left"), mask


class _Cutter:
    """Turns new tokens into the answer's text, and says whether the answer is complete."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], eos: Sequence[int]) -> None:
        self._tokenizer, self._stop, self._eos = tokenizer, tuple(stop), frozenset(eos)

    def __call__(self, tokens: Sequence[int]) -> tuple[str, bool]:
        end = next((n for n, token in enumerate(tokens) if token in self._eos), len(tokens))
        text = self._tokenizer.decode(tokens[:end], skip_special_tokens=True).lstrip()
        ends = [at for at in (text.find(string) for string in self._stop) if at >= 0]
        return text[: min(ends, default=len(text))].rstrip(), bool(ends) or end < len(tokens)


class _AtStop(StoppingCriteria):
    """Ends a row once its answer holds a stop string."""

    def __init__(self, cut: _Cutter, prompt_width: int) -> None:
        self._cut, self._width = cut, prompt_width

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        done = [self._cut(row)[1] for row in input_ids[:, self._width :].tolist()]
        return torch.tensor(done, device=input_ids.device)


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """The end tokens of the tokenizer and of the model's generation settings."""
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])]
    return sorted({int(token) for token in ids if token is not None})


@contextmanager
def _settings_of(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Replaces the model's own settings, which `generate` mixes into ours (a penalty would end greediness)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    owners = [owner for owner in (model, base) if "generation_config" in vars(owner)]
    before = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = settings
    try:
        yield
    finally:
        for owner, config in zip(owners, before, strict=True):
            owner.generation_config = config


@contextmanager
def progress_bar(shown: bool, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that counts up; the bar is on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        job = bar.add_task(description, total=total)
        yield lambda count: bar.advance(job, count)


def _first(*candidates: int | None) -> int:
    return next(token for token in candidates if token is not None)


def _check(*, max_new_tokens: int, batch_size: int, stop: Sequence[str]) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"`{name}` should be at least 1. Found {value}.")
    if isinstance(stop, str) or not all(stop):
        raise InputError(f"`stop` should be a sequence of non-empty strings. Found {stop!r}.")
