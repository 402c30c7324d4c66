"""Rows that the model cannot take, found before any forward, which would name neither row nor cause."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from corebatch.errors import DataError
from corebatch.model.modes import base_model
from corebatch.trainer.tagging import is_stream
from corebatch.types import ID, IGNORED

SHOWN = 8
_POSITION_TABLE = re.compile(r"(^|\.)(wpe|embed_positions|position_embeddings?|embed_pos\w*)$")
_POSITION_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLimits:
    """What a model can take.

    Attributes:
        vocabulary: token ids are below it.
        targets: labels are below it; a head may know fewer tokens than the embedding.
        longest: tokens of a row, where the model looks its positions up in a table; None if it computes them.
    """

    vocabulary: int
    targets: int
    longest: int | None


def row_limits(model: nn.Module) -> RowLimits:
    """The limits of a causal language model of transformers, with or without adapters."""
    base = base_model(model)
    config = base.config.get_text_config()
    embedding = base.get_input_embeddings()
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    vocabulary = _rows(embedding, "num_embeddings") or int(config.vocab_size)
    return RowLimits(
        vocabulary=vocabulary,
        targets=_rows(head, "out_features") or vocabulary,
        longest=_longest(base, config, embedding),
    )


def _rows(module: Any, attribute: str) -> int | None:
    """By the attribute, since a sharded weight may be empty; peft's wrappers show their layer's."""
    layer = getattr(module, "base_layer", getattr(module, "original_module", module))
    found = getattr(layer, attribute, None)
    return found if isinstance(found, int) and found > 0 else None


def _longest(base: nn.Module, config: Any, embedding: Any) -> int | None:
    """Learned positions (GPT-2, OPT), sines in a table (CodeGen, GPT-J) and MPT's biases end somewhere; rotary ones
    that are computed do not."""
    tables = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Embedding) and module is not embedding and _POSITION_TABLE.search(name)
    ]
    tables += [name for name, _ in base.named_buffers() if name.endswith("embed_positions")]
    if not tables and getattr(config, "model_type", "") != "mpt":
        return None
    found = (getattr(config, key, None) for key in _POSITION_KEYS)
    return next((value for value in found if isinstance(value, int) and value > 0), None)


def check_rows(
    batches: Sequence[Mapping[str, Tensor]], vocabulary: int, longest: int | None, *, targets: int | None = None
) -> None:
    """Looks at the extremes of all batches; at single rows only if something is wrong.

    Args:
        batches: this rank's of a pool, with `input_ids`, `labels` and example ids.
        vocabulary: token ids are from 0 to this, exclusive.
        longest: tokens of a row at most, or None.
        targets: labels are -100 or from 0 to this, exclusive; `vocabulary` by default.

    Raises:
        DataError: a row is too long, or a token id or a label is outside; says which examples, what was expected and
            what was found.
    """
    targets = vocabulary if targets is None else targets
    if not batches:
        return
    if longest is not None and any(batch["input_ids"].shape[1] > longest for batch in batches):
        _check_lengths(batches, longest)
    extremes = torch.stack([torch.stack([*_extremes(batch)]) for batch in batches])
    least, most = extremes.amin(dim=0).tolist(), extremes.amax(dim=0).tolist()  # the one look at a device's numbers
    if least[0] < 0 or most[1] >= vocabulary:
        _refuse(batches, "Token ids", "input_ids", vocabulary)
    if least[2] < 0 or most[3] >= targets:
        _refuse(batches, f"Labels should be {IGNORED} or trained; trained ones", "labels", targets)


def no_row_is_trained(trainer: Any) -> bool:
    """Whether not one row of the train set has a trained token; looks until the first that has one, and draws no random
    number of the run. A stream, which cannot be looked through, is taken to have one."""
    dataset = trainer.train_dataset
    if is_stream(dataset):
        return False
    collator = trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - the state that collators draw from
    try:
        with torch.random.fork_rng(devices=[]):
            rows = (dataset[number] for number in range(len(dataset)))
            return not any(bool((collator([row])["labels"] != IGNORED).any()) for row in rows)
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


def _extremes(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Least and largest token id, then label; what is ignored counts as 0."""
    low, high = torch.aminmax(batch["input_ids"])
    least, most = torch.aminmax(_trained(batch["labels"]))
    return low, high, least, most


def _trained(labels: Tensor) -> Tensor:
    return labels.masked_fill(labels == IGNORED, 0)


def _refuse(batches: Sequence[Mapping[str, Tensor]], what: str, key: str, limit: int) -> None:
    examples, found = [], set()
    for batch in batches:
        values = batch[key] if key == "input_ids" else _trained(batch[key])
        outside = (values < 0) | (values >= limit)
        examples += _ids(batch, outside.any(dim=1))
        found |= set(values[outside].tolist())
    raise DataError(
        f"{what} should be from 0 to {limit - 1}, as the model's vocabulary has them. Found {_few(sorted(found))} in "
        f"examples {_few(examples)} of the train set: is the tokenizer the model's, or are these rows damaged?"
    )


def _check_lengths(batches: Sequence[Mapping[str, Tensor]], longest: int) -> None:
    examples, lengths = [], []
    for batch in batches:
        mask = batch.get("attention_mask")
        whole = torch.ones_like(batch["input_ids"])
        tokens = (whole if mask is None or mask.ndim != 2 else (mask != 0).long()).sum(dim=1)
        examples += _ids(batch, tokens > longest)
        lengths += tokens[tokens > longest].tolist()
    if examples:
        raise DataError(
            f"Rows should have at most {longest} tokens, as many positions as the model has. Found {_few(lengths)} "
            f"tokens in examples {_few(examples)} of the train set. Cut or drop them (max_length)."
        )
    width = max(batch["input_ids"].shape[1] for batch in batches)
    raise DataError(
        f"Batches should be at most {longest} positions wide, as many as the model has. Found {width}, padding "
        "included: pad to the longest row of a batch, or to a multiple that divides the limit."
    )


def _ids(batch: Mapping[str, Tensor], rows: Tensor) -> list[int]:
    """Example ids of some rows; their numbers in the batch where there are none."""
    ids = batch[ID] if ID in batch else torch.arange(len(rows), device=rows.device)
    return ids[rows.to(ids.device)].tolist()


def _few(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
