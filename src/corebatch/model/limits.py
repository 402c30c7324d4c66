"""What a model can take: token ids, labels and lengths of rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from corebatch.model.modes import base_model

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
